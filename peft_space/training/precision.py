"""Chooses the dtype of computation and of frozen weights, and avoids repeated casts."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.metadata
import json
import math
import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from peft_space import hardware
from peft_space.compat.bitsandbytes import keep_4bit_layer_exact
from peft_space.compat.peft import set_input_casts
from peft_space.compat.transformers import float32_modules
from peft_space.errors import UserError
from peft_space.models.architecture import CLASSIFYING, linear_layers, wrapped_layers
from peft_space.models.loading import adapter_config, inference_dtype
from peft_space.models.quantization import quantization_of
from peft_space.models.resolve import BaseModelRef
from peft_space.recipe import Recipe, Task, TaskSpec
from peft_space.storage.content_cache import get_or_create

if TYPE_CHECKING:
    from peft import PeftModel
    from torch.nn import Module
    from transformers import PreTrainedModel

MIN_BF16_SPEEDUP = 1.5
"""The trainer uses bfloat16 from this speedup of a layer on a CPU. Float32 is more exact, and a
layer's matrix products are about half of a step."""
ABORT_SLOWDOWN = 5
"""The trainer stops measuring bfloat16 from this slowdown: without CPU instructions for it,
bfloat16 is up to 60 times slower."""
MAX_ROUND_SECONDS = 0.3
"""The measurement ends after the round in which this time has passed, if other work slows it."""
PROBE_MULTIPLICATIONS, TIMING_MULTIPLICATIONS = 2e7, 4e8
"""Multiplications of a layer in the probe and in the measurement. Together these take 0.1 to 0.3
seconds."""
_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
_RECIPE_FIELDS = {
    "quantization", "double_quantization", "method", "lora_rank", "lora_dropout", "target_modules"
}  # fmt: skip
"""Recipe fields that decide how fast a layer is."""


def choose_compute_dtype(
    recipe: Recipe,
    base: BaseModelRef,
    task_spec: TaskSpec,
    row_length: int,
) -> tuple[str, str]:
    """Choose the compute dtype for training on this machine, before the model is loaded.

    A measurement is cached per kind of model, so that the same run computes the same numbers.

    Args:
        recipe: the run's recipe.
        base: the base model.
        task_spec: the task to train.
        row_length: tokens of a typical row.

    Returns:
        The dtype, and a sentence with the reason.
    """
    if hardware.device() == "cuda":
        return _dtype_on_gpu(recipe, base)
    if recipe.compute_dtype != "automatic":
        return recipe.compute_dtype, "The recipe says so."
    num_tokens = recipe.batch_size * row_length
    key = [
        recipe.model_dump(include=_RECIPE_FIELDS),
        num_tokens,
        task_spec.task,
        base.config.to_dict(),
        hardware.device_name(),
        library_versions(),
        MIN_BF16_SPEEDUP,
    ]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()

    def measure(folder: Path) -> None:
        layer = _layer_like_the_largest(recipe, base, task_spec.task)
        (folder / "choice.json").write_text(json.dumps(_measured_dtype(layer, num_tokens)))

    folder = get_or_create("speed", digest, measure)
    dtype, why = json.loads((folder / "choice.json").read_text())
    return dtype, why


def _dtype_on_gpu(recipe: Recipe, base: BaseModelRef) -> tuple[str, str]:
    native, suited = inference_dtype(), inference_dtype(base.config)
    if recipe.compute_dtype == "bfloat16" and native != "bfloat16":
        raise UserError(
            "training.compute_dtype_unsupported",
            "This GPU has no instructions for bfloat16, and would emulate it very slowly. "
            "Set compute_dtype to automatic or float32.",
        )
    if recipe.compute_dtype != "automatic":
        return recipe.compute_dtype, "The recipe says so."
    if suited != native:
        return suited, f"Models of type {base.config.model_type} overflow in {native}."
    return native, f"The GPU computes in {native} natively."


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide what a training computes, and how fast."""
    return {library: importlib.metadata.version(library) for library in _LIBRARIES}


def _measured_dtype(layer: Any, num_tokens: int) -> tuple[str, str]:
    """Measure which dtype the model's largest layer computes faster in, on batches of `num_tokens`.

    A step of the whole model would delay the first step for longer than users want to wait.
    """
    import torch

    threads = torch.get_num_threads()
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


def _layer_like_the_largest(recipe: Recipe, base: BaseModelRef, task: Task) -> Any:
    """A random linear layer with an adapter, as large as the model's largest, quantized alike."""
    import bitsandbytes
    import torch
    from peft import get_peft_model

    layers = linear_layers(base.config, task)
    model: Any = layers.model
    shapes = [
        tuple(model.get_submodule(name).weight.shape) for name in wrapped_layers(recipe, layers)
    ]
    outputs, inputs = max(shapes, key=math.prod)
    layer: Any = torch.nn.Linear(inputs, outputs)
    if recipe.quantization in ("nf4", "fp4"):
        exact = layer
        layer = bitsandbytes.nn.Linear4bit(
            inputs,
            outputs,
            compute_dtype=torch.float32,
            compress_statistics=recipe.double_quantization,
            quant_type=recipe.quantization,
        )
        layer.load_state_dict(exact.state_dict())
        layer = layer.to("cpu")  # which quantizes it
        keep_4bit_layer_exact(layer, torch.float32)
    elif recipe.quantization == "int8":
        exact = layer
        layer = bitsandbytes.nn.Linear8bitLt(inputs, outputs, has_fp16_weights=False)
        layer.load_state_dict(exact.state_dict())
        layer = layer.to("cpu")
    config = adapter_config(recipe, layers, task)
    config.target_modules, config.modules_to_save = ["0"], None
    config.exclude_modules = config.layers_to_transform = config.task_type = None
    config.target_parameters, config.rank_pattern, config.alpha_pattern = None, {}, {}
    adapted: Any = get_peft_model(torch.nn.Sequential(layer), config)
    return adapted.base_model.model[0].train()


