"""Whether what an adapter adds to each layer is in the weights of a merged model, whole: what answers to a few rows may not show.

Of each layer it takes how far the merged weight has moved along what was added, W' - W0 projected on B A: 1 where the merge is right, 0
where the layer was left out, 2 where the scale was twice what it should be. 16 bits blur that a little, by as much as is known.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

_TOLERANCE = 0.02
_ROUNDING = {"float32": 2.0**-24, "bfloat16": 2.0**-9, "float16": 2.0**-12, "q8_0": 2.0**-7}
"""Root mean square of the relative rounding error, at most; of q8_0 relative to a weight's own root mean square."""


@dataclass(frozen=True)
class Added:
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


def added_by(adapted: Any, base: Any | None = None) -> list[Added]:
    """What the active adapter of a PEFT model adds to each layer. DoRA is left out: it does not add.

    Args:
        base: the model whose weights it was merged into, where these are not those under the adapter.
    """
    from peft.tuners.lora import LoraLayer

    found = []
    for full_name, layer in adapted.named_modules():
        if not isinstance(layer, LoraLayer) or not layer.lora_A or layer.lora_variant:
            continue
        name = full_name.removeprefix("base_model.model.")
        down, up = (matrices["default"].weight.detach().float().cpu() for matrices in (layer.lora_A, layer.lora_B))
        one = Added(name, down, up, layer.scaling["default"])
        before = _weight(layer.get_base_layer() if base is None else base.get_submodule(name))
        found.append(dataclasses.replace(one, along=one.dot(before)))
    return found


def not_added(model: Any, added: list[Added], dtype: str) -> list[str]:
    """Which layers of a merged model do not have what was added to them, in words."""
    faults = []
    for one in added:
        weight, squared = _weight(model.get_submodule(one.name)), one.squared
        if not squared:
            continue
        share = (one.dot(weight) - one.along) / squared
        blur = 5 * _ROUNDING[dtype] * float(weight.square().mean().sqrt()) / squared**0.5
        if not abs(share - 1) <= _TOLERANCE + blur:
            faults.append(f"{one.name} has {round(share, 2) + 0.0:.0%} of what the adapter adds to it")
    more = [f"{len(faults) - 3} more layers likewise"] if len(faults) > 3 else []
    return [*faults[:3], *more]


def _weight(module: Any) -> Any:
    """A layer's weight, (outputs, inputs), in float32; what it stands for where it is quantized."""
    from peft.utils.integrations import dequantize_module_weight
    from transformers.pytorch_utils import Conv1D

    weight = dequantize_module_weight(module).detach().float().cpu()
    return weight.T if isinstance(module, Conv1D) else weight
