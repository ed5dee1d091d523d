"""The Plan: what a run was really trained with on this machine. Measured once, written to plan.json, used again on every resume."""

import contextlib
import importlib.metadata
import statistics
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from peft_space import advice, hardware
from peft_space.models.base import Base
from peft_space.models.load import Goal, inference_dtype, parameter_counts
from peft_space.models.quantization import quantization_of
from peft_space.recipe import Recipe, Task
from peft_space.run import Run

_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
_WORTH_IT = 1.15
"""bfloat16 on a CPU has to be faster by this much: float32 is more exact."""
_MEASURED_TOKENS = 128
_PATIENCE_SECONDS = 10.0
"""Measuring ends after the round in which this much time has gone by."""


class Plan(BaseModel):
    """What was used, besides the recipe, which stays as it was asked."""

    model_config = ConfigDict(frozen=True)

    device: str
    device_name: str
    compute_dtype: str
    threads: int
    why: str
    """How dtype and threads were chosen, for the user."""
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
    return Plan.model_validate_json(path.read_text()) if path.is_file() else None


def make_plan(recipe: Recipe, base: Base, goal: Goal, model: Any, batch: dict[str, Any]) -> Plan:
    """Choose for this machine, with the model that is going to be trained. `batch` is a typical row as the model takes it."""
    trainable, total = parameter_counts(model)
    dtype, threads, why = _choose(model, batch)
    rate = advice.learning_rate(base.config.get_text_config().hidden_size, goal.task)
    config = model.peft_config["default"]
    return Plan(
        device=hardware.device(),
        device_name=hardware.device_name(),
        compute_dtype=dtype,
        threads=threads,
        why=why,
        base_name=base.name,
        base_revision=base.revision,
        base_on_hub=base.on_hub,
        task=goal.task,
        labels=goal.labels,
        quantization=quantization_of(recipe, base.config),
        saved_modules=list(config.modules_to_save or []),
        target_modules=sorted(config.target_modules),
        num_wrapped=len(model.base_model.targeted_module_names),
        trainable_parameters=trainable,
        all_parameters=total,
        learning_rate=recipe.learning_rate or rate.value,
        learning_rate_why="as the recipe says" if recipe.learning_rate else rate.why,
        versions={library: importlib.metadata.version(library) for library in _LIBRARIES},
    )


def write_plan(run: Run, plan: Plan) -> None:
    """Write plan.json, whole or not at all."""
    aside = Path(f"{run.path('plan.json')}.new")
    aside.write_text(plan.model_dump_json(indent=2) + "\n")
    aside.replace(run.path("plan.json"))


@contextlib.contextmanager
def computing_in(model: Any, dtype: str):
    """Let a model that is held in float32 compute in `dtype` on a CPU: autocast, and what 4-bit layers dequantize to."""
    import torch

    set_compute_dtype(model, dtype)
    with torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext():
        yield


def set_compute_dtype(model: Any, dtype: str) -> None:
    """Let the 4-bit layers of `model`, if it has any, compute in `dtype`."""
    import bitsandbytes
    import torch

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.compute_dtype = getattr(torch, dtype)


def _choose(model: Any, batch: dict[str, Any]) -> tuple[str, int, str]:
    """(compute dtype, threads, why) for training `model` here.

    On a CPU the candidates take steps on the model itself, interleaved, and medians are compared: other work hits them all alike.
    """
    import torch

    if hardware.device() == "cuda":
        dtype = inference_dtype()
        return dtype, torch.get_num_threads(), f"The GPU computes in {dtype} natively."
    before = torch.get_num_threads()
    candidates = [(dtype, threads) for threads in sorted({1, before}) for dtype in ("float32", "bfloat16")]
    seconds = _measure(model, batch, candidates)
    torch.set_num_threads(before)
    median = {candidate: statistics.median(times) for candidate, times in seconds.items()}
    fastest = {dtype: min((c for c in candidates if c[0] == dtype), key=median.__getitem__) for dtype in ("float32", "bfloat16")}
    ratio = median[fastest["float32"]] / median[fastest["bfloat16"]]
    dtype, threads = fastest["bfloat16"] if ratio >= _WORTH_IT else fastest["float32"]
    why = f"Measured on this model here: a step in bfloat16 runs at {ratio:.2f} times the speed of float32 ({_WORTH_IT} makes it worth it)"
    return dtype, threads, f"{why}" + (f", and {threads} of {before} threads were fastest." if before > 1 else ".")


def _measure(model: Any, batch: dict[str, Any], candidates: list[tuple[str, int]]) -> dict[tuple[str, int], list[float]]:
    import torch

    model.train()
    whole = batch["labels"].dim() == 1  # the label is read off a certain token
    first = batch if whole else {name: value[:, :_MEASURED_TOKENS] for name, value in batch.items()}
    seconds: dict[tuple[str, int], list[float]] = {candidate: [] for candidate in candidates}
    start = time.perf_counter()
    for round_number in range(6):
        for dtype, threads in candidates:
            torch.set_num_threads(threads)
            with computing_in(model, dtype):
                began = time.perf_counter()
                loss = model(**first).loss
            loss.backward()
            if round_number:  # the first round warms up
                seconds[dtype, threads].append(time.perf_counter() - began)
        if round_number and time.perf_counter() - start > _PATIENCE_SECONDS:
            break
    model.zero_grad(set_to_none=True)
    return seconds
