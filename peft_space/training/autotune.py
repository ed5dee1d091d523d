"""The Plan: what a run was really trained with on this machine. Measured once, written to plan.json, used again on every resume."""

import hashlib
import importlib.metadata
import json
import statistics
import time
from typing import Any

from peft_space import hardware
from peft_space.estimation.memory import estimate_within, surely_fits
from peft_space.models.architecture import linear_layers
from peft_space.models.loading import inference_dtype, parameter_counts
from peft_space.models.quantization import quantization_of
from peft_space.models.resolve import BaseModelRef
from peft_space.recipe import Recipe, TaskSpec
from peft_space.recommend import rules
from peft_space.runs.plan import Plan, split_step_rows
from peft_space.storage.content_cache import get_or_create
from peft_space.training.precision import autocast_to, frozen_dtype

_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
MIN_BF16_SPEEDUP = 1.5
"""A layer in bfloat16 on a CPU has to be faster by this much: float32 is more exact, and a layer's products are about half of a step."""
ABORT_SLOWDOWN = 5
"""Where bfloat16 takes so many times as long on few rows it is not measured further: without instructions for it it takes up to 60 times as long."""
_PATIENCE_SECONDS = 0.3
"""Where other work makes it slow, measuring ends after the round in which this much time has gone by."""
PROBE_MULTIPLICATIONS, TIMING_MULTIPLICATIONS = 2e7, 4e8
"""Multiplications of a layer in that first look and in the measurement, which together take 0.1 to 0.3 seconds."""


