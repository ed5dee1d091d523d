"""Makes a run of an adapter that was made elsewhere, so that it can be compared, scored, exported, and trained further on other rows."""

import importlib.metadata
import json
import lzma
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft_space import settings
from peft_space.data.table import Data
from peft_space.errors import UserError, as_user_error
from peft_space.models.adapter_check import check_adapter_fits_base
from peft_space.models.architecture import CLASSIFYING, linear_layers, wrapped_layers
from peft_space.models.resolve import DEMO_MODEL, find_base, model_name, pin_revision
from peft_space.recipe import Recipe, make_recipe
from peft_space.redaction import has_secret
from peft_space.runs.events import OnProgress, no_progress
from peft_space.runs.plan import Plan, plan_fields_of, write_plan
from peft_space.runs.run import Run
from peft_space.training.prepare import prepare

_FILES = ("adapter_config.json", "adapter_model.safetensors")
_TASKS = {
    "SEQ_2_SEQ_LM": "seq2seq-lm",
    "SEQ_CLS": "sequence-classification",
    "TOKEN_CLS": "token-classification",
}
_MOST_ENTRIES, _MOST_TIMES = 10_000, 10
_LARGEST_CONFIG = 4_000_000
_KNOWN = {
    "peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "bias", "use_dora", "use_rslora",
    "fan_in_fan_out", "inference_mode", "base_model_name_or_path", "revision", "layers_to_transform", "lora_bias", "rank_pattern",
    "target_parameters",
}  # fmt: skip
"""What of an adapter's config is kept."""
_UNUSED = {
    "auto_mapping",
    "peft_version",
    "init_lora_weights",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
}
"""What only matters to whoever makes an adapter anew; it is dropped."""
_MODULE = re.compile(r"[\w.-]{1,200}")


def import_adapter(
    directory: str | Path,
    adapter: str,
    data: Data,
    recipe: Mapping[str, Any] | None = None,
    held_out: Data | None = None,
    column_mapping: Mapping[str, Any] | None = None,
    on_progress: OnProgress = no_progress,
) -> Run:
    """A new run in `directory` that has this adapter already; `train` goes on from it.

    Args:
        adapter: a folder (not on a Space), a .zip of one, or a Hub id.
        data: rows to score on, and to go on with.
        recipe: choices for going on. What the adapter itself says, its base, rank and layers, cannot be chosen.

    Raises UserError where it is no LoRA adapter, names no base that can be found, or does not fit it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        on_progress(0.0, "Looking at the adapter")
        folder = _found(adapter, Path(scratch))
        config = _config_of(folder, adapter)
        wanted = make_recipe({**(recipe or {}), **_recipe_of(config)})
        base = pin_revision(find_base(wanted.base_model, wanted.revision))
        prepared = prepare(data, wanted, held_out, column_mapping, on_progress)
        (known := Path(scratch, "known")).mkdir()  # PEFT is shown nothing else of the adapter
        (known / _FILES[0]).write_text(json.dumps(config), encoding="utf-8")
        (known / _FILES[1]).symlink_to((folder / _FILES[1]).absolute())
        try:
            check_adapter_fits_base(known, base, prepared.goal.task, prepared.goal.labels)
        except UserError as error:
            raise UserError("todo", str(error).replace(str(known), adapter)) from None
        files: dict[str, str | Path] = prepared.data.files() | {
            "data/goal.json": prepared.goal.as_json()
        }
        config |= {"base_model_name_or_path": base.name, "revision": base.revision}
        for place in ("adapter", "start/adapter"):
            files[f"{place}/{_FILES[0]}"] = json.dumps(config, indent=2) + "\n"
            files[f"{place}/{_FILES[1]}"] = folder / _FILES[1]
        run = Run.create(
            directory, wanted, files, name=f"{Path(adapter).stem} on {Path(wanted.base_model).name}"
        )
    layers = linear_layers(base.config, prepared.goal.task)
    write_plan(run, _plan(wanted, base, prepared.goal, len(wrapped_layers(wanted, layers)), run))
    return run


def _found(adapter: str, scratch: Path) -> Path:
    """The folder with the adapter's two files; nothing else of it is read."""
    path = Path(os.path.expanduser(adapter))
    if path.suffix == ".zip" and os.path.isfile(path):
        return _unpacked(path, scratch)
    if not settings.on_space() and os.path.isdir(path):
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError

    from peft_space.compat.huggingface_hub import explain_hub_error

    try:
        if has_secret(adapter):
            raise HFValidationError("this is a token")
        return Path([hf_hub_download(adapter, name) for name in reversed(_FILES)][-1]).parent
    except RemoteEntryNotFoundError as error:
        raise UserError(
            "todo",
            f"{adapter} on the Hub is no adapter that can be opened: it has no {_FILES[0]} or no {_FILES[1]}.",
        ) from error
    except (HFValidationError, OSError) as error:
        failure = explain_hub_error(error, adapter)
        reason = f": {failure.reason}" if failure else ""
        raise UserError(
            "todo",
            f"The adapter {adapter!r} cannot be opened{reason}. Give a Hub id like OWNER/NAME, "
            "a .zip, or a folder on your own machine.",
        ) from error


