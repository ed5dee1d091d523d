"""Estimates the memory and the time of a training step, before any weights are loaded.

Weights, adapter and optimizer follow from their numbers and sizes. What the forward pass keeps is
asked of PyTorch itself, on tensors with shapes but no contents. So it holds for most architectures
and takes about a second; for the others a rule counts. For the time, one block of each kind and the
output layer are run here with random weights.
"""

import contextlib
import copy
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from peft_space.compat.peft import set_input_casts
from peft_space.compat.torch import (
    each_result,
    fake_tensor_errors,
    fake_tensors,
    materialize_fake,
    storage_address,
)
from peft_space.estimation.vision_tower import tower_bytes
from peft_space.hardware import Device
from peft_space.models.architecture import (
    CLASSIFYING,
    ModelLayers,
    blocks_of,
    num_parameters,
)
from peft_space.models.config_values import config_number, text_config
from peft_space.models.label_scorer import last_hidden_states, logits_at_once
from peft_space.models.loading import adapter_config, hold_16_bits_again
from peft_space.models.quantization import bitsandbytes_config
from peft_space.recipe import Recipe, Task

if TYPE_CHECKING:
    import torch

LIBRARIES = 88_000_000
"""Bytes that libraries add to a process in its first steps on a CPU: code, tables, buffers.

Fitted, with the next two, on 13 trainings: seven small models and three real shapes (2026-11-30,
glibc 2.36). `benchmarks/memory.py` fits them anew."""
HUGE_PAGE = 2 * 2**20
"""Bytes. Larger tensors begin on a page."""
HOLES, HUGE_HOLES = 0.34, 0.08
"""Bytes of the heap that no tensor uses, on a CPU, for each byte that the forward pass allocates
in tensors below and above the size of a huge page. glibc leaves a hole where a small tensor was,
because the next of the same size does not fit in: its alignment takes a few bytes more. With
another allocator a training may need less."""
CHECKPOINTED = 0.75
"""Share of these holes that remain with gradient checkpointing, which releases whole blocks."""


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

    model = _adapted(layers, recipe, device, dtype)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    num_trainable = sum(parameter.numel() for parameter in trainable)
    adapter = sum(parameter.numel() * parameter.element_size() for parameter in trainable)
    frozen, mapped = _frozen_bytes(layers, recipe, device, dtype)
    kept = _kept(layers, model, batch_size, length, device, dtype)
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


def _held_of_block(block: "_Block", recipe: Recipe, device: Device) -> int:
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

    Besides what `_kept_by_rule` says, add 16 bytes for each token and word of the vocabulary, and 8
    for each parameter.
    """
    (blocks,) = _kept_by_rule(layers, batch_size, length, "float32").blocks
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


def _adapted(layers: ModelLayers, recipe: Recipe, device: Device, dtype: str) -> Any:
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

    model, quantized = _quantized(layers, recipe, dtype)
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
    _, quantized = _quantized(layers, recipe, "float32")
    copies = [4 * layer.out_features * layer.in_features for layer in quantized.values()]
    return round(HUGE_HOLES * sum(copies)) + max(copies, default=0)


def _file_bytes(layers: ModelLayers) -> int:
    """Bytes of a weights' file in 16 bits. While it is read, all of its pages may be in memory."""
    import torch

    stored: Any = layers.model.config.dtype or torch.float32
    return layers.model.num_parameters() * stored.itemsize if stored.itemsize < 4 else 0


def _quantized(layers: ModelLayers, recipe: Recipe, dtype: str) -> tuple[Any, dict[str, Any]]:
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


@dataclass
class _Block:
    """Blocks of one kind, of which one was run. Bytes are those of each."""

    module: Any = None
    count: int = 0
    runs: int = 0
    """More than one where a model repeats a block with the same weights, as ALBERT does."""
    kept: int = 0
    """What gradient checkpointing releases and computes again."""
    inputs: int = 0
    """What gradient checkpointing keeps instead."""
    holes: float = 0
    """That its forward pass leaves in the heap of a CPU."""
    arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
    output: Any = None


@dataclass
class _Kept:
    """Bytes that a forward pass keeps for the backward pass, without parameters."""

    blocks: list[_Block]
    outside: int
    holes_outside: float = 0

    @property
    def holes(self) -> float:
        """Bytes of the heap of a CPU that no tensor uses."""
        return self.holes_outside + sum(block.count * block.holes for block in self.blocks)


def _kept(
    layers: ModelLayers, model: Any, batch_size: int, length: int, device: Device, dtype: str
) -> _Kept:
    """What the forward pass of the adapted `model` keeps: counted, or by a rule if it cannot be."""
    import torch

    # PyTorch has no grouped product of fake tensors in float32
    twice = layers.fused_experts > 0 and dtype == "float32"
    if twice:
        model, dtype = model.to(torch.bfloat16), "bfloat16"
    try:
        kept = _count_kept(model, layers.task, batch_size, length, device, dtype)
    except fake_tensor_errors():  # what this model computes depends on the tokens
        return _kept_by_rule(layers, batch_size, length, dtype)
    if twice:
        kept.outside *= 2
        for block in kept.blocks:
            # without `module`, because the weights of its time would be in 16 bits
            block.module, block.kept, block.inputs = None, 2 * block.kept, 2 * block.inputs
            block.holes *= 2
    return kept


