"""A folder that an export writes: aside first, then renamed, so that it is there whole or not at all; and the same as one .zip file."""

import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft_space.errors import UserError
from peft_space.formatting import gigabytes
from peft_space.runs.run import Run
from peft_space.storage import atomic_io


@contextmanager
def atomic_directory(out: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside `out`, which takes its name at the end; after an error nothing of it is left.

    Raises UserError where `out` already holds something.
    """
    target = Path(out).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError("todo", f"{out} already exists and is not empty. Choose another folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield aside
        aside.chmod(0o755)  # mkdtemp makes it private
        atomic_io.atomic_rename(aside, target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def check_room(folder: Path, num_bytes: int) -> None:
    """Raise UserError where the disk of `folder` has less than `num_bytes` free."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise UserError(
            "todo",
            f"This export needs {gigabytes(num_bytes)} on the disk of {folder.parent}, and {gigabytes(free)} are free. "
            "Free some space, export to another disk, or choose a 16-bit dtype.",
        )


def zip_of(folder: Path, run: Run, target: str) -> Path:
    """The folder as one .zip beside it, named after the run; the folder itself is removed."""
    path = _zip(folder, run, target, folder.parent)
    shutil.rmtree(folder)
    return path


def zip_adapter(run: Run, into: Path) -> Path:
    """The run's adapter as it lies there, as one .zip in the folder `into`."""
    return _zip(run.adapter, run, "adapter", into)


def _zip(folder: Path, run: Run, target: str, into: Path) -> Path:
    """Nothing is compressed: weights hardly can be. It has its name once it is whole."""
    name = re.sub(r"[^\w.-]+", "-", run.name).strip("-.")[:60] or run.directory.name
    path = into / f"{name}-{target}.zip"
    with zipfile.ZipFile(path.with_suffix(".part"), "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, Path(target, file.relative_to(folder)))
    path.with_suffix(".part").rename(path)
    return path
