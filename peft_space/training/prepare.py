"""Makes a run out of data and a recipe, after everything that can be known before training has been checked; nothing is left where it fails."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peft_space.data.arrow_store import Rows, Tokens
from peft_space.data.dataset import (
    MOST_PROBLEMS,
    TrainingData,
    load_dataset,
    load_run_data,
    row_numbers_where,
)
from peft_space.data.quality import Finding, Findings
from peft_space.data.records import Problem
from peft_space.data.table import Data, short_name
from peft_space.data.tokenization.tokenize import tokenize
from peft_space.errors import UserError
from peft_space.models.architecture import (
    CLASSIFYING,
    MOST_LABELS,
    ModelLayers,
    choose_task,
    linear_layers,
    modules_to_save,
    wrapped_layers,
)
from peft_space.models.loading import task_spec_for
from peft_space.models.quantization import quantization_of
from peft_space.models.resolve import BaseModelRef, find_base, load_tokenizer
from peft_space.models.weight_files import check_claimed_size, check_weights, download_weights
from peft_space.recipe import Recipe, TaskSpec
from peft_space.recommend import rules
from peft_space.runs.events import OnProgress, no_progress
from peft_space.runs.plan import read_plan
from peft_space.runs.run import Run


@dataclass(frozen=True)
class Prepared:
    """Data and recipe that go together: every row as the trainer will get it."""

    goal: TaskSpec
    data: TrainingData
    train: Tokens
    held_out: Tokens


def prepare(
    data: Data,
    recipe: Recipe,
    held_out: Data | None = None,
    column_mapping: Mapping[str, Any] | None = None,
    on_progress: OnProgress = no_progress,
    mended: bool = False,
) -> Prepared:
    """Check recipe, base model and data together, and render every row. Writes nothing but the cache.

    Args:
        mended: whether red lines are passed over, because what crosses them is about to be mended.

    Raises UserError for what the user can mend.
    """
    on_progress(0.0, "Looking at the base model")
    base = find_base(recipe.base_model, recipe.revision)
    check_weights(base)
    on_progress(0.0, "Reading the rows")
    understood = load_dataset(
        data, recipe.eval_split, recipe.seed, held_out, column_mapping, on_progress
    )
    task = choose_task(recipe, base.config, understood.column_mapping.schema)
    goal = TaskSpec(task, _labels(understood) if task in CLASSIFYING else ())
    layers = linear_layers(base.config, task)
    check_claimed_size(base, layers.model.num_parameters())
    wrapped_layers(recipe, layers)
    modules_to_save(recipe, layers)
    quantization_of(recipe, base.config)
    if task == "kto" and recipe.batch_size < 2:
        raise UserError(
            "todo",
            "KTO compares the rows of a batch, so batch_size has to be 2 at least. Raise it in the recipe.",
        )
    if not mended:
        rules.check_red_lines(rules.red_lines(recipe.model_copy(update={"task": task})))
    tokenizer = load_tokenizer(base, recipe.chat_template, task)
    all_tokens = tokenize(
        tokenizer, understood.train, recipe.max_length, recipe.train_on, on_progress, task
    )
    held_out_tokens = tokenize(
        tokenizer, understood.held_out, recipe.max_length, recipe.train_on, on_progress, task
    )
    _refuse_foreign_tokens(max(all_tokens.largest_id(), held_out_tokens.largest_id()), base, layers)
    findings = _of_tokens(all_tokens)
    understood, train, kept = _without_refused(understood, all_tokens, held_out_tokens)
    if not mended and not train.column("num_trained").any():
        raise UserError(
            "todo",
            f"{understood.source}: at {recipe.max_length} tokens every answer is cut off. Raise max_length in the recipe.",
        )
    if recipe.early_stopping_patience and not len(kept):
        raise UserError(
            "todo",
            "early_stopping_patience needs held-out rows to score on. Raise eval_split, bring a second file, or leave it empty.",
        )
    return Prepared(
        goal,
        dataclasses.replace(understood, findings=[*findings, *understood.findings]),
        train,
        kept,
    )


def _labels(data: TrainingData) -> tuple[str, ...]:
    """The labels in the order of the head's outputs: numbers as numbers, else by the alphabet. Raises UserError for one alone, or too many."""
    if not 2 <= len(data.labels) <= MOST_LABELS:
        found = (
            f"{len(data.labels)} labels"
            if len(data.labels) <= MOST_LABELS
            else f"more than {MOST_LABELS:,} labels"
        )
        raise UserError(
            "todo",
            f"{data.source} has {found if len(data.labels) != 1 else 'one label'}, and 2 to {MOST_LABELS:,} can be told apart. "
            "Choose the right column for the label on the Data tab.",
        )
    numbers = all(label.lstrip("-").isdigit() for label in data.labels)
    return tuple(sorted(data.labels, key=int if numbers else str))