def _unpacked(path: Path, scratch: Path) -> Path:
    """The two files out of a .zip, wherever in it they lie, by their names alone: no other path in it is used."""
    try:
        with zipfile.ZipFile(path) as archive:
            if len(archive.infolist()) > _MOST_ENTRIES:
                raise UserError(
                    "todo",
                    f"{path.name} has more than {_MOST_ENTRIES:,} files. Pack the adapter's folder alone.",
                )
            for name in _FILES:
                inside = [
                    entry for entry in archive.infolist() if Path(entry.filename).name == name
                ]
                if len(inside) > 1:
                    raise UserError(
                        "todo",
                        f"{path.name} has {len(inside)} files named {name}. Pack the folder of one adapter.",
                    )
                for entry in inside:
                    _unpack(archive, entry, scratch / name, path)
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # RuntimeError: a password
        if as_user_error(error):
            raise
        raise UserError(
            "todo",
            f"{path.name} is no .zip file that can be opened, or a damaged one. Pack the adapter's folder again.",
        ) from None
    return scratch


def _unpack(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, path: Path) -> None:
    """One file of it. Weights hardly can be packed, so what unpacks to many times its size is no adapter."""
    most = _LARGEST_CONFIG if target.name == _FILES[0] else _MOST_TIMES * path.stat().st_size
    if entry.file_size > most:
        raise UserError(
            "todo",
            f"{path.name}: its {target.name} unpacks to {entry.file_size / 1e6:,.0f} MB, which no adapter does. Pack it again.",
        )
    with archive.open(entry) as source, open(target, "wb") as file:
        shutil.copyfileobj(source, file)  # of a file that is longer than it says no more is read


def _config_of(folder: Path, adapter: str) -> dict[str, Any]:
    if missing := [name for name in _FILES if not (folder / name).is_file()]:
        raise UserError(
            "todo",
            f"{Path(adapter).name} is no adapter that can be opened: it has no {missing[0]}. Give what PEFT's save_pretrained wrote.",
        )
    try:
        if (folder / _FILES[0]).stat().st_size > _LARGEST_CONFIG:
            raise ValueError("no adapter has so much to say")
        config: dict[str, Any] = json.loads((folder / _FILES[0]).read_text(encoding="utf-8"))
        kind = config["peft_type"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            "todo",
            f"{Path(adapter).name}: its adapter_config.json is damaged. Save the adapter again.",
        ) from None
    if kind != "LORA":
        raise UserError(
            "todo",
            f"{Path(adapter).name} is an adapter of the kind {kind}. Only LoRA adapters can be opened.",
        )
    _refuse_unknown(config, Path(adapter).name)
    if config.get("rank_pattern") or config.get("target_parameters"):
        raise UserError(
            "todo",
            f"{Path(adapter).name} has other ranks in some layers, or adapts single weights, which cannot be gone on with here.",
        )
    return {name: value for name, value in config.items() if name in _KNOWN}


def _refuse_unknown(config: Mapping[str, Any], name: str) -> None:
    """Raise UserError for what PEFT would take a module, a path or a pattern from, or what is not known to be harmless."""
    from peft import LoraConfig

    usual = LoraConfig().to_dict()
    for field, value in config.items():
        if field not in _KNOWN and field not in _UNUSED and value and value != usual.get(field):
            raise UserError(
                "todo",
                f"{name}: its adapter_config.json sets {field[:60]!r}, which is not opened here. Merge that adapter, or take it away.",
            )
    if not (isinstance(config.get("r"), int) and isinstance(config.get("lora_alpha"), int | float)):
        raise UserError(
            "todo",
            f"{name}: its adapter_config.json does not say r and lora_alpha as numbers. Save the adapter again.",
        )
    for field in ("target_modules", "modules_to_save"):
        value = config.get(field)
        names = value if isinstance(value, list) else []
        if not all(isinstance(one, str) and _MODULE.fullmatch(one) for one in names) or (
            value and not names and value != "all-linear"
        ):
            raise UserError(
                "todo",
                f"{name}: its {field} are no list of names of modules. Only such adapters can be opened.",
            )


def _recipe_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What an adapter's config says of the recipe it was made with."""
    base = config.get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise UserError(
            "todo",
            "The adapter does not name its base model. Add base_model_name_or_path to its adapter_config.json.",
        )
    targets, task = (
        config.get("target_modules"),
        _TASKS.get(config.get("task_type") or "", "automatic"),
    )
    return {
        "base_model": DEMO_MODEL if base == model_name(DEMO_MODEL) else base,
        "revision": None
        if str(config.get("revision") or "").startswith("sha256-")
        else config.get("revision"),
        "task": task,
        "method": "dora"
        if config.get("use_dora")
        else "rslora"
        if config.get("use_rslora")
        else "lora",
        "lora_rank": config["r"],
        "lora_alpha": config["lora_alpha"],
        "target_modules": "all-linear"
        if targets == "all-linear"
        else sorted(targets)
        if isinstance(targets, list)
        else [str(targets)],
        "modules_to_save": None if task in CLASSIFYING else config.get("modules_to_save"),
        "high_rank_reason": "The adapter was made with this rank." if config["r"] > 64 else None,
    }


def _plan(recipe: Recipe, base: Any, goal: Any, num_wrapped: int, run: Run) -> Plan:
    """What is known of how the adapter was made: little. The first training on here measures the rest."""
    from safetensors import safe_open

    with safe_open(run.adapter / _FILES[1], "pt") as file:
        trainable = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 - it is no mapping
    total = linear_layers(base.config, goal.task).model.num_parameters() + trainable
    versions = {"peft": importlib.metadata.version("peft")}
    return Plan(
        device="", device_name="another machine", compute_dtype="float32", threads=1, why="It was made elsewhere.", base_name=base.name,
        base_revision=base.revision, base_on_hub=base.on_hub, task=goal.task, labels=goal.labels, target_modules=list(recipe.target_modules),
        num_wrapped=num_wrapped, trainable_parameters=trainable, all_parameters=total, learning_rate=0.0, learning_rate_why="not known", **plan_fields_of(recipe),
        versions=versions,
    )  # fmt: skip
