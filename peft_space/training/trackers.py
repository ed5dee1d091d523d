"""Reports a training to TensorBoard, trackio or Weights & Biases, by the Trainer's own integrations, where somebody asked for it.

It is a choice of who trains, not of the recipe: the adapter is the same. Addresses and tokens stay with these tools and their settings.
"""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

from peft_space.errors import UserError
from peft_space.runs.run import Run

TOOLS = ("tensorboard", "trackio", "wandb")
"""By the names that they have on PyPI, too."""


def check(names: Sequence[str]) -> None:
    """Raises UserError where a name is unknown, its package is not installed, or Weights & Biases knows no account."""
    for name in names:
        if name not in TOOLS:
            raise UserError(
                "todo", f"A training cannot be reported to {name!r}. Choose of {', '.join(TOOLS)}."
            )
        if importlib.util.find_spec(name) is None:
            raise UserError(
                "todo",
                f"Reporting to {name} needs a package that is not installed here. Install it: pip install {name}",
            )
    if "wandb" in names and os.environ.get("WANDB_MODE", "online") == "online" and not _signed_in():
        raise UserError(
            "todo",
            "Weights & Biases cannot be reached, or nobody is signed in to it. Run `wandb login`, or set WANDB_MODE=offline.",
        )


def _signed_in() -> bool:
    import wandb

    try:
        return wandb.login(prompt=False)
    except wandb.errors.Error:
        return False


def arguments(names: Sequence[str], run: Run) -> dict[str, Any]:
    """What `TrainingArguments` takes. TensorBoard's files lie under checkpoints/runs/ of the run; the others have their own places."""
    return {"report_to": list(names) or "none", "run_name": run.name, "project": "peft_space"}
