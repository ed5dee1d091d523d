"""Reads numbers from model configurations, which do not agree on where they are and how called.

A multimodal model has them in a part, BLT in several. Some types use an unusual name, some have
a list with a number for each layer, and some have no such number at all.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ConfigName = Literal[
    "hidden_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_experts_per_tok",
    "num_hidden_layers",
    "vocab_size",
]
_OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "hidden_size": ("d_model", "n_embd", "dim", "embedding_size"),
    "max_position_embeddings": ("n_positions", "n_ctx", "max_seq_len", "context_length"),
    "num_attention_heads": ("num_heads", "n_head", "n_heads", "encoder_attention_heads"),
    "num_experts_per_tok": ("num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k"),
    "num_hidden_layers": ("num_layers", "n_layer", "n_layers", "encoder_layers"),
}
"""Names that some types use without the alias that transformers usually gives them."""


def text_config(config: "PreTrainedConfig") -> Any:
    """The configuration of the part that writes text: the config itself unless it is composite."""
    from transformers import PreTrainedConfig

    parts = (getattr(config, name, None) for name in ("text_config", "decoder", "generator"))
    return next((part for part in parts if isinstance(part, PreTrainedConfig)), config)


def config_number(config: "PreTrainedConfig", name: ConfigName) -> int:
    """A number of the model that the config describes, or 0 if it has no such number.

    Args:
        config: of a base model; of a composite one, the part that writes text counts.
        name: the usual name.

    Returns:
        The largest number if layers or parts differ.
    """
    for part in (text_config(config), config):
        if numbers := list(_numbers(part, name)):
            return max(numbers)
    parts = [getattr(config, part, None) for part in config.sub_configs]
    return max((number for part in parts for number in _numbers(part, name)), default=0)


def _numbers(config: Any, name: str) -> Iterator[int]:
    """The values of a number in one config, for all of its layers."""
    for key in (name, *_OTHER_NAMES.get(name, ())):
        try:
            value = getattr(config, key, None)
        except RuntimeError:  # the layers of a heterogeneous config differ
            layers = [config.per_layer_config[n] for n in range(config.num_hidden_layers)]
            value = [getattr(layer, key, None) for layer in layers]
        values = value if isinstance(value, list | tuple) else [value]
        found = [item for item in values if isinstance(item, int) and item > 0]
        if found:
            yield from found
            return


# Pictures


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
