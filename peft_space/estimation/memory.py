"""Estimates how much memory a training will need, before any weights are loaded.

Runs one step of the adapted model on tensors with shapes but no contents, and counts every
allocation and release. That works for any architecture and takes about a second.
"""

import contextlib
import copy
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from peft_space.compat.peft import set_input_casts
from peft_space.compat.torch import each_result, fake_tensors, materialize_fake, storage_address
from peft_space.hardware import Device
from peft_space.models.architecture import CLASSIFYING, ModelLayers, text_config
from peft_space.models.label_scorer import last_hidden_states, logits_at_once
from peft_space.models.loading import adapter_config, hold_16_bits_again
from peft_space.models.quantization import bitsandbytes_config
from peft_space.recipe import Recipe, Task

if TYPE_CHECKING:
    import torch

LIBRARIES = 102_000_000
"""Bytes that libraries add to a process in its first steps on a CPU: code, tables, buffers.

Fitted in `benchmarks/memory.py`."""
FRAGMENTATION_BETWEEN = 0.277
"""Bytes of holes in the heap, as a share of the most that it holds at once. A hole remains where a
small tensor is in the middle of released memory. Fitted in `benchmarks/memory.py`; it differs from
run to run."""
FRAGMENTATION_IN_STEP = 0.079
"""Such bytes, as a share of what a step allocates again. Fitted in `benchmarks/memory.py`."""
_MAX_HEAP_TENSOR = 32 * 2**20
"""Bytes. glibc gives larger tensors their own pages, and returns these at once
(DEFAULT_MMAP_THRESHOLD_MAX in its malloc.c)."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the moment when a training needs most."""

    weights: int
    """The base, quantized as the recipe says."""
    mapped: int
    """On a CPU, pages of the weights' file that quantized layers were read from. The file stays
    mapped while one layer is used from it."""
    adapter: int
    optimizer: int
    """AdamW's two float32 states: 8 bytes a trainable parameter."""
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


@dataclass(frozen=True)
class RecipeChange:
    """One change that makes a training fit, and the memory that it needs then."""

    what: str
    recipe: Recipe
    batch_size: int
    length: int
    estimate: MemoryEstimate


