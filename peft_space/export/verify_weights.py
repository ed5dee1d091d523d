"""Verifies that a merged model contains the whole of an adapter's update to each layer.

Answers to a few rows may not show a missing layer. So for each layer this measures how far the
merged weight W' moved along the update: W' - W0 projected on B A. The result is 1 for a correct
merge, 0 for a layer that was skipped, and 2 for twice the scale, up to a known rounding error.
DoRA also rescales the rows of W0 + B A, so for DoRA some rows are compared in full.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peft_space.compat.peft import dequantized_weight

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel

_TOLERANCE = 0.02
_MAX_ROWS = 64
_MIN_RELATIVE_CHANGE = 1e-10
"""Squared change relative to the squared weight; anything smaller is rounding."""
_ROUNDING = {"float32": 2.0**-24, "bfloat16": 2.0**-9, "float16": 2.0**-12, "q8_0": 2.0**-7}
"""Bound on the root mean square of the relative rounding error; for q8_0, relative to the weight's
root mean square."""


@dataclass(frozen=True)
class ExpectedDelta:
    """The update of one layer, scale B A, stored as its factors."""

    name: str
    down: "Tensor"
    """A, (rank, inputs)."""
    up: "Tensor"
    """B, (outputs, rank)."""
    scale: float
    along: float = 0.0
    """Inner product of the base weight with the update."""

    @property
    def squared(self) -> float:
        """Squared norm of the update."""
        return self.scale**2 * float(((self.up.T @ self.up) * (self.down @ self.down.T)).sum())

    def dot(self, weight: "Tensor") -> float:
        """Return the inner product of a weight, (outputs, inputs), with the update."""
        return self.scale * float(((self.up.T @ weight) * self.down).sum())


@dataclass(frozen=True)
class Rescaled:
    """The change that DoRA makes to some rows of one layer."""

    name: str
    rows: "Tensor"
    change: "Tensor"
    """(rows, inputs)"""
    along: float
    """Inner product of these rows of the base weight with the change."""
    squared: float
    """Squared norm of the change; 0 if float32 rounds it away."""

    def dot(self, weight: "Tensor") -> float:
        """Return the inner product of a weight's rows, (outputs, inputs), with the change."""
        return float((weight[self.rows] * self.change).sum())


def expected_deltas(
    adapted: "PeftModel", base: "PreTrainedModel | None" = None
) -> list[ExpectedDelta | Rescaled]:
    """Return the update of each layer by the active adapter.

    Args:
        adapted: a base model with the adapter.
        base: the model that was merged into, if its weights differ from those under the adapter.
    """
    from peft.tuners.lora import LoraLayer

    deltas: list[ExpectedDelta | Rescaled] = []
    for full_name, layer in adapted.named_modules():
        if not isinstance(layer, LoraLayer) or not layer.lora_A:
            continue
        name = full_name.removeprefix("base_model.model.")
        down, up = (_float(pair["default"].weight) for pair in (layer.lora_A, layer.lora_B))
        delta = ExpectedDelta(name, down, up, layer.scaling["default"])
        before = _weight(layer.get_base_layer() if base is None else base.get_submodule(name))
        if not layer.lora_variant:
            deltas.append(dataclasses.replace(delta, along=delta.dot(before)))
        elif layer.use_dora.get("default"):
            magnitude = _float(layer.lora_magnitude_vector["default"].weight)
            deltas.append(_rescaled(delta, before, magnitude))
    return deltas


def _rescaled(delta: ExpectedDelta, before: "Tensor", magnitude: "Tensor") -> Rescaled:
    """DoRA makes each row magnitude x (W0 + B A) / |W0 + B A|."""
    import torch

    rows = torch.linspace(0, len(before) - 1, min(_MAX_ROWS, len(before))).long()
    base_rows = before[rows]
    moved = base_rows + delta.scale * delta.up[rows] @ delta.down
    scaled = magnitude.flatten()[rows, None] * moved / torch.linalg.norm(moved, dim=1, keepdim=True)
    change = scaled - base_rows
    squared = float(change.square().sum())
    if squared <= _MIN_RELATIVE_CHANGE * float(base_rows.square().sum()):
        squared = 0.0
    return Rescaled(delta.name, rows, change, float((base_rows * change).sum()), squared)


def layers_missing_delta(
    model: "PreTrainedModel", deltas: Sequence[ExpectedDelta | Rescaled], dtype: str
) -> list[str]:
    """Check the weights of a merged model.

    Args:
        model: the merged model.
        deltas: the expected update of each layer.
        dtype: to which the merged weights were rounded.

    Returns:
        One sentence for each of the first three wrong layers, and one for the others.
    """
    faults = []
    for delta in deltas:
        if not delta.squared:
            continue
        weight = _weight(model.get_submodule(delta.name))
        share = (delta.dot(weight) - delta.along) / delta.squared
        size = float(weight.square().mean().sqrt())
        rounding = 5 * _ROUNDING[dtype] * size / delta.squared**0.5
        if not abs(share - 1) <= _TOLERANCE + rounding:
            percent = f"{round(share, 2) + 0.0:.0%}"
            faults.append(f"{delta.name} has {percent} of the adapter's update")
    others = [f"{len(faults) - 3} more layers are wrong"] if len(faults) > 3 else []
    return [*faults[:3], *others]


def _weight(module: "nn.Module") -> "Tensor":
    """(outputs, inputs), dequantized, in float32."""
    from transformers.pytorch_utils import Conv1D

    weight = _float(dequantized_weight(module))
    return weight.T if isinstance(module, Conv1D) else weight


def _float(weight: Any) -> "Tensor":
    return weight.detach().float().cpu()
