"""Estimates the memory and time of a training, and on which Space hardware it fits.

The time here comes from a measurement of the model's blocks. On other hardware it comes from the
number of operations and the data sheet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from peft_space import hardware
from peft_space.data.arrow_store import Tokens
from peft_space.data.batches import Examples
from peft_space.data.dataset import load_run_data
from peft_space.data.table import Data
from peft_space.data.tokenization.tokenize import tokenize
from peft_space.errors import UserError
from peft_space.estimation.hub_hardware import (
    HARDWARE,
    HardwareOffer,
    SpaceHardware,
    zerogpu_hardware,
)
from peft_space.estimation.memory import (
    MemoryEstimate,
    estimate,
    estimate_within,
    shared_by,
)
from peft_space.estimation.step_time import EFFICIENCY, measure_step
from peft_space.formatting import duration, gigabytes
from peft_space.hardware import Device
from peft_space.models.architecture import (
    ModelLayers,
    input_embeddings,
    linear_layers,
    num_parameters,
    tower_parameters,
)
from peft_space.models.config_values import image_token, patches_a_token
from peft_space.models.loading import inference_dtype, task_spec_for, tokenizer_of
from peft_space.models.quantization import quantization_of
from peft_space.models.resolve import find_base
from peft_space.models.vocabulary import find_base_of_run, with_new_tokens
from peft_space.recipe import Recipe, Task
from peft_space.runs.events import OnProgress, no_progress
from peft_space.runs.plan import processes_for, split_step_rows
from peft_space.runs.run import Run
from peft_space.training.autotune import choose_learning_rate
from peft_space.training.prepare import Prepared, prepare
from peft_space.training.trainers import goes_by_length, padded_tokens, steps_per_epoch, total_steps

if TYPE_CHECKING:
    from transformers import PretrainedConfig


_EXTRA_FORWARDS: dict[Task, int] = {"dpo": 1, "kto": 3}
"""Forward passes besides the trained one: of the reference, and for KTO both again with mismatched
answers."""


@dataclass(frozen=True)
class Memory:
    """Peak bytes that a training needs here, and free bytes."""

    total: int
    free: int
    parts: dict[str, int]
    """Of `estimation.memory.MemoryEstimate`."""
    to_fit: list[dict[str, Any]]
    """If it does not fit: single changes that make it fit, each with `what` and its `total`."""
    length: int
    """Tokens of the longest row."""
    gradient_checkpointing: bool
    """True if it is on, because the recipe says so or because it does not fit without."""
    error: float | None
    """Largest error of such estimates that was measured; None where none was, as on a GPU."""


@dataclass(frozen=True)
class Time:
    """Estimated seconds of a training, and the figures behind them."""

    steps: int
    tokens: float
    """Per step, with padding."""
    flops: float
    """Floating-point operations per step."""
    checkpointing: bool
    """True if the forward pass is counted twice."""
    measured_tokens: float
    """Tokens a second through all blocks, forward and backward, measured here."""
    step_seconds: float
    seconds: float
    """Of all steps and evaluations."""
    between: tuple[float, float] | None
    """Seconds between which nearly all measured trainings were; None if none was, as on a GPU."""


@dataclass(frozen=True)
class OnSpace:
    """If a training fits on one kind of hardware, and its minimum seconds, if known."""

    name: str
    title: str
    memory: int
    need: int
    fits: bool
    least_seconds: float | None


@dataclass(frozen=True)
class Estimates:
    """Estimated memory and time.

    `memory` is None and `spaces` is empty if the base model comes quantized, because the memory of
    its layers is unknown.
    """

    memory: Memory | None
    time: Time
    spaces: list[OnSpace]
    learning_rate: float
    """Of the recipe, or the one that the training will choose."""


def estimate_training(
    data: Data,
    recipe: Recipe,
    held_out: Data | None = None,
    column_mapping: dict | None = None,
    on_progress: OnProgress = no_progress,
) -> Estimates:
    """Estimate what training `recipe` on these data needs. The arguments are those of `prepare`.

    Raises:
        UserError: if it cannot be trained at all.
    """
    prepared = prepare(data, recipe, held_out, column_mapping, on_progress)
    on_progress(0.9, "Estimating memory and time")
    return estimate_prepared(prepared, recipe)


def estimate_prepared(
    prepared: Prepared, recipe: Recipe, kinds: Sequence[SpaceHardware] = HARDWARE
) -> Estimates:
    """Estimate memory and time for data that are tokenized already.

    Args:
        prepared: the data.
        recipe: the recipe.
        kinds: the hardware to estimate for.
    """
    base = with_new_tokens(find_base(recipe.base_model, recipe.revision), recipe)
    task = prepared.task_spec.task
    lengths = row_lengths(Examples(prepared.train).tokens, recipe)
    longest, num_rows = int(lengths.max()), len(lengths)
    patches = _patches(prepared.train, base.config)
    memory = memory_here(recipe, base.config, task, longest, num_rows, float(patches.max()))
    checkpointing = recipe.gradient_checkpointing == "on"
    if memory:
        checkpointing = memory.gradient_checkpointing
    time = _estimate_time(recipe, prepared, base.config, checkpointing)
    spaces = []
    if memory:
        spaces = _on_spaces(recipe, base.config, task, longest, num_rows, time, kinds)
    rate, _ = choose_learning_rate(recipe, base.config, task, num_rows)
    return Estimates(memory, time, spaces, rate)


_CPU_ERROR = 0.15
"""Of memory: the worst of 30 trainings in `benchmarks/real_shapes.py` and `pictures.py`."""
_CPU_BETWEEN = 0.7, 1.5
"""Measured over estimated time: 23 of the 24 trainings in `benchmarks/real_shapes.py`."""
_ROWS_SEARCHED = 200


def _patches(rows: Tokens, config: PretrainedConfig) -> np.ndarray:
    """Return the patches of the pictures (N,) of the first rows; zero without pictures."""
    token = image_token(config)
    if token is None or not len(rows) or not rows.has_pictures:
        return np.zeros(1)
    counts = [rows[at].input_ids.count(token) for at in range(min(len(rows), _ROWS_SEARCHED))]
    return np.array(counts) * patches_a_token(config)


def row_lengths(rows: Tokens, recipe: Recipe) -> np.ndarray:
    """Return the tokens (N,) of each row after truncation; of two sequences, of the longer one."""
    return np.minimum(rows.column("length"), recipe.max_length)


# Memory


def memory_here(
    recipe: Recipe,
    config: PretrainedConfig,
    task: Task,
    length: int,
    num_rows: int | None = None,
    patches: float = 0,
) -> Memory | None:
    """Estimate the memory of a training on this machine, or on the GPU that ZeroGPU assigns.

    Args:
        recipe: the recipe.
        config: the base model's config.
        task: the task to train.
        length: tokens of the longest row.
        num_rows: number of training rows, if known.
        patches: of the pictures of a row.

    Returns:
        The estimate, or None if the base model comes quantized.
    """
    if quantization_of(recipe, config) != recipe.quantization:
        return None
    layers = linear_layers(config, task)  # a new one: counting wraps the model
    processes = _processes_here(recipe)
    rows = _rows_at_once(recipe, task, num_rows, processes)
    target: dict[str, Any] = {"device": hardware.device(), "dtype": inference_dtype(config)}
    free = hardware.free_memory()
    if kind := zerogpu_hardware():
        target, free = {"device": kind.device, "dtype": "bfloat16"}, kind.usable
    need, checkpointing = estimate_within(
        layers, recipe, rows, length, free, **target, patches=patches
    )
    can_share = processes > 1 and recipe.quantization != "int8"
    wants_to = {"on": True, "automatic": need.total > free, "off": False}[recipe.shard_base]
    if can_share and wants_to:
        need = shared_by(need, layers, processes)
    fit = []
    if need.total > free:
        switch = {"gradient_checkpointing": "on" if checkpointing else "off"}
        changes = changes_that_fit(
            layers, recipe.model_copy(update=switch), rows, length, free, **target
        )
        fit = [{"what": change.what, "total": change.estimate.total} for change in changes]
    error = _CPU_ERROR if target["device"] == "cpu" else None
    return Memory(need.total, free, asdict(need), fit, length, checkpointing, error)


def _processes_here(recipe: Recipe) -> int:
    """How many GPUs of this machine share a step. ZeroGPU lends one."""
    return 1 if zerogpu_hardware() else processes_for(recipe, hardware.num_devices())


def _rows_at_once(recipe: Recipe, task: Task, num_rows: int | None, processes: int = 1) -> int:
    """Rows that one process holds at once."""
    step_rows = recipe.batch_size * recipe.gradient_accumulation_steps
    size, _ = split_step_rows(step_rows, recipe.batch_size, processes)
    rows = min(size, num_rows or size)
    return rows * (2 if task == "dpo" else 1)  # both answers of each row


@dataclass(frozen=True)
class RecipeChange:
    """One change that makes a training fit, and the memory that it needs then."""

    what: str
    recipe: Recipe
    batch_size: int
    length: int
    estimate: MemoryEstimate


def changes_that_fit(
    layers: ModelLayers,
    recipe: Recipe,
    batch_size: int,
    length: int,
    num_bytes: int,
    device: Device = "cpu",
    dtype: str = "float32",
) -> list[RecipeChange]:
    """The single changes that make a training fit, those that change the adapter least first.

    A smaller batch with more accumulation trains the same adapter. So does gradient checkpointing,
    which takes more time. Quantization costs a little precision. A smaller rank and shorter rows
    limit what is learned.

    Args:
        layers: as for `estimate`, like all arguments without a line here.
        num_bytes: the memory that is available.

    Returns:
        For each kind of change the mildest that suffices; an empty list if none does.
    """
    changes = []
    for candidates in _candidates(layers, recipe, batch_size, length):
        for candidate in candidates:
            need = estimate(layers, *candidate[1:], device, dtype)
            if need.total <= num_bytes:
                changes.append(RecipeChange(*candidate, need))
                break
    return changes


_Candidate = tuple[str, Recipe, int, int]


def _candidates(
    layers: ModelLayers, recipe: Recipe, batch_size: int, length: int
) -> Iterator[list[_Candidate]]:
    """For each kind of change its candidates, the mildest first."""

    def changed(**changes: Any) -> Recipe:
        return recipe.model_copy(update=changes)

    smaller_batches = []
    for size in _halvings(batch_size):
        steps = recipe.gradient_accumulation_steps * -(-batch_size // size)
        smaller = changed(batch_size=size, gradient_accumulation_steps=steps)
        smaller_batches.append((f"batches of {size}, {steps} accumulated", smaller, size, length))
    yield smaller_batches
    others = []
    if recipe.gradient_checkpointing != "on" and layers.can_checkpoint:
        others.append(("gradient checkpointing", changed(gradient_checkpointing="on")))
    if recipe.quantization not in ("nf4", "fp4"):
        others.append(("the base in 4 bits (nf4)", changed(quantization="nf4")))
    for what, candidate in others:
        yield [(what, candidate, batch_size, length)]
    yield [
        (f"LoRA rank {rank}", changed(lora_rank=rank), batch_size, length)
        for rank in _halvings(recipe.lora_rank, least=4)
    ]
    yield [
        (f"rows of {tokens} tokens at most", changed(max_length=tokens), batch_size, tokens)
        for tokens in _halvings(length, least=64)
    ]


def _halvings(number: int, least: int = 1) -> list[int]:
    halvings = [number // 2**power for power in range(1, number.bit_length())]
    return [half for half in halvings if half >= least]


def check_fits(memory: Memory | None) -> None:
    """Check that a training fits in the free memory.

    Raises:
        UserError: if it does not. The message names changes that make it fit.
    """
    if memory and memory.total > memory.free:
        raise UserError(
            "planning.does_not_fit",
            f"This does not fit: training needs about {gigabytes(memory.total)} of memory, and "
            f"{gigabytes(memory.free)} are free here. {_remedy(memory)}",
        )


def _remedy(memory: Memory) -> str:
    options = "; or ".join(f"{way['what']} ({gigabytes(way['total'])})" for way in memory.to_fit)
    if options:
        return f"It would fit with {options}."
    return "No single change makes it fit: choose a smaller base model, or a larger machine."


# Time


def multiplied_parameters(config: PretrainedConfig, task: Task) -> int:
    """Return the number of parameters that every token is multiplied with.

    These are all parameters except the input embeddings, unless the head shares them, and except a
    vision tower. All experts are counted, although a token uses few of them, so the time of such
    models is overestimated.
    """
    layers = linear_layers(config, task)
    model: Any = layers.model
    embeddings, head = input_embeddings(model), model.get_output_embeddings()
    shared = embeddings and head is not None and head.weight is embeddings.weight
    unused = 0 if shared or embeddings is None else num_parameters(embeddings)
    return model.num_parameters() - unused - tower_parameters(layers)


def flops_a_token(parameters: int, task: Task, checkpointing: bool) -> int:
    """Return the floating-point operations to train on one token.

    Per parameter: 2 forward, 2 backward to the adapters, and 2 for the forward pass if it is
    recomputed. The gradients of the base weights, another 2, are not computed. Counted as in arXiv
    2001.08361, section 2.1, without attention's own products.
    """
    passes = 2 + checkpointing + _EXTRA_FORWARDS.get(task, 0)
    return 2 * passes * parameters


def num_evaluations(recipe: Recipe, num_rows: int) -> int:
    """Return the number of evaluations of a whole training on `num_rows` rows."""
    return total_steps(recipe, num_rows) // (recipe.eval_steps or steps_per_epoch(recipe, num_rows))


def _estimate_time(
    recipe: Recipe, prepared: Prepared, config: PretrainedConfig, checkpointing: bool
) -> Time:
    task, examples = prepared.task_spec.task, Examples(prepared.train).tokens
    lengths, held_out_lengths = (
        row_lengths(examples, recipe),
        row_lengths(prepared.held_out, recipe),
    )
    num_rows, step_rows = len(lengths), recipe.batch_size * recipe.gradient_accumulation_steps
    rows, sides = min(num_rows, step_rows), 2 if task == "dpo" else 1
    row_tokens = float(lengths.mean())  # packed rows have no padding
    if task != "causal-lm":
        grouped = goes_by_length(lengths, recipe)
        row_tokens = padded_tokens(lengths, recipe.batch_size, step_rows if grouped else None)
    steps, extra = total_steps(recipe, num_rows), _EXTRA_FORWARDS.get(task, 0)
    tokens = row_tokens * rows * sides
    layers = linear_layers(config, task)
    published = quantization_of(recipe, config) != recipe.quantization
    device, dtype = hardware.device(), inference_dtype(config)
    if zerogpu_hardware():  # a GPU is there in a slice only
        device, dtype = "cpu", "float32"
    here = measure_step(
        layers,
        recipe.model_copy(update={"quantization": "none"}) if published else recipe,
        min(num_rows, recipe.batch_size) * sides,
        max(1, round(row_tokens)),
        device,
        dtype,
    )
    label_share = min(1.0, float(examples.column("num_trained").mean()) / (row_tokens * sides))
    scored = here.label * label_share
    passes = here.both + (checkpointing + extra) * here.forward
    multiplied, in_tower = multiplied_parameters(config, task), tower_parameters(layers)
    patches = float(_patches(prepared.train, config).mean()) * rows
    tower = patches * in_tower / max(1, multiplied) * here.forward
    step = ((passes + (1 + extra / 2) * scored) * tokens + tower) / _processes_here(recipe)
    held_out_tokens = padded_tokens(held_out_lengths, recipe.batch_size) * sides
    held_out_row = ((1 + extra) * here.forward + scored / 2) * held_out_tokens
    evaluations = num_evaluations(recipe, num_rows) * len(held_out_lengths) * held_out_row
    flops = flops_a_token(multiplied, task, checkpointing) * tokens + 2 * in_tower * patches
    seconds = steps * step + evaluations
    on_cpu = device == "cpu" and not zerogpu_hardware()
    between = (_CPU_BETWEEN[0] * seconds, _CPU_BETWEEN[1] * seconds) if on_cpu else None
    return Time(steps, tokens, flops, checkpointing, 1 / here.both, step, seconds, between)


# Spaces


def _on_spaces(
    recipe: Recipe,
    config: PretrainedConfig,
    task: Task,
    length: int,
    num_rows: int,
    time: Time,
    kinds: Sequence[SpaceHardware],
) -> list[OnSpace]:
    layers, rows = linear_layers(config, task), _rows_at_once(recipe, task, num_rows)
    asked, counted = (
        flops_a_token(1, task, checkpointing)
        for checkpointing in (recipe.gradient_checkpointing == "on", time.checkpointing)
    )
    minimum_flops = time.steps * time.flops * asked / counted

    @cache
    def need(device: Device, checkpointing: str) -> int:
        changed = recipe.model_copy(update={"gradient_checkpointing": checkpointing})
        dtype = "float32" if device == "cpu" else "bfloat16"
        return estimate(layers, changed, rows, length, device, dtype).total

    def on_space(kind: SpaceHardware) -> OnSpace:
        needed = need(kind.device, recipe.gradient_checkpointing)
        automatic = recipe.gradient_checkpointing == "automatic" and layers.can_checkpoint
        if automatic and needed > kind.usable:
            needed = need(kind.device, "on")
        seconds = minimum_flops / kind.teraflops / 1e12 if kind.teraflops else None
        fits = needed <= kind.usable
        return OnSpace(kind.name, kind.title, kind.usable, needed, fits, seconds)

    return [on_space(kind) for kind in kinds]


# Text


def describe_estimates(estimates: Estimates) -> list[str]:
    """Return a line each about memory, time and the learning rate."""
    rate = f"Learning rate: {estimates.learning_rate:g}."
    return [_describe_memory(estimates.memory), _describe_time(estimates.time), rate]


def _describe_memory(memory: Memory | None) -> str:
    if memory is None:
        return "Memory: not estimated, because the base model comes quantized. Run a dry run."
    device = "on the GPU that ZeroGPU assigns" if zerogpu_hardware() else "here"
    largest = sorted(memory.parts.items(), key=lambda part: -part[1])[:3]
    parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in largest)
    checkpointing = " with gradient checkpointing" if memory.gradient_checkpointing else ""
    need = (
        f"Memory: up to about {gigabytes(memory.total)}{checkpointing}, for rows of "
        f"{memory.length:,} tokens ({parts})"
    )
    free = f"{gigabytes(memory.free)} are free {device}"
    if memory.total <= memory.free:
        range_ = f", within {memory.error:.0%}" if memory.error else ""
        return f"{need}{range_}. {free}."
    return f"{need}, but only {free}: it does not fit. {_remedy(memory)}"


def _describe_time(time: Time) -> str:
    if zerogpu_hardware():
        return (
            f"Time: {time.steps:,} steps of {time.flops / 1e9:,.3g} GFLOP. Run a dry run to "
            "measure how long they take on the GPU that ZeroGPU assigns."
        )
    between = ""
    if time.between:
        between = f" ({duration(time.between[0])} to {duration(time.between[1])})"
    return (
        f"Time: about {duration(time.seconds)}{between} for {time.steps:,} steps of "
        f"{duration(time.step_seconds)}. This is an estimate: the blocks of this model took "
        f"{1_000 / time.measured_tokens:,.3g} ms per token here."
    )


_SETUP_SECONDS = 1_200.0
"""A generous time for the machine to start, install the libraries and download the base model."""
_DEFAULT_TIMEOUT = 6 * 3_600.0
"""Seconds, if the speed of the hardware is unknown."""


@dataclass(frozen=True)
class JobOption:
    """One kind of hardware.

    `seconds` and `dollars` are None if its speed is unknown; `fits` is None if the base model comes
    quantized.
    """

    name: str
    title: str
    dollars_an_hour: float
    fits: bool | None
    seconds: float | None
    dollars: float | None
    timeout: int
    """Seconds: twice the estimate, plus setup."""
    words: str


def job_options(run: Run, offers: Sequence[HardwareOffer]) -> list[JobOption]:
    """Return what the run costs on each of `offers`: those that fit first, then by price."""
    recipe, data, task_spec = run.recipe, load_run_data(run), task_spec_for(run)
    base = find_base_of_run(run, recipe.revision)
    tokenizer = tokenizer_of(run, base, task_spec.task)
    train, held_out = (
        tokenize(
            tokenizer,
            part,
            recipe.max_length,
            recipe.train_on,
            task=task_spec.task,
            reasoning=recipe.reasoning_of_rows,
        )
        for part in (data.train, data.held_out)
    )
    prepared = Prepared(task_spec, data, train, held_out)
    spaces = estimate_prepared(prepared, recipe, [offer.kind for offer in offers]).spaces
    by_name = {space.name: space for space in spaces}
    options = [_option(recipe, offer, by_name.get(offer.kind.name)) for offer in offers]
    return sorted(options, key=_rank)


def _rank(option: JobOption) -> tuple[bool, bool, float]:
    price = option.dollars or option.dollars_an_hour
    return option.fits is False, option.dollars is None, price


def _option(recipe: Recipe, offer: HardwareOffer, space: OnSpace | None) -> JobOption:
    kind, seconds, dollars, timeout = offer.kind, None, None, _DEFAULT_TIMEOUT
    time = "time unknown"
    if space and space.least_seconds:
        processes = processes_for(recipe, offer.num_gpus)
        seconds = space.least_seconds / EFFICIENCY / processes
        dollars = (seconds + _SETUP_SECONDS) / 3_600 * offer.dollars_an_hour
        timeout = 2 * seconds + _SETUP_SECONDS
        rounded = "under a minute" if seconds < 60 else f"about {duration(seconds)}"
        time = f"{rounded}, ${dollars:.2f} including {duration(_SETUP_SECONDS)} of setup"
    memory = _describe_offer_memory(space, kind.usable)
    words = f"{kind.name:16} {memory:42} ${offer.dollars_an_hour:.2f} per hour; {time}"
    fits = space.fits if space else None
    return JobOption(
        kind.name, kind.title, offer.dollars_an_hour, fits, seconds, dollars, round(timeout), words
    )


def _describe_offer_memory(space: OnSpace | None, usable: int) -> str:
    if space is None:
        return f"memory not estimated, {gigabytes(usable)}"
    fits = "fits" if space.fits else "does not fit"
    return f"{fits}: {gigabytes(space.need)} of {gigabytes(usable)}"
