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

from peft_space.data import arrow_store
from peft_space.data.arrow_store import Rows, Tokens
from peft_space.data.records import Row, from_json
from peft_space.data.rows_file import texts_in
from peft_space.data.tokenization.chat_template import SECONDS, TemplateTimeout, template_timeout
from peft_space.data.tokenization.example import MASKED, TokenizedExample
from peft_space.data.tokenization.render import render
from peft_space.data.tokenization.sandbox import (
    BatchTimeout,
    RowLimit,
    RowTimer,
    map_in_subprocesses,
)
from peft_space.errors import UserError
from peft_space.recipe import Task, TrainOn
from peft_space.runs.events import OnProgress, no_progress
from peft_space.storage.content_cache import get_or_create

_BATCH = 500
_BATCH_SECONDS = 9.0
_RENDERER = "2"
"""Raised when rows are rendered differently than before, so that what was kept is rendered anew."""


def tokenize(
    tokenizer: Any,
    rows: Rows,
    max_length: int,
    train_on: TrainOn = "automatic",
    on_progress: OnProgress = no_progress,
    task: Task = "causal-lm",
) -> Tokens:
    """Every row of the file of `rows`, rendered; those of `rows` are what is returned.

    Rows that the template refuses are kept as problems. Raises UserError where the template takes too long or too much memory.
    """
    whole = rows.whole()
    key = _key(tokenizer, whole, max_length, train_on, task)
    write = functools.partial(_write, tokenizer, whole, max_length, train_on, task, on_progress)
    return Tokens(get_or_create("tokens", key, write) / "tokens.arrow", rows.positions)


def _key(tokenizer: Any, rows: Rows, max_length: int, train_on: TrainOn, task: Task) -> str:
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    told = [
        _RENDERER,
        rows.digest,
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
        max_length,
        train_on,
        task,
    ]
    digest.update(json.dumps(told, sort_keys=True).encode())
    return digest.hexdigest()


def _write(
    tokenizer: Any,
    rows: Rows,
    max_length: int,
    train_on: TrainOn,
    task: Task,
    on_progress: OnProgress,
    folder: Path,
) -> None:
    done = 0
    results = map_in_subprocesses(
        _Renderer, (tokenizer, max_length, train_on, task), _Renderer.batch, texts_in(rows.path, _BATCH),
        most_children=1 + len(rows) // 1_000, seconds=_BATCH_SECONDS,
    )  # fmt: skip
    with (
        pa.OSFile(str(folder / "tokens.arrow"), "wb") as file,
        pa.ipc.new_file(file, arrow_store.TOKENS) as writer,
        contextlib.closing(results),
    ):
        try:
            for batch in results:
                writer.write_batch(batch)
                done += batch.num_rows
                on_progress(done / len(rows), f"Tokenized {done:,} of {len(rows):,} rows")
        except RowLimit as limit:
            raise template_timeout(f"row {limit.args[0]}") from None
        except BatchTimeout:
            raise template_timeout(
                f"rows {done + 1:,} to {min(done + _BATCH, len(rows)):,}", _BATCH_SECONDS
            ) from None


def preview(
    tokenizer: Any,
    rows: Sequence[Row],
    max_length: int,
    train_on: TrainOn = "automatic",
    task: Task = "causal-lm",
) -> list[dict[str, Any]]:
    """A few rows as they will be trained, to be drawn: `row`, `tokens` ([text, trained] each), `cut`; of a preference also `rejected`,
    of a label `label`, of tags `tags` ([token, tag] each); where the template refuses the row, `problem`.

    Raises UserError where the template takes too long.
    """
    results = map_in_subprocesses(
        _Renderer,
        (tokenizer, max_length, train_on, task),
        _Renderer.drawn,
        [rows],
        most_children=1,
        seconds=_BATCH_SECONDS,
    )
    with contextlib.closing(results):
        try:
            return next(results)
        except RowLimit as limit:
            raise template_timeout(f"row {limit.args[0]}") from None
        except BatchTimeout:
            raise template_timeout(f"row {rows[0].row}", _BATCH_SECONDS) from None


class _Renderer:
    """In a child: renders batches."""

    def __init__(self, tokenizer: Any, max_length: int, train_on: TrainOn, task: Task):
        self.tokenizer, self.max_length, self.train_on, self.task = (
            tokenizer,
            max_length,
            train_on,
            task,
        )

    def batch(self, rows: tuple[list[int], list[str]]) -> pa.RecordBatch:
        """Rows as JSON, rendered."""
        parsed = [from_json(number, line) for number, line in zip(*rows, strict=True)]
        return pa.record_batch(
            arrow_store.token_columns(self._render(parsed)), schema=arrow_store.TOKENS
        )

    def drawn(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """What `preview` returns."""
        return [self._drawn(row) for row in rows]

    def _drawn(self, row: Row) -> dict[str, Any]:
        try:
            example = self._shown(row)
        except TemplateTimeout:
            raise
        except UserError as error:
            return {"row": row.row, "tokens": [], "cut": 0, "problem": str(error)}
        told: dict[str, Any] = {
            "row": row.row,
            "tokens": _with_loss_mask(example),
            "cut": example.cut,
        }
        if example.tags:
            told["tags"] = list(zip(example.texts, example.tags, strict=True))
        if example.rejected:
            told |= {
                "rejected": _with_loss_mask(example.rejected),
                "rejected_cut": example.rejected.cut,
            }
        if example.target:
            told |= {"target": _with_loss_mask(example.target), "target_cut": example.target.cut}
        if example.label is not None or example.good is not None:
            told["label"] = (
                example.label if example.good is None else "good" if example.good else "not good"
            )
        return told

    def _shown(self, row: Row) -> TokenizedExample:
        with RowTimer(SECONDS) as watch:
            return render(
                self.tokenizer, [row], self.max_length, self.train_on, self.task, watch=watch
            )[0]

    def _render(self, rows: Sequence[Row]) -> list[TokenizedExample | tuple[int, str]]:
        """Rendered together; where the template refuses one, each alone."""
        try:
            with RowTimer(SECONDS) as watch:
                return list(
                    render(
                        self.tokenizer,
                        rows,
                        self.max_length,
                        self.train_on,
                        self.task,
                        with_texts=False,
                        watch=watch,
                    )
                )
        except TemplateTimeout:
            raise
        except UserError as error:
            if len(rows) == 1:
                return [(rows[0].row, str(error))]
        half = len(rows) // 2
        return [*self._render(rows[:half]), *self._render(rows[half:])]


def _with_loss_mask(example: TokenizedExample) -> list[list[Any]]:
    return [
        [text, label != MASKED] for text, label in zip(example.texts, example.labels, strict=True)
    ]
