"""Decides when training ends early, and which step's adapter to keep.

All decisions follow from the trainer's state, which every checkpoint contains. So a resumed
training decides like an uninterrupted one.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Trainer, TrainerState
import statistics
from collections import deque
from collections.abc import Sequence

from peft_space.errors import UserError
from peft_space.recipe import Recipe
from peft_space.runs import checkpoints, events
from peft_space.runs.events import evaluations_of, steps_of
from peft_space.runs.run import Run

_MAX_SKIPPED_STEPS = 30
"""In float16, a step whose gradient overflows is skipped and the loss scale is halved. After this
many skipped steps in a row, training learns nothing."""


def evaluations_in(state: TrainerState) -> Points:
    """Return the evaluation losses so far."""
    entries = (entry for entry in state.log_history if "eval_loss" in entry)
    return [(int(entry["step"]), entry["eval_loss"]) for entry in entries]


def is_best(state: TrainerState) -> bool:
    """Return True if the latest evaluation is the best so far."""
    best = best_of(evaluations_in(state))
    return best is not None and best[0] == state.global_step


def is_over(state: TrainerState, recipe: Recipe) -> bool:
    """Return True if the evaluation loss has not fallen for as long as the recipe's patience."""
    patience = recipe.early_stopping_patience
    if patience is None:
        return False
    return num_without_improvement(evaluations_in(state)) >= patience


def best_at(state: TrainerState, step: int) -> int | None:
    """Return the step of the best evaluation up to `step`."""
    best = best_of([point for point in evaluations_in(state) if point[0] <= step])
    return best[0] if best else None


class LossMonitor:
    """Checks each step's loss and gradient: ends a hopeless training, and warns of divergence once.

    Args:
        method: the recipe's method.
        learning_rate: the peak learning rate.
        float16: whether training computes in float16, where single overflows are normal.
        state: the trainer's state, with the losses of earlier attempts.
    """

    def __init__(self, method: str, learning_rate: float, float16: bool, state: TrainerState):
        self._method = method
        self._learning_rate = learning_rate
        self._float16 = float16
        self._num_skipped = 0
        self._detector = DivergenceDetector()
        self._warned = False
        for entry in state.log_history:
            if "loss" in entry and self._detector.diverges(entry["loss"]):
                self._warned = True

    def check_step(self, step: int, loss: float, grad_norm: float) -> events.Warned | None:
        """Check a step, and return a warning if the loss diverges for the first time.

        Raises:
            UserError: if the loss or the gradient is not finite, because every later loss would
                not be finite either.
        """
        self._num_skipped = 0 if math.isfinite(grad_norm) else self._num_skipped + 1
        may_skip = self._float16 and self._num_skipped < _MAX_SKIPPED_STEPS
        if not math.isfinite(loss):
            raise self._not_finite(step, "loss")
        if not math.isfinite(grad_norm) and not may_skip:
            raise self._not_finite(step, "gradient")
        if not self._detector.diverges(loss) or self._warned:
            return None
        self._warned = True
        return events.Warned(
            step=step,
            what=(
                f"The loss stays high: it has been above {self._detector.level:.2f} for 30 steps, "
                f"and it started at {self._detector.start:.2f}."
            ),
            advice=(
                f"Stop, and start a new run with a lower learning_rate, such as {self._lower_rate} "
                f"(now {self._learning_rate:g})."
            ),
        )

    @property
    def _lower_rate(self) -> str:
        return f"{self._learning_rate / 10:.1g}"

    def _not_finite(self, step: int, quantity: str) -> UserError:
        if step > 1:
            advice = (
                "The learning rate is probably too high: start a new run with a lower "
                f"learning_rate, such as {self._lower_rate} (now {self._learning_rate:g}). If that "
                "does not help, check the rows for errors on the Data tab."
            )
        elif self._method == "dora":
            advice = (
                "DoRA divides by the norm of each row of the base weights, and some may be all "
                "zeros. Choose the method lora."
            )
        else:
            advice = (
                "Nothing was trained yet, so the base model itself produces the error. "
                "Choose another base model or revision."
            )
        if self._float16:
            advice += " This GPU computes in float16, which overflows easily; bfloat16 does not."
        return UserError(
            "training.not_finite",
            f"Step {step}: the {quantity} is not a finite number, so training ended. {advice}",
        )


def restore_final_state(checkpoint: Path, trainer: Trainer) -> None:
    """Restore the trainer from a checkpoint that was saved when training was over."""
    trainer.state = state_of(checkpoint)
    _load_adapter(checkpoint, trainer.model)


def state_of(checkpoint: Path) -> TrainerState:
    """Read the trainer's state from a checkpoint."""
    from transformers import TrainerState

    return TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def select_best_adapter(run: Run, trainer: Trainer) -> None:
    """Load the adapter of the step to keep into the model, and record the choice as an event."""
    last, evaluations = trainer.state.global_step, evaluations_in(trainer.state)
    step = last
    if run.recipe.load_best_model_at_end:
        step = step_to_keep(evaluations, last)
    why = _reason_to_keep(step, best_of(evaluations), run.recipe)
    if step != last:
        checkpoint = run.path("checkpoints", f"checkpoint-{step}")
        if checkpoint.is_dir() and checkpoints.damage(checkpoint) is None:
            _load_adapter(checkpoint, trainer.model)
        else:
            why = (
                f"it is the latest. Step {step} had a lower evaluation loss, "
                "but its checkpoint is damaged or missing"
            )
            step = last
    if is_over(trainer.state, run.recipe) and last < trainer.state.max_steps:
        why += (
            f". Training ended at step {last} of {trainer.state.max_steps}: "
            f"{run.recipe.early_stopping_patience} evaluations in a row were no better"
        )
    run.append(events.CheckpointSelected(step=step, why=f"{why}."))


def _reason_to_keep(step: int, best: tuple[int, float] | None, recipe: Recipe) -> str:
    if best is None:
        return "it is the latest, and there were no evaluations"
    if step == best[0]:
        return f"its held-out loss was the lowest, {best[1]:.4g}"
    if recipe.load_best_model_at_end:
        return (
            "it is the latest, and the last evaluation was the best, "
            f"with a loss of {best[1]:.4g} at step {best[0]}"
        )
    return "it is the latest, and the recipe does not keep the best one"


def _load_adapter(checkpoint: Path, model: Any) -> None:
    from peft_space.models.loading import check_adapter_is_loaded

    model.load_adapter(str(checkpoint), "default", is_trainable=True)
    check_adapter_is_loaded(model, checkpoint)


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

        At most 1.5 x the starting loss. If lower, it is the larger of 1.5 x the best loss and the
        loss at which half of the progress is lost.
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
