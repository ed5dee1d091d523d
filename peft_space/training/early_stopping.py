"""Decides when training ends early and which step's adapter is kept.

All decisions follow from the trainer's state, which every checkpoint holds, so a resumed training
decides like an uninterrupted one.
"""

import math
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerState

from peft_space.errors import UserError
from peft_space.recipe import Recipe
from peft_space.runs import checkpoints, events
from peft_space.runs.run import Run
from peft_space.training import loss_analysis

_MAX_SKIPPED_STEPS = 30
"""In float16, a step whose gradient overflows is skipped and the loss scale is halved. After this
many skipped steps in a row, training learns nothing."""


def evaluations_in(state: TrainerState) -> loss_analysis.Points:
    """Return the evaluation losses so far."""
    entries = (entry for entry in state.log_history if "eval_loss" in entry)
    return [(int(entry["step"]), entry["eval_loss"]) for entry in entries]


def is_best(state: TrainerState) -> bool:
    """Return True if the latest evaluation is the best so far."""
    best = loss_analysis.best_of(evaluations_in(state))
    return best is not None and best[0] == state.global_step


def is_over(state: TrainerState, recipe: Recipe) -> bool:
    """Return True if the evaluation loss has not fallen for as long as the recipe's patience."""
    patience = recipe.early_stopping_patience
    if patience is None:
        return False
    return loss_analysis.num_without_improvement(evaluations_in(state)) >= patience


def best_at(state: TrainerState, step: int) -> int | None:
    """Return the step of the best evaluation up to `step`."""
    best = loss_analysis.best_of([point for point in evaluations_in(state) if point[0] <= step])
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
        self._detector = loss_analysis.DivergenceDetector()
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
    return TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def select_best_adapter(run: Run, trainer: Trainer) -> None:
    """Load the adapter of the step to keep into the model, and record the choice as an event."""
    last, evaluations = trainer.state.global_step, evaluations_in(trainer.state)
    step = last
    if run.recipe.load_best_model_at_end:
        step = loss_analysis.step_to_keep(evaluations, last)
    why = _reason_to_keep(step, loss_analysis.best_of(evaluations), run.recipe)
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
    model.load_adapter(str(checkpoint), "default", is_trainable=True)
