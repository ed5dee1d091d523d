"""What to do when memory runs out: what a person would try, in that order, written into the plan, with an event that says so."""

import fcntl

from peft_space.runs import events
from peft_space.runs.plan import Plan, read_plan, write_plan
from peft_space.runs.run import Run

_SHORTEST = 64
"""Tokens; rows that are cut off before teach little."""


def reduce_memory(run: Run, where: str) -> events.OutOfMemory | None:
    """Change the plan so that the next attempt takes less memory and trains the same, tell it as an event, and return that.

    Gradient checkpointing comes first; then half the rows at once, twice as many batches added up. None where nothing of it is left, or where
    memory ran out before the first step, which none of it would change.

    Args:
        where: what ran out: `The GPU` or `This machine`.
    """
    with open(run.path(".plan.lock"), "a") as file:
        fcntl.flock(
            file, fcntl.LOCK_EX
        )  # of several processes mostly all run out, and one of them is to change the plan
        happened = run.history()
        if happened and isinstance(happened[-1], events.OutOfMemory):
            return happened[-1]
        return _reduce_memory(run, where)


def _reduce_memory(run: Run, where: str) -> events.OutOfMemory | None:
    plan = read_plan(run)
    if plan is None or not _was_training(run):
        return None
    if not plan.gradient_checkpointing and run.recipe.gradient_checkpointing != "off":
        changed = plan.model_copy(update={"gradient_checkpointing": True})
        what = "From here activations are computed again in place of being kept (gradient checkpointing), which takes about a third more time."
    elif plan.batch_size > 1:
        batch_size, accumulated = _half(plan)
        changed = plan.model_copy(
            update={"batch_size": batch_size, "gradient_accumulation_steps": accumulated}
        )
        what = f"From here {_batches(batch_size, accumulated)} make a step: as many rows as before, fewer at once."
    else:
        return None
    return _change(run, changed, what, f"{where} had not enough memory.")


def halve_max_length(run: Run) -> events.OutOfMemory | None:
    """The last resort, for which the user has to be asked: rows of half the length. None where they are too short for that already."""
    plan = read_plan(run)
    if plan is None or plan.max_length // 2 < _SHORTEST:
        return None
    length = plan.max_length // 2
    changed = plan.model_copy(update={"max_length": length})
    return _change(
        run,
        changed,
        f"From here rows are cut off after {length:,} tokens.",
        "Nothing else was left to try, and you agreed.",
    )


def out_of_memory_failure(run: Run, where: str) -> events.Failed:
    """How a training ends for which memory does not do, though all was tried that could be tried without asking."""
    plan = read_plan(run)
    if plan is None or not _was_training(run):
        return events.Failed(
            message=f"{where} has not enough memory for the base model. Hold it in 4 bits (quantization nf4), or choose a smaller one."
        )
    return events.Failed(
        message=f"{where} has not enough memory even for {plan.batch_size} row{'s' * (plan.batch_size > 1)} of {plan.max_length:,} tokens at once"
        f"{' with gradient checkpointing' if plan.gradient_checkpointing else ''}. Go on with rows of half the length (Resume with shorter rows), "
        "or choose a smaller base model.",
        for_memory=True,
    )


def _was_training(run: Run) -> bool:
    """Whether the last attempt got as far as its first step."""
    begun = [
        event for event in run.history() if isinstance(event, events.Preparing | events.Started)
    ]
    return bool(begun) and isinstance(begun[-1], events.Started)


def _half(plan: Plan) -> tuple[int, int]:
    rows = plan.batch_size * plan.gradient_accumulation_steps
    batch_size = next(size for size in range(plan.batch_size // 2, 0, -1) if rows % size == 0)
    return batch_size, rows // batch_size


def _batches(batch_size: int, accumulated: int) -> str:
    return f"{accumulated} batches of {batch_size} row{'s' * (batch_size > 1)}"


def _change(run: Run, changed: Plan, what: str, why: str) -> events.OutOfMemory:
    write_plan(run, changed)
    event = events.OutOfMemory(what=what, why=why)
    run.append(event)
    return event
