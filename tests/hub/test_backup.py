"""Backs runs up to a fake Hub with the real client, and restores them elsewhere."""

import hashlib
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from peft_space.errors import UserError
from peft_space.runs import events
from peft_space.runs.archive import MANIFEST
from peft_space.runs.run import FORMAT, Run
from peft_space.training.prepare import make_run
from peft_space.training.train import train
from tests.conftest import NARROW, OTHERS, READER, SHORT, WRITER

REPO, NAME = "datasets/maria/tickets", "maria/tickets"
NOT_SAVED = (
    "lock",
    "worker.log",
    "request",
    "checkpoints/runs/events.out",
    ".adapter.old/x",
    "hf_token",
)


@pytest.fixture
def run(own_run) -> Run:
    """A paused run, with files in it that a backup must leave out."""
    for name in NOT_SAVED:
        own_run.path(name).parent.mkdir(exist_ok=True)
        own_run.path(name).write_text("x")
    own_run.append(events.Paused(step=12))
    return own_run


@pytest.fixture
def save(ask, run):
    def save_run(repo: str = NAME, token: str | None = WRITER) -> str:
        return ask("backup", run=str(run.directory), repo=repo, token=token)["url"]

    return save_run


@pytest.fixture
def restore(ask, tmp_path):
    def restore_run(repo: str = NAME, token: str | None = WRITER) -> Run:
        return Run(
            ask("restore", directory=str(tmp_path / "elsewhere" / "run"), repo=repo, token=token)[
                "run"
            ]
        )

    return restore_run


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
def test_a_backup_is_private_and_has_what_a_resume_needs(the_hub, save, run):
    assert save() == f"{the_hub.url}/{REPO}"
    repository = the_hub.repositories[REPO]
    assert (repository.private, len(repository.commits)) == (True, 2)
    stored = {
        name.removeprefix("run/"): content
        for name, content in repository.files.items()
        if name not in {".gitattributes", "README.md", MANIFEST}
    }
    state = json.loads(run.path("checkpoints/checkpoint-12/trainer_state.json").read_text())
    evaluations = [entry for entry in state["log_history"] if "eval_loss" in entry]
    best = min(evaluations, key=lambda entry: entry["eval_loss"])["step"]
    folders = {name.split("/")[1] for name in stored if name.startswith("checkpoints/")}
    assert folders == {"checkpoint-12", f"checkpoint-{best}"}
    assert {
        "recipe.json",
        "run.json",
        "plan.json",
        "events.jsonl",
        "data/rows.arrow",
        "adapter/adapter_model.safetensors",
    } <= set(stored)
    assert not set(stored) & set(NOT_SAVED)
    assert all(content == run.path(name).read_bytes() for name, content in stored.items())
    assert not any(WRITER.encode() in content for content in repository.files.values())


@pytest.mark.slow
def test_a_run_is_restored_byte_for_byte(the_hub, save, restore, run):
    save()
    restored = restore()
    saved = the_hub.repositories[REPO].files
    assert files_in(restored.directory) == {
        name: saved[f"run/{name}"] for name in json.loads(saved[MANIFEST])["files"]
    }
    assert (restored.status(), restored.name, restored.recipe) == ("paused", run.name, run.recipe)
    assert {path.name for path in restored.directory.parent.iterdir()} == {"run"}


def test_a_second_backup_is_one_commit_and_removes_old_checkpoints(the_hub, save, run):
    save()
    shutil.rmtree(run.path("checkpoints", "checkpoint-12"))
    save()
    repository = the_hub.repositories[REPO]
    assert len(repository.commits) == 3
    assert not [
        name for name in repository.files if name.startswith("run/checkpoints/checkpoint-12/")
    ]


def test_a_damaged_checkpoint_is_not_saved(the_hub, save, run):
    run.path("checkpoints", "checkpoint-12", "optimizer.pt").write_bytes(b"torn")
    save()
    assert not [
        name
        for name in the_hub.repositories[REPO].files
        if name.startswith("run/checkpoints/checkpoint-12/")
    ]


def test_a_finished_run_is_saved_without_checkpoints(the_hub, save, run):
    run.append(events.Finished(step=12, seconds=1.0))
    save()
    assert not [
        name for name in the_hub.repositories[REPO].files if name.startswith("run/checkpoints/")
    ]


