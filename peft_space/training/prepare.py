"""Checks recipe, base model and data together, and creates a run that is ready to train."""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peft_space.data.arrow_store import Rows, Tokens
from peft_space.data.batches import Examples
from peft_space.data.dataset import (
    MAX_PROBLEMS,
    TrainingData,
    load_dataset,
    load_run_data,
)
from peft_space.data.lengths import row_numbers_where
from peft_space.data.row_checks import Finding, Findings
from peft_space.data.row_normalization import Problem
from peft_space.data.table import Data, short_name
from peft_space.data.tokenization.answer_spans import NOTES
from peft_space.data.tokenization.render import length_limit
from peft_space.data.tokenization.tokenize import tokenize
from peft_space.errors import UserError
from peft_space.models.architecture import (
    CLASSIFYING,
    MAX_LABELS,
    ModelLayers,
    choose_task,
    input_embeddings,
    linear_layers,
    modules_to_save,
    unadapted_notes,
    wrapped_layers,
)
from peft_space.models.end_tokens import (
    explain_unlearned_end,
    tokens_at_ends,
    trains_output_layer,
    unlearned_ends_in_files,
)
from peft_space.models.label_order import labels_in_order
from peft_space.models.loading import (
    check_checkpointing,
    expert_adapter,
    task_spec_for,
    tokenizer_of,
)
from peft_space.models.quantization import quantization_of
from peft_space.models.repo_files import check_claimed_size, check_weights, download_weights
from peft_space.models.resolve import BaseModelRef, find_base, load_tokenizer
from peft_space.models.vocabulary import (
    check_new_tokens,
    find_base_of_run,
    with_new_tokens,
)
from peft_space.recipe import FROM_BASE, Recipe, Task, TaskSpec
from peft_space.recommend import rules
from peft_space.runs.events import OnProgress, no_progress
from peft_space.runs.plan import read_plan
from peft_space.runs.run import Run


@dataclass(frozen=True)
class Prepared:
    """Data that fit a recipe, with every row as the trainer gets it."""

    task_spec: TaskSpec
    data: TrainingData
    train: Tokens
    held_out: Tokens
    not_adapted: list[str] = dataclasses.field(default_factory=list)
    """Sentences that say which layers and experts of the base get no adapter, and why."""
    base_notes: list[str] = dataclasses.field(default_factory=list)
    """What the app does about special tokens that the base never learned or lacks."""


