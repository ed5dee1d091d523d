"""Writes files and folders that are complete or absent, even after a kill or a power cut."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from peft_space.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step, on the disk too: a reader sees the old text or the new text."""
    with atomic_file(path) as aside, open(aside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    sync(path.parent)


@contextlib.contextmanager
def atomic_file(path: Path, shared: bool = False) -> Iterator[Path]:
    """Yield another path. Its file becomes `path` at the end, or is removed after an error.

    Args:
        path: the file to create or replace.
        shared: other processes may write the same file at the same time.
    """
    aside = path.with_name(f".{path.name}.{os.getpid() if shared else 'new'}")
    try:
        yield aside
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_directory(
    out: str | Path, advice: str = "Choose another folder.", private: bool = False
) -> Iterator[Path]:
    """Yield an empty folder that is renamed to `out` at the end, or removed after an error.

    Args:
        out: the folder to create; it may exist if it is empty.
        advice: the last sentence of the error message.
        private: keep the folder unreadable for other users of the machine.

    Raises:
        UserError: `out` already contains something.
    """
    target = Path(out).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        message = f"{out} already exists and is not empty. {advice}"
        raise UserError("machine.folder_not_empty", message)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield aside
        if not private:  # mkdtemp makes it private
            aside.chmod(0o755)
        atomic_rename(aside, target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def atomic_rename(aside: Path, target: Path) -> None:
    """Rename a folder after its files are on the disk.

    Args:
        aside: the complete folder.
        target: the new name; it may be an empty folder.

    Raises:
        OSError: `target` is a file or a folder that is not empty.
    """
    sync_tree(aside)
    os.replace(aside, target)
    sync(target.parent)


def sync_tree(folder: Path) -> None:
    """Flush every file of a folder and its directory entries to the disk."""
    for path in [*folder.rglob("*"), folder]:
        if not path.is_symlink():
            sync(path)


def sync(path: Path) -> None:
    """Flush a file, or the directory entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
