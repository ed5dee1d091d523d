"""The Plan: what a run was really trained with on this machine. Measured once, written to plan.json, used again on every resume."""

import hashlib
import importlib.metadata
import json
import math
import statistics
import time
from typing import Any

from pydantic import BaseModel, ConfigDict

from peft_space import advice, durable, hardware, spinning
from peft_space.data.cache import kept
from peft_space.models.base import Base
from peft_space.models.families import linear_layers
from peft_space.models.load import Goal, inference_dtype, parameter_counts
from peft_space.models.memory import estimate_within, surely_fits
from peft_space.models.quantization import quantization_of
from peft_space.recipe import Recipe, Task
from peft_space.run import Run
from peft_space.training.dtypes import computing_in, frozen_dtype

_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
_WORTH_IT = 1.5
"""A layer in bfloat16 on a CPU has to be faster by this much: float32 is more exact, and a layer's products are about half of a step."""
_WORTH_SHARING = 1.1
"""So many times as fast all threads together have to be as one, by what they compute while they sleep in between, which costs them most."""
_HOPELESS = 5
"""Where bfloat16 takes so many times as long on few rows it is not measured further: without instructions for it it takes up to 60 times as long."""
_PATIENCE_SECONDS = 0.3
"""Where other work makes it slow, measuring ends after the round in which this much time has gone by."""
_FEW, _ENOUGH = 2e7, 4e8
"""Multiplications of a layer in that first look and in the measurement, which together take 0.1 to 0.3 seconds."""


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
    return Plan.model_validate(as_asked(run.recipe) | json.loads(path.read_text()))  # the first versions' plans do not say all


def as_asked(recipe: Recipe) -> dict[str, Any]:
    """What of a plan is the recipe's own wish, where nothing stands against it."""
    asked = {name: getattr(recipe, name) for name in ("batch_size", "gradient_accumulation_steps", "max_length")}
    return asked | {"num_processes": 1, "gradient_checkpointing": recipe.gradient_checkpointing == "on"}


