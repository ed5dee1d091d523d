"""Counts what a forward pass keeps for the backward pass, on tensors with shapes but no contents.

PyTorch itself is asked, so the count holds for most architectures. For the others a rule counts.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peft_space.compat.torch import (
    each_result,
    fake_tensor_errors,
    fake_tensors,
    materialize_fake,
    storage_address,
)
from peft_space.hardware import Device
from peft_space.models.architecture import CLASSIFYING, ModelLayers, blocks_of
from peft_space.models.config_values import config_number
from peft_space.models.label_scorer import last_hidden_states
from peft_space.recipe import Task

if TYPE_CHECKING:
    import torch

HUGE_PAGE = 2 * 2**20
"""Bytes. Larger tensors begin on a page."""
HOLES, HUGE_HOLES = 0.34, 0.08
"""Bytes of the heap that no tensor uses, on a CPU, for each byte that the forward pass allocates
in tensors below and above the size of a huge page. glibc leaves a hole where a small tensor was,
because the next of the same size does not fit in: its alignment takes a few bytes more. With
another allocator a training may need less."""


@dataclass
class Block:
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
class Kept:
    """Bytes that a forward pass keeps for the backward pass, without parameters."""

    blocks: list[Block]
    outside: int
    holes_outside: float = 0

    @property
    def holes(self) -> float:
        """Bytes of the heap of a CPU that no tensor uses."""
        return self.holes_outside + sum(block.count * block.holes for block in self.blocks)


def count_activations(
    layers: ModelLayers, model: Any, batch_size: int, length: int, device: Device, dtype: str
) -> Kept:
    """What the forward pass of the adapted `model` keeps: counted, or by a rule if it cannot be."""
    import torch

    # PyTorch has no grouped product of fake tensors in float32
    twice = layers.fused_experts > 0 and dtype == "float32"
    if twice:
        model, dtype = model.to(torch.bfloat16), "bfloat16"
    try:
        kept = _count_kept(model, layers.task, batch_size, length, device, dtype)
    except fake_tensor_errors():  # what this model computes depends on the tokens
        return kept_by_rule(layers, batch_size, length, dtype)
    if twice:
        kept.outside *= 2
        for block in kept.blocks:
            # without `module`, because the weights of its time would be in 16 bits
            block.module, block.kept, block.inputs = None, 2 * block.kept, 2 * block.inputs
            block.holes *= 2
    return kept


def kept_by_rule(layers: ModelLayers, batch_size: int, length: int, dtype: str) -> Kept:
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
    block = Block(
        count=count, runs=1, kept=round(kept), inputs=size * tokens * width, holes=0.3 * kept
    )
    return Kept([block], 0)


def _count_kept(
    model: Any, task: Task, batch_size: int, length: int, device: Device, dtype: str
) -> Kept:
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
        outside = Block()
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
    return Kept(blocks, outside.kept, outside.holes)


@contextlib.contextmanager
def _one_of_each_kind(model: Any, running: list[Block]) -> Iterator[list[Block]]:
    """Let only the first block of each kind compute. The others give what it gave.

    Args:
        model: the model, which cannot be run as before afterwards.
        running: its last element is the block that runs.
    """

    def enter(block: Block, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        running.append(block)
        states = next(value for value in (*inputs, *named.values()) if hasattr(value, "nbytes"))
        # as that of every later block, which comes from trained layers
        states.requires_grad_()
        block.runs, block.inputs = block.runs + 1, block.inputs + states.nbytes
        block.arguments = inputs, named

    def leave(output: Any) -> None:
        running.pop().output = output

    kinds: dict[Any, Block] = {}
    hooks: list[Any] = []
    for module in blocks_of(model):
        sizes = [(parameter.shape, parameter.requires_grad) for parameter in module.parameters()]
        kind = (type(module), *sizes)
        if kind in kinds:
            again = kinds[kind]
            module.forward = lambda *args, again=again, **named: again.output
        else:
            block = kinds[kind] = Block(module)
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


_VALUES_A_PATCH = 10
"""Times its width that a block of a vision tower holds at once for a patch, besides its MLP."""


def tower_bytes(layers: ModelLayers, patches: float, dtype_bytes: int) -> int:
    """Bytes that a block of the tower holds at once for these patches. It keeps no gradient."""
    vision: Any = getattr(layers.model.config, "vision_config", None)
    if vision is None or not patches:
        return 0
    width = config_number(vision, "hidden_size")
    inner = getattr(vision, "intermediate_size", None) or 4 * width
    return round(patches * (_VALUES_A_PATCH * width + 2 * inner) * dtype_bytes)
