"""Checks that an adapter belongs to a base model, before any weights are loaded."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft_space.errors import UserError
from peft_space.models.architecture import linear_layers
from peft_space.models.repo_files import read_header, weight_file_fault
from peft_space.models.resolve import BaseModelRef, model_name
from peft_space.recipe import Task

_RESTORE_ADAPTER = "Restore the adapter of this run, or train again."
_Shapes = Mapping[str, tuple[int, ...]]


def revision_of(adapter: Path, base_model: str) -> str | None:
    """The revision of the base model that an adapter was trained on.

    Raises:
        UserError: the adapter's config is damaged, or names another base than `base_model`.
    """
    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        trained_on, revision = str(config["base_model_name_or_path"]), config.get("revision")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            "models.adapter_damaged",
            f"The adapter in {adapter} cannot be loaded: its adapter_config.json is damaged. "
            f"{_RESTORE_ADAPTER}",
        ) from None
    name = model_name(base_model)
    # a folder may have been moved: then the digest of its files decides
    both_are_folders = Path(trained_on).is_absolute() and Path(name).is_absolute()
    if trained_on != name and not both_are_folders:
        raise UserError(
            "models.adapter_mismatch",
            f"The adapter in {adapter} was trained on {trained_on}, "
            f"but the base model of this run is {name}. {_RESTORE_ADAPTER}",
        )
    return revision


def check_adapter_fits_base(
    adapter: Path, base: BaseModelRef, task: Task, labels: Sequence[str]
) -> None:
    """Check an adapter's file, and that its tensors are those of an adapter on this base.

    Compares names and shapes on the meta device, before any weights are loaded.

    Raises:
        UserError: the file is damaged, or a tensor does not fit.
    """
    weights = adapter / "adapter_model.safetensors"
    fault = weight_file_fault(weights) if weights.is_file() else f"there is no {weights.name}"
    header = None if fault else read_header(weights)
    if header is None:
        raise UserError(
            "models.adapter_damaged",
            f"The adapter in {adapter} cannot be loaded: {fault}. {_RESTORE_ADAPTER}",
        )
    expected = _expected_shapes(adapter, base, task, labels)
    mismatch = expected if isinstance(expected, str) else _mismatch(header.shapes, expected)
    if mismatch:
        raise UserError(
            "models.adapter_mismatch",
            f"The adapter in {adapter} does not fit the base model {base.name}: {mismatch}. "
            f"{_RESTORE_ADAPTER}",
        )


def _expected_shapes(
    adapter: Path, base: BaseModelRef, task: Task, labels: Sequence[str]
) -> _Shapes | str:
    """The tensors of an adapter with this config on this base, or why there cannot be one."""
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict

    config = copy.deepcopy(base.config)
    if labels:
        config.num_labels = len(labels)
    model: Any = linear_layers(config, task).model
    leaves = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    try:
        lora_config = PeftConfig.from_pretrained(str(adapter))
        targets = {name.rpartition(".")[2] for name in lora_config.target_modules or ()}
        if missing := sorted(targets - leaves):
            return f"the base has no layer {missing[0]!r}"
        lora_config.base_model_name_or_path = None  # PEFT warns if it is not the model's own name
        wrapped = get_peft_model(model, lora_config, low_cpu_mem_usage=True)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return str(error).strip().split("\n", 1)[0].rstrip(".") or type(error).__name__
    tensors = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _mismatch(shapes: _Shapes, expected: _Shapes) -> str | None:
    """The first difference between an adapter's tensors and the expected ones."""
    for name in sorted({*shapes, *expected}):
        if name not in expected:
            return f"the base has no layer for its {name}"
        if name not in shapes:
            return f"it has no {name}"
        if shapes[name] != expected[name]:
            return f"its {name} is {_size(shapes[name])} instead of {_size(expected[name])}"
    return None


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"
