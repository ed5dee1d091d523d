"""The internals of PEFT that the app uses behave as it expects."""

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

from peft_space.compat.peft import (
    dequantized_weight,
    layers_taken_for_experts,
    matching_pattern,
    set_input_casts,
)

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


def test_a_plain_weight_is_returned_as_it_is():
    layer = torch.nn.Linear(3, 2)
    assert torch.equal(dequantized_weight(layer), layer.weight)


@pytest.mark.parametrize("kind", ["Linear4bit", "Linear8bitLt"])
def test_a_quantized_weight_is_unpacked_to_its_shape(kind):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    plain = torch.nn.Linear(64, 32, bias=False)
    settings = {"quant_type": "nf4"} if kind == "Linear4bit" else {"has_fp16_weights": False}
    layer = getattr(bitsandbytes.nn, kind)(64, 32, bias=False, **settings)
    layer.load_state_dict(plain.state_dict())
    layer = layer.to("cpu")
    weight = dequantized_weight(layer).float()
    assert weight.shape == (32, 64)
    assert (weight - plain.weight).abs().max() < 0.2 * plain.weight.abs().max()
    assert not weight.requires_grad


def test_a_pattern_is_matched_as_peft_matches_it():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.k_proj, self.v_proj = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    config = LoraConfig(r=2, lora_alpha=4, target_modules=["k_proj", "v_proj"])
    config.alpha_pattern = {"k_proj": 6}
    adapted = get_peft_model(Model(), config).base_model.model
    for name in ("k_proj", "v_proj"):
        alpha = config.alpha_pattern.get(matching_pattern(config.alpha_pattern, name), 4)
        assert getattr(adapted, name).scaling["default"] == alpha / 2


@pytest.mark.parametrize(("enabled", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_casts_of_inputs_can_be_switched_off(enabled, dtype):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, dtype=torch.bfloat16))
    layer = inject_adapter_in_model(LoraConfig(target_modules=["0"], r=2), model)[0]
    layer.lora_A["default"].float()
    dtypes = []
    layer.lora_A["default"].register_forward_pre_hook(
        lambda module, inputs: dtypes.append(inputs[0].dtype)
    )
    set_input_casts(layer, enabled)
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.zeros(1, 4, dtype=torch.bfloat16))
    assert dtypes == [dtype]
