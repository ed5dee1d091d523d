"""Trains a few real steps in a separate process, to measure the memory and time of a training.

One step warms up, two of typical rows are timed, and one of the longest rows shows the peak memory.
"""

import dataclasses
import math
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peft_space import hardware
from peft_space.data.arrow_store import Rows, Tokens
from peft_space.data.batches import Examples
from peft_space.data.table import Data
from peft_space.errors import UserError, as_user_error
from peft_space.formatting import duration, gigabytes
from peft_space.models.loading import task_spec_for
from peft_space.planning.training_estimate import (
    Estimates,
    check_fits,
    estimate_prepared,
    num_evaluations,
    row_lengths,
)
from peft_space.recipe import Recipe
from peft_space.runs import events
from peft_space.runs.events import OnProgress, evaluations_of, no_progress, steps_of
from peft_space.runs.run import Run
from peft_space.settings import prepare_libraries
from peft_space.training.prepare import Prepared, prepare
from peft_space.training.train import TrainOptions, train
from peft_space.training.trainers import steps_between_saves, total_steps

_TYPICAL_STEPS = 3
"""The first warms up, the others are timed. One step of the longest rows follows."""
_MAX_ACCUMULATION = 2
"""Batches per measured step. From the second on, gradients take memory during the computation;
more batches take no more memory, only time."""
_HELD_OUT_BATCHES = 2
_USER_ERROR_STATUS = 2


@dataclass(frozen=True)
class DryRun:
    """Measured and estimated figures. An error is estimated / measured - 1."""

    estimates: Estimates
    memory: int
    """Peak bytes: the growth of the process since before the model was loaded; on a GPU those of
    its tensors."""
    step_seconds: float
    seconds: float
    """Of the whole training: preparation, all steps, evaluations and checkpoints."""
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
    """Train a few steps of `recipe`, and extrapolate to the whole training. Keeps no files.

    The arguments are those of `prepare`.

    Raises:
        UserError: if the training does not fit in memory, or cannot start.
    """
    prepared = prepare(data, recipe, held_out, column_mapping, on_progress)
    on_progress(0.0, "Estimating memory and time")
    estimates = estimate_prepared(prepared, recipe)
    check_fits(estimates.memory)
    # a slice of ZeroGPU time is a daemon process, which cannot have a child
    in_slice = multiprocessing.current_process().daemon
    with tempfile.TemporaryDirectory(prefix="peft_space-dry-run-") as scratch:
        run = _scratch_run(Path(scratch, "run"), prepared, recipe)
        if in_slice:
            on_progress(0.0, "Training a few steps")
        memory = measure_memory(run) if in_slice else _train_in_child(run, on_progress)
        step, seconds = _extrapolate_time(run, recipe, prepared)
    estimated = estimates.memory
    return DryRun(
        estimates,
        memory,
        step,
        seconds,
        memory_error=estimated.total / memory - 1 if estimated else None,
        step_error=estimates.time.step_seconds / step - 1,
        seconds_error=estimates.time.seconds / seconds - 1,
    )


# The run


def _scratch_run(directory: Path, prepared: Prepared, recipe: Recipe) -> Run:
    """A run of a few steps, with its rows in the order in which they are trained."""
    rows, held_out = Examples(prepared.train).tokens, prepared.held_out
    batch = min(recipe.batch_size, len(rows))
    accumulation = min(recipe.gradient_accumulation_steps, _MAX_ACCUMULATION)
    typical = _typical_places(rows, batch, recipe)
    longest = np.argsort(row_lengths(rows, recipe), kind="stable")[-batch:]
    places = np.concatenate([*[typical] * accumulation * _TYPICAL_STEPS, *[longest] * accumulation])
    scored = _typical_places(held_out, min(len(held_out), _HELD_OUT_BATCHES * batch), recipe)
    changes = {
        "batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "num_epochs": 1.0,
        "max_steps": None,
        "eval_steps": _TYPICAL_STEPS + 1,
        "save_steps": _TYPICAL_STEPS + 1,
    }
    data = prepared.data
    sample = dataclasses.replace(
        data,
        train=Rows(data.train.path, data.train.digest, rows.positions[places]),
        held_out=Rows(data.held_out.path, data.held_out.digest, held_out.positions[scored]),
    )
    files = sample.files() | {"data/task.json": prepared.task_spec.as_json()}
    return Run.create(directory, recipe.model_copy(update=changes), files, name="Dry run")


def _typical_places(rows: Tokens, count: int, recipe: Recipe) -> np.ndarray:
    """Places (count,) of rows with the expected lengths of a random sample, the shortest first.

    Of n random rows, the i-th shortest is expected at the quantile i / (n + 1), so a batch of these
    rows has the usual padding.
    """
    by_length = np.argsort(row_lengths(rows, recipe), kind="stable")
    quantiles = np.arange(1, count + 1) / (count + 1)
    return by_length[(quantiles * len(by_length)).astype(np.int64)]


# Time


