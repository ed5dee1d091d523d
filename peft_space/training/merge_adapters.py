"""Joins adapters of one base model into a new run, with PEFT's `add_weighted_adapter`."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from peft_space.errors import UserError
from peft_space.evaluation.extra_adapters import find_adapter
from peft_space.models.loading import base_of, load_base_model
from peft_space.models.resolve import BaseModelRef, first_line
from peft_space.recipe import TaskSpec
from peft_space.runs.events import Notice, OnProgress, no_progress
from peft_space.runs.plan import write_plan
from peft_space.runs.run import Run
from peft_space.training.adapter_config import largest_rank
from peft_space.training.adapter_source import CONFIG, WEIGHTS
from peft_space.training.import_adapter import plan_without_training

JoinMethod = Literal["linear", "ties", "dare", "dare_ties"]
_OF_UPDATES = {"ties": "ties_svd", "dare": "dare_linear_svd", "dare_ties": "dare_ties_svd"}
"""PEFT's names for the methods that work on the updates B A, not on A and B apart."""


def merge_adapters(
    directory: str | Path,
    run: Run,
    others: Sequence[str],
    weights: Sequence[float] = (),
    method: JoinMethod = "linear",
    density: float = 0.5,
    on_progress: OnProgress = no_progress,
) -> Run:
    """Create a run in `directory` whose adapter joins those of other runs.

    Args:
        directory: the new run's folder.
        run: the run whose adapter comes first. The new run has its rows and its base model.
        others: directories of further runs, or names of checkpoints of `run`.
        weights: of the adapters, in their order; empty: the same for each, adding up to 1.
        method: `linear` adds the updates, exactly; TIES and DARE drop a part of them.
        density: the share of each update that TIES and DARE keep.
        on_progress: is called with the progress.

    Raises:
        UserError: the adapters belong to other bases, or cannot be joined.
    """
    on_progress(0.0, "Checking the adapters")
    base, task_spec = base_of(run)
    found = [(run.name, run.adapter), *(find_adapter(run, name) for name in others)]
    folders, titles = [folder for _, folder in found], [title for title, _ in found]
    if len(folders) < 2 or (weights and len(weights) != len(folders)):
        message = f"There are {len(folders)} adapters and {len(weights)} weights. Choose at least "
        message += "two adapters, and give a weight for each, or none."
        raise UserError("training.adapters_not_joined", message)
    shares = list(weights) or [1 / len(folders)] * len(folders)
    ranks = [_rank(folder, title) for title, folder in found]
    rank = sum(ranks)
    if method == "linear" and rank > largest_rank():
        message = f"Joined exactly, the adapters have the rank {rank}, and {largest_rank()} is the "
        message += "largest. Reduce their ranks with reduce-rank, or choose ties or dare."
        raise UserError("training.adapters_not_joined", message)
    with tempfile.TemporaryDirectory() as scratch:
        options = {"method": method, "density": density, "rank": min(rank, largest_rank())}
        joined = Path(scratch, "joined")
        _join(run, base, task_spec, folders, shares, joined, options, on_progress)
        files = _files(run, joined)
        config = json.loads((joined / CONFIG).read_text(encoding="utf-8"))
        recipe = run.recipe.model_copy(
            update={
                "method": "lora",
                "lora_rank": config["r"],
                "lora_alpha": config["lora_alpha"],
                "target_modules": sorted(config["target_modules"]),
                "high_rank_reason": "Adapters were joined." if config["r"] > 64 else None,
            }
        )
        name = " + ".join(titles)[:100]
        new = Run.create(directory, recipe, files, name=name)
    parts = ", ".join(f"{share:.3g} x {title}" for share, title in zip(shares, titles, strict=True))
    kept = "" if method == "linear" else f", which keeps {density:.0%} of each update"
    notice = Notice(what=f"Joined adapters: {parts}.", why=f"The method is {method}{kept}.")
    write_plan(new, plan_without_training(new, base, task_spec, f"{notice.what} {notice.why}"))
    new.append(notice)
    return new


def _rank(folder: Path, title: str) -> int:
    """The rank of a plain LoRA.

    Raises:
        UserError: the adapter has parts that cannot be joined.
    """
    from safetensors import safe_open

    config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    with safe_open(folder / WEIGHTS, "pt") as file:
        others = [name for name in file.keys() if ".lora_" not in name]  # noqa: SIM118 - no dict
    reason = ""
    if config.get("use_dora"):
        reason = "it is a DoRA adapter, and the magnitudes of several cannot be added"
    elif config.get("lora_bias") or others:
        part = others[0].removeprefix("base_model.model.") if others else "biases"
        reason = f"it also trains {part}"
    if reason:
        message = f"The adapter of {title} cannot be joined: {reason}. Choose plain LoRA adapters."
        raise UserError("training.adapters_not_joined", message)
    return max([config["r"], *(config.get("rank_pattern") or {}).values()])


def _join(
    run: Run,
    base: BaseModelRef,
    task_spec: TaskSpec,
    folders: Sequence[Path],
    shares: Sequence[float],
    out: Path,
    options: dict[str, Any],
    on_progress: OnProgress,
) -> None:
    """Write the joined adapter into the folder `out`."""
    import torch
    from peft import PeftModel

    on_progress(0.1, "Loading the base model")
    dtype = str(base.config.dtype or "float32").removeprefix("torch.")
    unquantized = run.recipe.model_copy(update={"quantization": "none"})
    plain = load_base_model(base, unquantized, dtype, task_spec, device="cpu")
    names = [f"adapter{number}" for number in range(len(folders))]
    model: Any = PeftModel.from_pretrained(plain, folders[0], adapter_name=names[0])
    for name, folder in zip(names[1:], folders[1:], strict=True):
        model.load_adapter(folder, adapter_name=name)
    on_progress(0.4, "Joining the adapters")
    method, how = options["method"], {}
    if method != "linear":
        torch.manual_seed(run.recipe.seed)  # DARE drops at random
        how = {"density": options["density"], "svd_rank": options["rank"]}
        how["svd_full_matrices"] = False
    try:
        model.add_weighted_adapter(
            names, list(shares), "joined", combination_type=_OF_UPDATES.get(method, "cat"), **how
        )
    except (ValueError, RuntimeError) as error:
        message = f"PEFT cannot join these adapters: {first_line(error)} Choose linear."
        raise UserError("training.adapters_not_joined", message) from error
    model.save_pretrained(out, selected_adapters=["joined"], save_embedding_layers=False)
    shutil.move(out / "joined" / WEIGHTS, out / WEIGHTS)
    config = json.loads((out / "joined" / CONFIG).read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": base.name, "revision": base.revision}
    config["target_modules"] = _layers(out / WEIGHTS)
    # the names are those of all layers, which have one rank, and the scales are in the weights
    config |= dict.fromkeys(("layers_to_transform", "layers_pattern", "exclude_modules"))
    config |= {"rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False}
    (out / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _layers(weights: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(weights, "pt") as file:
        layers = {name.partition(".lora_")[0] for name in file.keys()}  # noqa: SIM118 - no dict
    return sorted(layer.removeprefix("base_model.model.") for layer in layers)


def _files(run: Run, joined: Path) -> dict[str, str | Path]:
    """The files of the new run: the rows of `run`, and the joined adapter."""
    data = run.path("data")
    files: dict[str, str | Path] = {
        f"data/{path.relative_to(data)}": path for path in data.rglob("*") if path.is_file()
    }
    for place in ("adapter", "start/adapter"):
        files |= {f"{place}/{name}": joined / name for name in (CONFIG, WEIGHTS)}
    return files
