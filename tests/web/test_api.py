"""Clients of a running app can do what docs/api.md describes, and nothing else."""

import json
import re
import time
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openpyxl
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from peft_space.__main__ import main
from peft_space.operations.registry import operations_on
from peft_space.runs import events
from peft_space.runs.store import list_runs, open_run
from tests.fixtures.app_process import ROOT, App

ENDPOINTS = {one.name for one in operations_on("api")} | {"upload_text"}
NOT_UPLOADED = "This file was not uploaded."


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """The app as a Space runs it, where visitors are strangers."""
    running = App(tmp_path_factory.mktemp("space"), SYSTEM="spaces")
    running.start()
    yield running
    running.kill()


@pytest.fixture
def connect(tmp_path):
    """Connects a client with a download folder of its own."""
    clients = []

    def make(running):
        clients.append(
            Client(
                running.url,
                verbose=False,
                download_files=tmp_path / f"client-{len(clients)}",
                analytics_enabled=False,
            )
        )
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def ended(client, run, owner=""):
    """The status of a run once it neither waits nor trains."""
    deadline = time.time() + 120
    while time.time() < deadline:
        state = client.predict(run, owner, api_name="/status")
        if state["status"] not in ("queued", "running"):
            return state
        time.sleep(0.3)
    raise AssertionError(f"not ended within two minutes: {state}")


def refusal(client, endpoint, **arguments):
    """The sentence with which a call is refused."""
    with pytest.raises(AppError) as error:
        client.predict(**arguments, api_name=f"/{endpoint}")
    return str(error.value)


def post(url, endpoint, *values):
    """A call as it is written by hand: (what kind of event ended it, its data)."""
    event = httpx.post(
        f"{url}/gradio_api/call/{endpoint}", json={"data": values}, timeout=60
    ).json()["event_id"]
    answer = httpx.get(f"{url}/gradio_api/call/{endpoint}/{event}", timeout=60).text
    kind, data = re.findall(r"event: (\w+)\ndata: (.*)\n", answer)[-1]
    return kind, json.loads(data)


def file_data(path):
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


@pytest.mark.slow
def test_the_examples_in_the_docs_run_as_one_story(app, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(
        r"^```(python.*?)\n(.*?)^```",
        (ROOT / "docs" / "api.md").read_text(),
        re.DOTALL | re.MULTILINE,
    )
    story: dict = {}
    for mark, code in blocks:
        compile(code, "docs/api.md", "exec")
        if mark == "python":
            exec(code.replace("http://127.0.0.1:7860", app.url), story)
    story["client"].close()
    assert {mark for mark, _ in blocks} == {"python", "python no-run"}
    called = set(re.findall(r'api_name="/(\w+)"', "".join(code for _, code in blocks)))
    assert called <= ENDPOINTS
    assert len(called) > 25
    monkeypatch.setenv("PEFT_SPACE_HOME", str(app.home))
    ends = [
        event
        for event in open_run("local", story["run"]).history()
        if isinstance(event, events.Stopped | events.Finished)
    ]
    assert [type(event) for event in ends] == [events.Stopped, events.Finished]
    assert ends[0].step < ends[1].step == story["state"]["step"] == 20
    assert story["scores"]["adapter"]["loss"] < story["scores"]["base"]["loss"]
    assert "adapter/adapter_model.safetensors" in zipfile.ZipFile(story["path"]).namelist()
    printed = capsys.readouterr().out
    assert "step 20 of 20 loss" in printed
    assert "Did you mean lora_rank?" in printed


@pytest.mark.slow
def test_two_concurrent_clients_each_get_their_own_results(app, connect, write):
    def journey(client, word, steps):
        path = write(
            f"{word}.jsonl",
            [
                {"prompt": f"What is {word} {i}?", "completion": f"{word} number {i}"}
                for i in range(20)
            ],
        )
        recipe = {"max_steps": steps, "lora_rank": steps, "eval_split": 0.2}
        found = client.predict(handle_file(path), recipe, api_name="/check")
        started = client.predict(handle_file(path), recipe, api_name="/train")
        state = ended(client, started["run"])
        compared = client.predict(
            started["run"],
            [f"What is {word} 1?"],
            sampling={"max_new_tokens": 4},
            api_name="/compare",
        )
        scores = client.predict(started["run"], api_name="/evaluate")
        with zipfile.ZipFile(client.predict(started["run"], api_name="/export")) as archive:
            config = json.loads(archive.read("adapter/adapter_config.json"))
        return {
            "found": found,
            "run": started["run"],
            "state": state,
            "compared": compared,
            "scores": scores,
            "config": config,
        }

    ways = [(connect(app), "apple", 2), (connect(app), "pear", 3)]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda way: journey(*way), ways))
    assert results[0]["run"] != results[1]["run"]
    for (client, word, steps), result in zip(ways, results, strict=True):
        assert result["found"]["source"] == f"{word}.jsonl"
        assert result["state"]["name"].startswith(word)
        assert [loss["step"] for loss in result["state"]["losses"]] == list(range(1, steps + 1))
        assert set(result["state"]["losses"][0]) == {
            "step",
            "loss",
            "learning_rate",
            "grad_norm",
            "tokens",
            "seconds",
        }
        assert (result["state"]["recipe"]["lora_rank"], result["config"]["r"]) == (steps, steps)
        assert (result["state"]["total_steps"], result["state"]["message"]) == (steps, None)
        assert all(
            adjusted["what"] and adjusted["why"] for adjusted in result["state"]["adjustments"]
        )
        assert result["state"]["plan"]["base_name"]
        assert word in result["compared"]["answers"][0]["prompt"]
        assert result["scores"]["num_rows"] == 4
        assert (
            client.predict(result["run"], since_step=steps - 1, api_name="/status")["losses"]
            == result["state"]["losses"][-1:]
        )
        assert "is finished: there is nothing to resume" in refusal(
            client, "resume", run=result["run"]
        )
        assert client.predict(result["run"], api_name="/stop") == {
            "run": result["run"],
            "status": "finished",
        }
    listed = {line["run"]: line for line in ways[0][0].predict(api_name="/list")}
    assert set(listed[results[1]["run"]]) == {
        "run",
        "name",
        "status",
        "created",
        "base_model",
        "step",
    }
    assert (listed[results[0]["run"]]["step"], listed[results[1]["run"]]["step"]) == (2, 3)


