"""One process holds a file lock, and the lock ends with the process."""

import multiprocessing
import subprocess
import sys
import time

import pytest

from peft_space.storage.file_lock import file_lock, is_locked, try_lock

HOLD = """
import sys, time
from pathlib import Path
from peft_space.storage.file_lock import file_lock
with file_lock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock `tmp_path / "lock"`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_process_is_rejected_and_a_killed_holder_frees_the_lock(tmp_path, holder):
    path = tmp_path / "lock"
    assert is_locked(path)
    with pytest.raises(BlockingIOError), file_lock(path, timeout=0.1):
        pass
    with open(path, "a") as file:
        assert not try_lock(file)
    holder.kill()
    holder.wait()
    with file_lock(path, timeout=5):
        assert is_locked(path)
    assert not is_locked(path)


def test_a_missing_lock_file_is_not_locked(tmp_path):
    assert not is_locked(tmp_path / "lock")


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    path = tmp_path / "lock"
    with file_lock(path):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
    try:
        assert not is_locked(path)
    finally:
        child.kill()
        child.join()
