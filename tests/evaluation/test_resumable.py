"""A scoring that was interrupted goes on where it was, and ends with the very same numbers."""

import json

import pytest

from peft_space.data.dataset import load_run_data
from peft_space.evaluation import evaluate
from peft_space.evaluation.results import read_scores
from peft_space.models.loading import load_adapted
from peft_space.runs.run import Run


@pytest.fixture(scope="module")
def adapted(short_run):
    return load_adapted(short_run)


@pytest.fixture
def few(own_run, monkeypatch):
    """The run's first twenty held-out rows, and three general questions."""
    monkeypatch.setattr(evaluate, "_MOST_ROWS", 20)
    monkeypatch.setattr(evaluate, "GENERAL_PROMPTS", evaluate.GENERAL_PROMPTS[:3])
    assert len(load_run_data(own_run).held_out) > 20
    return own_run


class Stopped(Exception):
    pass


def stop_after(count):
    told = []

    def on_progress(share, what):
        if (share, what) not in told:  # a batch that takes long tells the same again
            told.append((share, what))
        if len(told) > count:
            raise Stopped

    return told, on_progress


def test_an_interrupted_scoring_goes_on_where_it_was_to_the_same_numbers(few, adapted, monkeypatch):
    told, tell = stop_after(99)
    whole = evaluate.evaluate(few, adapted, tell)
    assert [share for share, _ in told] == [number / len(told) for number in range(len(told))]
    assert {what for _, what in told} >= {
        "Scoring the base",
        "Scoring the adapter's answers",
        "Scoring the base on general questions",
    }
    assert not few.path("scoring.jsonl").exists()
    assert whole.num_rows == 20

    asked = []
    really = evaluate.answer
    monkeypatch.setattr(
        evaluate,
        "answer",
        lambda adapted, column, *given, **more: (
            asked.append(column) or really(adapted, column, *given, **more)
        ),
    )
    with pytest.raises(Stopped):
        evaluate.evaluate(few, adapted, stop_after(4)[1])
    kept = few.path("scoring.jsonl").read_text()
    assert len(kept.splitlines()) == 1 + 4
    few.path("scoring.jsonl").write_text(kept + '["the ada')  # torn by a kill
    assert evaluate.evaluate(few, adapted) == whole == read_scores(few)
    assert asked.count("base") == 2 + 1, (
        "the base's answers to rows, in two batches, and to general questions, each once"
    )


def test_what_was_kept_of_another_adapter_is_not_used(few, adapted):
    with pytest.raises(Stopped):
        evaluate.evaluate(few, adapted, stop_after(3)[1])
    before = few.path("scoring.jsonl").read_text().splitlines()[0]
    config = few.adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 8}))
    with pytest.raises(Stopped):
        evaluate.evaluate(Run(few.directory), adapted, stop_after(0)[1])
    assert few.path("scoring.jsonl").read_text() != before + "\n"
    assert len(few.path("scoring.jsonl").read_text().splitlines()) == 1


def test_scores_say_how_sure_they_are_and_how_much_general_answers_changed(few, adapted):
    found = evaluate.evaluate(few, adapted)
    for column in ("base", "adapter"):
        for name, (low, high) in found.intervals[column].items():
            assert low <= getattr(getattr(found, column), name) <= high, (column, name)
    low, high = found.intervals["difference"]["loss"]
    assert low <= found.adapter.loss - found.base.loss <= high < 0
    assert found.adapter.chrf > found.base.chrf
    assert set(found.intervals["base"]) == {"loss", "perplexity", "exact_match", "chrf", "rouge_l"}
    assert found.fairness.startswith("Checked")
    general = found.general
    assert general.num_prompts == 3
    assert 0 < general.agreement < 1
    assert general.divergence > 0
    assert general.agreement_interval[0] <= general.agreement <= general.agreement_interval[1]
    assert len(found.samples) == 5
    assert all(sample["expected"] and sample["prompt"] for sample in found.samples)


def test_an_adapter_that_is_off_changes_no_general_answer(adapted, monkeypatch):
    monkeypatch.setattr(evaluate, "GENERAL_PROMPTS", evaluate.GENERAL_PROMPTS[:3])
    with adapted.model.disable_adapter():
        monkeypatch.setattr(adapted.model, "enable_adapter_layers", lambda: None, raising=False)
        monkeypatch.setattr(
            type(adapted.model.base_model), "enable_adapter_layers", lambda model: None
        )
        found = evaluate._forgetting_score(adapted, lambda part, number, measure: measure())
        monkeypatch.undo()
    assert (found.agreement, found.divergence) == (1, 0)
    assert all(given["base"] == given["adapter"] for given in found.answers)
