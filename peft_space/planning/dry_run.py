"""The dry run: a few real steps of a training, in a process of its own and with its own code, that say what all of it takes.

One step warms up, two of typical rows are timed, and one of the longest rows shows the most memory. Nothing of it stays.
"""

import dataclasses
import math
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peft_space.data.arrow_store import Rows, Tokens
from peft_space.data.batches import Examples
from peft_space.data.table import Data
from peft_space.errors import UserError
from peft_space.formatting import duration, gigabytes
from peft_space.planning.time import (
    Estimates,
    estimates_of,
    num_evaluations,
    refuse_what_does_not_fit,
    row_lengths,
)
from peft_space.recipe import Recipe
from peft_space.runs import events
from peft_space.runs.events import OnProgress, no_progress
from peft_space.runs.run import Run
from peft_space.runs.status import evaluations_of, steps_of
from peft_space.training.prepare import Prepared, prepare
from peft_space.training.train import steps_between_saves, total_steps

_TYPICAL_STEPS = 3
"""The first warms up, the others are timed. After them comes one of the longest rows."""
_MOST_ACCUMULATED = 2
"""Batches added up for a step here. From the second on gradients lie beside what is computed; more take no more memory, only time."""
_HELD_OUT_BATCHES = 2


@dataclass(frozen=True)
class DryRun:
    """What was measured, and what had been estimated. An error is estimated / measured - 1."""

    estimates: Estimates
    memory: int
    """Bytes at most: by which the process grew from before the model was loaded; on a GPU those of its tensors."""
    step_seconds: float
    seconds: float
    """Of the whole training: what goes before its first step, all steps, evaluations and checkpoints."""
    memory_error: float | None
    step_error: float
    seconds_error: float


def dry_run(
    data: Data,
    recipe: Recipe,
    held_out: Data | None = None,
    column_mapping: dict | None = None,
    on_progress: OnProgress = no_progress,
) -> DryRun:
    """Train a few steps of `recipe` on rows of these data, and say what all of it takes. Raises UserError where it would not fit."""
    prepared = prepare(data, recipe, held_out, column_mapping, on_progress)
    on_progress(0.0, "Working out memory and time")
    estimated = estimates_of(prepared, recipe)
    refuse_what_does_not_fit(estimated.memory)
    with tempfile.TemporaryDirectory(prefix="peft_space-dry-run-") as scratch:
        run = _scratch_run(Path(scratch, "run"), prepared, recipe)
        memory = (_train_here if multiprocessing.current_process().daemon else _train_in_a_child)(
            run, on_progress
        )
        step, seconds = _times(run, recipe, prepared)
    told = estimated.memory, estimated.time
    return DryRun(
        estimated,
        memory,
        step,
        seconds,
        memory_error=told[0].total / memory - 1 if told[0] else None,
        step_error=told[1].step_seconds / step - 1,
        seconds_error=told[1].seconds / seconds - 1,
    )


# What is trained


def _scratch_run(directory: Path, prepared: Prepared, recipe: Recipe) -> Run:
    """A run of a few steps: its rows lie in the order in which they are trained."""
    rows = Examples(prepared.train).tokens
    batch, accumulated = (
        min(recipe.batch_size, len(rows)),
        min(recipe.gradient_accumulation_steps, _MOST_ACCUMULATED),
    )
    typical = _typical(rows, batch, recipe)
    longest = np.argsort(row_lengths(rows, recipe), kind="stable")[-batch:]
    places = np.concatenate([*[typical] * accumulated * _TYPICAL_STEPS, *[longest] * accumulated])
    scored = _typical(
        prepared.held_out, min(len(prepared.held_out), _HELD_OUT_BATCHES * batch), recipe
    )
    changed = {
        "batch_size": batch,
        "gradient_accumulation_steps": accumulated,
        "num_epochs": 1.0,
        "max_steps": None,
    }
    changed |= dict.fromkeys(("eval_steps", "save_steps"), _TYPICAL_STEPS + 1)
    data = prepared.data
    kept = dataclasses.replace(
        data,
        train=Rows(data.train.path, data.train.digest, rows.positions[places]),
        held_out=Rows(data.held_out.path, data.held_out.digest, prepared.held_out.positions[scored]),
    )
    files = kept.files() | {"data/goal.json": prepared.goal.as_json()}
    return Run.create(directory, recipe.model_copy(update=changed), files, name="Dry run")


