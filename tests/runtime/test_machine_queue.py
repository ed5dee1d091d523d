"""The machine's queue: first come, first served, and no run is lost by kills and restarts."""

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
from tests.fixtures.waiting import wait_for

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


def never(ahead: int) -> None:
    raise AssertionError(f"{ahead} ahead of it")


def test_turns_come_in_the_order_of_the_requests():
    first, second, third = runs_of("anna", "ben", "anna")
    for run in (first, second, third):
        machine_queue.enqueue(run)
    assert [machine_queue.num_ahead(run) for run in (first, second, third)] == [0, 1, 2]
    reported, turns = [], []

    def wait(run: Run) -> None:
        with machine_queue.machine_slot(run, reported.append) as held:
            turns.append((run, held is not None))

    waiting = threading.Thread(target=wait, args=(third,))
    waiting.start()
    wait_for(lambda: reported == [2])
    with machine_queue.machine_slot(first, never):
        assert turns == []
    wait_for(lambda: reported == [2, 1])
    with machine_queue.machine_slot(second, never):
        pass
    waiting.join(timeout=20)
    assert turns == [(third, True)]
    assert machine_queue.num_ahead(third) is None


def test_a_second_request_goes_to_the_end():
    first, second = runs_of("anna", "ben")
    for run in (first, second, first):
        machine_queue.enqueue(run)
    assert (machine_queue.num_ahead(second), machine_queue.num_ahead(first)) == (0, 1)


def test_a_cancelled_run_gets_no_turn_and_leaves_the_queue():
    [run] = runs_of("anna")
    machine_queue.enqueue(run)
    with machine_queue.machine_slot(run, never, is_cancelled=lambda: True) as held:
        assert held is None
    assert machine_queue.num_ahead(run) is None


def test_a_ticket_whose_process_never_started_counts_for_a_minute():
    gone, waiting = runs_of("anna", "ben")
    for run in (gone, waiting):
        machine_queue.enqueue(run)
    [ticket] = [
        path for path in machine_queue._tickets() if path.read_text() == str(gone.directory)
    ]
    os.utime(ticket, (time.time() - 61,) * 2)
    with machine_queue.machine_slot(waiting, never):
        assert [run.directory for run in machine_queue.orphaned_runs()] == [gone.directory]


def test_a_run_without_a_step_in_its_turns_is_not_started_a_third_time(monkeypatch):
    [run] = runs_of("anna")
    for _ in range(3):
        run.append(events.Queued())
        run.append(events.Preparing(what="Loading"))
        run.append(events.Started(attempt=1, from_step=0, total_steps=2))
    machine_queue.enqueue(run)
    monkeypatch.setattr("peft_space.runtime.supervisor._start_process", pytest.fail)
    resume_interrupted()
    assert machine_queue.num_ahead(run) is None


def test_after_a_restart_a_slow_start_keeps_its_place(monkeypatch):
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
def test_five_runs_survive_the_kill_of_all_processes_and_finish_once_in_order():
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
    """Kill every process that works on these runs at once, as when the machine goes down."""
    folders = {str(run.directory) for run in runs}
    processes = [
        process
        for process in psutil.process_iter(["cmdline"])
        if folders & set(process.info["cmdline"] or [])
    ]
    for process in processes:
        process.send_signal(signal.SIGKILL)
    psutil.wait_procs(processes, timeout=20)
    wait_for(lambda: not any(run.is_locked() for run in runs))
