"""Renders and tokenizes all rows of a file in child processes, in batches, once: what was tokenized is kept by its content.

The children bound what a chat template may take; the parent needs no accelerator and holds no rows.
"""

import contextlib
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from peft_space.data import store
from peft_space.data.cache import kept
from peft_space.data.chat_template import SECONDS, Endless, endless
from peft_space.data.example import MASKED, Example
from peft_space.data.pool import RowLimit, RowWatch, TookTooLong, in_children
from peft_space.data.render import render
from peft_space.data.rows import Row, from_json
from peft_space.data.rows_file import texts_in
from peft_space.data.store import Rows, Tokens
from peft_space.errors import UserError
from peft_space.events import OnProgress, quietly
from peft_space.recipe import LossOn, Task

_BATCH = 500
_BATCH_SECONDS = 9.0
_RENDERER = "2"
"""Raised when rows are rendered differently than before, so that what was kept is rendered anew."""


def tokenize(
    tokenizer: Any, rows: Rows, max_length: int, loss_on: LossOn = "automatic", on_progress: OnProgress = quietly, task: Task = "causal-lm"
) -> Tokens:
    """Every row of the file of `rows`, rendered; those of `rows` are what is returned.

    Rows that the template refuses are kept as problems. Raises UserError where the template takes too long or too much memory.
    """
    whole = rows.whole()
    key = _key(tokenizer, whole, max_length, loss_on, task)
    write = functools.partial(_write, tokenizer, whole, max_length, loss_on, task, on_progress)
    return Tokens(kept("tokens", key, write) / "tokens.arrow", rows.index)


def _key(tokenizer: Any, rows: Rows, max_length: int, loss_on: LossOn, task: Task) -> str:
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    told = [_RENDERER, rows.digest, tokenizer.chat_template, tokenizer.special_tokens_map, max_length, loss_on, task]
    digest.update(json.dumps(told, sort_keys=True).encode())
    return digest.hexdigest()


def _write(tokenizer: Any, rows: Rows, max_length: int, loss_on: LossOn, task: Task, on_progress: OnProgress, folder: Path) -> None:
    done = 0
    results = in_children(
        _Renderer, (tokenizer, max_length, loss_on, task), _Renderer.batch, texts_in(rows.path, _BATCH),
        most_children=1 + len(rows) // 1_000, seconds=_BATCH_SECONDS,
    )  # fmt: skip
    with pa.OSFile(str(folder / "tokens.arrow"), "wb") as file, pa.ipc.new_file(file, store.TOKENS) as writer, contextlib.closing(results):
        try:
            for batch in results:
                writer.write_batch(batch)
                done += batch.num_rows
                on_progress(done / len(rows), f"Tokenized {done:,} of {len(rows):,} rows")
        except RowLimit as limit:
            raise endless(f"row {limit.args[0]}") from None
        except TookTooLong:
            raise endless(f"rows {done + 1:,} to {min(done + _BATCH, len(rows)):,}", _BATCH_SECONDS) from None


def preview(
    tokenizer: Any, rows: Sequence[Row], max_length: int, loss_on: LossOn = "automatic", task: Task = "causal-lm"
) -> list[dict[str, Any]]:
    """A few rows as they will be trained, to be drawn: `row`, `tokens` ([text, trained] each), `cut`; of a preference also `rejected`,
    of a label `label`, of tags `tags` ([token, tag] each); where the template refuses the row, `problem`.

    Raises UserError where the template takes too long.
    """
    results = in_children(
        _Renderer, (tokenizer, max_length, loss_on, task), _Renderer.drawn, [rows], most_children=1, seconds=_BATCH_SECONDS
    )
    with contextlib.closing(results):
        try:
            return next(results)
        except RowLimit as limit:
            raise endless(f"row {limit.args[0]}") from None
        except TookTooLong:
            raise endless(f"row {rows[0].row}", _BATCH_SECONDS) from None


class _Renderer:
    """In a child: renders batches."""

    def __init__(self, tokenizer: Any, max_length: int, loss_on: LossOn, task: Task):
        self.tokenizer, self.max_length, self.loss_on, self.task = tokenizer, max_length, loss_on, task

    def batch(self, rows: tuple[list[int], list[str]]) -> pa.RecordBatch:
        """Rows as JSON, rendered."""
        parsed = [from_json(number, line) for number, line in zip(*rows, strict=True)]
        return pa.record_batch(store.token_columns(self._render(parsed)), schema=store.TOKENS)

    def drawn(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """What `preview` returns."""
        return [self._drawn(row) for row in rows]

    def _drawn(self, row: Row) -> dict[str, Any]:
        try:
            example = self._shown(row)
        except Endless:
            raise
        except UserError as error:
            return {"row": row.row, "tokens": [], "cut": 0, "problem": str(error)}
        told: dict[str, Any] = {"row": row.row, "tokens": _with_fate(example), "cut": example.cut}
        if example.tags:
            told["tags"] = list(zip(example.texts, example.tags, strict=True))
        if example.rejected:
            told |= {"rejected": _with_fate(example.rejected), "rejected_cut": example.rejected.cut}
        if example.target:
            told |= {"target": _with_fate(example.target), "target_cut": example.target.cut}
        if example.label is not None or example.good is not None:
            told["label"] = example.label if example.good is None else "good" if example.good else "not good"
        return told

    def _shown(self, row: Row) -> Example:
        with RowWatch(SECONDS) as watch:
            return render(self.tokenizer, [row], self.max_length, self.loss_on, self.task, watch=watch)[0]

    def _render(self, rows: Sequence[Row]) -> list[Example | tuple[int, str]]:
        """Rendered together; where the template refuses one, each alone."""
        try:
            with RowWatch(SECONDS) as watch:
                return list(render(self.tokenizer, rows, self.max_length, self.loss_on, self.task, with_texts=False, watch=watch))
        except Endless:
            raise
        except UserError as error:
            if len(rows) == 1:
                return [(rows[0].row, str(error))]
        half = len(rows) // 2
        return [*self._render(rows[:half]), *self._render(rows[half:])]


def _with_fate(example: Example) -> list[list[Any]]:
    return [[text, label != MASKED] for text, label in zip(example.texts, example.labels, strict=True)]
