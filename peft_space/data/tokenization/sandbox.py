"""Child processes in which a model author's program (a chat template) and a user's rows are worked through, with a limit on time and memory.

Knows nothing of either. A child that does not come back is ended, and dies with its parent.
"""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

MOST_BYTES = 2 << 30
"""Memory that a child may take beyond what it was born with."""
_MOST_CHILDREN = 8


class BatchTimeout(Exception):
    """A batch was not done in time, or its process died of want of memory."""


class RowLimit(Exception):
    """Raised inside a child when the time for one row, or its memory, is over; `args[0]` is the row's number."""


def map_in_subprocesses(
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
    count = max(
        1,
        min(
            _MOST_CHILDREN,
            most_children,
            len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        ),
    )
    children = [_Child(context, (setup, arguments, work)) for _ in range(count)]
    try:
        free, busy = deque(children), deque[_Child]()
        for batch in batches:
            if not free:
                free.append(busy.popleft())
                yield free[-1].result(seconds)
            busy.append(free.popleft())
            busy[-1].begin(batch)
        while busy:
            yield busy.popleft().result(seconds)
    finally:
        for child in children:
            child.end()


class _Child:
    """A child process, which has one batch at a time. (A multiprocessing.Pool waits for ever where a child dies at the wrong moment.)"""

    def __init__(self, context: Any, told: tuple[Any, ...]):
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, *told), daemon=True)
        self._process.start()
        theirs.close()  # so that its end shows
        self._since = 0.0

    def begin(self, batch: Any) -> None:
        self._since = time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # the result will say so
            self._pipe.send(batch)

    def result(self, seconds: float) -> Any:
        try:
            if not self._pipe.poll(max(0.0, self._since + seconds - time.monotonic())):
                raise BatchTimeout
            done, value = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise BatchTimeout from None
        if done:
            return value
        raise value

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(
    pipe: Any,
    setup: Callable[..., Any],
    arguments: tuple[Any, ...],
    work: Callable[[Any, Any], Any],
) -> None:
    """What a child does until it is ended."""
    _set_child_limits()
    state, ready = None, False
    while True:
        batch = pipe.recv()
        try:
            if not ready:
                state, ready = setup(*arguments), True
                gc.freeze()  # what the parent had loaded is not looked through for garbage again and again
            answer = (True, work(state, batch))
        except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
            error.add_note(traceback.format_exc())
            answer = (False, error)
        pipe.send(answer)


def _set_child_limits() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(
            1, signal.SIGKILL
        )  # PR_SET_PDEATHSIG: where the parent is killed nobody else would end this one
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (_own_bytes() + MOST_BYTES, resource.RLIM_INFINITY))


def _own_bytes() -> int:
    """The address space that this process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


@contextlib.contextmanager
def resource_limits(seconds: float, most_bytes: int) -> Iterator[None]:
    """Within it the main thread's work ends with TimeoutError after `seconds`, and with MemoryError beyond `most_bytes`.

    Where the work does not let Python get to that, the system ends the process after twice the time. A RowWatch's own limit stays.
    """
    if sys.platform != "linux":
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = _own_bytes() + most_bytes
    timed = (
        threading.current_thread() is threading.main_thread()
        and signal.getitimer(signal.ITIMER_REAL)[0] == 0
    )
    resource.setrlimit(
        resource.RLIMIT_AS, (most if soft == resource.RLIM_INFINITY else min(soft, most), hard)
    )
    if timed:
        before = signal.signal(signal.SIGALRM, _over)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        signal.setitimer(
            signal.ITIMER_PROF, 2 * seconds
        )  # of the processor's time; nothing catches it
    try:
        yield
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _over(number: int, frame: Any) -> None:
    raise TimeoutError


class RowTimer:
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
        if (
            sys.platform == "linux"
        ):  # of the processor's time; this ends the child where Python does not get to the other
            signal.setitimer(signal.ITIMER_PROF, 0 if row is None else self._seconds)

    def __enter__(self) -> "RowTimer":
        signal.signal(signal.SIGALRM, self._look)
        signal.setitimer(signal.ITIMER_REAL, self._seconds / 8, self._seconds / 8)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: Any
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if isinstance(error, MemoryError) and self._row is not None:
            raise RowLimit(self._row) from None

    def _look(self, number: int, frame: Any) -> None:
        if self._row is not None and time.monotonic() - self._since > self._seconds * 3 / 4:
            raise RowLimit(self._row)