def _typical(rows: Tokens, count: int, recipe: Recipe) -> np.ndarray:
    """Places of `count` rows whose lengths are those that as many rows drawn at random have on average, the shortest first.

    Of n draws the i-th in size lies at the share i / (n + 1), so a batch of them is padded as much as usual.
    """
    by_length = np.argsort(row_lengths(rows, recipe), kind="stable")
    shares = np.arange(1, count + 1) / (count + 1)
    return by_length[(shares * len(by_length)).astype(np.int64)]


# How long it takes


def _times(run: Run, recipe: Recipe, prepared: Prepared) -> tuple[float, float]:
    """(seconds of a typical step of `recipe`, of the whole training), from the events of the scratch run."""
    happened, steps = run.history(), steps_of(run.history())
    timed = statistics.mean(step.seconds for step in steps[1:_TYPICAL_STEPS])
    step = timed * recipe.gradient_accumulation_steps / run.recipe.gradient_accumulation_steps
    before = _when(happened, events.Started) - happened[0].at
    scored = evaluations_of(happened)
    after_scoring = scored[-1].at if scored else steps[-1].at
    checkpoint = _when(happened, events.Checkpointed) - after_scoring
    num_rows = len(Examples(prepared.train))
    whole = total_steps(recipe, num_rows)
    seconds = (
        before
        + whole * step
        + math.ceil(whole / steps_between_saves(recipe, num_rows)) * checkpoint
    )
    if scored:
        share = len(prepared.held_out) / min(
            len(prepared.held_out), _HELD_OUT_BATCHES * run.recipe.batch_size
        )
        seconds += num_evaluations(recipe, num_rows) * share * (after_scoring - steps[-1].at)
    return step, seconds


def _when(
    happened: list[events.Event], kind: type[events.Started] | type[events.Checkpointed]
) -> float:
    return next(event.at for event in happened if isinstance(event, kind))


# The process that trains


def _train_in_a_child(run: Run, on_progress: OnProgress) -> int:
    """Train the scratch run in a fresh process, and return the most memory that it took."""
    command = [sys.executable, "-m", "peft_space.planning.dry_run_worker", str(run.directory)]
    # in a session of its own: where all of the app is killed at once, it is left to remove its files, and then ends
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert child.stdout is not None
    try:
        while child.poll() is None:
            time.sleep(0.5)
            on_progress(*_how_far(run.history()))
        printed = child.stdout.read()
    finally:
        child.kill()
        child.wait()
    if child.returncode:
        raise _what_went_wrong(run, child.returncode)
    return int(printed.split()[-1])


def _train_here(run: Run, on_progress: OnProgress) -> int:
    """The same in this process, which may have no child: a slice of GPU time is one."""
    from peft_space.planning.dry_run_worker import measure

    on_progress(0.0, "Training a few steps")
    return measure(str(run.directory))


def _how_far(happened: list[events.Event]) -> tuple[float, str]:
    """For OnProgress."""
    steps = steps_of(happened)
    if steps:
        return (1 + len(steps)) / (
            2 + _TYPICAL_STEPS + 1
        ), f"Measured {len(steps)} of {_TYPICAL_STEPS + 1} steps"
    doing = [event.what for event in happened if isinstance(event, events.Preparing)]
    return 0.0, doing[-1] if doing else "Starting a process to train in"


def _what_went_wrong(run: Run, status: int) -> Exception:
    said = [event.message for event in run.history() if isinstance(event, events.Failed)]
    if status < 0:
        return UserError(
            "todo",
            "The process that measured it was ended by the system, most likely for want of memory. "
            "Set a smaller batch_size or max_length in the recipe, or choose a smaller base model.",
        )
    return (
        UserError("todo", said[-1])
        if status == 2 and said
        else RuntimeError(said[-1] if said else f"the dry run ended with status {status}")
    )


# In words


def in_words(found: DryRun) -> list[str]:
    """A sentence about memory, and one about time, with how far the estimates were off."""
    estimated = found.estimates
    memory = f"Memory: {gigabytes(found.memory)} at most, measured"
    if estimated.memory and found.memory_error is not None:
        memory += f"; estimated {gigabytes(estimated.memory.total)} ({_off(found.memory_error)})"
        memory += f". {gigabytes(estimated.memory.free)} are free here"
    each = f"{duration(found.step_seconds)} each, measured; estimated {duration(estimated.time.step_seconds)} ({_off(found.step_error)})"
    whole = f"{duration(found.seconds)} for {estimated.time.steps:,} steps with evaluations and checkpoints"
    return [
        f"{memory}.",
        f"Time: {whole}, worked out from the steps measured; estimated {duration(estimated.time.seconds)} ({_off(found.seconds_error)}).",
        f"Steps: {each}.",
    ]


def _off(error: float) -> str:
    return f"{abs(error):.0%} too {'high' if error > 0 else 'low'}"
