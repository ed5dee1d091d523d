"""Trainings on this machine: each waits for its turn, and computes in a child process, so that who looks after it survives what it does.

Knows no torch: it takes little memory, and the system, where it ends something for memory, ends the child.
"""

import itertools
import os
import subprocess
import sys
from collections.abc import Sequence

from peft_space import hardware
from peft_space.errors import UserError
from peft_space.runs import events
from peft_space.runs.run import Run, ensure_not_on_job
from peft_space.runs.status import steps_of
from peft_space.runtime import machine_queue
from peft_space.runtime.worker_pool import WorkerFault

_MOST_RESTARTS = 2
"""How often a run is started again by itself without having come a step further."""

_NICE = 10
"""How far a training steps back for the page, the answers and whatever else this machine does; where there is nothing else, it loses nothing."""


def start_training(run: Run, shorter: bool = False, anyway: bool = False) -> None:
    """Begin or go on with training in a process of its own, which survives the page, writes to the run and waits for its turn.

    Args:
        shorter: whether the rows of a training for which memory did not do are cut off at half their length.
        anyway: whether to go on also where rows, recipe or libraries have changed since the last checkpoint.
    """
    ensure_not_on_job(run)
    with run.lock():  # two clicks do not start two workers
        if run.status() in ("queued", "finished"):
            raise UserError(
                "todo",
                f"The run {run.name!r} is {run.status()} already. Wait for it, or start another one.",
            )
        run.truncate_partial_event()
        if shorter:
            halve_max_length_of(run)
        run.clear_stop_request()
        machine_queue.enqueue(run)
        run.append(events.Queued())
    _start_process(run, ["--ignore-mismatch"] * anyway)


def resume_interrupted() -> None:
    """Start what was queued or being trained when the machine went down, in the same order; called when the app starts."""
    for run in machine_queue.orphaned_runs():
        if run.status() in ("queued", "interrupted") and not _keeps_failing(run):
            run.truncate_partial_event()
            run.append(events.Queued())
            machine_queue.refresh_ticket(run)
            _start_process(run)
        else:
            machine_queue.dequeue(run)


def _keeps_failing(run: Run) -> bool:
    """Whether it has had its turn again and again since its last step."""
    told = [event for event in run.history() if not isinstance(event, events.Waiting)]
    since = next(
        (place for place in range(len(told), 0, -1) if isinstance(told[place - 1], events.Step)), 0
    )
    turns = sum(
        isinstance(one, events.Queued) and isinstance(other, events.Preparing)
        for one, other in itertools.pairwise(told[since:])
    )
    return turns > _MOST_RESTARTS


def _start_process(run: Run, options: Sequence[str] = ()) -> None:
    with open(run.path("worker.log"), "a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "peft_space", "resume", str(run.directory), *options],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, 0) + _NICE)


def halve_max_length_of(run: Run) -> None:
    """Let a run go on with rows of half the length, to which the user agreed. Raises UserError where memory was not what it failed for."""
    from peft_space.training.oom_fallback import halve_max_length

    happened = run.history()
    failed = happened[-1] if happened else None
    if (
        not (isinstance(failed, events.Failed) and failed.for_memory)
        or halve_max_length(run) is None
    ):
        raise UserError(
            "todo",
            f"The run {run.name!r} did not fail for memory that shorter rows would save. Resume it without shortening its rows.",
        )


def supervise_training(
    run: Run, own: int, anyway: bool = False, report_to: Sequence[str] = ()
) -> events.Outcome:
    """Wait for the turn of a run and train it in a child process, until it ends in one of the ways in which a training ends.

    Args:
        own: the descriptor with which the caller holds the run's lock.
        anyway: as of `start_training`.
        report_to: of `reporting.TOOLS`, those that the losses are also told to.

    Raises UserError in the training's own words, WorkerFault where it is our fault or it was killed.
    """
    with machine_queue.machine_slot(
        run, lambda before: run.append(_waiting(before)), lambda: run.requested_stop() is not None
    ) as held:
        if held is None:
            return _leave_before_training(run)
        options = ["--anyway"] * anyway + [f"--report-to={tool}" for tool in report_to]
        num_events, ended_for_memory = len(run.history()), False
        while True:
            kills = hardware.kills_for_memory()
            child = _attempt(
                run, (own, *held), [*options, *["--ended-for-memory"] * ended_for_memory]
            )
            last = next(reversed(run.history()), None)
            ended_for_memory = (
                bool(child)
                and hardware.kills_for_memory() > kills
                and not isinstance(last, events.Failed | events.OutOfMemory)
            )
            if not ended_for_memory and not isinstance(last, events.OutOfMemory):
                break  # else another attempt, in a fresh process: this one's memory may be in pieces
            run.truncate_partial_event()
    return _how_it_ended(run, child, num_events)


def _waiting(before: int) -> events.Waiting:
    others = "another training is" if before == 1 else f"{before} others are"
    return events.Waiting(what=f"Waiting for its turn: {others} before it", before=before)


def _attempt(run: Run, held: machine_queue.Held, options: list[str]) -> int:
    """Train in a child process, which inherits the locks in `held`. Returns its exit status."""
    command = [sys.executable, "-m", "peft_space.runtime.train_process", str(run.directory)]
    return subprocess.Popen([*command, *options], stdin=subprocess.DEVNULL, pass_fds=held).wait()


def _leave_before_training(run: Run) -> events.Outcome:
    """The outcome of a run that was asked to leave while it waited for its turn."""
    steps = steps_of(run.history())
    outcome = (events.Paused if run.requested_stop() == "pause" else events.Stopped)(
        step=steps[-1].step if steps else 0
    )
    run.append(outcome)
    run.clear_stop_request()
    return outcome


def _how_it_ended(run: Run, status: int, num_events: int) -> events.Outcome:
    """The outcome that the training has written after the first `num_events`."""
    last = next(reversed(run.history()[num_events:]), None)
    if status == 0 and isinstance(last, events.Paused | events.Stopped | events.Finished):
        return last
    if isinstance(last, events.Failed):
        if last.fault:
            raise WorkerFault(last.message)
        raise UserError(last.code, last.message)
    raise WorkerFault(
        f"The process that trained the run {run.name!r} ended unexpectedly (status {status}). Resume it: it goes on from its last checkpoint."
    )
