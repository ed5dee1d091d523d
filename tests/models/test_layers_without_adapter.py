"""Layers that text does not train get no adapter, and PEFT wraps exactly the others."""

import pytest
import torch
from peft import get_peft_model

from peft_space.errors import UserError
from peft_space.models.architecture import linear_layers, wrapped_layers
from peft_space.models.loading import adapter_config
from peft_space.recipe import Recipe
from tests.census.tiny_kinds import tiny_config

CASES = {
    # kind, task: layers that get no adapter, and why
    ("ctrl", "causal-lm"): {},  # layers and blocks have the same numbers as names
    ("zamba2", "causal-lm"): {"out_proj": "fused_kernel"},
    ("mamba", "causal-lm"): dict.fromkeys(("out_proj", "x_proj", "dt_proj"), "fused_kernel"),
    ("falcon_h1", "causal-lm"): {"out_proj": "fused_kernel"},
    ("llama4_text", "causal-lm"): {"router": "own_computation"},
    ("phimoe", "causal-lm"): {"router": "own_computation"},
    ("deepseek_v32", "causal-lm"): {"wq_b": "no_gradient", "wk": "no_gradient"},
    ("trocr", "causal-lm"): {"k_proj": "no_text", "out_proj": "no_text"},
    ("phi4_multimodal", "causal-lm"): {"img_projection_up": "no_text", "o_proj": "no_text"},
    ("squeezebert", "sequence-classification"): {},
    ("big_bird", "token-classification"): {"pooler": "no_gradient"},
    ("laguna", "causal-lm"): {"gate_proj": "lost_on_loading"},  # of shared experts
    ("inkling2_text", "causal-lm"): {"weight_proj": "lost_on_loading"},
    ("falcon", "causal-lm"): {},  # a subclass of Linear that computes the same
}


def layers_of(kind, task):
    return linear_layers(tiny_config(kind, task), task)


@pytest.mark.parametrize(("kind", "task"), CASES, ids=lambda value: value)
@pytest.mark.sample(1)
def test_layers_that_cannot_learn_are_left_out_and_peft_wraps_the_others(kind, task):
    layers = layers_of(kind, task)
    reasons = {name.rpartition(".")[2]: why for name, why in layers.left_out.items()}
    assert CASES[kind, task].items() <= reasons.items()
    recipe = Recipe(quantization="none")
    with torch.device("meta"):
        adapted = get_peft_model(layers.model, adapter_config(recipe, layers, task))
    wrapped = adapted.base_model.targeted_module_names
    assert sorted(wrapped) == sorted(wrapped_layers(recipe, layers)) == sorted(layers.names)


def test_a_layer_that_is_left_out_is_refused_with_its_reason():
    layers = layers_of("mamba", "causal-lm")
    with pytest.raises(UserError) as caught:
        wrapped_layers(Recipe(target_modules=["out_proj"]), layers)
    assert caught.value.code == "models.layer_left_out"


def test_a_model_without_a_layer_for_an_adapter_is_refused():
    layers = layers_of("ibert", "sequence-classification")
    with pytest.raises(UserError) as caught:
        wrapped_layers(Recipe(), layers)
    assert caught.value.code == "models.no_layers"
