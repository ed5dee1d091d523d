"""Metrics equal those of the usual libraries, and their intervals cover the truth, reproducibly."""

import numpy as np
import pytest

from peft_space.evaluation import metrics

# answer, target, sacrebleu 2.6.0 sentence_chrf / 100, rouge-score 0.1.2 rougeL fmeasure
FROM_LIBRARIES = [
    ("The lamp is blue.", "The blue lamp is here.", 0.47079, 0.666667),
    ("order 42 shipped today", "Your order 42 was shipped", 0.499838, 0.666667),
    ("ab", "ab", 1.0, 1.0),
    ("", "x", 0.0, 0.0),
    ("東京へ行く", "東京に行く", 0.26, 0.0),
]


@pytest.mark.parametrize(("answer", "target", "chrf", "rouge_l"), FROM_LIBRARIES)
def test_chrf_and_rouge_l_equal_sacrebleu_and_rouge_score(answer, target, chrf, rouge_l):
    assert metrics.chrf(answer, target) == pytest.approx(chrf, abs=1e-6)
    assert metrics.rouge_l(answer, target) == pytest.approx(rouge_l, abs=1e-6)


def test_rouge_l_takes_words_of_any_script():
    assert metrics.rouge_l("лампа синяя", "лампа красная") == 0.5


@pytest.mark.parametrize(
    ("answer", "target", "scores"),
    [
        ('{"a": 1, "b": [2]}', '{"b": [2], "a": 1}', {"valid_json": True, "same_json": True}),
        ('{"a": "1"}', '{"a": 1}', {"valid_json": True, "same_json": False}),
        ('{"a": true}', '{"a": 1}', {"valid_json": True, "same_json": False}),
        ("[1.0, 2]", "[1, 2.0]", {"valid_json": True, "same_json": True}),
        ('{"a": 1', '{"a": 1}', {"valid_json": False, "same_json": False}),
        ("[" * 100_000, "[1]", {"valid_json": False, "same_json": False}),
        ("1,200", "$1200", {"same_number": True}),
        ("-3.5%", "-3.50 %", {"same_number": True}),
        ("It is 9 - 2.\n#### 7", "9 - 2 = 7\n#### 7.0", {"same_number": True}),
        ("seven", "7", {"same_number": False}),
        ("12", "12 apples", {}),
        ("true", "true", {}),
        ("1,2", "1,2", {}),
        ("$", "$", {}),
    ],
)
def test_answers_that_are_values_are_compared_as_values(answer, target, scores):
    assert metrics.value_scores(answer, target) == scores


def test_an_empty_answer_to_an_empty_target_is_right():
    assert metrics.chrf("", " ") == metrics.rouge_l("", "\n") == 1


# seqeval 1.2.2 get_entities
@pytest.mark.parametrize(
    ("answer", "matches"), [("B", True), ("B.", False), ("", False), ("2026", False)]
)
def test_a_whole_answer_matches_a_pattern(answer, matches):
    assert metrics.matches(answer, "[A-E]") == matches


def test_a_pattern_that_takes_too_long_does_not_match():
    assert metrics.matches("a" * 8, "((a|aa)+)+")
    assert not metrics.matches("a" * 60 + "!", "((a|aa)+)+")


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("B-X I-X O B-Y", {("X", 0, 1), ("Y", 3, 3)}),
        ("I-X I-X B-X I-Y", {("X", 0, 1), ("X", 2, 2), ("Y", 3, 3)}),
        ("B-X E-X E-X S-Y I-Y", {("X", 0, 1), ("X", 2, 2), ("Y", 3, 3), ("Y", 4, 4)}),
        ("O O", set()),
    ],
)
def test_entities_equal_those_of_seqeval(tags, spans):
    assert metrics.entities(tags.split()) == spans


def test_only_tags_with_place_letters_are_entities():
    assert metrics.are_entities(["O", "B-PLACE", "I-PLACE"])
    assert not metrics.are_entities(["NOUN", "VERB", "O"])
    assert not metrics.are_entities(["O"])


def test_macro_f1_of_a_resample_is_that_of_its_rows():
    rng = np.random.default_rng(3)
    rows, predictions, labels = np.repeat(np.arange(20), 3), *rng.integers(4, size=(2, 60))
    counts = rng.integers(3, size=20)
    drawn = np.repeat(np.arange(60), counts[rows])
    table = metrics.confusion(predictions[drawn], labels[drawn], 4)
    each = [2 * table[k, k] / (table[k].sum() + table[:, k].sum()) for k in range(4)]
    score = metrics.macro_f1_of_rows(rows, predictions, labels, 4)
    assert score(counts[None])[0] == pytest.approx(np.mean(each))


def test_95_percent_intervals_cover_the_truth_19_times_in_20():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        sample = rng.random(60) < 0.7
        intervals = metrics.bootstrap_intervals({"share": metrics.mean(sample)}, 60)
        assert intervals == metrics.bootstrap_intervals({"share": metrics.mean(sample)}, 60)
        covered += intervals["share"][0] <= 0.7 <= intervals["share"][1]
    assert 88 <= covered <= 99


def test_a_paired_difference_has_a_narrower_interval_than_its_sides():
    base = np.random.default_rng(1).normal(size=80)
    scores = {
        "base": metrics.mean(base),
        "difference": metrics.difference(metrics.mean(base + 0.1), metrics.mean(base)),
    }
    intervals = metrics.bootstrap_intervals(scores, 80)
    assert intervals["difference"] == pytest.approx([0.1, 0.1])
    assert intervals["base"][1] - intervals["base"][0] > 0.3


def test_few_rows_and_an_undefined_score_have_no_interval():
    assert metrics.bootstrap_intervals({"share": metrics.mean([1.0] * 5)}, 5) == {}
    assert metrics.bootstrap_intervals({"share": metrics.ratio(np.zeros(9), np.zeros(9))}, 9) == {}


@pytest.mark.parametrize(
    ("wins", "trials", "low", "high"),
    [(7, 9, 0.4526, 0.9368), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (0, 0, 0, 1)],
)
def test_wilson_interval(wins, trials, low, high):
    assert metrics.wilson(wins, trials) == pytest.approx((low, high), abs=1e-4)