def estimate(
    layers: ModelLayers,
    recipe: Recipe,
    batch_size: int,
    length: int,
    device: Device = "cpu",
    dtype: str = "float32",
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

    Returns:
        On a CPU, the growth of the process's resident memory since before loading; on a GPU, the
        peak memory of tensors.
    """
    model, quantized = _adapted(layers, recipe, device, dtype)
    stored_bytes = _stored_bytes(layers.model) if device == "cpu" else 0
    weights, mapped = _weights(model, quantized, recipe, stored_bytes)
    if quantized and recipe.method == "dora":
        unquantized = recipe.model_copy(update={"quantization": "none"})
        model, _ = _adapted(layers, unquantized, device, dtype)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    checkpointing = recipe.gradient_checkpointing == "on"
    loss = _loss(layers, batch_size * length, device, dtype)
    log = _log_of_a_step(model, layers.task, batch_size, length, device, dtype, checkpointing, loss)
    gradients, activations, loss = log.at_peak()
    return MemoryEstimate(
        weights=weights,
        mapped=mapped,
        adapter=sum(parameter.numel() * parameter.element_size() for parameter in trainable),
        optimizer=8 * sum(parameter.numel() for parameter in trainable),
        gradients=gradients,
        activations=activations,
        loss=loss,
        overhead=log.holes() + LIBRARIES if device == "cpu" else 0,
    )


def estimate_within(
    layers: ModelLayers,
    recipe: Recipe,
    batch_size: int,
    length: int,
    num_bytes: int,
    device: Device = "cpu",
    dtype: str = "float32",
) -> tuple[MemoryEstimate, bool]:
    """Estimate the peak memory, and decide about gradient checkpointing.

    Args:
        layers: as for `estimate`, like all arguments without a line here.
        recipe: if gradient checkpointing is `automatic`, it is on only if memory is short.
        num_bytes: the memory that is available.

    Returns:
        The estimate, and whether gradient checkpointing is on.
    """
    without = estimate(layers, recipe, batch_size, length, device, dtype)
    if recipe.gradient_checkpointing != "automatic" or without.total <= num_bytes:
        return without, recipe.gradient_checkpointing == "on"
    checkpointed = recipe.model_copy(update={"gradient_checkpointing": "on"})
    return estimate(layers, checkpointed, batch_size, length, device, dtype), True


def surely_fits(layers: ModelLayers, batch_size: int, length: int, num_bytes: int) -> bool:
    """Return True if a training needs far less than `num_bytes`, by a rule with a margin of four.

    Without gradient checkpointing, a step in 16 bits takes 34 bytes for each token, layer and unit
    of width. It takes 5 more for each pair of tokens and attention head (arXiv 2205.05198, section
    4). A step in 32 bits takes twice that. Add 16 bytes for each token and word of the vocabulary,
    and 8 for each parameter.
    """
    config = text_config(layers.model.config)
    per_block = 68 * config.hidden_size + 10 * config.num_attention_heads * length
    per_token = config.num_hidden_layers * per_block + 16 * config.vocab_size
    return 4 * (8 * layers.model.num_parameters() + batch_size * length * per_token) < num_bytes


def bits_a_parameter(recipe: Recipe) -> float:
    """Bits that a parameter of a quantized layer takes, with its share of the scales.

    4 bits in blocks of 64 with a float32 scale take 4.5 bits. With scales of 8 bits in blocks of
    256 they take 4.127 (QLoRA, arXiv 2305.14314, section 3).
    """
    if recipe.quantization in ("nf4", "fp4"):
        return 4 + 8 / 64 + 32 / (64 * 256) if recipe.double_quantization else 4.5
    return 8.0 if recipe.quantization == "int8" else 32.0


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
    for candidates in _candidates(recipe, batch_size, length):
        for candidate in candidates:
            need = estimate(layers, *candidate[1:], device, dtype)
            if need.total <= num_bytes:
                changes.append(RecipeChange(*candidate, need))
                break
    return changes


_Candidate = tuple[str, Recipe, int, int]


def _candidates(recipe: Recipe, batch_size: int, length: int) -> Iterator[list[_Candidate]]:
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
    if recipe.gradient_checkpointing != "on":
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


def _adapted(
    layers: ModelLayers, recipe: Recipe, device: Device, dtype: str
) -> tuple[Any, set[Any]]:
    """A copy of the model on the meta device, quantized and adapted, and its quantized layers."""
    import bitsandbytes
    import torch
    from peft import get_peft_model, prepare_model_for_kbit_training
    from peft.tuners.tuners_utils import BaseTunerLayer

    # A CPU loads float32. If a measurement makes it compute in 16 bits, it needs less.
    loaded_dtype = torch.float32 if device == "cpu" else getattr(torch, dtype)
    model: Any = copy.deepcopy(layers.model)
    model = model.to(loaded_dtype)
    config = adapter_config(recipe, layers, layers.task)
    if recipe.quantization != "none":
        model = _quantized(model, layers, recipe, dtype)
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        if device == "cuda":
            hold_16_bits_again(model, loaded_dtype)
        # DoRA starts from norms of weights, which quantized layers without contents do not have
        config.use_dora = False
    model = get_peft_model(model, config)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and recipe.method != "dora":
            set_input_casts(module, dtype == "float32")  # as `training.precision` does
    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    return model, {module for module in model.modules() if isinstance(module, kinds)}


def _quantized(model: Any, layers: ModelLayers, recipe: Recipe, dtype: str) -> Any:
    """`model` with bitsandbytes' layers, whose forward pass only allocates what theirs does."""
    import bitsandbytes
    from transformers.quantizers import AutoHfQuantizer

    in_8_bits = recipe.quantization == "int8"
    config = bitsandbytes_config(recipe, dtype, layers)
    quantizer = AutoHfQuantizer.from_config(config, pre_quantized=False)
    quantizer.preprocess_model(model, device_map=None)
    model.is_loaded_in_8bit, model.is_loaded_in_4bit = in_8_bits, not in_8_bits
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit | bitsandbytes.nn.Linear8bitLt):
            module.forward = _allocating_forward(module, in_8_bits)  # type: ignore[method-assign]
    return model


