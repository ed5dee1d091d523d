"""Estimates the peak memory of a training, before any weights are loaded.

Weights, adapter and optimizer follow from their numbers and sizes, activations from
`estimation.activations`. It takes about a second.
"""

import copy
import dataclasses
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from peft_space.compat.peft import set_input_casts
from peft_space.estimation.activations import (
    HUGE_HOLES,
    Block,
    count_activations,
    kept_by_rule,
    tower_bytes,
)
from peft_space.hardware import Device
from peft_space.models.architecture import (
    CLASSIFYING,
    ModelLayers,
    blocks_of,
    num_parameters,
)
from peft_space.models.config_values import config_number, text_config
from peft_space.models.label_scorer import logits_at_once
from peft_space.models.loading import adapter_config, hold_16_bits_again
from peft_space.models.quantization import bitsandbytes_config
from peft_space.recipe import Recipe

if TYPE_CHECKING:
    import torch

LIBRARIES = 88_000_000
"""Bytes that libraries add to a process in its first steps on a CPU: code, tables, buffers.

Fitted, with the next two, on 13 trainings: seven small models and three real shapes (2026-11-30,
glibc 2.36). `benchmarks/memory.py` fits them anew."""
CHECKPOINTED = 0.75
"""Share of these holes that remain with gradient checkpointing, which releases whole blocks."""
DEQUANTIZED_HOLES = 0.3
"""Share of the float32 copies of quantized layers that stays as holes on a CPU, because the forward
pass keeps tensors between them. With gradient checkpointing it keeps few, and HUGE_HOLES holds.
Fitted on four real shapes (`benchmarks/real_shapes.py`, 2026-11-30)."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the moment when a training needs most."""

    weights: int
    """The base, quantized as the recipe says."""
    mapped: int
    """On a CPU, pages of the weights' file besides what was made of them. A file in float32 stays
    mapped while one layer is used from it; one in 16 bits only while it is read."""
    adapter: int
    optimizer: int
    """AdamW's two states: 8 bytes a trainable parameter, or 2 in 8 bits."""
    gradients: int
    """Those of the adapter that exist at the peak. Usually few: the peak is where the backward
    pass begins."""
    activations: int
    """Tensors that the forward pass keeps for the backward pass, and intermediate results."""
    loss: int
    """Logits of a chunk of labels, their log-probabilities and their gradient."""
    overhead: int
    """On a CPU, the libraries' memory after the first step, and holes between tensors."""

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(getattr(self, field.name) for field in fields(self))


def estimate(
    layers: ModelLayers,
    recipe: Recipe,
    batch_size: int,
    length: int,
    device: Device = "cpu",
    dtype: str = "float32",
    patches: float = 0,
) -> MemoryEstimate:
    """Estimate the peak memory of training a recipe.

    Args:
        layers: of the base model for its task. Its model on the meta device stays unchanged.
        recipe: decides the adapter and the quantization. Gradient checkpointing counts if it is
            `on`.
        batch_size: rows in a batch.
        length: tokens of the longest row.
        device: that of the training.
        dtype: "float32", "bfloat16" or "float16": of the computations.
        patches: of pictures, in a row.

    Returns:
        On a CPU, the growth of the process's resident memory since before loading; on a GPU, the
        peak memory of tensors.
    """
    import torch

    model = with_adapter(layers, recipe, device, dtype)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    num_trainable = sum(parameter.numel() for parameter in trainable)
    adapter = sum(parameter.numel() * parameter.element_size() for parameter in trainable)
    frozen, mapped = _frozen_bytes(layers, recipe, device, dtype)
    kept = count_activations(layers, model, batch_size, length, device, dtype)
    held = kept.outside
    for block in kept.blocks:
        held += block.count * _held_of_block(block, recipe, device)
    one_block = max((block.kept for block in kept.blocks), default=0)
    recomputed = one_block if recipe.gradient_checkpointing == "on" else 0
    at_loss = (0, held, _loss_bytes(layers, batch_size * length, device, dtype))
    backward_begins = (0, held + recomputed, 0)
    backward_ends = (adapter, one_block, 0)
    in_tower = (0, tower_bytes(layers, batch_size * patches, getattr(torch, dtype).itemsize), 0)
    peaks = (at_loss, backward_begins, backward_ends, in_tower)
    gradients, activations, loss = max(peaks, key=sum)
    overhead = 0
    if device == "cpu":
        checkpointed = CHECKPOINTED if recipe.gradient_checkpointing == "on" else 1
        overhead = LIBRARIES + round(checkpointed * kept.holes) + _dequantized(layers, recipe)
    optimizer = (2 if recipe.optim == "paged_adamw_8bit" else 8) * num_trainable
    step = adapter + optimizer + gradients + activations + loss + overhead
    return MemoryEstimate(
        weights=frozen,
        mapped=max(mapped, _file_bytes(layers) - step) if device == "cpu" else 0,
        adapter=adapter,
        optimizer=optimizer,
        gradients=gradients,
        activations=activations,
        loss=loss,
        overhead=overhead,
    )


