"""Tokens that come in by any door are found nowhere afterwards: in no file, log, traceback, message, card, child's environment or title."""

import base64
import itertools
import json
import logging
import os
import secrets
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

import psutil
import pytest
from gradio_client import Client, handle_file
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from peft_space.data.dataset import load_dataset
from peft_space.demo import MODEL_DIR
from peft_space.errors import UserError, user_message
from peft_space.export.model_card import write_card
from peft_space.recipe import Recipe
from peft_space.redaction import has_secret, redact, redact_logs
from peft_space.runs import events
from peft_space.runs.plan import write_plan
from peft_space.runs.run import Run
from tests.fixtures.app_process import App
from tests.fixtures.fake_hub import User
from tests.fixtures.plans import PLAN

ROWS = [{"prompt": "a", "completion": "b"}] * 4
WRITES = ("whoami", "create", "preupload", "commit", "lfs", "storage")
READS = ("resolve", "/api/models", "tree", "revision")
STATUSES = (401, 403, 404, 409, 429, 500, 503)


def new_token():
    return f"hf_{secrets.token_hex(17)}"


def forms(token):
    """How a token can be written."""
    body = token.removeprefix("hf_").encode()
    yield from (
        body,
        body.hex().encode(),
        body[::-1],
        body.decode().encode("utf-16-le"),
        "".join(f"%{byte:02x}" for byte in body).encode(),
    )
    for shift in range(3):  # wherever in a text it stands
        yield base64.b64encode(b"\0" * shift + body)[4:-4]
    yield urllib.parse.quote(token, safe="").encode()[4:]


def test_the_scan_finds_what_is_there(tmp_path):
    token = new_token()
    for number, written in enumerate(
        (
            token,
            f"x{token}y",
            base64.b64encode(f"ab{token}".encode()).decode(),
            token[::-1],
            token.encode().hex(),
        )
    ):
        (tmp_path / str(number)).write_text(written)
        assert found_in_files([tmp_path / str(number)], [token])


def found_in_files(roots, tokens):
    wanted = [form for token in tokens for form in forms(token)]
    files = [
        path
        for root in roots
        for path in ([root] if root.is_file() else root.rglob("*"))
        if path.is_file()
    ]
    return [
        path
        for path in files
        if any(
            form in content or form in str(path).encode()
            for content in [path.read_bytes()]
            for form in wanted
        )
    ]


def found_in_processes(tokens, but=()):
    """Children of this process, and theirs, whose environment or title has one of the tokens."""
    wanted = [form for token in tokens for form in forms(token)]
    found = []
    for process in psutil.Process().children(recursive=True):
        for name in ("environ", "cmdline"):
            try:
                content = Path(f"/proc/{process.pid}/{name}").read_bytes()
            except OSError:
                continue
            if process.pid not in but and any(form in content for form in wanted):
                found.append((process.pid, name))
    return found


class Doors:
    """A worker of the page, with tokens sent through every door of it. What it says is kept."""

    def __init__(self, environment, folder):
        self.folder, self.said, self.tokens = folder, [], []
        own = {
            "HF_HOME": str(folder / "hf"),
            "PEFT_SPACE_HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
        }
        (folder / "tmp").mkdir()
        pipes = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": open(folder / "stderr", "wb"),  # noqa: SIM115
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "peft_space.operations.worker"],
            env=environment | own,
            text=True,
            **pipes,
        )

    def token(self):
        self.tokens.append(new_token())
        return self.tokens[-1]

    def ask(self, verb, **arguments):
        self.process.stdin.write(json.dumps({"verb": verb, "arguments": arguments}) + "\n")
        self.process.stdin.flush()
        while True:
            line = self.process.stdout.readline()
            assert line, (self.folder / "stderr").read_text()[-2000:]
            self.said.append(line)
            message = json.loads(line)
            if "report" not in message:
                return message

    def nothing_is_left(self):
        (self.folder / "said").write_text("".join(self.said))
        assert found_in_files([self.folder], self.tokens) == []
        assert found_in_processes(self.tokens) == []


