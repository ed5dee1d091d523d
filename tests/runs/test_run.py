"""The run directory: made whole or not at all, its status derived from events and lock."""

import subprocess
import sys
import time

import pytest

from peft_space.errors import UserError
from peft_space.recipe import Recipe
from peft_space.runs import events
from peft_space.runs.run import Run
from peft_space.runs.status import evaluations_of, steps_of
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


def test_a_run_that_cannot_be_made_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        Run.create(tmp_path / "run", Recipe(), {"data/train.jsonl": None})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_not_overwritten(run):
    with pytest.raises(UserError, match="not empty"):
        Run.create(run.directory, Recipe(), {})


def test_events_come_back_as_they_were_written(run):
    written = [
        events.Queued(),
        events.Started(attempt=1, from_step=0, total_steps=3),
        step(1),
        events.Failed(message="é\u2028\n"),
    ]
    for event in written:
        run.append(event)
    assert run.history() == written


def test_a_step_whose_loss_is_no_number_is_kept_and_read_back(run):
    run.append(step(1, loss=float("nan")))
    run.append(step(2, loss=float("inf")))
    nan, inf = (event.loss for event in run.history())
    assert nan != nan
    assert inf == float("inf")


def test_a_run_whose_recipe_cannot_be_read_does_not_hide_the_others():
    good, bad = (Run.create(new_run_directory("anna"), Recipe(), {}) for _ in range(2))
    bad.path("recipe.json").write_text('{"from_another_version": 1}')
    assert [run.directory for run in list_runs("anna")] == [good.directory]


def test_a_name_that_is_taken_gets_a_number():
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
    with pytest.raises(UserError, match="1 to 100"):
        run.rename(" ")
    with Run(run.directory).lock(), pytest.raises(UserError, match="another process"):
        run.delete()
    assert run.size() > 0
    parent = run.directory.parent
    run.delete()
    assert list(parent.iterdir()) == []


def test_a_torn_last_line_is_left_out_and_then_cut_off(run):
    run.append(step(1))
    with open(run.path("events.jsonl"), "a") as file:
        file.write('{"event": "St')
    assert run.history() == [event for event in run.history() if event.step == 1]
    run.truncate_partial_event()
    run.append(step(2))
    assert [event.step for event in run.history()] == [1, 2]


def test_a_replayed_step_counts_once_with_its_last_value():
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
def test_the_status_follows_from_events_when_nobody_works_on_it(run, last, status):
    if last:
        # made when the tests were collected; what counts is its age now
        run.append(
            last if last.at < time.time() - 3000 else last.model_copy(update={"at": time.time()})
        )
    assert run.status() == status


def test_a_started_run_is_running_while_its_process_lives_and_interrupted_after(run):
    run.append(events.Started(attempt=1, from_step=0, total_steps=3))
    code = f"import sys; from peft_space.run import Run\nwith Run({str(run.directory)!r}).lock(): print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    assert run.status() == "running"
    with pytest.raises(UserError, match="being trained by another process"), run.lock():
        pass
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
        with pytest.raises(UserError, match="You have no run"):
            open_run("anna", guess)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a run"):
        Run(tmp_path)