def _refuse_foreign_tokens(largest: int, base: BaseModelRef, layers: ModelLayers) -> None:
    """Raise UserError where the tokenizer writes tokens that the model has no embedding for: training would end with an index error."""
    known = layers.model.get_input_embeddings().num_embeddings
    if largest >= known:
        raise UserError(
            "todo",
            f"{base.name}: its tokenizer writes the token {largest:,} for these rows, and the model has embeddings for {known:,} tokens alone, so "
            "the two do not belong together. Put the model's own tokenizer beside it, or choose the base that the tokenizer was made for.",
        )


def _of_tokens(tokens: Tokens) -> list[Finding]:
    """What only the tokens show."""
    findings = Findings()
    untrained = (tokens.column("num_trained") == 0) & (tokens.column("cut") > 0)
    chosen = {
        "cut": tokens.column("cut") > 0,
        "untrained": untrained,
        "controls": tokens.column("typed_controls"),
    }
    for kind, where in chosen.items():
        for number in row_numbers_where(tokens, where):
            findings.add(kind, number)
    return findings.told()


def _without_refused(
    data: TrainingData, tokens: Tokens, held_out: Tokens
) -> tuple[TrainingData, Tokens, Tokens]:
    """Without the rows that the template refuses, which join the problems, and those that the user wants left out."""
    refused = tokens.problems()
    out = np.isin(tokens.index, list(refused))
    if out.all():
        raise UserError(
            "todo",
            f"{data.source}: the base model's chat template refuses every row; {next(iter(refused.values()))}",
        )
    if "drop_cut" in data.column_mapping.fixes:
        out = out | (tokens.column("cut") > 0)
        if out.all():
            raise UserError(
                "todo",
                f"{data.source}: every row is longer than the limit, so none is left. Raise max_length in the recipe.",
            )
    kept = held_out.at(held_out.index[~np.isin(held_out.index, list(held_out.problems()))])
    train = tokens.at(tokens.index[~out])
    numbers = tokens.at(np.array(sorted(refused), dtype=np.int64)).column("row") if refused else []
    problems = [
        Problem(int(number), why)
        for number, why in zip(numbers, (refused[place] for place in sorted(refused)), strict=True)
    ]
    smaller = dataclasses.replace(
        data,
        train=Rows(data.train.path, data.train.digest, train.index),
        held_out=Rows(data.held_out.path, data.held_out.digest, kept.index),
        num_problems=data.num_problems + len(problems),
        problems=[*data.problems, *problems][:MOST_PROBLEMS],
    )
    return smaller, train, kept


def make_run(
    directory: str | Path,
    data: Data,
    recipe: Recipe,
    held_out: Data | None = None,
    column_mapping: Mapping[str, Any] | None = None,
    on_progress: OnProgress = no_progress,
) -> Run:
    """A new run in `directory`, ready for `train`. Raises UserError where its data cannot be trained on."""
    prepared = prepare(data, recipe, held_out, column_mapping, on_progress)
    files = prepared.data.files() | {"data/goal.json": prepared.goal.as_json()}
    return Run.create(
        directory, recipe, files, name=f"{short_name(data)} on {Path(recipe.base_model).name}"
    )


def prefetch(run: Run) -> int:
    """Have what training `run` needs besides a GPU on this machine: its rows rendered, whose number this returns, and the base's weights."""
    recipe, plan, data, goal = run.recipe, read_plan(run), load_run_data(run), task_spec_for(run)
    base = find_base(
        recipe.base_model, plan.base_revision if plan and plan.base_on_hub else recipe.revision
    )
    download_weights(base)
    tokenizer = load_tokenizer(base, recipe.chat_template, goal.task)
    for rows in (data.train, data.held_out):
        tokenize(
            tokenizer,
            rows,
            plan.max_length if plan else recipe.max_length,
            recipe.train_on,
            task=goal.task,
        )
    return len(data.train) + len(data.held_out)
