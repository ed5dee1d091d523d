"""Chooses the settings that train a run on this machine, and reports them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peft_space import hardware, settings
from peft_space.errors import UserError
from peft_space.estimation.memory import estimate_within, surely_fits
from peft_space.formatting import gigabytes
from peft_space.models.architecture import linear_layers, num_places, unadapted_notes
from peft_space.models.config_values import config_number, text_config
from peft_space.models.loading import inference_dtype, parameter_counts
from peft_space.models.packing import why_not_packed
from peft_space.models.quantization import quantization_of
from peft_space.models.resolve import BaseModelRef
from peft_space.recipe import Recipe, Task, TaskSpec
from peft_space.recommend import rules
from peft_space.runs import events
from peft_space.runs.plan import Plan, split_step_rows, write_plan
from peft_space.runs.run import Run, append_notice_once
from peft_space.training import distributed
from peft_space.training.precision import (
    choose_compute_dtype,
    frozen_dtype,
    library_versions,
)
from peft_space.training.trainers import goes_by_length, saved_by_length, total_steps

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig

    from peft_space.data.batches import Examples


def check_machine(recipe: Recipe) -> None:
    """Check that this machine has what the recipe asks for.

    Raises:
        UserError: it has not. The message names the field of the recipe.
    """
    on_gpu = hardware.device() == "cuda"
    reasons = {
        "optim": recipe.optim == "paged_adamw_8bit" and not on_gpu and "pages memory of a GPU",
        "use_liger_kernel": recipe.use_liger_kernel
        and not (on_gpu and importlib.util.find_spec("liger_kernel"))
        and "needs a GPU and the package liger-kernel",
        "torch_compile": recipe.torch_compile
        and settings.on_zerogpu()
        and "would compile anew in every slice of ZeroGPU",
    }
    for name, reason in reasons.items():
        if reason:
            raise UserError(
                "training.unavailable_here",
                f"{name} = {getattr(recipe, name)} {reason}, which this machine cannot do. "
                f"Set {name} to its default, or train on a machine with a GPU.",
            )


@dataclass(frozen=True)
class DeviceChoice:
    """How the processes of a training hold the base model, and why."""

    shard_base: bool
    why: str


def choose_devices(
    recipe: Recipe, base: BaseModelRef, task_spec: TaskSpec, rows: Examples, free_memory: int
) -> DeviceChoice:
    """Decide if the processes that train together share the weights of the base model.

    All processes decide the same, because GPUs of one machine have the same size.

    Args:
        recipe: the run's recipe.
        base: the base model.
        task_spec: the task to train.
        rows: the training rows.
        free_memory: bytes that are free on a device.

    Raises:
        UserError: the recipe asks for it, and a base with this quantization cannot be shared.
    """
    num_processes, choice = distributed.num_processes(), recipe.shard_base
    quantization = quantization_of(recipe, base.config)
    can_share = quantization in ("none", "nf4", "fp4")
    if choice == "on" and not can_share:
        raise UserError(
            "training.unavailable_here",
            f"shard_base = on cannot be used with a base in {quantization}. "
            "Set quantization to nf4 or none, or shard_base to automatic.",
        )
    if num_processes == 1:
        why = "This is the only device, or a step has too few rows for two."
        return DeviceChoice(False, why)
    if choice == "on":
        return DeviceChoice(True, "The recipe says that the devices share the base model.")
    if choice == "off" or not can_share or hardware.device() == "cpu":
        return DeviceChoice(False, "Each device holds the whole base model.")
    layers = linear_layers(base.config, task_spec.task)
    size, _ = split_step_rows(
        recipe.batch_size * recipe.gradient_accumulation_steps, recipe.batch_size, num_processes
    )
    size *= 2 if task_spec.task == "dpo" else 1
    longest = int(rows.lengths(recipe.max_length).max())
    dtype = inference_dtype(base.config)
    need, _ = estimate_within(layers, recipe, size, longest, free_memory, "cuda", dtype)
    amounts = f"{gigabytes(need.total)} of the {gigabytes(free_memory)} that are free on each"
    if need.total <= free_memory:
        return DeviceChoice(False, f"The whole base model fits on each: {amounts}.")
    return DeviceChoice(True, f"The whole base model does not fit on one: {amounts}.")


def choose_learning_rate(
    recipe: Recipe, config: PretrainedConfig, task: Task, num_rows: int
) -> tuple[float, str]:
    """Return the learning rate of a training, and why it has this value."""
    if recipe.learning_rate:
        return recipe.learning_rate, "as the recipe says"
    width, steps = config_number(config, "hidden_size"), total_steps(recipe, num_rows)
    rate = rules.learning_rate(width, task, steps, recipe.lora_rank)
    return rate.value, rate.why


def make_plan(
    recipe: Recipe,
    base: BaseModelRef,
    task_spec: TaskSpec,
    model: PeftModel,
    rows: Examples,
    free_memory: int,
    devices: DeviceChoice,
) -> Plan:
    """Choose what to train with on this machine.

    Args:
        recipe: the run's recipe.
        base: the base model.
        task_spec: the task to train.
        model: the base model with the adapter.
        rows: the training rows.
        free_memory: bytes that were free before the model was loaded.
        devices: how the processes hold the base model.
    """
    import torch

    trainable, total = parameter_counts(model)
    max_length = min(recipe.max_length, num_places(model) or recipe.max_length)
    num_processes, lengths = distributed.num_processes(), rows.lengths(max_length)
    row_length = len(rows.of_median_length().input_ids)
    dtype, why = choose_compute_dtype(recipe, base, task_spec, row_length)
    batch_size, accumulation = split_step_rows(
        recipe.batch_size * recipe.gradient_accumulation_steps, recipe.batch_size, num_processes
    )
    rate, rate_why = choose_learning_rate(recipe, base.config, task_spec.task, len(rows))
    config: Any = model.peft_config["default"]
    tuner: Any = model.base_model
    checkpointing = _needs_checkpointing(
        recipe, base, task_spec, batch_size, int(lengths.max()), free_memory
    )
    packing, packing_why = _packing(task_spec, model, int(lengths.max()), dtype)
    return Plan(
        packing=packing,
        packing_why=packing_why,
        device=hardware.device(),
        device_name=hardware.device_name(),
        compute_dtype=dtype,
        frozen_dtype=frozen_dtype(model, dtype),
        threads=torch.get_num_threads(),
        why=why,
        num_processes=num_processes,
        batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_length=max_length,
        gradient_checkpointing=checkpointing,
        shard_base=devices.shard_base,
        devices_why=devices.why,
        by_length=goes_by_length(lengths, recipe, packing),
        base_name=base.name,
        base_revision=base.revision,
        base_on_hub=base.on_hub,
        task=task_spec.task,
        labels=task_spec.labels,
        quantization=quantization_of(recipe, base.config),
        saved_modules=sorted(config.modules_to_save or []),
        target_modules=sorted(config.target_modules),
        num_wrapped=len(tuner.targeted_module_names),
        not_adapted=unadapted_notes(recipe, linear_layers(base.config, task_spec.task)),
        trainable_parameters=trainable,
        all_parameters=total,
        learning_rate=rate,
        learning_rate_why=rate_why,
        versions=library_versions(),
    )


def _packing(task_spec: TaskSpec, model: PeftModel, longest: int, dtype: str) -> tuple[bool, str]:
    """Decide if rows are laid end to end. Also returns the reason."""
    if task_spec.task != "causal-lm":
        return False, f"Rows are padded: {task_spec.task} compares or reads whole rows."
    if reason := why_not_packed(model, longest, dtype):
        return False, f"Rows are padded: in this model, {reason}."
    return True, "Nothing is computed for padding, and each row still sees itself alone."


def _needs_checkpointing(
    recipe: Recipe,
    base: BaseModelRef,
    task_spec: TaskSpec,
    batch_size: int,
    longest: int,
    free_memory: int,
) -> bool:
    if recipe.gradient_checkpointing != "automatic":
        return recipe.gradient_checkpointing == "on"
    layers = linear_layers(base.config, task_spec.task)
    if quantization_of(recipe, base.config) != recipe.quantization:
        # memory of layers that come quantized is not estimated
        return hardware.device() == "cuda" and layers.can_checkpoint
    rows = batch_size * (2 if task_spec.task == "dpo" else 1)
    if not layers.can_checkpoint or surely_fits(layers, rows, longest, free_memory):
        return False
    return estimate_within(
        layers, recipe, rows, longest, free_memory, hardware.device(), inference_dtype(base.config)
    )[1]


def make_first_plan(
    run: Run,
    base: BaseModelRef,
    task_spec: TaskSpec,
    model: PeftModel,
    rows: Examples,
    free_memory: int,
    devices: DeviceChoice,
) -> Plan:
    """Make the plan of a run that is trained for the first time, write it, and report choices.

    The arguments are those of `make_plan`.
    """
    run.append(events.Preparing(what="Measuring the fastest settings on this machine"))
    plan = make_plan(run.recipe, base, task_spec, model, rows, free_memory, devices)
    recipe, lengths = run.recipe, rows.lengths(plan.max_length)
    write_plan(run, plan)
    _report_length(run, base, plan, rows)
    if plan.by_length:
        saved = saved_by_length(lengths, recipe)
        _notice(
            run,
            "Rows of similar length share a step.",
            f"This reduces the tokens to compute by {saved:.0%}, because rows need less padding.",
        )
    if plan.gradient_checkpointing and recipe.gradient_checkpointing == "automatic":
        _notice(
            run,
            "Activations are recomputed instead of stored (gradient checkpointing).",
            f"Otherwise, with a longest row of {lengths.max():,} tokens, training would not fit in "
            f"{gigabytes(free_memory)} of free memory.",
        )
    return plan


def _report_length(run: Run, base: BaseModelRef, plan: Plan, rows: Examples) -> None:
    """Report a limit of the model that is lower than the recipe's, or that rows exceed."""
    longest = int(rows.lengths(run.recipe.max_length).max())
    known = getattr(text_config(base.config), "max_position_embeddings", None)
    if plan.max_length < run.recipe.max_length and longest > plan.max_length:
        _notice(
            run,
            f"Rows are cut at {plan.max_length:,} tokens instead of {run.recipe.max_length:,}.",
            "The base model has no positions for more tokens.",
        )
    elif isinstance(known, int) and longest > known:
        _notice(
            run,
            f"The longest row has {longest:,} tokens, and the base model was made for {known:,}.",
            "It can compute more positions, but it may read what lies beyond less well. "
            f"Set max_length to {known:,} to cut such rows.",
        )


def report_plan(run: Run, plan: Plan) -> None:
    """Report what the plan chose, exactly once even if training is killed in between."""
    if plan.packing:
        _notice(run, "Rows are laid end to end (packing).", plan.packing_why)
    threads = f"{plan.threads} thread{'s' * (plan.threads > 1)}"
    _notice(run, f"Computing in {plan.compute_dtype} with {threads}.", plan.why)
    if plan.num_processes > 1:
        rows = plan.gradient_accumulation_steps * plan.batch_size
        what = f"{plan.num_processes} processes train together, each on {rows} rows of a step."
        if plan.shard_base:
            what += " Each holds a part of the base model (FSDP)."
        _notice(run, what, plan.devices_why)
    for note in plan.not_adapted:
        _notice(run, f"{plan.num_wrapped} layers get an adapter.", note)
    _notice(run, f"Learning rate {plan.learning_rate:g},", f"{plan.learning_rate_why}.")


def _notice(run: Run, what: str, why: str) -> None:
    append_notice_once(run, events.Notice(what=what, why=why), ever=True)
