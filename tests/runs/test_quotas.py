"""Limits for visitors of a Space, and the removal of idle runs; without a Space there are none."""

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


def test_a_fourth_open_training_is_rejected_and_others_runs_do_not_count():
    for _ in range(3):
        made("anna", events.Queued())
    made("ben", events.Queued())
    with pytest.raises(UserError) as error:
        quotas.new_run("anna")
    assert error.value.code == "runs.too_many_open"
    assert quotas.new_run("ben").parent.name == "ben"


def test_a_visitor_at_the_storage_limit_must_delete_a_run_first(monkeypatch):
    monkeypatch.setenv("PEFT_SPACE_MAX_STORED_MB", "0.001")
    run = made("anna", events.Finished(step=1, seconds=1.0))
    run.path("adapter").mkdir()
    run.path("adapter", "weights").write_bytes(b"0" * 2000)
    with pytest.raises(UserError) as error:
        quotas.new_run("anna")
    assert error.value.code == "runs.storage_quota"
    run.delete()
    quotas.new_run("anna")


def test_idle_runs_are_removed_and_others_stay(tmp_path):
    idle, fresh = (
        made("anna", events.Finished(step=1, seconds=1.0)),
        made("anna", events.Paused(step=1)),
    )
    trained = made("ben", events.Queued(), events.Started(attempt=1, from_step=0, total_steps=2))
    alone = made("carla", events.Paused(step=1))
    (tmp_path / "cache" / "tokens" / "0a").mkdir(parents=True)
    for run in (idle, trained, alone):
        age(run, 15)
    with trained.lock():  # as its training does
        assert sorted(quotas.prune_idle_runs()) == sorted(
            [idle.directory.name, alone.directory.name]
        )
    assert [run.directory for run in list_runs("anna")] == [fresh.directory]
    assert [run.directory for run in list_runs("ben")] == [trained.directory]
    assert not alone.directory.parent.exists()
    assert (tmp_path / "cache" / "tokens" / "0a").is_dir()


def test_outside_a_space_there_is_no_limit_unless_one_is_set(monkeypatch):
    monkeypatch.delenv("SYSTEM")
    assert (settings.max_open_runs(), settings.max_stored_bytes(), settings.keep_days()) == (
        None,
        None,
        None,
    )
    age(made("local", events.Paused(step=1)), 1000)
    assert quotas.prune_idle_runs() == []
    monkeypatch.setenv("PEFT_SPACE_KEEP_DAYS", "30")
    assert len(quotas.prune_idle_runs()) == 1