def make_plan(
    recipe: Recipe, base: Base, goal: Goal, model: Any, row_length: int, longest: int, free: int, num_steps: int, num_processes: int = 1
) -> Plan:
    """Choose for this machine, with the model that is going to be trained.

    Args:
        row_length: tokens of a typical row.
        longest: tokens of the longest row.
        free: bytes of memory that could be taken before the model was loaded.
        num_steps: of the whole training.
    """
    trainable, total = parameter_counts(model)
    dtype, threads, why = choice(recipe, base, goal, model, row_length)
    batch_size, accumulated = share(recipe.batch_size * recipe.gradient_accumulation_steps, recipe.batch_size, num_processes)
    rate = advice.learning_rate(base.config.get_text_config().hidden_size, goal.task, num_steps)
    config = model.peft_config["default"]
    return Plan(
        device=hardware.device(),
        device_name=hardware.device_name(),
        compute_dtype=dtype,
        frozen_dtype=frozen_dtype(model, dtype),
        threads=threads,
        why=why,
        num_processes=num_processes,
        batch_size=batch_size,
        gradient_accumulation_steps=accumulated,
        max_length=recipe.max_length,
        gradient_checkpointing=_needs_checkpointing(recipe, base, goal, batch_size, longest, free),
        base_name=base.name,
        base_revision=base.revision,
        base_on_hub=base.on_hub,
        task=goal.task,
        labels=goal.labels,
        quantization=quantization_of(recipe, base.config),
        saved_modules=sorted(config.modules_to_save or []),
        target_modules=sorted(config.target_modules),
        num_wrapped=len(model.base_model.targeted_module_names),
        trainable_parameters=trainable,
        all_parameters=total,
        learning_rate=recipe.learning_rate or rate.value,
        learning_rate_why="as the recipe says" if recipe.learning_rate else rate.why,
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    return {library: importlib.metadata.version(library) for library in _LIBRARIES}


def write_plan(run: Run, plan: Plan) -> None:
    """Write plan.json, whole or not at all."""
    durable.write_text(run.path("plan.json"), plan.model_dump_json(indent=2) + "\n")


def processes_for(recipe: Recipe, num_devices: int) -> int:
    """How many processes, one a device, share the rows of a step: as many as divide them."""
    rows = recipe.batch_size * recipe.gradient_accumulation_steps
    return next(count for count in range(min(rows, num_devices), 0, -1) if rows % count == 0)


def share(rows: int, at_most: int, num_processes: int) -> tuple[int, int]:
    """(batch size, accumulation) of each of `num_processes`, which together take the `rows` of a step, `at_most` so many at once each."""
    own = rows // num_processes
    batch_size = next(size for size in range(min(at_most, own), 0, -1) if own % size == 0)
    return batch_size, own // batch_size


def shared_by(plan: Plan, num_processes: int) -> Plan:
    """The same plan for another number of processes: a step keeps its rows."""
    rows = plan.batch_size * plan.gradient_accumulation_steps * plan.num_processes
    batch_size, accumulated = share(rows, plan.batch_size, num_processes)
    changed = {"num_processes": num_processes, "batch_size": batch_size, "gradient_accumulation_steps": accumulated}
    return plan.model_copy(update=changed)


def _needs_checkpointing(recipe: Recipe, base: Base, goal: Goal, batch_size: int, longest: int, free: int) -> bool:
    if recipe.gradient_checkpointing != "automatic":
        return recipe.gradient_checkpointing == "on"
    if quantization_of(recipe, base.config) != recipe.quantization:  # what such layers take has not been measured
        return hardware.device() == "cuda"
    layers, rows = linear_layers(base.config, goal.task), batch_size * (2 if goal.task == "dpo" else 1)
    if surely_fits(layers, rows, longest, free):
        return False
    return estimate_within(layers, recipe, rows, longest, free, hardware.device(), inference_dtype())[1]


def choice(recipe: Recipe, base: Base, goal: Goal, model: Any, row_length: int) -> tuple[str, int, str]:
    """(compute dtype, threads, why) for training `model` here; measured once for a kind of model, so that the same run is the same again."""
    import torch

    if recipe.compute_dtype != "automatic":
        return recipe.compute_dtype, torch.get_num_threads(), "The recipe says so."
    if hardware.device() == "cuda":
        dtype = inference_dtype()
        return dtype, torch.get_num_threads(), f"The GPU computes in {dtype} natively."
    shaping = recipe.model_dump(include={"quantization", "double_quantization", "method", "lora_rank", "lora_dropout", "target_modules"})
    num_tokens = recipe.batch_size * row_length
    decides = [
        shaping,
        num_tokens,
        goal.task,
        base.config.to_dict(),
        hardware.device_name(),
        torch.get_num_threads(),
        _versions(),
        _WORTH_IT,
        _WORTH_SHARING,
    ]
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()
    folder = kept("speed", digest, lambda folder: (folder / "choice.json").write_text(json.dumps(_measured(model, num_tokens))))
    dtype, threads, why = json.loads((folder / "choice.json").read_text())
    return dtype, threads, why


def _measured(model: Any, num_tokens: int) -> tuple[str, int, str]:
    """The same on batches of `num_tokens` tokens, measured.

    It is the model's largest layer that is measured: a step of the whole model takes longer than anybody wants to wait for the first one.
    """
    import torch

    before = torch.get_num_threads()
    layer = _largest_layer(model).train()
    with spinning.asleep():  # so that nearly all the CPU time that threads take is work
        dtype, why = _choose_dtype(layer, num_tokens)
        threads, also = _choose_threads(layer, num_tokens, dtype, before) if before > 1 else (1, "")
    layer.zero_grad(set_to_none=True)
    torch.set_num_threads(before)
    return dtype, threads, f"{why}{also}."


def _largest_layer(model: Any) -> Any:
    """The largest linear layer with an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    return max(layers, key=lambda layer: layer.in_features * layer.out_features)


def _choose_dtype(layer: Any, num_tokens: int) -> tuple[str, str]:
    """(compute dtype, why). By the CPU time of one thread, which other work on the machine hardly changes, so that the choice is the same again."""
    candidates = [("float32", 1), ("bfloat16", 1)]
    for most in (_FEW, _ENOUGH):
        exact, short = map(statistics.median, _measure(layer, num_tokens, candidates, most).values())
        if short > _HOPELESS * exact:
            return "float32", "This CPU is slow in bfloat16"
    why = f"Measured on this model's largest layer: bfloat16 runs at {exact / short:.2f} times the speed of float32 ({_WORTH_IT} makes it worth it)"
    return "bfloat16" if exact / short >= _WORTH_IT else "float32", why


def _choose_threads(layer: Any, num_tokens: int, dtype: str, available: int) -> tuple[int, str]:
    """(threads, why). By CPU time as well: seconds on a clock, which other work on the machine lengthens for several threads most, chose one of two
    beside it, and the choice is kept."""
    alone = together = math.inf
    for _ in range(3):  # a machine that halts for a moment is not to decide for good
        least = map(min, _measure(layer, num_tokens, [(dtype, 1), (dtype, available)]).values())
        alone, together = map(min, (alone, together), least)
        times = available * alone / together
        if times >= _WORTH_SHARING:
            break
    return available if times >= _WORTH_SHARING else 1, f"; {available} threads run at {times:.2f} times the speed of one"


def _measure(layer: Any, num_tokens: int, candidates: list[tuple[str, int]], most: float = _ENOUGH) -> dict[tuple[str, int], list[float]]:
    """Seconds of CPU time in which a layer goes forward and backward by (dtype, threads): over so many tokens, or those that `most` multiplications take.

    The candidates take turns, at most four times after a first one that warms up.
    """
    import torch

    rows = max(1, min(num_tokens, int(most / layer.in_features / layer.out_features)))
    seconds: dict[tuple[str, int], list[float]] = {candidate: [] for candidate in candidates}
    start = time.perf_counter()
    for number in range(5):
        for dtype, threads in candidates:
            torch.set_num_threads(threads)
            inputs = torch.randn(1, rows, layer.in_features, requires_grad=True)
            with computing_in(layer, dtype):
                began = time.process_time()
                outputs = layer(inputs)
            outputs.sum().backward()
            seconds[dtype, threads].append(time.process_time() - began)
        if number and time.perf_counter() - start > _PATIENCE_SECONDS:
            break
    return {candidate: times[1:] for candidate, times in seconds.items()}
