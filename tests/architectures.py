"""More than 40 architectures, each tiny, with what must be wrapped in it, written by hand from the papers' and the models' own layer names."""

from dataclasses import dataclass, field
from typing import Any

VOCABULARY = 99
_LLAMA = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_ENCODER = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 66, "pad_token_id": 1, "type_vocab_size": 2,
}  # fmt: skip
_BART = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64, "pad_token_id": 1,
    "decoder_start_token_id": 2,
}  # fmt: skip
_T5 = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}
_GATED, _QKVO = ["gate_proj", "up_proj", "down_proj"], ["q_proj", "k_proj", "v_proj", "o_proj"]
_BERT_LAYERS = ["query", "key", "value", "dense"]


@dataclass(frozen=True)
class Architecture:
    """One kind of model: its config, the task, which layers get an adapter, which of them are attention, and what its head is called."""

    name: str
    model_type: str
    config: dict[str, Any]
    wrapped: list[str]
    attention: list[str]
    task: str = "causal-lm"
    head: str | None = "lm_head"
    saved: list[str] = field(default_factory=list)
    """Modules of the task's head that are trained in full."""


def _causal(name: str, model_type: str, wrapped: list[str], attention: list[str], **config: Any) -> Architecture:
    return Architecture(name, model_type, config, wrapped, attention)


def _like_llama(name: str, model_type: str, **config: Any) -> Architecture:
    return _causal(name, model_type, _QKVO + _GATED, _QKVO, **{**_LLAMA, **config})


def _encoder(name: str, model_type: str, task: str, saved: list[str], wrapped: list[str], attention: list[str], **config: Any):
    return Architecture(name, model_type, {**_ENCODER, **config}, wrapped, attention, task, None, saved)


