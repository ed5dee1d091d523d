"""Whether what an adapter adds to each layer is in the weights of a merged model, whole: what answers to a few rows may not show.

Of each layer it takes how far the merged weight has moved along what was added, W' - W0 projected on B A: 1 where the merge is right, 0
where the layer was left out, 2 where the scale was twice what it should be. 16 bits blur that a little, by as much as is known.
DoRA scales the rows of W0 + B A as well, so there some of the rows are kept as they were and as they should be.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

_TOLERANCE = 0.02
_ROWS = 64
_NOTHING = 1e-10
"""Of the square of a weight: so little of a change is rounding."""
_ROUNDING = {"float32": 2.0**-24, "bfloat16": 2.0**-9, "float16": 2.0**-12, "q8_0": 2.0**-7}
"""Root mean square of the relative rounding error, at most; of q8_0 relative to a weight's own root mean square."""


@dataclass(frozen=True)
class ExpectedDelta:
    """What an adapter adds to a layer, scale B A, by its factors; and how far the base's weight already reaches along it."""

    name: str
    down: Any
    up: Any
    scale: float
    along: float = 0.0

    @property
    def squared(self) -> float:
        return self.scale**2 * float(((self.up.T @ self.up) * (self.down @ self.down.T)).sum())

    def dot(self, weight: Any) -> float:
        """The inner product of a weight, (outputs, inputs), with what is added, which is never made whole."""
        return self.scale * float(((self.up.T @ weight) * self.down).sum())


@dataclass(frozen=True)
class Rescaled:
    """What DoRA makes of some rows of a layer's weight: `change`, (rows, inputs), and how far the base's already reach along it."""

    name: str
    rows: Any
    change: Any
    along: float
    squared: float

    def dot(self, weight: Any) -> float:
        """The inner product of these rows of a weight, (outputs, inputs), with their change."""
        return float((weight[self.rows] * self.change).sum())


def expected_deltas(adapted: Any, base: Any | None = None) -> list[ExpectedDelta | Rescaled]:
    """What the active adapter of a PEFT model adds to each layer.

    Args:
        base: the model whose weights it was merged into, where these are not those under the adapter.
    """
    from peft.tuners.lora import LoraLayer

    found: list[ExpectedDelta | Rescaled] = []
    for full_name, layer in adapted.named_modules():
        if not isinstance(layer, LoraLayer) or not layer.lora_A:
            continue
        name = full_name.removeprefix("base_model.model.")
        down, up = (
            matrices["default"].weight.detach().float().cpu()
            for matrices in (layer.lora_A, layer.lora_B)
        )
        one = ExpectedDelta(name, down, up, layer.scaling["default"])
        before = _weight(layer.get_base_layer() if base is None else base.get_submodule(name))
        if not layer.lora_variant:
            found.append(dataclasses.replace(one, along=one.dot(before)))
        elif layer.use_dora.get("default"):
            found.append(
                _rescaled(
                    one,
                    before,
                    layer.lora_magnitude_vector["default"].weight.detach().float().cpu(),
                )
            )
    return found


def _rescaled(one: ExpectedDelta, before: Any, magnitude: Any) -> Rescaled:
    """By magnitude x (W0 + B A) / |W0 + B A|, each row by itself. A change that float32 rounds away counts as none."""
    import torch

    rows = torch.linspace(0, len(before) - 1, min(_ROWS, len(before))).long()
    kept = before[rows]
    moved = kept + one.scale * one.up[rows] @ one.down
    change = magnitude.flatten()[rows, None] * moved / moved.norm(dim=1, keepdim=True) - kept
    squared = float(change.square().sum())
    return Rescaled(
        one.name,
        rows,
        change,
        float((kept * change).sum()),
        squared if squared > _NOTHING * float(kept.square().sum()) else 0.0,
    )


def layers_missing_delta(
    model: Any, added: list[ExpectedDelta | Rescaled], dtype: str
) -> list[str]:
    """Which layers of a merged model do not have what was added to them, in words."""
    faults = []
    for one in added:
        weight, squared = _weight(model.get_submodule(one.name)), one.squared
        if not squared:
            continue
        share = (one.dot(weight) - one.along) / squared
        blur = 5 * _ROUNDING[dtype] * float(weight.square().mean().sqrt()) / squared**0.5
        if not abs(share - 1) <= _TOLERANCE + blur:
            faults.append(
                f"{one.name} has {round(share, 2) + 0.0:.0%} of what the adapter adds to it"
            )
    more = [f"{len(faults) - 3} more layers likewise"] if len(faults) > 3 else []
    return [*faults[:3], *more]


def _weight(module: Any) -> Any:
    """A layer's weight, (outputs, inputs), in float32; what it stands for where it is quantized."""
    from peft.utils.integrations import dequantize_module_weight
    from transformers.pytorch_utils import Conv1D

    weight = dequantize_module_weight(module).detach().float().cpu()
    return weight.T if isinstance(module, Conv1D) else weight
