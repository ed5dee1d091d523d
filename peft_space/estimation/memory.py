"""How much memory a training will need, before any weights are loaded.

A step of the adapted model is computed on tensors that have shapes and no contents, and every allocation and release in it is counted:
that holds for any architecture and takes about a second. Knows nothing about what is free on this machine.
"""

import contextlib
import copy
import weakref
from dataclasses import dataclass, fields
from typing import Any

from peft_space.hardware import Device
from peft_space.models.architecture import ModelLayers
from peft_space.models.loading import adapter_config
from peft_space.models.quantization import bitsandbytes_config
from peft_space.recipe import Recipe, Task

LIBRARIES = 102_000_000
"""Bytes that libraries bring into a process at its first steps on a CPU: code, tables, buffers. Fitted in `benchmarks/memory.py`."""
FRAGMENTATION_BETWEEN = 0.277
FRAGMENTATION_IN_STEP = 0.079
"""Shares of what the heap holds at most, and of what is placed in it anew in a step, that it takes besides for holes: where something
small lies in what was released, no tensor of the same size fits in any more. Fitted in `benchmarks/memory.py`; they differ from run to run."""
_LARGEST_IN_HEAP = 32 * 2**20
"""Bytes; glibc gives larger tensors pages of their own, which it returns at once (DEFAULT_MMAP_THRESHOLD_MAX in its malloc.c)."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the moment of a training at which it needs most; `total` is their sum."""

    weights: int
    """The base, quantized as the recipe says."""
    mapped: int
    """On a CPU, pages of the weights' file that quantized layers were read from: the file stays mapped while one layer is used from it."""
    adapter: int
    optimizer: int
    """AdamW's two float32 states: 8 bytes a trainable parameter."""
    gradients: int
    """Those of the adapter that exist at that moment. Usually few: the peak is where the backward pass begins."""
    activations: int
    """What the forward pass keeps for the backward pass, and what is being computed."""
    loss: int
    """Logits, their log-probabilities and their gradient: whatever has a place for each word of the vocabulary."""
    overhead: int
    """On a CPU, what libraries take at their first step and holes between tensors."""

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class RecipeChange:
    """One change that makes a training fit, and what it needs then."""

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
    """What training `recipe` on batches of `batch_size` rows, the longest of `length` tokens, takes at most.

    Args:
        layers: of the base model for its task; its model on the meta device is left as it is.
        dtype: "float32", "bfloat16" or "float16": what is computed in.

    Gradient checkpointing counts where the recipe says `on`. On a CPU this is the growth of the process's resident memory over that before loading; on a GPU what tensors take at most there.
    """
    model, quantized = _adapted(layers, recipe, device, dtype)
    weights, mapped = _weights(
        model, quantized, recipe, _stored_bytes(layers.model) if device == "cpu" else 0
    )
    if quantized and recipe.method == "dora":
        model, _ = _adapted(
            layers, recipe.model_copy(update={"quantization": "none"}), device, dtype
        )
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adapter = sum(parameter.numel() * parameter.element_size() for parameter in trainable)
    log = _log_of_a_step(
        model, layers.task, batch_size, length, device, dtype, recipe.gradient_checkpointing == "on"
    )
    gradients, activations, loss = log.at_peak()
    return MemoryEstimate(
        weights=weights,
        mapped=mapped,
        adapter=adapter,
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
    """The same, and whether gradient checkpointing is on: as the recipe says, or where it is `automatic` and `num_bytes` are too few without."""
    need = estimate(layers, recipe, batch_size, length, device, dtype)
    if recipe.gradient_checkpointing != "automatic" or need.total <= num_bytes:
        return need, recipe.gradient_checkpointing == "on"
    return estimate(
        layers,
        recipe.model_copy(update={"gradient_checkpointing": "on"}),
        batch_size,
        length,
        device,
        dtype,
    ), True


def surely_fits(layers: ModelLayers, batch_size: int, length: int, num_bytes: int) -> bool:
    """Whether training without gradient checkpointing needs far less than `num_bytes`: a rule of thumb, four times over, in no time.

    34 bytes a token, layer and unit of width, and 5 a pair of tokens and attention head, in 16 bits (arXiv 2205.05198, section 4), doubled for
    32; 16 bytes a token and word of the vocabulary; 8 a parameter.
    """
    config = layers.model.config.get_text_config()
    width, blocks = config.hidden_size, config.num_hidden_layers
    a_token = (
        blocks * (68 * width + 10 * config.num_attention_heads * length) + 16 * config.vocab_size
    )
    return 4 * (8 * layers.model.num_parameters() + batch_size * length * a_token) < num_bytes


def bits_a_parameter(recipe: Recipe) -> float:
    """Bits that a parameter of a quantized layer takes, with its share of the scales.

    4 bits in blocks of 64 with a float32 scale: 4.5; with scales of 8 bits in blocks of 256: 4.127 (QLoRA, arXiv 2305.14314, section 3).
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
    """The single changes with which a training fits into `num_bytes`, best first: those come first that change the adapter least.

    A smaller batch with as much more accumulation trains the same adapter, and so does checkpointing, which takes more time; quantization
    costs a little exactness; a smaller rank and shorter rows leave something unlearnt. None may be enough: then the list is empty.
    """
    found = []
    for ways in _ways(recipe, batch_size, length):
        for change in ways:  # from the mildest on
            need = estimate(layers, *change[1:], device, dtype)
            if need.total <= num_bytes:
                found.append(RecipeChange(*change, need))
                break
    return found


def _ways(recipe: Recipe, batch_size: int, length: int) -> list[list[tuple[str, Recipe, int, int]]]:
    """For each kind of change its steps, from the mildest on."""

    def with_(**changes: Any) -> Recipe:
        return recipe.model_copy(update=changes)

    batches = [batch_size // 2**halving for halving in range(1, batch_size.bit_length())]
    ranks = [
        recipe.lora_rank // 2**halving
        for halving in range(1, recipe.lora_rank.bit_length())
        if recipe.lora_rank // 2**halving >= 4
    ]
    lengths = [
        length // 2**halving
        for halving in range(1, length.bit_length())
        if length // 2**halving >= 64
    ]
    accumulated = [
        (size, recipe.gradient_accumulation_steps * -(-batch_size // size)) for size in batches
    ]
    checkpointed = (
        [] if recipe.gradient_checkpointing == "on" else [with_(gradient_checkpointing="on")]
    )
    quantized = [] if recipe.quantization in ("nf4", "fp4") else [with_(quantization="nf4")]
    return [
        [
            (
                f"batches of {size}, {steps} accumulated",
                with_(batch_size=size, gradient_accumulation_steps=steps),
                size,
                length,
            )
            for size, steps in accumulated
        ],
        [("gradient checkpointing", changed, batch_size, length) for changed in checkpointed],
        [("the base in 4 bits (nf4)", changed, batch_size, length) for changed in quantized],
        [(f"LoRA rank {rank}", with_(lora_rank=rank), batch_size, length) for rank in ranks],
        [
            (f"rows of {tokens} tokens at most", with_(max_length=tokens), batch_size, tokens)
            for tokens in lengths
        ],
    ]


def _adapted(
    layers: ModelLayers, recipe: Recipe, device: Device, dtype: str
) -> tuple[Any, set[Any]]:
    """A copy of the model, quantized and with an adapter as for training, still on the meta device; and its quantized layers."""
    import bitsandbytes
    import torch
    from peft import get_peft_model, prepare_model_for_kbit_training

    # on a CPU weights are loaded in float32; where it computes in 16 bits, which only a measurement tells, less is taken than this says
    model = copy.deepcopy(layers.model).to(
        torch.float32 if device == "cpu" else getattr(torch, dtype)
    )
    config = adapter_config(recipe, layers, layers.task)
    if recipe.quantization != "none":
        model = prepare_model_for_kbit_training(
            _quantized(model, layers, recipe, dtype), use_gradient_checkpointing=False
        )
        config.use_dora = False  # it starts from norms of weights, which quantized layers without contents do not have
    model = get_peft_model(model, config)
    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    return model, {module for module in model.modules() if isinstance(module, kinds)}


def _quantized(model: Any, layers: ModelLayers, recipe: Recipe, dtype: str) -> Any:
    """`model` with bitsandbytes' layers where transformers puts them, which only allocate what theirs do."""
    import bitsandbytes
    from transformers.quantizers import AutoHfQuantizer

    in_8_bits = recipe.quantization == "int8"
    config = bitsandbytes_config(recipe, dtype, layers)
    AutoHfQuantizer.from_config(config, pre_quantized=False).preprocess_model(
        model, device_map=None
    )
    model.is_loaded_in_8bit, model.is_loaded_in_4bit = in_8_bits, not in_8_bits
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit | bitsandbytes.nn.Linear8bitLt):
            module.forward = _forward_of(module, in_8_bits)
    return model


