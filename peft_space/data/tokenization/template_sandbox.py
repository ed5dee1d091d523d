"""Child processes with limits on time and memory, for chat templates and rows of strangers."""

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
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import psutil

_MAX_BYTES = 2 << 30
"""Memory that a child may allocate in addition to what it inherits."""
_MAX_CHILDREN = 8
_PR_SET_PDEATHSIG = 1
_MAX_WAITING = 10
"""Times its CPU time that a batch may take on a busy machine."""

_State = TypeVar("_State")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class BatchTimeout(Exception):
    """A batch exceeded its time limit, or its process ran out of memory."""


class RowLimit(Exception):
    """A row exceeded its time or memory limit in a child; `args[0]` is the row's number."""


def map_in_subprocesses(
    setup: Callable[..., _State],
    arguments: tuple[Any, ...],
    work: Callable[[_State, _Item], _Result],
    batches: Iterable[_Item],
    max_children: int,
    seconds: float,
) -> Generator[_Result]:
    """Yield `work(setup(*arguments), batch)` for each batch, in order, from child processes.

    Args:
        setup: prepares the state of a child, once.
        arguments: arguments of `setup`.
        work: processes one batch.
        batches: the input.
        max_children: upper limit of processes, such as 1 for a few rows.
        seconds: time limit of one batch.

    Raises:
        BatchTimeout: a batch exceeded its limits.
        Exception: whatever `work` raised.
    """
    is_linux = sys.platform == "linux"
    context = multiprocessing.get_context("fork" if is_linux else "spawn")
    num_cpus = len(os.sched_getaffinity(0)) if is_linux else os.cpu_count() or 1
    count = max(1, min(_MAX_CHILDREN, max_children, num_cpus))
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
    """A child process with one batch at a time.

    A multiprocessing.Pool waits forever if a child dies at the wrong moment.
    """

    def __init__(self, context: Any, task: tuple[Any, ...]):
        self._pipe, child_pipe = context.Pipe()
        self._process = context.Process(target=_serve, args=(child_pipe, *task), daemon=True)
        self._process.start()
        child_pipe.close()  # otherwise the end of the child would not close the pipe
        self._begun = self._cpu_begun = 0.0

    def begin(self, batch: Any) -> None:
        self._begun, self._cpu_begun = time.monotonic(), self._cpu_seconds()
        with contextlib.suppress(BrokenPipeError):  # `result` reports it
            self._pipe.send(batch)

    def result(self, seconds: float) -> Any:
        try:
            self._wait(seconds)
            is_done, value = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise BatchTimeout from None
        if is_done:
            return value
        raise value

    def _wait(self, seconds: float) -> None:
        """Wait for an answer until the batch has taken `seconds` of CPU time.

        On a busy machine that takes longer than `seconds`.
        """
        wait = self._begun + seconds - time.monotonic()
        while not self._pipe.poll(max(0.0, wait)):
            wait = seconds - (self._cpu_seconds() - self._cpu_begun)
            if wait <= 0 or time.monotonic() - self._begun > _MAX_WAITING * seconds:
                raise BatchTimeout

    def _cpu_seconds(self) -> float:
        """CPU seconds that the child has used; infinity if it has ended."""
        try:
            used = psutil.Process(self._process.pid).cpu_times()
        except psutil.NoSuchProcess:
            return float("inf")
        return used.user + used.system

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(
    pipe: Connection,
    setup: Callable[..., Any],
    arguments: tuple[Any, ...],
    work: Callable[[Any, Any], Any],
) -> None:
    """Process batches in a child until the parent kills it."""
    _set_child_limits()
    gc.freeze()  # a collection would copy each page that is shared with the parent
    state, is_ready = None, False
    while True:
        batch = pipe.recv()
        try:
            if not is_ready:
                state, is_ready = setup(*arguments), True
            answer = (True, work(state, batch))
        except Exception as error:  # noqa: BLE001 - the parent raises it
            error.add_note(traceback.format_exc())
            answer = (False, error)
        pipe.send(answer)


