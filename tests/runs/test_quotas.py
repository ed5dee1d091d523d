"""What a visitor of a Space may have at once, and that what nobody comes back to is removed. One's own machine sets no limit."""

import os
import time

import pytest

from peft_space import settings
from peft_space.errors import UserError
from peft_space.recipe import Recipe
from peft_space.runs import events, quotas
from peft_space.runs.run import Run
from peft_space.runs.store import list_runs, new_run_directory


@pytest.fixture(autouse=True)
def a_space(tmp_path, monkeypatch):
    monkeypatch.setenv("SYSTEM", "spaces")
    monkeypatch.setenv("PEFT_SPACE_HOME", str(tmp_path))


def made(owner: str, *happened: events.Event, name: str = "mine") -> Run:
    run = Run.create(new_run_directory(owner), Recipe(), {}, name=name)
    for event in happened:
        run.append(event)
    return run


def age(run: Run, days: float) -> None:
    then = time.time() - days * 86400
    for path in (*run.directory.rglob("*"), run.directory):
        os.utime(path, (then, then))


def test_a_fourth_open_training_is_refused_and_anothers_do_not_count():
    for _ in range(3):
        made("anna", events.Queued())
    made("ben", events.Queued())
    with pytest.raises(UserError, match="You have 3 trainings queued or running, and may have 3"):
        quotas.new_run("anna")
    assert quotas.new_run("ben").parent.name == "ben"


def test_who_has_stored_as_much_as_they_may_is_told_to_delete(monkeypatch):
    monkeypatch.setenv("PEFT_SPACE_MAX_STORED_MB", "0.001")
    run = made("anna", events.Finished(step=1, seconds=1.0))
    run.path("adapter").mkdir()
    run.path("adapter", "weights").write_bytes(b"0" * 2000)
    with pytest.raises(UserError, match="delete a run on Runs"):
        quotas.new_run("anna")
    run.delete()
    quotas.new_run("anna")


def test_runs_that_nothing_happens_to_are_removed_and_others_stay(tmp_path):
    idle, fresh = (
        made("anna", events.Finished(step=1, seconds=1.0)),
        made("anna", events.Paused(step=1)),
    )
    trained = made("ben", events.Queued(), events.Started(attempt=1, from_step=0, total_steps=2))
    alone = made("carla", events.Paused(step=1))
    (tmp_path / "cache" / "tokens" / "0a").mkdir(parents=True)
    for run in (idle, trained, alone):
        age(run, 15)
    with trained.lock():  # as whoever trains it does
        assert sorted(quotas.prune_idle_runs()) == sorted(
            [idle.directory.name, alone.directory.name]
        )
    assert [run.directory for run in list_runs("anna")] == [fresh.directory]
    assert [run.directory for run in list_runs("ben")] == [trained.directory]
    assert not alone.directory.parent.exists()
    assert (tmp_path / "cache" / "tokens" / "0a").is_dir()


def test_on_ones_own_machine_there_is_no_limit_unless_it_is_set(monkeypatch):
    monkeypatch.delenv("SYSTEM")
    assert (settings.most_open_runs(), settings.most_stored_bytes(), settings.keep_days()) == (
        None,
        None,
        None,
    )
    age(made("local", events.Paused(step=1)), 1000)
    assert quotas.prune_idle_runs() == []
    monkeypatch.setenv("PEFT_SPACE_KEEP_DAYS", "30")
    assert len(quotas.prune_idle_runs()) == 1