def _forward_of(layer: Any, keeps_input: bool) -> Any:
    """What a quantized layer of these sizes allocates: its weight in full while it multiplies with it, forward and again backward.

    So bitsandbytes 0.50 does it on a CPU (`MatMul4Bit`, `MatMul8bitFp` in autograd/_functions.py); in 8 bits it keeps its input, too.
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
    """Bytes of the weights' file that are used in place: all where it holds float32; other dtypes are copied, and the file is closed."""
    import torch

    stored = getattr(model_on_meta.config, "dtype", None) or torch.float32
    return (
        4 * sum(parameter.numel() for parameter in model_on_meta.parameters())
        if stored == torch.float32
        else 0
    )


def _weights(model: Any, quantized: set[Any], recipe: Recipe, stored_bytes: int) -> tuple[int, int]:
    """(bytes of the frozen parameters and buffers, bytes of the mapped file that are none of them)."""
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
    scales_of_rows = (
        sum(4 * module.out_features for module in quantized) if recipe.quantization == "int8" else 0
    )
    mapped = max(0, stored_bytes - exact) if quantized else 0
    return exact + round(in_blocks) + scales_of_rows, mapped


def _log_of_a_step(
    model: Any,
    task: Task,
    batch_size: int,
    length: int,
    device: Device,
    dtype: str,
    checkpointing: bool,
) -> "_AllocationLog":
    """Every allocation and release of one forward and backward pass, computed on tensors without contents."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    if not torch.cuda.is_available():
        device = "cpu"  # no GPU can be pretended without one; the CPU's attention keeps as little as theirs
    vocabulary = model.config.get_text_config().vocab_size
    computing = (
        contextlib.nullcontext()
        if dtype == "float32"
        else torch.autocast(device, getattr(torch, dtype))
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        _give_shapes_only(model, device)
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable()
        batch = _batch(task, batch_size, length, device)
        log = _AllocationLog(vocabulary, [*model.parameters(), *model.buffers(), *batch.values()])
        with log.recording():
            with computing:
                output = model(**batch)
            if dtype != "float32":  # accelerate gives the caller float32
                output["logits"] = output["logits"].float()
            loss = output.loss
            del output  # as Trainer.compute_loss does
            loss.backward()
        log.gradients(
            [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        )
    return log


def _give_shapes_only(model: Any, device: Device) -> None:
    """Move parameters and buffers from the meta device to a pretended `device`, which decides what kernels are used: attention's, above all."""
    import torch

    moved: dict[int, Any] = {}  # tied weights stay tied
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in moved:
                    new = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                    moved[id(tensor)] = (
                        torch.nn.Parameter(new, tensor.requires_grad)
                        if tensors is module._parameters
                        else new
                    )
                tensors[name] = moved[id(tensor)]