def _set_child_limits() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    if sys.platform == "linux":
        die_with_parent()
        limit = address_space_bytes() + _MAX_BYTES
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends, even if the parent is killed."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def address_space_bytes() -> int:
    """Return the size of this process's address space."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _limit_memory(max_bytes: int) -> tuple[int, int]:
    """Limit the memory that this process may allocate from now on. Returns the limits before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = address_space_bytes() + max_bytes
    limit = limit if soft == resource.RLIM_INFINITY else min(soft, limit)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    return soft, hard


@contextlib.contextmanager
def resource_limits(seconds: float, max_bytes: int) -> Iterator[None]:
    """Limit the time and memory of the main thread; does nothing outside Linux.

    If Python cannot react, as inside a long C call, Linux ends the process after twice the time.
    Within the rows of a `RowTimer`, its limits are in force instead.

    Args:
        seconds: time limit.
        max_bytes: memory that may be allocated in addition to the current memory.

    Raises:
        TimeoutError: the time limit is exceeded.
        MemoryError: the memory limit is exceeded.
    """
    if sys.platform != "linux" or RowTimer.is_running:
        yield
        return
    soft, hard = _limit_memory(max_bytes)
    is_main = threading.current_thread() is threading.main_thread()
    use_timer = is_main and signal.getitimer(signal.ITIMER_REAL)[0] == 0
    if use_timer:
        handler = signal.signal(signal.SIGALRM, _raise_timeout)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        signal.setitimer(signal.ITIMER_PROF, 2 * seconds)  # CPU time; the signal is not handled
    try:
        yield
    finally:
        if use_timer:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _raise_timeout(number: int, frame: Any) -> None:
    raise TimeoutError


_ROWS_PER_LIMIT = 10
"""Rows between two looks at the memory in use. A look takes as long as a tenth of a row."""


class RowTimer:
    """Context manager in a child that raises RowLimit for a row that takes too much.

    A periodic timer costs less than a timer for each row. If Python cannot react, Linux ends the
    child after `seconds` of CPU time.

    Args:
        seconds: time limit of a row.
        max_bytes: memory that rows may allocate in addition to the current memory.
    """

    is_running = False
    """True while the limits of a row are in force in this process."""

    def __init__(self, seconds: float, max_bytes: int):
        self._seconds, self._max_bytes = seconds, max_bytes
        self._row: int | None = None
        self._since = 0.0
        self._num_rows = 0
        self._before: tuple[int, int] | None = None

    def __call__(self, row: int | None) -> None:
        """Start the limits of a row, or end them if `row` is None."""
        self._row, self._since = row, time.process_time()
        if sys.platform != "linux":
            return
        signal.setitimer(signal.ITIMER_PROF, 0 if row is None else self._seconds)
        if row is None or self._num_rows % _ROWS_PER_LIMIT == 0:
            self._free_memory()
        if row is not None:
            self._before = self._before or _limit_memory(self._max_bytes)
            self._num_rows += 1
        RowTimer.is_running = row is not None

    def __enter__(self) -> "RowTimer":
        signal.signal(signal.SIGALRM, self._check)
        signal.setitimer(signal.ITIMER_REAL, self._seconds / 8, self._seconds / 8)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: Any
    ) -> None:
        row = self._row
        signal.setitimer(signal.ITIMER_REAL, 0)
        self(None)
        if isinstance(error, MemoryError) and row is not None:
            raise RowLimit(row) from None

    def _free_memory(self) -> None:
        """End the limit of memory."""
        if self._before:
            resource.setrlimit(resource.RLIMIT_AS, self._before)
        self._before = None

    def _check(self, number: int, frame: Any) -> None:
        if self._row is not None and time.process_time() - self._since > self._seconds * 3 / 4:
            raise RowLimit(self._row)
