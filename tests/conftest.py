"""Shared by all tests: no network, a temporary home folder, and one short real training."""

import itertools
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
"""Tokens that the fake Hub knows."""
SHORT = Recipe(max_steps=12, save_steps=4, eval_steps=6)
"""A real training of the built-in model on the sample data, in a few seconds."""


def pytest_collection_modifyitems(items):
    """Mark as slow the cases that `make test` leaves to `make verify`."""
    for _, cases in itertools.groupby(items, lambda item: item.nodeid.partition("[")[0]):
        _mark_all_but_a_sample(list(cases))


def _mark_all_but_a_sample(cases):
    sample = cases[0].get_closest_marker("sample")
    if sample is None or sample.args[0] >= len(cases):
        return
    count = sample.args[0]
    chosen = {round(at * (len(cases) - 1) / max(count - 1, 1)) for at in range(count)}
    for number, case in enumerate(cases):
        if number not in chosen:
            case.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    """Store the runs of a test in its folder."""
    monkeypatch.setenv("PEFT_SPACE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def tokenizer():
    """The built-in model's tokenizer."""
    from peft_space.models.resolve import find_base, load_tokenizer

    return load_tokenizer(find_base("demo"))


@pytest.fixture(scope="session")
def short_run(tmp_path_factory) -> Run:
    """A run trained for a few steps, with its adapter. Do not change it: use `own_run`."""
    from peft_space.export.readiness import describe_adapter
    from peft_space.training.prepare import make_run
    from peft_space.training.train import TrainOptions, train

    run = make_run(tmp_path_factory.mktemp("short") / "run", "demo", SHORT)
    with run.lock():
        train(run, TrainOptions(on_adapter_saved=describe_adapter))
    return run


@pytest.fixture
def own_run(short_run, tmp_path) -> Run:
    """A copy of the short run that a test may change."""
    return Run(shutil.copytree(short_run.directory, tmp_path / "own-run"))


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """A running app, as on your own machine."""
    running = App(tmp_path_factory.mktemp("home"))
    running.start()
    yield running
    running.kill()


@pytest.fixture(scope="session")
def hub_server():
    """A fake Hub with two users."""
    tokens = {WRITER: User("maria"), READER: User("maria", may_write=False), OTHERS: User("otto")}
    with HubServer(tokens | {NARROW: User("maria", may_write=False, may_read=False)}) as server:
        yield server


@pytest.fixture
def the_hub(hub_server):
    """The fake Hub, empty."""
    hub_server.forget()
    return hub_server


@pytest.fixture(scope="session")
def hub_environment(hub_server, tmp_path_factory):
    """Environment of a process that uses the fake Hub without being signed in.

    The Hub's address is read at import, so this process cannot use it.
    """
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
    """A worker process of the page, and the file with its standard error."""
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
    """Call an operation in the worker; raises UserError as the worker reports it."""
    process, _ = hub_worker

    def ask_for(operation: str, **arguments):
        process.stdin.write(json.dumps({"verb": operation, "arguments": arguments}) + "\n")
        process.stdin.flush()
        answer = next(
            message for message in map(json.loads, process.stdout) if "report" not in message
        )
        if "result" in answer:
            return answer["result"]
        assert answer["users"], f"reported as a bug: {answer['error']}"
        raise UserError(answer["code"], answer["error"])

    return ask_for


@pytest.fixture
def run_command(capfd):
    """Run one command in this process: (exit status, standard output, standard error)."""

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return status, out, err

    return run


@pytest.fixture
def write(tmp_path):
    """Write a file to the test's folder: text as it is, rows as JSON or JSON Lines by the name."""

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
