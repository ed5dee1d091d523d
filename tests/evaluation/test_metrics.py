"""Measures are those of the field's libraries, and their intervals hold what they promise, the same each time."""

import numpy as np
import pytest

from peft_space.evaluation import bootstrap, metrics

# answer, wanted, sacrebleu 2.6.0 sentence_chrf / 100, rouge-score 0.1.2 rougeL fmeasure
OF_LIBRARIES = [
    ("The lamp is blue.", "The blue lamp is here.", 0.47079, 0.666667),
    ("order 42 shipped today", "Your order 42 was shipped", 0.499838, 0.666667),
    ("ab", "ab", 1.0, 1.0),
    ("", "x", 0.0, 0.0),
    ("東京へ行く", "東京に行く", 0.26, 0.0),
]


@pytest.mark.parametrize(("answer", "wanted", "chrf", "rouge_l"), OF_LIBRARIES)
def test_chrf_and_rouge_l_are_those_of_sacrebleu_and_rouge_score(answer, wanted, chrf, rouge_l):
    assert metrics.chrf(answer, wanted) == pytest.approx(chrf, abs=1e-6)
    assert metrics.rouge_l(answer, wanted) == pytest.approx(rouge_l, abs=1e-6)


def test_rouge_l_knows_words_of_any_script():
    assert metrics.rouge_l("лампа синяя", "лампа красная") == 0.5


def test_nothing_where_nothing_is_wanted_is_right():
    assert metrics.chrf("", " ") == metrics.rouge_l("", "\n") == 1


# seqeval 1.2.2 get_entities
@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("B-X I-X O B-Y", {("X", 0, 1), ("Y", 3, 3)}),
        ("I-X I-X B-X I-Y", {("X", 0, 1), ("X", 2, 2), ("Y", 3, 3)}),
        ("B-X E-X E-X S-Y I-Y", {("X", 0, 1), ("X", 2, 2), ("Y", 3, 3), ("Y", 4, 4)}),
        ("O O", set()),
    ],
)
def test_entities_are_those_of_seqeval(tags, found):
    assert metrics.entities(tags.split()) == found


def test_only_tags_that_mark_places_are_entities():
    assert metrics.are_entities(["O", "B-PLACE", "I-PLACE"])
    assert not metrics.are_entities(["NOUN", "VERB", "O"])
    assert not metrics.are_entities(["O"])


def test_macro_f1_of_samples_is_that_of_the_rows_drawn():
    rng = np.random.default_rng(3)
    row, guesses, wanted = (
        np.repeat(np.arange(20), 3),
        rng.integers(4, size=60),
        rng.integers(4, size=60),
    )
    counts = rng.integers(3, size=20)
    drawn = np.repeat(np.arange(60), counts[row])
    table = metrics.confusion(guesses[drawn], wanted[drawn], 4)
    each = [2 * table[k, k] / (table[k].sum() + table[:, k].sum()) for k in range(4)]
    assert metrics.macro_f1_of_rows(row, guesses, wanted, 4)(counts[None])[0] == pytest.approx(
        np.mean(each)
    )


def test_intervals_are_the_same_each_time_and_hold_the_truth_19_times_in_20():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        sample = rng.random(60) < 0.7
        found = bootstrap.intervals({"share": metrics.mean(sample)}, 60)
        assert found == bootstrap.intervals({"share": metrics.mean(sample)}, 60)
        held += found["share"][0] <= 0.7 <= found["share"][1]
    assert 88 <= held <= 99


def test_a_difference_of_pairs_is_surer_than_its_columns():
    base = np.random.default_rng(1).normal(size=80)
    scores = {
        "base": metrics.mean(base),
        "difference": lambda counts: metrics.mean(base + 0.1)(counts) - metrics.mean(base)(counts),
    }
    found = bootstrap.intervals(scores, 80)
    assert found["difference"] == pytest.approx([0.1, 0.1])
    assert found["base"][1] - found["base"][0] > 0.3


def test_one_row_has_no_interval_and_a_score_that_is_nowhere_defined_none_either():
    assert bootstrap.intervals({"share": metrics.mean([1.0])}, 1) == {}
    assert bootstrap.intervals({"share": metrics.ratio(np.zeros(5), np.zeros(5))}, 5) == {}


@pytest.mark.parametrize(
    ("wins", "trials", "low", "high"),
    [(7, 9, 0.4526, 0.9368), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (0, 0, 0, 1)],
)
def test_wilsons_interval(wins, trials, low, high):
    assert bootstrap.wilson(wins, trials) == pytest.approx((low, high), abs=1e-4)
