"""Tiny random models of every kind that transformers has for the app's tasks.

A kind's own default config is made small: known sizes are replaced, lists with an entry for each
layer are shortened so that one layer of each sort remains, and vocabularies become the built-in
tokenizer's. A few kinds need more; `MORE` has it.
"""

import json
import shutil
from functools import partial

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto import modeling_auto

from peft_space.demo import MODEL_DIR
from peft_space.models.architecture import auto_class, tasks_of

KINDS = {
    "causal-lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "seq2seq-lm": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "sequence-classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "token-classification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
}
"""The kinds of models that transformers lists, by task."""
MAX_PARAMETERS = 60_000_000
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_VOCABULARY = len(json.loads((MODEL_DIR / "tokenizer.json").read_text())["model"]["vocab"])

SIZES: dict[int, str] = {
    1: "n_group num_expert_group topk_group first_k_dense_replace num_dense_layers mamba_n_groups "
    "mamba_ngroups num_nextn_predict_layers",
    2: "num_experts_per_tok num_experts_per_token moe_topk moe_top_k moe_k linear_num_key_heads "
    "o_groups zero_expert_num",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads "
    "decoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads "
    "attention_heads swa_num_attention_heads conf_num_attention_heads linear_num_value_heads "
    "linear_num_heads index_n_heads num_experts num_local_experts n_routed_experts "
    "moe_num_experts split_ngram_parts",
    8: "qk_rope_head_dim qk_nope_head_dim rotary_dim laurel_rank hidden_size_per_layer_input "
    "mamba_dt_rank time_step_rank hc_lowrank mamba_n_heads mamba_num_heads num_filters "
    "base_channels",
    16: "head_dim kv_channels d_head dim_head d_kv attention_head_size attention_head_dim "
    "swa_head_dim v_head_dim index_head_dim linear_head_dim linear_key_head_dim "
    "linear_value_head_dim qk_head_dim mamba_d_head mamba_headdim mamba_head_dim "
    "global_head_dim q_lora_rank kv_lora_rank o_lora_rank state_size mamba_d_state "
    "ssm_state_size chunk_size mamba_chunk_size patch_size",
    32: "moe_intermediate_size shared_expert_intermediate_size image_size sliding_window "
    "shared_experts_intermediate_size shared_intermediate_size expert_ffn_hidden_size "
    "moe_shared_expert_intermediate_size attention_chunk_size",
    64: "hidden_size d_model n_embd dim emb_dim embedding_dim hidden_size_global lru_width "
    "word_embed_proj_dim attention_hidden_size embedding_size output_embedding_size "
    "backbone_hidden_size input_embedding_size embed_dim vision_output_dim out_hidden_size "
    "projector_output_dim adapter_out_dim ple_embed_dim router_hidden_size dim_model_base "
    "ngram_vocab_size_base shape_vocab_size pronunciation_vocab_size shape_embed_dim "
    "adapter_in_dim",
    96: "intermediate_size d_ff ffn_dim encoder_ffn_dim decoder_ffn_dim dff dim_ff d_inner "
    "ffn_hidden_size feed_forward_size mlp_dim dense_intermediate_size intermediate_size_mlp",
    128: "mamba_d_ssm original_max_position_embeddings max_source_positions",
    256: "max_position_embeddings n_positions n_ctx max_seq_len context_length model_max_length "
    "max_target_positions position_bias_max_distance encoder_hash_byte_group_vocab",
}
_SIZE = {name: size for size, names in SIZES.items() for name in names.split()}
_SIZE["num_kv_shared_layers"] = 0
_LAYERS = (
    "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers depth num_blocks "
    "num_decoder_layers num_encoder_layers conf_num_hidden_layers num_layers_per_stack "
    "num_global_layers"
).split()
_KEY_HEADS = (
    "num_key_value_heads num_kv_heads kv_n_heads swa_num_key_value_heads num_query_groups"
).split()
_VOCABULARIES = (
    "vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size"
).split()
_OF_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")

