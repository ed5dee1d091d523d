"""A model in training answers the same held-out rows at evaluations, and learns the same."""

import json
import math

import pytest

from peft_space.data.dataset import load_run_data
from peft_space.recipe import Recipe
from peft_space.runs.events import Notice, evaluations_of, sample_answers_of
from peft_space.runs.plan import read_plan
from peft_space.training import sample_answers
from peft_space.training import train as training
from peft_space.training.prepare import make_run
from tests.fixtures import tiny_models
from tests.fixtures.task_rows import WORDS, labelled, preferred, translated

RECIPE = Recipe(
    max_steps=4, eval_steps=2, batch_size=4, quantization="none", learning_rate=1e-3, max_length=128
)


@pytest.fixture(autouse=True)
def every_evaluation(monkeypatch):
    """Tiny steps take less time than answers."""
    monkeypatch.setattr(sample_answers, "MAX_SHARE", math.inf)


def trained(folder, data="demo", **changes):
    run = make_run(folder, data, RECIPE.model_copy(update=changes))
    with run.lock():
        training.train(run)
    return run


def test_answers_are_those_of_the_first_held_out_rows_at_each_evaluation(tmp_path):
    run = trained(tmp_path / "run")
    held_out = load_run_data(run).held_out[:2]
    samples, history = sample_answers_of(run.history()), run.history()
    assert [one.step for one in samples] == [one.step for one in evaluations_of(history)] == [2, 4]
    for sample in samples:
        assert [one.row for one in sample.answers] == [row.row for row in held_out]
        assert [one.prompt for one in sample.answers] == [
            row.messages[-2]["content"] for row in held_out
        ]
        assert [one.expected for one in sample.answers] == [
            row.messages[-1]["content"] for row in held_out
        ]
    [last] = [one for one in samples if one.step == 4]
    assert all(one.answer for one in last.answers)


def test_a_training_goes_on_when_its_model_cannot_answer(tmp_path, monkeypatch):
    calls = []

    def fail(*_):
        calls.append(1)
        raise RuntimeError("no cache for this layer")

    monkeypatch.setattr(sample_answers, "generate_greedy", fail)
    run = trained(tmp_path / "run")
    history = run.history()
    assert run.status() == "finished"
    assert [one.step for one in evaluations_of(history)] == [2, 4]
    assert len(calls) == 1, "it is not tried again"
    [notice] = [one for one in history if isinstance(one, Notice) and "no cache" in one.why]
    assert notice.event == "Notice"


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["off", "on"])
def test_the_adapter_is_the_same_with_and_without_answers(tmp_path, monkeypatch, checkpointing):
    """Packed rows, dropout and checkpointing are on: none of them notices the answers."""
    changes = {"lora_dropout": 0.1, "gradient_checkpointing": checkpointing}
    run = trained(tmp_path / "with", **changes)
    assert read_plan(run).packing
    assert sample_answers_of(run.history())
    monkeypatch.setattr(training, "makes_samples", lambda *_: False)
    bare = make_run(tmp_path / "without", "demo", run.recipe)
    bare.path("plan.json").write_bytes(run.path("plan.json").read_bytes())
    with bare.lock():
        training.train(bare)
    assert not sample_answers_of(bare.history())
    weights = [(one.adapter / "adapter_model.safetensors").read_bytes() for one in (run, bare)]
    assert weights[0] == weights[1]


def written(folder, rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return str(path)


@pytest.mark.slow
def test_an_encoder_decoder_answers_too(tmp_path):
    base = tiny_models.t5(tmp_path / "t5", WORDS)
    run = trained(tmp_path / "run", written(tmp_path, translated), base_model=str(base))
    assert [len(one.answers) for one in sample_answers_of(run.history())] == [2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("rows", [labelled, preferred])
def test_tasks_without_an_answer_have_no_samples(tmp_path, rows):
    run = trained(tmp_path / "run", written(tmp_path, rows))
    assert evaluations_of(run.history())
    assert not sample_answers_of(run.history())
