"""Finds the best evaluation, divergence and overfitting in the losses of a run."""

import math
import statistics
from collections import deque
from collections.abc import Sequence

from peft_space.runs import events
from peft_space.runs.events import evaluations_of, steps_of

Points = Sequence[tuple[int, float]]
"""Losses by step, ascending: (step, loss)."""

_WINDOW = 30
"""Consecutive steps with a high loss that count as divergence: a few hard batches do not."""
_START_STEPS = 5
"""The starting loss is the median of these first steps."""
_DIVERGENCE_FACTOR = 1.5
_MIN_RELATIVE_RISE = 0.02
"""An evaluation loss has risen if it is higher by more than this fraction,"""
_MIN_ABSOLUTE_RISE = 0.01
"""and by more than this many nats."""


def best_of(evaluations: Points) -> tuple[int, float] | None:
    """Return the lowest finite loss, the first one if there are several."""
    finite = [(step, loss) for step, loss in evaluations if math.isfinite(loss)]
    return min(finite, key=lambda point: point[1], default=None)


def num_without_improvement(evaluations: Points) -> int:
    """Return the number of evaluations after the best one."""
    best = best_of(evaluations)
    return len(evaluations) if best is None else sum(step > best[0] for step, _ in evaluations)


def step_to_keep(evaluations: Points, last_step: int) -> int:
    """Return the step whose adapter to keep.

    This is the last step, unless an evaluation before the last one was better.
    """
    best = best_of(evaluations)
    return last_step if best is None or best[0] == evaluations[-1][0] else best[0]


class DivergenceDetector:
    """Takes the training losses in order and detects that training diverges."""

    def __init__(self) -> None:
        self._first: list[float] = []
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self._best = math.inf

    def diverges(self, loss: float) -> bool:
        """Add a loss, and return True if the last 30 were all above `level`."""
        if len(self._first) < _START_STEPS:
            self._first.append(loss)
        self._recent.append(loss)
        if len(self._recent) < _WINDOW:
            return False
        diverges = min(self._recent) > self.level
        self._best = min(self._best, statistics.median(self._recent))
        return diverges

    @property
    def start(self) -> float:
        """The loss at the start of training."""
        return statistics.median(self._first)

    @property
    def level(self) -> float:
        """The loss above which training diverges.

        1.5 x the starting loss or, if lower, the larger of 1.5 x the best loss and the loss at
        which half of the progress is lost.
        """
        half_lost = (self.start + self._best) / 2
        return min(_DIVERGENCE_FACTOR * self.start, max(half_lost, _DIVERGENCE_FACTOR * self._best))


def overfits_from(history: list[events.Event]) -> int | None:
    """Return the step from which the adapter overfits.

    This is the step of the lowest evaluation loss, if that loss rose afterward while the training
    loss fell. It rose if at least the last two evaluations are higher by over 2 % and over 0.01.
    """
    evaluations = [(event.step, event.loss) for event in evaluations_of(history)]
    best = best_of(evaluations)
    if best is None or num_without_improvement(evaluations) < 2:
        return None
    risen = best[1] + max(_MIN_RELATIVE_RISE * best[1], _MIN_ABSOLUTE_RISE)
    if not all(loss > risen for _, loss in evaluations[-2:]):
        return None
    ends = [0, *(step for step, _ in evaluations)]
    before, now = (
        _median_loss(history, ends[ends.index(end) - 1], end) for end in (best[0], ends[-1])
    )
    return best[0] if now < before else None


def _median_loss(history: list[events.Event], after: int, until: int) -> float:
    """Median training loss of the steps in (after, until], or NaN if there are none."""
    losses = [step.loss for step in steps_of(history) if after < step.step <= until]
    return statistics.median(losses) if losses else math.nan