@pytest.fixture
def run(tmp_path, tokenizer):
    """A run as training leaves it, untrained."""
    data = load_dataset("demo", 0.1, 0)
    made = Run.create(tmp_path / "trained", Recipe(), data.files(), name="colours")
    write_plan(made, PLAN)
    made.append(events.Finished(step=2, seconds=0.2))
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(MODEL_DIR),
        LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )
    model.peft_config["default"].base_model_name_or_path = PLAN.base_name
    model.save_pretrained(made.path("adapter"), save_embedding_layers=False)
    tokenizer.save_pretrained(made.path("adapter"))
    write_card(made, made.path("adapter"), data, PLAN)
    return made


@pytest.fixture
def doors(hub_environment, tmp_path):
    (tmp_path / "own").mkdir()
    opened = Doors(hub_environment, tmp_path / "own")
    yield opened
    opened.process.stdin.close()
    opened.process.wait()


def flows(doors, the_hub, run, write, most):
    """Forced errors at every step of a push, and tokens in fields where they do not belong."""
    rows = str(write("rows.json", ROWS))
    misplaced = [
        lambda token: ("check", {"data": rows, "recipe": {"base_model": token}}),
        lambda token: ("check", {"data": rows, "recipe": {"base_model": f"maria/{token}"}}),
        lambda token: (
            "check",
            {"data": rows, "recipe": {"base_model": f"https://user:{token}@huggingface.co/a/b"}},
        ),
        lambda token: (
            "check",
            {"data": rows, "recipe": {"base_model": "maria/none", "revision": token}},
        ),
        lambda token: ("check", {"data": rows, "recipe": {token: 1}}),
        lambda token: ("check", {"data": rows, "recipe": {"learning_rate": token}}),
        lambda token: (
            "check",
            {"data": rows, "recipe": {"target_modules": [token], "base_model": "demo"}},
        ),
        lambda token: ("check", {"data": f"hf://datasets/maria/{token}"}),
        lambda token: ("check", {"data": f"hf://datasets/maria/rows?token={token}"}),
        lambda token: ("check", {"data": f"/nowhere/{token}.json"}),
        lambda token: (
            "import_adapter",
            {"directory": str(doors.folder / "run"), "adapter": token, "data": rows},
        ),
        lambda token: (
            "import_adapter",
            {"directory": str(doors.folder / "run"), "adapter": f"maria/{token}", "data": rows},
        ),
        lambda token: ("push", {"run": run, "repo": token, "token": None}),
        lambda token: ("push", {"run": run, "repo": f"maria/{token}", "token": doors.token()}),
        lambda token: ("push", {"run": run, "repo": "maria/a", "token": f"{token}\n"}),
        lambda token: ("push", {"run": run, "repo": "maria/a", "token": f"Bearer {token}"}),
        lambda token: ("push", {"run": run, "repo": "maria/a", "token": f"{token}é"}),
        lambda token: (
            "push",
            {
                "run": run,
                "repo": "maria/a",
                "token": token,
                "card": f"---\nbase_model: {token}\n---\n",
            },
        ),
        lambda token: ("push", {"run": f"/nowhere/{token}", "repo": "maria/a", "token": token}),
        lambda token: ("push", {"run": run, "repo": "maria/a", "token": token, token: 1}),
        lambda token: ("no verb", {"token": token}),
    ]
    pushes = itertools.product(WRITES, STATUSES, ("known", "unknown", "reads"))
    for number in range(most):
        token = doors.token()
        if number % 3 == 2:
            verb, arguments = misplaced[number // 3 % len(misplaced)](token)
        else:
            place, status, kind = next(pushes, ("whoami", 500, "known"))
            if kind != "unknown":
                the_hub.tokens[token] = User("maria", may_write=kind == "known")
            the_hub.fail_next(place, status, times=9, message=f"no {token} here")
            verb, arguments = "push", {"run": run, "repo": "maria/a", "token": token}
        answer = doors.ask(verb, **arguments)
        assert "error" in answer or verb == "push", (verb, answer)
        the_hub._faults.clear()


def test_tokens_of_thirty_flows_are_stored_nowhere(doors, the_hub, run, write):
    flows(doors, the_hub, str(run.directory), write, 30)
    assert len(doors.said) >= 30
    doors.nothing_is_left()
    assert found_in_files([run.directory], doors.tokens) == []


@pytest.mark.slow
def test_tokens_of_three_hundred_flows_are_stored_nowhere(doors, the_hub, run, write):
    flows(doors, the_hub, str(run.directory), write, 300)
    assert len(doors.tokens) >= 300
    doors.nothing_is_left()
    assert found_in_files([run.directory], doors.tokens) == []


@pytest.mark.slow
def test_the_environments_token_reaches_no_output_and_on_a_space_no_child(
    hub_environment, the_hub, run, tmp_path, write
):
    token = new_token()
    the_hub.tokens[token] = User("maria")
    own = {
        "HF_TOKEN": token,
        "HF_HOME": str(tmp_path / "hf"),
        "PEFT_SPACE_HOME": str(tmp_path / "home"),
    }
    printed = []
    for status, verb in ((401, "push"), (500, "push"), (None, "push"), (404, "check")):
        if status:
            the_hub.fail_next("/api", status, times=9)
        more = (
            [run.directory, "--repo", "maria/a"]
            if verb == "push"
            else [write("rows.json", ROWS), "--base-model", f"maria/{token}"]
        )
        done = subprocess.run(
            [sys.executable, "-m", "peft_space", verb, *map(str, more)],
            env=hub_environment | own,
            capture_output=True,
        )
        printed.append(done.stdout + done.stderr)
        the_hub._faults.clear()
    (tmp_path / "printed").write_bytes(b"".join(printed))
    assert found_in_files([tmp_path], [token]) == []
    worker = "import os, peft_space.settings as s; s.prepare_libraries(); import subprocess; print(subprocess.run(['env'], capture_output=True).stdout)"
    on_a_space = subprocess.run(
        [sys.executable, "-c", worker],
        env=hub_environment | own | {"SYSTEM": "spaces"},
        capture_output=True,
    )
    assert b"SYSTEM=spaces" in on_a_space.stdout
    assert token.encode() not in on_a_space.stdout


REPO = {"repo": "maria/a"}
FOR_THE_HUB = {
    "backup": {"run": True} | REPO,
    "restore": REPO,
    "job_hardware": {"run": True},
    "submit_job": {"run": True, "flavor": "cpu-basic", "timeout": "1h"},
    "follow_job": {"run": True},
    "cancel_job": {"run": True},
}
"""Endpoints that take a token besides /push, and what else they are given."""
A_JOB = {
    "job": "1",
    "owner": "maria",
    "repo": "maria/a",
    "address": "",
    "flavor": "cpu-basic",
    "timeout": 60.0,
    "num_events": 1,
}


def end_following(run, the_hub):
    """Let the process that follows a run's job meet the Hub's refusal, look whether it shows a token, and end it."""
    deadline = time.time() + 60
    while not (
        following := [
            one
            for one in psutil.process_iter(["cmdline"])
            if str(run) in (one.info["cmdline"] or ())
        ]
    ):
        assert time.time() < deadline
        time.sleep(0.1)
    met = len(the_hub.requests)
    while len(the_hub.requests) < met + 1:
        assert time.time() < deadline
        time.sleep(0.1)
    assert found_in_processes(list(the_hub.tokens)) == []
    time.sleep(1)  # it writes what it met
    for one in following:
        one.kill()


@pytest.mark.slow
def test_tokens_sent_to_the_running_app_are_found_nowhere(
    hub_environment, the_hub, tmp_path, write
):
    """The API's answers, its server-sent messages, the log, Gradio's cache, the run, and all processes."""
    tokens, said = [], []
    app = App(
        tmp_path / "home",
        **{name: value for name, value in hub_environment.items() if name.startswith("HF_")},
    )
    app.log = tmp_path / "log"
    app.start()
    try:
        client = Client(app.url, verbose=False)
        data = handle_file(str(write("rows.json", ROWS)))
        started = client.predict(data, {"max_steps": 1, "quantization": "none"}, api_name="/train")
        while (
            client.predict(started["run"], started["owner"], 0, api_name="/status")["status"]
            != "finished"
        ):
            time.sleep(1)
        for status, place in itertools.product((401, 403, 500), ("whoami", "create", "commit")):
            for repo in ("maria/a", "{token}", "maria/{token}"):
                token = new_token()
                tokens.append(token)
                the_hub.tokens[token] = User("maria")
                the_hub.fail_next(place, status, times=9, message=token)
                try:
                    given = {"run": started["run"], "owner": started["owner"], "token": token}
                    answer = client.predict(
                        **given, repo=repo.format(token=token), api_name="/push"
                    )
                    said.append(str(answer))
                except Exception as error:  # noqa: BLE001 - what the client shows is what is looked at
                    said.append(f"{error!r}")
                the_hub._faults.clear()
        mine = {"run": started["run"], "owner": started["owner"]}
        [run] = app.home.glob(f"runs/*/{mine['run']}")
        for endpoint, more in FOR_THE_HUB.items():
            for status in (401, 403, 404, 500):
                if endpoint == "follow_job":
                    Run(run).append(events.SubmittedToJob(**A_JOB))
                token = new_token()
                tokens.append(token)
                the_hub.tokens[token] = User("maria")
                the_hub.fail_next("/api", status, times=30, message=f"no {token} here")
                given = mine if "run" in more else {"owner": mine["owner"]}
                try:
                    said.append(
                        str(
                            client.predict(
                                **given,
                                **{name: value for name, value in more.items() if name != "run"},
                                token=token,
                                api_name=f"/{endpoint}",
                            )
                        )
                    )
                except Exception as error:  # noqa: BLE001 - what the client shows is what is looked at
                    said.append(f"{error!r}")
                if endpoint == "follow_job":
                    end_following(run, the_hub)
                the_hub._faults.clear()
        assert found_in_processes(tokens) == []
    finally:
        app.kill()
    (tmp_path / "said").write_text("\n".join(said))
    assert len(said) == 27 + 4 * len(FOR_THE_HUB)
    assert "could not be looked at" in run.joinpath("worker.log").read_text(), (
        "the process that follows a job told of none of the faults"
    )
    assert found_in_files([tmp_path], tokens) == []


def test_messages_logs_and_tracebacks_are_redacted(capsys, caplog):
    token = new_token()
    redact_logs()
    error = UserError("todo", f"There is no model {token}. Check its name.")
    assert user_message(error) == "There is no model hf_…. Check its name. [todo]"
    assert token not in user_message(ValueError(token))
    try:
        raise ValueError(f"Authorization: Bearer {token}")
    except ValueError:
        logging.getLogger("anybody").exception("at %s", f"https://x/?token={token}")
    assert "Bearer hf_…" in caplog.text
    assert token not in caplog.text
    code = "from peft_space.settings import prepare_libraries as p; p(); raise ValueError(__import__('sys').argv[1])"
    crashed = subprocess.run([sys.executable, "-c", code, token], capture_output=True, text=True)
    assert "hf_…" in crashed.stderr
    assert token not in crashed.stderr


def test_no_part_of_a_sign_in_token_remains():
    parts = [base64.urlsafe_b64encode(secrets.token_bytes(30)).decode() for _ in range(3)]
    for token in ("hf_oauth_" + ".".join(parts), "hf_jwt_" + ".".join(parts)):
        told = redact(f"the Hub refuses it (400: no {token} here), {token}.")
        assert not [part for part in parts if part[:8] in told or part[-8:] in told], told
        assert told.startswith("the Hub refuses it (400: no hf_")
        assert " here)" in told
        assert has_secret(f"maria/{token}")


def test_text_that_is_not_a_token_is_unchanged():
    for text in (
        "hf-internal-testing/tiny",
        "maria/hf_oauth_demo",
        "https://hf.co/a",
        "a hf_ b",
        "maria/hf_model",
        "sk-learn",
    ):
        assert redact(text) == text
        assert not has_secret(text)
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
