"""Runs saved to a private dataset repository and taken up elsewhere: the real client against a Hub of our own (hub_server.py)."""

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
from peft_space.hub.backup import BACKUP_MANIFEST
from peft_space.runs import events
from peft_space.runs.run import Run
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
    """A run as after a pause, with files in it that are nobody else's business."""
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
def take_up(ask, tmp_path):
    def take_up_run(repo: str = NAME, token: str | None = WRITER) -> Run:
        return Run(
            ask("restore", directory=str(tmp_path / "elsewhere" / "run"), repo=repo, token=token)[
                "run"
            ]
        )

    return take_up_run


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_is_saved_is_what_it_takes_to_go_on_and_private(the_hub, save, run):
    assert save() == f"{the_hub.url}/{REPO}"
    repository = the_hub.repositories[REPO]
    assert (repository.private, len(repository.commits)) == (True, 2)
    there = set(repository.files) - {".gitattributes", "README.md", BACKUP_MANIFEST}
    best = json.loads(run.path("checkpoints", "checkpoint-12", "trainer_state.json").read_text())[
        "log_history"
    ]
    best = min(
        (entry for entry in best if "eval_loss" in entry), key=lambda entry: entry["eval_loss"]
    )["step"]
    folders = {name.split("/")[1] for name in there if name.startswith("checkpoints/")}
    assert folders == {"checkpoint-12", f"checkpoint-{best}"}
    assert {
        "recipe.json",
        "run.json",
        "plan.json",
        "events.jsonl",
        "data/rows.arrow",
        "adapter/adapter_model.safetensors",
    } <= there
    assert not there & set(NOT_SAVED)
    assert all(repository.files[name] == run.path(name).read_bytes() for name in there)
    assert not any(WRITER.encode() in content for content in repository.files.values())


def test_what_was_saved_is_taken_up_byte_for_byte_in_a_folder_of_its_own(
    the_hub, save, take_up, run
):
    save()
    taken = take_up()
    saved = the_hub.repositories[REPO].files
    assert files_in(taken.directory) == {
        name: saved[name] for name in json.loads(saved[BACKUP_MANIFEST])["files"]
    }
    assert (taken.status(), taken.name, taken.recipe) == ("paused", run.name, run.recipe)
    assert {path.name for path in taken.directory.parent.iterdir()} == {"run"}


def test_saving_again_is_one_commit_and_leaves_no_old_checkpoint(the_hub, save, run):
    save()
    shutil.rmtree(run.path("checkpoints", "checkpoint-12"))
    save()
    repository = the_hub.repositories[REPO]
    assert len(repository.commits) == 3
    assert not [name for name in repository.files if name.startswith("checkpoints/checkpoint-12/")]


def test_of_a_damaged_checkpoint_nothing_is_saved(the_hub, save, run):
    run.path("checkpoints", "checkpoint-12", "optimizer.pt").write_bytes(b"torn")
    save()
    assert not [
        name
        for name in the_hub.repositories[REPO].files
        if name.startswith("checkpoints/checkpoint-12/")
    ]


def test_a_finished_run_is_saved_without_checkpoints(the_hub, save, run):
    run.append(events.Finished(step=12, seconds=1.0))
    save()
    assert not [
        name for name in the_hub.repositories[REPO].files if name.startswith("checkpoints/")
    ]


def test_a_run_is_not_saved_while_it_is_trained(the_hub, save, run):
    with run.lock(), pytest.raises(UserError, match="being trained by another process"):
        save()
    assert not the_hub.repositories


@pytest.mark.parametrize(
    ("files", "private", "words"),
    [
        ({"data.csv": b"theirs"}, True, "holds something else"),
        ({BACKUP_MANIFEST: b"{}"}, False, "is public"),
    ],
)
def test_a_dataset_of_something_else_or_that_all_can_see_is_left_alone(
    the_hub, save, files, private, words
):
    repository = the_hub.add_repository(REPO, files, private)
    with pytest.raises(UserError, match=words):
        save()
    assert len(repository.commits) == 2


@pytest.mark.parametrize(
    ("token", "fault", "words"),
    [
        ("hf_wrong", None, "The run was not saved: the Hub does not accept the token"),
        (READER, None, "may not write to 'maria/tickets'"),
        (None, None, "There is no Hub token"),
        (WRITER, ("commit", 500), r"an error of its own \(500\).*It is here as it was"),
        (WRITER, ("storage", 403), "may not write to 'maria/tickets'"),
    ],
)
def test_a_refusal_is_a_sentence_and_what_was_saved_before_stays(
    the_hub, save, run, token, fault, words
):
    if fault:
        the_hub.fail_next(*fault, times=10)
    before = files_in(run.directory)
    with pytest.raises(UserError, match=words):
        save(token=token)
    assert files_in(run.directory) == before
    assert all(len(made.commits) == 1 for made in the_hub.repositories.values())