def _seconds_by_dtype(layer: Any, num_tokens: int, multiplications: float) -> tuple[float, float]:
    """Median CPU seconds of a forward and backward pass in float32 and in bfloat16.

    The two alternate, at most four times after a warm-up.

    Args:
        layer: a linear layer with an adapter.
        num_tokens: tokens of a batch; fewer if `multiplications` allows no more.
        multiplications: maximum multiplications of a forward pass.
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
        if number and time.perf_counter() - start > MAX_ROUND_SECONDS:
            break
    float32, bfloat16 = (statistics.median(times[1:]) for times in seconds.values())
    return float32, bfloat16


@contextlib.contextmanager
def autocast_to(model: Any, dtype: str) -> Iterator[None]:
    """Compute in `dtype` on a CPU: sets autocast and the dtype that 4-bit layers dequantize to."""
    import torch

    set_compute_dtype(model, dtype)
    with torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext():
        yield


def set_compute_dtype(model: Module, dtype: str) -> None:
    """Set the dtype in which 4-bit layers compute, if the model has any."""
    import bitsandbytes
    import torch

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.compute_dtype = getattr(torch, dtype)


def frozen_dtype(model: PeftModel, dtype: str) -> str:
    """Return the dtype to cast the frozen weights to; empty to leave them as they were loaded.

    On a CPU this is the compute dtype, as on GPUs, so that activations between layers have 16 bits
    too. There are three exceptions. `prepare_model_for_kbit_training` makes the other weights of a
    quantized base float32. DoRA takes the norm of weights. Trained embeddings make activations
    float32, which a CPU does not mix with 16-bit norms.

    Args:
        model: the base model with the adapter.
        dtype: the compute dtype.
    """
    import torch

    quantized = getattr(model, "quantization_method", None)
    if hardware.device() != "cpu" or dtype == "float32" or _uses_dora(model) or quantized:
        return ""
    embeddings = (module for module in model.modules() if isinstance(module, torch.nn.Embedding))
    return "" if any(module.weight.requires_grad for module in embeddings) else dtype


def all_weights_are_frozen(recipe: Recipe, base: BaseModelRef, task_spec: TaskSpec) -> bool:
    """Return True if a CPU can load the base in the dtype that frozen weights are held in.

    Modules and biases that are trained themselves start from exact numbers, and PiSSA and LoftQ
    compute with them.
    """
    whole = quantization_of(recipe, base.config) == "none" and recipe.method in ("lora", "rslora")
    trains_base = recipe.modules_to_save or recipe.lora_bias != "none"
    return whole and not trains_base and task_spec.task not in CLASSIFYING


def cast_frozen_weights(model: PeftModel, base: BaseModelRef, task: Task, dtype: str) -> None:
    """Cast all frozen weights and buffers to `dtype`.

    Exceptions: what transformers keeps in float32 when it loads the model in `dtype`, and the
    weight of a norm whose bias is trained.
    """
    import torch

    target, base_model = getattr(torch, dtype), cast("PreTrainedModel", model.get_base_model())
    patterns = "|".join(map(re.escape, float32_modules(base_model)))

    def keeps_float32(name: str) -> bool:
        return bool(patterns and re.search(patterns, name))

    for path, module in model.named_modules():
        own = dict(module.named_parameters(path, recurse=False))
        trained = any(parameter.requires_grad for parameter in own.values())
        if isinstance(module, torch.nn.LayerNorm) and trained:
            continue
        for name, parameter in own.items():
            castable = parameter.is_floating_point() and not parameter.requires_grad
            if castable and not keeps_float32(name):
                parameter.data = parameter.data.to(target)
    # which buffers a model that is loaded in `dtype` has in it: tables of sines, for instance, but
    # not the frequencies of rotations
    config = copy.deepcopy(base.config)
    config.dtype = target
    buffers = dict(base_model.named_buffers())
    for name, buffer in linear_layers(config, task).model.named_buffers():
        if buffer.dtype == target and name in buffers and not keeps_float32(name):
            buffers[name].data = buffers[name].data.to(target)


def avoid_repeated_casts(model: PeftModel, dtype: str) -> None:
    """Cast weights once that autocast would cast to the same numbers in every step.

    Keeps the weights of adapted linear layers in the compute dtype. Does not cast inputs to the
    adapter's float32, because autocast would cast them back. Leaves DoRA out: it takes the norm of
    weights in the dtype of its inputs, which would change the numbers.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    if _uses_dora(model):
        return
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            set_input_casts(module, dtype == "float32")
            layer = module.get_base_layer()
            if type(layer) is torch.nn.Linear and not layer.weight.requires_grad:
                layer.weight.data = layer.weight.data.to(getattr(torch, dtype))


def _uses_dora(model: PeftModel) -> bool:
    config: Any = model.peft_config["default"]
    return config.use_dora