def prepare(
    data: Data,
    recipe: Recipe,
    held_out: Data | None = None,
    column_mapping: Mapping[str, Any] | None = None,
    on_progress: OnProgress = no_progress,
    allow_red_lines: bool = False,
    base: BaseModelRef | None = None,
) -> Prepared:
    """Check recipe, base model and data together, and tokenize every row.

    Writes nothing but caches.

    Args:
        data: the rows.
        recipe: the recipe.
        held_out: a second file with held-out rows, instead of a split.
        column_mapping: how to read the rows, if it is not detected.
        on_progress: is called with the progress.
        allow_red_lines: whether to accept a recipe that is about to be corrected.
        base: the recipe's base model, with the vocabulary of an imported adapter.

    Raises:
        UserError: if the three do not fit together.
    """
    on_progress(0.0, "Checking the base model")
    base = with_new_tokens(base or find_base(recipe.base_model, recipe.revision), recipe)
    check_weights(base)
    on_progress(0.0, "Reading the rows")
    dataset = load_dataset(
        data,
        recipe.eval_split,
        recipe.seed,
        held_out,
        column_mapping,
        on_progress,
        recipe.file_weights,
    )
    has_pictures = any(rows.pictures is not None for rows in (dataset.train, dataset.held_out))
    task = choose_task(recipe, base.config, dataset.column_mapping.schema, has_pictures)
    labels = _labels(dataset, recipe, base, task) if task in CLASSIFYING else ()
    task_spec = TaskSpec(task, labels)
    layers = linear_layers(base.config, task)
    _check_recipe(recipe, base, task_spec, layers, allow_red_lines)
    is_text = dataset.column_mapping.schema == "text"
    tokenizer = load_tokenizer(base, recipe, task, is_text)
    train_tokens, held_out_tokens = (
        tokenize(
            tokenizer,
            rows,
            recipe.max_length,
            recipe.train_on,
            on_progress,
            task,
            recipe.reasoning_of_rows,
        )
        for rows in (dataset.train, dataset.held_out)
    )
    largest_id = max(train_tokens.largest_id(), held_out_tokens.largest_id())
    _check_token_ids(largest_id, base, layers)
    findings = _token_findings(train_tokens, is_text)
    if task == "kto":
        findings += _rating_findings(train_tokens, dataset.source)
    dataset, train, held_out_tokens = _drop_rejected(dataset, train_tokens, held_out_tokens)
    if not allow_red_lines and not train.column("num_trained").any():
        raise _nothing_to_train(dataset, train, recipe, length_limit(tokenizer, recipe.max_length))
    if recipe.early_stopping_patience and not len(held_out_tokens):
        raise UserError(
            "training.no_held_out_rows",
            "early_stopping_patience needs held-out rows. Raise eval_split, add a second file, "
            "or leave it empty.",
        )
    dataset = dataclasses.replace(dataset, findings=[*findings, *dataset.findings])
    notes = _base_notes(recipe, base, layers, tokenizer, Examples(train))
    return Prepared(
        task_spec, dataset, train, held_out_tokens, unadapted_notes(recipe, layers), notes
    )


def _base_notes(
    recipe: Recipe, base: BaseModelRef, layers: ModelLayers, tokenizer: Any, rows: Examples
) -> list[str]:
    """What the app does about special tokens. Weights are read only if they are here already."""
    notes = [tokenizer.padding_note] if tokenizer.padding_note else []
    ends = tokens_at_ends(rows, tokenizer, layers.task)
    if not trains_output_layer(recipe, layers):
        for token, count in unlearned_ends_in_files(base, layers, ends).items():
            name = tokenizer.convert_ids_to_tokens(token)
            notes.append(explain_unlearned_end(name, count, recipe.method not in FROM_BASE))
    return [f"{what} {why}" for what, why in notes]


def _nothing_to_train(data: TrainingData, train: Tokens, recipe: Recipe, limit: int) -> UserError:
    """The error for rows without a trained token: by their weights, or by the length limit."""
    if not (train.column("cut") > 0).any():
        return UserError(
            "training.all_weights_zero",
            f"{data.source}: no message has weight 1, so there is nothing to train. "
            "Set weight 1 for the answers to learn, or train_on to all_assistant.",
        )
    remedy = "Raise max_length in the recipe."
    if limit < recipe.max_length:
        remedy = "The base model has no more positions: shorten the rows, or choose another."
    return UserError(
        "training.all_answers_truncated",
        f"{data.source}: at {limit:,} tokens, every answer is truncated. {remedy}",
    )


_MIN_SCORES = 6
"""From so many different numbers with a fraction, labels are scores and not classes."""
_FRACTION = re.compile(r"[+-]?\d*\.\d+(e[+-]?\d+)?", re.IGNORECASE)


def _is_fraction(label: str) -> bool:
    return _FRACTION.fullmatch(label) is not None


def _labels(data: TrainingData, recipe: Recipe, base: BaseModelRef, task: Task) -> tuple[str, ...]:
    """Labels in the order of the head's outputs."""
    count = len(data.labels)
    if count >= _MIN_SCORES and all(map(_is_fraction, data.labels)):
        raise UserError(
            "training.regression",
            f"{data.source} has {count:,} different numbers as labels, such as "
            f"{next(iter(data.labels))}. Predicting a number (regression) is not offered. "
            "Round the numbers to a few classes, or choose another label column.",
        )
    if not 2 <= count <= MAX_LABELS:
        amount = "1 label" if count == 1 else f"{count:,} labels"
        if count > MAX_LABELS:
            amount = f"more than {MAX_LABELS:,} labels"
        raise UserError(
            "training.label_count",
            f"{data.source} has {amount}, and a classifier can learn 2 to {MAX_LABELS:,}. "
            "Choose the right label column on the Data tab.",
        )
    return labels_in_order(data.labels, recipe, base.config, task)


