"""The Plan: what a run was trained with on this machine. Written once to plan.json, and used again on every resume."""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict

from peft_space.recipe import Recipe, Task
from peft_space.runs.run import Run
from peft_space.storage import atomic_io


class Plan(BaseModel):
    """What was used, besides the recipe, which stays as it was asked."""

    model_config = ConfigDict(frozen=True)

    device: str
    device_name: str
    compute_dtype: str
    frozen_dtype: str = ""
    """What frozen weights are cast to once, on a CPU; empty where they stay as they were loaded."""
    threads: int
    why: str
    """How dtype and threads were chosen, for the user."""
    num_processes: int
    batch_size: int
    """Of each process."""
    gradient_accumulation_steps: int
    max_length: int
    gradient_checkpointing: bool
    by_length: bool = False
    """Whether rows of about the same length share a step."""
    base_name: str
    base_revision: str | None
    base_on_hub: bool = False
    task: Task = "causal-lm"
    labels: tuple[str, ...] = ()
    """Of a classification, in the order of the head's outputs."""
    quantization: str = ""
    """How the base was held; of a model that comes quantized how it came."""
    saved_modules: list[str] = []
    """Trained in full and kept with the adapter."""
    target_modules: list[str]
    num_wrapped: int
    """Layers that have an adapter."""
    trainable_parameters: int
    all_parameters: int
    learning_rate: float
    learning_rate_why: str
    versions: dict[str, str]


def read_plan(run: Run) -> Plan | None:
    """The plan of a run that has been started."""
    path = run.path("plan.json")
    if not path.is_file():
        return None
    return Plan.model_validate(
        as_asked(run.recipe) | json.loads(path.read_text())
    )  # the first versions' plans do not say all


def as_asked(recipe: Recipe) -> dict[str, Any]:
    """What of a plan is the recipe's own wish, where nothing stands against it."""
    asked = {
        name: getattr(recipe, name)
        for name in ("batch_size", "gradient_accumulation_steps", "max_length")
    }
    return asked | {
        "num_processes": 1,
        "gradient_checkpointing": recipe.gradient_checkpointing == "on",
    }


def write_plan(run: Run, plan: Plan) -> None:
    """Write plan.json, whole or not at all."""
    atomic_io.write_text(run.path("plan.json"), plan.model_dump_json(indent=2) + "\n")


def processes_for(recipe: Recipe, num_devices: int) -> int:
    """How many processes, one a device, share the rows of a step: as many as divide them."""
    rows = recipe.batch_size * recipe.gradient_accumulation_steps
    return next(count for count in range(min(rows, num_devices), 0, -1) if rows % count == 0)


def split_step_rows(rows: int, at_most: int, num_processes: int) -> tuple[int, int]:
    """(batch size, accumulation) of each of `num_processes`, which together take the `rows` of a step, `at_most` so many at once each."""
    own = rows // num_processes
    batch_size = next(size for size in range(min(at_most, own), 0, -1) if own % size == 0)
    return batch_size, own // batch_size


def plan_for_processes(plan: Plan, num_processes: int) -> Plan:
    """The same plan for another number of processes: a step keeps its rows."""
    rows = plan.batch_size * plan.gradient_accumulation_steps * plan.num_processes
    batch_size, accumulated = split_step_rows(rows, plan.batch_size, num_processes)
    changed = {
        "num_processes": num_processes,
        "batch_size": batch_size,
        "gradient_accumulation_steps": accumulated,
    }
    return plan.model_copy(update=changed)