def _allocating_forward(layer: Any, keeps_input: bool) -> Any:
    """A forward function that allocates what a quantized layer of these sizes does.

    Each pass, forward and backward, unpacks the whole weight. bitsandbytes 0.50 does so on a CPU
    (`MatMul4Bit`, `MatMul8bitFp` in autograd/_functions.py). In 8 bits it also keeps its input.
    """
    import torch

    shape = (layer.out_features, layer.in_features)

    class Multiply(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, inputs: Any, bias: Any) -> Any:
            ctx.inputs = inputs if keeps_input else None
            return torch.nn.functional.linear(inputs, inputs.new_empty(shape), bias)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            return torch.matmul(gradient, gradient.new_empty(shape)), None

    def forward(inputs: Any) -> Any:
        compute_dtype = getattr(layer, "compute_dtype", None) or inputs.dtype
        bias = None if layer.bias is None else layer.bias.to(compute_dtype)
        return Multiply.apply(inputs.to(compute_dtype), bias).to(inputs.dtype)

    return forward


def _stored_bytes(model_on_meta: Any) -> int:
    """Bytes of the weights' file that are used in place.

    These are all if it holds float32. Other dtypes are copied, and the file is closed.
    """
    import torch

    stored_dtype = getattr(model_on_meta.config, "dtype", None) or torch.float32
    if stored_dtype != torch.float32:
        return 0
    return 4 * sum(parameter.numel() for parameter in model_on_meta.parameters())


def _weights(model: Any, quantized: set[Any], recipe: Recipe, stored_bytes: int) -> tuple[int, int]:
    """(bytes of frozen parameters and buffers, bytes of the mapped file besides them)."""
    packed = {id(module.weight): bits_a_parameter(recipe) / 8 for module in quantized}
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    exact = sum(
        tensor.numel() * tensor.element_size()
        for tensor in [*frozen, *model.buffers()]
        if id(tensor) not in packed
    )
    in_blocks = sum(
        packed[id(parameter)] * parameter.numel() for parameter in frozen if id(parameter) in packed
    )
    row_scales = 0
    if recipe.quantization == "int8":
        row_scales = sum(4 * module.out_features for module in quantized)
    mapped = max(0, stored_bytes - exact) if quantized else 0
    return exact + round(in_blocks) + row_scales, mapped


def _loss(layers: ModelLayers, num_labels: int, device: Device, dtype: str) -> int:
    """Bytes that scoring this many labels takes, as `models.label_scorer` does it.

    A chunk of logits exists in the compute dtype and three times in float32: converted, as
    probabilities, and as their gradient. The hidden states of labels are copied, and so is their
    gradient.
    """
    import torch

    if layers.task in CLASSIFYING:
        return 0
    config, size = text_config(layers.model.config), getattr(torch, dtype).itemsize
    logits = logits_at_once(num_labels, config.vocab_size, device)
    return logits * (12 + size) + 2 * num_labels * config.hidden_size * size


