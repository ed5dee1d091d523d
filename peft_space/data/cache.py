"""Keeps what was worked out from data under the name of its content, so that the same is not worked out twice. Knows nothing of what it keeps."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from peft_space import durable, settings

_MOST_KEPT = 12
"""Of each kind; the ones used longest ago are removed."""


def kept(kind: str, key: str, write: Callable[[Path], None]) -> Path:
    """The folder that holds what `write` writes into it; written whole or not at all, and only if it is not there yet.

    Args:
        kind: what it is, such as `tokens`.
        key: a digest of all that decides the content.
    """
    folder = settings.home() / "cache" / kind / key
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_what_the_dead_left(folder.parent)
        aside = Path(tempfile.mkdtemp(prefix=f".making-{os.getpid()}-", dir=folder.parent))
        try:
            write(aside)
            durable.rename(aside, folder)
        except OSError:
            shutil.rmtree(aside, ignore_errors=True)
            if not folder.is_dir():  # else another process has made the same meanwhile
                raise
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    os.utime(folder)
    for old in sorted(folder.parent.glob("[0-9a-f]*"), key=lambda path: path.stat().st_mtime)[:-_MOST_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _remove_what_the_dead_left(parent: Path) -> None:
    """A process that is killed while it writes, as by Cancel, cannot tidy up."""
    for left in parent.glob(".making-*"):
        try:
            os.kill(int(left.name.split("-")[1]), 0)
        except ProcessLookupError:
            shutil.rmtree(left, ignore_errors=True)
        except PermissionError:  # it lives, and is another user's
            continue
