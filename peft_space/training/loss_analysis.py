"""What the losses of a run say: which evaluation was the best, when to stop, whether training diverges or learns its rows by heart.

Pure functions of figures. Knows nothing about trainers, files or how it is shown.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence

from peft_space.runs import events
from peft_space.runs.status import evaluations_of, steps_of

Points = Sequence[tuple[int, float]]
"""Losses by step, ascending: (step, loss)."""

_LONG = 30
"""Steps in a row that a loss has to be high to count: one batch of hard rows, or a few, is no divergence."""
_FIRST = 5
"""Steps whose median is the loss that training began with."""
_FAR_ABOVE = 1.5
_RISEN = 0.02
"""A held-out loss has risen where it is higher by more than this share,"""
_NEGLIGIBLE = 0.01
"""and by more than so many nats."""


def best_of(evaluations: Points) -> tuple[int, float] | None:
    """The lowest of the held-out losses, the first of equals; None where none is a number."""
    numbers = [(step, loss) for step, loss in evaluations if math.isfinite(loss)]
    return min(numbers, key=lambda point: point[1], default=None)


def num_without_improvement(evaluations: Points) -> int:
    """How many evaluations came after the best one."""
    best = best_of(evaluations)
    return len(evaluations) if best is None else sum(step > best[0] for step, _ in evaluations)


def step_to_keep(evaluations: Points, last_step: int) -> int:
    """The step whose adapter is the best that is known of: the last one, unless an evaluation before the last was better than it."""
    best = best_of(evaluations)
    return last_step if best is None or best[0] == evaluations[-1][0] else best[0]


class DivergenceDetector:
    """Takes the training losses one by one, and says when training has lost its way for good."""

    def __init__(self) -> None:
        self._first: list[float] = []
        self._recent: deque[float] = deque(maxlen=_LONG)
        self._best = math.inf

    def diverges(self, loss: float) -> bool:
        """Whether, with this loss, the last 30 were all above `level`."""
        if len(self._first) < _FIRST:
            self._first.append(loss)
        self._recent.append(loss)
        if len(self._recent) < _LONG:
            return False
        found = min(self._recent) > self.level
        self._best = min(self._best, statistics.median(self._recent))
        return found

    @property
    def start(self) -> float:
        """The loss that training began with."""
        return statistics.median(self._first)

    @property
    def level(self) -> float:
        """1.5 times the loss at the start; or, if lower, where half of what was learnt is lost again, and 1.5 times the best."""
        return min(
            _FAR_ABOVE * self.start, max((self.start + self._best) / 2, _FAR_ABOVE * self._best)
        )


def overfits_from(happened: list[events.Event]) -> int | None:
    """The step from which rows are learnt by heart: the lowest held-out loss, after which it rose while the training loss fell.

    It has risen where the last two evaluations, or more, are higher by over 2 %, and over 0.01. None where that is not so.
    """
    evaluations = [(event.step, event.loss) for event in evaluations_of(happened)]
    best = best_of(evaluations)
    if best is None or num_without_improvement(evaluations) < 2:
        return None
    risen = best[1] + max(_RISEN * best[1], _NEGLIGIBLE)
    if not all(loss > risen for _, loss in evaluations[-2:]):
        return None
    ends = [0, *(step for step, _ in evaluations)]
    before, now = (
        _typical_loss(happened, ends[ends.index(end) - 1], end) for end in (best[0], ends[-1])
    )
    return best[0] if now < before else None


def _typical_loss(happened: list[events.Event], after: int, until: int) -> float:
    """The median training loss of the steps between; not a number where there are none."""
    losses = [step.loss for step in steps_of(happened) if after < step.step <= until]
    return statistics.median(losses) if losses else math.nan
