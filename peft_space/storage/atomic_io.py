"""Writes that a kill or a power cut cannot halve: everything is on the disk before it takes its place under one name.

Knows nothing of what is written.
"""

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; a reader finds the old text or the new one."""
    aside = path.with_name(f".{path.name}.new")
    try:
        with open(aside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def atomic_rename(aside: Path, target: Path) -> None:
    """Let the folder `aside`, with all that is in it, take the name `target`, where there may be an empty folder. Raises OSError otherwise."""
    sync_tree(aside)
    os.replace(aside, target)
    sync(target.parent)


def sync_tree(folder: Path) -> None:
    """Bring every file of a folder, and which files there are, to the disk."""
    for path in [*folder.rglob("*"), folder]:
        if not path.is_symlink():
            sync(path)


def sync(path: Path) -> None:
    """Bring a file to the disk, or of a folder which names it holds."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
