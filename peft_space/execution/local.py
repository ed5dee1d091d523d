"""Runs verbs on this machine, outside the page: trainings in processes that outlive it, everything else in worker processes it keeps."""

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

from peft_space import events, settings
from peft_space.errors import UserError
from peft_space.run import Run

_MOST_WORKERS = 2


class WorkerFault(Exception):
    """Something failed in a worker that is not the user's mistake; its text says so, the worker's log has the traceback."""


# Trainings


def start_training(run: Run) -> None:
    """Begin or go on with training in a process of its own, which survives the page, writes to the run and waits for its turn."""
    if run.is_locked():
        raise UserError(f"The run {run.name!r} is being trained already. Wait for it, or stop it first.")
    run.forget_request()
    run.append(events.Queued())
    with open(run.path("worker.log"), "a") as log:
        subprocess.Popen(
            [sys.executable, "-m", "peft_space", "train", "--resume", str(run.directory)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


@contextlib.contextmanager
def machines_turn() -> Iterator[None]:
    """Wait until no other training of this home holds the machine, and hold it; it ends with the process, however it ends."""
    settings.home().mkdir(parents=True, exist_ok=True)
    with open(settings.home() / "machine.lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# Everything else


class Workers:
    """The worker processes of a page. A request takes a free one, or starts one, or waits."""

    def __init__(self, most: int = _MOST_WORKERS):
        self._free: list[subprocess.Popen[str]] = []
        self._places = threading.Semaphore(most)

    def call(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """The result of a verb of `peft_space.verbs`. Raises UserError with the verb's own words, WorkerFault where it is our fault."""
        *_, last = self.stream(verb, **arguments)
        return last["result"]

    def stream(self, verb: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        """{"report": …} again and again, then {"result": …}. Closing the iterator early ends the work, by ending its process."""
        with self._places:
            worker = self._free.pop() if self._free else _start_worker()
            try:
                yield from _ask(worker, {"verb": verb, "arguments": arguments})
            except UserError:
                self._free.append(worker)
                raise
            except BaseException:
                worker.kill()
                worker.wait()
                raise
            self._free.append(worker)

    def close(self) -> None:
        """End the idle workers."""
        while self._free:
            worker = self._free.pop()
            worker.kill()
            worker.wait()


def _start_worker() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "peft_space.execution.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


def _ask(worker: subprocess.Popen[str], request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(json.dumps(request) + "\n")
    worker.stdin.flush()
    for line in worker.stdout:
        message = json.loads(line)
        if "error" in message:
            raise UserError(message["error"]) if message["users"] else WorkerFault(message["error"])
        yield message
        if "result" in message:
            return
    raise WorkerFault(
        "The process that did this ended, most likely for want of memory. Choose a smaller model or a shorter length and try again."
    )