def _held_of_block(block: Block, recipe: Recipe, device: Device) -> int:
    """Bytes that a block holds until the backward pass reaches it."""
    if recipe.gradient_checkpointing != "on":
        return block.kept
    checkpointed = 1 / recipe.checkpoint_every_n_layers
    offloaded = recipe.activation_offloading and device == "cuda"
    inputs = 0 if offloaded else checkpointed * block.inputs
    return round(inputs + (1 - checkpointed) * block.kept)


def estimate_within(
    layers: ModelLayers,
    recipe: Recipe,
    batch_size: int,
    length: int,
    num_bytes: int,
    device: Device = "cpu",
    dtype: str = "float32",
    patches: float = 0,
) -> tuple[MemoryEstimate, bool]:
    """Estimate the peak memory, and decide about gradient checkpointing.

    Args:
        layers: as for `estimate`, like all arguments without a line here.
        recipe: if gradient checkpointing is `automatic`, it is on only if memory is short.
        num_bytes: the memory that is available.

    Returns:
        The estimate, and whether gradient checkpointing is on.
    """
    without = estimate(layers, recipe, batch_size, length, device, dtype, patches)
    fits = without.total <= num_bytes or not layers.can_checkpoint
    if recipe.gradient_checkpointing != "automatic" or fits:
        return without, recipe.gradient_checkpointing == "on"
    checkpointed = recipe.model_copy(update={"gradient_checkpointing": "on"})
    return estimate(layers, checkpointed, batch_size, length, device, dtype, patches), True


def shared_by(need: MemoryEstimate, layers: ModelLayers, num_gpus: int) -> MemoryEstimate:
    """What each GPU needs if `num_gpus` share the weights of the blocks (FSDP).

    Each holds its part of every block, and two whole blocks: the one that it computes, and the next
    one, which it receives meanwhile. Embeddings and output layer stay whole, in 16 bits.
    """
    blocks = blocks_of(layers.model)
    outside = 2 * (num_parameters(layers.model) - sum(map(num_parameters, blocks)))
    in_blocks = max(0, need.weights - outside)
    weights = need.weights - in_blocks + in_blocks // num_gpus + 2 * in_blocks // len(blocks)
    return dataclasses.replace(need, weights=min(need.weights, weights))


def surely_fits(layers: ModelLayers, batch_size: int, length: int, num_bytes: int) -> bool:
    """Return True if a training needs far less than `num_bytes`, by a rule with a margin of four.

    Besides what `kept_by_rule` says, add 16 bytes for each token and word of the vocabulary, and 8
    for each parameter.
    """
    (blocks,) = kept_by_rule(layers, batch_size, length, "float32").blocks
    logits = 16 * batch_size * length * config_number(layers.model.config, "vocab_size")
    need = 8 * layers.model.num_parameters() + logits + blocks.count * blocks.kept
    return 4 * need < num_bytes


def bits_a_parameter(recipe: Recipe) -> float:
    """Bits that a parameter of a quantized layer takes, with its share of the scales.

    4 bits in blocks of 64 with a float32 scale take 4.5 bits. With scales of 8 bits in blocks of
    256 they take 4.127 (QLoRA, arXiv 2305.14314, section 3).
    """
    if recipe.quantization in ("nf4", "fp4"):
        return 4 + 8 / 64 + 32 / (64 * 256) if recipe.double_quantization else 4.5
    return 8.0 if recipe.quantization == "int8" else 32.0


