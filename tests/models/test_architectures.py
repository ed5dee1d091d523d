"""Each architecture is wrapped as a hand-written list says, trains, and reloads unchanged."""

import pytest
import torch
from peft import PeftModel
from transformers import CONFIG_MAPPING, AutoConfig

from peft_space.models.architecture import (
    auto_class,
    linear_layers,
    num_places,
    num_places_of,
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
@pytest.mark.sample(1)
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


MORE_POSITIONS = [
    ("codegen", {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64, "rotary_dim": 4}),
    ("ctrl", {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64, "dff": 48}),
    # its limits of time steps end in infinity
    ("mamba2", {"hidden_size": 32, "num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8}),
    ("mpt", {"d_model": 32, "n_layers": 1, "n_heads": 4, "max_seq_len": 64}),
    ("openai-gpt", {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64}),
]
POSITIONS = [
    *((one.name, one.model_type, one.config, one.task) for one in ARCHITECTURES),
    *((kind, kind, {"vocab_size": 99, **values}, "causal-lm") for kind, values in MORE_POSITIONS),
]


@pytest.mark.parametrize(
    ("kind", "values", "task"), [one[1:] for one in POSITIONS], ids=[one[0] for one in POSITIONS]
)
@pytest.mark.sample(14)
def test_a_model_reads_as_many_tokens_as_it_has_positions(kind, values, task):
    config = AutoConfig.for_model(kind, **values)
    places = num_places_of(config, task)
    model = auto_class(task).from_config(config).eval()
    assert num_places(model) == places

    def read(length):
        ids = torch.full((1, length), 11)
        ids[0, -1] = 2  # a head of BART looks for EOS
        decoder = {"decoder_input_ids": ids} if task == "seq2seq-lm" else {}
        with torch.inference_mode():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), **decoder)

    if places is None:
        read(80)
        return
    read(places)
    with pytest.raises((IndexError, RuntimeError)):
        read(places + 1)
