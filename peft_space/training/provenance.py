"""The Origin of a checkpoint: the rows, the recipe, the base and the libraries that it is of. Only from the same is training gone on with silently."""

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
"""Fields of a recipe that shape nothing any more once the run is made; `base_model` and `revision` are told by the base."""
_IN_THE_CHECKPOINT = {
    "task", "method", "lora_rank", "target_modules", "layers_to_transform", "lora_bias", "modules_to_save", "learning_rate", "weight_decay",
    "base", "compute_dtype", "device", "row_order",
}  # fmt: skip
"""What the weights, the optimizer and the plan hold already, so that another value would have no effect or not fit."""


def current_provenance(
    run: Run, plan: Plan, base: BaseModelRef, train: Tokens, held_out: Tokens
) -> Provenance:
    """What a checkpoint would be of that is written now."""
    rows = hashlib.sha256()
    for path in sorted(run.path("data").glob("*.arrow")):
        with open(path, "rb") as file:
            rows.update(hashlib.file_digest(file, "sha256").digest())
    return Provenance(
        rows=rows.hexdigest(),
        tokens=hashlib.sha256((train.digest() + held_out.digest()).encode()).hexdigest(),
        cut_at=plan.max_length,
        recipe=run.recipe.model_dump(
            mode="json", exclude={*_WITHOUT_EFFECT, "base_model", "revision"}
        ),
        base=f"{base.name} at {base.revision}",
        compute_dtype=plan.compute_dtype,
        device=hardware.device(),
        versions={library: importlib.metadata.version(library) for library in _LIBRARIES},
    )


def check_provenance(step: int, then: Provenance, now: Provenance, anyway: bool) -> list[str]:
    """How a checkpoint's origin differs from what is here, in words, where training goes on anyway; nothing where it does not differ.

    Raises UserError where it was not said to go on anyway, or where that is impossible.
    """
    differences = _differences(then, now)
    if now.cut_at < then.cut_at:  # because memory ran out, and the user agreed to it
        differences = {
            name: how for name, how in differences.items() if name not in ("cut_at", "tokens")
        }
    told = "; ".join(differences.values())
    found = f"Checkpoint {step} of this run is not of what is here now: {told}."
    if fixed := sorted(_IN_THE_CHECKPOINT & set(differences)):
        raise UserError(
            "todo",
            f"{found} Put back {' and '.join(fixed)} as it was, or train anew: a checkpoint cannot go on with another.",
        )
    if differences and not anyway:
        raise UserError(
            "todo",
            f"{found} Put it back as it was, train anew, or go on knowingly: {RESUME_ANYWAY}.",
        )
    return list(differences.values())


def _differences(then: Provenance, now: Provenance) -> dict[str, str]:
    """What differs -> how, in words."""
    before, after = _flat(then), _flat(now)
    return {
        name: _how(name, before.get(name), after.get(name))
        for name in before | after
        if before.get(name) != after.get(name)
    }


def _flat(origin: Provenance) -> dict[str, Any]:
    return {**origin.recipe, **origin.versions, **origin.model_dump(exclude={"recipe", "versions"})}


def _how(name: str, then: Any, now: Any) -> str:
    match name:
        case "rows":
            return "the rows in its folder data have changed"
        case "tokens":
            return (
                "the tokens of its rows have changed (the rows, the tokenizer or its chat template)"
            )
    return f"{name} was {then} and is {now}"