def _extrapolate_time(run: Run, recipe: Recipe, prepared: Prepared) -> tuple[float, float]:
    """(seconds of a typical step, seconds of the whole training), from the scratch run's events."""
    history, steps = run.history(), steps_of(run.history())
    timed = statistics.mean(step.seconds for step in steps[1:_TYPICAL_STEPS])
    step = timed * recipe.gradient_accumulation_steps / run.recipe.gradient_accumulation_steps
    preparation = _time_of(history, events.Started) - history[0].at
    evaluations = evaluations_of(history)
    evaluated_at = evaluations[-1].at if evaluations else steps[-1].at
    checkpoint = _time_of(history, events.Checkpointed) - evaluated_at
    num_rows, num_held_out = len(Examples(prepared.train)), len(prepared.held_out)
    num_steps = total_steps(recipe, num_rows)
    num_saves = math.ceil(num_steps / steps_between_saves(recipe, num_rows))
    seconds = preparation + num_steps * step + num_saves * checkpoint
    if evaluations:
        share = num_held_out / min(num_held_out, _HELD_OUT_BATCHES * run.recipe.batch_size)
        evaluation = share * (evaluated_at - steps[-1].at)
        seconds += num_evaluations(recipe, num_rows) * evaluation
    return step, seconds


def _time_of(
    history: list[events.Event], kind: type[events.Started] | type[events.Checkpointed]
) -> float:
    return next(event.at for event in history if isinstance(event, kind))


# The process that trains


def _train_in_child(run: Run, on_progress: OnProgress) -> int:
    """Train the scratch run in a new process, and return its peak memory in bytes."""
    command = [sys.executable, "-m", "peft_space.planning.dry_run", str(run.directory)]
    # in a new session, so that a kill of the app's process group leaves the child to clean up
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert child.stdout is not None
    try:
        while child.poll() is None:
            time.sleep(0.5)
            on_progress(*_progress(run.history()))
        output = child.stdout.read()
    finally:
        child.kill()
        child.wait()
    if child.returncode:
        raise _child_error(run, child.returncode)
    return int(output.split()[-1])


def _progress(history: list[events.Event]) -> tuple[float, str]:
    """The finished fraction, and the current step."""
    num_done, total = len(steps_of(history)), _TYPICAL_STEPS + 1
    if num_done:
        return (1 + num_done) / (2 + total), f"Measured {num_done} of {total} steps"
    activities = [event.what for event in history if isinstance(event, events.Preparing)]
    return 0.0, activities[-1] if activities else "Starting a process to train in"


def _child_error(run: Run, status: int) -> Exception:
    if status < 0:
        return UserError(
            "planning.process_killed",
            "The system killed the process of the dry run, probably because memory ran out. "
            "Set a smaller batch_size or max_length in the recipe, or choose a smaller base model.",
        )
    failures = [event for event in run.history() if isinstance(event, events.Failed)]
    if not failures:
        return RuntimeError(f"the dry run ended with status {status}")
    if status == _USER_ERROR_STATUS:
        return UserError(failures[-1].code, failures[-1].message)
    return RuntimeError(failures[-1].message)


def main(directory: str) -> None:
    """Train the run in `directory`, and print its peak memory. The main function of the child.

    It ends when its parent does. Exit status 2: a UserError, which is in the run's Failed event.
    """
    threading.Thread(target=_end_with_parent, args=(Path(directory).parent,), daemon=True).start()
    prepare_libraries()
    try:
        peak = measure_memory(Run(directory))
    except Exception as error:
        if as_user_error(error) is None:
            raise
        sys.exit(_USER_ERROR_STATUS)
    print(peak)


def measure_memory(run: Run) -> int:
    """Train a run and return its peak memory in bytes.

    On a GPU, this is the memory of its tensors. On a CPU, it is the growth of this process, without
    libraries that were imported before.
    """
    import bitsandbytes  # noqa: F401 - otherwise its code would count as memory of the training
    import peft  # noqa: F401
    import torch

    on_gpu = hardware.device() == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()  # earlier work of this process does not count
    if task_spec_for(run).task in ("dpo", "kto"):
        import trl  # noqa: F401
    before = hardware.resident_memory()
    with run.lock():
        train(run, TrainOptions(shuffled=False, samples=False))
    return hardware.peak_memory() if on_gpu else hardware.resident_memory(at_most=True) - before


def _end_with_parent(folder: Path) -> None:
    """End this process and remove its files if the parent is killed, which is how users cancel."""
    os.read(0, 1)  # returns when the parent's end of the pipe is closed
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


# Text


def describe_dry_run(result: DryRun) -> list[str]:
    """Return lines about memory, time and steps, with the errors of the estimates."""
    estimates, memory = result.estimates, f"Memory: {gigabytes(result.memory)} peak, measured"
    if estimates.memory and result.memory_error is not None:
        memory += (
            f"; estimated {gigabytes(estimates.memory.total)} ({_off(result.memory_error)}). "
            f"{gigabytes(estimates.memory.free)} are free here"
        )
    return [
        f"{memory}.",
        f"Time: {duration(result.seconds)} for {estimates.time.steps:,} steps with evaluations and "
        f"checkpoints, extrapolated from the measured steps; estimated "
        f"{duration(estimates.time.seconds)} ({_off(result.seconds_error)}).",
        f"Steps: {duration(result.step_seconds)} each, measured; estimated "
        f"{duration(estimates.time.step_seconds)} ({_off(result.step_error)}).",
    ]


def _off(error: float) -> str:
    return f"{abs(error):.0%} too {'high' if error > 0 else 'low'}"


if __name__ == "__main__":
    main(sys.argv[1])
