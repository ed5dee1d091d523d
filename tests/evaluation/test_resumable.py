"""An interrupted evaluation resumes, and ends with the same numbers."""

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
def small_run(own_run, monkeypatch):
    """A run of which twenty held-out rows are scored, and six general questions."""
    monkeypatch.setattr(evaluate, "_MAX_ROWS", 20)
    monkeypatch.setattr(evaluate, "GENERAL_PROMPTS", evaluate.GENERAL_PROMPTS[:6])
    assert len(load_run_data(own_run).held_out) > 20
    return own_run


class Stopped(Exception):
    pass


def stop_after(count):
    reports = []

    def on_progress(share, what):
        if (share, what) not in reports:  # a long batch repeats its report
            reports.append((share, what))
        if len(reports) > count:
            raise Stopped

    return reports, on_progress


@pytest.mark.slow
def test_an_interrupted_evaluation_resumes_to_the_same_numbers(small_run, adapted, monkeypatch):
    reports, on_progress = stop_after(99)
    whole = evaluate.evaluate(small_run, adapted, on_progress)
    assert [share for share, _ in reports] == [n / len(reports) for n in range(len(reports))]
    assert {what for _, what in reports} >= {
        "Scoring the base",
        "Scoring the adapter's answers",
        "Scoring the base on general questions",
    }
    stored = small_run.path("scoring.jsonl")
    assert not stored.exists()
    assert whole.num_rows == 20

    sides = []
    original = evaluate.answer

    def answer(adapted, side, *args, **kwargs):
        sides.append(side)
        return original(adapted, side, *args, **kwargs)

    monkeypatch.setattr(evaluate, "answer", answer)
    with pytest.raises(Stopped):
        evaluate.evaluate(small_run, adapted, stop_after(4)[1])
    text = stored.read_text()
    assert len(text.splitlines()) == 1 + 4
    stored.write_text(text + '["the ada')  # cut short by a kill
    assert evaluate.evaluate(small_run, adapted) == whole == read_scores(small_run)
    assert sides.count("base") == 2 + 1, "two batches of rows and the general questions, each once"


def test_batches_stored_for_another_adapter_are_not_used(small_run, adapted):
    stored = small_run.path("scoring.jsonl")
    with pytest.raises(Stopped):
        evaluate.evaluate(small_run, adapted, stop_after(3)[1])
    before = stored.read_text().splitlines()[0]
    config = small_run.adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 8}))
    with pytest.raises(Stopped):
        evaluate.evaluate(Run(small_run.directory), adapted, stop_after(0)[1])
    [line] = stored.read_text().splitlines()
    assert line != before


def test_the_scores_say_how_many_answers_match_the_recipes_pattern(small_run, adapted, monkeypatch):
    monkeypatch.setattr(evaluate, "_MAX_ROWS", 4)
    recipe = small_run.recipe.model_copy(update={"answer_pattern": "(?s).*"})
    small_run.path("recipe.json").write_text(recipe.model_dump_json())
    run = Run(small_run.directory)
    scores = evaluate.evaluate(run, adapted)
    assert scores.adapter.matches_pattern == 1
    assert scores.base.matches_pattern is not None


@pytest.mark.slow
def test_an_evaluation_has_intervals_samples_and_a_forgetting_score(small_run, adapted):
    evaluation = evaluate.evaluate(small_run, adapted)
    for side in ("base", "adapter"):
        for name, (low, high) in evaluation.intervals[side].items():
            assert low <= getattr(getattr(evaluation, side), name) <= high, (side, name)
    low, high = evaluation.intervals["difference"]["loss"]
    assert low <= evaluation.adapter.loss - evaluation.base.loss <= high < 0
    assert evaluation.adapter.chrf > evaluation.base.chrf
    names = {"loss", "perplexity", "exact_match", "chrf", "rouge_l", "ended"}
    assert set(evaluation.intervals["base"]) == names
    assert "NOT FAIR" not in evaluation.fairness
    general = evaluation.general
    assert general.num_prompts == 6
    assert 0 < general.agreement < 1
    assert general.divergence > 0
    assert general.agreement_interval[0] <= general.agreement <= general.agreement_interval[1]
    assert len(evaluation.samples) == min(50, evaluation.num_rows)
    assert all(sample["expected"] and sample["prompt"] for sample in evaluation.samples)


def test_a_disabled_adapter_changes_no_general_answer(adapted, monkeypatch):
    monkeypatch.setattr(evaluate, "GENERAL_PROMPTS", evaluate.GENERAL_PROMPTS[:6])
    body = type(adapted.model.base_model)
    with adapted.model.disable_adapter():
        monkeypatch.setattr(adapted.model, "enable_adapter_layers", lambda: None, raising=False)
        monkeypatch.setattr(body, "enable_adapter_layers", lambda model: None)
        score = evaluate._forgetting_score(adapted, lambda part, number, measure: measure())
        monkeypatch.undo()
    assert (score.agreement, score.divergence) == (1, 0)
    assert all(answer["base"] == answer["adapter"] for answer in score.answers)
