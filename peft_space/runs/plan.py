"""The Plan: the settings a run was trained with here, written once and used again on resume."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from peft_space.recipe import Recipe, Task
from peft_space.runs.run import Run
from peft_space.storage import atomic_io


class Plan(BaseModel):
    """The settings in use, in addition to the recipe, which keeps the user's choices."""

    model_config = ConfigDict(frozen=True)

    device: str
    device_name: str
    compute_dtype: str
    frozen_dtype: str = ""
    """The dtype that frozen weights are cast to once, on a CPU; empty if they are not cast."""
    threads: int
    why: str
    """How dtype and threads were chosen, for the user."""
    num_processes: int
    batch_size: int
    """Rows in each process."""
    gradient_accumulation_steps: int
    max_length: int
    gradient_checkpointing: bool
    shard_base: bool = False
    """True if every process holds a part of each block's weights."""
    devices_why: str = ""
    """Why one device, several, or several that share the base, for the user."""
    by_length: bool = False
    """True if rows of similar length share a step."""
    packing: bool = False
    """True if the rows of a batch are laid end to end instead of padded."""
    packing_why: str = ""
    """Why or why not, for the user."""
    base_name: str
    base_revision: str | None
    base_on_hub: bool = False
    task: Task = "causal-lm"
    labels: tuple[str, ...] = ()
    """Of a classification, in the order of the head's outputs."""
    quantization: str = ""
    """How the base model was held; for a pre-quantized model, its own method."""
    saved_modules: list[str] = []
    """Modules that are trained in full and saved with the adapter."""
    target_modules: list[str]
    num_wrapped: int
    """Number of layers that have an adapter."""
    not_adapted: list[str] = []
    """Sentences that say which layers and experts got no adapter, and why."""
    trainable_parameters: int
    all_parameters: int
    learning_rate: float
    learning_rate_why: str
    versions: dict[str, str]


def read_plan(run: Run) -> Plan | None:
    """Return the plan of a run; None if it was never started."""
    path = run.path("plan.json")
    return Plan.model_validate_json(path.read_text()) if path.is_file() else None


def write_plan(run: Run, plan: Plan) -> None:
    """Write plan.json completely or not at all."""
    atomic_io.write_text(run.path("plan.json"), plan.model_dump_json(indent=2) + "\n")


def plan_fields_of(recipe: Recipe) -> dict[str, Any]:
    """Return the fields of a plan that follow the recipe unless memory or devices prevent it."""
    return {
        "num_processes": 1,
        "batch_size": recipe.batch_size,
        "gradient_accumulation_steps": recipe.gradient_accumulation_steps,
        "max_length": recipe.max_length,
        "gradient_checkpointing": recipe.gradient_checkpointing == "on",
    }


def processes_for(recipe: Recipe, num_devices: int) -> int:
    """Return the number of processes, one per device, that divide the rows of a step evenly."""
    rows = recipe.batch_size * recipe.gradient_accumulation_steps
    return next(count for count in range(min(rows, num_devices), 0, -1) if rows % count == 0)


def split_step_rows(rows: int, max_batch_size: int, num_processes: int) -> tuple[int, int]:
    """Split the rows of a step over processes.

    Args:
        rows: of one step, over all processes; a multiple of `num_processes`.
        max_batch_size: rows that one process holds at once, at most.
        num_processes: how many share the step.

    Returns:
        (batch size, accumulation steps) of each process.
    """
    own = rows // num_processes
    batch_size = next(size for size in range(min(max_batch_size, own), 0, -1) if own % size == 0)
    return batch_size, own // batch_size


def plan_for_processes(plan: Plan, num_processes: int) -> Plan:
    """Return the plan for another number of processes; a step keeps its rows."""
    rows = plan.batch_size * plan.gradient_accumulation_steps * plan.num_processes
    batch_size, accumulation_steps = split_step_rows(rows, plan.batch_size, num_processes)
    changes = {
        "num_processes": num_processes,
        "batch_size": batch_size,
        "gradient_accumulation_steps": accumulation_steps,
    }
    return plan.model_copy(update=changes)
