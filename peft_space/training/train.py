"""Trains a run until it is finished, stopped or paused. Training can be killed at any point."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import TrainerCallback, set_seed

from peft_space import hardware
from peft_space.compat.torch import is_dtype_error, is_lost_peer
from peft_space.compat.transformers import forget_preparation, refusal_of_model
from peft_space.data.batches import Examples
from peft_space.data.dataset import TrainingData, load_run_data
from peft_space.data.tokenization.tokenize import tokenize
from peft_space.errors import UserError, oom_device
from peft_space.models.architecture import linear_layers
from peft_space.models.end_tokens import (
    explain_unlearned_end,
    tokens_as_likely,
    tokens_at_ends,
    trains_output_layer,
)
from peft_space.models.label_order import explain_head
from peft_space.models.loading import (
    inference_dtype,
    load_base_model,
    new_adapter,
    task_spec_for,
    tokenizer_of,
)
from peft_space.models.lora_init import (
    initial_base,
    load_initial_adapter,
    to_plain_lora,
    write_initial_adapter,
)
from peft_space.models.resolve import (
    BaseModelRef,
    first_line,
    pin_revision,
    save_tokenizer,
)
from peft_space.models.special_tokens import set_special_tokens
from peft_space.models.vocabulary import find_base_of_run, has_resized_base
from peft_space.recipe import FROM_BASE, Recipe, TaskSpec
from peft_space.runs import checkpoints, events
from peft_space.runs.events import failed_event, steps_of
from peft_space.runs.plan import Plan, plan_for_processes, read_plan, write_plan
from peft_space.runs.run import Run, append_notice_once
from peft_space.storage import atomic_io
from peft_space.training import distributed, early_stopping
from peft_space.training.autotune import (
    check_machine,
    choose_devices,
    make_first_plan,
    report_plan,
)
from peft_space.training.callbacks import RunCallback, check_trackers, tracker_arguments
from peft_space.training.oom_fallback import out_of_memory_failure, reduce_memory
from peft_space.training.precision import (
    all_weights_are_frozen,
    avoid_repeated_casts,
    cast_frozen_weights,
    choose_compute_dtype,
    set_compute_dtype,
)
from peft_space.training.prepare import Prepared
from peft_space.training.provenance import check_provenance, current_provenance
from peft_space.training.sample_answers import SampleAnswersCallback, makes_samples
from peft_space.training.trainers import (
    ByLength,
    FrozenInputs,
    make_trainer,
    total_steps,
    training_arguments,
)

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Trainer

logger = logging.getLogger(__name__)

AdapterSaved = Callable[[Run, Path, Prepared, BaseModelRef, Plan], None]
"""Called with the folder of a new adapter before it takes its place in the run, to add files."""

_NEW_ADAPTER = ".adapter.new"


class ModelCache:
    """Keeps at most one model between two calls of `train` in one process.

    A large base model takes long to load. On resume, its trained weights are overwritten from the
    checkpoint.
    """

    def __init__(self) -> None:
        self._entry: tuple[Path, Plan, PeftModel] | None = None

    def take(self, run: Run, plan: Plan | None, checkpoint: Path | None) -> PeftModel | None:
        """Return the model of this run if its plan is unchanged, and empty the cache.

        The cache is emptied in any case, so that there are never two models in memory.
        """
        entry, self._entry = self._entry, None
        valid = entry and checkpoint and entry[:2] == (run.directory, plan)
        return entry[2] if entry and valid else None

    def keep(self, run: Run, plan: Plan, trainer: Trainer) -> None:
        """Keep a trainer's model, without the trainer's wrappers."""
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        model.zero_grad(set_to_none=True)
        forget_preparation(model)
        self._entry = run.directory, plan, model


@dataclass(frozen=True)
class TrainOptions:
    """Options of a call of `train` that do not change the adapter.

    Attributes:
        deadline: time, in seconds since 1970, after which training saves and pauses.
        shuffled: whether rows come in random order. A dry run needs them in their given order.
        ignore_mismatch: whether to resume although rows, recipe or libraries have changed.
        report_to: names of `callbacks.TRACKERS` that also get the losses.
        model_cache: keeps the model when training pauses at its deadline.
        samples: whether the model answers held-out rows at evaluations.
        on_adapter_saved: adds files to the adapter's folder before it takes its place in the run.
    """

    deadline: float | None = None
    shuffled: bool = True
    ignore_mismatch: bool = False
    report_to: Sequence[str] = ()
    model_cache: ModelCache | None = None
    samples: bool = True
    on_adapter_saved: AdapterSaved | None = None


_DEFAULT_OPTIONS = TrainOptions()


def train(run: Run, options: TrainOptions = _DEFAULT_OPTIONS) -> events.Outcome:
    """Train `run` from its newest complete checkpoint, or from the start.

    If memory runs out, training continues with less memory (see `oom_fallback.py`).

    Args:
        run: the run. The caller holds its lock.
        options: see `TrainOptions`.

    Returns:
        The event that says how training ended.

    Raises:
        UserError: if training cannot start or continue. This and any other exception is also
            recorded as a Failed event.
    """
    while isinstance(outcome := attempt(run, options), events.OutOfMemory):
        hardware.release_memory()
    return outcome


def attempt(
    run: Run, options: TrainOptions = _DEFAULT_OPTIONS, ended_for_memory: bool = False
) -> events.Outcome | events.OutOfMemory:
    """Train `run` once.

    Args:
        run: the run. The caller holds its lock.
        options: see `TrainOptions`.
        ended_for_memory: whether the system killed the previous attempt because memory ran out.

    Returns:
        The event that says how training ended. For OutOfMemory, the plan has been changed so that
        another attempt needs less memory.

    Raises:
        UserError: as `train`.
    """
    run = distributed.view_for_rank(run)
    run.truncate_partial_event()
    if ended_for_memory and reduce_memory(run, "This machine") is None:
        raise _out_of_memory_error(run, "This machine")
    try:
        check_trackers(options.report_to)
        outcome = _train_with_dtype_fallback(run, options)
    except Exception as error:
        if distributed.num_processes() > 1 and is_lost_peer(error):
            raise  # the process that ended has said why, unless it was killed
        if distributed.is_main():  # on a full disk, this makes room for the event
            checkpoints.remove_unfinished(run)
            shutil.rmtree(run.path(_NEW_ADAPTER), ignore_errors=True)
        device = oom_device(error)
        if device is None:
            run.append(failed_event(error))
            raise
        if (event := reduce_memory(run, device)) is None:
            raise _out_of_memory_error(run, device) from error
        return event
    if isinstance(outcome, events.Paused) and run.requested_stop():
        outcome = outcome.model_copy(update={"asked": True})
    run.append(outcome)
    if isinstance(outcome, events.Finished):
        shutil.rmtree(run.path("start"), ignore_errors=True)  # there is nothing left to resume
    run.clear_stop_request()
    return outcome


def _out_of_memory_error(run: Run, device: str) -> UserError:
    failure = out_of_memory_failure(run, device)
    run.append(failure)
    return UserError(failure.code, failure.message)


def _train_with_dtype_fallback(run: Run, options: TrainOptions) -> events.Outcome:
    """Train, and start again in float32 if the first steps show that the model needs it."""
    try:
        return _train(run, options)
    except (RuntimeError, TypeError, UserError) as error:
        plan = read_plan(run)
        if plan is None or not _needs_float32(run, plan, error):
            raise
        problem = (
            "does not give finite numbers" if isinstance(error, UserError) else "cannot compute"
        )
        why = f"This model {problem} in {plan.compute_dtype}: {first_line(error)}"
        if run.recipe.compute_dtype != "automatic":
            raise UserError(
                "training.compute_dtype_unsupported",
                f"{why} Set compute_dtype to automatic or float32.",
            ) from error
        logger.info("%s needs float32", plan.base_name, exc_info=error)
        if distributed.is_main():
            changes = {"compute_dtype": "float32", "frozen_dtype": "", "why": why}
            write_plan(run, plan.model_copy(update=changes))
        distributed.wait()
    hardware.release_memory()
    return _train(run, options)


def _needs_float32(run: Run, plan: Plan, error: Exception) -> bool:
    """Return True if float32 avoids the error and nothing has been learned yet.

    bfloat16: some operations do not exist on CPUs. There it happens on one process, before the
    first step. float16: activations of some models are too large for it, on any number of GPUs.
    """
    if any(
        math.isfinite(step.loss) and math.isfinite(step.grad_norm)
        for step in steps_of(run.history())
    ):
        return False
    if isinstance(error, UserError):
        return plan.compute_dtype == "float16" and error.code == "training.not_finite"
    on_one_cpu = plan.device == "cpu" and distributed.num_processes() == 1
    return plan.compute_dtype != "float32" and on_one_cpu and is_dtype_error(error)


@dataclass(frozen=True)
class _TrainingSetup:
    """The settings of an attempt, and the checkpoint it resumes from."""

    base: BaseModelRef
    task_spec: TaskSpec
    tokenizer: Any
    data: TrainingData
    rows: Examples
    held_out: Examples
    model: PeftModel
    plan: Plan
    checkpoint: Path | None


def _train(run: Run, options: TrainOptions) -> events.Outcome:
    cache = options.model_cache or ModelCache()
    with distributed.main_first():
        setup = _setup(run, options, cache)
    plan = setup.plan
    _set_precision(setup)
    if plan.shard_base:
        distributed.shard_base(setup.model, hardware.device())
    set_seed(run.recipe.seed)  # the measurement drew from dropout's random numbers
    number = 1 + sum(isinstance(event, events.Started) for event in run.history())
    provenance = current_provenance(run, plan, setup.base, setup.rows.tokens, setup.held_out.tokens)
    callback = RunCallback(run, number, options.deadline, provenance)
    callbacks: list[TrainerCallback] = [callback]
    if options.samples and makes_samples(run, setup.task_spec, plan, setup.data):
        of_samples = (run, setup.model, setup.tokenizer, setup.task_spec, plan, setup.data)
        callbacks.insert(0, SampleAnswersCallback(*of_samples))
    trainer = _make_trainer(run, setup, options, callbacks)
    _run_trainer(run, setup, trainer, number)
    step = trainer.state.global_step
    if callback.stop_kind == "pause":
        cache.keep(run, plan, trainer)
        return events.Paused(step=step)
    early_stopping.select_best_adapter(run, trainer)
    if distributed.is_main():
        _save_adapter(run, setup, options.on_adapter_saved)
    distributed.wait()
    if callback.stop_kind == "stop":
        return events.Stopped(step=step)
    seconds = sum(event.seconds for event in steps_of(run.history()))
    return events.Finished(step=step, seconds=seconds)


def _set_precision(setup: _TrainingSetup) -> None:
    plan, model = setup.plan, setup.model
    torch.set_num_threads(plan.threads)
    set_compute_dtype(model, plan.compute_dtype)
    if plan.frozen_dtype:
        cast_frozen_weights(model, setup.base, setup.task_spec.task, plan.frozen_dtype)
    avoid_repeated_casts(model, plan.compute_dtype)


def _make_trainer(
    run: Run, setup: _TrainingSetup, options: TrainOptions, callbacks: list[TrainerCallback]
) -> Trainer:
    recipe, plan, rows = run.recipe, setup.plan, setup.rows
    arguments = training_arguments(run, plan, len(rows), evaluate=bool(setup.held_out))
    if not options.shuffled:
        arguments["train_sampling_strategy"] = "sequential"
    # all that is trained is used in every step, except experts that get no token
    arguments["ddp_find_unused_parameters"] = any(
        "expert" in name for name, value in setup.model.named_parameters() if value.requires_grad
    )
    order = None
    if plan.by_length and options.shuffled:
        step_rows = recipe.batch_size * recipe.gradient_accumulation_steps
        order = ByLength(rows.lengths(plan.max_length), step_rows, recipe.seed)
    return make_trainer(
        setup.task_spec,
        recipe,
        setup.model,
        setup.tokenizer,
        arguments | tracker_arguments(options.report_to, run),
        rows,
        setup.held_out if len(setup.held_out) else None,
        [*callbacks, FrozenInputs(setup.model)],
        order,
        plan.packing,
        _continues_adapter(run),
    )


def _run_trainer(run: Run, setup: _TrainingSetup, trainer: Trainer, number: int) -> None:
    """Train to the last step, or restore a training that was killed after its last step."""
    checkpoint, total = setup.checkpoint, total_steps(run.recipe, len(setup.rows))
    step = checkpoints.step_of(checkpoint) if checkpoint else 0
    run.append(events.Started(attempt=number, from_step=step, total_steps=total))
    if checkpoint is None:
        try:
            trainer.train()
        except ValueError as error:
            if (reason := refusal_of_model(error)) is None:
                raise
            raise UserError(
                "models.needs_other_inputs",
                f"{setup.plan.base_name} cannot compute a batch of texts: {reason}. "
                "Choose another base model.",
            ) from error
        return
    state = early_stopping.state_of(checkpoint)
    if step >= total or early_stopping.is_over(state, run.recipe):
        early_stopping.restore_final_state(checkpoint, trainer)  # train would take another step
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint))


def _setup(run: Run, options: TrainOptions, cache: ModelCache) -> _TrainingSetup:
    """Tokenize the rows, load the model with its adapter, and read or make the plan."""
    recipe, plan, data = run.recipe, read_plan(run), load_run_data(run)
    check_machine(recipe)
    task_spec = task_spec_for(run)
    revision = plan.base_revision if plan else None
    base = find_base_of_run(run, revision if plan else recipe.revision)
    base = pin_revision(base, revision)
    tokenizer = tokenizer_of(run, base, task_spec.task)
    run.append(events.Preparing(what=f"Rendering {len(data.train) + len(data.held_out):,} rows"))
    max_length = plan.max_length if plan else recipe.max_length
    rows, held_out = _examples(tokenizer, recipe, task_spec, data, max_length, options.shuffled)
    _report_lost_rows(run, data, rows, max_length)
    checkpoint = checkpoints.newest_checkpoint(run)
    if checkpoint:
        _check_checkpoint(run, checkpoint, plan, base, (rows, held_out), options.ignore_mismatch)
    run.append(events.Preparing(what=f"Loading {base.name}"))
    set_seed(recipe.seed)  # the adapter's initial weights are random
    free_memory = hardware.free_memory()
    devices = choose_devices(recipe, base, task_spec, rows, free_memory)
    model = cache.take(run, plan, checkpoint)
    if model is None:
        device: hardware.Device | None = "cpu" if devices.shard_base else None
        model = _load_model(run, base, task_spec, rows, device, tokenizer)
    set_special_tokens(model, tokenizer)
    if note := tokenizer.padding_note:
        append_notice_once(run, events.Notice(what=note[0], why=note[1]), ever=True)
    if plan is None or not plan.device:  # an imported adapter's plan measured nothing here
        plan = make_first_plan(run, base, task_spec, model, rows, free_memory, devices)
    elif plan.num_processes != distributed.num_processes():
        plan = plan_for_processes(plan, distributed.num_processes())
        changes = {"shard_base": devices.shard_base, "devices_why": devices.why}
        plan = plan.model_copy(update=changes)
        write_plan(run, plan)
    report_plan(run, plan)
    if task_spec.task in ("dpo", "kto") and _continues_adapter(run):
        what = "Preferences are measured against the adapter that training continues."
        why = "It is the reference model, so the first loss is that of no preference."
        append_notice_once(run, events.Notice(what=what, why=why), ever=True)
    if task_spec.labels and not _continues_adapter(run):
        what, why = explain_head(task_spec.labels, recipe, base.config, task_spec.task)
        append_notice_once(run, events.Notice(what=what, why=why), ever=True)
    tokenizer_bytes = len(tokenizer.backend_tokenizer.to_str().encode())
    checkpoints.ensure_disk_space(run, plan.trainable_parameters, tokenizer_bytes)
    return _TrainingSetup(base, task_spec, tokenizer, data, rows, held_out, model, plan, checkpoint)


def _report_lost_rows(run: Run, data: TrainingData, rows: Examples, max_length: int) -> None:
    """Report rows whose pictures do not fit since rows became shorter to save memory."""
    if data.train.pictures is None:
        return
    lost = int(np.isin(data.train.positions, list(rows.tokens.problems())).sum())
    if lost:
        what = f"{lost:,} rows are left out at {max_length:,} tokens."
        why = "Their pictures have more tokens, and a picture cannot be cut."
        append_notice_once(run, events.Notice(what=what, why=why), ever=True)


def _continues_adapter(run: Run) -> bool:
    """True if training continues an adapter, not the base model."""
    return run.recipe.method not in FROM_BASE and run.path("start").is_dir()


def _examples(
    tokenizer: Any,
    recipe: Recipe,
    task_spec: TaskSpec,
    data: TrainingData,
    max_length: int,
    shuffled: bool,
) -> tuple[Examples, Examples]:
    """The training rows and the held-out rows."""
    train, held_out = (
        tokenize(
            tokenizer,
            part,
            max_length,
            recipe.train_on,
            task=task_spec.task,
            reasoning=recipe.reasoning_of_rows,
        )
        for part in (data.train, data.held_out)
    )
    if task_spec.task == "sequence-classification":
        # the model cannot predict a label that occurs only in held-out rows
        known = [label in task_spec.labels for label in held_out.labels()]
        held_out = held_out.at(held_out.positions[np.array(known, dtype=bool)])
    seed = recipe.seed if task_spec.task == "kto" and shuffled else None
    return Examples(train, seed), Examples(held_out)


def _check_checkpoint(
    run: Run,
    checkpoint: Path,
    plan: Plan | None,
    base: BaseModelRef,
    examples: tuple[Examples, Examples],
    ignore_mismatch: bool,
) -> None:
    """Check the checkpoint's provenance, and record a mismatch that is ignored."""
    if plan is None:
        raise UserError(
            "training.plan_missing",
            "This run has checkpoints, but its plan.json is missing. "
            "Restore it, or start a new run.",
        )
    step, (rows, held_out) = checkpoints.step_of(checkpoint), examples
    saved = checkpoints.checkpoint_provenance(checkpoint)
    current = current_provenance(run, plan, base, rows.tokens, held_out.tokens)
    if differences := check_provenance(step, saved, current, ignore_mismatch):
        what = f"Resuming from step {step} despite a mismatch, as you requested:"
        append_notice_once(run, events.Notice(what=what, why=f"{'; '.join(differences)}."))


