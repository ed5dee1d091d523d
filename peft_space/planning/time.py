"""What a training will take, before it: memory, time, and on which hardware of a Space it would fit. `dry_run.py` measures the same.

Time is rough: arithmetic on tokens and parameters, and one small measurement of this machine.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np

from peft_space import hardware
from peft_space.data.arrow_store import Tokens
from peft_space.data.batches import Examples
from peft_space.data.table import Data
from peft_space.errors import UserError
from peft_space.estimation.hub_hardware import HARDWARE, SpaceHardware, zerogpu_hardware
from peft_space.estimation.memory import changes_that_fit, estimate, estimate_within
from peft_space.formatting import duration, gigabytes
from peft_space.hardware import Device
from peft_space.models.architecture import linear_layers
from peft_space.models.loading import inference_dtype
from peft_space.models.quantization import quantization_of
from peft_space.models.resolve import find_base
from peft_space.recipe import Recipe, Task
from peft_space.runs.events import OnProgress, no_progress
from peft_space.training.length_grouping import goes_by_length, padded_tokens
from peft_space.training.prepare import Prepared, prepare
from peft_space.training.train import steps_per_epoch, total_steps

REACHED = 0.5
"""Share of the speed of bare matrix products that a training reaches. torchtune's fastest setting of Llama 3.2 3B, 8,035 tokens a second,
is 0.49 of what an A100's data sheet names; the built-in model reached 0.4 on a 2-core CPU."""
_FORWARDS_BESIDES: dict[Task, int] = {"dpo": 1, "kto": 3}
"""Forward passes besides the trained one: of the reference, and for KTO both again with other answers."""


@dataclass(frozen=True)
class Memory:
    """Bytes that a training needs here at most, and that are free."""

    total: int
    free: int
    parts: dict[str, int]
    """Of `models.memory.MemoryEstimate`."""
    to_fit: list[dict[str, Any]]
    """Where more is needed than is free: the single changes that make it fit, `what` and its `total`."""
    length: int
    """Tokens of the longest row that is counted with."""
    gradient_checkpointing: bool
    """Whether it is on, as the recipe says or because it does not fit without."""


@dataclass(frozen=True)
class Time:
    """Seconds that a training takes, and what they were worked out from."""

    steps: int
    tokens: float
    """Of one step, padding included."""
    flops: float
    """Floating-point operations of one step."""
    checkpointing: bool
    """Whether the forward pass is counted twice."""
    rate: float
    """Operations a second of bare matrix products, measured here."""
    step_seconds: float
    seconds: float
    """Of all steps and evaluations."""


@dataclass(frozen=True)
class OnSpace:
    """Whether a training would fit on one kind of hardware, and the seconds in which it cannot be faster, where its speed is known."""

    name: str
    title: str
    memory: int
    need: int
    fits: bool
    least_seconds: float | None


@dataclass(frozen=True)
class Estimates:
    """`memory` is None, and `spaces` empty, for a base that comes quantized: what its layers take has not been measured."""

    memory: Memory | None
    time: Time
    spaces: list[OnSpace]


def estimates(
    data: Data,
    recipe: Recipe,
    held_out: Data | None = None,
    column_mapping: dict | None = None,
    on_progress: OnProgress = no_progress,
) -> Estimates:
    """What training `recipe` on these data takes. Raises UserError where it cannot be trained at all."""
    prepared = prepare(data, recipe, held_out, column_mapping, on_progress)
    on_progress(0.9, "Working out memory and time")
    return estimates_of(prepared, recipe)


