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
from peft_space.training import plan as planning
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

    def waiting():
        waited[0] += 0.5 * spinning._SECONDS_BETWEEN_LOOKS * others.is_set()
        return {"1": 0.0, "2": waited[0]}

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
    monkeypatch.setattr(spinning, "_waited", lambda: None)
    before = number_of_threads()
    with spinning.while_alone():
        assert number_of_threads() >= before + SPARE
    assert soon(lambda: number_of_threads() <= before)


def test_where_no_more_threads_can_be_started_the_process_goes_on():
    """OpenMP would end it. The limit is on all processes of a user, so that it binds in one of another user alone."""
    if os.geteuid():
        pytest.skip("only root can be another user")
    script = (
        "import os, resource, torch\n"
        "from peft_space import spinning\n"
        "os.setuid(54321)\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (2, 2))\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "with spinning.asleep():\n"
        "    print(len(os.listdir('/proc/self/task')) - before, spinning._can_start(3))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.stdout == "1 False\n", done.stderr


def test_a_thread_beside_a_busy_process_on_its_cpu_is_seen_to_wait():
    if spinning._waited() is None:
        pytest.skip("this kernel keeps no account of it (schedstat)")
    own, allowed = str(threading.get_native_id()), os.sched_getaffinity(0)
    cpu = min(allowed)
    busy = subprocess.Popen([sys.executable, "-c", f"import os\nos.sched_setaffinity(0, {{{cpu}}})\nwhile True: pass"])
    os.sched_setaffinity(int(own), {cpu})
    try:
        before = spinning._waited()[own]
        assert soon(lambda: sum(range(100_000)) and spinning._waited()[own] > before + 0.05)
    finally:
        os.sched_setaffinity(int(own), allowed)
        busy.kill()
        busy.wait()


def test_trainings_and_answers_are_watched(short_run, tmp_path, monkeypatch):
    watched = []
    monkeypatch.setattr(spinning, "_watch", lambda ended: watched.append(threading.current_thread()))
    verbs.compare(str(short_run.directory), ["Hi"])
    verbs.evaluate(str(short_run.directory))
    verbs.spectrum(str(short_run.directory))
    assert len(watched) == 3
    monkeypatch.setattr(planning, "_choose_threads", lambda *_: (2, ""))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    run = make_run(tmp_path / "run", "demo", Recipe(max_steps=1))
    with run.lock():
        train(run)
    assert len(watched) == 4
