"""What was worked out from data is kept whole, found again, and removed when nobody uses it; many at once do not trip over each other."""

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


def test_what_a_killed_process_left_half_made_is_removed_by_the_next(tmp_path):
    get_or_create("things", "a1", write)
    things = tmp_path / "home" / "cache" / "things"
    ended = subprocess.Popen(["true"])
    ended.wait()
    for pid in (ended.pid, os.getpid()):
        (things / f".making-{pid}-x").mkdir()
    assert (get_or_create("things", "b2", write) / "whole").read_text() == "yes"
    assert {path.name for path in things.iterdir()} == {"a1", "b2", f".making-{os.getpid()}-x"}


def test_what_was_made_just_now_is_there_to_be_opened_however_much_others_make():
    made = [get_or_create("things", key, write) for key in keys(30)]
    assert all((folder / "whole").read_text() == "yes" for folder in made)


def test_of_what_nobody_uses_the_newest_stay():
    made = [get_or_create("things", key, write) for key in keys(30)]
    for age, folder in enumerate(reversed(made)):
        os.utime(folder, (time.time() - 100 - age,) * 2)
    last = get_or_create("things", "ff", write)
    assert [folder for folder in made if folder.is_dir()] == made[19:]
    assert last.is_dir()


def test_many_who_make_and_remove_the_same_at_once_do_not_fail(monkeypatch):
    monkeypatch.setattr(content_cache, "_SECONDS_TO_OPEN", -1)
    with ThreadPoolExecutor(8) as pool:
        assert (
            len(list(pool.map(lambda key: get_or_create("things", key, write), keys(40) * 10)))
            == 400
        )
