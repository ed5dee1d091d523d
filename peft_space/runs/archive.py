"""What of a run's directory a training needs to go on elsewhere, and how it is taken from there: whole, each file by its SHA-256, nothing outside."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from peft_space.errors import UserError
from peft_space.formatting import gigabytes
from peft_space.runs.run import Run
from peft_space.storage import atomic_io

ARCHIVE_MANIFEST = "packed.json"
"""The file beside packed ones that holds the SHA-256 of each."""
_MOST_FILES = 10_000
_LARGEST_TEXT = 200e6
"""Bytes of a file of text; what has more are numbers, or rows."""
_OF_NUMBERS = (".safetensors", ".pt", ".pth", ".bin", ".arrow")
_FOLDERS = re.compile(r"(data|adapter|start|checkpoints/checkpoint-\d+)/.+")
_NAME = r"/\w[\w.-]*"
_BELONGS = re.compile(
    rf"(recipe|run|plan|ready|scores|votes)\.json|(events|scoring)\.jsonl|data({_NAME})+\.(json|arrow)"
    rf"|(adapter|start|checkpoints/checkpoint-\d+)({_NAME})+\.(json|safetensors|md|svg|jinja|txt|model|pt|pth)"
    r"|checkpoints/checkpoint-\d+/training_args\.bin"
)


def pack(run: Run) -> dict[str, bytes | Path]:
    """What belongs to a resumable run, by its path in it: a file, or of the events, which grow, their whole lines so far."""
    found = [path for path in run.directory.rglob("*") if path.is_file() and not path.is_symlink()]
    names = {path.relative_to(run.directory).as_posix(): path for path in found}
    packed: dict[str, bytes | Path] = {
        name: names[name]
        for name in sorted(names)
        if is_allowed_path(name) and _is_complete(name, names)
    }
    if "events.jsonl" in packed:
        happened = names["events.jsonl"].read_bytes()
        packed["events.jsonl"] = happened[: happened.rfind(b"\n") + 1]
    return packed


def digests_of(packed: Mapping[str, bytes | Path]) -> dict[str, str]:
    """The SHA-256 of each."""
    return {name: sha256(content) for name, content in packed.items()}


def read_manifest(text: str) -> dict[str, str]:
    """The digests that a manifest holds. Raises UserError where it names what belongs to no run."""
    try:
        digests = json.loads(text)
        foreign = [
            name
            for name, digest in digests.items()
            if not is_allowed_path(name) or not re.fullmatch("[0-9a-f]{64}", digest)
        ]
    except (ValueError, AttributeError, TypeError):
        raise UserError(
            "todo",
            f"What was packed cannot be read: its {ARCHIVE_MANIFEST} is damaged. Pack the run anew.",
        ) from None
    if foreign:
        raise UserError(
            "todo",
            f"What was packed names {foreign[0]!r}, which belongs to no run. Nothing was taken of it.",
        )
    return digests


def refuse_large(sizes: Mapping[str, int], most: float) -> None:
    """Raise UserError where files, which nobody has fetched yet, are more, or larger, than those of a run can be, or take more than `most` bytes."""
    if len(sizes) > _MOST_FILES:
        raise UserError(
            "todo",
            f"What was packed has {len(sizes):,} files, and a run has at most {_MOST_FILES:,}. Nothing was taken of it.",
        )
    for name, size in sizes.items():
        if size > _LARGEST_TEXT and not name.endswith(_OF_NUMBERS):
            raise UserError(
                "todo",
                f"{name} has {gigabytes(size)}, and no such file of a run has more than {gigabytes(_LARGEST_TEXT)}. Nothing was taken.",
            )
    if (needed := sum(sizes.values())) > most:
        raise UserError(
            "todo",
            f"What was packed takes {gigabytes(needed)}, and at most {gigabytes(most)} are taken here (PEFT_SPACE_MAX_RUN_MB). Nothing was taken of it.",
        )


def install(
    run_directory: Path,
    digests: Mapping[str, str],
    names: Iterable[str],
    fetch: Callable[[str], Path],
) -> None:
    """Bring `names` into a run's directory, a folder of them as a whole, from where `fetch` puts each; all of it or nothing.

    Raises UserError for what is not as packed.
    """
    places = {_folder(name) or name for name in names}
    asides = {
        place: (run_directory / place).with_name(f".{Path(place).name}.taken")
        for place in sorted(places)
    }
    try:
        for aside in asides.values():
            _remove(aside)
        for name, digest in digests.items():
            if (place := _folder(name) or name) in asides:
                _copy(
                    verified(fetch(name), digest, name),
                    asides[place] / name.removeprefix(place).removeprefix("/"),
                )
        for place, aside in asides.items():
            if aside.is_dir():
                shutil.rmtree(run_directory / place, ignore_errors=True)
                atomic_io.atomic_rename(aside, run_directory / place)
            else:
                atomic_io.sync(aside)
                os.replace(aside, run_directory / place)
    finally:
        for aside in asides.values():
            _remove(aside)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def is_allowed_path(name: str) -> bool:
    """Whether a path is of what goes with a run: no log, lock or request, nothing that could lead out of its folder, or that is a program."""
    return _BELONGS.fullmatch(name) is not None


def _is_complete(name: str, names: Mapping[str, Path]) -> bool:
    """Not of a checkpoint that is being written or removed, which has no manifest."""
    folder = _folder(name) or ""
    return not folder.startswith("checkpoints/") or f"{folder}/manifest.json" in names


def _folder(name: str) -> str | None:
    """What is replaced as a whole."""
    match = _FOLDERS.fullmatch(name)
    return match[1] if match else None


def verified(path: Path, digest: str, name: str) -> Path:
    """The file, where it is what was packed. Raises UserError where it is another, or a link."""
    if path.is_symlink():
        raise UserError(
            "todo", f"What was packed has a link in place of {name}. Nothing was taken of it."
        )
    if not path.is_file() or sha256(path) != digest:
        raise UserError(
            "todo",
            f"{name} is not as it was packed: its SHA-256 is another. Try again, or pack the run anew.",
        )
    return path


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def sha256(content: bytes | Path) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with open(content, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
