"""A scoring, or the answers of a vote, kept in the run batch by batch, so that one that was interrupted goes on where it was, to the same numbers.

Knows nothing of models: what a batch gives is JSON.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft_space.runs.run import Run

SCORING, ANSWERING = "scoring.jsonl", "answering.jsonl"
"""Files in a run; a line is a batch and its results."""


class ResumableBatches:
    """What was measured so far of one scoring."""

    def __init__(self, run: Run, key: str, on_batch: Callable[[str], None], file: str = SCORING):
        """Take up what was kept under the same `key`; under another it is forgotten.

        Args:
            key: names the adapter, the rows and all else that decides what is measured.
            on_batch: called with the part before each of its batches, kept or not.
        """
        self._path, self._on_batch = run.path(file), on_batch
        self._known = _read(self._path, key)
        if not self._known:
            self._path.write_text(json.dumps(key) + "\n")

    def batch(self, part: str, number: int, measure: Callable[[], Any]) -> Any:
        """The results of a batch of this part: as they were kept, or measured now and kept."""
        self._on_batch(part)
        place = (part, number)
        if place not in self._known:
            result = measure()
            with open(self._path, "a") as file:
                file.write(json.dumps([part, number, result]) + "\n")
            self._known[place] = json.loads(
                json.dumps(result)
            )  # the same, whether it was kept or not
        return self._known[place]

    def done(self) -> None:
        """Nothing is left to be gone on with."""
        self._path.unlink(missing_ok=True)  # another scoring of the same may have ended first


def key_of(run: Run, *decides: Any) -> str:
    """Names the run's adapter and all that decides what is measured."""
    digest = hashlib.sha256(repr(decides).encode())
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        with open(run.adapter / name, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def num_saved_batches(run: Run) -> list[int]:
    """Bytes of what is kept; others whenever a batch more is."""
    files = [run.path(name) for name in (SCORING, ANSWERING)]
    return [path.stat().st_size for path in files if path.is_file()]


def _read(path: Path, key: str) -> dict[tuple[str, int], Any]:
    """What was kept under this key. A last line without its end was torn by a kill: it is cut off."""
    if not path.is_file():
        return {}
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    first, *lines = whole.splitlines() or [""]
    if first != json.dumps(key):
        return {}
    if whole != text:
        path.write_text(whole)
    return {(part, number): result for part, number, result in map(json.loads, lines)}
