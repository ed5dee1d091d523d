"""Checkpoints that are complete or absent: a manifest with the SHA-256 of every file is written last, and only what matches it is used."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from peft_space.errors import UserError
from peft_space.formatting import gigabytes
from peft_space.runs import events
from peft_space.runs.run import Run, append_notice_once
from peft_space.storage import atomic_io

MANIFEST, ORIGIN = "manifest.json", "origin.json"
KEPT = 2
"""Complete checkpoints that stay on disk, the newest ones."""
_ADAPTER_BYTES, _OPTIMIZER_BYTES = 4, 8
"""Of each trainable parameter: itself in float32, and AdamW's two moments."""


class Provenance(BaseModel):
    """What a checkpoint is of."""

    model_config = ConfigDict(frozen=True)

    rows: str
    """SHA-256 of the files that the rows lie in."""
    tokens: str
    """SHA-256 of what the model was given of them, in order."""
    cut_at: int
    """Tokens after which rows are cut off."""
    recipe: dict[str, Any]
    base: str
    compute_dtype: str
    device: str
    versions: dict[str, str]


def seal(folder: Path, origin: Provenance) -> None:
    """Declare a checkpoint complete: every file is on disk, then the manifest, which appears whole or not at all."""
    (folder / MANIFEST).unlink(missing_ok=True)
    atomic_io.write_text(folder / ORIGIN, origin.model_dump_json(indent=1))
    digests = {
        str(path.relative_to(folder)): _sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    atomic_io.sync_tree(folder)
    for parent in folder.parents[:2]:  # which name it
        atomic_io.sync(parent)
    atomic_io.write_text(folder / MANIFEST, json.dumps(digests, indent=1))


def damage(folder: Path) -> str | None:
    """Why a checkpoint cannot be used; None where every file is what it was when the checkpoint was sealed."""
    if not (folder / MANIFEST).is_file():
        return f"it has no {MANIFEST}, as where writing it was cut short"
    try:
        digests: dict[str, str] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        changed = [
            name
            for name, digest in digests.items()
            if not (folder / name).is_file() or _sha256(folder / name) != digest
        ]
    except (ValueError, AttributeError):
        return f"{MANIFEST} cannot be read"
    if ORIGIN not in digests:
        return f"{ORIGIN} is missing"
    if not changed:
        return None
    path = folder / changed[0]
    return f"{changed[0]} {'is missing' if not path.is_file() else 'has changed' if path.stat().st_size else 'is empty'}"


def newest_checkpoint(run: Run) -> Path | None:
    """The newest checkpoint that can be used. Any that cannot is told in the run and removed. Only for who holds the lock."""
    damaged = {folder: why for folder in in_order(run) if (why := damage(folder))}
    newest = next((folder for folder in reversed(in_order(run)) if folder not in damaged), None)
    going_on = (
        f"Going on from step {step_of(newest)}."
        if newest
        else "Starting again from the first step."
    )
    for folder, why in damaged.items():
        sealed_once = (folder / MANIFEST).is_file()
        if (
            sealed_once or newest is None or step_of(folder) > step_of(newest)
        ):  # else it was being removed
            append_notice_once(
                run,
                events.Notice(
                    what=f"Checkpoint {step_of(folder)} is damaged ({why}).", why=going_on
                ),
            )
        _remove(folder)
    if newest and not any(
        isinstance(event, events.Checkpointed) and event.step == step_of(newest)
        for event in run.history()
    ):
        run.append(
            events.Checkpointed(step=step_of(newest))
        )  # training was killed before it said so
    return newest


def step_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def checkpoint_provenance(folder: Path) -> Provenance:
    """What a complete checkpoint is of."""
    return Provenance.model_validate_json((folder / ORIGIN).read_text(encoding="utf-8"))


def remove_all_but_newest(run: Run, best_at: Callable[[int], int | None]) -> None:
    """Remove complete checkpoints beyond the newest `KEPT`.

    Each of the newest stays together with that of the step `best_at` its own: whichever is resumed from, its best adapter is there.
    """
    newest = complete(run)[-KEPT:]
    best = {best_at(step_of(folder)) for folder in newest}
    for folder in complete(run):
        if folder not in newest and step_of(folder) not in best:
            _remove(folder)


def remove_unfinished(run: Run) -> None:
    """Remove what a save that failed has left."""
    for folder in in_order(run):
        if not (folder / MANIFEST).is_file():
            _remove(folder)


def ensure_disk_space(run: Run, trainable_parameters: int, tokenizer_bytes: int) -> None:
    """Raise UserError where the disk has no room for the checkpoints and the adapter that training is going to write."""
    checkpoint = (_ADAPTER_BYTES + _OPTIMIZER_BYTES) * trainable_parameters + tokenizer_bytes
    adapter = _ADAPTER_BYTES * trainable_parameters + tokenizer_bytes
    to_come = max(
        1, KEPT + 2 - len(complete(run))
    )  # the best is kept besides, and the oldest removed when the next is complete
    needed, free = to_come * checkpoint + adapter, shutil.disk_usage(run.directory).free
    if free < needed:
        raise UserError(
            "todo",
            f"The disk has {gigabytes(free)} left, and this training needs {gigabytes(needed)} for checkpoints and the adapter. "
            "Free some space on it, then Resume.",
        )


def in_order(run: Run) -> list[Path]:
    """The folders of a run's checkpoints, whether complete or not, the newest last."""
    return sorted(run.path("checkpoints").glob("checkpoint-*"), key=step_of)


def complete(run: Run) -> list[Path]:
    """Those whose manifest was written, the newest last; whether their files still match it is not looked at."""
    return [folder for folder in in_order(run) if (folder / MANIFEST).is_file()]


def _remove(folder: Path) -> None:
    """Remove a checkpoint, its manifest first, so that half of it does not look damaged."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
