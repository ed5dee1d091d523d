"""What the trainer tells the run while it trains, and how the run tells the trainer to leave."""

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peft_space import hardware
from peft_space.runs import checkpoints, events
from peft_space.runs.checkpoints import Provenance
from peft_space.runs.run import Run, StopKind
from peft_space.storage import atomic_io
from peft_space.training import distributed, early_stopping

_METRICS = {
    "rewards/margins": "reward margin",
    "rewards/accuracies": "better answer likelier",
    "accuracy": "accuracy",
    "macro-F1": "macro-F1",
}


def _metrics(logs: dict[str, float]) -> dict[str, float]:
    """What the task measures besides the loss, by the names that users read."""
    plain = {name.removeprefix("eval_"): value for name, value in logs.items()}
    return {title: plain[name] for name, title in _METRICS.items() if name in plain}


class RunCallback(TrainerCallback):
    """Writes an event for each step, evaluation and checkpoint; saves and leaves after the step in which it is asked to.

    It also ends a training whose loss is no number any more, or whose held-out loss no longer falls, and saves what was the best so far.

    `left` is why training ended before its last step, or None.
    """

    def __init__(self, run: Run, attempt: int, deadline: float | None, origin: Provenance):
        self.run = run
        self.attempt = attempt
        self.deadline = deadline
        self.origin = origin
        self.left: StopKind | None = None
        self._watch: early_stopping.LossMonitor
        self._began = 0.0
        self._seconds = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._watch = early_stopping.LossMonitor(
            self.run.recipe.method, args.learning_rate, args.fp16, state
        )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._began = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._seconds = time.perf_counter() - self._began
        if state.global_step >= state.max_steps:
            return
        asked = self.run.requested_stop()
        if asked is None and self.deadline is not None and time.time() >= self.deadline:
            asked = "pause"
        self.left = distributed.broadcast_from_main(asked)
        if self.left:
            control.should_save = control.should_training_stop = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **kwargs: Any,
    ) -> None:
        if "loss" in logs:
            self.run.append(
                events.Step(
                    attempt=self.attempt,
                    step=state.global_step,
                    loss=logs["loss"],
                    learning_rate=logs["learning_rate"],
                    grad_norm=logs["grad_norm"],
                    tokens=int(state.num_input_tokens_seen),
                    seconds=self._seconds,
                    memory=hardware.peak_memory(),
                    metrics=_metrics(logs),
                )
            )
            if warned := self._watch.look(state.global_step, logs["loss"], logs["grad_norm"]):
                self.run.append(warned)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        self.run.append(
            events.Evaluated(
                attempt=self.attempt,
                step=state.global_step,
                loss=metrics["eval_loss"],
                metrics=_metrics(metrics),
            )
        )
        if self.run.recipe.load_best_model_at_end and early_stopping.is_best(state):
            control.should_save = True
        if early_stopping.is_over(state, self.run.recipe):
            control.should_training_stop = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        distributed.wait()  # each writes its random state
        if not distributed.is_main():
            return
        atomic_io.sync(self.run.path("events.jsonl"))  # the steps that led to it
        checkpoints.seal(
            self.run.path("checkpoints", f"checkpoint-{state.global_step}"), self.origin
        )
        checkpoints.remove_all_but_newest(
            self.run,
            lambda step: (
                early_stopping.best_at(state, step)
                if self.run.recipe.load_best_model_at_end
                else None
            ),
        )
        self.run.append(events.Checkpointed(step=state.global_step))