def _load_model(
    run: Run,
    base: BaseModelRef,
    task_spec: TaskSpec,
    rows: Examples,
    device: hardware.Device | None,
    tokenizer: Any,
) -> PeftModel:
    """The base model with the adapter that training starts from, on `device` if it is not None."""
    recipe, start = run.recipe, run.path("start")
    if recipe.method in FROM_BASE and not start.is_dir():
        run.append(events.Preparing(what=f"Computing the initial {recipe.method} adapter"))
        write_initial_adapter(start, base, recipe, task_spec)
    source, put = base, None
    if start.is_dir():
        source = initial_base(start, base)
        put = functools.partial(load_initial_adapter, folder=start)
    dtype = _load_dtype(run, base, task_spec, rows)
    model = load_base_model(source, recipe, dtype, task_spec, device)
    end_tokens = _untrained_ends(run, model, base, tokenizer, rows)
    return new_adapter(model, recipe, base, task_spec, put, end_tokens)


def _untrained_ends(
    run: Run, model: Any, base: BaseModelRef, tokenizer: Any, rows: Examples
) -> list[int]:
    """The end tokens whose rows of the output layer have to be trained. Reports them."""
    task = task_spec_for(run).task
    ends = tokens_at_ends(rows, tokenizer, task)
    counts = {token: count for token in ends if (count := tokens_as_likely(model, token))}
    if not counts or trains_output_layer(run.recipe, linear_layers(base.config, task)):
        return []
    is_trained = not run.path("start").is_dir()
    for token, count in counts.items():
        name = tokenizer.convert_ids_to_tokens(token)
        what, why = explain_unlearned_end(name, count, is_trained)
        append_notice_once(run, events.Notice(what=what, why=why), ever=True)
    return list(counts) if is_trained else []


