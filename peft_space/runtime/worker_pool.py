"""Runs verbs on this machine, outside the page, in worker processes that it keeps. Trainings have processes of their own: `trainings.py`."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

from peft_space.errors import UserError

_MOST_WORKERS = 2


class WorkerFault(Exception):
    """Something failed in a worker that is not the user's mistake; its text says so, the worker's log has the traceback."""


def raise_from_json(message: dict[str, Any]) -> NoReturn:
    """Raise what `errors.error_json` has written in another process.

    Raises:
        UserError: the user can fix it.
        WorkerFault: it is a bug; the process in which it happened has logged the traceback.
    """
    if message["users"]:
        raise UserError(message["code"], message["error"])
    raise WorkerFault(message["error"])


class Workers:
    """The worker processes of a page. A request takes a free one, or starts one, or waits."""

    def __init__(self, most: int = _MOST_WORKERS):
        self._free: list[subprocess.Popen[str]] = []
        self._places = threading.Semaphore(most)

    def call(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """The result of a verb of `peft_space.operations`. Raises UserError with the verb's own words, WorkerFault where it is our fault."""
        *_, last = self.stream(verb, **arguments)
        return last["result"]

    def stream(self, verb: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        """{"report": …} again and again, then {"result": …}. Closing the iterator early ends the work, by ending its process.

        Every second there is at least an empty report, so that whoever wants to close the iterator gets the occasion.
        """
        with self._places:
            worker = self._free_worker()
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

    def warm(self) -> None:
        """Have a free worker that has imported what a check of data needs, so that the first visitor's file need not wait for it."""
        if not self._free and self._places.acquire(blocking=False):
            try:
                worker = _start_worker()
                for _ in _ask(worker, {"verb": "warm", "arguments": {}}):
                    pass
                self._free.append(worker)
            finally:
                self._places.release()

    def _free_worker(self) -> subprocess.Popen[str]:
        while True:
            try:
                worker = self._free.pop()
            except IndexError:
                return _start_worker()
            if worker.poll() is None:  # the system may have ended an idle one for its memory
                return worker

    def close(self) -> None:
        """End the idle workers."""
        while self._free:
            worker = self._free.pop()
            worker.kill()
            worker.wait()


def _start_worker() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "peft_space.operations.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
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
            raise_from_json(message)
        yield message
        if "result" in message:
            return
    raise WorkerFault(
        "The process that did this ended, most likely for want of memory. Choose a smaller model or a shorter length and try again."
    )
