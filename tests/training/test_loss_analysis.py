"""The best evaluation, divergence without false alarms, and overfitting are found in losses."""

import math

import numpy as np
import pytest

from peft_space.runs import events
from peft_space.training.early_stopping import (
    DivergenceDetector,
    best_of,
    num_without_improvement,
    overfits_from,
    step_to_keep,
)


def test_the_best_evaluation_is_the_first_with_the_lowest_loss():
    assert best_of([(10, 2.0), (20, 1.0), (30, math.nan), (40, 1.0)]) == (20, 1.0)
    assert best_of([(10, math.nan)]) is None
    assert best_of([]) is None


def test_evaluations_without_improvement_are_counted_from_the_best():
    assert num_without_improvement([]) == 0
    assert num_without_improvement([(10, 2.0), (20, 1.0)]) == 0
    assert num_without_improvement([(10, 1.0), (20, 1.0), (30, math.nan)]) == 2
    assert num_without_improvement([(10, math.nan), (20, math.nan)]) == 2


@pytest.mark.parametrize(
    ("evaluations", "kept"),
    [
        ([], 45),
        ([(40, 1.0)], 45),
        ([(20, 1.0), (40, 2.0)], 20),
        ([(20, 2.0), (40, 1.0)], 45),
        ([(20, 1.0), (40, math.nan)], 20),
    ],
)
def test_the_last_adapter_is_kept_unless_an_earlier_one_was_better(evaluations, kept):
    assert step_to_keep(evaluations, 45) == kept


# Divergence


def diverges_at(losses):
    detector = DivergenceDetector()
    steps = (step for step, loss in enumerate(losses, 1) if detector.diverges(float(loss)))
    return next(steps, None)


FALLING = 0.05 + 2 * np.exp(-np.arange(300) / 40)


@pytest.mark.parametrize("noise", [0.1, 0.3, 0.5])
@pytest.mark.sample(1)
def test_a_noisy_loss_is_not_a_divergence(noise):
    random = np.random.default_rng(0)
    for _ in range(100):
        assert diverges_at(FALLING * random.lognormal(0, noise, 300)) is None
        assert diverges_at(2 * random.lognormal(0, noise, 300)) is None, (
            "a constant loss is not a divergence either"
        )


def test_single_high_losses_are_not_a_divergence():
    assert diverges_at([2.0, 1.0, 0.5, *[9.0] * 3, 0.4, *[8.0] * 20, 0.3, 0.2]) is None
    assert diverges_at(np.where(np.arange(300) % 10 == 0, 5.0, FALLING)) is None


def test_a_loss_that_rises_far_above_its_start_for_long_is_a_divergence():
    assert diverges_at([2.0, 2.0, 1.2, 9.0, 8.0, *[4.0] * 40]) == 33
    assert diverges_at([2.0] * 20 + [3.5] * 40) == 50


def test_losing_more_than_half_of_the_progress_is_a_divergence():
    assert diverges_at([*FALLING, *[1.4] * 40]) == 330
    assert diverges_at([*FALLING, *[0.8] * 40]) is None
    assert diverges_at([2.0] * 10 + [0.001] * 50 + [0.1] * 50) is None, (
        "ten times the best loss is still close to zero"
    )


# Overfitting


def history(training, held_out, every=10):
    """Events of `every` steps with each training loss, followed by an evaluation."""
    result = []
    for number, (loss, evaluated) in enumerate(zip(training, held_out, strict=True)):
        for step in range(number * every + 1, (number + 1) * every + 1):
            result.append(
                events.Step(
                    attempt=1,
                    step=step,
                    loss=loss,
                    learning_rate=1,
                    grad_norm=1,
                    tokens=1,
                    seconds=1,
                )
            )
        result.append(events.Evaluated(attempt=1, step=(number + 1) * every, loss=evaluated))
    return result


@pytest.mark.parametrize(
    ("training", "held_out", "step"),
    [
        ([2.0, 1.0, 0.5, 0.2, 0.1], [1.9, 1.2, 1.1, 1.3, 1.6], 30),
        ([2.0, 1.0, 0.5], [1.2, 1.4, 1.6], 10),
        ([2.0, 1.0, 0.5, 0.2], [1.9, 1.2, 1.1, 1.6], None),
        ([2.0, 1.0, 0.5, 0.2, 0.1], [1.9, 1.2, 1.1, 1.11, 1.12], None),
        ([2.0, 1.0, 0.5, 0.2, 0.1], [1.9, 1.2, 1.1, 1.6, 1.11], None),
        ([0.1, 0.05, 0.01, 0.005], [0.004, 0.003, 0.006, 0.008], None),
        ([2.0, 1.0, 3.0, 4.0, 5.0], [1.9, 1.2, 3.1, 4.2, 5.1], None),
        ([2.0, 1.0, 0.5], [1.5, 1.0, 0.8], None),
        ([2.0], [1.5], None),
        ([2.0, 1.0, 0.5, 0.2], [math.nan] * 4, None),
    ],
    ids=[
        "rises",
        "from the first",
        "once",
        "within noise",
        "recovers",
        "close to zero",
        "diverges",
        "falls",
        "single evaluation",
        "not finite",
    ],
)
def test_overfitting_is_a_rising_evaluation_loss_with_a_falling_training_loss(
    training, held_out, step
):
    assert overfits_from(history(training, held_out)) == step


def test_without_events_there_is_no_overfitting():
    assert overfits_from([]) is None
