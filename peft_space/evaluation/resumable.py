"""Stores the results of an evaluation in the run, batch by batch, so that it can be resumed.

A resumed evaluation gives the same numbers. The result of a batch is JSON.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft_space.runs.run import Run

SCORING, ANSWERING = "scoring.jsonl", "answering.jsonl"
"""Files in a run: of an evaluation, and of the answers for a vote. A line is a batch."""


class ResumableBatches:
    """The batches of one evaluation that have been measured so far.

    Args:
        run: the run that stores them.
        key: identifies the adapter, the rows and everything else that decides the results. Batches
            stored with another key are discarded.
        on_batch: called with the part before each of its batches, stored or not.
        file: the name of the file in the run.
    """

    def __init__(self, run: Run, key: str, on_batch: Callable[[str], None], file: str = SCORING):
        self._path, self._on_batch = run.path(file), on_batch
        self._results = _read(self._path, key)
        if not self._results:
            self._path.write_text(json.dumps(key) + "\n")

    def batch(self, part: str, number: int, measure: Callable[[], Any]) -> Any:
        """The stored results of a batch, or those of `measure`, which are then stored."""
        self._on_batch(part)
        place = (part, number)
        if place not in self._results:
            result = measure()
            with open(self._path, "a") as file:
                file.write(json.dumps([part, number, result]) + "\n")
            self._results[place] = json.loads(json.dumps(result))  # equal to a stored one
        return self._results[place]

    def done(self) -> None:
        """Delete the stored batches."""
        self._path.unlink(missing_ok=True)  # a concurrent evaluation may have deleted them


def key_of(run: Run, *decisive: Any) -> str:
    """A key for the run's adapter and everything else that decides the results."""
    digest = hashlib.sha256(repr(decisive).encode())
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        with open(run.adapter / name, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def num_saved_batches(run: Run) -> list[int]:
    """Sizes in bytes of the files with stored batches. They change with every batch."""
    files = [run.path(name) for name in (SCORING, ANSWERING)]
    return [path.stat().st_size for path in files if path.is_file()]


def _read(path: Path, key: str) -> dict[tuple[str, int], Any]:
    """The batches stored with this key. Removes an incomplete last line, which a kill leaves."""
    if not path.is_file():
        return {}
    text = path.read_text()
    complete = text[: text.rfind("\n") + 1]
    first, *lines = complete.splitlines() or [""]
    if first != json.dumps(key):
        return {}
    if complete != text:
        path.write_text(complete)
    return {(part, number): result for part, number, result in map(json.loads, lines)}
