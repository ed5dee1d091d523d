"""Measures on this machine how long a training step takes: one block of each kind, and the loss.

They run with random weights, so the base need not be loaded.
"""

import contextlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peft_space.compat.torch import materialize_fake
from peft_space.estimation.activations import count_activations
from peft_space.estimation.memory import with_adapter, with_quantization
from peft_space.hardware import Device
from peft_space.models.architecture import CLASSIFYING, ModelLayers
from peft_space.models.config_values import config_number
from peft_space.models.label_scorer import logits_at_once
from peft_space.recipe import Recipe


@dataclass(frozen=True)
class StepTime:
    """Seconds that a model takes here, for each token."""

    forward: float
    """Of a forward pass without gradients through all blocks."""
    both: float
    """Of a forward and a backward pass through all blocks."""
    label: float
    """Of the output layer and the loss, forward and backward."""


EFFICIENCY = 0.5
"""Share of the speed of bare matrix products that training reaches. torchtune's fastest setting of
Llama 3.2 3B, 8,035 tokens/s, is 0.49 of an A100's data sheet. The built-in model reached 0.4 on a
2-core CPU."""
_MAX_MEASURED = 2e10
"""Tokens times parameters of a block that is measured: a second or two on two cores."""
_MEASURED_SECONDS = 0.1
_MIN_MEASUREMENTS = 2


def measure_step(
    layers: ModelLayers,
    recipe: Recipe,
    batch_size: int,
    length: int,
    device: Device = "cpu",
    dtype: str = "float32",
) -> StepTime:
    """Run one block of each kind, and the output layer, with random weights on this machine.

    The arguments are those of `estimate`. Of a large model fewer tokens are measured. If its blocks
    cannot be run alone, the speed of matrix products counts. A second call with the same shape and
    adapter returns the first measurement, so the estimate stays the same from look to look.
    """
    import torch

    shape = [batch_size, length, device, dtype, torch.get_num_threads(), layers.task]
    adapter = recipe.model_dump(mode="json", include=_SHAPING)
    key = json.dumps([layers.model.config.to_dict(), adapter, shape], sort_keys=True, default=str)
    if key not in _measured:
        _measured[key] = _measure(layers, recipe, batch_size, length, device, dtype)
    return _measured[key]


_measured: dict[str, StepTime] = {}
_SHAPING = {
    "quantization", "double_quantization", "method", "lora_rank", "lora_dropout", "target_modules",
    "layers_to_transform", "adapt_experts", "train_projector", "lora_bias", "modules_to_save",
    "new_tokens",
}  # fmt: skip
"""The recipe's fields that decide what a block computes."""


