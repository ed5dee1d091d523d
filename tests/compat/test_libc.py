"""The calls to the C library that the app makes work as it expects."""

import ctypes
import subprocess
import sys
import time

import psutil
import pytest

from peft_space.compat.libc import release_freed_memory


def test_the_c_library_takes_back_freed_memory():
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("not glibc")
    assert ctypes.CDLL(None).malloc_trim(0) in (0, 1)
    release_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    release_freed_memory()


PARENT = """
import subprocess, sys, time
child = '''
import time
from peft_space.compat.libc import die_with_parent
die_with_parent()
print("ready", flush=True)
time.sleep(60)
'''
process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True)
process.stdout.readline()
print(process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="uses prctl")
def test_a_child_dies_when_its_parent_is_killed():
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
