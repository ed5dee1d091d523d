"""Whether an adapter belongs to a base model: by the name that it gives its base, and by the names and shapes of its tensors.

Compares with the model on the meta device, so that it is known before any weights are loaded.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft_space.errors import UserError
from peft_space.models.architecture import linear_layers
from peft_space.models.resolve import BaseModelRef, model_name
from peft_space.models.weight_files import read_header, weight_file_fault
from peft_space.recipe import Task

_Shapes = Mapping[str, tuple[int, ...]]
_REMEDY = "Put the adapter of this run back, or train anew."


def revision_of(adapter: Path, base_model: str) -> str | None:
    """The base's revision that an adapter was trained on. Raises UserError where it was trained on another base than `base_model`."""
    try:
        told = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        trained_on, revision = str(told["base_model_name_or_path"]), told.get("revision")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            "todo",
            f"The adapter in {adapter} cannot be loaded: its adapter_config.json is damaged. {_REMEDY}",
        ) from None
    name = model_name(base_model)
    moved = (
        Path(trained_on).is_absolute() and Path(name).is_absolute()
    )  # then the digest of the files decides
    if trained_on != name and not moved:
        raise UserError(
            "todo",
            f"The adapter in {adapter} was trained on {trained_on}, and the base model of this run is {name}. {_REMEDY}",
        )
    return revision


def check_adapter_fits_base(
    adapter: Path, base: BaseModelRef, task: Task, labels: Sequence[str]
) -> None:
    """Raise UserError where an adapter's file is damaged, or its tensors are not those of an adapter on this base."""
    weights = adapter / "adapter_model.safetensors"
    fault = weight_file_fault(weights) if weights.is_file() else f"there is no {weights.name}"
    header = None if fault else read_header(weights)
    if header is None:
        raise UserError("todo", f"The adapter in {adapter} cannot be loaded: {fault}. {_REMEDY}")
    expected = _expected_shapes(adapter, base, task, labels)
    difference = expected if isinstance(expected, str) else _difference(header.shapes, expected)
    if difference:
        raise UserError(
            "todo",
            f"The adapter in {adapter} does not fit the base model {base.name}: {difference}. {_REMEDY}",
        )


def _expected_shapes(
    adapter: Path, base: BaseModelRef, task: Task, labels: Sequence[str]
) -> _Shapes | str:
    """The tensors that an adapter with this config has on this base, or why there can be none."""
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict

    config = copy.deepcopy(base.config)
    if labels:
        config.num_labels = len(labels)
    model: Any = linear_layers(config, task).model
    leaves = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    try:
        wanted = PeftConfig.from_pretrained(str(adapter))
        if missing := sorted(
            {name.rpartition(".")[2] for name in wanted.target_modules or ()} - leaves
        ):
            return f"the base has no layer {missing[0]!r}"
        wanted.base_model_name_or_path = (
            None  # or PEFT warns that it is not that of the model without weights
        )
        wrapped = get_peft_model(model, wanted, low_cpu_mem_usage=True)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return str(error).strip().split("\n", 1)[0].rstrip(".") or type(error).__name__
    return {
        name: tuple(tensor.shape)
        for name, tensor in get_peft_model_state_dict(wrapped, save_embedding_layers=False).items()
    }


def _difference(found: _Shapes, expected: _Shapes) -> str | None:
    """The first thing in which an adapter differs from what it should be."""
    for name in sorted({*found, *expected}):
        if name not in expected:
            return f"the base has no place for its {name}"
        if name not in found:
            return f"it has no {name}"
        if found[name] != expected[name]:
            return f"its {name} is {_size(found[name])}, and should be {_size(expected[name])}"
    return None


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"
