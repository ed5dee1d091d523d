"""The model of a training that left at its deadline, kept for the next call in the same process: a large base takes long to load."""

from pathlib import Path
from typing import Any

from peft_space.runs.plan import Plan
from peft_space.runs.run import Run


class ModelCache:
    """At most one model. All of it that is trained is overwritten from the checkpoint that training goes on from."""

    def __init__(self) -> None:
        self._kept: tuple[Path, Plan, Any] | None = None

    def take(self, run: Run, plan: Plan | None, checkpoint: Path | None) -> Any:
        """The model of this run, if it is as it was left; whatever it is, it is kept no longer, so that there are never two."""
        kept, self._kept = self._kept, None
        return kept[2] if kept and checkpoint and kept[:2] == (run.directory, plan) else None

    def keep(self, run: Run, plan: Plan, trainer: Any) -> None:
        """Keep the model that a trainer has trained, without what the trainer put around it."""
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        model.zero_grad(set_to_none=True)
        model.__dict__.pop(
            "_is_accelerate_prepared", None
        )  # or the next trainer would leave it without its autocast
        self._kept = run.directory, plan, model
