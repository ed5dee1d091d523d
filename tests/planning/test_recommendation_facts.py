"""Facts are counted and measured, and every surface gives the same recommendations."""

import json

import pytest
import torch

from peft_space import hardware, operations
from peft_space.__main__ import main
from peft_space.export.readiness import read_checklist
from peft_space.models.architecture import linear_layers
from peft_space.models.loading import expected_parameter_counts
from peft_space.models.resolve import find_base
from peft_space.planning import recommendation_facts
from peft_space.planning.recommendation_facts import (
    bits_per_token,
    data_facts,
    machine_facts,
    model_facts,
)
from peft_space.recipe import Recipe
from peft_space.recommend.rules import MachineFacts
from peft_space.training.prepare import prepare


@pytest.fixture(scope="module")
def base():
    return find_base("demo")


@pytest.mark.slow
def test_facts_of_the_sample_data(base):
    prepared = prepare("demo", Recipe())
    facts = data_facts(prepared, base, Recipe())
    assert (facts.task, facts.num_rows, facts.num_labels) == ("causal-lm", 300, None)
    assert facts.trained_tokens == prepared.train.column("num_trained").sum()
    assert facts.lengths[0] == prepared.train.column("length").min()
    assert facts.lengths[-1] == prepared.train.column("length").max()
    assert 2 < facts.bits_per_token < 12, "the base model does not know tickets"
    assert 1 <= facts.tokens_per_word < 2.5


@pytest.mark.slow
def test_on_zerogpu_facts_and_estimates_are_of_the_assigned_gpu(monkeypatch):
    on_the_cpu = operations.estimate("demo")["memory"]["total"]
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert machine_facts() == MachineFacts("cuda", 43_200_000_000)
    estimated = operations.estimate("demo")
    assert estimated["memory"]["free"] == 43_200_000_000
    assert estimated["memory"]["total"] < on_the_cpu, "libraries and mapped files count on a CPU"
    memory, time = estimated["words"]
    assert "40.2 GiB" in memory
    assert "ZeroGPU" in memory
    assert "ZeroGPU" in time


@pytest.mark.parametrize("rank", [1, 16])
def test_parameters_per_rank_equal_those_that_peft_counts(base, rank):
    trainable, _ = expected_parameter_counts(Recipe(lora_rank=rank), linear_layers(base.config))
    assert rank * model_facts(base, Recipe(), "causal-lm").parameters_per_rank == trainable


@pytest.mark.slow
def test_the_recommended_recipe_gets_no_further_recommendations():
    first = operations.recommend("demo")
    again = operations.recommend("demo", first["recipe"])
    assert again["recipe"] == first["recipe"]
    assert not any(one["changes"] for one in again["advice"])


@pytest.mark.slow
def test_a_recipe_over_a_red_line_is_reported_and_corrected(capfd):
    assert main(["recommend", "demo", "--recipe", '{"lora_rank": 128}', "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert "high_rank_reason" in next(
        line["words"] for line in found["red_lines"] if line["kind"] == "stop"
    )
    assert found["recipe"]["lora_rank"] == 8


@pytest.mark.slow
def test_the_command_line_ends_with_a_command_that_trains_the_recipe(capfd):
    assert main(["recommend", "demo"]) == 0
    assert '"lora_rank": 8' in capfd.readouterr().out.splitlines()[-1]


def test_the_readiness_list_follows_from_the_run(short_run):
    checks = {check.title: check for check in read_checklist(short_run)}
    assert not checks["Rank chosen for the task"].done, "16 was trained, 8 is advised"
    assert "recommended rank is 8" in checks["Rank chosen for the task"].words
    assert checks["Target modules verified for the architecture"].words.startswith(
        "35 of 35 layers"
    )
    assert checks["Adapter saved apart from its base"].done
    assert not checks["Merged model compared with the adapter"].done
    assert (
        "8.11% of all parameters. More than 1 %, because the model is small"
        in checks["Share of trainable parameters"].words
    )
    assert "**Rank chosen for the task.**" in (short_run.adapter / "README.md").read_text()


def test_on_a_gpu_the_base_is_measured_as_training_holds_it_or_not_at_all(base, monkeypatch):
    loaded = []

    def load(base, recipe, dtype, task_spec):
        loaded.append((recipe.quantization, dtype))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 16.00 GiB")

    monkeypatch.setattr(recommendation_facts, "load_base_model", load)
    monkeypatch.setattr(recommendation_facts, "inference_dtype", lambda config: "bfloat16")
    monkeypatch.setattr(hardware, "device", lambda: "cuda")
    assert bits_per_token(prepare("demo", Recipe()), base, Recipe()) is None
    assert loaded == [("nf4", "bfloat16")]
