"""Creates a run from an adapter made elsewhere, to evaluate, export or train it further."""

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
from peft_space.models.architecture import (
    CLASSIFYING,
    linear_layers,
    unadapted_notes,
    wrapped_layers,
)
from peft_space.models.label_order import keeps_head
from peft_space.models.loading import check_adapter_fits_base
from peft_space.models.resolve import DEMO_MODEL, BaseModelRef, find_base, model_name, pin_revision
from peft_space.recipe import Recipe, TaskSpec, make_recipe
from peft_space.redaction import has_secret
from peft_space.runs.events import Notice, OnProgress, no_progress
from peft_space.runs.plan import Plan, plan_fields_of, write_plan
from peft_space.runs.run import Run
from peft_space.training.prepare import prepare

_CONFIG, _WEIGHTS = _FILES = ("adapter_config.json", "adapter_model.safetensors")
_TASKS = {
    "SEQ_2_SEQ_LM": "seq2seq-lm",
    "SEQ_CLS": "sequence-classification",
    "TOKEN_CLS": "token-classification",
}
_MAX_ZIP_ENTRIES = 10_000
_MAX_ZIP_RATIO = 10
"""Weights hardly compress, so a file that unpacks to more times its size is not an adapter."""
_MAX_CONFIG_BYTES = 4_000_000
_KNOWN_FIELDS = {
    "peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "target_modules",
    "modules_to_save", "bias", "use_dora", "use_rslora", "fan_in_fan_out", "inference_mode",
    "base_model_name_or_path", "revision", "layers_to_transform", "lora_bias", "rank_pattern",
    "target_parameters", "exclude_modules", "trainable_token_indices",
}  # fmt: skip
"""Fields of an adapter's config that are kept."""
_IGNORED_FIELDS = {
    "auto_mapping", "peft_version", "init_lora_weights", "loftq_config", "eva_config",
    "corda_config", "lora_ga_config",
}  # fmt: skip
"""Fields that only matter when a new adapter is created. They are dropped."""
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
    """Create a run in `directory` that has this adapter already; `train` continues from it.

    Args:
        directory: the new run's folder.
        adapter: a folder (not on a Space), a .zip of one, or a Hub id.
        data: rows to evaluate and to train on.
        recipe: settings for further training. The adapter determines base model, rank and layers.
        held_out: as in `prepare`.
        column_mapping: as in `prepare`.
        on_progress: is called with the progress.

    Returns:
        The new run.

    Raises:
        UserError: if it is not a LoRA adapter, its base model cannot be found, or the two do not
            fit together.
    """
    with tempfile.TemporaryDirectory() as scratch:
        on_progress(0.0, "Checking the adapter")
        folder = _find_adapter(adapter, Path(scratch))
        config = _read_config(folder, Path(adapter).name)
        full_recipe = make_recipe({**(recipe or {}), **_recipe_from_config(config)})
        base = pin_revision(find_base(full_recipe.base_model, full_recipe.revision))
        prepared = prepare(data, full_recipe, held_out, column_mapping, on_progress)
        task_spec = prepared.task_spec
        _check_fit(folder, config, base, task_spec, adapter, Path(scratch, "checked"))
        files: dict[str, str | Path] = {**prepared.data.files()}
        files["data/task.json"] = task_spec.as_json()
        config |= {"base_model_name_or_path": base.name, "revision": base.revision}
        for place in ("adapter", "start/adapter"):
            files[f"{place}/{_CONFIG}"] = json.dumps(config, indent=2) + "\n"
            files[f"{place}/{_WEIGHTS}"] = folder / _WEIGHTS
        name = f"{Path(adapter).stem} on {Path(full_recipe.base_model).name}"
        run = Run.create(directory, full_recipe, files, name=name)
    write_plan(run, _plan(run, base, task_spec))
    if task_spec.labels and not full_recipe.labels:
        run.append(_order_notice(task_spec, base))
    return run


def _order_notice(task_spec: TaskSpec, base: BaseModelRef) -> Notice:
    """An adapter does not say which output is which label, so the user has to check it."""
    named = keeps_head(task_spec.labels, Recipe(), base.config, task_spec.task)
    source = "The base names its outputs so." if named else "Nothing names the adapter's outputs."
    return Notice(
        what=f"The outputs of the adapter's head are taken for {', '.join(task_spec.labels)}.",
        why=f"{source} If the scores are far too low, import the adapter again, "
        "with `labels` in the recipe in the order of its outputs.",
    )


