"""The Origin of a checkpoint: the rows, the recipe, the base and the libraries that it is of. Only from the same is training gone on with silently."""

import hashlib
import importlib.metadata
from typing import Any

from pydantic import BaseModel, ConfigDict

from peft_space import hardware
from peft_space.data.store import Tokens
from peft_space.errors import UserError
from peft_space.models.base import Base
from peft_space.run import Run
from peft_space.training.plan import Plan
from peft_space.words import RESUME_ANYWAY

_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "trl", "bitsandbytes")
_WITHOUT_EFFECT = {"justification", "held_out_share", "save_steps"}
"""Fields of a recipe that shape nothing any more once the run is made; `base_model` and `revision` are told by the base."""
_IN_THE_CHECKPOINT = {
    "task", "method", "lora_rank", "target_modules", "layers_to_transform", "lora_bias", "modules_to_save", "learning_rate", "weight_decay",
    "base", "compute_dtype", "device", "row_order",
}  # fmt: skip
"""What the weights, the optimizer and the plan hold already, so that another value would have no effect or not fit."""


class Origin(BaseModel):
    """What a checkpoint is of."""

    model_config = ConfigDict(frozen=True)

    rows: str
    """SHA-256 of the files that the rows lie in."""
    tokens: str
    """SHA-256 of what the model was given of them, in order."""
    cut_at: int
    """Tokens after which rows are cut off."""
    recipe: dict[str, Any]
    base: str
    compute_dtype: str
    device: str
    versions: dict[str, str]


def origin_of(run: Run, plan: Plan, base: Base, train: Tokens, held_out: Tokens) -> Origin:
    """What a checkpoint would be of that is written now."""
    rows = hashlib.sha256()
    for path in sorted(run.path("data").glob("*.arrow")):
        with open(path, "rb") as file:
            rows.update(hashlib.file_digest(file, "sha256").digest())
    return Origin(
        rows=rows.hexdigest(),
        tokens=hashlib.sha256((train.digest() + held_out.digest()).encode()).hexdigest(),
        cut_at=plan.max_length,
        recipe=run.recipe.model_dump(mode="json", exclude={*_WITHOUT_EFFECT, "base_model", "revision"}),
        base=f"{base.name} at {base.revision}",
        compute_dtype=plan.compute_dtype,
        device=hardware.device(),
        versions={library: importlib.metadata.version(library) for library in _LIBRARIES},
    )


def refuse_another(step: int, then: Origin, now: Origin, anyway: bool) -> list[str]:
    """How a checkpoint's origin differs from what is here, in words, where training goes on anyway; nothing where it does not differ.

    Raises UserError where it was not said to go on anyway, or where that is impossible.
    """
    differences = _differences(then, now)
    if now.cut_at < then.cut_at:  # because memory ran out, and the user agreed to it
        differences = {name: how for name, how in differences.items() if name not in ("cut_at", "tokens")}
    told = "; ".join(differences.values())
    found = f"Checkpoint {step} of this run is not of what is here now: {told}."
    if fixed := sorted(_IN_THE_CHECKPOINT & set(differences)):
        raise UserError(f"{found} Put back {' and '.join(fixed)} as it was, or train anew: a checkpoint cannot go on with another.")
    if differences and not anyway:
        raise UserError(f"{found} Put it back as it was, train anew, or go on knowingly: {RESUME_ANYWAY}.")
    return list(differences.values())


def _differences(then: Origin, now: Origin) -> dict[str, str]:
    """What differs -> how, in words."""
    before, after = _flat(then), _flat(now)
    return {name: _how(name, before.get(name), after.get(name)) for name in before | after if before.get(name) != after.get(name)}


def _flat(origin: Origin) -> dict[str, Any]:
    return {**origin.recipe, **origin.versions, **origin.model_dump(exclude={"recipe", "versions"})}


def _how(name: str, then: Any, now: Any) -> str:
    match name:
        case "rows":
            return "the rows in its folder data have changed"
        case "tokens":
            return "the tokens of its rows have changed (the rows, the tokenizer or its chat template)"
    return f"{name} was {then} and is {now}"