def _measure(
    layers: ModelLayers,
    recipe: Recipe,
    batch_size: int,
    length: int,
    device: Device,
    dtype: str,
) -> StepTime:
    import torch

    parameters = layers.model.num_parameters()
    model = with_adapter(layers, recipe, device, dtype)
    per_block = parameters / max(1, config_number(layers.model.config, "num_hidden_layers"))
    fitting = max(16, int(_MAX_MEASURED / per_block))
    rows = max(1, min(batch_size, fitting // length))
    length = min(length, fitting)
    kept = count_activations(layers, model, rows, length, device, dtype)
    tokens = rows * length
    label = _label_seconds(layers, tokens, device, dtype)
    if not all(block.module for block in kept.blocks):
        forward = _forward_by_rule(layers, tokens, device, dtype)
        return StepTime(forward, 2 * forward, label)
    quantized = {} if recipe.method == "dora" else with_quantization(layers, recipe, dtype)[1]
    for name, quantized_layer in quantized.items():
        layer = model.get_base_model().get_submodule(name)
        getattr(layer, "base_layer", layer).is_quantized_as = quantized_layer
    autocast: Any = contextlib.nullcontext()
    if dtype != "float32":
        autocast = torch.autocast(device, getattr(torch, dtype))
    forward = both = 0.0
    for block in kept.blocks:
        if not block.runs:  # of a vision tower, which texts do not pass through
            block.module = None
            continue
        _fill(block.module, recipe, device, dtype)
        seconds = _block_seconds(block.module, _filled(block.arguments, device), device, autocast)
        times = block.count * block.runs
        forward, both = forward + times * seconds[0], both + times * seconds[1]
        block.module = None  # its weights are real
    return StepTime(forward / tokens, both / tokens, label)


def _forward_by_rule(layers: ModelLayers, tokens: int, device: Device, dtype: str) -> float:
    """Seconds of a forward pass for each token: 2 operations a parameter (arXiv 2001.08361)."""
    import torch

    width = config_number(layers.model.config, "hidden_size")
    states, weight = (
        torch.full((size, width), 0.01, dtype=getattr(torch, dtype), device=device)
        for size in (tokens, width)
    )
    seconds = _median_seconds(lambda: torch.nn.functional.linear(states, weight), device)
    rate = 2 * tokens * width**2 / seconds
    return 2 * layers.model.num_parameters() / rate / EFFICIENCY


def _block_seconds(
    module: Any, arguments: Any, device: Device, autocast: Any
) -> tuple[float, float]:
    """Seconds of a forward pass without gradients, and of a forward and a backward pass."""
    import torch

    def run() -> Any:
        with autocast:
            output = module(*arguments[0], **arguments[1])
        return output if isinstance(output, torch.Tensor) else output[0]

    def run_both() -> None:
        run().float().sum().backward()

    with torch.no_grad():
        forward = _median_seconds(run, device)
    return forward, _median_seconds(run_both, device)


def _fill(block: Any, recipe: Recipe, device: Device, dtype: str) -> None:
    """Give a block random weights, and quantize its layers that are marked so."""
    import bitsandbytes
    import torch

    materialize_fake(block, device)
    for parameter in block.parameters():
        parameter.data.normal_(0, 0.02)
    for name, layer in list(block.named_modules()):
        if not (meta := getattr(layer, "is_quantized_as", None)):
            continue
        sizes = meta.in_features, meta.out_features, meta.bias is not None
        quantized: Any = bitsandbytes.nn.Linear8bitLt(*sizes, True, False)
        if recipe.quantization != "int8":
            quantized = bitsandbytes.nn.Linear4bit(
                *sizes, getattr(torch, dtype), recipe.double_quantization, recipe.quantization
            )
        block.set_submodule(name, quantized.requires_grad_(False).to(device))


def _filled(value: Any, device: Device) -> Any:
    """Arguments of a block with contents in place of their shapes."""
    import torch

    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            return torch.full(
                value.shape,
                0.5,
                dtype=value.dtype,
                device=device,
                requires_grad=value.requires_grad,
            )
        return torch.ones(value.shape, dtype=value.dtype, device=device)
    if isinstance(value, dict):
        return {name: _filled(item, device) for name, item in value.items()}
    return tuple(_filled(item, device) for item in value) if isinstance(value, tuple) else value


def _label_seconds(layers: ModelLayers, num_labels: int, device: Device, dtype: str) -> float:
    """Seconds to score a label, of as many as are scored at once. 0 for a classifier."""
    import torch

    output_layer: Any = layers.model.get_output_embeddings()
    if layers.task in CLASSIFYING or output_layer is None:
        return 0.0
    weight = output_layer.weight
    num_labels = max(1, logits_at_once(num_labels, len(weight), device) // len(weight))
    layer, states = (
        torch.full(shape, 0.01, dtype=getattr(torch, dtype), device=device)
        for shape in (weight.shape, (num_labels, weight.shape[1]))
    )
    states.requires_grad_()

    def score() -> None:
        logits = torch.nn.functional.linear(states, layer).float()
        logits.log_softmax(-1)[:, 0].sum().backward()

    return _median_seconds(score, device) / num_labels


def _median_seconds(run: Callable[[], Any], device: Device) -> float:
    import torch

    run()  # warms up
    seconds: list[float] = []
    while sum(seconds) < _MEASURED_SECONDS or len(seconds) < _MIN_MEASUREMENTS:
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
