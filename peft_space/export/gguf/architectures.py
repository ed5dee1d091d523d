"""Describes the model families that llama.cpp can run: its parameters and its layout of weights.

It matches llama.cpp's own conversion, and rejects models that llama.cpp computes differently.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from peft_space.errors import UserError
from peft_space.models.architecture import text_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_REMEDY = "Export the merged model and serve it with vLLM, or choose another base model."


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp names a model family, and where its weights differ from transformers'."""

    arch: gguf.MODEL_ARCH
    activation: str
    interleaved_rope: bool = False
    """The rotary embedding rotates adjacent numbers, so rows of q and k are in another order."""
    norms_from_zero: bool = False
    """The stored weight of a norm is an offset from one."""
    full_attention_every: int = 0
    """Every how many layers one attends to the whole text and the others to a window; 0 if
    llama.cpp does not support a window."""


ARCHITECTURES = {
    "llama": Architecture(gguf.MODEL_ARCH.LLAMA, "silu", interleaved_rope=True),
    "mistral": Architecture(gguf.MODEL_ARCH.LLAMA, "silu", interleaved_rope=True),
    "qwen2": Architecture(gguf.MODEL_ARCH.QWEN2, "silu"),
    "qwen3": Architecture(gguf.MODEL_ARCH.QWEN3, "silu"),
    "qwen3_moe": Architecture(gguf.MODEL_ARCH.QWEN3MOE, "silu"),
    "smollm3": Architecture(gguf.MODEL_ARCH.SMOLLM3, "silu", interleaved_rope=True),
    "granite": Architecture(gguf.MODEL_ARCH.GRANITE, "silu", interleaved_rope=True),
    "olmo2": Architecture(gguf.MODEL_ARCH.OLMO2, "silu"),
    "gemma": Architecture(gguf.MODEL_ARCH.GEMMA, "gelu_pytorch_tanh", norms_from_zero=True),
    "gemma2": Architecture(
        gguf.MODEL_ARCH.GEMMA2, "gelu_pytorch_tanh", norms_from_zero=True, full_attention_every=2
    ),
    "gemma3_text": Architecture(
        gguf.MODEL_ARCH.GEMMA3, "gelu_pytorch_tanh", norms_from_zero=True, full_attention_every=6
    ),
    "phi": Architecture(gguf.MODEL_ARCH.PHI2, "gelu_new"),
    "phi3": Architecture(gguf.MODEL_ARCH.PHI3, "silu"),
}
"""By the `model_type` of a config, or of its text part."""
_NO_ROPE_EVERY = 4
"""SmolLM3 has no RoPE in every fourth layer; llama.cpp knows no other number."""


def architecture_of(config: "PretrainedConfig") -> Architecture:
    """Return the architecture of a model.

    Raises:
        UserError: llama.cpp does not compute what transformers computes.
    """
    config = text_config(config)
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None:
        message = f"Models of type {config.model_type!r} cannot be written as GGUF; only "
        raise UserError("export.gguf_model", f"{message}{', '.join(ARCHITECTURES)}. {_REMEDY}")
    for differs, description in _differences(config, architecture):
        if differs:
            message = f"This model cannot be written as GGUF: {description}, which llama.cpp "
            raise UserError("export.gguf_model", f"{message}computes differently. {_REMEDY}")
    return architecture


def _differences(config: "PretrainedConfig", architecture: Architecture) -> list[tuple[bool, str]]:
    """All known differences: does it apply, and its description."""
    rope, every = _rope(config), architecture.full_attention_every
    scale, layers = (getattr(config, n, None) for n in ("query_pre_attn_scalar", "layer_types"))
    pattern = [
        "full_attention" if every and number % every == every - 1 else "sliding_attention"
        for number in range(len(layers or ()))
    ]
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    own = {"llama": {"llama3"}, "mistral": {"llama3"}, "phi3": {"longrope"}}
    rope_types = {"default", "linear", "yarn"} | own.get(config.model_type, set())
    partial = (rope.get("partial_rotary_factor") or 1.0) != 1.0
    other_scale = scale is not None and not math.isclose(scale, _llama_cpp_scalar(config))
    bidirectional = bool(getattr(config, "use_bidirectional_attention", False))
    return [
        (activation != architecture.activation, f"its activation is {activation}"),
        (rope["rope_type"] not in rope_types, f"its RoPE scaling is {rope['rope_type']}"),
        (partial and not config.model_type.startswith("phi"), "its RoPE rotates part of each head"),
        (bool(getattr(config, "qk_layernorm", False)), "it normalizes queries and keys"),
        (other_scale, f"its attention is scaled by {scale}"),
        (bool(every) and layers != pattern, f"not every {every}th layer has full attention"),
        (bidirectional, "its attention is bidirectional"),
        *_expert_differences(config),
        (_other_no_rope_layers(config), "it leaves out RoPE in other layers"),
    ]


def _expert_differences(config: "PretrainedConfig") -> list[tuple[bool, str]]:
    if config.model_type != "qwen3_moe":
        return []
    mixed = config.decoder_sparse_step != 1 or bool(config.mlp_only_layers)
    return [
        (not config.norm_topk_prob, "the weights of its chosen experts do not add up to 1"),
        (mixed, "some layers have no experts"),
    ]


