"""Checkpoints and adapters of other runs answer beside the run's own, from the same base, and leave both columns as they were."""

import json
import shutil

import pytest
import torch

from peft_space import operations
from peft_space.errors import UserError
from peft_space.evaluation import extra_adapters
from peft_space.evaluation.compare import Sampling, answer, only
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
    """A run with a checkpoint halfway, at which it answers otherwise than in the end."""
    made = make_run(
        tmp_path_factory.mktemp("beside") / "run",
        "demo",
        Recipe(max_steps=8, save_steps=4, learning_rate=0.01),
    )
    with made.lock():
        train(made)
    return made


@pytest.fixture(scope="module")
def other(run, tmp_path_factory) -> Run:
    """Another run on the same base, whose adapter is that of the first one's checkpoint."""
    copied = Run(shutil.copytree(run.directory, tmp_path_factory.mktemp("other") / "run"))
    shutil.rmtree(copied.path("adapter"))
    shutil.copytree(run.path("checkpoints", "checkpoint-4"), copied.path("adapter"))
    copied.rename("Halfway")
    return copied


def test_a_checkpoint_and_another_run_answer_as_they_do_alone(run, other):
    found = operations.compare(
        str(run.directory),
        PROMPTS,
        compare_with=["checkpoint-4", str(other.directory)],
        sampling={"max_new_tokens": 24},
    )
    conversations = [[{"role": "user", "content": text}] for text in PROMPTS]
    alone = answer(
        load_adapted(run, run.path("checkpoints", "checkpoint-4")),
        "adapter",
        conversations,
        Sampling(max_new_tokens=24),
    )
    assert [one["others"] for one in found["answers"]] == [
        {"Step 4": text, "Halfway": text} for text in alone
    ]
    assert any(one["adapter"] != text for one, text in zip(found["answers"], alone, strict=True))


def test_both_columns_are_afterwards_what_they_were(run):
    adapted = load_adapted(run)
    ids = torch.tensor([[5, 6, 7, 8]])

    def columns():
        shown = []
        for column in ("base", "adapter"):
            with only(adapted, column), torch.inference_mode():
                shown.append(adapted.model(input_ids=ids).logits)
        return shown

    before = columns()
    extra_adapters.extra_answers(
        adapted,
        run,
        ["checkpoint-4"],
        [[{"role": "user", "content": "Hello."}]],
        Sampling(max_new_tokens=2),
    )
    assert all(torch.equal(one, other) for one, other in zip(before, columns(), strict=True))
    assert list(adapted.model.peft_config) == ["default"]


def test_what_is_offered_is_complete_and_of_the_same_base(run, other, tmp_path):
    elsewhere = Run(shutil.copytree(other.directory, tmp_path / "elsewhere"))
    recipe = json.loads(elsewhere.path("recipe.json").read_text()) | {"base_model": "gpt2"}
    elsewhere.path("recipe.json").write_text(json.dumps(recipe))
    own = [folder.name for folder in checkpoints.complete(run)]
    assert "checkpoint-4" in own
    assert extra_adapters.comparable_adapters(run, [run, other, Run(elsewhere.directory)]) == [
        *own,
        other,
    ]


def test_what_cannot_answer_beside_is_told(run, other, tmp_path):
    with pytest.raises(
        UserError,
        match=r"has no checkpoint-5 to compare: it is not there. Complete checkpoints: checkpoint-4",
    ):
        operations.compare(str(run.directory), PROMPTS, compare_with=["checkpoint-5"])
    with pytest.raises(UserError, match="Ask without a history"):
        operations.compare(
            str(run.directory),
            ["Yes"],
            history=[{"prompt": "a", "base": "b", "adapter": "c"}],
            compare_with=["checkpoint-4"],
        )
    moved = Run(shutil.copytree(other.directory, tmp_path / "moved"))
    config = moved.path("adapter", "adapter_config.json")
    config.write_text(
        config.read_text().replace(
            json.loads(config.read_text())["base_model_name_or_path"], "someone/else"
        )
    )
    with pytest.raises(UserError, match="was trained on someone/else"):
        operations.compare(str(run.directory), PROMPTS, compare_with=[str(moved.directory)])
