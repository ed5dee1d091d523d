"""Threads that wait for each other sleep while others want the CPUs, and only then."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from peft_space import spinning, verbs
from peft_space.recipe import Recipe
from peft_space.training.prepare import make_run
from peft_space.training.train import train

SPARE = len(os.sched_getaffinity(0)) + 1
"""Threads of the team that lets the others sleep, with the one that it works for."""


def number_of_threads():
    return len(os.listdir("/proc/self/task"))


def soon(is_so):
    """Whether it comes to be so within a minute."""
    until = time.monotonic() + 60
    while time.monotonic() < until and not is_so():
        time.sleep(0.05)
    return is_so()


def test_there_are_more_threads_than_cpus_as_long_as_all_are_to_sleep_and_numbers_stay_the_same():
    torch.ones(1)  # its OpenMP is in the process
    assert spinning._openmp_libraries()
    matrix = torch.randn(300, 300)
    product, before, own = matrix @ matrix, number_of_threads(), torch.get_num_threads()
    with spinning.asleep():
        assert number_of_threads() >= before + SPARE
        assert torch.equal(matrix @ matrix, product)
        assert torch.get_num_threads() == own
    assert soon(lambda: number_of_threads() <= before)


def test_they_sleep_from_when_others_want_the_cpus_until_these_are_done(monkeypatch):
    waited, others = [0.0], threading.Event()

    def waiting(thread):
        waited[0] += 0.5 * spinning._SECONDS_BETWEEN_LOOKS * others.is_set()
        return waited[0]

    monkeypatch.setattr(spinning, "_waited", waiting)
    before = number_of_threads()
    with spinning.while_alone():
        watched = number_of_threads()
        assert watched == before + 1
        time.sleep(3 * spinning._SECONDS_BETWEEN_LOOKS)
        assert number_of_threads() == watched
        others.set()
        assert soon(lambda: number_of_threads() >= watched + SPARE)
        others.clear()
        assert soon(lambda: number_of_threads() == watched)
        others.set()
        assert soon(lambda: number_of_threads() >= watched + SPARE)
    assert soon(lambda: number_of_threads() == before)


def test_where_nothing_tells_of_others_they_sleep(monkeypatch):
    monkeypatch.setattr(spinning, "_waited", lambda thread: None)
    before = number_of_threads()
    with spinning.while_alone():
        assert number_of_threads() >= before + SPARE
    assert soon(lambda: number_of_threads() <= before)


def test_a_thread_beside_a_busy_process_on_its_cpu_is_seen_to_wait():
    if spinning._waited(threading.get_native_id()) is None:
        pytest.skip("this kernel keeps no account of it (schedstat)")
    allowed = os.sched_getaffinity(0)
    cpu = min(allowed)
    busy = subprocess.Popen([sys.executable, "-c", f"import os\nos.sched_setaffinity(0, {{{cpu}}})\nwhile True: pass"])
    os.sched_setaffinity(threading.get_native_id(), {cpu})
    try:
        before = spinning._waited(threading.get_native_id())
        assert soon(lambda: sum(range(100_000)) and spinning._waited(threading.get_native_id()) > before + 0.05)
    finally:
        os.sched_setaffinity(threading.get_native_id(), allowed)
        busy.kill()
        busy.wait()


def test_trainings_and_answers_are_watched(short_run, tmp_path, monkeypatch):
    watched = []
    monkeypatch.setattr(spinning, "_watch", lambda thread, ended: watched.append(thread))
    verbs.compare(str(short_run.directory), ["Hi"])
    verbs.evaluate(str(short_run.directory))
    run = make_run(tmp_path / "run", "demo", Recipe(max_steps=1))
    with run.lock():
        train(run)
    assert watched == 3 * [threading.get_native_id()]
