"""Locks between processes that end with the process that holds them."""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_RETRY_SECONDS = 0.05


@contextlib.contextmanager
def file_lock(path: Path, timeout: float | None = None) -> Iterator[int]:
    """Hold the exclusive lock of a file, which is created if it does not exist.

    The lock is released explicitly. Closing the file is not enough: a process that was forked
    in the meantime inherits the descriptor and would keep the lock.

    Args:
        path: the lock file.
        timeout: seconds to wait for another process; None waits forever, 0 does not wait.

    Yields:
        The file descriptor, which a child process can inherit to keep the lock.

    Raises:
        BlockingIOError: another process still holds the lock after `timeout`.
    """
    with open(path, "a") as file:
        if timeout is None:
            fcntl.flock(file, fcntl.LOCK_EX)
        else:
            _lock_within(file, timeout)
        try:
            yield file.fileno()
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def _lock_within(file: IO[str], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not try_lock(file):
        if time.monotonic() >= deadline:
            raise BlockingIOError(f"{file.name} is locked by another process")
        time.sleep(_RETRY_SECONDS)


def try_lock(file: IO[str]) -> bool:
    """Lock an open file exclusively until it is closed. Return False if another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """Return True if a living process holds the file's lock; False if the file does not exist.

    The check itself holds a shared lock for an instant, so a process that locks the file should
    retry: use a `timeout` above 0.
    """
    try:
        with open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            fcntl.flock(file, fcntl.LOCK_UN)
    except FileNotFoundError:
        pass
    return False
