"""Queues trainings and supervises them; the training itself runs in a child process.

This process does not import torch, so it needs little memory: if the system kills a process for
memory, it kills the child.
"""

import contextlib
import functools
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from peft_space import hardware
from peft_space.errors import UserError
from peft_space.runs import events
from peft_space.runs.events import steps_of
from peft_space.runs.run import Run, ensure_not_on_job
from peft_space.runtime import machine_queue
from peft_space.runtime.worker_pool import WorkerFault, raise_from_json

_MAX_RESTARTS = 2  # automatic ones, without a new step
_NICE = 10  # a training gives way to the page; on an idle machine this costs nothing
_SECONDS_AFTER_TRAINING = 60.0  # until the next standby: the scores of the run come first
_CHILD = (sys.executable, "-m", "peft_space.runtime.train_process")
_STDERR = 2  # what libraries print must not mix with the result on standard output


def start_training(run: Run, halve_max_length: bool = False, ignore_mismatch: bool = False) -> None:
    """Start or resume training in a new process, which survives the page.

    Args:
        run: it is not queued, running or finished.
        halve_max_length: after a training ran out of memory, halve its length limit.
        ignore_mismatch: resume even if rows, recipe or libraries differ from the checkpoint's.

    Raises:
        UserError: the run is in a state in which it cannot be started.
    """
    ensure_not_on_job(run)
    with run.lock():  # two clicks do not start two processes
        if (status := run.status()) in ("queued", "finished"):
            raise UserError(
                "runtime.already_started",
                f"The run {run.name!r} is already {status}. Wait for it, or start another run.",
            )
        run.truncate_partial_event()
        if halve_max_length:
            halve_max_length_of(run)
        run.clear_stop_request()
        machine_queue.enqueue(run)
        run.append(events.Queued())
    _start_process(run, ["--ignore-mismatch"] * ignore_mismatch)


def resume_interrupted() -> None:
    """Resume, in the same order, the runs that a stop of the machine interrupted or left queued."""
    for run in machine_queue.orphaned_runs():
        if run.status() in ("queued", "interrupted") and not _keeps_failing(run):
            run.truncate_partial_event()
            run.append(events.Queued())
            machine_queue.refresh_ticket(run)
            _start_process(run)
        else:
            machine_queue.dequeue(run)


def _keeps_failing(run: Run) -> bool:
    """Return True if the run had too many turns since its last step."""
    history = [event for event in run.history() if not isinstance(event, events.Waiting)]
    last_step = max((i for i, e in enumerate(history) if isinstance(e, events.Step)), default=-1)
    num_turns = sum(
        isinstance(event, events.Queued) and isinstance(following, events.Preparing)
        for event, following in itertools.pairwise(history[last_step + 1 :])
    )
    return num_turns > _MAX_RESTARTS


def _start_process(run: Run, options: Sequence[str] = ()) -> None:
    arguments = ["resume", str(run.directory), *options]
    if _standby.take(arguments):
        return
    with open(run.path("worker.log"), "a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "peft_space", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    _give_way(process)


def _give_way(process: "subprocess.Popen[Any]") -> None:
    if not hardware.has_gpu_driver():  # a GPU would wait for the thread that starts its kernels
        os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, 0) + _NICE)


