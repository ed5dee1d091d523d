"""Uses of the internals of PEFT."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer


def refuses_layer(model: Any, leaf_name: str) -> bool:
    """Return True if PEFT raises an error for an adapter on layers with this name in this model.

    PEFT's own check, `_check_lora_target_modules_mamba`, is asked.
    """
    from peft import LoraConfig
    from peft.tuners import tuners_utils

    try:
        tuners_utils._check_lora_target_modules_mamba(LoraConfig(), model, leaf_name)
    except ValueError:
        return True
    return False


def layers_taken_for_experts(model: Any, leaf_names: list[str]) -> list[str]:
    """The layer names that PEFT would replace by the fused block of experts.

    PEFT 0.21 rewrites such names in `target_modules` and then skips their layers.
    PEFT itself is asked, so that the result follows its rules.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=leaf_names)
    convert_peft_config_for_transformers(config, model, None)
    return [name for name in leaf_names if name not in (config.target_modules or ())]


def layers_lost_on_loading(model: Any, names: list[str]) -> list[str]:
    """The layers that PEFT would skip when it loads their adapter from a file.

    PEFT renames layers by transformers' patterns for old files, some of which match present names
    too. Calls `convert_peft_adapter_state_dict_for_transformers`.

    Args:
        model: a model without an adapter, also on the meta device.
        names: full names of its linear layers.
    """
    import torch
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import (
        convert_peft_adapter_state_dict_for_transformers,
    )

    keys = {f"base_model.model.{name}.lora_A.weight": name for name in names}
    renamed = convert_peft_adapter_state_dict_for_transformers(
        model, LoraConfig(), {key: torch.zeros(1, 1) for key in keys}
    )
    return [name for key, name in keys.items() if key not in renamed]


def dequantized_weight(layer: nn.Module) -> Tensor:
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


def set_input_casts(layer: BaseTunerLayer, enabled: bool) -> None:
    """Switch the cast of a layer's inputs to the adapter's dtype on or off.

    Sets `cast_input_dtype_enabled`.
    """
    layer.cast_input_dtype_enabled = enabled  # type: ignore[attr-defined]


def init_pissa(layer: Any, iterations: int) -> None:
    """Move the strongest part of a layer's weight into its adapter (PiSSA, arXiv 2404.02948).

    `get_peft_model` would do it for all layers on the device that holds the whole base. Calls
    `LoraLayer.pissa_init`.

    Args:
        layer: a `LoraLayer`.
        iterations: of the randomized decomposition.
    """
    layer.pissa_init("default", f"pissa_niter_{iterations}")
