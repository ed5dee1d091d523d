"""Initializes adapters from the base's own weights (PiSSA, LoftQ), and turns PiSSA into plain LoRA.

PiSSA moves the strongest part of each layer into the adapter, so the base differs while it trains.
LoftQ starts with what quantization loses.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_space import hardware
from peft_space.compat.peft import init_pissa
from peft_space.models.architecture import linear_layers
from peft_space.models.loading import adapter_config, inference_dtype, load_base_model
from peft_space.models.resolve import BaseModelRef
from peft_space.recipe import Recipe, TaskSpec
from peft_space.storage import atomic_io

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

_ADAPTER, _BASE = "adapter", "base"
_ITERATIONS = 16
"""Of the randomized decomposition: on the way to the exact one, which takes minutes a layer."""


def write_initial_adapter(
    folder: Path, base: BaseModelRef, recipe: Recipe, task_spec: TaskSpec
) -> None:
    """Write the first adapter into `folder`, and for PiSSA the base without its part.

    The folder appears complete or not at all. It stays until training has finished, so that a
    resumed run starts from the same numbers.
    """
    if folder.exists():
        return
    from peft import get_peft_model
    from peft.tuners.lora import LoraLayer

    unquantized = recipe.model_copy(update={"quantization": "none"})
    # in the machine's memory, and one layer after the other on the GPU
    model: Any = load_base_model(
        base, unquantized, inference_dtype(base.config), task_spec, device="cpu"
    )
    layers = linear_layers(base.config, task_spec.task)
    config = adapter_config(recipe, layers, task_spec.task, model.untrained_modules)
    model = get_peft_model(model, config)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            _initialize(layer, recipe)
    aside = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside / _ADAPTER, save_embedding_layers=False)
    if recipe.method == "pissa":
        model.unload().save_pretrained(aside / _BASE)
    atomic_io.atomic_rename(aside, folder)


def _initialize(layer: Any, recipe: Recipe) -> None:
    """Initialize the adapter of one layer on the device that computes fastest."""
    layer.to(hardware.device())
    if recipe.method == "pissa":
        init_pissa(layer, _ITERATIONS)
    else:
        _init_loftq(layer, recipe)
    layer.to("cpu")


def _init_loftq(layer: Any, recipe: Recipe) -> None:
    """Initialize an adapter with an approximation, of its rank, to what 4 bits lose.

    This is LoftQ with one iteration (arXiv 2310.08659).
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    # (out, in); bitsandbytes quantizes the transpose of Conv1D's (in, out)
    weight = layer.get_base_layer().weight.data.float()
    weight = weight.T.contiguous() if layer.fan_in_fan_out else weight
    packed, state = quantize_4bit(
        weight, quant_type=recipe.quantization, compress_statistics=recipe.double_quantization
    )
    lost = weight - dequantize_4bit(packed, state).float()
    rank = min(recipe.lora_rank, *weight.shape)
    left, sizes, right = torch.svd_lowrank(lost, rank, niter=_ITERATIONS)
    root = (sizes / layer.scaling["default"]).sqrt()
    lora_a, lora_b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    lora_a.data = _pad_like(root[:, None] * right.T, lora_a)
    lora_b.data = _pad_like(left * root, lora_b)


def _pad_like(values: "torch.Tensor", like: "torch.Tensor") -> "torch.Tensor":
    """`values`, with zeros where a layer is narrower than the rank."""
    padded = like.data.new_zeros(like.shape)
    padded[: values.shape[0], : values.shape[1]] = values
    return padded


def initial_base(folder: Path, base: BaseModelRef) -> BaseModelRef:
    """The base that the first adapter belongs to."""
    changed = folder / _BASE
    return dataclasses.replace(base, location=str(changed)) if changed.is_dir() else base


def load_initial_adapter(model: "PreTrainedModel", folder: Path) -> "PeftModel":
    """Put the first adapter on `model`, to be trained."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder / _ADAPTER, is_trainable=True)


def to_plain_lora(adapter: Path, folder: Path) -> None:
    """Rewrite a trained adapter as a LoRA of the untouched base: B A - B0 A0, of twice the rank.

    It is exact if the base is not quantized. Quantized, the base without PiSSA's part loses other
    bits than the whole base, and that difference stays.

    Args:
        adapter: the folder of the trained adapter, which is rewritten.
        folder: what `write_initial_adapter` wrote.
    """
    import torch
    from safetensors.torch import load_file, save_file

    weights = adapter / "adapter_model.safetensors"
    trained, first = load_file(weights), load_file(folder / _ADAPTER / "adapter_model.safetensors")
    for name, value in trained.items():
        if ".lora_A." in name:
            trained[name] = torch.cat([value, first[name].to(value)], dim=0)
        elif ".lora_B." in name:
            trained[name] = torch.cat([value, -first[name].to(value)], dim=1)
    save_file(trained, weights, metadata={"format": "pt"})
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    config["r"], config["lora_alpha"] = 2 * config["r"], 2 * config["lora_alpha"]
    config["init_lora_weights"] = True
    path.write_text(json.dumps(config, indent=2) + "\n")
