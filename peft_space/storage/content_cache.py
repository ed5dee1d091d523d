"""Content-addressed cache on the disk: results derived from a dataset, stored under its digest."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from peft_space import settings
from peft_space.storage import atomic_io

_MAX_ENTRIES = 12
"""Entries of each kind; the least recently used ones are removed."""
_MIN_SECONDS_UNUSED = 60
"""Another process opens an entry right after creating it, so younger entries are never removed."""


def get_or_create(kind: str, key: str, write: Callable[[Path], None]) -> Path:
    """Return the cache folder of a key, creating it if it does not exist.

    Args:
        kind: the kind of content, such as `tokens`.
        key: a digest of everything that determines the content.
        write: fills the folder that it receives; the result is stored completely or not at all.
    """
    folder = settings.home() / "cache" / kind / key
    while not _touch(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder.parent)
        aside = Path(tempfile.mkdtemp(prefix=f".making-{os.getpid()}-", dir=folder.parent))
        try:
            write(aside)
            atomic_io.atomic_rename(aside, folder)
        except OSError:
            shutil.rmtree(aside, ignore_errors=True)
            if not folder.is_dir():  # otherwise another process created the same entry first
                raise
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    _remove_least_recently_used(folder.parent)
    return folder


def _touch(folder: Path) -> bool:
    """Mark an entry as used now. Return False if it does not exist."""
    try:
        os.utime(folder)
    except FileNotFoundError:
        return False
    return True


def _remove_least_recently_used(parent: Path) -> None:
    last_use = {}
    for folder in parent.glob("[0-9a-f]*"):
        with contextlib.suppress(FileNotFoundError):  # another process may remove it too
            last_use[folder] = folder.stat().st_mtime
    for folder in sorted(last_use, key=last_use.__getitem__)[:-_MAX_ENTRIES]:
        if last_use[folder] < time.time() - _MIN_SECONDS_UNUSED:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Remove incomplete entries of killed processes: Cancel kills them before they can clean up."""
    for aside in parent.glob(".making-*"):
        try:
            os.kill(int(aside.name.split("-")[1]), 0)
        except ProcessLookupError:
            shutil.rmtree(aside, ignore_errors=True)
        except PermissionError:  # the process is alive and belongs to another user
            continue
