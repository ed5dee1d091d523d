"""What the tests share: an environment without network and without the user's home, and one short real training."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from peft_space.settings import prepare_libraries

prepare_libraries()

import json  # noqa: E402
import shutil  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

from peft_space.__main__ import main  # noqa: E402
from peft_space.errors import UserError  # noqa: E402
from peft_space.recipe import Recipe  # noqa: E402
from peft_space.runs.run import Run  # noqa: E402
from tests.fixtures.app_process import App  # noqa: E402
from tests.fixtures.fake_hub import HubServer, User  # noqa: E402

WRITER, READER = "hf_maria_may_write", "hf_maria_may_only_read"
NARROW, OTHERS = "hf_maria_of_another_repository", "hf_otto_may_write"
"""Tokens that the Hub of the tests knows."""
SHORT = Recipe(max_steps=12, save_steps=4, eval_steps=6)
"""A real training of the built-in model on the sample data in a few seconds."""


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    """Runs of a test are kept in its own folder."""
    monkeypatch.setenv("PEFT_SPACE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def tokenizer():
    """The built-in model's tokenizer."""
    from peft_space.models.resolve import find_base, load_tokenizer

    return load_tokenizer(find_base("demo"))


@pytest.fixture(scope="session")
def short_run(tmp_path_factory) -> Run:
    """A run trained for a few steps, with its adapter. Not to be changed: copy it with `own_run`."""
    from peft_space.training.prepare import make_run
    from peft_space.training.train import train

    run = make_run(tmp_path_factory.mktemp("short") / "run", "demo", SHORT)
    with run.lock():
        train(run)
    return run


@pytest.fixture
def own_run(short_run, tmp_path) -> Run:
    """A copy of the short run that a test may change."""
    return Run(shutil.copytree(short_run.directory, tmp_path / "own-run"))


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """A running app, as on one's own machine."""
    running = App(tmp_path_factory.mktemp("home"))
    running.start()
    yield running
    running.kill()


@pytest.fixture(scope="session")
def hub_server():
    """A Hub of our own, with two users."""
    tokens = {WRITER: User("maria"), READER: User("maria", may_write=False), OTHERS: User("otto")}
    with HubServer(tokens | {NARROW: User("maria", may_write=False, may_read=False)}) as server:
        yield server


@pytest.fixture
def the_hub(hub_server):
    """The Hub, empty."""
    hub_server.forget()
    return hub_server


@pytest.fixture(scope="session")
def hub_environment(hub_server, tmp_path_factory):
    """Of a process that sees our Hub and is signed in nowhere. (The address of the Hub is read at import, so this process cannot.)"""
    inherited = {
        name: value for name, value in os.environ.items() if name not in {"HF_TOKEN", "SYSTEM"}
    }
    own = {
        "HF_ENDPOINT": hub_server.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path_factory.mktemp("hf")),
    }
    own |= {"PEFT_SPACE_HOME": str(tmp_path_factory.mktemp("home")), "PEFT_SPACE_MAX_FILE_MB": "1"}
    return inherited | own | {"NO_PROXY": "127.0.0.1,localhost"}


@pytest.fixture(scope="session")
def hub_worker(hub_environment, tmp_path_factory):
    """A process as the page asks for its verbs, and the file with what it prints."""
    printed = tmp_path_factory.mktemp("worker") / "stderr"
    with open(printed, "wb") as stderr:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": stderr}
        process = subprocess.Popen(
            [sys.executable, "-m", "peft_space.operations.worker"],
            env=hub_environment,
            text=True,
            **pipes,
        )
    with process:
        yield process, printed
        process.stdin.close()


@pytest.fixture
def ask(hub_worker):
    """Asks the worker for a verb. Raises UserError with the words for the user."""
    process, _ = hub_worker

    def ask_for(verb: str, **arguments):
        process.stdin.write(json.dumps({"verb": verb, "arguments": arguments}) + "\n")
        process.stdin.flush()
        answer = next(
            message for message in map(json.loads, process.stdout) if "report" not in message
        )
        if "result" in answer:
            return answer["result"]
        assert answer["users"], f"told as a fault of the app: {answer['error']}"
        raise UserError(answer["code"], answer["error"])

    return ask_for


@pytest.fixture
def run_command(capfd):
    """Runs one command in this process: (exit status, standard output, standard error)."""

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return status, out, err

    return run


@pytest.fixture
def write(tmp_path):
    """Writes a file into the test's folder: text as it is, rows as JSON, or as JSON Lines where the name says so."""

    def write_file(name: str, content: str | bytes | list) -> Path:
        path = tmp_path / name
        if isinstance(content, list):
            lines = name.endswith(".jsonl")
            content = (
                "".join(json.dumps(row) + "\n" for row in content) if lines else json.dumps(content)
            )
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file
