"""Workers survive every failure; a training starts once and can be stopped in the queue."""

import fcntl
import os
import signal
import subprocess
import sys

import psutil
import pytest

from peft_space import settings
from peft_space.__main__ import main
from peft_space.errors import UserError
from peft_space.runs import events
from peft_space.runs.events import steps_of
from peft_space.runtime import supervisor, worker_pool
from peft_space.runtime.supervisor import start_training
from peft_space.runtime.worker_pool import Workers
from tests.fixtures.waiting import wait_for


@pytest.fixture(scope="module")
def workers():
    pool = Workers(max_workers=1)
    yield pool
    pool.close()


@pytest.mark.slow
def test_a_closed_stream_ends_its_worker_and_frees_its_slot(workers, short_run):
    stream = workers.stream("evaluate", run=str(short_run.directory))
    next(stream)
    stream.close()
    assert workers._idle == []
    assert workers.call("check", data="demo")["rows"] == 300


def test_an_idle_worker_that_died_is_replaced(workers):
    workers.call("check", data="demo")
    [worker] = workers._idle
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    assert workers.call("check", data="demo")["rows"] == 300


@pytest.mark.slow
def test_a_killed_worker_is_reported_and_the_next_call_works(short_run):
    others = set(psutil.Process().children())  # workers of other tests
    fresh = worker_pool.Workers()
    stream = fresh.stream("evaluate", run=str(short_run.directory))
    next(stream)
    [worker] = set(psutil.Process().children()) - others
    worker.kill()
    with pytest.raises(worker_pool.WorkerFault):
        list(stream)
    assert fresh.call("check", data="demo")["rows"] == 300
    fresh.close()


def test_resume_after_a_partial_event_keeps_the_run_readable_and_starts_once(own_run, monkeypatch):
    started = []
    monkeypatch.setattr(supervisor, "_start_process", lambda run, options: started.append(run))
    own_run.append(events.Stopped(step=12))
    with open(own_run.path("events.jsonl"), "a") as file:
        file.write('{"event": "St')
    start_training(own_run)
    with pytest.raises(UserError) as error:
        start_training(own_run)
    assert error.value.code == "runtime.already_started"
    assert len(started) == 1
    assert isinstance(own_run.history()[-1], events.Queued)


def test_a_finished_run_is_not_started_again(short_run):
    with pytest.raises(UserError) as error:
        start_training(short_run)
    assert error.value.code == "runtime.already_started"


@pytest.mark.slow
def test_a_stop_request_left_by_a_kill_does_not_stop_the_next_training(own_run):
    own_run.append(events.Started(attempt=1, from_step=0, total_steps=12))
    own_run.request_stop("stop")
    assert main(["resume", str(own_run.directory)]) == 0
    assert own_run.status() == "finished"


@pytest.mark.slow
def test_a_run_in_the_queue_reports_it_and_can_be_stopped(own_run):
    own_run.append(events.Stopped(step=12))
    settings.home().mkdir(parents=True)
    with open(settings.home() / "machine.lock", "a") as other_training:
        fcntl.flock(other_training, fcntl.LOCK_EX)
        waiting = subprocess.Popen(
            [sys.executable, "-m", "peft_space", "resume", str(own_run.directory)]
        )
        wait_for(lambda: any(isinstance(event, events.Waiting) for event in own_run.history()))
        own_run.request_stop("stop")
        assert waiting.wait(timeout=60) == 0
    assert own_run.status() == "stopped"
    assert steps_of(own_run.history())[-1].step == 12
