"""Reduces the memory that training needs after memory ran out, and records the changes."""

import fcntl

from peft_space.models.architecture import linear_layers
from peft_space.models.resolve import find_base
from peft_space.runs import events
from peft_space.runs.plan import Plan, read_plan, write_plan
from peft_space.runs.run import Run

_MIN_MAX_LENGTH = 64
"""Tokens; shorter rows teach little."""


def reduce_memory(run: Run, device: str) -> events.OutOfMemory | None:
    """Change the plan so that the next attempt needs less memory and trains the same steps.

    Gradient checkpointing comes first. Then the batch size is halved and gradient accumulation
    doubled.

    Args:
        run: the run whose attempt ran out of memory.
        device: what ran out of memory: `The GPU` or `This machine`.

    Returns:
        The event that describes the change. None if nothing is left to try, or if memory ran out
        before the first step, which no change would prevent.
    """
    with open(run.path(".plan.lock"), "a") as file:
        # usually all processes run out of memory, and one of them should change the plan
        fcntl.flock(file, fcntl.LOCK_EX)
        history = run.history()
        if history and isinstance(history[-1], events.OutOfMemory):
            return history[-1]
        return _reduce_memory(run, device)


def _reduce_memory(run: Run, device: str) -> events.OutOfMemory | None:
    plan = read_plan(run)
    if plan is None or not _reached_first_step(run):
        return None
    revision = plan.base_revision if plan.base_on_hub else run.recipe.revision
    layers = linear_layers(find_base(run.recipe.base_model, revision).config, plan.task)
    if (
        layers.can_checkpoint
        and not plan.gradient_checkpointing
        and run.recipe.gradient_checkpointing != "off"
    ):
        changes: dict[str, bool | int] = {"gradient_checkpointing": True}
        what = (
            "From here, activations are recomputed instead of stored (gradient checkpointing), "
            "which takes about a third more time."
        )
    elif plan.batch_size > 1:
        rows = plan.batch_size * plan.gradient_accumulation_steps
        size = next(size for size in range(plan.batch_size // 2, 0, -1) if rows % size == 0)
        changes = {"batch_size": size, "gradient_accumulation_steps": rows // size}
        what = (
            f"From here, each step has {rows // size} batches of {size} row{'s' * (size > 1)}: "
            "as many rows as before, but fewer at once."
        )
    else:
        return None
    return _change_plan(run, plan, changes, what, f"{device} did not have enough memory.")


def halve_max_length(run: Run) -> events.OutOfMemory | None:
    """Halve the length limit, with the user's permission. None if it would become too short."""
    plan = read_plan(run)
    if plan is None or plan.max_length // 2 < _MIN_MAX_LENGTH:
        return None
    length = plan.max_length // 2
    what = f"From here, rows are truncated to {length:,} tokens."
    why = "All other options were exhausted and you allowed it."
    return _change_plan(run, plan, {"max_length": length}, what, why)


def out_of_memory_failure(run: Run, device: str) -> events.Failed:
    """Return the event for a training that ran out of memory with no option left.

    Args:
        run: the run that failed.
        device: what ran out of memory: `The GPU` or `This machine`.
    """
    code, plan = "training.out_of_memory", read_plan(run)
    if plan is None or not _reached_first_step(run):
        message = (
            f"{device} does not have enough memory for the base model. Quantize it to 4 bits "
            "(quantization nf4), or choose a smaller one."
        )
        return events.Failed(message=message, code=code)
    rows = f"{plan.batch_size} row{'s' * (plan.batch_size > 1)} of {plan.max_length:,} tokens"
    checkpointing = " with gradient checkpointing" if plan.gradient_checkpointing else ""
    message = (
        f"{device} does not have enough memory even for {rows} at once{checkpointing}. "
        "Resume with rows of half the length, or choose a smaller base model."
    )
    return events.Failed(message=message, code=code, for_memory=True)


def _reached_first_step(run: Run) -> bool:
    """Return True if the last attempt reached its first step."""
    kinds = events.Preparing | events.Started
    starts = [event for event in run.history() if isinstance(event, kinds)]
    return bool(starts) and isinstance(starts[-1], events.Started)


def _change_plan(
    run: Run, plan: Plan, changes: dict[str, bool | int], what: str, why: str
) -> events.OutOfMemory:
    write_plan(run, plan.model_copy(update=changes))
    event = events.OutOfMemory(what=what, why=why)
    run.append(event)
    return event