def _check_recipe(
    recipe: Recipe,
    base: BaseModelRef,
    task_spec: TaskSpec,
    layers: ModelLayers,
    allow_red_lines: bool,
) -> None:
    """Check that the recipe suits the base model and the task."""
    check_claimed_size(base, layers.model.num_parameters())
    wrapped_layers(recipe, layers)
    modules_to_save(recipe, layers)
    expert_adapter(recipe, layers)
    quantization_of(recipe, base.config)
    check_checkpointing(recipe, layers)
    check_new_tokens(recipe, layers)
    if task_spec.task == "kto" and recipe.batch_size * recipe.gradient_accumulation_steps < 2:
        raise UserError(
            "training.kto_batch_too_small",
            "KTO compares the rows of a step, so batch_size x gradient_accumulation_steps must be "
            "at least 2. Raise one of them in the recipe.",
        )
    if not allow_red_lines:
        resolved = recipe.model_copy(update={"task": task_spec.task})
        rules.check_red_lines(rules.red_lines(resolved))


def _check_token_ids(largest: int, base: BaseModelRef, layers: ModelLayers) -> None:
    """Reject tokens without an embedding, with which training would end in an index error."""
    embeddings = input_embeddings(layers.model)
    if embeddings is None:
        return
    size = len(embeddings.weight)  # type: ignore[arg-type]
    if largest >= size:
        raise UserError(
            "training.tokenizer_mismatch",
            f"{base.name}: its tokenizer produces token {largest:,} for these rows, but the model "
            f"has only {size:,} embeddings, so the two do not belong together. Put the model's "
            "own tokenizer in its folder, or choose the base model the tokenizer was made for.",
        )


_MAX_CHARACTERS = 20


def _token_findings(tokens: Tokens, is_text: bool) -> list[Finding]:
    """Findings about rows that only their tokens show. `is_text`: rows are plain texts."""
    findings, truncated = Findings(), tokens.column("cut") > 0
    unknown = tokens.unknown()
    masks: dict[str, np.ndarray] = {
        "cut": truncated,
        "untrained": (tokens.column("num_trained") == 0) & truncated,
        "equal_pairs": tokens.equal_pairs(),
        "text_controls" if is_text else "controls": tokens.column("typed_controls"),
        "unknown": np.array([bool(characters) for characters in unknown], dtype=bool),
    }
    notes = tokens.column("notes")
    for bit, note in enumerate(NOTES):
        masks[note] = (notes >> bit & 1).astype(bool)
    for kind, mask in masks.items():
        for number in row_numbers_where(tokens, mask):
            findings.add(kind, number)
    characters = Counter("".join(filter(None, unknown)))
    named = ", ".join(repr(one) for one, _ in characters.most_common(_MAX_CHARACTERS))
    more = " and more" if len(characters) > _MAX_CHARACTERS else ""
    return [
        dataclasses.replace(finding, words=f"{finding.words} They are {named}{more}.")
        if finding.kind == "unknown"
        else finding
        for finding in findings.to_list()
    ]


_MAX_RATING_IMBALANCE = 4


