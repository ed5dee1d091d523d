"""Adapters that start from the base's own weights (PiSSA, LoftQ), and their way back to an ordinary LoRA of the untouched base.

PiSSA moves the strongest part of each layer into the adapter, so the base is another while it trains; LoftQ starts with what quantization loses.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from peft_space.models.architecture import linear_layers
from peft_space.models.loading import adapter_config, load_base_model
from peft_space.models.resolve import BaseModelRef
from peft_space.recipe import Recipe, TaskSpec
from peft_space.storage import atomic_io

FROM_BASE = ("pissa", "loftq")
"""Methods whose adapter does not start at nothing."""
_ADAPTER, _BASE = "adapter", "base"


def write_initial_adapter(folder: Path, base: BaseModelRef, recipe: Recipe, goal: TaskSpec) -> None:
    """Write what training starts from into `folder`, whole or not at all: the first adapter, and of PiSSA the base without its part.

    It stays until training has finished, so that a resumed run starts from the very same numbers.
    """
    if folder.exists():
        return
    from peft import get_peft_model

    model = load_base_model(
        base, recipe.model_copy(update={"quantization": "none"}), "float32", goal
    )
    config = adapter_config(
        recipe, linear_layers(base.config, goal.task), goal.task, model.untrained_modules
    )
    if recipe.method == "pissa":
        config.init_lora_weights = "pissa_niter_16"
    model = get_peft_model(model, config)
    if recipe.method == "loftq":
        _init_loftq(model, recipe)
    model.peft_config[
        "default"
    ].init_lora_weights = True  # or it would be taken from the base again when it is loaded
    aside = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside / _ADAPTER, save_embedding_layers=False)
    if recipe.method == "pissa":
        model.unload().save_pretrained(aside / _BASE)
    atomic_io.atomic_rename(aside, folder)


def _init_loftq(model: Any, recipe: Recipe) -> None:
    """Let the adapter start as the best approximation of its rank to what 4 bits lose (LoftQ with one iteration, arXiv 2310.08659)."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    from peft.tuners.lora import LoraLayer

    for layer in (module for module in model.modules() if isinstance(module, LoraLayer)):
        weight = (
            layer.get_base_layer().weight.data.float()
        )  # (out, in); of Conv1D, which is (in, out), bitsandbytes quantizes the transpose
        weight = weight.T.contiguous() if layer.fan_in_fan_out else weight
        packed, state = quantize_4bit(
            weight, quant_type=recipe.quantization, compress_statistics=recipe.double_quantization
        )
        lost = weight - dequantize_4bit(packed, state).float()
        left, sizes, right = torch.linalg.svd(lost, full_matrices=False)
        rank = recipe.lora_rank
        root = (sizes[:rank] / layer.scaling["default"]).sqrt()
        layer.lora_A["default"].weight.data = _filled(
            root[:, None] * right[:rank], layer.lora_A["default"].weight
        )
        layer.lora_B["default"].weight.data = _filled(
            left[:, :rank] * root, layer.lora_B["default"].weight
        )


def _filled(found: Any, like: Any) -> Any:
    """`found`, with zeros where a layer is narrower than the rank."""
    whole = like.data.new_zeros(like.shape)
    whole[: found.shape[0], : found.shape[1]] = found
    return whole


def initial_base(folder: Path, base: BaseModelRef) -> BaseModelRef:
    """The base that the first adapter belongs to."""
    return (
        dataclasses.replace(base, location=str(folder / _BASE))
        if (folder / _BASE).is_dir()
        else base
    )


def load_initial_adapter(model: Any, folder: Path) -> Any:
    """`model` with the first adapter on it, to be trained."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder / _ADAPTER, is_trainable=True)


def to_plain_lora(adapter: Path, folder: Path) -> None:
    """Rewrite a trained adapter as a LoRA of the untouched base: B A - B0 A0, which is one of twice the rank.

    It is exact where the base is not quantized. Quantized, the base without its part loses other bits than the whole, and the difference stays.
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
    doubled = {
        "r": 2 * config["r"],
        "lora_alpha": 2 * config["lora_alpha"],
        "init_lora_weights": True,
    }
    path.write_text(json.dumps(config | doubled, indent=2) + "\n")
