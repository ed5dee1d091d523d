"""Tokenizes all rows of a dataset in child processes and caches the result by its content."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from peft_space.data.arrow_store import (
    MASKED,
    TOKENS,
    Rows,
    TokenizedExample,
    Tokens,
    read_batches,
    token_columns,
)
from peft_space.data.pictures import thumbnail
from peft_space.data.row_normalization import Row, from_json, pictures_of
from peft_space.data.tokenization.chat_template import (
    MAX_BYTES,
    MAX_SECONDS,
    TemplateTimeout,
    template_timeout,
)
from peft_space.data.tokenization.loss_mask import unknown_id
from peft_space.data.tokenization.render import length_limit, processor_of, render
from peft_space.data.tokenization.template_sandbox import (
    BatchTimeout,
    RowLimit,
    RowTimer,
    map_in_subprocesses,
)
from peft_space.errors import UserError
from peft_space.recipe import Reasoning, Task, TrainOn
from peft_space.runs.events import OnProgress, no_progress
from peft_space.storage.content_cache import get_or_create

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BATCH_ROWS, _BATCH_SECONDS = 500, 9.0
_WITH_PICTURES = 20, 120.0
_RENDERER_VERSION = "12"
"""Change it when rows are rendered differently, so that cached tokens are not used again."""


def tokenize(
    tokenizer: "PreTrainedTokenizerFast",
    rows: Rows,
    max_length: int,
    train_on: TrainOn = "automatic",
    on_progress: OnProgress = no_progress,
    task: Task = "causal-lm",
    reasoning: Reasoning = "train",
) -> Tokens:
    """Tokenize the whole file of `rows` and return the examples of `rows`.

    Rows that the template rejects are stored as problems. See `render` for the arguments.

    Raises:
        UserError: the chat template exceeds its limits of time or memory.
    """
    whole = rows.whole()
    limit = length_limit(tokenizer, max_length)
    renderer = _Renderer(tokenizer, limit, train_on, task, reasoning, rows.pictures)
    write = functools.partial(_write, renderer, whole, on_progress)
    folder = get_or_create("tokens", _cache_key(renderer, whole), write)
    return Tokens(folder / "tokens.arrow", pictures=rows.pictures).of_rows(rows.positions)


def preview(
    tokenizer: "PreTrainedTokenizerFast",
    rows: Sequence[Row],
    max_length: int,
    train_on: TrainOn = "automatic",
    task: Task = "causal-lm",
    reasoning: Reasoning = "train",
) -> list[dict[str, Any]]:
    """Render a few rows for display as they are trained. See `render` for the arguments.

    Returns:
        For each row `row`, `tokens` ([text, is trained] for each token) and `cut`. Some rows also
        have `rejected`, `target`, `label`, `tags` ([text, tag] for each token), `problem`,
        `pieces` (their number, if a long text is trained in pieces, of which this is the first) or
        `unknown`: the places of tokens that stand for text which the tokenizer has no token for.

    Raises:
        UserError: the chat template exceeds its limits of time or memory.
    """
    renderer = _Renderer(tokenizer, max_length, train_on, task, reasoning)
    place = f"row {rows[0].row}"
    seconds = _WITH_PICTURES[1] if any(map(pictures_of, rows)) else _BATCH_SECONDS
    results = map_in_subprocesses(
        _receive, (renderer,), _preview_batch, [rows], max_children=1, seconds=seconds
    )
    with contextlib.closing(results), _report_timeouts(lambda: place):
        return next(results)


@dataclass(frozen=True)
class _Renderer:
    """Settings of `render`, and the work of a child process with them."""

    tokenizer: "PreTrainedTokenizerFast"
    max_length: int
    train_on: TrainOn
    task: Task
    reasoning: Reasoning
    pictures: Path | None = None
    """The folder of the rows' pictures; None if they have none."""

    def render(self, rows: Sequence[Row], with_texts: bool) -> list[TokenizedExample]:
        """Render rows, each within the time limit of the template."""
        with RowTimer(MAX_SECONDS, MAX_BYTES) as watch:
            return render(
                self.tokenizer, rows, self.max_length, self.train_on, self.task, self.reasoning,
                with_texts, watch,
            )  # fmt: skip

    def render_or_explain(self, rows: Sequence[Row]) -> list[TokenizedExample | tuple[int, str]]:
        """Render rows; for a row that the template rejects, return (number, reason)."""
        try:
            return list(self.render(rows, with_texts=False))
        except TemplateTimeout:
            raise
        except UserError as error:
            if len(rows) == 1:
                return [(rows[0].row, str(error))]
        half = len(rows) // 2
        return [*self.render_or_explain(rows[:half]), *self.render_or_explain(rows[half:])]


