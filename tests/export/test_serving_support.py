"""The recipe, and later the adapter's files, tell how vLLM and TGI can serve an adapter."""

import itertools
import json
import shlex
import shutil

import pytest
from transformers import GPT2Config, LlamaConfig

from peft_space import operations
from peft_space.export.serving_support import (
    VLLM_RANKS,
    commands,
    engine_support,
    traits_of_adapter,
    traits_of_recipe,
)
from peft_space.models.architecture import linear_layers
from peft_space.models.resolve import find_base
from peft_space.recipe import Recipe

RANK_16, RANK_32, RANK_128 = (f"--max-lora-rank {rank}" for rank in (16, 32, 128))
PLAIN = {"quantization": "none"}
PISSA = {"lora_rank": 64, "method": "pissa", **PLAIN}
CASES = [
    ({}, "adapter", RANK_16, "adapter", "LORA_ADAPTERS"),
    ({"lora_rank": 20, **PLAIN}, "adapter", RANK_32, "adapter", "LORA_ADAPTERS"),
    (PISSA, "adapter", RANK_128, "adapter", "LORA_ADAPTERS"),
    ({"method": "rslora"}, "adapter", RANK_16, "adapter", "LORA_ADAPTERS"),
    ({"method": "dora"}, "merged", "DoRA", "merged", "DoRA"),
    ({"lora_bias": "all"}, "merged", "biases", "merged", "biases"),
    ({"modules_to_save": ["lm_head"]}, "merged", "not lm_head", "merged", "modules"),
    ({"layers_to_transform": [0, 1]}, "adapter", RANK_16, "merged", "every block"),
    ({"task": "sequence-classification"}, "adapter", RANK_16, "neither", "only models"),
]


def traits(**choices):
    recipe = Recipe(**choices)
    task = "causal-lm" if recipe.task == "automatic" else recipe.task
    layers = linear_layers(find_base("demo").config, task)
    return traits_of_recipe(recipe, layers, recipe.quantization)


@pytest.mark.parametrize(
    ("choices", "vllm", "why_vllm", "tgi", "why_tgi"), CASES, ids=[str(case[0]) for case in CASES]
)
@pytest.mark.sample(4)
def test_a_recipe_tells_which_engine_can_serve_its_adapter(choices, vllm, why_vllm, tgi, why_tgi):
    _, by_vllm, by_tgi = engine_support(traits(**choices))
    assert (by_vllm.how, by_tgi.how) == (vllm, tgi)
    assert why_vllm in by_vllm.why
    assert why_tgi in by_tgi.why


def test_the_recipe_and_the_run_give_the_same_support(short_run):
    of_recipe = operations.layers(short_run.recipe.model_dump())["serving"]
    assert [way["engine"] for way in of_recipe] == ["PEFT", "vLLM", "TGI"]
    assert of_recipe == operations.serving(str(short_run.directory))["ways"]


def test_the_traits_of_an_imported_adapter_come_from_its_files(short_run, tmp_path):
    folder = shutil.copytree(short_run.adapter, tmp_path / "adapter")
    path = folder / "adapter_config.json"
    patterns = {"rank_pattern": {"q_proj": 100}, "alpha_pattern": {"q_proj": 3}}
    path.write_text(json.dumps(json.loads(path.read_text()) | patterns))
    imported = traits_of_adapter(folder, "causal-lm", LlamaConfig(), "none")
    _, vllm, tgi = engine_support(imported)
    assert (imported.rank, vllm.how, tgi.how) == (100, "adapter", "merged")
    assert "--max-lora-rank 128" in vllm.why
    _, vllm, tgi = engine_support(
        traits_of_adapter(short_run.adapter, "causal-lm", GPT2Config(), "none")
    )
    assert (vllm.how, tgi.how) == ("merged", "adapter")


BASE = "Qwen/Qwen3-0.6B"


def test_the_commands_for_an_adapter_are_what_the_engines_accept(tmp_path):
    folder = tmp_path / "my adapter"
    lines = commands("adapter", "tickets", folder, traits(lora_rank=16), BASE, "abc", "bfloat16")
    vllm = shlex.split(lines["vLLM"])
    assert vllm[:3] == ["vllm", "serve", BASE]
    options = dict(itertools.pairwise(vllm))
    assert options["--lora-modules"] == f"tickets={folder}"
    assert int(options["--max-lora-rank"]) in VLLM_RANKS
    assert "--enable-lora" in vllm
    variable, *tgi = shlex.split(lines["TGI"])  # NAME=PATH, with commas between several
    assert variable == f"LORA_ADAPTERS=tickets={folder}"
    assert tgi == ["text-generation-launcher", "--model-id", BASE, "--revision", "abc"]


def test_the_commands_for_a_merged_model_are_what_the_engines_accept(tmp_path):
    folder, dora = tmp_path / "my model", traits(method="dora")
    lines = commands("merged", "tickets", folder, dora, BASE, None, "bfloat16")
    assert shlex.split(lines["vLLM"]) == ["vllm", "serve", str(folder), "--dtype", "bfloat16"]
    program, *options = shlex.split(lines["TGI"])
    assert program == "text-generation-launcher"
    assert options == ["--model-id", str(folder), "--dtype", "bfloat16"]
    lines = commands("merged", "tickets", folder, dora, BASE, None, "awq")
    assert shlex.split(lines["vLLM"]) == ["vllm", "serve", str(folder)]
    assert shlex.split(lines["TGI"])[1:] == ["--model-id", str(folder), "--quantize", "awq"]


def test_an_adapter_that_no_engine_accepts_has_no_commands(tmp_path):
    dora = traits(method="dora")
    assert commands("adapter", "tickets", tmp_path, dora, BASE, None, "bfloat16") == {}