def _kept_by_rule(layers: ModelLayers, batch_size: int, length: int, dtype: str) -> _Kept:
    """What a forward pass keeps by a rule for all architectures.

    A block in 16 bits keeps 34 bytes for each token and unit of width, and 5 for each pair of
    tokens and attention head (arXiv 2205.05198, section 4). In 32 bits it keeps twice that.
    """
    import torch

    config, size = layers.model.config, getattr(torch, dtype).itemsize
    tokens, width = batch_size * length, config_number(config, "hidden_size")
    heads = config_number(config, "num_attention_heads")
    kept = size * tokens * (17 * width + 2.5 * heads * length)
    count = config_number(config, "num_hidden_layers") + getattr(config, "decoder_layers", 0)
    # the models of the fit had holes of about 0.3 of what they keep
    block = _Block(
        count=count, runs=1, kept=round(kept), inputs=size * tokens * width, holes=0.3 * kept
    )
    return _Kept([block], 0)


def _count_kept(
    model: Any, task: Task, batch_size: int, length: int, device: Device, dtype: str
) -> _Kept:
    """Run a forward pass on tensors with shapes but no contents, and count what autograd keeps."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        _drop_out_as_on_a_gpu(model)
        device = "cpu"  # fake CUDA tensors need a GPU; attention on a CPU keeps equally little
    autocast: Any = contextlib.nullcontext()
    if dtype != "float32":
        autocast = torch.autocast(device, getattr(torch, dtype))
    with fake_tensors():
        materialize_fake(model, device)  # the device decides which attention kernel runs
        known = {
            storage_address(tensor.untyped_storage()): tensor
            for tensor in [*model.parameters(), *model.buffers()]
        }
        outside = _Block()
        running = [outside]

        def keep(tensor: Any) -> Any:
            storage = tensor.untyped_storage()
            if storage_address(storage) not in known:
                known[storage_address(storage)] = tensor  # no other tensor gets its address
                running[-1].kept += storage.nbytes()
            return tensor

        allocated: dict[int, Any] = {}

        def add_hole(result: Any) -> None:
            if not isinstance(result, torch.Tensor):
                return
            storage = result.untyped_storage()
            address, size = storage_address(storage), storage.nbytes()
            if address not in known and address not in allocated:  # no view, no change in place
                allocated[address] = result
                running[-1].holes += (HOLES if size < HUGE_PAGE else HUGE_HOLES) * size

        batch = _fake_batch(task, batch_size, length, device)
        saved = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with _one_of_each_kind(model, running) as blocks, saved, autocast, each_result(add_hole):
            _run(model.train(), task, batch)
    return _Kept(blocks, outside.kept, outside.holes)


@contextlib.contextmanager
def _one_of_each_kind(model: Any, running: list[_Block]) -> Iterator[list[_Block]]:
    """Let only the first block of each kind compute. The others give what it gave.

    Args:
        model: the model, which cannot be run as before afterwards.
        running: its last element is the block that runs.
    """

    def enter(block: _Block, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        running.append(block)
        states = next(value for value in (*inputs, *named.values()) if hasattr(value, "nbytes"))
        # as that of every later block, which comes from trained layers
        states.requires_grad_()
        block.runs, block.inputs = block.runs + 1, block.inputs + states.nbytes
        block.arguments = inputs, named

    def leave(output: Any) -> None:
        running.pop().output = output

    kinds: dict[Any, _Block] = {}
    hooks: list[Any] = []
    for module in blocks_of(model):
        sizes = [(parameter.shape, parameter.requires_grad) for parameter in module.parameters()]
        kind = (type(module), *sizes)
        if kind in kinds:
            again = kinds[kind]
            module.forward = lambda *args, again=again, **named: again.output
        else:
            block = kinds[kind] = _Block(module)
            hooks += [
                module.register_forward_pre_hook(
                    lambda _, inputs, named, block=block: enter(block, inputs, named),
                    with_kwargs=True,
                ),
                module.register_forward_hook(lambda _, inputs, output: leave(output)),
            ]
        kinds[kind].count += 1
    try:
        yield list(kinds.values())
    finally:
        for hook in hooks:
            hook.remove()


def _drop_out_as_on_a_gpu(model: Any) -> None:
    """Make dropout keep a byte for each element, as on a GPU. On a CPU it keeps random floats."""
    import torch

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        return inputs * inputs.new_empty(inputs.shape, dtype=torch.bool)

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and module.p:
            module.__dict__["forward"] = forward


def _run(model: Any, task: Task, batch: "dict[str, torch.Tensor]") -> "torch.Tensor":
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


# Time


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
    cannot be run alone, the speed of matrix products counts.
    """
    import torch

    parameters = layers.model.num_parameters()
    model = _adapted(layers, recipe, device, dtype)
    per_block = parameters / max(1, config_number(layers.model.config, "num_hidden_layers"))
    fitting = max(16, int(_MAX_MEASURED / per_block))
    rows = max(1, min(batch_size, fitting // length))
    length = min(length, fitting)
    kept = _kept(layers, model, rows, length, device, dtype)
    tokens = rows * length
    label = _label_seconds(layers, tokens, device, dtype)
    if not all(block.module for block in kept.blocks):
        forward = _forward_by_rule(layers, tokens, device, dtype)
        return StepTime(forward, 2 * forward, label)
    quantized = {} if recipe.method == "dora" else _quantized(layers, recipe, dtype)[1]
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