def test_a_run_is_not_saved_while_it_is_trained(the_hub, save, run):
    with run.lock(), pytest.raises(UserError) as error:
        save()
    assert error.value.code == "runs.locked"
    assert not the_hub.repositories


@pytest.mark.parametrize(
    ("files", "private", "code"),
    [
        ({"data.csv": b"theirs"}, True, "hub.repository_in_use"),
        ({MANIFEST: b"{}"}, False, "hub.repository_public"),
    ],
)
def test_a_public_dataset_or_one_with_other_content_is_left_alone(
    the_hub, save, files, private, code
):
    repository = the_hub.add_repository(REPO, files, private)
    with pytest.raises(UserError) as error:
        save()
    assert error.value.code == code
    assert len(repository.commits) == 2


@pytest.mark.parametrize(
    ("token", "fault", "code"),
    [
        ("hf_wrong", None, "hub.unauthorized"),
        (READER, None, "hub.forbidden"),
        (None, None, "hub.no_token"),
        (WRITER, ("commit", 500), "hub.server_error"),
        (WRITER, ("storage", 403), "hub.forbidden"),
    ],
)
def test_a_failed_backup_changes_neither_the_run_nor_the_repository(
    the_hub, save, run, token, fault, code
):
    if fault:
        the_hub.fail_next(*fault, times=10)
    before = files_in(run.directory)
    with pytest.raises(UserError) as error:
        save(token=token)
    assert error.value.code == code
    assert files_in(run.directory) == before
    assert all(len(made.commits) == 1 for made in the_hub.repositories.values())


def changed(files: dict[str, bytes], name: str, content: bytes | None) -> dict[str, bytes]:
    """The files, with one more in the manifest. Without content, the file itself is missing."""
    manifest = json.loads(files[MANIFEST])
    manifest["files"][name] = hashlib.sha256(content or b"").hexdigest()
    added = {} if content is None else {f"run/{name}": content}
    return files | {MANIFEST: json.dumps(manifest).encode()} | added


def without(files: dict[str, bytes], name: str) -> dict[str, bytes]:
    return {other: content for other, content in files.items() if other != name}


DAMAGED, FOREIGN = "runs.archive_damaged", "runs.archive_foreign_file"
CHANGES = {
    "a file is missing": (DAMAGED, lambda files: without(files, "run/plan.json")),
    "a file has changed": (
        DAMAGED,
        lambda files: files | {"run/plan.json": files["run/plan.json"].replace(b"1", b"2", 1)},
    ),
    "a large file has changed": (
        DAMAGED,
        lambda files: files | {"run/adapter/adapter_model.safetensors": b"x"},
    ),
    "no manifest": ("hub.not_a_backup", lambda files: without(files, MANIFEST)),
    "a truncated manifest": (DAMAGED, lambda files: files | {MANIFEST: files[MANIFEST][:-20]}),
    "another format": (
        DAMAGED,
        lambda files: files | {MANIFEST: files[MANIFEST].replace(b'"format": 1', b'"format": 2')},
    ),
    "a file only in the manifest": (DAMAGED, lambda files: changed(files, "scores.json", None)),
    "a path out of the folder": (FOREIGN, lambda files: changed(files, "../outside.json", b"{}")),
    "a deeper path out of the folder": (
        FOREIGN,
        lambda files: changed(files, "data/../../outside.json", b"{}"),
    ),
    "an absolute path": (FOREIGN, lambda files: changed(files, "/tmp/outside.json", b"{}")),
    "a program": (FOREIGN, lambda files: changed(files, "adapter/model.py", b"print()")),
    "a pickle": (FOREIGN, lambda files: changed(files, "adapter/adapter_model.bin", b"x")),
    "a hidden file": (FOREIGN, lambda files: changed(files, "data/.hidden.json", b"{}")),
    "a lock": (FOREIGN, lambda files: changed(files, "lock", b"")),
    "no recipe": (
        "hub.not_a_backup",
        lambda files: changed(
            files | {MANIFEST: json.dumps({"format": 1, "files": {}}).encode()},
            "run.json",
            files["run/run.json"],
        ),
    ),
    "an invalid recipe": (
        "hub.not_a_backup",
        lambda files: changed(files, "recipe.json", b'{"lora_rank": "many"}'),
    ),
    "a run of another format": (
        "runs.other_format",
        lambda files: changed(
            files,
            "run.json",
            json.dumps({"format": FORMAT + 1, "name": "x", "created": 1.0}).encode(),
        ),
    ),
    "invalid events": (
        "hub.not_a_backup",
        lambda files: changed(files, "events.jsonl", b"{}\n"),
    ),
}


