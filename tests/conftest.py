"""What the tests share: an environment without network and without the user's home, and one short real training."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from peft_space.settings import prepare_libraries

prepare_libraries()

import json  # noqa: E402
import shutil  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

from peft_space.recipe import Recipe  # noqa: E402
from peft_space.run import Run  # noqa: E402
from tests.app_process import App  # noqa: E402

SHORT = Recipe(max_steps=12, save_steps=4, eval_steps=6)
"""A real training of the built-in model on the sample data in a few seconds."""


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    """Runs of a test are kept in its own folder."""
    monkeypatch.setenv("PEFT_SPACE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def tokenizer():
    """The built-in model's tokenizer."""
    from peft_space.models.base import find_base, load_tokenizer

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


@pytest.fixture
def write(tmp_path):
    """Writes a file into the test's folder: text as it is, rows as JSON, or as JSON Lines where the name says so."""

    def write_file(name: str, content: str | bytes | list) -> Path:
        path = tmp_path / name
        if isinstance(content, list):
            lines = name.endswith(".jsonl")
            content = "".join(json.dumps(row) + "\n" for row in content) if lines else json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file
