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
_BESIDE_OTHERS, _ALONE = 0.2, 0.05
"""Shares of the time in which a thread that computes waits for a CPU: 0.01 alone, 0.3 and more beside one other busy process."""


@contextlib.contextmanager
def while_alone() -> Iterator[None]:
    """In here the calling thread computes: those that work for it spin, and sleep while others want the CPUs, too."""
    thread, ended = threading.get_native_id(), threading.Event()
    if _waited(thread) is None:  # nothing tells of others
        with asleep():
            yield
        return
    watching = threading.Thread(target=_watch, args=(thread, ended), daemon=True)
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


def _watch(thread: int, ended: threading.Event) -> None:
    looks = _looks(thread, ended)
    for share in looks:
        if share > _BESIDE_OTHERS:
            with asleep():
                any(share < _ALONE for share in looks)  # look until it is alone again


def _looks(thread: int, ended: threading.Event) -> Iterator[float]:
    """From one look to the next, the share of the time in which a thread waited for a CPU."""
    then, before = time.monotonic(), _waited(thread)
    while not ended.wait(_SECONDS_BETWEEN_LOOKS):
        now, waited = time.monotonic(), _waited(thread)
        yield ((waited or 0.0) - (before or 0.0)) / (now - then)
        then, before = now, waited


def _waited(thread: int) -> float | None:
    """Seconds in which a thread of this process could have run and had no CPU, so far; None where the system does not tell."""
    file = Path(f"/proc/self/task/{thread}/schedstat")
    if not file.is_file():
        return None
    ran, waited, _ = map(int, file.read_text().split())
    return waited / 1e9 if ran else None


def _hold_spare_team(there: threading.Event, ended: threading.Event) -> None:
    """Threads of OpenMP belong to the thread that they work for, and end with it."""
    try:
        for library in _openmp_libraries():
            harmless = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p)
            ctypes.CDLL(library).GOMP_parallel(harmless, None, len(os.sched_getaffinity(0)) + 1, 0)
    finally:
        there.set()
    ended.wait()


def _openmp_libraries() -> list[str]:
    """GNU's OpenMP in this process, as often as it is loaded."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.is_file() else []
    return sorted({line.split(maxsplit=5)[5] for line in lines if "/libgomp" in line})
