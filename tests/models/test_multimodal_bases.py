"""Models with a vision tower learn from text, and the tower gets no adapter."""

import contextlib
import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Emu3Config

from peft_space import operations
from peft_space.evaluation.generate import tokenize_prompt
from peft_space.export.merge import put_back
from peft_space.models.architecture import linear_layers, whole_class
from peft_space.models.config_values import text_config
from peft_space.models.loading import load_adapted, load_base_model, new_adapter
from peft_space.models.resolve import find_base
from peft_space.models.special_tokens import set_special_tokens
from peft_space.recipe import Recipe
from peft_space.runs.events import Finished
from peft_space.training.prepare import make_run
from peft_space.training.train import train
from tests.census.tiny_kinds import tiny_config
from tests.fixtures import tiny_models
from tests.fixtures.task_rows import labelled

MAKERS = {"Gemma 3": tiny_models.gemma3, "Qwen3.5": tiny_models.qwen3_5}


@pytest.fixture(
    scope="module",
    params=["Gemma 3", pytest.param("Qwen3.5", marks=pytest.mark.slow)],
)
def base(request, tmp_path_factory):
    """The folder of a tiny model with a vision tower."""
    return MAKERS[request.param](tmp_path_factory.mktemp("multimodal") / "base")


def _train(run):
    with run.lock():
        return train(run)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.sample(1)
@pytest.mark.slow
def test_text_is_trained_scored_merged_and_imported(base, quantization, tmp_path):
    recipe = Recipe(
        base_model=base, quantization=quantization, max_steps=3, batch_size=4, max_length=128
    )
    run = make_run(tmp_path / "run", "demo", recipe)
    assert isinstance(_train(run), Finished)

    weights = load_file(run.adapter / "adapter_model.safetensors")
    assert weights
    assert not [name for name in weights if "vision" in name or "visual" in name]
    assert all(value.any() for name, value in weights.items() if "lora_B" in name)
    scores = operations.evaluate(str(run.directory))
    assert scores["adapter"]["loss"] < scores["base"]["loss"]
    answers = operations.compare(str(run.directory), ["Hello"], sampling={"max_new_tokens": 4})
    assert answers["fairness"]["fair"]
    merged = operations.export(str(run.directory), str(tmp_path / "merged"), {"target": "merged"})
    assert merged["proof"]["passed"]

    imported = operations.import_adapter(
        str(tmp_path / "again"),
        str(run.adapter),
        "demo",
        {"quantization": quantization, "max_steps": 1, "batch_size": 4, "max_length": 128},
    )
    assert operations.evaluate(imported["run"])["adapter"] == scores["adapter"]


@pytest.mark.slow
def test_the_merged_model_keeps_its_class_and_its_other_half(base, tmp_path):
    processor = {"image_processor_type": "X", "auto_map": {"AutoImageProcessor": "code.X"}}
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    recipe = Recipe(
        base_model=str(folder), quantization="none", max_steps=2, batch_size=2, max_length=64
    )
    run = make_run(tmp_path / "run", "demo", recipe)
    assert isinstance(_train(run), Finished)
    out = tmp_path / "merged"
    choices = {"target": "merged", "dtype": "float32"}
    assert operations.export(str(run.directory), str(out), choices)["proof"]["passed"]

    config, written = (json.loads((at / "config.json").read_text()) for at in (folder, out))
    assert written["architectures"] == config["architectures"]
    before, after = (load_file(at / "model.safetensors") for at in (folder, out))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not [name for name in changed if "vision" in name or "visual" in name]
    kept = json.loads((out / "preprocessor_config.json").read_text())
    assert kept == {"image_processor_type": "X"}, "it names no code"

    model_class = getattr(transformers, config["architectures"][0])
    whole = model_class.from_pretrained(out, dtype=torch.float32).eval()
    adapted = load_adapted(run)
    ids = torch.tensor([tokenize_prompt(adapted, [{"role": "user", "content": "Hello"}])])
    with torch.inference_mode():
        logits = whole(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        trained = adapted.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert torch.allclose(logits, trained, atol=1e-4)


HALVES = ["emu3", "llama4", "mllama", "qwen3_5", "qwen3_5_moe", "qwen4_exp"]


def a_tiny_config(kind):
    """Some kinds refuse some of the small values, and Emu3 builds with none of them."""
    if kind == "emu3":
        return Emu3Config(vocabulary_map={"<image>": 0})
    for variant in "AB":
        with contextlib.suppress(Exception):
            return tiny_config(kind, "causal-lm", variant)
    return tiny_config(kind, "causal-lm", "C")


@pytest.mark.parametrize("kind", HALVES)
def test_a_text_half_finds_its_place_in_the_whole_model(kind):
    config = a_tiny_config(kind)
    with torch.device("meta"):
        half = AutoModelForCausalLM.from_config(config)
        whole = whole_class(config, "causal-lm")(copy.deepcopy(config))
    tower = {name for name, _ in whole.named_parameters() if "vision" in name or "visual" in name}
    assert put_back(half, whole) is whole
    inside = {id(parameter) for parameter in whole.parameters()}
    assert inside.issuperset(map(id, half.parameters()))
    assert tower <= {name for name, _ in whole.named_parameters()}
    assert len(inside) == len(list(whole.parameters()))
    assert len(inside) > len(list(half.parameters()))


@pytest.mark.slow
def test_a_classifier_finds_the_end_of_a_padded_text(base, tmp_path, write):
    rows = str(write("rows.json", labelled()))
    recipe = Recipe(
        base_model=base, max_steps=2, batch_size=4, max_length=64, target_modules="attention"
    )
    assert isinstance(_train(make_run(tmp_path / "run", rows, recipe)), Finished)


def test_layers_of_the_tower_are_neither_offered_nor_matched_by_name(base):
    layers = linear_layers(find_base(base).config)
    assert not [name for name in layers.names if "vis" in name]
    recipe = Recipe(base_model=base, quantization="none", target_modules=sorted(layers.counts))
    model = load_base_model(find_base(base), recipe, "float32")
    adapted = new_adapter(model, recipe, find_base(base))
    assert sorted(adapted.base_model.targeted_module_names) == sorted(layers.names)


def test_the_padding_token_is_set_in_each_part_of_the_config(base):
    model = load_base_model(find_base(base), Recipe(quantization="none"), "float32")
    set_special_tokens(model, SimpleNamespace(pad_token_id=3, eos_token_id=4))
    pads = {model.config.pad_token_id, text_config(model.config).pad_token_id}
    assert None not in pads