def with_adapter(layers: ModelLayers, recipe: Recipe, device: Device, dtype: str) -> Any:
    """A copy of the model on the meta device with the recipe's adapter. It is not quantized."""
    from peft import get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    model: Any = copy.deepcopy(layers.model)
    model = model.to(_loaded_dtype(device, dtype))
    text_config(model.config).use_cache = False  # a block that runs again would extend the cache
    if device == "cuda" and recipe.quantization != "none":
        hold_16_bits_again(model, model.dtype)  # as after prepare_model_for_kbit_training
    for parameter in model.parameters():
        parameter.requires_grad = False
    model = get_peft_model(model, adapter_config(recipe, layers, layers.task))
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and recipe.method != "dora":
            set_input_casts(module, dtype == "float32")  # as `training.precision` does
    return model


def _loaded_dtype(device: Device, dtype: str) -> "torch.dtype":
    """A CPU loads float32. If a measurement makes it compute in 16 bits, it needs less."""
    import torch

    return torch.float32 if device == "cpu" else getattr(torch, dtype)


def _frozen_bytes(
    layers: ModelLayers, recipe: Recipe, device: Device, dtype: str
) -> tuple[int, int]:
    """(bytes of the base's parameters and buffers, bytes of the mapped file besides them)."""
    import torch

    model, quantized = with_quantization(layers, recipe, dtype)
    loaded = _loaded_dtype(device, dtype).itemsize
    in_bits = {id(module.weight) for module in quantized.values()}
    exact = loaded * sum(
        tensor.numel()
        for tensor in [*model.parameters(), *model.buffers()]
        if id(tensor) not in in_bits
    )
    num_quantized = sum(module.out_features * module.in_features for module in quantized.values())
    packed = bits_a_parameter(recipe) / 8 * num_quantized
    if recipe.quantization == "int8":  # scales of rows
        packed += sum(4 * module.out_features for module in quantized.values())
    # all of a float32 file is used in place; other dtypes are copied, and the file is closed
    in_place = device == "cpu" and layers.model.config.dtype in (None, torch.float32)
    stored = 4 * layers.model.num_parameters() if in_place else 0
    mapped = max(0, stored - exact) if quantized else 0
    return exact + round(packed), mapped


def _dequantized(layers: ModelLayers, recipe: Recipe) -> int:
    """What layers in 4 or 8 bits take on a CPU, which computes with float32 copies of them: the
    largest copy, and the holes where the others were."""
    _, quantized = with_quantization(layers, recipe, "float32")
    copies = [4 * layer.out_features * layer.in_features for layer in quantized.values()]
    holes = HUGE_HOLES if recipe.gradient_checkpointing == "on" else DEQUANTIZED_HOLES
    return round(holes * sum(copies)) + max(copies, default=0)


def _file_bytes(layers: ModelLayers) -> int:
    """Bytes of a weights' file in 16 bits. While it is read, all of its pages may be in memory."""
    import torch

    stored: Any = layers.model.config.dtype or torch.float32
    return layers.model.num_parameters() * stored.itemsize if stored.itemsize < 4 else 0


def with_quantization(
    layers: ModelLayers, recipe: Recipe, dtype: str
) -> tuple[Any, dict[str, Any]]:
    """A copy of the model on the meta device with the recipe's quantization.

    Its quantized layers come with it, by name.
    """
    import bitsandbytes
    from transformers.quantizers import AutoHfQuantizer

    model: Any = copy.deepcopy(layers.model)
    if recipe.quantization == "none":
        return model, {}
    config = bitsandbytes_config(recipe, dtype, layers)
    AutoHfQuantizer.from_config(config, pre_quantized=False).preprocess_model(
        model, device_map=None
    )
    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    return model, {
        name: module for name, module in model.named_modules() if isinstance(module, kinds)
    }


def _loss_bytes(layers: ModelLayers, num_labels: int, device: Device, dtype: str) -> int:
    """Bytes that scoring this many labels takes, as `models.label_scorer` does it.

    A chunk of logits exists in the compute dtype and three times in float32: converted, as
    probabilities, and as their gradient. The hidden states of labels are copied, and so is their
    gradient.
    """
    import torch

    if layers.task in CLASSIFYING:
        return 0
    config, size = layers.model.config, getattr(torch, dtype).itemsize
    logits = logits_at_once(num_labels, config_number(config, "vocab_size"), device)
    return logits * (12 + size) + 2 * num_labels * config_number(config, "hidden_size") * size