class _Standby:
    """A process that waits for a training, with a child that has imported the libraries.

    That import takes as long as several steps of a small training. The process ends with this
    one, unless a training has begun in it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return
            self._process = subprocess.Popen(
                [sys.executable, "-m", "peft_space.cli.main"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
            _give_way(self._process)

    def take(self, arguments: Sequence[str]) -> bool:
        """Let the process run a command, and start the next one when it ends; False if none waits.

        Args:
            arguments: of the command line, `resume` and so on.
        """
        with self._lock:
            process, self._process = self._process, None
        if process is None or process.stdin is None:
            return False
        try:
            process.stdin.write(json.dumps(list(arguments)) + "\n")
            process.stdin.close()
        except BrokenPipeError:  # it was killed, probably for its memory
            return False
        threading.Thread(target=self._replace, args=(process,), daemon=True).start()
        return True

    def _replace(self, process: "subprocess.Popen[str]") -> None:
        process.wait()
        time.sleep(_SECONDS_AFTER_TRAINING)
        self.start()


_standby = _Standby()


def keep_standby() -> None:
    """From now on, keep a process that has imported the libraries for the next training."""
    _standby.start()


def halve_max_length_of(run: Run) -> None:
    """Halve the length limit of a run that ran out of memory, as the user has agreed.

    Raises:
        UserError: shorter rows would not help, or the run did not fail for memory.
    """
    from peft_space.training.oom_fallback import halve_max_length

    history = run.history()
    failed_for_memory = (
        bool(history) and isinstance(history[-1], events.Failed) and history[-1].for_memory
    )
    if not failed_for_memory or halve_max_length(run) is None:
        raise UserError(
            "runtime.shorter_rows_do_not_help",
            f"The run {run.name!r} did not run out of memory in a way that shorter rows can fix. "
            "Resume it without halving its length limit.",
        )


_ready: list["_Preparation"] = []
"""A child that has imported the libraries, if this process has waited for its training."""


def wait_for_training() -> list[str] | None:
    """Wait for a command on standard input, with a child that imports the libraries meanwhile.

    Returns:
        Its arguments, `resume` and so on, which `supervise_training` runs in that child; None if
        there will be none.
    """
    child = _Preparation(["--import"])
    if not (line := sys.stdin.readline()):
        return None  # the child ends with its parent
    arguments: list[str] = json.loads(line)
    with open(Run(arguments[1]).path("worker.log"), "a") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    with contextlib.suppress(WorkerFault, OSError):  # it was killed; then another process trains
        child.make({"run": arguments[1]})
        _ready.append(child)
    return arguments


def make_and_train(
    arguments: Mapping[str, Any],
    watching: Callable[[Run], AbstractContextManager[None]],
    report_to: Sequence[str] = (),
) -> tuple[Run, events.Ended]:
    """Create a run and train it, both in one child process.

    So torch is imported only once, and never in this process.

    Args:
        arguments: of `training.prepare.make_run`, as JSON values.
        watching: entered with the new run before it waits for its turn, left after the training.
        report_to: names of trackers that receive the losses.

    Returns:
        The run, and how its training ended.

    Raises:
        UserError: the run cannot be created, or the training ended with an error of the user.
        WorkerFault: there is a bug, or the child was killed.
    """
    with _Preparation() as preparation:
        preparation.make(arguments)
        run = preparation.run
        with run.lock() as descriptor, watching(run):
            outcome = supervise_training(
                run, descriptor, report_to=report_to, first_attempt=preparation.train
            )
    return run, outcome


class _Preparation:
    """A child process that has created a run, and waits for the locks to train it.

    The run does not exist when the child starts, so the child cannot inherit the run's lock. It
    receives the descriptors over a socket. They stay locked while they are in the socket's buffer.
    So a kill of this process never leaves a training without a lock.
    """

    def __init__(self, options: Sequence[str] = ()):
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*_CHILD, "--prepare", str(theirs.fileno()), *options],
                stdin=subprocess.DEVNULL,
                stdout=_STDERR,
                pass_fds=[theirs.fileno()],
            )
        self.run: Run

    def __enter__(self) -> "_Preparation":
        return self

    def make(self, arguments: Mapping[str, Any]) -> None:
        """Let the child create the run, or open it if `arguments` has only `run`."""
        try:
            self._socket.sendall(json.dumps(dict(arguments)).encode() + b"\n")
            with self._socket.makefile("rb") as answers:
                line = answers.readline()
            if not line:
                raise WorkerFault(
                    "The process that checks the data was killed, probably because it ran out of "
                    "memory. Use fewer rows, or a smaller base model."
                )
            answer = json.loads(line)
            if "error" in answer:
                raise_from_json(answer)
            self.run = Run(answer["run"])
        except BaseException:
            self.__exit__()
            raise

    def train(self, locks: machine_queue.HeldLocks, options: list[str]) -> int:
        """Let the child train, while it holds the locks. Returns its exit status."""
        message = json.dumps(options).encode() + b"\n"
        with contextlib.suppress(BrokenPipeError):  # it was killed; its exit status says so
            socket.send_fds(self._socket, [message], list(locks))
        return self._process.wait()

    def __exit__(self, *_: object) -> None:
        self._socket.close()  # a child that still waits ends
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # removes the run that it is creating
            self._process.wait()


def supervise_training(
    run: Run,
    own: int,
    ignore_mismatch: bool = False,
    report_to: Sequence[str] = (),
    first_attempt: Callable[[machine_queue.HeldLocks, list[str]], int] | None = None,
) -> events.Ended:
    """Wait for the run's turn, and train it in child processes until it ends.

    After a child ran out of memory, the next one is a new process with a changed plan.

    Args:
        run: what to train.
        own: the descriptor with which the caller holds the run's lock.
        ignore_mismatch: as for `start_training`.
        report_to: names of trackers that receive the losses.
        first_attempt: trains with the given locks and options, and returns the exit status; by
            default a new process does.

    Returns:
        How the training ended; never as Failed.

    Raises:
        UserError: the training ended with an error that the user can fix.
        WorkerFault: there is a bug, or the child was killed.
    """
    with machine_queue.machine_slot(
        run,
        lambda ahead: run.append(_waiting(ahead)),
        lambda: run.requested_stop() is not None,
    ) as held:
        if held is None:
            return _leave_queue(run)
        options = ["--ignore-mismatch"] * ignore_mismatch
        options += [f"--report-to={tool}" for tool in report_to]
        new_process = functools.partial(_attempt, run)
        attempt = first_attempt or (_ready.pop().train if _ready else new_process)
        num_events, killed_for_memory = len(run.history()), False
        while True:
            kills_before = hardware.kills_for_memory()
            status = attempt((own, *held), [*options, *["--killed-for-memory"] * killed_for_memory])
            last = next(reversed(run.history()), None)
            killed_for_memory = (
                status != 0
                and hardware.kills_for_memory() > kills_before
                and not isinstance(last, events.Failed | events.OutOfMemory)
            )
            if not killed_for_memory and not isinstance(last, events.OutOfMemory):
                return _outcome(run, status, num_events)
            run.truncate_partial_event()
            # a new process, because the memory of this one may be fragmented
            attempt = new_process


def _waiting(ahead: int) -> events.Waiting:
    others = "another one is" if ahead == 1 else f"{ahead} others are"
    return events.Waiting(what=f"Waiting for its turn: {others} ahead", before=ahead)


def _attempt(run: Run, locks: machine_queue.HeldLocks, options: list[str]) -> int:
    """Train in a child process, which inherits the locks. Returns its exit status."""
    command = [*_CHILD, str(run.directory), *options]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=_STDERR, pass_fds=locks)
    return process.wait()


def _leave_queue(run: Run) -> events.Ended:
    """The outcome of a run that was stopped while it waited for its turn."""
    steps = steps_of(run.history())
    event_type = events.Paused if run.requested_stop() == "pause" else events.Stopped
    outcome = event_type(step=steps[-1].step if steps else 0)
    run.append(outcome)
    run.clear_stop_request()
    return outcome


def _outcome(run: Run, status: int, num_events: int) -> events.Ended:
    """The outcome that the child wrote after the first `num_events` events."""
    last = next(reversed(run.history()[num_events:]), None)
    if status == 0 and isinstance(last, events.Paused | events.Stopped | events.Finished):
        return last
    if isinstance(last, events.Failed):
        if last.fault:
            raise WorkerFault(last.message)
        raise UserError(last.code, last.message)
    raise WorkerFault(
        f"The process that trained the run {run.name!r} ended unexpectedly (status {status}). "
        "Resume it to continue from its last checkpoint."
    )
