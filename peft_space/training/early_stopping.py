"""When a training ends before its last step, what ends it at once, and which step's adapter is kept.

All of it follows from the trainer's own state, which each checkpoint holds, so a resumed training decides as an uninterrupted one.
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

_MOST_SKIPPED = 30
"""In float16 a step whose gradient overflows is skipped and the loss scaled down by half; this often in a row, and nothing is learnt."""


def evaluations_in(state: TrainerState) -> loss_analysis.Points:
    """The held-out losses up to now."""
    return [
        (entry["step"], entry["eval_loss"]) for entry in state.log_history if "eval_loss" in entry
    ]


def is_best(state: TrainerState) -> bool:
    """Whether the evaluation that was just made is the best so far."""
    best = loss_analysis.best_of(evaluations_in(state))
    return best is not None and best[0] == state.global_step


def is_over(state: TrainerState, recipe: Recipe) -> bool:
    """Whether held-out rows have been scored in vain as often as the recipe allows."""
    return (
        recipe.early_stopping_patience is not None
        and loss_analysis.num_without_improvement(evaluations_in(state))
        >= recipe.early_stopping_patience
    )


def best_at(state: TrainerState, step: int) -> int | None:
    """The step that was the best one when training was at `step`."""
    best = loss_analysis.best_of([point for point in evaluations_in(state) if point[0] <= step])
    return best[0] if best else None


class LossMonitor:
    """Looks at each step's loss and gradient: ends a training that is beyond help, and warns once of one that diverges."""

    def __init__(self, method: str, learning_rate: float, float16: bool, state: TrainerState):
        self._method = method
        self._learning_rate = learning_rate
        self._float16 = float16
        self._num_skipped = 0
        self._trend = loss_analysis.DivergenceDetector()
        self._warned = False
        for entry in state.log_history:
            if "loss" in entry and self._trend.diverges(entry["loss"]):
                self._warned = True

    def look(self, step: int, loss: float, grad_norm: float) -> events.Warned | None:
        """Raises UserError where the loss is no number any more, or the gradient, which makes every later loss none."""
        self._num_skipped = 0 if math.isfinite(grad_norm) else self._num_skipped + 1
        lost = not math.isfinite(grad_norm) and not (
            self._float16 and self._num_skipped < _MOST_SKIPPED
        )
        if not math.isfinite(loss) or lost:
            raise UserError(
                "todo", self._no_number(step, "loss" if not math.isfinite(loss) else "gradient")
            )
        if not self._trend.diverges(loss) or self._warned:
            return None
        self._warned = True
        return events.Warned(
            step=step,
            what=f"The loss stays high: it has been above {self._trend.level:.2f} for 30 steps, and it began at {self._trend.start:.2f}.",
            advice=f"Stop, and start a new run with a lower learning_rate, such as {self._lower} (it is {self._learning_rate:g}).",
        )

    @property
    def _lower(self) -> str:
        return f"{self._learning_rate / 10:.1g}"

    def _no_number(self, step: int, what: str) -> str:
        if step > 1:
            advice = (
                "Mostly the learning rate is too high: start a new run with a lower learning_rate, "
            )
            advice += f"such as {self._lower} (it is {self._learning_rate:g}). If that does not help, look for broken rows on the Data tab."
        elif self._method == "dora":
            advice = "DoRA divides by the length of each row of the base's weights, and some may be all zeros here. Choose the method lora."
        else:
            advice = "Nothing had been learnt yet, so the base model itself gives no number. Choose another one, or another revision."
        if self._float16:
            advice += " This GPU computes in float16, which overflows early; one with bfloat16 bears more."
        return f"Step {step}: the {what} is not a finite number, and nothing can be learnt from there on, so the training has ended. {advice}"


def restore_final_state(checkpoint: Path, trainer: Trainer) -> None:
    """Put the trainer where training was over already when this checkpoint was written."""
    trainer.state = state_of(checkpoint)
    _take_adapter(checkpoint, trainer.model)


def state_of(checkpoint: Path) -> TrainerState:
    """What the trainer knew when a checkpoint was written."""
    return TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def select_best_adapter(run: Run, trainer: Trainer) -> None:
    """Let the model have the adapter that is to be kept, and tell which it is."""
    last, evaluations = trainer.state.global_step, evaluations_in(trainer.state)
    best = loss_analysis.best_of(evaluations)
    step = (
        loss_analysis.step_to_keep(evaluations, last) if run.recipe.load_best_model_at_end else last
    )
    if best is None:
        why = "it is the newest, and no held-out loss was taken"
    elif step == best[0]:
        why = f"its held-out loss was the lowest, {best[1]:.4g}"
    elif run.recipe.load_best_model_at_end:
        why = f"it is the newest, and the last held-out loss was the lowest, {best[1]:.4g} at step {best[0]}"
    else:
        why = "it is the newest, and the recipe does not ask for the best"
    if step != last:
        checkpoint = run.path("checkpoints", f"checkpoint-{step}")
        if checkpoint.is_dir() and checkpoints.damage(checkpoint) is None:
            _take_adapter(checkpoint, trainer.model)
        else:
            step, why = (
                last,
                f"it is the newest. That of step {step} had a lower held-out loss, but its checkpoint is damaged or gone",
            )
    if is_over(trainer.state, run.recipe) and last < trainer.state.max_steps:
        why += f". Training ended at step {last} of {trainer.state.max_steps}: {run.recipe.early_stopping_patience} evaluations in a row were no better"
    run.append(events.CheckpointSelected(step=step, why=f"{why}."))


def _take_adapter(checkpoint: Path, model: Any) -> None:
    model.load_adapter(str(checkpoint), "default", is_trainable=True)