_ALL_KEY_HEADS = (
    "bailing_hybrid glm4_moe_lite kimi_linear minicpm3 axk1 axk2 deepseek_v3 deepseek_v32 "
    "glm_moe_dsa longcat_flash youtu dots3_note_text cwm mistral4"
).split()
_HEADS_OF_16 = "hunyuan_v1_dense hunyuan_v1_moe ministral".split()
_STARTS_AT_0 = "t5 longt5 switch_transformers umt5 mt5 encoder-decoder".split()
_ROPE = {"rope_theta": 10000.0, "rope_type": "default"}
MORE: dict[str, dict] = {
    **{kind: {"num_key_value_heads": 4} for kind in _ALL_KEY_HEADS},
    **{kind: {"head_dim": 16} for kind in _HEADS_OF_16},
    **{kind: {"decoder_start_token_id": 0} for kind in _STARTS_AT_0},
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}, "head_dim": 16},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 2, "moe_top_k": 1},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "num_key_value_heads": 4},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note": {"num_key_value_heads": 4, "adapter_input_size": 64},
    "esm": {"vocab_size": _VOCABULARY, "mask_token_id": 5},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hrm_text": {"num_layers_per_stack": 1, "num_hidden_layers": 8},  # of 2 cycles of 4 stacks
    "jamba": {
        "attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1,
        "expert_layer_period": 2,
    },
    "layoutlmv3": {"coordinate_size": 11, "shape_size": 10},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lilt": {"hidden_size": 96},
    "luke": {"entity_vocab_size": 50, "entity_emb_size": 16},
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 4, "indexer_kv_heads": 2, "indexer_head_dim": 16, "indexer_budget": 64,
        "indexer_compress_ratio": 4, "layer_types": ["linear_attention", "full_attention"],
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "is_decoder": True, "axial_pos_shape": [16, 16], "axial_pos_embds_dim": [32, 32],
        "attn_layers": ["local", "lsh"],
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 5, "attention_hidden_size": 128, "attention_head_dim": 32,
        "layers_block_type": ["mamba", "mamba", "hybrid", "mamba", "hybrid"],
        "n_mamba_heads": 2, "num_key_value_heads": 4,
    },
    "zamba2": {
        "num_hidden_layers": 3, "hybrid_layer_ids": [1, 2], "attention_hidden_size": 128,
        "layers_block_type": ["mamba", "hybrid", "hybrid"], "attention_head_dim": 32,
        "n_mamba_heads": 8, "mamba_headdim": 16, "num_key_value_heads": 4, "num_query_groups": 4,
    },
}  # fmt: skip
"""What kinds need in addition, or instead."""
_NEEDED = (
    "dbrx reformer xmod t5 longt5 switch_transformers nemotron dots1 esm luke layoutlmv3 lilt "
    "encoder-decoder gpt_neo mamba2"
).split()
"""Kinds that need theirs in every variant."""


def _tiny_values(config, variant, vocabulary):
    """Small values for a config, and for its parts.

    The variants are tried in turn: with one layer of each sort and few key heads; with two layers
    and all key heads; and with the own sizes of heads.
    """
    values, depth = config.to_dict(), _depth(config)
    kept = _kept_layers(values, depth, variant)
    foreign = iter(range(_VOCABULARY, vocabulary + 100))
    tiny = {}
    for name, value in values.items():
        if name in config.sub_configs:
            part = getattr(config, name, None)
            if isinstance(part, PreTrainedConfig):
                tiny[name] = _tiny_values(part, variant, vocabulary) | {
                    "model_type": part.model_type
                }
        elif kept and _is_by_layer(name, value, depth):
            tiny[name] = [value[place] for place in kept]
        else:
            small = _tiny_value(name, value, values, variant, vocabulary, foreign, len(kept) or 2)
            if small is not _AS_IT_IS:
                tiny[name] = small
    if variant == "A" or config.model_type in _NEEDED:
        tiny |= MORE.get(config.model_type, {})
    return tiny


_AS_IT_IS = object()


def _tiny_value(name, value, values, variant, vocabulary, foreign, num_layers):
    """A small value in place of one of a config, or `_AS_IT_IS`."""
    if (token := _token(name, value, variant, foreign)) is not _AS_IT_IS:
        return token
    if isinstance(value, bool):
        return _AS_IT_IS
    is_number = isinstance(value, int)
    if name in _VOCABULARIES and is_number:
        return vocabulary
    if name == "vocab_offset" and is_number:
        return _VOCABULARY
    if name in _LAYERS and is_number:
        return num_layers
    if name in _KEY_HEADS and value:
        return 2 if variant == "A" else 4
    size = _SIZE.get(name)
    if size in (8, 16) and variant == "C":
        return _AS_IT_IS
    if size is not None and is_number and value > size:
        return size
    if size is not None and isinstance(value, list) and all(isinstance(one, int) for one in value):
        return [size] * len(value)
    if name in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
        return _rope(value, values.get("partial_rotary_factor") or 1)
    return _AS_IT_IS