def estimates_of(
    prepared: Prepared, recipe: Recipe, kinds: Sequence[SpaceHardware] = HARDWARE
) -> Estimates:
    """The same for data that are rendered already, and for other `kinds` of hardware than those of Spaces."""
    base, task = find_base(recipe.base_model, recipe.revision), prepared.goal.task
    lengths = row_lengths(Examples(prepared.train).tokens, recipe)
    longest = int(lengths.max())
    parameters = multiplied_parameters(base.config, task)
    memory = memory_here(recipe, base.config, task, longest, len(lengths))
    checkpointing = (
        memory.gradient_checkpointing if memory else recipe.gradient_checkpointing == "on"
    )
    time = _time(
        recipe,
        task,
        lengths,
        row_lengths(prepared.held_out, recipe),
        parameters,
        base.config,
        checkpointing,
    )
    spaces = (
        _on_spaces(recipe, base.config, task, longest, len(lengths), time, kinds) if memory else []
    )
    return Estimates(memory, time, spaces)


def row_lengths(rows: Tokens, recipe: Recipe) -> np.ndarray:
    """Tokens of each row after the cut; of two sequences those of the longer."""
    return np.minimum(rows.column("length"), recipe.max_length)


# Memory


def memory_here(
    recipe: Recipe, config: Any, task: Task, length: int, num_rows: int | None = None
) -> Memory | None:
    """What training needs on this machine, or the GPU that is lent to it, if the longest row has `length` tokens; None for a base that comes quantized."""
    if quantization_of(recipe, config) != recipe.quantization:
        return None
    layers = linear_layers(config, task)  # anew: counting wraps the model
    rows = _rows_at_once(recipe, task, num_rows)
    where: dict[str, Any] = {"device": hardware.device(), "dtype": inference_dtype()}
    free = hardware.free_memory()
    if kind := zerogpu_hardware():
        where, free = {"device": kind.device, "dtype": "bfloat16"}, kind.usable
    need, checkpointing = estimate_within(layers, recipe, rows, length, free, **where)
    trained = recipe.model_copy(update={"gradient_checkpointing": "on" if checkpointing else "off"})
    changes = (
        [] if need.total <= free else changes_that_fit(layers, trained, rows, length, free, **where)
    )
    fit = [{"what": change.what, "total": change.estimate.total} for change in changes]
    return Memory(need.total, free, asdict(need), fit, length, checkpointing)


def _rows_at_once(recipe: Recipe, task: Task, num_rows: int | None) -> int:
    return min(recipe.batch_size, num_rows or recipe.batch_size) * (
        2 if task == "dpo" else 1
    )  # both answers of each row


def refuse_what_does_not_fit(memory: Memory | None) -> None:
    """Raise UserError where more memory is needed than is free, naming what would make it fit."""
    if memory and memory.total > memory.free:
        raise UserError(
            "todo",
            f"This does not fit: training needs about {gigabytes(memory.total)} of memory, and {gigabytes(memory.free)} are free here. "
            f"{_remedy(memory)}",
        )


def _remedy(memory: Memory) -> str:
    ways = "; or ".join(f"{one['what']} ({gigabytes(one['total'])})" for one in memory.to_fit)
    return (
        f"It would fit with {ways}."
        if ways
        else "No single change makes it fit: choose a smaller base model, or a larger machine."
    )


# Time


def multiplied_parameters(config: Any, task: Task) -> int:
    """Parameters that every token is multiplied with: all but the input embeddings, which are looked up, unless the head uses them too.

    Of experts all are counted, though a token meets few: there the time is too long.
    """
    model = linear_layers(config, task).model
    looked_up = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    return model.num_parameters() - (
        0 if head is not None and head.weight is looked_up else looked_up.numel()
    )


def flops_a_token(parameters: int, task: Task, checkpointing: bool) -> int:
    """Operations to train on one token: 2 a parameter forward, 2 back to the adapters, and 2 for the forward pass where it is done again.

    The base's own gradients, another 2, are not taken. (Counted as in arXiv 2001.08361, section 2.1, without attention's own products.)
    """
    passes = 2 + checkpointing + _FORWARDS_BESIDES.get(task, 0)
    return 2 * passes * parameters


def num_evaluations(recipe: Recipe, num_rows: int) -> int:
    """How often held-out rows are scored in a whole training on `num_rows` rows."""
    return total_steps(recipe, num_rows) // (recipe.eval_steps or steps_per_epoch(recipe, num_rows))