@pytest.mark.parametrize(
    ("content", "recipe"),
    [
        ("", {}),
        ("{[", {}),
        ('[{"prompt": "a"}]', {}),
        ('[{"prompt": "a", "completion": "b"}]', {"rank": 4}),
        ('[{"prompt": "a", "completion": "b"}]', {"target_modules": ["query"]}),
    ],
    ids=["an empty file", "not JSON", "wrong columns", "an unknown key", "an unknown layer"],
)
@pytest.mark.parametrize("endpoint", ["check", "train"])
@pytest.mark.sample(1)
@pytest.mark.slow
def test_a_mistake_has_the_same_message_as_on_the_command_line(
    app, connect, write, tmp_path, capfd, monkeypatch, endpoint, content, recipe
):
    path = write("rows.json", content)
    assert (
        main(["train", str(path), "--recipe", json.dumps(recipe), "--out", str(tmp_path / "run")])
        == 2
    )
    said = capfd.readouterr().err.strip()
    monkeypatch.setenv("PEFT_SPACE_HOME", str(app.home))
    before = len(list_runs("local"))
    assert refusal(connect(app), endpoint, data=handle_file(path), recipe=recipe) == said
    assert len(list_runs("local")) == before


@pytest.mark.parametrize(
    ("endpoint", "arguments", "said"),
    [
        ("compare", {"run": "0" * 24, "prompts": "Hi"}, "prompts: input should be a valid list."),
        ("compare", {"run": "0" * 24, "prompts": []}, "prompts: list should have at least 1 item"),
        (
            "compare",
            {"run": "0" * 24, "prompts": ["Hi"], "sampling": {"max_tokens": 5}},
            "sampling max_tokens: extra inputs are not",
        ),
        (
            "compare",
            {"run": "0" * 24, "prompts": ["Hi"], "sampling": {"top_p": 2}},
            "sampling top_p: input should be less than",
        ),
        ("status", {"run": {"run": "x"}}, "run: input should be a valid string."),
        ("check", {"data": 5}, "data: input should be a valid"),
        ("status", {"run": "0" * 24}, "You have no run"),
        ("export", {"run": "../local"}, "You have no run"),
    ],
)
@pytest.mark.sample(1)
def test_a_wrong_argument_is_named_in_the_message(app, connect, endpoint, arguments, said):
    assert refusal(connect(app), endpoint, **arguments).startswith(said)


def test_exactly_the_documented_endpoints_are_public(app, connect):
    shown = connect(app).view_api(print_info=False, return_format="dict")
    assert set(shown["named_endpoints"]) == {f"/{name}" for name in ENDPOINTS}
    assert shown["unnamed_endpoints"] == {}
    assert all(endpoint["description"] for endpoint in shown["named_endpoints"].values())
    widgets = [
        d
        for d in httpx.get(f"{app.url}/config").json()["dependencies"]
        if d["api_visibility"] != "private" and d["targets"]
    ]
    assert [d["api_name"] for d in widgets] == []


