"""What llama.cpp has to be told of a model, and how it holds its weights, for the families that can be written as GGUF.

Held equal to what llama.cpp's own conversion does; whatever it would compute otherwise than transformers is refused.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np

from peft_space.errors import UserError

_INSTEAD = "Export the merged model and serve it with vLLM, or choose another base model."


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp names a family, and what it expects to be otherwise than transformers has it."""

    arch: gguf.MODEL_ARCH
    activation: str
    turns_by_pairs: bool = False
    """Whether the rotary embedding turns neighbouring numbers, so that rows of q and k lie in another order."""
    norms_from_zero: bool = False
    """Whether a norm's weight in transformers is what is added to one."""
    windows_every: int = 0
    """Every how many layers one sees the whole text while the others see a window; 0 where llama.cpp knows no window."""


ARCHITECTURES = {
    "llama": Architecture(gguf.MODEL_ARCH.LLAMA, "silu", turns_by_pairs=True),
    "mistral": Architecture(gguf.MODEL_ARCH.LLAMA, "silu", turns_by_pairs=True),
    "qwen2": Architecture(gguf.MODEL_ARCH.QWEN2, "silu"),
    "qwen3": Architecture(gguf.MODEL_ARCH.QWEN3, "silu"),
    "gemma": Architecture(gguf.MODEL_ARCH.GEMMA, "gelu_pytorch_tanh", norms_from_zero=True),
    "gemma2": Architecture(
        gguf.MODEL_ARCH.GEMMA2, "gelu_pytorch_tanh", norms_from_zero=True, windows_every=2
    ),
    "gemma3_text": Architecture(
        gguf.MODEL_ARCH.GEMMA3, "gelu_pytorch_tanh", norms_from_zero=True, windows_every=6
    ),
    "phi": Architecture(gguf.MODEL_ARCH.PHI2, "gelu_new"),
    "phi3": Architecture(gguf.MODEL_ARCH.PHI3, "silu"),
}
"""By the `model_type` of a config."""


def architecture_of(config: Any) -> Architecture:
    """Raises UserError where llama.cpp would not compute what transformers does, naming what stands in the way."""
    found = ARCHITECTURES.get(config.model_type)
    if found is None:
        known = ", ".join(ARCHITECTURES)
        raise UserError(
            "todo",
            f"Models of the kind {config.model_type!r} cannot be written as GGUF here; {known} can. {_INSTEAD}",
        )
    for stands_in_the_way, what in _obstacles(config, found):
        if stands_in_the_way:
            raise UserError(
                "todo",
                f"This model cannot be written as GGUF: {what}, which llama.cpp computes otherwise. {_INSTEAD}",
            )
    return found


def _obstacles(config: Any, found: Architecture) -> list[tuple[bool, str]]:
    rope, every = _rope(config), found.windows_every
    scalar, windows = (
        getattr(config, "query_pre_attn_scalar", None),
        getattr(config, "layer_types", None),
    )
    pattern = [
        "full_attention" if every and number % every == every - 1 else "sliding_attention"
        for number in range(len(windows or ()))
    ]
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    kinds = {"default", "linear", "yarn"} | {
        "llama": {"llama3"},
        "mistral": {"llama3"},
        "phi3": {"longrope"},
    }.get(config.model_type, set())
    partial = rope.get("partial_rotary_factor") or 1.0
    return [
        (activation != found.activation, f"its activation is {activation}"),
        (rope["rope_type"] not in kinds, f"its rotary embedding is scaled by {rope['rope_type']}"),
        (
            partial != 1.0 and not config.model_type.startswith("phi"),
            "its rotary embedding turns a part of each head",
        ),
        (bool(getattr(config, "qk_layernorm", False)), "it normalises queries and keys"),
        (
            scalar is not None and not math.isclose(scalar, _llama_cpp_scalar(config)),
            f"its attention is scaled by {scalar}",
        ),
        (
            bool(every) and windows != pattern,
            f"not every {every}th layer is the one that sees the whole text",
        ),
        (bool(getattr(config, "use_bidirectional_attention", False)), "it looks ahead"),
    ]


def _llama_cpp_scalar(config: Any) -> float:
    """By what llama.cpp scales the attention of Gemma 2 and 3: it knows the largest model of each by its number of layers."""
    largest = {"gemma2": 46, "gemma3_text": 62}[config.model_type]
    return (
        config.hidden_size // config.num_attention_heads
        if config.num_hidden_layers == largest
        else config.head_dim
    )


def _rope(config: Any) -> dict[str, Any]:
    """Of the layers that see the whole text."""
    return config.rope_parameters.get("full_attention", config.rope_parameters)