def _batch(task: Task, batch_size: int, length: int, device: Device) -> dict[str, Any]:
    """A padded batch, as the collator makes them."""
    import torch

    tokens = torch.zeros(batch_size, length, dtype=torch.long, device=device)
    labels = tokens[:, 0].clone() if task == "sequence-classification" else tokens.clone()
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


class _AllocationLog:
    """Allocations and releases in their order."""

    def __init__(self, vocabulary: int, there_before: list[Any]):
        self.vocabulary = vocabulary
        self.events: list[tuple[int, int, str]] = []
        """(number, bytes, kind); 0 bytes: that storage was released."""
        self._number = {tensor.untyped_storage()._cdata: 0 for tensor in there_before}
        self._count = 0

    def recording(self) -> Any:
        """Within this context every operation's results are looked at."""
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils._pytree import tree_leaves

        log = self

        class Recording(TorchDispatchMode):
            def __torch_dispatch__(
                self, function: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                results = function(*args, **(kwargs or {}))
                for result in tree_leaves(results):
                    log._see(result)
                return results

        return Recording()

    def _see(self, result: Any) -> None:
        if not hasattr(result, "untyped_storage"):
            return
        storage = result.untyped_storage()
        if storage._cdata in self._number or not storage.nbytes():  # a view, or changed in place
            return
        self._count += 1
        self._number[storage._cdata] = self._count
        kind = "loss" if result.dim() and result.shape[-1] == self.vocabulary else "activations"
        self.events.append((self._count, storage.nbytes(), kind))
        weakref.finalize(storage, self._release, storage._cdata).atexit = False

    def _release(self, address: int) -> None:
        self.events.append((self._number.pop(address), 0, ""))

    def gradients(self, tensors: list[Any]) -> None:
        """Say which of the storages are gradients of parameters."""
        numbers = {self._number[tensor.untyped_storage()._cdata] for tensor in tensors}
        self.events = [
            (number, size, "gradients" if size and number in numbers else kind)
            for number, size, kind in self.events
        ]

    def at_peak(self) -> tuple[int, int, int]:
        """(gradients, activations, loss) in bytes when most is held together."""
        living: dict[int, tuple[int, str]] = {}
        held = dict.fromkeys(("gradients", "activations", "loss"), 0)
        most = dict(held)
        for number, size, kind in self.events:
            if size:
                living[number] = (size, kind)
                held[kind] += size
            else:
                size, kind = living.pop(number)
                held[kind] -= size
            if sum(held.values()) > sum(most.values()):
                most = dict(held)
        return most["gradients"], most["activations"], most["loss"]

    def holes(self) -> int:
        """Bytes that the heap takes besides its tensors."""
        living: dict[int, int] = {}
        asked = now = most = 0
        for number, size, _ in self.events:
            if size and size < _LARGEST_IN_HEAP:
                living[number] = size
                asked, now = asked + size, now + size
            elif not size:
                now -= living.pop(number, 0)
            most = max(most, now)
        return round(FRAGMENTATION_BETWEEN * most + FRAGMENTATION_IN_STEP * (asked - most))
