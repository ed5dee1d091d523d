"""Pushes to a fake Hub with the real client, from a worker process and the command line."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from peft_space.data.dataset import load_dataset
from peft_space.demo import MODEL_DIR
from peft_space.errors import UserError
from peft_space.export.model_card import write_card
from peft_space.hub import push as hub_push
from peft_space.recipe import CAUSAL_LM, Recipe
from peft_space.runs import events
from peft_space.runs.plan import write_plan
from peft_space.runs.run import Run
from tests.conftest import READER, WRITER
from tests.fixtures.fake_hub import GITATTRIBUTES
from tests.fixtures.plans import PLAN


@pytest.fixture
def push(ask, run):
    """Runs the operation `push` in a worker. Raises its UserError."""

    def push_run(
        repo: str = "maria/adapter",
        token: str | None = WRITER,
        public: bool = False,
        run: Run = run,
    ) -> str:
        return ask("push", run=str(run.directory), repo=repo, token=token, public=public)["url"]

    return push_run


@pytest.fixture(scope="module")
def run(hub_worker, tokenizer, tmp_path_factory):
    """A finished run with a small random adapter. The worker starts in the meantime."""
    data = load_dataset("demo", 0.1, 0)
    run = Run.create(
        tmp_path_factory.mktemp("runs") / "run",
        Recipe(),
        data.files() | {"data/task.json": CAUSAL_LM.as_json()},
        name="colors",
    )
    write_plan(run, PLAN)
    for step in (1, 2):
        run.append(
            events.Step(
                attempt=1,
                step=step,
                loss=2.0 / step,
                learning_rate=1e-3,
                grad_norm=1.0,
                tokens=10 * step,
                seconds=0.1,
            )
        )
    run.append(events.Finished(step=2, seconds=0.2))
    torch.manual_seed(0)
    config = LoraConfig(
        r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(MODEL_DIR), config)
    model.peft_config["default"].base_model_name_or_path = PLAN.base_name
    model.save_pretrained(run.path("adapter"), save_embedding_layers=False)
    tokenizer.save_pretrained(run.path("adapter"))
    write_card(run, run.path("adapter"), data, PLAN)
    return run


def command_line(hub_environment, *arguments, **more):
    """Run `python -m peft_space` with additional environment variables."""
    command = [sys.executable, "-m", "peft_space", *map(str, arguments)]
    return subprocess.run(
        command, env=hub_environment | more, capture_output=True, text=True, timeout=120
    )


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def front_matter(readme: bytes) -> dict:
    return yaml.safe_load(readme.decode().split("---\n")[1])


# New repositories


def test_a_new_repository_is_private_by_default(the_hub, push):
    assert push("maria/one") == f"{the_hub.url}/maria/one"
    push("maria/two", public=True)
    assert {repo: created.private for repo, created in the_hub.repositories.items()} == {
        "maria/one": True,
        "maria/two": False,
    }


def test_the_adapter_folder_is_pushed_byte_for_byte(the_hub, push, run):
    push()
    repository = the_hub.repositories["maria/adapter"]
    assert repository.files == files_in(run.path("adapter")) | {".gitattributes": GITATTRIBUTES}
    assert len(repository.commits) == 2
    assert not repository.pull_requests


def test_the_command_line_pushes_with_hf_token_and_prints_json(the_hub, hub_environment, run):
    before = files_in(run.directory)
    done = command_line(
        hub_environment, "push", run.directory, "--repo", "maria/adapter", "--json", HF_TOKEN=WRITER
    )
    assert (done.returncode, json.loads(done.stdout)) == (
        0,
        {"url": f"{the_hub.url}/maria/adapter"},
    ), done.stderr
    assert the_hub.repositories["maria/adapter"].private
    assert files_in(run.directory) == before
    assert WRITER not in done.stdout + done.stderr


def test_the_token_is_in_no_file_and_is_not_sent_to_storage(the_hub, push, hub_worker, run):
    url = push()
    kept = [
        *the_hub.repositories["maria/adapter"].files.values(),
        *files_in(run.directory).values(),
        url.encode(),
    ]
    assert not any(WRITER.encode() in content for content in [*kept, hub_worker[1].read_bytes()])
    assert not any(
        WRITER in request.path + str(request.query) + request.body.decode(errors="replace")
        for request in the_hub.requests
    )
    stored = [
        request
        for request in the_hub.requests
        if request.host != the_hub.url.removeprefix("http://")
    ]
    assert [(request.method, request.token) for request in stored] == [("PUT", None)]


def test_the_front_matter_is_valid_and_names_no_local_base_model(the_hub, push):
    push()
    readme = the_hub.repositories["maria/adapter"].files["README.md"]
    [validated] = [
        request.json() for request in the_hub.requests if request.path == "/api/validate-yaml"
    ]
    assert validated == {"content": readme.decode(), "repoType": "model"}
    assert front_matter(readme)["library_name"] == "peft"
    assert "base_model" not in front_matter(readme)


def test_the_front_matter_names_a_base_model_on_the_hub(the_hub, push, run, tmp_path):
    of_hub = Run(shutil.copytree(run.directory, tmp_path / "run"))
    of_hub.path("recipe.json").write_text(Recipe(base_model="ana/base").model_dump_json())
    write_plan(of_hub, PLAN.model_copy(update={"base_name": "ana/base", "base_on_hub": True}))
    push(run=Run(of_hub.directory))
    assert (
        front_matter(the_hub.repositories["maria/adapter"].files["README.md"])["base_model"]
        == "ana/base"
    )


DOWNLOAD = (
    "import sys, huggingface_hub as h; "
    "h.snapshot_download(sys.argv[1], local_dir=sys.argv[2], token=sys.argv[3])"
)


def test_the_pushed_adapter_loads_with_peft_and_gives_the_same_logits(
    the_hub, push, hub_environment, run, tmp_path
):
    push()
    command = [sys.executable, "-c", DOWNLOAD, "maria/adapter", tmp_path / "downloaded", WRITER]
    subprocess.run(command, env=hub_environment, check=True, capture_output=True)

    def logits(adapter: Path | None) -> torch.Tensor:
        model = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
        model = PeftModel.from_pretrained(model, adapter) if adapter else model
        with torch.inference_mode():
            return model.eval()(torch.arange(1, 20)[None]).logits

    assert torch.equal(logits(tmp_path / "downloaded"), logits(run.path("adapter")))
    assert not torch.equal(logits(tmp_path / "downloaded"), logits(None))


# Existing repositories


def test_for_an_existing_repository_a_pull_request_is_opened(the_hub, push):
    theirs = {"README.md": b"by hand", "adapter_config.json": b"{}"}
    repository = the_hub.add_repository("maria/adapter", theirs)
    before = dict(repository.files)
    assert push(public=True) == f"{the_hub.url}/maria/adapter/discussions/1"
    assert repository.files == before
    assert b"colors" in repository.pull_requests[0].files["README.md"]


def test_pushing_the_same_adapter_again_changes_nothing(the_hub, push):
    url = push()
    assert push() == url
    repository = the_hub.repositories["maria/adapter"]
    assert (len(repository.commits), repository.pull_requests) == (2, [])


# Errors


@pytest.mark.parametrize(
    ("repo", "token", "fault", "code", "value"),
    [
        ("maria/new", "hf_wrong", None, "hub.unauthorized", "token"),
        ("maria/new", "hf_••••••••", None, "hub.invalid_token", "token"),
        ("maria/new", READER, None, "hub.forbidden", "'maria/new'"),
        ("ana/new", WRITER, None, "hub.forbidden", "'ana/new'"),
        ("maria/new", None, None, "hub.no_token", "token"),
        ("maria/new", WRITER, ("whoami", 429), "hub.rate_limited", "minutes"),
        ("maria/new", WRITER, ("whoami", 500), "hub.server_error", "(500)"),
        ("maria/new", WRITER, ("create", 400), "hub.refused", "(400: made to fail)"),
        ("maria/new", WRITER, ("create", None), "hub.unreachable", "network"),
        ("maria/new", WRITER, ("storage", 403), "hub.forbidden", "'maria/new'"),
        ("maria/new", WRITER, ("commit", 503), "hub.server_error", "(503)"),
        ("maria/new", WRITER, ("commit", None), "hub.unreachable", "network"),
    ],
)
def test_an_error_of_the_hub_has_its_code_and_leaves_the_run_unchanged(
    the_hub, push, run, repo, token, fault, code, value
):
    if fault:
        the_hub.drop_next(fault[0]) if fault[1] is None else the_hub.fail_next(*fault)
    before = files_in(run.directory)
    with pytest.raises(UserError) as error:
        push(repo, token)
    assert error.value.code == code
    assert value in str(error.value)
    assert "\n" not in str(error.value)
    assert files_in(run.directory) == before
    made = the_hub.repositories.get(repo)
    assert made is None or (len(made.commits), made.pull_requests) == (1, [])


def test_a_failed_push_can_be_repeated(the_hub, push, run):
    the_hub.fail_next("commit", 500)
    with pytest.raises(UserError) as error:
        push()
    assert error.value.code == "hub.server_error"
    assert push() == f"{the_hub.url}/maria/adapter/discussions/1"
    [pull_request] = the_hub.repositories["maria/adapter"].pull_requests
    assert pull_request.files.items() >= files_in(run.path("adapter")).items()


def test_the_command_line_reports_a_wrong_token_on_one_line(the_hub, hub_environment, run):
    done = command_line(
        hub_environment, "push", run.directory, "--repo", "maria/new", "--json", HF_TOKEN="hf_wrong"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "[hub.unauthorized]" in done.stderr
    assert "Traceback" not in done.stderr
    assert "[hub." in done.stderr.splitlines()[-1]
    assert not the_hub.repositories


def test_the_command_line_reports_an_unreachable_hub_on_one_line(hub_environment, run):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
    before = files_in(run.directory)
    done = command_line(
        hub_environment,
        "push",
        run.directory,
        "--repo",
        "maria/new",
        HF_TOKEN=WRITER,
        HF_ENDPOINT=nobody,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert files_in(run.directory) == before
    assert "[hub.unreachable]" in done.stderr
    assert "Traceback" not in done.stderr
    assert "[hub." in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "repo",
    [
        "",
        "adapter",
        "a/b/c",
        "../b",
        "a/..",
        "a/b--c",
        "a/b..c",
        "a/b.git",
        "a/-b",
        "a/größe",
        "a/b c",
        "a/" + "b" * 97,
        "https://a/b",
    ],
)
def test_an_invalid_name_is_rejected_before_anything_is_sent(run, repo):
    with pytest.raises(UserError) as error:
        hub_push.push(run, repo, WRITER)
    assert error.value.code == "hub.invalid_name"
    assert repr(repo) in str(error.value)


def test_a_space_never_uses_its_own_token_for_a_visitor(run, monkeypatch):
    monkeypatch.setenv("SYSTEM", "spaces")
    monkeypatch.setenv("HF_TOKEN", WRITER)
    with pytest.raises(UserError) as error:
        hub_push.push(run, "maria/new", None)
    assert error.value.code == "hub.no_token"


def test_an_edited_card_replaces_the_generated_one_and_must_be_valid(the_hub, ask, run):
    card = ask("model_card", run=str(run.directory))["card"]
    arguments = {"run": str(run.directory), "repo": "maria/adapter", "token": WRITER}
    ask("push", **arguments, card=card.replace("# colors", "# Colors of things"))
    pushed = the_hub.repositories["maria/adapter"].files
    assert b"# Colors of things" in pushed["README.md"]
    assert b"![Training loss and held-out loss by step]" in pushed["README.md"]
    assert pushed["loss.svg"].startswith(b"<svg ")
    with pytest.raises(UserError, match="front matter"):
        ask("push", **arguments, card="---\na: [\n---\n# x")


def test_an_edited_card_must_still_name_its_base_model(the_hub, ask, run, tmp_path):
    of_hub = Run(shutil.copytree(run.directory, tmp_path / "run"))
    write_plan(of_hub, PLAN.model_copy(update={"base_name": "ana/base", "base_on_hub": True}))
    with pytest.raises(UserError, match="base_model: ana/base"):
        ask("push", run=str(of_hub.directory), repo="maria/adapter", token=WRITER, card="# Mine")
    assert "maria/adapter" not in the_hub.repositories


@pytest.mark.slow
def test_a_merged_model_is_pushed_with_its_proof_and_loads(the_hub, ask, run, tmp_path):
    export = {"target": "merged", "dtype": "float32"}
    ask("push", run=str(run.directory), repo="maria/merged", token=WRITER, options=export)
    pushed = the_hub.repositories["maria/merged"]
    assert (pushed.private, pushed.commits[-1].title) == (True, "Add the merged model in float32")
    assert json.loads(pushed.files["proof.json"])["passed"]
    assert b"## Verification" in pushed.files["README.md"]
    for name, content in pushed.files.items():
        (tmp_path / name).write_bytes(content)
    assert (
        AutoModelForCausalLM.from_pretrained(tmp_path).num_parameters()
        == AutoModelForCausalLM.from_pretrained(MODEL_DIR).num_parameters()
    )


def test_an_invalid_export_is_reported_before_a_repository_is_created(the_hub, ask, run):
    with pytest.raises(UserError, match="options dtype") as error:
        ask(
            "push",
            run=str(run.directory),
            repo="maria/merged",
            token=WRITER,
            options={"target": "merged", "dtype": "int4"},
        )
    assert error.value.code == "operations.invalid_argument"
    assert "maria/merged" not in the_hub.repositories


@pytest.mark.slow
def test_gguf_files_are_pushed_with_their_proof(the_hub, ask, run):
    ask(
        "push",
        run=str(run.directory),
        repo="maria/gguf",
        token=WRITER,
        options={"target": "gguf", "gguf_type": "f32"},
    )
    pushed = the_hub.repositories["maria/gguf"].files
    assert json.loads(pushed["proof.json"])["passed"]
    assert [name for name in pushed if name.endswith(".gguf")]