def _cache_key(renderer: _Renderer, rows: Rows) -> str:
    tokenizer = renderer.tokenizer
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    language = getattr(tokenizer, "tgt_lang", None)
    model = [tokenizer.chat_template, tokenizer.special_tokens_map, language]
    settings = [renderer.max_length, renderer.train_on, renderer.task, renderer.reasoning]
    identity = [_RENDERER_VERSION, rows.digest, *model, *settings]
    if renderer.pictures and (processor := getattr(tokenizer, "pictures", None)):
        identity.append(processor.digest)
    digest.update(json.dumps(identity, sort_keys=True).encode())
    return digest.hexdigest()


def _write(renderer: _Renderer, rows: Rows, on_progress: OnProgress, folder: Path) -> None:
    """Write tokens.arrow into `folder`."""
    done = 0
    size, seconds = (_BATCH_ROWS, _BATCH_SECONDS) if not rows.pictures else _WITH_PICTURES
    results = map_in_subprocesses(
        _receive, (renderer,), _tokenize_batch, read_batches(rows.path, size),
        max_children=1 + len(rows) // (2 * size), seconds=seconds,
    )  # fmt: skip
    with (
        pa.OSFile(str(folder / "tokens.arrow"), "wb") as file,
        pa.ipc.new_file(file, TOKENS) as writer,
        contextlib.closing(results),
        _report_timeouts(lambda: f"rows {done + 1:,} to {min(done + size, len(rows)):,}"),
    ):
        place = TOKENS.get_field_index("position")
        for batch in results:
            positions = pc.add(batch.column(place), done)
            writer.write_batch(batch.set_column(place, TOKENS.field(place), positions))
            done = positions[-1].as_py() + 1
            on_progress(done / len(rows), f"Tokenized {done:,} of {len(rows):,} rows")


@contextlib.contextmanager
def _report_timeouts(place: Callable[[], str]) -> Iterator[None]:
    """Raise TemplateTimeout for the limits of a row, or of the batch at `place`."""
    try:
        yield
    except RowLimit as limit:
        raise template_timeout(f"row {limit.args[0]}") from None
    except BatchTimeout:
        raise template_timeout(place(), _BATCH_SECONDS) from None


# In child processes


def _receive(renderer: _Renderer) -> _Renderer:
    return renderer


def _tokenize_batch(renderer: _Renderer, rows: tuple[list[int], list[str]]) -> pa.RecordBatch:
    parsed = [
        from_json(number, line, renderer.pictures) for number, line in zip(*rows, strict=True)
    ]
    return pa.record_batch(token_columns(renderer.render_or_explain(parsed)), schema=TOKENS)


def _preview_batch(renderer: _Renderer, rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [_preview_row(renderer, row) for row in rows]


def _preview_row(renderer: _Renderer, row: Row) -> dict[str, Any]:
    try:
        [example] = renderer.render([row], with_texts=True)
    except TemplateTimeout:
        raise
    except UserError as error:
        return {"row": row.row, "tokens": [], "cut": 0, "problem": str(error)}
    result: dict[str, Any] = {
        "row": row.row,
        "tokens": _with_loss_mask(example),
        "cut": example.cut,
    }
    if example.pictures:
        result["pictures"] = _pictures(renderer, example)
    if example.more:
        result["pieces"] = 1 + len(example.more)
    number = unknown_id(renderer.tokenizer)
    if number is not None and (places := _places(example.input_ids, number)):
        result["unknown"] = places
    if example.tags:
        result["tags"] = list(zip(example.texts, example.tags, strict=True))
    for name, part in (("rejected", example.rejected), ("target", example.target)):
        if part:
            result |= {name: _with_loss_mask(part), f"{name}_cut": part.cut}
            if number is not None and (places := _places(part.input_ids, number)):
                result[f"{name}_unknown"] = places
    if example.label is not None:
        result["label"] = example.label
    elif example.good is not None:
        result["label"] = "good" if example.good else "not good"
    return result


def _pictures(renderer: _Renderer, example: TokenizedExample) -> list[dict[str, Any]]:
    """A small copy of each picture of a row, its tokens, and the shapes that the model gets."""
    processor = processor_of(renderer.tokenizer)
    shown = []
    for path in example.pictures:
        processed = processor.process(path)
        shapes = {name: list(array.shape) for name, array in processed.arrays.items()}
        count = processor.count_tokens(processed.text)
        shown.append({"thumbnail": thumbnail(path), "tokens": count, "arrays": shapes})
    return shown


def _places(ids: list[int], number: int) -> list[int]:
    return [place for place, one in enumerate(ids) if one == number]


def _with_loss_mask(example: TokenizedExample) -> list[list[Any]]:
    tokens = zip(example.texts, example.labels, strict=True)
    return [[text, label != MASKED] for text, label in tokens]