def _time(
    recipe: Recipe,
    task: Task,
    lengths: np.ndarray,
    held_out: np.ndarray,
    parameters: int,
    config: Any,
    checkpointing: bool,
) -> Time:
    a_step = recipe.batch_size * recipe.gradient_accumulation_steps
    rows = min(len(lengths), a_step)
    a_row = padded_tokens(
        lengths, recipe.batch_size, a_step if goes_by_length(lengths, recipe, task) else None
    )
    steps = total_steps(recipe, len(lengths))
    flops = (
        flops_a_token(parameters, task, checkpointing) * a_row * rows * (2 if task == "dpo" else 1)
    )
    width = config.get_text_config().hidden_size
    rate = hardware.flops_a_second(
        round(a_row * min(len(lengths), recipe.batch_size)), width, inference_dtype()
    )
    step = flops / rate / REACHED
    forward = (1 + _FORWARDS_BESIDES.get(task, 0)) / (
        2 + checkpointing + _FORWARDS_BESIDES.get(task, 0)
    )
    a_held_out_row = forward * step / rows * padded_tokens(held_out, recipe.batch_size) / a_row
    evaluations = num_evaluations(recipe, len(lengths)) * len(held_out) * a_held_out_row
    return Time(steps, a_row * rows, flops, checkpointing, rate, step, steps * step + evaluations)


# Spaces


def _on_spaces(
    recipe: Recipe,
    config: Any,
    task: Task,
    length: int,
    num_rows: int,
    time: Time,
    kinds: Sequence[SpaceHardware],
) -> list[OnSpace]:
    layers, rows = linear_layers(config, task), _rows_at_once(recipe, task, num_rows)
    least = (
        time.steps
        * time.flops
        * flops_a_token(1, task, recipe.gradient_checkpointing == "on")
        / flops_a_token(1, task, time.checkpointing)
    )

    @cache
    def need(device: Device, checkpointing: str) -> int:
        changed = recipe.model_copy(update={"gradient_checkpointing": checkpointing})
        return estimate(
            layers, changed, rows, length, device, "float32" if device == "cpu" else "bfloat16"
        ).total

    found = []
    for kind in kinds:
        needed = need(kind.device, recipe.gradient_checkpointing)
        if recipe.gradient_checkpointing == "automatic" and needed > kind.usable:
            needed = need(kind.device, "on")
        seconds = least / kind.teraflops / 1e12 if kind.teraflops else None
        found.append(
            OnSpace(kind.name, kind.title, kind.usable, needed, needed <= kind.usable, seconds)
        )
    return found


# In words


def in_words(found: Estimates) -> list[str]:
    """A sentence about memory, and one about time."""
    time = found.time
    of_time = (
        f"Time: about {duration(time.seconds)} for {time.steps:,} steps, {duration(time.step_seconds)} each. This is rough: "
        f"{time.flops / 1e9:,.3g} GFLOP a step, at {REACHED:.0%} of the {time.rate / 1e9:,.3g} GFLOP/s of matrix products here."
    )
    here = "here"
    if zerogpu_hardware():
        here = "on the GPU that is lent"
        of_time = f"Time: {time.steps:,} steps of {time.flops / 1e9:,.3g} GFLOP; how long they take {here} shows when a few are measured."
    if found.memory is None:
        return [
            "Memory: not estimated, because the base model comes quantized. Measure it.",
            of_time,
        ]
    memory = found.memory
    largest = sorted(memory.parts.items(), key=lambda part: -part[1])[:3]
    parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in largest)
    how = ", with gradient checkpointing" if memory.gradient_checkpointing else ""
    need = f"Memory: about {gigabytes(memory.total)} at most{how}, for rows of {memory.length:,} tokens ({parts})"
    if memory.total <= memory.free:
        return [f"{need}. {gigabytes(memory.free)} are free {here}.", of_time]
    return [
        f"{need}, and {gigabytes(memory.free)} are free {here}: it does not fit. {_remedy(memory)}",
        of_time,
    ]
