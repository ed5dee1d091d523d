"""PEFT functions that are not part of its documented interface."""

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


def dequantized_weight(layer: "nn.Module") -> "Tensor":
    """Return the weight of a linear layer in floating point.

    A quantized weight of bitsandbytes, (outputs, inputs), is unpacked; any other is returned as is.
    """
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(layer).detach()


def matching_pattern(patterns: Collection[str], layer: str) -> str:
    """Return the key of `rank_pattern` or `alpha_pattern` that PEFT applies to a layer.

    Returns:
        The first key that matches, or the layer's own name if none does.
    """
    from peft.utils.other import get_pattern_key

    return get_pattern_key(list(patterns), layer)
