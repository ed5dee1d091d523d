"""Checks that the rows, recipe, base model and libraries of a checkpoint are still the same."""

import hashlib
import importlib.metadata
from typing import Any

from peft_space import hardware
from peft_space.data.arrow_store import Tokens
from peft_space.errors import UserError
from peft_space.formatting import RESUME_ANYWAY
from peft_space.models.resolve import BaseModelRef
from peft_space.runs.checkpoints import Provenance
from peft_space.runs.plan import Plan
from peft_space.runs.run import Run

_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "trl", "bitsandbytes")
_WITHOUT_EFFECT = {"high_rank_reason", "eval_split", "save_steps"}
"""Recipe fields that no longer matter once the run exists."""
_RECORDED_ELSEWHERE = {"base_model", "revision"}
"""Recipe fields that `Provenance.base` covers."""
_FIXED = {
    "task", "method", "lora_rank", "target_modules", "layers_to_transform", "lora_bias",
    "modules_to_save", "learning_rate", "weight_decay", "base", "compute_dtype", "device",
    "optim",
}  # fmt: skip
"""Values that the weights, the optimizer or the plan contain: another value would not fit, or
would have no effect."""


def current_provenance(
    run: Run, plan: Plan, base: BaseModelRef, train: Tokens, held_out: Tokens
) -> Provenance:
    """Return the provenance of a checkpoint written now."""
    rows = hashlib.sha256()
    for path in sorted(run.path("data").glob("*.arrow")):
        with open(path, "rb") as file:
            rows.update(hashlib.file_digest(file, "sha256").digest())
    recipe = run.recipe.model_dump(mode="json", exclude=_WITHOUT_EFFECT | _RECORDED_ELSEWHERE)
    return Provenance(
        rows=rows.hexdigest(),
        tokens=hashlib.sha256((train.digest() + held_out.digest()).encode()).hexdigest(),
        cut_at=plan.max_length,
        recipe=recipe,
        base=f"{base.name} at {base.revision}",
        compute_dtype=plan.compute_dtype,
        device=hardware.device(),
        versions={library: importlib.metadata.version(library) for library in _LIBRARIES},
    )


def check_provenance(
    step: int, saved: Provenance, current: Provenance, ignore_mismatch: bool
) -> list[str]:
    """Compare the provenance of a checkpoint with the current one.

    Args:
        step: the checkpoint's step.
        saved: the checkpoint's provenance.
        current: the provenance of a checkpoint written now.
        ignore_mismatch: whether to accept differences.

    Returns:
        The accepted differences, as text.

    Raises:
        UserError: if there are differences, and they cannot or should not be accepted.
    """
    differences = _differences(saved, current)
    if current.cut_at < saved.cut_at:  # memory ran out, and the user allowed shorter rows
        differences.pop("cut_at")
        differences.pop("tokens", None)
    details = "; ".join(differences.values())
    mismatch = f"Checkpoint {step} does not match the current setup: {details}."
    if fixed := sorted(_FIXED & set(differences)):
        raise UserError(
            "training.checkpoint_incompatible",
            f"{mismatch} Restore {' and '.join(fixed)}, or start a new run: "
            "a checkpoint cannot continue with another value.",
        )
    if differences and not ignore_mismatch:
        raise UserError(
            "training.checkpoint_mismatch",
            f"{mismatch} Restore the original, start a new run, or accept the difference: "
            f"{RESUME_ANYWAY}.",
        )
    return list(differences.values())


def _differences(saved: Provenance, current: Provenance) -> dict[str, str]:
    """Name of a value -> how it differs, as text."""
    before, after = _flatten(saved), _flatten(current)
    return {
        name: _describe_difference(name, before.get(name), after.get(name))
        for name in before | after
        if before.get(name) != after.get(name)
    }


def _flatten(provenance: Provenance) -> dict[str, Any]:
    values = provenance.model_dump(exclude={"recipe", "versions"})
    return {**provenance.recipe, **provenance.versions, **values}


def _describe_difference(name: str, before: Any, after: Any) -> str:
    match name:
        case "rows":
            return "the rows in the run's data folder have changed"
        case "tokens":
            return "the tokens have changed (through the rows, the tokenizer or the chat template)"
    return f"{name} was {before} and is {after}"
