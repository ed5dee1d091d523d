"""In which dtype a model computes, and holds what is not trained, so that little is cast in each step."""

import contextlib
import copy
import re
from typing import Any

from peft_space import hardware
from peft_space.models.architecture import linear_layers
from peft_space.models.resolve import BaseModelRef
from peft_space.recipe import Task


@contextlib.contextmanager
def autocast_to(model: Any, dtype: str):
    """Let a model compute in `dtype` on a CPU: autocast, and what 4-bit layers dequantize to."""
    import torch

    set_compute_dtype(model, dtype)
    with torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext():
        yield


def set_compute_dtype(model: Any, dtype: str) -> None:
    """Let the 4-bit layers of `model`, if it has any, compute in `dtype`."""
    import bitsandbytes
    import torch

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.compute_dtype = getattr(torch, dtype)


def frozen_dtype(model: Any, dtype: str) -> str:
    """What the frozen weights of an adapted model that computes in `dtype` are to be held in; empty: as they were loaded.

    On a CPU in `dtype`, as GPUs do, so that what flows between layers is of 16 bits as well. Not where the base is quantized, whose other weights
    `prepare_model_for_kbit_training` makes float32; nor for DoRA, which takes the norm of weights; nor where embeddings are trained, so that what
    flows is float32, which a CPU does not mix with norms of 16 bits.
    """
    import torch

    config = model.peft_config["default"]
    if (
        hardware.device() != "cpu"
        or dtype == "float32"
        or config.use_dora
        or getattr(model, "quantization_method", None)
    ):
        return ""
    embeddings = (module for module in model.modules() if isinstance(module, torch.nn.Embedding))
    return "" if any(module.weight.requires_grad for module in embeddings) else dtype


def cast_frozen_weights(model: Any, base: BaseModelRef, task: Task, dtype: str) -> None:
    """Hold all that is frozen in `dtype`, but for what transformers keeps in float32 when it loads the model in `dtype`, and the weight of a norm
    whose bias is trained."""
    import torch

    to = getattr(torch, dtype)
    exact = "|".join(map(re.escape, model.get_base_model()._keep_in_fp32_modules_strict))
    for path, module in model.named_modules():
        own = dict(module.named_parameters(path, recurse=False))
        if isinstance(module, torch.nn.LayerNorm) and any(
            parameter.requires_grad for parameter in own.values()
        ):
            continue
        for name, parameter in own.items():
            if (
                parameter.is_floating_point()
                and not parameter.requires_grad
                and not (exact and re.search(exact, name))
            ):
                parameter.data = parameter.data.to(to)
    config = copy.deepcopy(base.config)
    config.dtype = to  # a text model's; tables of sines are of it, frequencies of rotations are not
    there = dict(model.get_base_model().named_buffers())
    for name, buffer in linear_layers(config, task).model.named_buffers():
        if buffer.dtype == to and name in there and not (exact and re.search(exact, name)):
            there[name].data = there[name].data.to(to)


def avoid_repeated_casts(model: Any, dtype: str) -> None:
    """Cast once what autocast would cast to the same numbers in every step.

    The weights of adapted linear layers are held in the dtype that they are computed in, where they are not yet; and inputs are not cast to the
    adapter's float32 any more, from which they would be cast back. DoRA takes the norm of weights in its inputs' dtype, which would be others.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    if model.peft_config["default"].use_dora:
        return
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = dtype == "float32"
            layer = module.get_base_layer()
            if type(layer) is torch.nn.Linear and not layer.weight.requires_grad:
                layer.weight.data = layer.weight.data.to(getattr(torch, dtype))
