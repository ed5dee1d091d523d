"""The internals of PEFT that the app uses behave as it expects."""

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

from peft_space.compat.peft import layers_taken_for_experts

SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def on_meta(config):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def test_names_of_experts_are_replaced_only_in_models_with_experts():
    names = ["q_proj", "w1", "w2", "w3"]
    assert layers_taken_for_experts(on_meta(LlamaConfig(**SIZES)), names) == []
    skipped = layers_taken_for_experts(on_meta(MixtralConfig(**SIZES)), names)
    assert skipped == ["w1", "w2", "w3"]
