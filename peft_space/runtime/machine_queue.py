"""First come, first served access to the machine, for everything that needs all of it.

A ticket is a file that is named by its time and locked by the process that waits or works. When
that process ends, however it ends, the ticket no longer counts.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from peft_space import settings
from peft_space.runs.run import Run
from peft_space.storage import file_lock

_START_SECONDS = 60  # a ticket without a process for longer than this has lost it
_POLL_SECONDS = 0.3

#: File descriptors whose locks are a turn. A child that inherits them keeps the turn until it
#: ends, even if its parent is killed.
HeldLocks = tuple[int, ...]


def enqueue(run: Run) -> None:
    """Put a run at the end of the queue, before the process that will train it has started."""
    dequeue(run)
    _new_ticket(_name(run)).write_text(str(run.directory))


def dequeue(run: Run) -> None:
    """Take a run out of the queue."""
    for ticket in _queue().glob(f"*-{_name(run)}"):
        ticket.unlink(missing_ok=True)


def refresh_ticket(run: Run) -> None:
    """Keep the place of a run while a new process starts for it."""
    for ticket in _queue().glob(f"*-{_name(run)}"):
        ticket.touch()


def num_ahead(run: Run) -> int | None:
    """Return how many turns come before that of a run; None if it is not in the queue."""
    waiting = [ticket for ticket in _tickets() if _counts(ticket)]
    places = (i for i, ticket in enumerate(waiting) if ticket.name.endswith(_name(run)))
    return next(places, None)


def others_need_machine() -> bool:
    """Return True if a training, or work of another process, has the machine or waits for it."""
    own = _name(None)
    return any(_counts(ticket) for ticket in _tickets() if not ticket.name.endswith(own))


def orphaned_runs() -> list[Run]:
    """Return the queued runs whose processes have ended, such as after a reboot, in order."""
    runs = []
    for ticket in _tickets():
        if file_lock.is_locked(ticket):
            continue
        directory = ticket.read_text()  # empty if the process itself created the ticket
        if directory and Path(directory, "run.json").is_file():
            runs.append(Run(directory))
        else:
            ticket.unlink(missing_ok=True)
    return runs


@contextmanager
def machine_slot(
    run: Run | None,
    on_wait: Callable[[int], None],
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[HeldLocks | None]:
    """Wait for a turn, and hold it.

    Args:
        run: whose turn; None for any other operation of this process.
        on_wait: called with the number of turns ahead, whenever it changes.
        is_cancelled: called repeatedly; waiting ends when it returns True.

    Yields:
        The locks of the turn; None if it was cancelled first.
    """
    own = next(iter(_queue().glob(f"*-{_name(run)}")), None) if run else None
    own = own or _new_ticket(_name(run))
    with file_lock.file_lock(own) as ticket, open(settings.home() / "machine.lock", "a") as machine:
        reported = None
        try:
            while not is_cancelled():
                ahead = sum(_counts(path) for path in _tickets() if path.name < own.name)
                if ahead == 0 and file_lock.try_lock(machine):
                    yield ticket, machine.fileno()
                    return
                if reported != (reported := max(ahead, 1)):
                    on_wait(reported)
                time.sleep(_POLL_SECONDS)
            yield None
        finally:
            own.unlink(missing_ok=True)


def _name(run: Run | None) -> str:
    if run is None:
        return f"process-{os.getpid()}"
    return hashlib.sha256(str(run.directory).encode()).hexdigest()[:16]


def _queue() -> Path:
    folder = settings.home() / "queue"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _new_ticket(name: str) -> Path:
    return _queue() / f"{time.time_ns():020d}-{name}"


def _tickets() -> list[Path]:
    return sorted(_queue().iterdir())


def _counts(ticket: Path) -> bool:
    """Return True if a process holds the ticket, or may still be starting."""
    try:
        is_new = time.time() - ticket.stat().st_mtime < _START_SECONDS
        return file_lock.is_locked(ticket) or is_new
    except FileNotFoundError:  # its turn is over
        return False
