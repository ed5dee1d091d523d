"""The queue of the machine: first come, first served; who is gone does not hold it; a restart of the app loses nobody."""

import os
import signal
import threading
import time

import psutil
import pytest

from peft_space.recipe import Recipe
from peft_space.runs import events
from peft_space.runs.run import Run
from peft_space.runs.store import new_run_directory
from peft_space.runtime import machine_queue
from peft_space.runtime.supervisor import resume_interrupted, start_training
from peft_space.training.prepare import make_run
from tests.runtime.test_worker_pool import wait_for

TINY = Recipe(
    max_steps=2,
    num_epochs=1,
    batch_size=2,
    quantization="none",
    eval_split=0.0,
    compute_dtype="float32",
)


def runs_of(*owners: str) -> list[Run]:
    return [Run.create(new_run_directory(owner), TINY, {}) for owner in owners]


def never(before: int) -> None:
    raise AssertionError(f"{before} before it")


def test_turns_come_in_the_order_in_which_they_were_asked_for():
    first, second, third = runs_of("anna", "ben", "anna")
    for run in (first, second, third):
        machine_queue.enqueue(run)
    assert [machine_queue.num_ahead(run) for run in (first, second, third)] == [0, 1, 2]
    told, had = [], []

    def wait(run: Run) -> None:
        with machine_queue.machine_slot(run, told.append) as held:
            had.append((run, held is not None))

    waiting = threading.Thread(target=wait, args=(third,))
    waiting.start()
    wait_for(lambda: told == [2])
    with machine_queue.machine_slot(first, never):
        assert had == []
    wait_for(lambda: told == [2, 1])
    with machine_queue.machine_slot(second, never):
        pass
    waiting.join(timeout=20)
    assert had == [(third, True)]
    assert machine_queue.num_ahead(third) is None


def test_who_asks_again_goes_to_the_end():
    first, second = runs_of("anna", "ben")
    for run in (first, second, first):
        machine_queue.enqueue(run)
    assert (machine_queue.num_ahead(second), machine_queue.num_ahead(first)) == (0, 1)


def test_who_is_asked_to_leave_gets_no_turn_and_is_out_of_the_queue():
    [run] = runs_of("anna")
    machine_queue.enqueue(run)
    with machine_queue.machine_slot(run, never, leave=lambda: True) as held:
        assert held is None
    assert machine_queue.num_ahead(run) is None


def test_a_ticket_whose_process_never_came_counts_for_a_minute():
    gone, waiting = runs_of("anna", "ben")
    for run in (gone, waiting):
        machine_queue.enqueue(run)
    [ticket] = [
        path for path in machine_queue._tickets() if path.read_text() == str(gone.directory)
    ]
    os.utime(ticket, (time.time() - 61,) * 2)
    with machine_queue.machine_slot(waiting, never):
        assert [run.directory for run in machine_queue.orphaned_runs()] == [gone.directory]


def test_a_run_that_had_its_turns_and_never_took_a_step_is_not_started_a_third_time(monkeypatch):
    [run] = runs_of("anna")
    for _ in range(3):
        run.append(events.Queued())
        run.append(events.Preparing(what="Loading"))
        run.append(events.Started(attempt=1, from_step=0, total_steps=2))
    machine_queue.enqueue(run)
    monkeypatch.setattr("peft_space.runtime.supervisor._start_process", pytest.fail)
    resume_interrupted()
    assert machine_queue.num_ahead(run) is None


def test_after_a_restart_a_run_whose_process_starts_slowly_is_not_overtaken(monkeypatch):
    runs = runs_of("anna", "ben")
    for run in runs:
        run.append(events.Queued())
        machine_queue.enqueue(run)
    for ticket in machine_queue._tickets():
        os.utime(ticket, (time.time() - 61,) * 2)
    monkeypatch.setattr("peft_space.runtime.supervisor._start_process", lambda run: None)
    resume_interrupted()
    assert [machine_queue.num_ahead(run) for run in runs] == [0, 1]


@pytest.mark.slow
def test_five_runs_of_three_visitors_survive_the_end_of_all_processes_and_each_finishes_once_and_in_order():
    runs = [
        make_run(new_run_directory(owner), "demo", TINY)
        for owner in ("anna", "ben", "anna", "carla", "ben")
    ]
    for run in runs:
        start_training(run)
    wait_for(lambda: any(isinstance(event, events.Started) for event in runs[1].history()))
    end_everything(runs)
    assert runs[0].status() == "finished"
    assert [machine_queue.num_ahead(run) for run in runs[1:]] == [0, 1, 2, 3]
    resume_interrupted()
    for run in runs:
        wait_for(lambda run=run: run.status() == "finished", seconds=120)
    finished = [
        [event.at for event in run.history() if isinstance(event, events.Finished)] for run in runs
    ]
    assert [len(times) for times in finished] == [1] * 5
    assert finished == sorted(finished)
    wait_for(lambda: machine_queue._tickets() == [])


def end_everything(runs: list[Run]) -> None:
    """As when the machine goes down: every process that works on these runs is killed at once."""
    folders = {str(run.directory) for run in runs}
    found = [
        process
        for process in psutil.process_iter(["cmdline"])
        if folders & set(process.info["cmdline"] or [])
    ]
    for process in found:
        process.send_signal(signal.SIGKILL)
    psutil.wait_procs(found, timeout=20)
    wait_for(lambda: not any(run.is_locked() for run in runs))