def _check_fit(
    folder: Path,
    config: dict[str, Any],
    base: BaseModelRef,
    task_spec: TaskSpec,
    adapter: str,
    checked: Path,
) -> None:
    """Check that the adapter fits its base. PEFT sees only the fields and the file checked here."""
    checked.mkdir()
    (checked / _CONFIG).write_text(json.dumps(config), encoding="utf-8")
    (checked / _WEIGHTS).symlink_to((folder / _WEIGHTS).absolute())
    try:
        check_adapter_fits_base(checked, base, task_spec.task, task_spec.labels)
    except UserError as error:
        raise UserError(error.code, str(error).replace(str(checked), adapter)) from None


def _find_adapter(adapter: str, scratch: Path) -> Path:
    """The folder with the adapter's two files. No other file is read."""
    path = Path(os.path.expanduser(adapter))
    if path.suffix == ".zip" and os.path.isfile(path):
        return _unpack_zip(path, scratch)
    if not settings.on_space() and os.path.isdir(path):
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError

    from peft_space.compat.huggingface_hub import explain_hub_error

    try:
        if has_secret(adapter):
            raise HFValidationError("this is a token")
        hf_hub_download(adapter, _WEIGHTS)
        return Path(hf_hub_download(adapter, _CONFIG)).parent
    except RemoteEntryNotFoundError as error:
        raise UserError(
            "training.adapter_incomplete",
            f"{adapter} on the Hub is not a complete adapter: it has no {_CONFIG} or no "
            f"{_WEIGHTS}. Choose the repository of an adapter saved by PEFT.",
        ) from error
    except (HFValidationError, OSError) as error:
        failure = explain_hub_error(error, adapter)
        reason = f": {failure.reason}" if failure else ""
        raise UserError(
            "training.adapter_not_found",
            f"The adapter {adapter!r} cannot be opened{reason}. Give a Hub id like OWNER/NAME, "
            "a .zip file, or a folder on your own machine.",
        ) from error


def _unpack_zip(path: Path, scratch: Path) -> Path:
    """Unpack the two files from anywhere in a .zip, by name alone: its paths are not used."""
    damage = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError)
    try:
        with zipfile.ZipFile(path) as archive:
            if len(archive.infolist()) > _MAX_ZIP_ENTRIES:
                raise UserError(
                    "training.adapter_ambiguous",
                    f"{path.name} has more than {_MAX_ZIP_ENTRIES:,} files. "
                    "Pack only the adapter's folder.",
                )
            for name in _FILES:
                entries = [item for item in archive.infolist() if Path(item.filename).name == name]
                if len(entries) > 1:
                    raise UserError(
                        "training.adapter_ambiguous",
                        f"{path.name} has {len(entries)} files named {name}. "
                        "Pack the folder of one adapter.",
                    )
                for entry in entries:
                    _unpack_entry(archive, entry, scratch / name, path)
    except (*damage, RuntimeError) as error:  # RuntimeError: a password
        if as_user_error(error):
            raise
        raise UserError(
            "training.adapter_zip_damaged",
            f"{path.name} is not a .zip file that can be opened. Pack the adapter's folder again.",
        ) from None
    return scratch


def _unpack_entry(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, path: Path
) -> None:
    limit = _MAX_CONFIG_BYTES if target.name == _CONFIG else _MAX_ZIP_RATIO * path.stat().st_size
    if entry.file_size > limit:
        raise UserError(
            "training.adapter_too_large",
            f"{path.name}: its {target.name} unpacks to {entry.file_size / 1e6:,.0f} MB, "
            "too large for an adapter. Pack it again.",
        )
    with archive.open(entry) as source, open(target, "wb") as file:
        shutil.copyfileobj(source, file)  # reads no more than the entry's stated size


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    """The known fields of the adapter's config, checked."""
    if missing := [file for file in _FILES if not (folder / file).is_file()]:
        raise UserError(
            "training.adapter_incomplete",
            f"{name} is not a complete adapter: it has no {missing[0]}. "
            "Give the output of PEFT's save_pretrained.",
        )
    try:
        if (folder / _CONFIG).stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError("too large for an adapter_config.json")
        config: dict[str, Any] = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        kind = config["peft_type"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            "training.adapter_config_invalid",
            f"{name}: its adapter_config.json is damaged. Save the adapter again.",
        ) from None
    if kind != "LORA":
        raise UserError(
            "training.adapter_unsupported",
            f"{name} is an adapter of type {kind}. Only LoRA adapters can be imported.",
        )
    _check_fields(config, name)
    if config.get("rank_pattern") or config.get("target_parameters"):
        raise UserError(
            "training.adapter_unsupported",
            f"{name} uses rank_pattern or target_parameters, which cannot be trained further here. "
            "Merge it into its base model and use the merged model.",
        )
    return {name: value for name, value in config.items() if name in _KNOWN_FIELDS}


