"""Finds the linear layers of a model that cannot get an adapter, or would learn nothing with one.

To find out where text passes, the model runs on PyTorch's meta device, which has shapes but no
numbers. So this takes about a second for a large model, and no weights.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from peft_space.compat.peft import (
    layers_lost_on_loading,
    layers_taken_for_experts,
    refuses_layer,
)
from peft_space.compat.torch import fake_tensors
from peft_space.compat.transformers import experts_as_one_product
from peft_space.models.config_values import config_number, text_config
from peft_space.recipe import Task

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

LeftOut = Literal[
    "no_text", "no_gradient", "own_computation", "fused_kernel", "taken_for_experts",
    "lost_on_loading",
]  # fmt: skip
"""Why a linear layer gets no adapter."""
WHY_LEFT_OUT: dict[LeftOut, str] = {
    "no_text": "text does not pass through them",
    "no_gradient": "they learn nothing from text",
    "own_computation": "they compute more than a product with their weight, as routers do",
    "fused_kernel": "Mamba's kernels take their weight and would skip an adapter",
    "taken_for_experts": "PEFT takes their names for those of experts",
    "lost_on_loading": "PEFT renames them in a saved adapter, and would not load them again",
}
_SHORT, _LONG = 32, 1024
"""Tokens of a row. Some layers see only what lies far back, so a short row is not enough to say
that a layer gets no gradient."""
_MAX_KNOWN = 16
_known: dict[tuple[Any, ...], Mapping[str, LeftOut]] = {}
"""What was found, by architecture and task."""


def left_out_layers(
    model: PreTrainedModel, task: Task, names: list[str], fused_experts: int
) -> dict[str, LeftOut]:
    """Return the linear layers that cannot get an adapter, or would learn nothing.

    Args:
        model: a model on the meta device. It is the same afterwards.
        task: for which it was built.
        names: full names of its linear layers.
        fused_experts: the number of its blocks of experts.

    Returns:
        The reasons by full name, in the order of `names`.
    """
    found: dict[str, LeftOut] = {**_unreached_layers(model, task, names)}
    found |= dict.fromkeys(_other_modalities(model, names), "no_text")
    for name in names:
        if _computes_otherwise(model, name):
            found[name] = "own_computation"
        elif _goes_into_a_kernel(model, name) or refuses_layer(model, leaf(name)):
            found[name] = "fused_kernel"
    if fused_experts:
        leaves = count_leaves([name for name in names if name not in found])
        taken = layers_taken_for_experts(model, list(leaves))
        found |= {n: "taken_for_experts" for n in names if n not in found and leaf(n) in taken}
    lost = layers_lost_on_loading(model, [name for name in names if name not in found])
    found |= dict.fromkeys(lost, "lost_on_loading")
    return {name: found[name] for name in names if name in found}


def _computes_otherwise(model: PreTrainedModel, name: str) -> bool:
    """True for a layer that is not the product of its input and its weight, such as a router."""
    import torch
    from transformers.pytorch_utils import Conv1D

    layer: Any = model.get_submodule(name)
    parent = model.get_submodule(name.rpartition(".")[0])
    if isinstance(parent, torch.nn.MultiheadAttention) or "Router" in type(parent).__name__:
        return True  # may use the weight and never call the layer
    if type(layer).forward in (torch.nn.Linear.forward, Conv1D.forward):
        return False
    rows = torch.zeros(2, layer.in_features, dtype=layer.weight.dtype, device="meta")
    try:
        with torch.no_grad():
            output = layer(rows)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return True
    return getattr(output, "shape", None) != (2, layer.out_features)


_KERNEL_WEIGHTS = ("x_proj", "dt_proj", "out_proj")


def _goes_into_a_kernel(model: PreTrainedModel, name: str) -> bool:
    """True for a layer of which Mamba's fused kernels take the weight and skip the adapter."""
    mixer = type(model.get_submodule(name.rpartition(".")[0])).__name__.lower()
    return "mamba" in mixer and leaf(name) in _KERNEL_WEIGHTS


_READS_TEXT = ("input_ids", "inputs", "inputs_embeds")
"""Main inputs of models that read text; towers read `pixel_values` or `input_features`."""


def _other_modalities(model: PreTrainedModel, names: list[str]) -> list[str]:
    """The layers that only pictures or sound pass through: towers and projectors.

    An encoder-decoder passes text through all of its parts but its towers. Other models pass it
    through the part that has the text configuration.
    """
    from transformers import PreTrainedModel

    parts = {
        name: part for name, part in model.named_modules() if isinstance(part, PreTrainedModel)
    }
    if model.config.is_encoder_decoder:
        towers = [n for n, part in parts.items() if part.main_input_name not in _READS_TEXT]
        return [name for name in names if name.startswith(tuple(f"{tower}." for tower in towers))]
    text = text_config(model.config)
    inside = tuple(f"{name}." for name, part in parts.items() if name and part.config is text)
    if text is model.config or not inside:
        return []
    return [name for name in names if not name.startswith(inside)]


def _unreached_layers(
    model: PreTrainedModel, task: Task, names: Sequence[str]
) -> Mapping[str, LeftOut]:
    """Return the layers that cannot learn from text, with the reason.

    Args:
        model: a model on the meta device. It is the same afterwards.
        task: for which it was built.
        names: full names of its linear layers.

    Returns:
        The reasons by name. Empty if the model cannot run without numbers: then nothing is known.
    """
    key = (type(model), task, str(model.config.to_dict()))
    if key not in _known:
        if len(_known) >= _MAX_KNOWN:
            _known.clear()
        _known[key] = _run(model, task, names)
    return _known[key]


def _run(model: PreTrainedModel, task: Task, names: Sequence[str]) -> dict[str, LeftOut]:
    was_training = model.training
    model.eval()  # some models want further inputs in training
    try:
        with experts_as_one_product(model):
            found = _without_gradient(model, task, names, _SHORT)
            longest = config_number(model.config, "max_position_embeddings") or _LONG
            if "no_gradient" in found.values():
                found = _without_gradient(model, task, names, min(_LONG, longest))
        return found
    except Exception:  # any architecture may need numbers, in any way
        logger.info("%s cannot run without numbers", type(model).__name__, exc_info=True)
        return {}
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)


def _without_gradient(
    model: Any, task: Task, names: Sequence[str], length: int
) -> dict[str, LeftOut]:
    import torch

    modules = {name: model.get_submodule(name) for name in names}
    called: set[Any] = set()
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: called.add(module))
        for module in modules.values()
    ]
    try:
        model.zero_grad(set_to_none=True)
        with fake_tensors():  # transformers does not look for numbers in them
            tokens = torch.zeros(2, length, dtype=torch.long, device="meta")
            inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
            if task == "seq2seq-lm":
                inputs["decoder_input_ids"] = tokens
            model(**inputs).logits.sum().backward()
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: "no_gradient" if module in called else "no_text"
        for name, module in modules.items()
        if module not in called or module.weight.grad is None
    }


def is_linear(module: nn.Module) -> bool:
    """Return True for a linear layer, those of GPT-2 included."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, torch.nn.Linear | Conv1D)


def leaf(name: str) -> str:
    """The last part of a module's full name."""
    return name.rpartition(".")[2]


def count_leaves(names: Iterable[str]) -> dict[str, int]:
    """The number of names for each last part, in order."""
    return dict(Counter(map(leaf, names)))
