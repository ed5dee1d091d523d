"""Every use of the internals of PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer


def set_input_casts(layer: BaseTunerLayer, enabled: bool) -> None:
    """Switch the cast of a layer's inputs to the adapter's dtype on or off.

    Sets `cast_input_dtype_enabled`.
    """
    layer.cast_input_dtype_enabled = enabled  # type: ignore[attr-defined]
