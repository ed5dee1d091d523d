"""Checkpoints that are complete or absent: a manifest with SHA-256 digests is written last."""

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
#: Complete checkpoints that stay on the disk: the newest ones. The best one is kept as well.
MAX_KEPT = 2
#: Bytes for each trainable parameter: its value in float32, and AdamW's two moments.
_ADAPTER_BYTES, _OPTIMIZER_BYTES = 4, 8


class Provenance(BaseModel):
    """The inputs that a checkpoint was trained from."""

    model_config = ConfigDict(frozen=True)

    rows: str
    """SHA-256 of the data files."""
    tokens: str
    """SHA-256 of the token ids that the model received, in order."""
    cut_at: int
    """The length limit in tokens."""
    recipe: dict[str, Any]
    base: str
    compute_dtype: str
    device: str
    versions: dict[str, str]


def seal(folder: Path, origin: Provenance) -> None:
    """Declare a checkpoint complete: flush every file to the disk, then write the manifest."""
    (folder / MANIFEST).unlink(missing_ok=True)
    atomic_io.write_text(folder / ORIGIN, origin.model_dump_json(indent=1))
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    digests = {str(path.relative_to(folder)): atomic_io.sha256_file(path) for path in files}
    atomic_io.sync_tree(folder)
    for parent in folder.parents[:2]:  # their directory entries name the checkpoint
        atomic_io.sync(parent)
    atomic_io.write_text(folder / MANIFEST, json.dumps(digests, indent=1))


def damage(folder: Path) -> str | None:
    """Return why a checkpoint cannot be used, as a clause; None if every file is intact."""
    if not (folder / MANIFEST).is_file():
        return f"it has no {MANIFEST}, so it was not written completely"
    try:
        digests: dict[str, str] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        changed = (name for name, digest in digests.items() if _changed(folder / name, digest))
        name = next(changed, None)
    except (ValueError, AttributeError):
        return f"{MANIFEST} cannot be read"
    if ORIGIN not in digests:
        return f"{ORIGIN} is missing"
    if name is None:
        return None
    if not (folder / name).is_file():
        return f"{name} is missing"
    return f"{name} has changed" if (folder / name).stat().st_size else f"{name} is empty"


def _changed(path: Path, digest: str) -> bool:
    return not path.is_file() or atomic_io.sha256_file(path) != digest


def newest_checkpoint(run: Run) -> Path | None:
    """Return the newest intact checkpoint. Needs the run's lock.

    Damaged checkpoints are removed, with a notice in the run's events.
    """
    damaged = {folder: why for folder in in_order(run) if (why := damage(folder))}
    newest = next((folder for folder in reversed(in_order(run)) if folder not in damaged), None)
    if newest:
        consequence = f"Training resumes from step {step_of(newest)}."
    else:
        consequence = "Training starts again from the first step."
    for folder, why in damaged.items():
        was_sealed = (folder / MANIFEST).is_file()
        # an older checkpoint without a manifest was being removed on purpose
        if was_sealed or newest is None or step_of(folder) > step_of(newest):
            what = f"Checkpoint {step_of(folder)} is damaged ({why})."
            append_notice_once(run, events.Notice(what=what, why=consequence))
        _remove(folder)
    if newest and step_of(newest) not in {
        event.step for event in run.history() if isinstance(event, events.Checkpointed)
    }:  # training was killed before it wrote the event
        run.append(events.Checkpointed(step=step_of(newest)))
    return newest


def step_of(folder: Path) -> int:
    """Return the step of a checkpoint's folder."""
    return int(folder.name.rpartition("-")[2])


def checkpoint_provenance(folder: Path) -> Provenance:
    """Return the provenance of a complete checkpoint."""
    return Provenance.model_validate_json((folder / ORIGIN).read_text(encoding="utf-8"))


def remove_all_but_newest(run: Run, best_at: Callable[[int], int | None]) -> None:
    """Remove complete checkpoints except the newest `MAX_KEPT` and the best ones they refer to.

    Args:
        best_at: the step of the best checkpoint, as the checkpoint of a given step recorded it.
            Any of the newest can be resumed from, so the best of each must exist.
    """
    newest = complete(run)[-MAX_KEPT:]
    best = {best_at(step_of(folder)) for folder in newest}
    for folder in complete(run):
        if folder not in newest and step_of(folder) not in best:
            _remove(folder)


def remove_unfinished(run: Run) -> None:
    """Remove the leftovers of a failed save."""
    for folder in in_order(run):
        if not (folder / MANIFEST).is_file():
            _remove(folder)


def ensure_disk_space(run: Run, trainable_parameters: int, tokenizer_bytes: int) -> None:
    """Check that the checkpoints and the adapter of a training fit on the disk.

    Args:
        trainable_parameters: their number; each takes 12 bytes in a checkpoint, 4 in the adapter.
        tokenizer_bytes: size of the tokenizer's files, which are stored with both.

    Raises:
        UserError: the disk has too little free space.
    """
    checkpoint = (_ADAPTER_BYTES + _OPTIMIZER_BYTES) * trainable_parameters + tokenizer_bytes
    adapter = _ADAPTER_BYTES * trainable_parameters + tokenizer_bytes
    # the best one is kept too, and the oldest is removed only when the next is complete
    num_missing = max(1, MAX_KEPT + 2 - len(complete(run)))
    needed, free = num_missing * checkpoint + adapter, shutil.disk_usage(run.directory).free
    if free < needed:
        raise UserError(
            "machine.disk_too_small",
            f"The disk has {gigabytes(free)} left, and this training needs {gigabytes(needed)} "
            "for checkpoints and the adapter. Free some space, then resume the training.",
        )


def in_order(run: Run) -> list[Path]:
    """The folders of all checkpoints, complete or not, the newest last."""
    return sorted(run.path("checkpoints").glob("checkpoint-*"), key=step_of)


def complete(run: Run) -> list[Path]:
    """The folders of the checkpoints with a manifest, the newest last. Digests are not checked."""
    return [folder for folder in in_order(run) if (folder / MANIFEST).is_file()]


def _remove(folder: Path) -> None:
    """Remove a checkpoint, its manifest first, so that a partly removed one is not damaged."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder)
