"""What vLLM and TGI can do with an adapter is known from the recipe alone, and again from the files of the adapter."""

import itertools
import json
import shlex
import shutil

import pytest

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

CASES = [
    ({}, "adapter", "--max-lora-rank 16", "adapter", "LORA_ADAPTERS"),
    (
        {"lora_rank": 20, "quantization": "none"},
        "adapter",
        "--max-lora-rank 32",
        "adapter",
        "LORA_ADAPTERS",
    ),
    (
        {"lora_rank": 64, "method": "pissa", "quantization": "none"},
        "adapter",
        "--max-lora-rank 128",
        "adapter",
        "LORA_ADAPTERS",
    ),
    ({"method": "rslora"}, "adapter", "--max-lora-rank 16", "adapter", "LORA_ADAPTERS"),
    ({"method": "dora"}, "merged", "does not support DoRA", "merged", "DoRA's magnitudes"),
    ({"lora_bias": "all"}, "merged", "no trained biases", "merged", "trained biases"),
    ({"modules_to_save": ["lm_head"]}, "merged", "not lm_head", "merged", "modules saved whole"),
    ({"layers_to_transform": [0, 1]}, "adapter", "--max-lora-rank 16", "merged", "not every block"),
    (
        {"task": "sequence-classification"},
        "adapter",
        "--max-lora-rank 16",
        "neither",
        "no classification",
    ),
]


def traits(**choices):
    recipe = Recipe(**choices)
    task = "causal-lm" if recipe.task == "automatic" else recipe.task
    return traits_of_recipe(
        recipe, linear_layers(find_base("demo").config, task), recipe.quantization
    )


@pytest.mark.parametrize(
    ("choices", "vllm", "why_vllm", "tgi", "why_tgi"), CASES, ids=[str(case[0]) for case in CASES]
)
def test_a_recipe_says_where_its_adapter_can_be_served(choices, vllm, why_vllm, tgi, why_tgi):
    _, of_vllm, of_tgi = engine_support(traits(**choices))
    assert (of_vllm.how, of_tgi.how) == (vllm, tgi)
    assert why_vllm in of_vllm.why
    assert why_tgi in of_tgi.why


def test_the_recipe_page_is_told(short_run):
    found = operations.layers(short_run.recipe.model_dump())["serving"]
    assert [way["engine"] for way in found] == ["PEFT", "vLLM", "TGI"]
    assert found == operations.serving(str(short_run.directory))["ways"]


def test_an_adapter_made_elsewhere_is_read_from_its_files(short_run, tmp_path):
    folder = shutil.copytree(short_run.adapter, tmp_path / "adapter")
    path = folder / "adapter_config.json"
    path.write_text(
        json.dumps(
            json.loads(path.read_text())
            | {"rank_pattern": {"q_proj": 100}, "alpha_pattern": {"q_proj": 3}}
        )
    )
    found = traits_of_adapter(folder, "causal-lm", "llama", "none")
    _, vllm, tgi = engine_support(found)
    assert (found.rank, vllm.how, tgi.how) == (100, "adapter", "merged")
    assert "--max-lora-rank 128" in vllm.why
    _, vllm, tgi = engine_support(traits_of_adapter(short_run.adapter, "causal-lm", "gpt2", "none"))
    assert (vllm.how, tgi.how) == ("merged", "adapter")


def test_the_commands_are_in_the_grammar_of_the_engines(tmp_path):
    folder = tmp_path / "my adapter"
    found = commands(
        "adapter", "tickets", folder, traits(lora_rank=16), "Qwen/Qwen3-0.6B", "abc", "bfloat16"
    )
    vllm = shlex.split(found["vLLM"])
    assert vllm[:3] == ["vllm", "serve", "Qwen/Qwen3-0.6B"]
    given = dict(itertools.pairwise(vllm))
    assert given["--lora-modules"] == f"tickets={folder}"
    assert int(given["--max-lora-rank"]) in VLLM_RANKS
    assert "--enable-lora" in vllm
    tgi = shlex.split(found["TGI"])  # NAME=PATH, with commas between several
    assert tgi == [
        f"LORA_ADAPTERS=tickets={folder}",
        "text-generation-launcher",
        "--model-id",
        "Qwen/Qwen3-0.6B",
        "--revision",
        "abc",
    ]
    whole = commands(
        "merged", "tickets", folder, traits(method="dora"), "Qwen/Qwen3-0.6B", None, "bfloat16"
    )
    assert shlex.split(whole["vLLM"]) == ["vllm", "serve", str(folder), "--dtype", "bfloat16"]
    assert shlex.split(whole["TGI"]) == [
        "text-generation-launcher",
        "--model-id",
        str(folder),
        "--dtype",
        "bfloat16",
    ]
    assert (
        commands(
            "adapter", "tickets", folder, traits(method="dora"), "Qwen/Qwen3-0.6B", None, "bfloat16"
        )
        == {}
    )