def _other_no_rope_layers(config: "PretrainedConfig") -> bool:
    if config.model_type != "smollm3":
        return False
    has_rope = [
        int((number + 1) % _NO_ROPE_EVERY != 0) for number in range(config.num_hidden_layers)
    ]
    return list(map(int, config.no_rope_layers)) != has_rope


def _llama_cpp_scalar(config: "PretrainedConfig") -> float:
    """The attention scale of Gemma 2 and 3 in llama.cpp, which knows the largest by its layers."""
    largest = {"gemma2": 46, "gemma3_text": 62}[config.model_type]
    if config.num_hidden_layers == largest:
        return config.hidden_size // config.num_attention_heads
    return config.head_dim


def _rope(config: "PretrainedConfig") -> dict[str, Any]:
    """Of the layers with full attention."""
    return config.rope_parameters.get("full_attention", config.rope_parameters)


def _head_size(config: "PretrainedConfig") -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _context_length(config: "PretrainedConfig", architecture: Architecture) -> int:
    """If llama.cpp ignores a model's attention window, no longer than that window."""
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None) or ["sliding_attention"]
    if window and "sliding_attention" in layers and not architecture.full_attention_every:
        return min(config.max_position_embeddings, window)
    return config.max_position_embeddings


def add_parameters(writer: gguf.GGUFWriter, config: "PretrainedConfig") -> None:
    """Write the model's parameters, except for weights and vocabulary."""
    architecture = architecture_of(config)
    rope, head_size = _rope(config), _head_size(config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(_context_length(config, architecture))
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
    if config.model_type == "qwen3_moe":
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if config.model_type == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if config.model_type == "phi3":
        writer.add_sliding_window(0)  # llama.cpp has switched it off
        writer.add_rope_scaling_orig_ctx_len(_original_context_length(config, rope))
    if architecture.full_attention_every:
        writer.add_sliding_window(config.sliding_window)
    if "sliding_attention" in config.rope_parameters:
        writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    if (cap := getattr(config, "attn_logit_softcapping", None)) is not None:
        writer.add_attn_logit_softcapping(cap)
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        writer.add_final_logit_softcapping(cap)
    _add_rope_scaling(writer, config, rope)


def _original_context_length(config: "PretrainedConfig", rope: dict[str, Any]) -> int:
    return rope.get("original_max_position_embeddings") or config.max_position_embeddings


def _add_rope_scaling(
    writer: gguf.GGUFWriter, config: "PretrainedConfig", rope: dict[str, Any]
) -> None:
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(_original_context_length(config, rope))
        if rope.get("attention_factor") is not None:
            writer.add_rope_scaling_yarn_attn_factor(rope["attention_factor"])
        writer.add_rope_scaling_yarn_beta_fast(rope.get("beta_fast") or 32.0)
        writer.add_rope_scaling_yarn_beta_slow(rope.get("beta_slow") or 1.0)
    elif rope["rope_type"] == "longrope":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        original = rope["original_max_position_embeddings"]
        scale = rope.get("factor") or config.max_position_embeddings / original
        default = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        writer.add_rope_scaling_attn_factors(rope.get("attention_factor") or default)


def rope_tensors(config: "PretrainedConfig") -> dict[str, np.ndarray]:
    """Return the divisors of the rotary embedding's frequencies, unless there is a single one.

    Returns:
        Name -> (half of the rotated part of a head,), in float32.
    """
    rope = _rope(config)
    if rope["rope_type"] == "longrope":
        return {
            f"rope_factors_{kind}.weight": np.array(rope[f"{kind}_factor"], dtype=np.float32)
            for kind in ("long", "short")
        }
    if rope["rope_type"] != "llama3":
        return {}
    size, original = _head_size(config), rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    lengths = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, size, 2, dtype=np.float64) / size)
    mixed = (original / lengths - low) / (high - low)
    divisors = 1 / ((1 - mixed) / rope["factor"] + mixed)
    divisors = np.where(lengths > original / low, rope["factor"], divisors)
    divisors = np.where(lengths < original / high, 1.0, divisors)
    return {"rope_freqs.weight": divisors.astype(np.float32)}


TensorChange = Callable[[np.ndarray], np.ndarray]
"""Converts a weight between the layouts of transformers and llama.cpp; its shape stays."""


def tensor_change(name: str, config: "PretrainedConfig") -> TensorChange | None:
    """Return the conversion of a weight to llama.cpp's layout.

    Args:
        name: of the weight, or of a layer whose adapter's output side is converted.
        config: of the model.

    Returns:
        The conversion, or None if both layouts are the same.
    """
    architecture = ARCHITECTURES[config.model_type]
    layer = name.removesuffix(".weight").removesuffix(".bias")
    if architecture.norms_from_zero and name.endswith("norm.weight"):
        return lambda weight: weight + np.float32(1)
    if architecture.interleaved_rope and layer.endswith("q_proj"):
        return lambda weight: _interleave(weight, config.num_attention_heads)
    if architecture.interleaved_rope and layer.endswith("k_proj"):
        return lambda weight: _interleave(weight, config.num_key_value_heads)
    return None


def tensor_undo(name: str, config: "PretrainedConfig") -> TensorChange | None:
    """Return the inverse of `tensor_change`."""
    change = tensor_change(name, config)
    if change is None:
        return None
    if name.endswith("norm.weight"):
        return lambda weight: weight - np.float32(1)
    return lambda weight: weight[np.argsort(change(np.arange(len(weight))))]


def _interleave(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorder the rows of each head, (heads x size, …), from two halves to pairs."""
    halves = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)