def _load_dtype(run: Run, base: BaseModelRef, task_spec: TaskSpec, rows: Examples) -> str:
    """The dtype to load the base model in."""
    plan, recipe = read_plan(run), run.recipe
    has_plan = plan is not None and bool(plan.device)  # an imported adapter's has no device
    if hardware.device() == "cuda":
        if has_plan:
            return plan.compute_dtype  # type: ignore[union-attr]
        chosen = recipe.compute_dtype
        return inference_dtype(base.config) if chosen == "automatic" else chosen
    if not all_weights_are_frozen(recipe, base, task_spec):
        return "float32"
    if has_plan:
        return plan.frozen_dtype or "float32"  # type: ignore[union-attr]
    row_length = len(rows.of_median_length().input_ids)
    return choose_compute_dtype(recipe, base, task_spec, row_length)[0]


def _save_adapter(run: Run, setup: _TrainingSetup, on_adapter_saved: AdapterSaved | None) -> None:
    """Write adapter/ whole or not at all: weights and config as PEFT writes them, and tokenizer."""
    new, folder, old = run.path(_NEW_ADAPTER), run.path("adapter"), run.path(".adapter.old")
    model = setup.model
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    for outdated in ("scores.json", "votes.json"):  # of the previous adapter
        run.path(outdated).unlink(missing_ok=True)
    # PEFT would ask the Hub for the vocabulary's size
    resized = has_resized_base(run)
    model.save_pretrained(str(new), save_embedding_layers=resized, selected_adapters=["default"])
    _sort_lists(new / "adapter_config.json")
    if run.recipe.method in FROM_BASE:
        to_plain_lora(new, run.path("start"))
    save_tokenizer(setup.tokenizer, setup.base, new)
    if on_adapter_saved:
        prepared = Prepared(setup.task_spec, setup.data, setup.rows.tokens, setup.held_out.tokens)
        on_adapter_saved(run, new, prepared, setup.base, setup.plan)
    if folder.exists():
        os.replace(folder, old)
    atomic_io.atomic_rename(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def _sort_lists(adapter_config: Path) -> None:
    """Sort the names that PEFT stores as sets, whose order differs between processes."""
    config: dict[str, Any] = json.loads(adapter_config.read_text())
    for name, value in config.items():
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            config[name] = sorted(value)
    atomic_io.write_text(adapter_config, json.dumps(config, indent=2, sort_keys=True) + "\n")
