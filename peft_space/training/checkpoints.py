"""Checkpoints that are complete or absent: a manifest with the SHA-256 of every file is written last, and only what matches it is used."""

import hashlib
import json
import os
import shutil
from pathlib import Path

from peft_space.run import Run

MANIFEST = "manifest.json"
KEPT = 2
"""Complete checkpoints that stay on disk, the newest ones."""


def seal(folder: Path) -> None:
    """Declare a checkpoint complete: every file is on disk, then the manifest, which appears whole or not at all."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    aside = folder / f".{MANIFEST}.new"
    aside.write_text(json.dumps({str(path.relative_to(folder)): _sha256(path) for path in files}, indent=1))
    for path in [*files, aside]:
        _sync(path)
    aside.replace(folder / MANIFEST)
    _sync(folder)


def is_complete(folder: Path) -> bool:
    """Whether every file that was there when the checkpoint was sealed is still there and the same."""
    try:
        manifest: dict[str, str] = json.loads((folder / MANIFEST).read_text())
        return all(_sha256(folder / name) == digest for name, digest in manifest.items())
    except (OSError, ValueError):
        return False


def newest_checkpoint(run: Run) -> Path | None:
    """The newest complete checkpoint of a run; what is newer and damaged is passed over."""
    return next((folder for folder in reversed(_in_order(run)) if is_complete(folder)), None)


def step_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def remove_all_but_newest(run: Run) -> None:
    """Remove checkpoints beyond the newest `KEPT`, and what a killed save left."""
    sealed = [folder for folder in _in_order(run) if (folder / MANIFEST).is_file()]
    for folder in _in_order(run):
        if folder not in sealed[-KEPT:]:
            shutil.rmtree(folder)


def _in_order(run: Run) -> list[Path]:
    return sorted(run.path("checkpoints").glob("checkpoint-*"), key=step_of)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