@pytest.mark.slow
def test_only_an_uploaded_file_is_read_whatever_path_is_made_up(app, write):
    rows = write("rows.json", [{"prompt": "a", "completion": "the secret of the server"}])
    nobody_uploaded_it = (
        app.cache / "made" / "rows.json"
    )  # such as an adapter that another visitor exported
    nobody_uploaded_it.parent.mkdir()
    nobody_uploaded_it.write_bytes(rows.read_bytes())
    uploaded = upload(app.url, rows)
    assert post(app.url, "check", uploaded, {}, None, {}, 50)[0] == "complete"
    around = f"{uploaded['path']}/../../../{nobody_uploaded_it.relative_to(app.cache.parent)}"
    of_the_app = ROOT / "peft_space" / "demo" / "data" / "train.jsonl"
    for path in (rows, nobody_uploaded_it, around, of_the_app, "/etc/passwd", "/", "nowhere.json"):
        for data in (
            str(path),
            file_data(path),
            {"path": str(path)},
            file_data(path) | {"is_stream": True},
        ):
            assert refused(post(app.url, "check", data, {}, None, {}, 50)), data
            assert refused(post(app.url, "check", uploaded, {}, data, {}, 50)), data
            assert refused(post(app.url, "check", [uploaded, data], {}, None, {}, 50)), data
            assert refused(post(app.url, "train", data, {}, None, {}, False, "")), data


def test_a_sheet_is_listed_chosen_and_read(app, connect, tmp_path):
    book = openpyxl.Workbook()
    for title, count in (("First", 2), ("Second", 5)):
        sheet = book.create_sheet(title)
        for line in [("prompt", "completion"), *[(f"q {n}", f"a {n}") for n in range(count)]]:
            sheet.append(line)
    book.save(tmp_path / "book.xlsx")
    client = connect(app)
    uploaded = handle_file(tmp_path / "book.xlsx")
    [menu] = client.predict(uploaded, api_name="/parts")["menus"]
    assert (menu["chosen"], list(menu["data"])) == ("First", ["Sheet", "First", "Second"])
    for data in (menu["data"]["Second"], [uploaded, "#Second"]):
        assert client.predict(data, api_name="/check")["rows"] == 5
    beside = Path(menu["data"]["Second"].partition("#")[0]).with_name("other.xlsx")
    for data in (f"{beside}#Second", [uploaded, "#/../../etc/passwd"], ["#Second"]):
        with pytest.raises(AppError):
            client.predict(data, api_name="/check")


def refused(answer):
    kind, said = answer
    return kind == "error" and said["error"].startswith(NOT_UPLOADED)


def upload(url, path):
    """What an upload is to the endpoints."""
    with open(path, "rb") as file:
        return file_data(
            httpx.post(f"{url}/gradio_api/upload", files={"files": (path.name, file)}).json()[0]
        )


@pytest.mark.slow
def test_on_a_space_a_run_opens_only_for_its_owner(space, connect):
    client, stranger = connect(space), "a stranger's own secret"
    started = client.predict("demo", {"max_steps": 1}, api_name="/train")
    run, owner = started["run"], started["owner"]
    assert re.fullmatch(r"[0-9a-f]{48}", owner)
    assert client.predict(run, owner, api_name="/status")["run"] == run
    assert [line["run"] for line in client.predict(owner, api_name="/list")] == [run]
    assert client.predict(stranger, api_name="/list") == []
    of_a_run = {
        "status": {},
        "stop": {},
        "resume": {},
        "compare": {"prompts": ["Hi"]},
        "evaluate": {},
        "vote_pairs": {},
        "vote": {"pair": "1", "choice": "left"},
        "vote_results": {},
        "export": {},
        "rename": {"name": "x"},
        "delete": {},
    }
    for endpoint, more in (of_a_run | {"push": {"repo": "a/b", "token": "hf_x"}}).items():
        assert refusal(client, endpoint, run=run, owner=stranger, **more).startswith(
            f"You have no run {run!r}."
        )
        assert "`owner`" in refusal(client, endpoint, run=run, **more)
    for nobody in ("", "short"):
        assert "`owner`" in refusal(client, "list", owner=nobody)
    ended(client, run, owner)
    kept = [
        path
        for name in ("recipe.json", "train.jsonl", "adapter_model.safetensors")
        for path in space.home.rglob(name)
    ]
    assert len(kept) >= 3
    for path in kept:
        assert httpx.get(f"{space.url}/gradio_api/file={path}").status_code == 403, path


@pytest.mark.slow
def test_the_page_has_a_title_and_an_icon_of_its_own(app):
    icon = httpx.get(f"{app.url}/favicon.ico")
    assert icon.headers["content-type"] == "image/svg+xml"
    assert icon.content == (ROOT / "peft_space/web/icon.svg").read_bytes()
    assert httpx.get(f"{app.url}/config").json()["title"] == "PEFT Space"


def test_the_page_sends_no_telemetry_and_keeps_no_history(app):
    with urllib.request.urlopen(f"{app.url}/config") as answer:
        config = json.load(answer)
    assert config["run_history"] is False
    assert not config.get("ssr_mode")
    assert config["analytics_enabled"] is False