def _rating_findings(tokens: Tokens, source: str) -> list[Finding]:
    """A finding if answers of one rating are rare.

    Raises:
        UserError: all answers have the same rating.
    """
    num_good = int(tokens.column("good")[tokens.column("num_trained") > 0].sum())
    num_bad = int((tokens.column("num_trained") > 0).sum()) - num_good
    if not num_good or not num_bad:
        raise UserError(
            "training.one_sided_ratings",
            f"{source}: all {num_good + num_bad:,} answers to train are rated "
            f"{'good' if num_good else 'bad'}, and KTO learns from the difference. Add answers "
            "with the other rating; good ones alone can be trained as prompt and completion.",
        )
    rare, often = sorted((num_good, num_bad))
    if often <= _MAX_RATING_IMBALANCE * rare:
        return []
    words = (
        f"{num_good:,} are rated good and {num_bad:,} bad. KTO counts each answer alike, so it "
        "hardly learns from the rare ones. Add more of them, or train fewer of the others."
    )
    kind = "good" if num_good == rare else "bad"
    return [Finding("unbalanced", f"Few answers rated {kind}", rare, [], words)]


def _drop_rejected(
    data: TrainingData, tokens: Tokens, held_out: Tokens
) -> tuple[TrainingData, Tokens, Tokens]:
    """Drop rows that the template rejects, which become problems, and those the user drops."""
    rejected = tokens.problems()
    drop = np.isin(tokens.positions, list(rejected))
    if drop.all():
        raise UserError(
            "training.all_rows_rejected",
            f"{data.source}: the base model cannot read any of these rows, because its chat "
            f"template rejects them. {next(iter(rejected.values()))}",
        )
    if "drop_cut" in data.column_mapping.fixes:
        drop = drop | (tokens.column("cut") > 0)
        if drop.all():
            raise UserError(
                "training.all_rows_too_long",
                f"{data.source}: every row is longer than the limit, so no rows remain. "
                "Raise max_length in the recipe.",
            )
    held_out = held_out.at(
        held_out.positions[~np.isin(held_out.positions, list(held_out.problems()))]
    )
    train = tokens.at(tokens.positions[~drop])
    places = np.array(sorted(rejected), dtype=np.int64)
    numbers: Any = tokens.at(places).column("row") if rejected else []
    problems = [
        Problem(int(number), rejected[place]) for number, place in zip(numbers, places, strict=True)
    ]
    remaining = dataclasses.replace(
        data,
        train=Rows(data.train.path, data.train.digest, train.row_positions()),
        held_out=Rows(data.held_out.path, data.held_out.digest, held_out.row_positions()),
        num_problems=data.num_problems + len(problems),
        problems=[*data.problems, *problems][:MAX_PROBLEMS],
    )
    return remaining, train, held_out


def make_run(
    directory: str | Path,
    data: Data,
    recipe: Recipe,
    held_out: Data | None = None,
    column_mapping: Mapping[str, Any] | None = None,
    on_progress: OnProgress = no_progress,
) -> Run:
    """Create a run in `directory` that is ready for `train`. The arguments are those of `prepare`.

    Raises:
        UserError: if the data cannot be trained on. Nothing is created then.
    """
    prepared = prepare(data, recipe, held_out, column_mapping, on_progress)
    files = prepared.data.files() | {"data/task.json": prepared.task_spec.as_json()}
    name = f"{short_name(data)} on {Path(recipe.base_model).name}"
    return Run.create(directory, recipe, files, name=name)


def prefetch(run: Run) -> int:
    """Tokenize the rows of a run and download its base model, before a GPU is needed.

    Returns:
        The number of rows.
    """
    recipe, plan, data, task_spec = (
        run.recipe,
        read_plan(run),
        load_run_data(run),
        task_spec_for(run),
    )
    revision = plan.base_revision if plan and plan.base_on_hub else recipe.revision
    base = find_base_of_run(run, revision)
    download_weights(base)
    tokenizer = tokenizer_of(run, base, task_spec.task)
    max_length = plan.max_length if plan else recipe.max_length
    for rows in (data.train, data.held_out):
        tokenize(
            tokenizer,
            rows,
            max_length,
            recipe.train_on,
            task=task_spec.task,
            reasoning=recipe.reasoning_of_rows,
        )
    return len(data.train) + len(data.held_out)