ARCHITECTURES = [
    # decoders
    _like_llama("Llama", "llama"),
    _like_llama("Mistral", "mistral"),
    _like_llama("Qwen 2, 2.5", "qwen2"),
    _like_llama("Qwen 3", "qwen3"),
    _like_llama("Gemma 1", "gemma"),
    _like_llama("Gemma 2", "gemma2"),
    _like_llama("Gemma 3", "gemma3_text"),
    _like_llama("StableLM", "stablelm"),
    _like_llama("OLMo", "olmo"),
    _like_llama("OLMo 2", "olmo2"),
    _like_llama("Granite", "granite"),
    _like_llama("Cohere", "cohere"),
    _like_llama("Cohere 2", "cohere2"),
    _like_llama("SmolLM 3", "smollm3"),
    _like_llama("Helium", "helium"),
    _causal("Mixtral", "mixtral", _QKVO, _QKVO, **_LLAMA, num_local_experts=2, num_experts_per_tok=1),
    _causal("Qwen 3 MoE", "qwen3_moe", _QKVO, _QKVO, **_LLAMA, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16),
    _causal(
        "Phi 2", "phi", ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"], ["q_proj", "k_proj", "v_proj", "dense"],
        **{**_LLAMA, "partial_rotary_factor": 0.5},
    ),
    _causal("Phi 3", "phi3", ["o_proj", "qkv_proj", "gate_up_proj", "down_proj"], ["o_proj", "qkv_proj"], **_LLAMA),
    _causal("GPT-2", "gpt2", ["c_attn", "c_proj", "c_fc"], ["c_attn"], vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    _causal(
        "GPT-Neo", "gpt_neo", ["k_proj", "v_proj", "q_proj", "out_proj", "c_fc", "c_proj"], ["k_proj", "v_proj", "q_proj", "out_proj"],
        vocab_size=VOCABULARY, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], max_position_embeddings=64,
    ),
    _causal(
        "GPT-NeoX", "gpt_neox", ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"], ["query_key_value", "dense"], 
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
    ),
    _causal(
        "GPT-J", "gptj", ["k_proj", "v_proj", "q_proj", "out_proj", "fc_in", "fc_out"], ["k_proj", "v_proj", "q_proj", "out_proj"],
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4,
    ),
    _causal(
        "OPT", "opt", ["k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2"], ["k_proj", "v_proj", "q_proj", "out_proj"],
        vocab_size=VOCABULARY, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
        word_embed_proj_dim=32,
    ),
    _causal(
        "BLOOM", "bloom", ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"], ["query_key_value", "dense"],
        vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4,
    ),
    _causal(
        "Falcon", "falcon", ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"], ["query_key_value", "dense"],
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
    ),
    _causal(
        "GPT BigCode", "gpt_bigcode", ["c_attn", "c_proj", "c_fc"], ["c_attn"],
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64,
    ),
    _causal(
        "StarCoder 2", "starcoder2", [*_QKVO, "c_fc", "c_proj"], _QKVO, **_LLAMA,
    ),
    _causal(
        "DeepSeek V2", "deepseek_v2",
        ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"],  # PEFT takes the names of the others for experts
        ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"],
        **{**_LLAMA, "num_key_value_heads": 4}, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
        n_routed_experts=2, n_shared_experts=1, num_experts_per_tok=1, moe_intermediate_size=16, first_k_dense_replace=1, n_group=1,
        topk_group=1,
    ),
    # encoder-decoders
    Architecture("T5", "t5", _T5, ["q", "k", "v", "o", "wi", "wo"], ["q", "k", "v", "o"], "seq2seq-lm"),
    Architecture(
        "FLAN-T5", "t5", {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        ["q", "k", "v", "o", "wi_0", "wi_1", "wo"], ["q", "k", "v", "o"], "seq2seq-lm",
    ),
    Architecture("mT5", "mt5", _T5, ["q", "k", "v", "o", "wi_0", "wi_1", "wo"], ["q", "k", "v", "o"], "seq2seq-lm"),
    *(
        Architecture(
            name, kind, _BART, ["k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2"], ["k_proj", "v_proj", "q_proj", "out_proj"], "seq2seq-lm"
        )
        for name, kind in (("BART", "bart"), ("mBART", "mbart"), ("Pegasus", "pegasus"), ("Marian", "marian"), ("M2M 100", "m2m_100"))
    ),
    # encoders, and models of other kinds with a new head
    _encoder("BERT", "bert", "sequence-classification", ["classifier"], _BERT_LAYERS, ["query", "key", "value"]),
    _encoder("BERT, tags", "bert", "token-classification", ["classifier"], _BERT_LAYERS, ["query", "key", "value"]),
    _encoder("RoBERTa", "roberta", "sequence-classification", ["classifier"], _BERT_LAYERS, ["query", "key", "value"]),
    _encoder("RoBERTa, tags", "roberta", "token-classification", ["classifier"], _BERT_LAYERS, ["query", "key", "value"]),
    _encoder("XLM-R", "xlm-roberta", "sequence-classification", ["classifier"], _BERT_LAYERS, ["query", "key", "value"]),
    _encoder(
        "DistilBERT", "distilbert", "sequence-classification", ["pre_classifier", "classifier"],
        ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"], ["q_lin", "k_lin", "v_lin", "out_lin"],
        dim=32, hidden_dim=48, n_layers=2, n_heads=4,
    ),
    _encoder(
        "ALBERT", "albert", "sequence-classification", ["classifier"],
        ["embedding_hidden_mapping_in", *_BERT_LAYERS, "ffn", "ffn_output", "pooler"], _BERT_LAYERS, embedding_size=16,
    ),
    _encoder(
        "ELECTRA", "electra", "sequence-classification", ["classifier"], ["embeddings_project", *_BERT_LAYERS], ["query", "key", "value"],
        embedding_size=16,
    ),
    _encoder(
        "DeBERTa v1", "deberta", "sequence-classification", ["pooler", "classifier"],
        ["in_proj", "dense"], ["in_proj"],
    ),
    _encoder(
        "DeBERTa v2, v3", "deberta-v2", "sequence-classification", ["pooler", "classifier"],
        ["query_proj", "key_proj", "value_proj", "dense"], ["query_proj", "key_proj", "value_proj"],
        relative_attention=True, pos_att_type=["c2p", "p2c"], share_att_key=True,
    ),
    _encoder("ModernBERT", "modernbert", "sequence-classification", ["head", "classifier"], ["Wi", "Wo", "Wqkv"], ["Wqkv"], cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2),
    _encoder("MPNet", "mpnet", "sequence-classification", ["classifier"], ["q", "k", "v", "o", "dense"], ["q", "k", "v", "o"]),
    Architecture("Llama with labels", "llama", _LLAMA, _QKVO + _GATED, _QKVO, "sequence-classification", None, ["score"]),
    Architecture("Qwen 2 with tags", "qwen2", _LLAMA, _QKVO + _GATED, _QKVO, "token-classification", None, ["score"]),
    Architecture(
        "GPT-2 with labels", "gpt2", {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "pad_token_id": 0},
        ["c_attn", "c_proj", "c_fc"], ["c_attn"], "sequence-classification", None, ["score"],
    ),
    Architecture(
        "BART with labels", "bart", _BART, ["k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2"], ["k_proj", "v_proj", "q_proj", "out_proj"],
        "sequence-classification", None, ["classification_head"],
    ),
]  # fmt: skip
