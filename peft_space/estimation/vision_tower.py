"""What the vision tower of a model adds to a training step, from its config and its shapes."""

from typing import TYPE_CHECKING, Any

from peft_space.models.architecture import ModelLayers
from peft_space.models.config_values import config_number, text_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_VALUES_A_PATCH = 10
"""Times its width that a block of a tower holds at once for a patch, besides its MLP."""


def image_token(config: "PreTrainedConfig") -> int | None:
    """The id of the token that stands for a part of a picture; None if the model reads none."""
    names = ("image_token_id", "image_token_index")
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)),
                None)  # fmt: skip


def patches_a_token(config: "PreTrainedConfig") -> float:
    """Patches of a picture that become one token."""
    vision: Any = getattr(config, "vision_config", None)
    size, patch = (getattr(vision, name, None) for name in ("image_size", "patch_size"))
    tokens = getattr(config, "mm_tokens_per_image", None)
    if isinstance(size, int) and isinstance(patch, int) and tokens:  # Gemma 3
        return (size // patch) ** 2 / tokens
    merged = getattr(vision, "spatial_merge_size", None) or getattr(config, "scale_factor", None)
    return float(merged**2) if isinstance(merged, int) else 1.0


def tower_parameters(layers: ModelLayers) -> int:
    """Parameters outside of the part that reads text: tower and projector."""
    config, model = layers.model.config, layers.model
    text = text_config(config)
    if text is config or layers.task != "image-text-to-text":
        return 0
    parts = [part for part in model.modules() if getattr(part, "config", None) is text]
    own = {id(parameter) for part in parts for parameter in part.parameters()}
    head = model.get_output_embeddings()
    own |= {id(parameter) for parameter in (head.parameters() if head is not None else [])}
    return sum(one.numel() for one in model.parameters() if id(one) not in own)


def tower_bytes(layers: ModelLayers, patches: float, dtype_bytes: int) -> int:
    """Bytes that a block of the tower holds at once for these patches. It keeps no gradient."""
    vision: Any = getattr(layers.model.config, "vision_config", None)
    if vision is None or not patches:
        return 0
    width = config_number(vision, "hidden_size")
    inner = getattr(vision, "intermediate_size", None) or 4 * width
    return round(patches * (_VALUES_A_PATCH * width + 2 * inner) * dtype_bytes)
