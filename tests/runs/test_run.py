"""The run directory: complete or absent, with a status derived from its events and its lock."""

import subprocess
import sys
import time

import pytest

from peft_space.errors import UserError
from peft_space.recipe import Recipe
from peft_space.runs import events
from peft_space.runs.events import evaluations_of, steps_of
from peft_space.runs.run import Run
from peft_space.runs.store import list_runs, new_run_directory, open_run, unique_name


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", Recipe(), {"data/train.jsonl": ""}, name="mine")


def step(number, attempt=1, loss=1.0):
    return events.Step(
        attempt=attempt,
        step=number,
        loss=loss,
        learning_rate=0.1,
        grad_norm=1.0,
        tokens=10,
        seconds=0.1,
    )


def test_a_run_that_cannot_be_created_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        Run.create(tmp_path / "run", Recipe(), {"data/train.jsonl": None})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_content_is_not_overwritten(run):
    with pytest.raises(UserError) as error:
        Run.create(run.directory, Recipe(), {})
    assert error.value.code == "machine.folder_not_empty"
    assert str(run.directory) in str(error.value)


def test_events_are_read_back_as_they_were_written(run):
    written = [
        events.Queued(),
        events.Started(attempt=1, from_step=0, total_steps=3),
        step(1),
        events.Failed(message="é\u2028\n"),
    ]
    for event in written:
        run.append(event)
    assert run.history() == written


def test_a_step_with_a_nan_or_infinite_loss_is_stored_and_read_back(run):
    run.append(step(1, loss=float("nan")))
    run.append(step(2, loss=float("inf")))
    nan, inf = (event.loss for event in run.history())
    assert nan != nan
    assert inf == float("inf")


def test_an_unreadable_run_does_not_hide_the_others():
    good, bad, old = (Run.create(new_run_directory("anna"), Recipe(), {}) for _ in range(3))
    bad.path("recipe.json").write_text('{"from_another_version": 1}')
    old.path("run.json").write_text('{"name": "old", "created": 1.0}')
    assert [run.directory for run in list_runs("anna")] == [good.directory]


def test_a_name_in_use_gets_a_number():
    one, two = (Run.create(new_run_directory("berta"), Recipe(), {}, name="mine") for _ in range(2))
    two.rename(unique_name("berta", "mine", but=two))
    assert [one.name, two.name, unique_name("berta", "mine", but=two)] == [
        "mine",
        "mine (2)",
        "mine (2)",
    ]


def test_a_run_is_renamed_and_deleted_but_not_while_it_is_trained(run):
    run.rename(" better ")
    assert Run(run.directory).name == "better"
    for name in (" ", "x" * 101):
        with pytest.raises(UserError) as error:
            run.rename(name)
        assert error.value.code == "runs.name_length"
    with Run(run.directory).lock(), pytest.raises(UserError) as error:
        run.delete()
    assert error.value.code == "runs.locked"
    assert run.size() > 0
    parent = run.directory.parent
    run.delete()
    assert list(parent.iterdir()) == []


def test_a_partial_last_event_is_left_out_and_then_cut_off(run):
    run.append(step(1))
    with open(run.path("events.jsonl"), "a") as file:
        file.write('{"event": "St')
    assert run.history() == [event for event in run.history() if event.step == 1]
    run.truncate_partial_event()
    run.append(step(2))
    assert [event.step for event in run.history()] == [1, 2]


def test_a_repeated_step_counts_once_with_its_last_value():
    happened = [step(1), step(2, loss=5.0), step(2, attempt=2, loss=3.0), step(3, attempt=2)]
    assert [(event.step, event.loss) for event in steps_of(happened)] == [
        (1, 1.0),
        (2, 3.0),
        (3, 1.0),
    ]
    scored = [
        events.Evaluated(attempt=1, step=2, loss=2.0),
        events.Evaluated(attempt=2, step=2, loss=1.0),
    ]
    assert [event.loss for event in evaluations_of(scored)] == [1.0]


@pytest.mark.parametrize(
    ("last", "status"),
    [
        (None, "new"),
        (events.Queued(), "queued"),
        (events.Queued(at=time.time() - 3600), "interrupted"),
        (events.Started(attempt=1, from_step=0, total_steps=3), "interrupted"),
        (events.Paused(step=1), "paused"),
        (events.Stopped(step=1), "stopped"),
        (events.Finished(step=3, seconds=1), "finished"),
        (events.Failed(message="no"), "failed"),
    ],
)
def test_the_status_without_a_process_follows_from_the_events(run, last, status):
    if last:
        # created when the tests were collected; its age now matters
        run.append(
            last if last.at < time.time() - 3000 else last.model_copy(update={"at": time.time()})
        )
    assert run.status() == status


def test_a_started_run_is_running_while_its_process_lives_and_interrupted_after(run):
    run.append(events.Started(attempt=1, from_step=0, total_steps=3))
    code = (
        "import sys; from peft_space.runs.run import Run\n"
        f"with Run({str(run.directory)!r}).lock(): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    assert run.status() == "running"
    with pytest.raises(UserError) as error, run.lock():
        pass
    assert error.value.code == "runs.locked"
    holder.kill()
    holder.wait()
    assert run.status() == "interrupted"


def test_a_visitor_finds_their_own_runs_and_no_others(tmp_path):
    mine = Run.create(new_run_directory("anna"), Recipe(), {})
    theirs = Run.create(new_run_directory("ben"), Recipe(), {})
    assert [run.directory for run in list_runs("anna")] == [mine.directory]
    assert open_run("anna", mine.directory.name).directory == mine.directory
    for guess in (
        theirs.directory.name,
        f"../ben/{theirs.directory.name}",
        "",
        "../..",
        str(theirs.directory),
    ):
        with pytest.raises(UserError) as error:
            open_run("anna", guess)
        assert error.value.code == "runs.unknown"


def test_a_folder_that_is_not_a_run_is_rejected(tmp_path):
    with pytest.raises(UserError) as error:
        Run(tmp_path)
    assert error.value.code == "runs.not_a_run"