def changed(files: dict[str, bytes], name: str, content: bytes | None) -> dict[str, bytes]:
    """The files with one more, which the manifest names; without content, with one that only it names."""
    manifest = json.loads(files[BACKUP_MANIFEST])
    manifest["files"][name] = hashlib.sha256(content or b"").hexdigest()
    return (
        files
        | {BACKUP_MANIFEST: json.dumps(manifest).encode()}
        | ({name: content} if content is not None else {})
    )


TORN = {
    "a file is missing": lambda files: {
        name: content for name, content in files.items() if name != "plan.json"
    },
    "a file has changed": lambda files: (
        files | {"plan.json": files["plan.json"].replace(b"1", b"2", 1)}
    ),
    "a large file has changed": lambda files: files | {"adapter/adapter_model.safetensors": b"x"},
    "there is no manifest": lambda files: {
        name: content for name, content in files.items() if name != BACKUP_MANIFEST
    },
    "the manifest is cut off": lambda files: (
        files | {BACKUP_MANIFEST: files[BACKUP_MANIFEST][:-20]}
    ),
    "of another format": lambda files: (
        files | {BACKUP_MANIFEST: files[BACKUP_MANIFEST].replace(b'"format": 1', b'"format": 2')}
    ),
    "a file that only the manifest names": lambda files: changed(files, "scores.json", None),
    "a path out of the folder": lambda files: changed(files, "../outside.json", b"{}"),
    "a path out of the folder, deeper": lambda files: changed(
        files, "data/../../outside.json", b"{}"
    ),
    "an absolute path": lambda files: changed(files, "/tmp/outside.json", b"{}"),
    "a program": lambda files: changed(files, "adapter/model.py", b"print()"),
    "a pickle of weights": lambda files: changed(files, "adapter/adapter_model.bin", b"x"),
    "a hidden file": lambda files: changed(files, "data/.hidden.json", b"{}"),
    "a lock": lambda files: changed(files, "lock", b""),
    "no recipe": lambda files: changed(
        files | {BACKUP_MANIFEST: json.dumps({"format": 1, "name": "x", "files": {}}).encode()},
        "run.json",
        files["run.json"],
    ),
    "a recipe that is none": lambda files: changed(files, "recipe.json", b'{"lora_rank": "many"}'),
    "events that are none": lambda files: changed(files, "events.jsonl", b"{}\n"),
}


_IN_EVERY_RUN = (
    "a file is missing",
    "a large file has changed",
    "a path out of the folder",
    "a program",
)


@pytest.mark.parametrize(
    "how",
    [how if how in _IN_EVERY_RUN else pytest.param(how, marks=pytest.mark.slow) for how in TORN],
)
def test_what_is_torn_or_does_not_belong_is_refused_and_nothing_is_left(
    the_hub, save, take_up, tmp_path, how
):
    save()
    repository = the_hub.repositories[REPO]
    repository.commits[-1] = type(repository.commits[-1])("changed", TORN[how](repository.files))
    before = files_in(tmp_path)
    with pytest.raises(UserError, match="maria/tickets") as refusal:
        take_up()
    assert "\n" not in str(refusal.value)
    assert files_in(tmp_path) == before


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (
            "hf_wrong",
            "the Hub does not let the dataset 'maria/tickets' be read with this token, or without one. Give a token that may read it",
        ),
        (
            None,
            "the Hub does not let the dataset 'maria/tickets' be read with this token, or without one. Give a token that may read it",
        ),
        (
            NARROW,
            "the token may not read the dataset 'maria/tickets'. Give a token that may read it, of its owner's account",
        ),
        (
            OTHERS,
            "the Hub does not find the dataset 'maria/tickets', or the token may not read it. Check the name. If it is right, give a token",
        ),
    ],
)
def test_who_may_not_read_it_does_not_get_it_and_is_told_what_to_do(
    the_hub, save, take_up, tmp_path, token, words
):
    save()
    with pytest.raises(UserError, match=f"The run was not taken up: {words}") as refusal:
        take_up(token=token)
    assert "write" not in str(refusal.value), "to read it takes no such token"
    assert not list(tmp_path.glob("elsewhere/*"))


def test_a_download_that_breaks_off_leaves_nothing_and_can_be_tried_again(
    the_hub, save, take_up, tmp_path
):
    save()
    the_hub.fail_next("resolve/", 403, times=100)
    with pytest.raises(
        UserError,
        match=r"The run was not taken up: the token may not read the dataset 'maria/tickets'",
    ):
        take_up()
    assert not list(tmp_path.glob("elsewhere/*"))
    the_hub._faults.clear()
    assert take_up().status() == "paused"


def test_a_folder_that_is_not_empty_is_left_alone(the_hub, save, take_up, tmp_path):
    save()
    (tmp_path / "elsewhere" / "run").mkdir(parents=True)
    (tmp_path / "elsewhere" / "run" / "mine").write_text("x")
    with pytest.raises(UserError, match="is not empty"):
        take_up()


@pytest.mark.slow
def test_a_paused_training_that_is_finished_on_another_machine_ends_with_the_adapter_of_an_uninterrupted_one(
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
