"""Each architecture is wrapped as a hand-written list says, trains, and reloads unchanged."""

import pytest
import torch
from peft import PeftModel
from transformers import CONFIG_MAPPING

from peft_space.models.architecture import (
    auto_class,
    linear_layers,
    target_modules,
    tasks_of,
    wrapped_layers,
)
from peft_space.models.loading import check_adapter_fits_base, load_base_model, new_adapter
from peft_space.models.resolve import find_base
from peft_space.recipe import Recipe, TaskSpec
from tests.fixtures.architectures import ARCHITECTURES, VOCABULARY

RECIPE = Recipe(quantization="none", lora_rank=2, lora_dropout=0.0)
LABELS = ("one", "two", "three")


def config_of(architecture):
    return CONFIG_MAPPING[architecture.model_type](**architecture.config)


def batch_of(task):
    torch.manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (2, 8))
    if task == "sequence-classification":
        ids[:, -1] = 2  # BART classifies at the end-of-text token
        return {"input_ids": ids, "labels": torch.tensor([0, 2])}
    return {
        "input_ids": ids,
        "labels": ids % len(LABELS) if task == "token-classification" else ids,
    }


def test_there_are_more_than_forty_architectures():
    assert len({architecture.name for architecture in ARCHITECTURES}) == len(ARCHITECTURES) > 40


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_an_architecture_is_wrapped_trained_and_reloaded_unchanged(architecture, tmp_path):
    task_spec = TaskSpec(architecture.task, LABELS if "classification" in architecture.task else ())
    config = config_of(architecture)
    layers = linear_layers(config, task_spec.task)
    assert task_spec.task in tasks_of(config)
    assert sorted(layers.counts) == sorted(architecture.wrapped)
    attention = RECIPE.model_copy(update={"target_modules": "attention"})
    assert sorted(target_modules(attention, layers)) == sorted(architecture.attention)
    assert (layers.head, layers.new_modules) == (architecture.head, architecture.saved)

    torch.manual_seed(1)
    auto_class(task_spec.task).from_config(config).save_pretrained(tmp_path / "base")
    base = find_base(str(tmp_path / "base"))
    model = new_adapter(
        load_base_model(base, RECIPE, "float32", task_spec), RECIPE, base, task_spec
    )
    assert sorted(model.base_model.targeted_module_names) == sorted(wrapped_layers(RECIPE, layers))
    heads = {
        name.split(".modules_to_save")[0].rpartition("base_model.model.")[2]
        for name, _ in model.named_parameters()
        if "modules_to_save" in name
    }
    assert heads == set(architecture.saved)

    batch = batch_of(task_spec.task)
    before, after = train_two_steps(model, batch)
    assert after < before
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    check_adapter_fits_base(tmp_path / "adapter", base, task_spec.task, task_spec.labels)
    again = PeftModel.from_pretrained(
        load_base_model(base, RECIPE, "float32", task_spec), tmp_path / "adapter"
    )
    with torch.inference_mode():
        assert torch.equal(model.eval()(**batch).logits, again.eval()(**batch).logits)


def train_two_steps(model, batch):
    """The losses before and after."""
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2
    )
    losses = []
    for _ in range(3):
        model.eval()  # without dropout, so that the losses can be compared
        loss = model(**batch).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses[0], losses[2]
