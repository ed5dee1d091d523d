"""Connects the trainer to the run's events and stop requests, and to experiment trackers."""

import importlib.util
import os
import time
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peft_space import hardware
from peft_space.errors import UserError
from peft_space.runs import checkpoints, events
from peft_space.runs.checkpoints import Provenance
from peft_space.runs.run import Run, StopKind
from peft_space.storage import atomic_io
from peft_space.training import distributed, early_stopping

TRACKERS = ("tensorboard", "trackio", "wandb")
"""Experiment trackers; the names are also those of their PyPI packages."""

_METRICS = {
    "rewards/margins": "reward margin",
    "rewards/accuracies": "better answer likelier",
    "accuracy": "accuracy",
    "macro-F1": "macro-F1",
}


def _task_metrics(logs: dict[str, float]) -> dict[str, float]:
    """Metrics other than the loss, by the names that users read."""
    values = {name.removeprefix("eval_"): value for name, value in logs.items()}
    return {title: values[name] for name, title in _METRICS.items() if name in values}


class RunCallback(TrainerCallback):
    """Records steps, evaluations and checkpoints as events, and ends training early.

    Training ends after the current step when you stop or pause it, or at the deadline. It also ends
    at the first non-finite loss, and when the evaluation loss no longer falls. It saves a
    checkpoint first.

    Args:
        run: the run that is trained.
        attempt: number of this attempt, from 1.
        deadline: time, in seconds since 1970, after which training pauses.
        provenance: recorded in every checkpoint.

    Attributes:
        stop_kind: why training ended before its last step, or None.
    """

    def __init__(self, run: Run, attempt: int, deadline: float | None, provenance: Provenance):
        self.run = run
        self.attempt = attempt
        self.deadline = deadline
        self.provenance = provenance
        self.stop_kind: StopKind | None = None
        self._monitor: early_stopping.LossMonitor
        self._step_start = 0.0
        self._step_seconds = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._monitor = early_stopping.LossMonitor(
            self.run.recipe.method, args.learning_rate, args.fp16, state
        )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._step_start = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._step_seconds = time.perf_counter() - self._step_start
        if state.global_step >= state.max_steps:
            return
        request = self.run.requested_stop()
        if request is None and self.deadline is not None and time.time() >= self.deadline:
            request = "pause"
        self.stop_kind = distributed.broadcast_from_main(request)
        if self.stop_kind:
            control.should_save = control.should_training_stop = True

    def on_log(  # type: ignore[override]
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **kwargs: Any,
    ) -> None:
        if "loss" not in logs:
            return
        step = events.Step(
            attempt=self.attempt,
            step=state.global_step,
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            grad_norm=logs["grad_norm"],
            tokens=int(state.num_input_tokens_seen),
            seconds=self._step_seconds,
            memory=hardware.peak_memory(),
            metrics=_task_metrics(logs),
        )
        self.run.append(step)
        if warning := self._monitor.check_step(step.step, step.loss, step.grad_norm):
            self.run.append(warning)

    def on_evaluate(  # type: ignore[override]
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        evaluated = events.Evaluated(
            attempt=self.attempt,
            step=state.global_step,
            loss=metrics["eval_loss"],
            metrics=_task_metrics(metrics),
        )
        self.run.append(evaluated)
        if self.run.recipe.load_best_model_at_end and early_stopping.is_best(state):
            control.should_save = True
        if early_stopping.is_over(state, self.run.recipe):
            control.should_training_stop = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        distributed.wait()  # every process writes its random state
        if not distributed.is_main():
            return
        atomic_io.sync(self.run.path("events.jsonl"))  # the steps before this checkpoint
        checkpoint = self.run.path("checkpoints", f"checkpoint-{state.global_step}")
        checkpoints.seal(checkpoint, self.provenance)
        keep_best = self.run.recipe.load_best_model_at_end
        checkpoints.remove_all_but_newest(
            self.run, lambda step: early_stopping.best_at(state, step) if keep_best else None
        )
        self.run.append(events.Checkpointed(step=state.global_step))


def check_trackers(names: Sequence[str]) -> None:
    """Check that training can be reported to these trackers.

    Raises:
        UserError: if a name is unknown, its package is not installed, or Weights & Biases has no
            account.
    """
    for name in names:
        if name not in TRACKERS:
            raise UserError(
                "training.tracker_unknown",
                f"Unknown tracker {name!r}. Choose from {', '.join(TRACKERS)}.",
            )
        if importlib.util.find_spec(name) is None:
            raise UserError(
                "training.tracker_not_installed",
                f"Reporting to {name} needs a package that is not installed. "
                f"Install it: pip install {name}",
            )
    online = os.environ.get("WANDB_MODE", "online") == "online"
    if "wandb" in names and online and not _is_signed_in_to_wandb():
        raise UserError(
            "training.tracker_not_signed_in",
            "Weights & Biases cannot be reached, or you are not signed in. "
            "Run `wandb login`, or set WANDB_MODE=offline.",
        )


def _is_signed_in_to_wandb() -> bool:
    import wandb

    try:
        return wandb.login(prompt=False)
    except wandb.errors.Error:
        return False


def tracker_arguments(names: Sequence[str], run: Run) -> dict[str, Any]:
    """Return the `TrainingArguments` that report to these trackers.

    TensorBoard writes to checkpoints/runs/ of the run, the others to their own places. Addresses
    and tokens come from the settings of these tools.
    """
    return {"report_to": list(names) or "none", "run_name": run.name, "project": "peft_space"}
