"""Whose turn it is: what takes the whole machine goes one after the other, in the order in which it was asked for.

A ticket is a file named by its time and locked by the process that waits or works; when that ends, however it ends, the ticket counts no more.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from peft_space import settings
from peft_space.runs.run import Run

_START_SECONDS = 60
"""A ticket whose process has not come for longer than this has lost it."""

Held = tuple[int, ...]
"""File descriptors whose locks are a turn. A child that inherits them keeps the turn until it ends, even where its parent is killed."""


def enqueue(run: Run) -> None:
    """Put a run at the end of the queue, before the process that will train it has started."""
    dequeue(run)
    _new_ticket(_name(run)).write_text(str(run.directory))


def dequeue(run: Run) -> None:
    """Take a run out of the queue."""
    for ticket in _queue().glob(f"*-{_name(run)}"):
        ticket.unlink(missing_ok=True)


def refresh_ticket(run: Run) -> None:
    """Let the ticket of a run count while a new process starts for it, so that none of a later one overtakes it."""
    for ticket in _queue().glob(f"*-{_name(run)}"):
        ticket.touch()


def num_ahead(run: Run) -> int | None:
    """How many turns come before that of a run; None where it does not wait."""
    waiting = [path for path in _tickets() if _counts(path)]
    places = [place for place, path in enumerate(waiting) if path.name.endswith(_name(run))]
    return places[0] if places else None


def orphaned_runs() -> list[Run]:
    """Runs that were in the queue when their processes ended, as all do with the machine; in the order in which they were asked for."""
    runs = []
    for ticket in _tickets():
        if _is_locked(ticket):
            continue
        directory = (
            ticket.read_text()
        )  # nothing where nobody put it into the queue but the process itself
        if directory and Path(directory, "run.json").is_file():
            runs.append(Run(directory))
        else:
            ticket.unlink(missing_ok=True)
    return runs


@contextmanager
def machine_slot(
    run: Run | None, tell: Callable[[int], None], leave: Callable[[], bool] = lambda: False
) -> Iterator[Held | None]:
    """Wait for the turn of a run, or of something else, and hold it. Yields None where it was to leave before that.

    Args:
        tell: called with the number of turns that come before, whenever that changes.
        leave: asked again and again whether to wait any longer.
    """
    known = next(iter(_queue().glob(f"*-{_name(run)}")), None) if run else None
    with (
        open(known or _new_ticket(_name(run)), "a+") as ticket,
        open(settings.home() / "machine.lock", "a") as machine,
    ):
        fcntl.flock(ticket, fcntl.LOCK_EX)
        told = None
        try:
            while not leave():
                if (before := _before(Path(ticket.name))) == 0 and _lock(machine):
                    yield ticket.fileno(), machine.fileno()
                    return
                if told != (told := max(before, 1)):
                    tell(told)
                time.sleep(0.3)
            yield None
        finally:
            Path(ticket.name).unlink(missing_ok=True)


def _name(run: Run | None) -> str:
    return (
        hashlib.sha256(str(run.directory).encode()).hexdigest()[:16]
        if run
        else f"process-{os.getpid()}"
    )


def _queue() -> Path:
    folder = settings.home() / "queue"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _new_ticket(name: str) -> Path:
    return _queue() / f"{time.time_ns():020d}-{name}"


def _tickets() -> list[Path]:
    return sorted(_queue().iterdir())


def _before(own: Path) -> int:
    return sum(_counts(path) for path in _tickets() if path.name < own.name)


def _counts(ticket: Path) -> bool:
    try:
        return _is_locked(ticket) or time.time() - ticket.stat().st_mtime < _START_SECONDS
    except FileNotFoundError:  # its turn is over
        return False


def _is_locked(ticket: Path) -> bool:
    try:
        with open(ticket) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def _lock(file: object) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[arg-type]
    except BlockingIOError:
        return False
    return True
