"""Rows that are laid end to end train like padded ones, or are not packed."""

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    InklingTextConfig,
    MistralConfig,
)

from peft_space.data.arrow_store import TokenizedExample
from peft_space.data.batches import collate, collate_packed
from peft_space.models.architecture import auto_class, linear_layers
from peft_space.models.label_scorer import own_forward, score_labels_only
from peft_space.models.loading import adapter_config
from peft_space.models.packing import ATTENTION, pack_rows, why_not_packed
from peft_space.recipe import Recipe
from tests.fixtures.architectures import ARCHITECTURES, VOCABULARY

RECIPE = Recipe(quantization="none", lora_rank=2, lora_dropout=0.0)
SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
CONFIGS = {
    architecture.name: (CONFIG_MAPPING[architecture.model_type], architecture.config)
    for architecture in ARCHITECTURES
    if architecture.task == "causal-lm"
} | {
    "window": (MistralConfig, SMALL | {"sliding_window": 4}),
    "window and soft cap": (Gemma2Config, SMALL | {"sliding_window": 4}),
    "windows in some layers": (
        Gemma3TextConfig,
        SMALL | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}


def config_of(name):
    """The config of an architecture, without dropout."""
    config_class, values = CONFIGS[name]
    config = config_class(**values)
    for field in vars(config):
        if "drop" in field and isinstance(getattr(config, field), float):
            setattr(config, field, 0.0)
    return config


def adapted(name):
    """A tiny model of an architecture with an adapter."""
    from peft import get_peft_model

    config = config_of(name)
    torch.manual_seed(1)
    adapter = adapter_config(RECIPE, linear_layers(config))
    adapter.init_lora_weights = False
    return get_peft_model(auto_class("causal-lm").from_config(config), adapter).eval()


@pytest.fixture
def model(request):
    """A tiny model of an architecture with an adapter."""
    return adapted(request.param)


def examples():
    torch.manual_seed(0)
    return [
        TokenizedExample(row, torch.randint(3, VOCABULARY, (length,)).tolist(), [(start, length)])
        for row, (start, length) in enumerate([(0, 9), (2, 5), (7, 12)])
    ]


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.item(), {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("model", CONFIGS, indirect=True)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.sample(1)
def test_packed_and_padded_rows_give_the_same_loss_and_gradient(model, checkpointing, request):
    reason = why_not_packed(model, longest=12)
    own_forward(model)
    score_labels_only(model)
    expected = loss_and_gradients(model, collate(examples(), 0))
    if reason:
        assert model.get_base_model().config._attn_implementation != ATTENTION
        assert len(reason) > 10
        return
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    pack_rows(model)
    for batch in (collate_packed(examples()), collate(examples(), 0)):
        loss, gradients = loss_and_gradients(model, batch)
        assert loss == pytest.approx(expected[0], abs=1e-6)
        for name, gradient in expected[1].items():
            assert torch.allclose(gradients[name], gradient, atol=1e-6), name


@pytest.mark.parametrize("name", ["BLOOM", "Falcon", "GPT-J", "GPT-Neo"])
def test_an_architecture_with_its_own_attention_is_padded_with_the_reason(name):
    """BLOOM and Falcon put positions into attention (ALiBi)."""
    assert "attention interface" in why_not_packed(adapted(name), 12)


@pytest.mark.parametrize(
    ("config_class", "own", "reason"),
    [
        (GptOssConfig, {"num_local_experts": 2, "num_experts_per_tok": 1}, "s_aux"),
        (
            InklingTextConfig,
            {"n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32},
            "position_bias",
        ),
    ],
)
def test_attention_that_depends_on_more_than_its_rows_is_padded(config_class, own, reason):
    """In a new model they are so small that the states hardly show it."""
    from peft import get_peft_model

    config = config_class(**SMALL, **own)
    model = auto_class("causal-lm").from_config(config)
    adapted = get_peft_model(model, adapter_config(RECIPE, linear_layers(config))).eval()
    assert f"`{reason}`" in why_not_packed(adapted, 12)


@pytest.mark.slow
def test_at_least_twelve_architectures_are_packed():
    assert sum(why_not_packed(adapted(name), 12) is None for name in CONFIGS) >= 12