def _token(name, value, variant, foreign):
    """The built-in tokenizer's token, a token that it does not have, or `_AS_IT_IS`."""
    if name in ("pad_token_id", "pad_index"):
        return 0
    if name == "eos_token_id":
        return 1
    if name == "bos_token_id":
        return None if variant == "A" else 1
    is_token = name.endswith(("token_id", "token_index"))
    starts = ("decoder_start", "forced_eos", "sep", "cls", "eod")
    if is_token and name.startswith(starts) and value is not None:
        return 1
    if name in ("begin_suppress_tokens", "suppress_tokens") and value:
        return []
    if is_token and isinstance(value, int) and value >= _VOCABULARY:
        return next(foreign)
    return _AS_IT_IS


def _rope(value, share):
    """Rotary parameters whose sections suit heads of 16."""
    value = json.loads(json.dumps(value))
    for part in [value, *(part for part in value.values() if isinstance(part, dict))]:
        if part.get("mrope_section"):
            pairs = int(16 * part.get("partial_rotary_factor", share)) // 2
            part["mrope_section"] = [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]
    return value


def _depth(config):
    found = (getattr(config, name, None) for name in _OF_LAYERS)
    return next((depth for depth in found if isinstance(depth, int)), 0)


def _is_by_layer(name, value, depth):
    return isinstance(value, list) and len(value) == depth > 2 and name != "attention_types"


def _kept_layers(values, depth, variant):
    """The places of one layer of each sort, at most four; nothing if no list tells layers apart."""
    lists = [value for name, value in values.items() if _is_by_layer(name, value, depth)]
    if not lists:
        return []
    first = {}
    for place, sort in enumerate(zip(*lists, strict=True)):
        first.setdefault(str(sort), place)
    kept = sorted(first.values())[:4]
    return kept if variant == "A" and len(kept) > 1 else [0, 1]


def _num_foreign_tokens(config):
    """The number of tokens that a config names and the built-in tokenizer does not have."""
    parts = [getattr(config, part, None) for part in config.sub_configs]
    own = sum(
        isinstance(value, int) and value >= _VOCABULARY
        for name, value in config.to_dict().items()
        if name.endswith(("token_id", "token_index"))
    )
    return own + sum(_num_foreign_tokens(p) for p in parts if isinstance(p, PreTrainedConfig))


def trained_task(kind, task):
    """The task that the app trains such a model for: encoder-decoders are no causal LMs."""
    possible = tasks_of(CONFIG_MAPPING[kind]())
    return "seq2seq-lm" if task not in possible and "seq2seq-lm" in possible else task


def build(kind, task, folder):
    """Write a tiny random model of a kind with the built-in tokenizer.

    A variant of which transformers computes the loss of a padded batch is preferred.

    Returns:
        None, or the reasons why there is no model.
    """
    failures, spare = [], None
    for variant in "ABC":
        try:
            model = _random_model(kind, task, variant)
        except Exception as error:  # noqa: BLE001 - any config may reject small values
            failures.append(f"{type(error).__name__}: {' '.join(str(error).split())[:120]}")
            continue
        if _computes(model, task):
            _save(model, folder)
            return None
        spare = spare or model
    if spare is None:
        return failures
    _save(spare, folder)
    return None


def _computes(model, task):
    try:
        return _loss(model, task) == _loss(model, task)  # not if it is not a number
    except Exception:  # noqa: BLE001 - then it is the app that must say so
        return False


def tiny_config(kind, task, variant="A"):
    """A small config of a kind. See `_tiny_values` for the variants."""
    own = CONFIG_MAPPING[kind]()
    vocabulary = _VOCABULARY + (16 if _num_foreign_tokens(own) else 0)
    config = CONFIG_MAPPING[kind](**_tiny_values(own, variant, vocabulary))
    if "classification" in task:
        config.num_labels = 2
    return config


def _random_model(kind, task, variant):
    config = tiny_config(kind, task, variant)
    make = partial(auto_class(task).from_config, config)
    with torch.device("meta"):
        size = make().num_parameters()
    if size > MAX_PARAMETERS:
        raise ValueError(f"too large: {size:,} parameters")
    torch.manual_seed(1)
    return make().float()


def _loss(model, task):
    """The loss of a padded batch, and a gradient, as transformers computes them without the app."""
    torch.manual_seed(0)
    tokens = torch.randint(5, 200, (2, 12))
    mask = torch.ones_like(tokens)
    if task == "sequence-classification":
        tokens[:, -1] = 1
        labels = torch.tensor([0, 1])
    elif task == "token-classification":
        labels = tokens % 2
    else:
        mask[1, :3] = 0
        labels = torch.where(mask.bool(), tokens, -100)
    inputs = {"input_ids": tokens, "attention_mask": mask, "labels": labels}
    model.eval()
    loss = model(**inputs).loss
    loss.backward()
    model.zero_grad()
    return loss.item()


def _save(model, folder):
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    for name in _TOKENIZER_FILES:
        shutil.copy(MODEL_DIR / name, folder / name)