def _check_fields(config: Mapping[str, Any], name: str) -> None:
    """Reject fields from which PEFT would take modules, paths or patterns, and unknown ones."""
    from peft import LoraConfig

    defaults = LoraConfig().to_dict()
    for field, value in config.items():
        known = field in _KNOWN_FIELDS or field in _IGNORED_FIELDS
        if not known and value and value != defaults.get(field):
            raise UserError(
                "training.adapter_unsupported",
                f"{name}: its adapter_config.json sets {field[:60]!r}, which cannot be imported. "
                "Merge the adapter into its base model, or remove the field.",
            )
    if not (isinstance(config.get("r"), int) and isinstance(config.get("lora_alpha"), int | float)):
        raise UserError(
            "training.adapter_config_invalid",
            f"{name}: r and lora_alpha in its adapter_config.json are not numbers. "
            "Save the adapter again.",
        )
    rows = config.get("trainable_token_indices") or []
    lists = list(rows.values()) if isinstance(rows, dict) else [rows]
    if not all(isinstance(one, list) and all(type(n) is int for n in one) for one in lists):
        raise UserError(
            "training.adapter_config_invalid",
            f"{name}: trainable_token_indices in its adapter_config.json are not lists of token "
            "ids. Save the adapter again.",
        )
    for field in ("target_modules", "modules_to_save", "exclude_modules"):
        value = config.get(field)
        names = value if isinstance(value, list) else []
        valid = all(isinstance(item, str) and _MODULE.fullmatch(item) for item in names)
        if not valid or (value and not names and value != "all-linear"):
            raise UserError(
                "training.adapter_unsupported",
                f"{name}: {field} in its adapter_config.json is not a list of module names. "
                "Only such adapters can be imported.",
            )


def _recipe_from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe fields that an adapter's config determines."""
    base = config.get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise UserError(
            "training.adapter_config_invalid",
            "The adapter does not name its base model. "
            "Add base_model_name_or_path to its adapter_config.json.",
        )
    targets, revision = config.get("target_modules"), config.get("revision")
    if targets != "all-linear":
        targets = sorted(targets) if isinstance(targets, list) else [str(targets)]
    task = _TASKS.get(config.get("task_type") or "", "automatic")
    method = "rslora" if config.get("use_rslora") else "lora"
    high_rank_reason = "The adapter was made with this rank." if config["r"] > 64 else None
    return {
        "base_model": DEMO_MODEL if base == model_name(DEMO_MODEL) else base,
        "revision": None if str(revision or "").startswith("sha256-") else revision,
        "task": task,
        "method": "dora" if config.get("use_dora") else method,
        "lora_rank": config["r"],
        "lora_alpha": config["lora_alpha"],
        "target_modules": targets,
        "modules_to_save": None if task in CLASSIFYING else config.get("modules_to_save"),
        "high_rank_reason": high_rank_reason,
    }


def _plan(run: Run, base: BaseModelRef, task_spec: TaskSpec) -> Plan:
    """The known facts about the adapter's training. The first training here measures the rest."""
    from safetensors import safe_open

    with safe_open(run.adapter / _WEIGHTS, "pt") as file:
        names = file.keys()
        trainable = sum(file.get_tensor(name).numel() for name in names)
    recipe, layers = run.recipe, linear_layers(base.config, task_spec.task)
    return Plan(
        device="",
        device_name="another machine",
        compute_dtype="float32",
        threads=1,
        why="The adapter was made elsewhere.",
        base_name=base.name,
        base_revision=base.revision,
        base_on_hub=base.on_hub,
        task=task_spec.task,
        labels=task_spec.labels,
        target_modules=list(recipe.target_modules),
        num_wrapped=len(wrapped_layers(recipe, layers)),
        not_adapted=unadapted_notes(recipe, layers),
        trainable_parameters=trainable,
        all_parameters=layers.model.num_parameters() + trainable,
        learning_rate=0.0,
        learning_rate_why="not known",
        versions={"peft": importlib.metadata.version("peft")},
        **plan_fields_of(recipe),
    )
