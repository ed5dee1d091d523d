"""Packs a run to send it elsewhere: its files, and a manifest with the SHA-256 of each.

Backups, Hugging Face Jobs and exported scripts use it. Nothing that fails a check is installed.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from peft_space.errors import UserError
from peft_space.formatting import gigabytes
from peft_space.runs.run import Run
from peft_space.storage import atomic_io

#: The manifest's file, and the folder next to it with the run's files.
MANIFEST, FOLDER = "archive.json", "run/"
#: Limits. A manifest has about 150 bytes for each file.
MAX_FILES, _MAX_MANIFEST_BYTES = 10_000, 4_000_000
#: A text file of a run is smaller than this. Weights and rows may be larger.
_MAX_TEXT_BYTES = 200e6
_BINARY = (".safetensors", ".pt", ".pth", ".bin", ".arrow")
#: Folders that are replaced as a whole.
_UNITS = re.compile(r"(data|adapter|start|checkpoints/checkpoint-\d+)/.+")
_NAME = r"/\w[\w.-]*"
_ALLOWED = re.compile(
    r"(recipe|run|plan|ready|scores|votes)\.json|(events|scoring)\.jsonl"
    rf"|data({_NAME})+\.(json|arrow)|data/pictures/[0-9a-f]{{64}}\.png"
    rf"|(adapter|start|checkpoints/checkpoint-\d+)({_NAME})+"
    r"\.(json|safetensors|md|svg|png|jinja|txt|model|pt|pth)"
    r"|checkpoints/checkpoint-\d+/training_args\.bin"
)

Content = bytes | Path


class Manifest(BaseModel):
    """The files of an archived run. A manifest with another format, or other fields, is invalid."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    files: dict[str, str] = Field(max_length=MAX_FILES)
    """Path in the run -> SHA-256."""

    def to_bytes(self) -> bytes:
        """The content of `archive.json`."""
        return self.model_dump_json(indent=1).encode()


def pack(run: Run, checkpoints: Collection[str] | None = None) -> dict[str, Content]:
    """Return the files of a run that training needs to resume elsewhere, and its adapter.

    Args:
        run: it may be in training: only the complete lines of its events are included.
        checkpoints: names of the checkpoint folders to include; all complete ones by default.

    Returns:
        Path in the run -> the file, or its content.
    """
    paths = (path for path in run.directory.rglob("*") if path.is_file() and not path.is_symlink())
    files = {path.relative_to(run.directory).as_posix(): path for path in paths}
    packed: dict[str, Content] = {}
    for name in sorted(filter(is_allowed_path, files)):
        unit = _unit(name)
        if unit.startswith("checkpoints/"):
            is_complete = f"{unit}/manifest.json" in files
            is_chosen = checkpoints is None or Path(unit).name in checkpoints
            if not (is_complete and is_chosen):
                continue
        packed[name] = files[name]
    if "events.jsonl" in packed:
        lines = files["events.jsonl"].read_bytes()
        packed["events.jsonl"] = lines[: lines.rfind(b"\n") + 1]
    return packed


def manifest_of(packed: Mapping[str, Content]) -> Manifest:
    """Return the manifest of packed files."""
    return Manifest(files={name: _sha256(content) for name, content in packed.items()})


def read_manifest(content: bytes, source: str) -> Manifest:
    """Parse a manifest.

    Args:
        content: of `archive.json`.
        source: where it comes from, for error messages.

    Raises:
        UserError: it is damaged, has another format, or names a file that no run has.
    """
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise UserError(
            "runs.archive_damaged",
            f"{source}: {MANIFEST} is damaged, or another version wrote it ({reason}). Nothing "
            "was imported. Save the run again.",
        ) from None
    for name, digest in manifest.files.items():
        if not (is_allowed_path(name) and re.fullmatch("[0-9a-f]{64}", digest)):
            raise UserError(
                "runs.archive_foreign_file",
                f"{source}: the archive contains an unexpected file, {name!r}. Nothing was "
                "imported.",
            )
    return manifest


@dataclass(frozen=True)
class Archive:
    """A run that was packed elsewhere."""

    source: str
    """Where it is, for error messages."""
    manifest: Manifest
    fetch: Callable[[str], Path]
    """Returns a file of the run, by its path in the run, after downloading it if necessary."""

    def install(self, directory: Path, names: Collection[str]) -> None:
        """Move files into a run's directory: all of them, or none if one fails its check.

        Args:
            directory: of the run; it exists.
            names: files in the manifest. The folders `data`, `adapter`, `start` and each
                checkpoint are replaced as a whole, even if only one of their files is named.

        Raises:
            UserError: a file is missing, a link, or not what was packed.
        """
        units = sorted({_unit(name) for name in names})
        asides = {unit: (directory / unit).with_name(f".{Path(unit).name}.new") for unit in units}
        try:
            for aside in asides.values():
                _remove(aside)
            for name in self.manifest.files:
                if (unit := _unit(name)) in asides:
                    target = asides[unit] / Path(name).relative_to(unit)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.move(self.verified(name), target)
            for unit, aside in asides.items():
                if aside.is_dir():
                    shutil.rmtree(directory / unit, ignore_errors=True)
                    atomic_io.atomic_rename(aside, directory / unit)
                else:
                    atomic_io.sync(aside)
                    os.replace(aside, directory / unit)
        finally:
            for aside in asides.values():
                _remove(aside)

    def verified(self, name: str) -> Path:
        """Fetch a file and check it. Raises UserError if it is not what was packed."""
        path = self.fetch(name)
        if path.is_symlink():
            problem = "is a link"
        elif not path.is_file():
            problem = "is missing"
        elif _sha256(path) != self.manifest.files[name]:
            problem = "has another SHA-256 than when it was packed"
        else:
            return path
        raise UserError(
            "runs.archive_damaged",
            f"{self.source}: {name} {problem}. Nothing was imported. Try again, or save the run "
            "again where you trained it.",
        )


def check_sizes(sizes: Mapping[str, int], limit: float, source: str) -> None:
    """Check the files of an archive before any of them is downloaded.

    Args:
        sizes: name -> bytes.
        limit: bytes of all files together.
        source: where they come from, for error messages.

    Raises:
        UserError: there are more files, or larger ones, than a run can have.
    """
    if len(sizes) > MAX_FILES:
        problem = f"the archive has {len(sizes):,} files, and a run has at most {MAX_FILES:,}"
        raise _too_large(source, problem)
    for name, size in sizes.items():
        small = _MAX_MANIFEST_BYTES if name == MANIFEST else _MAX_TEXT_BYTES
        if size > small and not name.endswith(_BINARY):
            problem = f"{name} has {gigabytes(size)}, and the limit is {gigabytes(small)}"
            raise _too_large(source, problem)
    if (total := sum(sizes.values())) > limit:
        limit_text = f"the limit is {gigabytes(limit)} (PEFT_SPACE_MAX_RUN_MB)"
        raise _too_large(source, f"the run has {gigabytes(total)}, and {limit_text}")


def _too_large(source: str, problem: str) -> UserError:
    return UserError("runs.archive_too_large", f"{source}: {problem}. Nothing was downloaded.")


def is_allowed_path(name: str) -> bool:
    """Return True for files that travel with a run.

    No log, lock or request, no path that leads out of the run, and no program.
    """
    return _ALLOWED.fullmatch(name) is not None


def _unit(name: str) -> str:
    """The folder that is replaced as a whole with this file, or the file itself."""
    match = _UNITS.fullmatch(name)
    return match[1] if match else name


def _sha256(content: Content) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    return atomic_io.sha256_file(content)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
