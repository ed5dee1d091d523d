"""Log-probabilities of labels equal those from all logits, for every architecture."""

import pytest
import torch
from transformers import CONFIG_MAPPING, Cohere2Config, GraniteConfig, ModernBertDecoderConfig

from peft_space.data.arrow_store import MASKED
from peft_space.models.architecture import auto_class, linear_layers
from peft_space.models.label_scorer import LabelScorer
from peft_space.models.loading import adapter_config
from peft_space.recipe import Recipe
from tests.fixtures.architectures import ARCHITECTURES, VOCABULARY

RECIPE = Recipe(quantization="none", lora_rank=2, lora_dropout=0.0)
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
CONFIGS = {
    architecture.name: (CONFIG_MAPPING[architecture.model_type], architecture.config)
    for architecture in ARCHITECTURES
    if architecture.task in ("causal-lm", "seq2seq-lm")
} | {
    "scaled, Granite": (GraniteConfig, SMALL | {"logits_scaling": 8.0}),
    "two layers after the body": (
        ModernBertDecoderConfig,
        SMALL | {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "scaled, Cohere": (Cohere2Config, SMALL | {"logit_scale": 0.25}),
}
TASKS = {architecture.name: architecture.task for architecture in ARCHITECTURES}


def model_of(name):
    """A tiny model of an architecture with an adapter."""
    from peft import get_peft_model

    config_class, values = CONFIGS[name]
    task = TASKS.get(name, "causal-lm")
    config = config_class(**values)
    torch.manual_seed(1)
    model = auto_class(task).from_config(config)
    adapter = adapter_config(RECIPE, linear_layers(config, task), task)
    adapter.init_lora_weights = False
    return get_peft_model(model, adapter).eval()


def batch():
    torch.manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (2, 9))
    labels = ids.clone()
    labels[0, :4] = labels[1, 6:] = MASKED
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    return {"input_ids": ids, "attention_mask": mask}, labels


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.sample(1)
def test_scores_and_gradients_equal_those_from_all_logits(name):
    model = model_of(name)
    base = model.get_base_model()
    inputs, labels = batch()
    expected = model(**inputs, labels=labels)
    expected_loss = expected.loss
    expected_loss.backward()
    expected_gradients = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    model.zero_grad()

    scorer = LabelScorer(base)
    scores = scorer(labels, inputs)
    loss = -scores.log_probs.sum() / len(scores.log_probs)
    loss.backward()
    assert loss.item() == pytest.approx(expected_loss.item(), abs=1e-5)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name in expected_gradients:
            assert torch.allclose(parameter.grad, expected_gradients[parameter_name], atol=1e-5), (
                parameter_name
            )
    assert scorer.computes_only_labeled


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_that_is_trained_gets_the_same_gradient(tied):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=tied))
    lora = LoraConfig(
        r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model, lora).eval()
    inputs, labels = batch()
    adapted(**inputs, labels=labels).loss.backward()
    weight = adapted.get_base_model().get_output_embeddings().weight
    expected = weight.grad.clone()
    adapted.zero_grad()
    scores = LabelScorer(adapted.get_base_model())(labels, inputs)
    (-scores.log_probs.mean()).backward()
    assert expected.any()
    assert torch.allclose(weight.grad, expected, atol=1e-6)
