"""Creates the folder of an export completely or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft_space.errors import UserError
from peft_space.storage import atomic_io


@contextmanager
def atomic_directory(out: str | Path) -> Iterator[Path]:
    """Yield an empty folder that is renamed to `out` at the end, or removed after an error.

    Raises:
        UserError: `out` already contains something.
    """
    target = Path(out).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        message = f"{out} already exists and is not empty. Choose another folder."
        raise UserError("machine.folder_not_empty", message)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield aside
        aside.chmod(0o755)  # mkdtemp makes it private
        atomic_io.atomic_rename(aside, target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
