"""Uses of the internals of PEFT."""

from typing import Any


def layers_taken_for_experts(model: Any, leaf_names: list[str]) -> list[str]:
    """The layer names that PEFT would replace by the fused block of experts.

    PEFT 0.21 rewrites such names in `target_modules` and then skips the layers that bear them.
    PEFT itself is asked, so that the result follows its rules.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=leaf_names)
    convert_peft_config_for_transformers(config, model, None)
    return [name for name in leaf_names if name not in (config.target_modules or ())]
