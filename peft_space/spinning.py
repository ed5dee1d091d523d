"""How OpenMP's threads wait for each other: they spin as long as nothing else wants their CPUs, and sleep beside other work.

A thread that spins is there at once and keeps its CPU from others; one that sleeps wakes late (`benchmarks/waiting_threads.py`). GNU's OpenMP
reads once how long they spin, in `settings.prepare_libraries`; but where a process has more such threads than CPUs, and OMP_WAIT_POLICY is
passive, they sleep at once (manual of libgomp, GOMP_SPINCOUNT). So a spare team of threads, which does nothing, lets all of them sleep.
"""

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

_SECONDS_BETWEEN_LOOKS = 0.2
_BESIDE_OTHERS, _ALONE = 0.15, 0.05
"""Shares of the time in which the thread of a process that waits most for a CPU does so: alone 0.04 at the most on two cores; beside one other busy
process 0.26 and more where they spin, 0.14 and more where they sleep."""


@contextlib.contextmanager
def while_alone() -> Iterator[None]:
    """In here this process computes: its threads spin, and sleep while others want the CPUs, too."""
    if _waited() is None:  # nothing tells of others
        with asleep():
            yield
        return
    ended = threading.Event()
    watching = threading.Thread(target=_watch, args=(ended,), daemon=True)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()


@contextlib.contextmanager
def asleep() -> Iterator[None]:
    """In here threads sleep while they wait for each other."""
    there, ended = threading.Event(), threading.Event()
    holding = threading.Thread(target=_hold_spare_team, args=(there, ended), daemon=True)
    holding.start()
    there.wait()
    try:
        yield
    finally:
        ended.set()
        holding.join()


def _watch(ended: threading.Event) -> None:
    looks = _looks(ended)
    for share in looks:
        if share > _BESIDE_OTHERS:
            with asleep():
                any(share < _ALONE for share in looks)  # look until it is alone again


def _looks(ended: threading.Event) -> Iterator[float]:
    """From one look to the next, the share of the time that the thread waited for a CPU that waited most."""
    then, before = time.monotonic(), _waited()
    while not ended.wait(_SECONDS_BETWEEN_LOOKS):
        now, waited = time.monotonic(), _waited()
        if before and waited:
            yield max((waited[thread] - before[thread] for thread in before.keys() & waited.keys()), default=0.0) / (now - then)
        then, before = now, waited


def _waited() -> dict[str, float] | None:
    """Seconds in which each thread of this process could have run and had no CPU, so far; None where the system does not tell."""
    waited = {}
    try:
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                _, nanoseconds, times = map(int, Path(f"/proc/self/task/{thread}/schedstat").read_text().split())
                waited[thread] = nanoseconds / 1e9 if times else 0.0
    except (OSError, ValueError):
        return None
    return waited or None


def _hold_spare_team(there: threading.Event, ended: threading.Event) -> None:
    """Threads of OpenMP belong to the thread that they work for, and end with it."""
    try:
        for library in _openmp_libraries():
            size = len(os.sched_getaffinity(0)) + 1
            if _can_start(size):
                harmless = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p)
                ctypes.CDLL(library).GOMP_parallel(harmless, None, size, 0)
    finally:
        there.set()
    ended.wait()


def _can_start(number: int) -> bool:
    """Whether so many threads can be started: where they cannot, OpenMP ends the process."""
    ended, started = threading.Event(), []
    try:
        for _ in range(number):
            started.append(threading.Thread(target=ended.wait, daemon=True))
            started[-1].start()
    except RuntimeError:
        return False
    finally:
        ended.set()
        for thread in started:
            if thread.ident:
                thread.join()
    return True


def _openmp_libraries() -> list[str]:
    """GNU's OpenMP in this process, as often as it is loaded."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.is_file() else []
    return sorted({line.split(maxsplit=5)[5] for line in lines if "/libgomp" in line})