def _log_of_a_step(
    model: Any,
    task: Task,
    batch_size: int,
    length: int,
    device: Device,
    dtype: str,
    checkpointing: bool,
    loss: int,
) -> "_AllocationLog":
    """The allocations and releases of a step. Its loss takes `loss` bytes."""
    import torch

    if not torch.cuda.is_available():
        if device == "cuda":
            _drop_out_as_on_a_gpu(model)
        # fake CUDA tensors require a GPU; attention on a CPU keeps equally little
        device = "cpu"
    autocast: Any = contextlib.nullcontext()
    if dtype != "float32":
        autocast = torch.autocast(device, getattr(torch, dtype))
    with fake_tensors():
        materialize_fake(model, device)  # the device decides which attention kernel runs
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable()
        batch = _fake_batch(task, batch_size, length, device)
        log = _AllocationLog([*model.parameters(), *model.buffers(), *batch.values()])
        with each_result(log.record):
            with autocast:
                result = _last_result(model, task, batch)
            log.add_briefly(loss)
            result.float().sum().backward()
        log.mark_gradients(
            [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        )
    return log


def _drop_out_as_on_a_gpu(model: Any) -> None:
    """Make dropout keep a byte for each element, as on a GPU. On a CPU it keeps random floats."""
    import torch

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        return inputs * inputs.new_empty(inputs.shape, dtype=torch.bool)

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and module.p:
            module.__dict__["forward"] = forward


def _last_result(model: Any, task: Task, batch: "dict[str, torch.Tensor]") -> "torch.Tensor":
    """What the loss is computed from: logits of classes, or hidden states."""
    if task in CLASSIFYING:
        return model(**batch).loss
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if task == "seq2seq-lm":
        inputs["decoder_input_ids"] = batch["labels"]
    return last_hidden_states(model.get_base_model(), inputs)


def _fake_batch(
    task: Task, batch_size: int, length: int, device: Device
) -> "dict[str, torch.Tensor]":
    """A padded batch like those of the collators."""
    import torch

    tokens = torch.zeros(batch_size, length, dtype=torch.long, device=device)
    labels = tokens[:, 0].clone() if task == "sequence-classification" else tokens.clone()
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


class _AllocationLog:
    """Allocations and releases of tensor storages, in order.

    Args:
        existing: tensors that do not count.
    """

    def __init__(self, existing: "list[torch.Tensor]"):
        self.events: list[tuple[int, int, str]] = []
        """(number of the storage, bytes, kind). 0 bytes: the storage was released."""
        self._numbers = {storage_address(tensor.untyped_storage()): 0 for tensor in existing}
        self._count = 0

    def record(self, result: Any) -> None:
        """Log the storage of an operation's result, and later its release."""
        if not hasattr(result, "untyped_storage"):
            return
        storage = result.untyped_storage()
        address = storage_address(storage)
        if address in self._numbers or not storage.nbytes():  # a view, or changed in place
            return
        self._count += 1
        self._numbers[address] = self._count
        self.events.append((self._count, storage.nbytes(), "activations"))
        weakref.finalize(storage, self._release, address).atexit = False

    def _release(self, address: int) -> None:
        self.events.append((self._numbers.pop(address), 0, ""))

    def add_briefly(self, num_bytes: int) -> None:
        """Log tensors of the loss that are released before the backward pass through the model."""
        self._count += 1
        self.events += [(self._count, num_bytes, "loss"), (self._count, 0, "")]

    def mark_gradients(self, tensors: "list[torch.Tensor]") -> None:
        """Change the kind of these tensors' storages to gradients."""
        numbers = {self._numbers[storage_address(tensor.untyped_storage())] for tensor in tensors}
        self.events = [
            (number, size, "gradients" if size and number in numbers else kind)
            for number, size, kind in self.events
        ]

    def at_peak(self) -> tuple[int, int, int]:
        """(gradients, activations, loss) in bytes at the peak of their sum."""
        living: dict[int, tuple[int, str]] = {}
        current = dict.fromkeys(("gradients", "activations", "loss"), 0)
        peak = dict(current)
        for number, size, kind in self.events:
            if size:
                living[number] = (size, kind)
                current[kind] += size
            elif number in living:
                size, kind = living.pop(number)
                current[kind] -= size
            if sum(current.values()) > sum(peak.values()):
                peak = dict(current)
        return peak["gradients"], peak["activations"], peak["loss"]

    def holes(self) -> int:
        """Bytes of the heap that its tensors do not use."""
        living: dict[int, int] = {}
        allocated = current = peak = 0
        for number, size, _ in self.events:
            if size and size < _MAX_HEAP_TENSOR:
                living[number] = size
                allocated, current = allocated + size, current + size
            elif not size:
                current -= living.pop(number, 0)
            peak = max(peak, current)
        return round(FRAGMENTATION_BETWEEN * peak + FRAGMENTATION_IN_STEP * (allocated - peak))
