"""Checkpoints and other runs' adapters answer on the base in memory, and leave it unchanged."""

import json
import shutil

import pytest
import torch

from peft_space import operations
from peft_space.errors import UserError
from peft_space.evaluation.adapter_off_check import SIDES, use_side
from peft_space.evaluation.extra_adapters import comparable_adapters, extra_answers
from peft_space.evaluation.generate import Sampling, answer
from peft_space.models.loading import load_adapted
from peft_space.recipe import Recipe
from peft_space.runs import checkpoints
from peft_space.runs.run import Run
from peft_space.training.prepare import make_run
from peft_space.training.train import train

PROMPTS = [
    "Hello, this is Mira. My green kettle arrived broken. Please send a new one.",
    "Hello. My lamp is late.",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A run with a checkpoint halfway, which answers differently than the final adapter."""
    recipe = Recipe(max_steps=8, save_steps=4, learning_rate=0.01)
    run = make_run(tmp_path_factory.mktemp("extra") / "run", "demo", recipe)
    with run.lock():
        train(run)
    return run


@pytest.fixture(scope="module")
def other(run, tmp_path_factory) -> Run:
    """Another run on the same base, whose adapter is the first run's checkpoint."""
    copied = Run(shutil.copytree(run.directory, tmp_path_factory.mktemp("other") / "run"))
    shutil.rmtree(copied.path("adapter"))
    shutil.copytree(run.path("checkpoints", "checkpoint-4"), copied.path("adapter"))
    copied.rename("Halfway")
    return copied


def turns(texts):
    return [[{"role": "user", "content": text}] for text in texts]


@pytest.mark.slow
def test_a_checkpoint_and_another_run_answer_as_they_do_alone(run, other):
    answers = operations.compare(
        str(run.directory),
        PROMPTS,
        compare_with=["checkpoint-4", str(other.directory)],
        sampling={"max_new_tokens": 24},
    )["answers"]
    alone = load_adapted(run, run.path("checkpoints", "checkpoint-4"))
    texts = answer(alone, "adapter", turns(PROMPTS), Sampling(max_new_tokens=24))
    assert [each["others"] for each in answers] == [
        {"Step 4": text, "Halfway": text} for text in texts
    ]
    assert [each["adapter"] for each in answers] != texts


@pytest.mark.slow
def test_extra_adapters_leave_both_sides_unchanged(run):
    adapted = load_adapted(run)

    def logits():
        rows = []
        for side in SIDES:
            with use_side(adapted, side), torch.inference_mode():
                rows.append(adapted.model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits)
        return torch.cat(rows)

    before = logits()
    extra_answers(adapted, run, ["checkpoint-4"], turns(["Hello."]), Sampling(max_new_tokens=2))
    assert torch.equal(before, logits())
    assert list(adapted.model.peft_config) == ["default"]


def test_comparable_adapters_are_complete_and_of_the_same_base(run, other, tmp_path):
    other_base = Run(shutil.copytree(other.directory, tmp_path / "other-base"))
    recipe = json.loads(other_base.path("recipe.json").read_text()) | {"base_model": "gpt2"}
    other_base.path("recipe.json").write_text(json.dumps(recipe))
    own = [folder.name for folder in checkpoints.complete(run)]
    assert "checkpoint-4" in own
    runs = [run, other, Run(other_base.directory)]
    assert comparable_adapters(run, runs) == [*own, other]


@pytest.mark.slow
def test_an_adapter_that_cannot_be_compared_is_rejected(run, other, tmp_path):
    with pytest.raises(UserError, match=r"checkpoint-5 .*checkpoint-4") as error:
        operations.compare(str(run.directory), PROMPTS, compare_with=["checkpoint-5"])
    assert error.value.code == "evaluation.no_such_checkpoint"
    history = [{"prompt": "a", "base": "b", "adapter": "c"}]
    with pytest.raises(UserError):
        operations.compare(
            str(run.directory), ["Yes"], history=history, compare_with=["checkpoint-4"]
        )
    moved = Run(shutil.copytree(other.directory, tmp_path / "moved"))
    path = moved.path("adapter", "adapter_config.json")
    config = json.loads(path.read_text()) | {"base_model_name_or_path": "someone/else"}
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="someone/else") as error:
        operations.compare(str(run.directory), PROMPTS, compare_with=[str(moved.directory)])
    assert error.value.code == "models.adapter_mismatch"
