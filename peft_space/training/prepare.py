"""Makes a run out of data and a recipe, after everything that can be known before training has been checked; nothing is left where it fails."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_space.data.check import TrainingData, training_data
from peft_space.data.render import Example, render
from peft_space.data.shapes import Conversation, Problem
from peft_space.errors import UserError
from peft_space.events import OnProgress, quietly
from peft_space.models.base import find_base, load_tokenizer
from peft_space.models.families import check_modules_to_save, linear_layers, target_modules
from peft_space.recipe import Recipe
from peft_space.run import Run


@dataclass(frozen=True)
class Prepared:
    """Data and recipe that go together: every row as the trainer will get it."""

    data: TrainingData
    train: Sequence[Example]
    held_out: Sequence[Example]


_BATCH = 2_000
"""Rows that are rendered between two reports of progress."""


def prepare(data: str | Path, recipe: Recipe, held_out: str | Path | None = None, on_progress: OnProgress = quietly) -> Prepared:
    """Check recipe, base model and data together, and render every row. Writes nothing.

    Raises UserError for what the user can mend.
    """
    on_progress(0.0, "Looking at the base model")
    base = find_base(recipe.base_model, recipe.revision)
    layers = linear_layers(base.config)
    target_modules(recipe, layers)
    check_modules_to_save(recipe, layers)
    tokenizer = load_tokenizer(base)
    on_progress(0.0, "Reading the rows")
    understood = training_data(data, recipe.held_out_share, recipe.seed, held_out)
    train: list[Example] = []
    refused: list[Problem] = []
    for start in range(0, len(understood.train), _BATCH):
        on_progress(start / len(understood.train), f"Rendering row {start:,} of {len(understood.train):,}")
        train += _render_what_can_be(tokenizer, understood.train[start : start + _BATCH], recipe.max_length, refused)
    held_out_examples = _render_what_can_be(tokenizer, understood.held_out, recipe.max_length, refused)
    if not train:
        raise UserError(
            f"{understood.source}: the base model's chat template refuses every row; row {refused[0].row}: {refused[0].problem}."
        )
    if not any(example.num_trained for example in train):
        raise UserError(f"{understood.source}: at {recipe.max_length} tokens every answer is cut off. Raise max_length in the recipe.")
    return Prepared(_without(understood, refused), train, held_out_examples)


def _render_what_can_be(tokenizer: Any, rows: Sequence[Conversation], max_length: int, refused: list[Problem]) -> list[Example]:
    """The rows rendered; those that the template refuses are added to `refused`."""
    try:
        return render(tokenizer, rows, max_length)
    except UserError as error:
        if len(rows) == 1:
            refused.append(Problem(rows[0].row, str(error)))
            return []
    half = len(rows) // 2
    return [
        *_render_what_can_be(tokenizer, rows[:half], max_length, refused),
        *_render_what_can_be(tokenizer, rows[half:], max_length, refused),
    ]


def _without(data: TrainingData, refused: Sequence[Problem]) -> TrainingData:
    """The data without the refused rows, which join its problems."""
    out = {problem.row for problem in refused}
    train = [row for row in data.train if row.row not in out]
    held_out = [row for row in data.held_out if row.row not in out]
    return dataclasses.replace(data, train=train, held_out=held_out, problems=[*data.problems, *refused])


def make_run(
    directory: str | Path,
    data: str | Path,
    recipe: Recipe,
    held_out: str | Path | None = None,
    on_progress: OnProgress = quietly,
) -> Run:
    """A new run in `directory`, ready for `train`."""
    prepared = prepare(data, recipe, held_out, on_progress)
    return Run.create(directory, recipe, prepared.data.files(), name=f"{Path(data).stem} on {Path(recipe.base_model).name}")