def make_plan(
    recipe: Recipe,
    base: BaseModelRef,
    goal: TaskSpec,
    model: Any,
    row_length: int,
    longest: int,
    free: int,
    num_steps: int,
    num_processes: int = 1,
) -> Plan:
    """Choose for this machine, with the model that is going to be trained.

    Args:
        row_length: tokens of a typical row.
        longest: tokens of the longest row.
        free: bytes of memory that could be taken before the model was loaded.
        num_steps: of the whole training.
    """
    import torch

    trainable, total = parameter_counts(model)
    dtype, why = choose_compute_dtype(recipe, base, goal, model, row_length)
    batch_size, accumulated = split_step_rows(
        recipe.batch_size * recipe.gradient_accumulation_steps, recipe.batch_size, num_processes
    )
    rate = rules.learning_rate(base.config.get_text_config().hidden_size, goal.task, num_steps)
    config = model.peft_config["default"]
    return Plan(
        device=hardware.device(),
        device_name=hardware.device_name(),
        compute_dtype=dtype,
        frozen_dtype=frozen_dtype(model, dtype),
        threads=torch.get_num_threads(),
        why=why,
        num_processes=num_processes,
        batch_size=batch_size,
        gradient_accumulation_steps=accumulated,
        max_length=recipe.max_length,
        gradient_checkpointing=_needs_checkpointing(recipe, base, goal, batch_size, longest, free),
        base_name=base.name,
        base_revision=base.revision,
        base_on_hub=base.on_hub,
        task=goal.task,
        labels=goal.labels,
        quantization=quantization_of(recipe, base.config),
        saved_modules=sorted(config.modules_to_save or []),
        target_modules=sorted(config.target_modules),
        num_wrapped=len(model.base_model.targeted_module_names),
        trainable_parameters=trainable,
        all_parameters=total,
        learning_rate=recipe.learning_rate or rate.value,
        learning_rate_why="as the recipe says" if recipe.learning_rate else rate.why,
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    return {library: importlib.metadata.version(library) for library in _LIBRARIES}


def _needs_checkpointing(
    recipe: Recipe, base: BaseModelRef, goal: TaskSpec, batch_size: int, longest: int, free: int
) -> bool:
    if recipe.gradient_checkpointing != "automatic":
        return recipe.gradient_checkpointing == "on"
    if (
        quantization_of(recipe, base.config) != recipe.quantization
    ):  # what such layers take has not been measured
        return hardware.device() == "cuda"
    layers, rows = (
        linear_layers(base.config, goal.task),
        batch_size * (2 if goal.task == "dpo" else 1),
    )
    if surely_fits(layers, rows, longest, free):
        return False
    return estimate_within(
        layers, recipe, rows, longest, free, hardware.device(), inference_dtype()
    )[1]


def choose_compute_dtype(
    recipe: Recipe, base: BaseModelRef, goal: TaskSpec, model: Any, row_length: int
) -> tuple[str, str]:
    """Choose the compute dtype for training `model` on this machine.

    A measurement is cached per kind of model, so that the same run computes the same numbers.

    Returns:
        The dtype, and a sentence that says why.
    """

    if recipe.compute_dtype != "automatic":
        return recipe.compute_dtype, "The recipe says so."
    if hardware.device() == "cuda":
        dtype = inference_dtype()
        return dtype, f"The GPU computes in {dtype} natively."
    shaping = recipe.model_dump(
        include={
            "quantization",
            "double_quantization",
            "method",
            "lora_rank",
            "lora_dropout",
            "target_modules",
        }
    )
    num_tokens = recipe.batch_size * row_length
    decides = [
        shaping,
        num_tokens,
        goal.task,
        base.config.to_dict(),
        hardware.device_name(),
        _versions(),
        MIN_BF16_SPEEDUP,
    ]
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()
    folder = get_or_create(
        "speed",
        digest,
        lambda folder: (folder / "choice.json").write_text(
            json.dumps(_measured_dtype(model, num_tokens))
        ),
    )
    dtype, why = json.loads((folder / "choice.json").read_text())
    return dtype, why


def _measured_dtype(model: Any, num_tokens: int) -> tuple[str, str]:
    """Measure which dtype the model's largest layer computes faster in, on batches of `num_tokens`.

    A step of the whole model would delay the first step for longer than anybody wants to wait.

    Returns:
        The compute dtype, and a sentence that says why.
    """
    import torch

    layer, threads = _largest_layer(model).train(), torch.get_num_threads()
    torch.set_num_threads(1)  # the CPU time of one thread hardly depends on other processes
    try:
        for multiplications in (PROBE_MULTIPLICATIONS, TIMING_MULTIPLICATIONS):
            float32, bfloat16 = _seconds_by_dtype(layer, num_tokens, multiplications)
            if bfloat16 > ABORT_SLOWDOWN * float32:
                return "float32", "This CPU is slow in bfloat16."
    finally:
        torch.set_num_threads(threads)
        layer.zero_grad(set_to_none=True)
    speedup = float32 / bfloat16
    return (
        "bfloat16" if speedup >= MIN_BF16_SPEEDUP else "float32",
        f"Measured on this model's largest layer: bfloat16 is {speedup:.2f} times as fast as "
        f"float32. The app uses it from {MIN_BF16_SPEEDUP} times.",
    )


def _largest_layer(model: Any) -> Any:
    """The largest linear layer with an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    return max(layers, key=lambda layer: layer.in_features * layer.out_features)


def _seconds_by_dtype(layer: Any, num_tokens: int, multiplications: float) -> tuple[float, float]:
    """Median CPU seconds of a forward and backward pass in float32 and in bfloat16.

    The two take turns, at most four times after a warm-up.

    Args:
        layer: a linear layer with an adapter.
        num_tokens: tokens of a batch; fewer are used where `multiplications` allows no more.
        multiplications: most multiplications of a forward pass.
    """
    import torch

    rows = max(1, min(num_tokens, int(multiplications / layer.in_features / layer.out_features)))
    seconds: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    start = time.perf_counter()
    for number in range(5):
        for dtype, times in seconds.items():
            inputs = torch.randn(1, rows, layer.in_features, requires_grad=True)
            with autocast_to(layer, dtype):
                began = time.process_time()
                outputs = layer(inputs)
            outputs.sum().backward()
            times.append(time.process_time() - began)
        if number and time.perf_counter() - start > _PATIENCE_SECONDS:
            break
    float32, bfloat16 = (statistics.median(times[1:]) for times in seconds.values())
    return float32, bfloat16
