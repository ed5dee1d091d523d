"""Keeps what was worked out from data under the name of its content, so that the same is not worked out twice. Knows nothing of what it keeps."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from peft_space import settings
from peft_space.storage import atomic_io

_MOST_KEPT = 12
"""Of each kind; the ones used longest ago are removed."""
_SECONDS_TO_OPEN = 60


def get_or_create(kind: str, key: str, write: Callable[[Path], None]) -> Path:
    """The folder that holds what `write` writes into it; written whole or not at all, and only if it is not there yet.

    Args:
        kind: what it is, such as `tokens`.
        key: a digest of all that decides the content.
    """
    folder = settings.home() / "cache" / kind / key
    while not _used_now(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_what_the_dead_left(folder.parent)
        aside = Path(tempfile.mkdtemp(prefix=f".making-{os.getpid()}-", dir=folder.parent))
        try:
            write(aside)
            atomic_io.atomic_rename(aside, folder)
        except OSError:
            shutil.rmtree(aside, ignore_errors=True)
            if not folder.is_dir():  # else another process has made the same meanwhile
                raise
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    _remove_what_nobody_uses(folder.parent)
    return folder


def _used_now(folder: Path) -> bool:
    """Whether it is there; then it counts as used now."""
    try:
        os.utime(folder)
    except FileNotFoundError:
        return False
    return True


def _remove_what_nobody_uses(parent: Path) -> None:
    """All but the newest, and but what others may be about to open: they look for it right after it was made."""
    used = {}
    for folder in parent.glob("[0-9a-f]*"):
        with contextlib.suppress(FileNotFoundError):  # another process is at it too
            used[folder] = folder.stat().st_mtime
    for old in sorted(used, key=used.__getitem__)[:-_MOST_KEPT]:
        if used[old] < time.time() - _SECONDS_TO_OPEN:
            shutil.rmtree(old, ignore_errors=True)


def _remove_what_the_dead_left(parent: Path) -> None:
    """A process that is killed while it writes, as by Cancel, cannot tidy up."""
    for left in parent.glob(".making-*"):
        try:
            os.kill(int(left.name.split("-")[1]), 0)
        except ProcessLookupError:
            shutil.rmtree(left, ignore_errors=True)
        except PermissionError:  # it lives, and is another user's
            continue
