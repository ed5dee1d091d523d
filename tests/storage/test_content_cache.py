"""The content cache stores complete entries, reuses them and removes the least recently used."""

import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

from peft_space.storage import content_cache
from peft_space.storage.content_cache import get_or_create


def write(folder):
    (folder / "whole").write_text("yes")


def keys(number):
    return [f"{key:02x}" for key in range(number)]


def test_an_incomplete_entry_of_a_killed_process_is_removed(tmp_path):
    get_or_create("things", "a1", write)
    things = tmp_path / "home" / "cache" / "things"
    ended = subprocess.Popen(["true"])
    ended.wait()
    for pid in (ended.pid, os.getpid()):
        (things / f".making-{pid}-x").mkdir()
    assert (get_or_create("things", "b2", write) / "whole").read_text() == "yes"
    assert {path.name for path in things.iterdir()} == {"a1", "b2", f".making-{os.getpid()}-x"}


def test_a_new_entry_stays_however_many_others_are_created():
    folders = [get_or_create("things", key, write) for key in keys(30)]
    assert all((folder / "whole").read_text() == "yes" for folder in folders)


def test_the_most_recently_used_entries_stay():
    folders = [get_or_create("things", key, write) for key in keys(30)]
    for age, folder in enumerate(reversed(folders)):
        os.utime(folder, (time.time() - 100 - age,) * 2)
    last = get_or_create("things", "ff", write)
    assert [folder for folder in folders if folder.is_dir()] == folders[19:]
    assert last.is_dir()


def test_concurrent_creation_and_removal_of_the_same_entries_does_not_fail(monkeypatch):
    monkeypatch.setattr(content_cache, "_MIN_SECONDS_UNUSED", -1)
    with ThreadPoolExecutor(8) as pool:
        create = lambda key: get_or_create("things", key, write)  # noqa: E731
        assert len(list(pool.map(create, keys(40) * 10))) == 400