_FAST = (
    "a file is missing",
    "a large file has changed",
    "a path out of the folder",
    "a program",
)


@pytest.mark.parametrize(
    "how",
    [how if how in _FAST else pytest.param(how, marks=pytest.mark.slow) for how in CHANGES],
)
@pytest.mark.sample(2)
def test_a_changed_backup_is_rejected_and_nothing_is_left(the_hub, save, restore, tmp_path, how):
    code, change = CHANGES[how]
    save()
    repository = the_hub.repositories[REPO]
    repository.commits[-1] = type(repository.commits[-1])("changed", change(repository.files))
    before = files_in(tmp_path)
    with pytest.raises(UserError, match="maria/tickets") as error:
        restore()
    assert error.value.code == code
    assert "\n" not in str(error.value)
    assert files_in(tmp_path) == before


@pytest.mark.parametrize(
    ("token", "code"),
    [
        ("hf_wrong", "hub.unauthorized"),
        (None, "hub.not_found"),
        (NARROW, "hub.forbidden"),
        (OTHERS, "hub.not_found"),
    ],
)
@pytest.mark.sample(3)
def test_without_read_access_nothing_is_restored_and_the_message_says_why(
    the_hub, save, restore, tmp_path, token, code
):
    save()
    with pytest.raises(UserError, match="'maria/tickets'") as error:
        restore(token=token)
    assert error.value.code == code
    assert "write" not in str(error.value), "reading does not need write access"
    assert not list(tmp_path.glob("elsewhere/*"))


def test_a_failed_download_leaves_nothing_and_can_be_repeated(the_hub, save, restore, tmp_path):
    save()
    the_hub.fail_next("resolve/", 403, times=100)
    with pytest.raises(UserError, match="'maria/tickets'") as error:
        restore()
    assert error.value.code == "hub.forbidden"
    assert not list(tmp_path.glob("elsewhere/*"))
    the_hub._faults.clear()
    assert restore().status() == "paused"


def test_a_folder_with_content_is_left_alone(the_hub, save, restore, tmp_path):
    save()
    (tmp_path / "elsewhere" / "run").mkdir(parents=True)
    (tmp_path / "elsewhere" / "run" / "mine").write_text("x")
    with pytest.raises(UserError) as error:
        restore()
    assert error.value.code == "machine.folder_not_empty"


@pytest.mark.slow
def test_a_training_finished_on_another_machine_gives_the_same_adapter(
    the_hub, hub_environment, tmp_path
):
    made = make_run(tmp_path / "run", "demo", SHORT)
    whole = Run(shutil.copytree(made.directory, tmp_path / "whole"))
    with whole.lock():
        train(whole)
    pausing = threading.Thread(target=pause_after, args=(made, 7))
    pausing.start()
    with made.lock():
        outcome = train(made)
    pausing.join()
    assert isinstance(outcome, events.Paused)
    assert 7 <= outcome.step < 12

    def command(home: str, *arguments: str) -> None:
        environment = hub_environment | {
            "HF_TOKEN": WRITER,
            "PEFT_SPACE_HOME": str(tmp_path / home),
            "HF_HOME": str(tmp_path / f"{home}-hf"),
        }
        subprocess.run(
            [sys.executable, "-m", "peft_space", *arguments],
            env=environment,
            check=True,
            timeout=240,
        )

    command("here", "backup", str(made.directory), "--repo", NAME)
    shutil.rmtree(made.directory)
    command("there", "restore", NAME, "--out", str(tmp_path / "there" / "run"))
    command("there", "resume", str(tmp_path / "there" / "run"))
    finished = Run(tmp_path / "there" / "run")
    assert finished.status() == "finished"
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (finished.adapter / name).read_bytes() == (whole.adapter / name).read_bytes()


def pause_after(run: Run, step: int) -> None:
    while not any(isinstance(event, events.Step) and event.step >= step for event in run.history()):
        time.sleep(0.02)
    run.request_stop("pause")
