"""Child processes in which a model author's program (a chat template) and a user's rows are worked through, with a limit on time and memory.

Knows nothing of either. A child that does not come back is ended, and dies with its parent.
"""

import ctypes
import gc
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

MOST_BYTES = 2 << 30
"""Memory that a child may take beyond what it was born with."""
_MOST_CHILDREN = 8

_state: Any = None
"""In a child: what `setup` made there."""


class TookTooLong(Exception):
    """A batch was not done in time, or its process died of want of memory."""


class RowLimit(Exception):
    """Raised inside a child when the time for one row, or its memory, is over; `args[0]` is the row's number."""


def in_children(
    setup: Callable[..., Any],
    arguments: tuple[Any, ...],
    work: Callable[[Any, Any], Any],
    batches: Iterable[Any],
    most_children: int,
    seconds: float,
) -> Iterator[Any]:
    """The result of `work(setup(*arguments), batch)` for each batch, in order, from several processes.

    Args:
        most_children: no more processes than this; one for a handful of rows.
        seconds: that one batch may take.

    Raises TookTooLong where a batch does not come back; what `work` raises is raised here.
    """
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    count = max(1, min(_MOST_CHILDREN, most_children, len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1))
    pool = context.Pool(count, _born, (setup, arguments))
    try:
        waiting: deque[Any] = deque()
        for batch in batches:
            waiting.append(pool.apply_async(_do, (work, batch)))
            if len(waiting) > 2 * count:
                yield _result(waiting.popleft(), seconds)
        while waiting:
            yield _result(waiting.popleft(), seconds)
    finally:
        pool.terminate()


def _result(asked: Any, seconds: float) -> Any:
    try:
        return asked.get(seconds)
    except multiprocessing.TimeoutError:
        raise TookTooLong from None


def _born(setup: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    global _state
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: where the parent is killed nobody else would end this one
        with open("/proc/self/statm") as file:
            born_with = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (born_with + MOST_BYTES, resource.RLIM_INFINITY))
    _state = setup(*arguments)
    gc.freeze()  # what the parent had loaded is not looked through for garbage again and again


def _do(work: Callable[[Any, Any], Any], batch: Any) -> Any:
    return work(_state, batch)


class RowWatch:
    """In a child, within `with`: RowLimit is raised where a row takes longer than `seconds`, or all memory.

    Python has to get to it; the limit on the batch covers the rest. One timer that ticks costs less than one set for each row.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._row: int | None = None
        self._since = 0.0

    def __call__(self, row: int | None) -> None:
        """The work on this row begins; None: on none."""
        self._row, self._since = row, time.monotonic()

    def __enter__(self) -> "RowWatch":
        signal.signal(signal.SIGALRM, self._look)
        signal.setitimer(signal.ITIMER_REAL, self._seconds / 4, self._seconds / 4)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if isinstance(error, MemoryError) and self._row is not None:
            raise RowLimit(self._row) from None

    def _look(self, number: int, frame: Any) -> None:
        if self._row is not None and time.monotonic() - self._since > self._seconds:
            raise RowLimit(self._row)
