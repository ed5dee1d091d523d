"""Converts adapters of other types, such as LoHa and LoKr, to LoRA with PEFT's conversion."""

import json
from pathlib import Path
from typing import Any

from peft_space.errors import UserError, as_user_error
from peft_space.models.architecture import CLASSIFYING, tasks_of
from peft_space.models.loading import load_base_model
from peft_space.models.resolve import BaseModelRef, first_line
from peft_space.recipe import Recipe, TaskSpec
from peft_space.runs.events import Notice, OnProgress
from peft_space.training.adapter_config import AdapterInfo, largest_rank
from peft_space.training.adapter_source import CONFIG, WEIGHTS

_KEPT_ENERGY = 0.999999
"""Share of the squared singular values of each layer that its LoRA keeps: an error of 0.1 %."""


def convert_to_lora(
    folder: Path, info: AdapterInfo, base: BaseModelRef, out: Path, on_progress: OnProgress
) -> tuple[Path, Notice]:
    """Write a LoRA that makes the same updates as an adapter of another type.

    Args:
        folder: with the weights of the adapter.
        info: its checked config.
        base: its base model.
        out: the folder to create.
        on_progress: is called with the progress.

    Returns:
        The folder of the LoRA, and a notice with its rank and the measured error.

    Raises:
        UserError: PEFT cannot load or convert the adapter.
    """
    from peft import PeftModel
    from peft import convert_to_lora as convert
    from safetensors.torch import save_file

    kind, task = info.config["peft_type"], tasks_of(base.config)[0]
    if task in CLASSIFYING or info.config.get("task_type") in ("SEQ_CLS", "TOKEN_CLS"):
        raise UserError(
            "training.adapter_unsupported",
            f"The adapter has the type {kind} and belongs to a classifier. Only those of models "
            "that write text can be converted to LoRA. Merge it in PEFT instead.",
        )
    on_progress(0.0, f"Converting {kind} to LoRA")
    out.mkdir()
    (out / CONFIG).write_text(json.dumps(info.config), encoding="utf-8")
    (out / WEIGHTS).symlink_to((folder / WEIGHTS).absolute())
    plain = Recipe(base_model=base.location, quantization="none")
    model: Any = load_base_model(base, plain, "float32", TaskSpec(task), device="cpu")
    try:
        model = PeftModel.from_pretrained(model, out)
        _, tensors = convert(model, _KEPT_ENERGY)
    except Exception as error:
        if as_user_error(error):
            raise
        raise UserError(
            "training.adapter_unsupported",
            f"PEFT cannot convert this adapter of type {kind} to LoRA: {first_line(error)} "
            "Merge it into its base model in PEFT, and use the merged model as base_model.",
        ) from error
    rank = _pad_to_one_rank(tensors)
    error_share = _relative_error(model, tensors)
    (out / WEIGHTS).unlink()
    named = {name.replace(".default.", "."): tensor for name, tensor in tensors.items()}
    save_file(
        {name: one.contiguous() for name, one in named.items()}, out / WEIGHTS, {"format": "pt"}
    )
    config = {
        "peft_type": "LORA",
        "task_type": info.config.get("task_type"),
        "r": rank,
        "lora_alpha": rank,
        "target_modules": None,
        "modules_to_save": info.config.get("modules_to_save"),
        "base_model_name_or_path": info.config.get("base_model_name_or_path"),
        "revision": info.config.get("revision"),
        "lora_dropout": 0.0,
    }
    (out / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    what = f"Converted the adapter of type {kind} to a LoRA of rank {rank}."
    why = f"Its updates of the weights differ by {error_share:.2%} from those of the original."
    return out, Notice(what=what, why=why)


def _pad_to_one_rank(tensors: dict[str, Any]) -> int:
    """Give all layers the largest rank: some engines know a single one. Return it."""
    from torch.nn.functional import pad

    downs = [name for name in tensors if name.endswith(".lora_A.weight")]
    rank = min(max(len(tensors[name]) for name in downs), largest_rank())
    for name in downs:
        up_name = name.replace(".lora_A.", ".lora_B.")
        down, up = tensors[name][:rank].float(), tensors[up_name][:, :rank].float()
        tensors[name] = pad(down, (0, 0, 0, rank - len(down)))
        tensors[up_name] = pad(up, (0, rank - up.shape[1]))
    return rank


def _relative_error(model: Any, tensors: dict[str, Any]) -> float:
    """The Frobenius norm of the difference of all updates, relative to that of the updates."""
    from transformers.pytorch_utils import Conv1D

    difference = total = 0.0
    for name, layer in model.named_modules():
        if f"{name}.lora_A.weight" not in tensors:
            continue
        delta = layer.get_delta_weight("default").detach().float()
        update = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
        is_transposed = isinstance(layer.get_base_layer(), Conv1D)
        difference += float(((update.T if is_transposed else update) - delta).square().sum())
        total += float(delta.square().sum())
    return (difference / total) ** 0.5 if total else 0.0
