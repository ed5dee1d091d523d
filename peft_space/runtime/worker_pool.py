"""Runs operations in worker processes, so the page itself never loads a model."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

from peft_space.errors import UserError

_MAX_WORKERS = 2


class WorkerFault(Exception):
    """A bug in another process. Its text is for the user; that process has logged the traceback."""


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
    """A pool of worker processes. A request uses an idle one, or starts one, or waits."""

    def __init__(self, max_workers: int = _MAX_WORKERS):
        self._idle: list[subprocess.Popen[str]] = []
        self._slots = threading.Semaphore(max_workers)

    def call(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """Return the result of an operation.

        Raises:
            UserError: as the operation raised it.
            WorkerFault: the operation has a bug, or its process was killed.
        """
        *_, last = self.stream(verb, **arguments)
        return last["result"]

    def stream(self, verb: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        """Run an operation, and report its progress.

        Closing the iterator early kills the process that does the work.

        Yields:
            {"report": …} at least every second, empty if there is nothing new, so that the caller
            can close the iterator; then {"result": …}.
        """
        with self._slots:
            worker = self._idle_worker()
            try:
                yield from _ask(worker, {"verb": verb, "arguments": arguments})
            except UserError:
                self._idle.append(worker)
                raise
            except BaseException:
                _kill(worker)
                raise
            self._idle.append(worker)

    def warm(self) -> None:
        """Start a worker and import what checking data needs, before the first visitor waits."""
        if not self._idle and self._slots.acquire(blocking=False):
            try:
                worker = _start_worker()
                for _ in _ask(worker, {"verb": "warm", "arguments": {}}):
                    pass
                self._idle.append(worker)
            finally:
                self._slots.release()

    def _idle_worker(self) -> subprocess.Popen[str]:
        while True:
            try:
                worker = self._idle.pop()
            except IndexError:
                return _start_worker()
            if worker.poll() is None:  # the system may have killed an idle one for its memory
                return worker

    def close(self) -> None:
        """End the idle workers."""
        while self._idle:
            _kill(self._idle.pop())


def _kill(worker: subprocess.Popen[str]) -> None:
    worker.kill()
    worker.wait()


def _start_worker() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "peft_space.operations.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )


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
        "The worker process was killed, probably because it ran out of memory. Choose a smaller "
        "model or a shorter length and try again."
    )
