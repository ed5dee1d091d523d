"""A file or folder is written completely or not at all."""

import hashlib

import pytest

from peft_space.errors import UserError
from peft_space.storage.atomic_io import atomic_directory, atomic_file, sha256_file, write_text


def test_a_directory_appears_only_when_it_is_complete(tmp_path):
    target = tmp_path / "new" / "out"
    with atomic_directory(target) as folder:
        (folder / "file").write_text("a")
        assert not target.exists()
    assert (target / "file").read_text() == "a"
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_an_empty_directory_is_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    with atomic_directory(tmp_path / "out") as folder:
        (folder / "file").write_text("a")
    assert (tmp_path / "out" / "file").read_text() == "a"


def test_nothing_is_left_after_an_error(tmp_path):
    def fail():
        with atomic_directory(tmp_path / "out") as folder:
            (folder / "file").write_text("a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_existing_content_is_never_overwritten(tmp_path, kind):
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
    (out / "old" if kind == "folder" else out).write_text("old")
    with pytest.raises(UserError) as error, atomic_directory(out, "Take another one."):
        pass
    assert error.value.code == "machine.folder_not_empty"
    assert str(error.value).startswith(str(out))
    assert str(error.value).endswith("Take another one.")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("private", "mode"), [(False, 0o755), (True, 0o700)])
def test_a_private_directory_is_closed_to_other_users(tmp_path, private, mode):
    with atomic_directory(tmp_path / "out", private=private):
        pass
    assert (tmp_path / "out").stat().st_mode & 0o777 == mode


def test_a_failed_write_keeps_the_old_text(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file", "old")]


def test_the_digest_of_a_file_is_its_sha_256(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_file(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_appears_only_when_it_is_complete(tmp_path, shared):
    path = tmp_path / "file"

    def fail():
        with atomic_file(path, shared) as aside:
            aside.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with atomic_file(path, shared) as aside:
        aside.write_text("whole")
        assert not path.exists()
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "whole"