def _head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _context_length(config: Any, found: Architecture) -> int:
    """How long a text may be: where llama.cpp knows nothing of a model's window, no longer than that."""
    window = getattr(config, "sliding_window", None)
    slides = window and "sliding_attention" in (
        getattr(config, "layer_types", None) or ["sliding_attention"]
    )
    return (
        min(config.max_position_embeddings, window)
        if slides and not found.windows_every
        else config.max_position_embeddings
    )


def add_parameters(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write what llama.cpp has to know of the model beside its weights and its vocabulary."""
    found = architecture_of(config)
    rope, head_size = _rope(config), _head_size(config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(_context_length(config, found))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads or config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(int(head_size * (rope.get("partial_rotary_factor") or 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    if config.model_type == "phi":
        writer.add_layer_norm_eps(config.layer_norm_eps)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.model_type == "phi3":
        writer.add_sliding_window(0)  # llama.cpp has it switched off
        writer.add_rope_scaling_orig_ctx_len(
            rope.get("original_max_position_embeddings") or config.max_position_embeddings
        )
    if found.windows_every:
        writer.add_sliding_window(config.sliding_window)
    if "sliding_attention" in config.rope_parameters:
        writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    for cap, add in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
    ):
        if getattr(config, cap, None) is not None:
            add(getattr(config, cap))
    _add_rope_scaling(writer, config, rope)


def _add_rope_scaling(writer: gguf.GGUFWriter, config: Any, rope: dict[str, Any]) -> None:
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(
            rope.get("original_max_position_embeddings") or config.max_position_embeddings
        )
        if rope.get("attention_factor") is not None:
            writer.add_rope_scaling_yarn_attn_factor(rope["attention_factor"])
        writer.add_rope_scaling_yarn_beta_fast(rope.get("beta_fast") or 32.0)
        writer.add_rope_scaling_yarn_beta_slow(rope.get("beta_slow") or 1.0)
    elif rope["rope_type"] == "longrope":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        original = rope["original_max_position_embeddings"]
        scale = rope.get("factor") or config.max_position_embeddings / original
        own = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        writer.add_rope_scaling_attn_factors(rope.get("attention_factor") or own)


def rope_tensors(config: Any) -> dict[str, np.ndarray]:
    """By what the frequencies of a rotary embedding are divided, where that is no single number: name -> (half of the turned part of a head,)."""
    rope = _rope(config)
    if rope["rope_type"] == "longrope":
        return {
            f"rope_factors_{kind}.weight": np.array(rope[f"{kind}_factor"], dtype=np.float32)
            for kind in ("long", "short")
        }
    if rope["rope_type"] != "llama3":
        return {}
    size = _head_size(config)
    lengths = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, size, 2, dtype=np.float64) / size)
    slow, fast = (
        rope["original_max_position_embeddings"] / rope[f"{kind}_freq_factor"]
        for kind in ("low", "high")
    )
    mixed = (rope["original_max_position_embeddings"] / lengths - rope["low_freq_factor"]) / (
        rope["high_freq_factor"] - rope["low_freq_factor"]
    )
    between = 1 / ((1 - mixed) / rope["factor"] + mixed)
    return {
        "rope_freqs.weight": np.where(
            lengths < fast, 1.0, np.where(lengths > slow, rope["factor"], between)
        ).astype(np.float32)
    }


TensorChange = Callable[[np.ndarray], np.ndarray]
"""What makes of a weight in transformers the same in llama.cpp; its shape stays."""


def tensor_change(name: str, config: Any) -> TensorChange | None:
    """How llama.cpp wants the weight, or the output side of an adapter's weight, of the layer with this name; None for as it is."""
    found, layer = (
        ARCHITECTURES[config.model_type],
        name.removesuffix(".weight").removesuffix(".bias"),
    )
    if found.norms_from_zero and name.endswith("norm.weight"):
        return lambda weight: weight + np.float32(1)
    if found.turns_by_pairs and layer.endswith(("q_proj", "k_proj")):
        heads = (
            config.num_attention_heads if layer.endswith("q_proj") else config.num_key_value_heads
        )
        return lambda weight: _by_pairs(weight, heads)
    return None


def tensor_undo(name: str, config: Any) -> TensorChange | None:
    """What makes of the weight in llama.cpp the one in transformers again."""
    change = tensor_change(name, config)
    if change is None or name.endswith("norm.weight"):
        return change and (lambda weight: weight - np.float32(1))

    def undo(weight: np.ndarray) -> np.ndarray:
        places = np.argsort(change(np.arange(len(weight))))
        return weight[places]

    return undo


def _by_pairs(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """The rows of each head from (first half, second half) to pairs of one from each; `weight` is (heads x size, …)."""
    halves = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)
