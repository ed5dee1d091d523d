"""Creates a run from an adapter made elsewhere, to evaluate, export or train it further."""

import importlib.metadata
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_space.data.table import Data
from peft_space.errors import UserError
from peft_space.models.architecture import (
    ModelLayers,
    input_embeddings,
    linear_layers,
    tasks_of,
    unadapted_notes,
)
from peft_space.models.label_order import keeps_head
from peft_space.models.loading import check_adapter_fits_base
from peft_space.models.resolve import BaseModelRef, find_base, pin_revision
from peft_space.models.vocabulary import (
    VOCABULARY,
    num_embeddings_in,
    rows_for_tokens,
    tokenizer_of_adapter,
    with_num_embeddings,
    with_vocabulary,
    write_vocabulary,
)
from peft_space.recipe import Recipe, TaskSpec, make_recipe
from peft_space.runs.events import Notice, OnProgress, no_progress
from peft_space.runs.plan import Plan, plan_fields_of, write_plan
from peft_space.runs.run import Run
from peft_space.training.adapter_config import (
    AdapterInfo,
    base_fields,
    read_adapter,
    recipe_fields,
    without_patterns,
)
from peft_space.training.adapter_source import CONFIG, WEIGHTS, find_adapter
from peft_space.training.prepare import Prepared, prepare


@dataclass(frozen=True)
class _Imported:
    """An adapter in the form in which a run keeps it."""

    folder: Path
    """With its config and weights."""
    base: BaseModelRef
    """With the adapter's tokenizer and number of embeddings."""
    recipe: Recipe
    vocabulary: list[Path]
    """The files of `base`'s tokenizer."""
    notices: list[Notice]


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
        recipe: settings for further training. The adapter determines rank and layers, and the base
            model unless the recipe names one.
        held_out: as in `prepare`.
        column_mapping: as in `prepare`.
        on_progress: is called with the progress.

    Returns:
        The new run. Its notices say what was taken from the adapter's folder, and what was not.

    Raises:
        UserError: if it is not an adapter that can be a LoRA, its base model cannot be found, or
            the two do not fit together.
    """
    with tempfile.TemporaryDirectory() as scratch:
        on_progress(0.0, "Checking the adapter")
        (unpacked := Path(scratch, "unpacked")).mkdir()
        folder = find_adapter(adapter, unpacked)
        imported = _open(folder, adapter, recipe or {}, Path(scratch), on_progress)
        base = imported.base
        prepared = prepare(data, imported.recipe, held_out, column_mapping, on_progress, base=base)
        return _create(directory, adapter, imported, prepared)


def _create(directory: str | Path, adapter: str, imported: _Imported, prepared: Prepared) -> Run:
    """Write the run, unless the adapter does not fit the base."""
    base, task_spec = imported.base, prepared.task_spec
    remedy = "Set base_model in the recipe to the model that it was trained on."
    try:
        check_adapter_fits_base(imported.folder, base, task_spec.task, task_spec.labels, remedy)
    except UserError as error:
        raise UserError(error.code, str(error).replace(str(imported.folder), adapter)) from None
    files: dict[str, str | Path] = {**prepared.data.files()}
    files["data/task.json"] = task_spec.as_json()
    files |= {f"{VOCABULARY}/{path.name}": path for path in imported.vocabulary}
    for place in ("adapter", "start/adapter"):
        files |= {f"{place}/{name}": imported.folder / name for name in (CONFIG, WEIGHTS)}
    name = f"{Path(adapter).stem} on {Path(imported.recipe.base_model).name}"
    run = Run.create(directory, imported.recipe, files, name=name)
    why = "The adapter was made elsewhere."
    write_plan(run, plan_without_training(run, base, task_spec, why))
    for notice in imported.notices:
        run.append(notice)
    if task_spec.labels and not imported.recipe.labels:
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


def _open(
    folder: Path,
    adapter: str,
    chosen: Mapping[str, Any],
    scratch: Path,
    on_progress: OnProgress,
) -> _Imported:
    """Find the base of an adapter, and write the adapter as a run keeps it."""
    name = Path(adapter).name
    info = read_adapter(folder, name)
    base_choice = base_fields(info.config, chosen, name)
    base = _find_base(base_choice, info.config, name)
    notices = _base_notices(info.config, base_choice, base)
    if info.config["peft_type"] != "LORA":
        from peft_space.training.convert_adapter import convert_to_lora

        folder, notice = convert_to_lora(folder, info, base, scratch / "converted", on_progress)
        notices.append(notice)
        info = read_adapter(folder, name)
    draft = make_recipe({**chosen, **base_choice, **recipe_fields(info, name)})
    task = draft.task if draft.task != "automatic" else tasks_of(base.config)[0]
    layers = linear_layers(base.config, task)
    shapes = {info.renamed.get(key, key): shape for key, shape in info.header.shapes.items()}
    rows = num_embeddings_in(shapes, layers) or rows_for_tokens(info.config, layers)
    if rows == num_embeddings_of(layers):
        rows = None
    if rows is not None:
        base = with_num_embeddings(base, rows)
        notices.append(_resized(rows, layers))
        layers = linear_layers(base.config, task)
    found = tokenizer_of_adapter(folder, base, task, draft.chat_template != "own")
    notices += _tokenizer_notices(found.differs, found.problem)
    files: list[Path] = []
    if found.tokenizer is not None or rows is not None:
        files = write_vocabulary(scratch / "vocabulary", found.tokenizer, rows)
        base = with_vocabulary(base, scratch / "vocabulary")
    config = without_patterns(info, layers)
    recipe = draft.model_copy(update={"target_modules": _targets_of_recipe(config, layers)})
    written = scratch / "checked"
    _write(written, folder, info, config | _base_names(base))
    return _Imported(written, base, recipe, files, notices)


def num_embeddings_of(layers: ModelLayers) -> int | None:
    """The number of input embeddings of a model; None if it hashes its input."""
    embeddings: Any = input_embeddings(layers.model)
    return None if embeddings is None else len(embeddings.weight)


def _find_base(choice: Mapping[str, Any], config: Mapping[str, Any], name: str) -> BaseModelRef:
    try:
        return pin_revision(find_base(choice["base_model"], choice["revision"]))
    except UserError as error:
        named = config.get("base_model_name_or_path")
        if choice["base_model"] != named:
            raise
        raise UserError(
            error.code,
            f"{name} names the base model {named!r}, which cannot be loaded here: {error} "
            "If it has another name on this machine or on the Hub, set base_model in the recipe.",
        ) from None


def _base_notices(
    config: Mapping[str, Any], choice: Mapping[str, Any], base: BaseModelRef
) -> list[Notice]:
    named = config.get("base_model_name_or_path")
    if not named or named in (choice["base_model"], base.name):
        return []
    what = f"Put the adapter on {base.name}."
    why = f"The recipe names this base model; the adapter names {str(named)[:200]}."
    return [Notice(what=what, why=why)]


def _resized(rows: int, layers: ModelLayers) -> Notice:
    before = num_embeddings_of(layers) or 0
    what = f"Resized the embeddings of the base model from {before:,} to {rows:,}."
    return Notice(what=what, why="The adapter was trained with a vocabulary of this size.")


def _tokenizer_notices(differs: str, problem: str) -> list[Notice]:
    if problem:
        what = "Left out the adapter's tokenizer, and took the base model's."
        return [Notice(what=what, why=problem)]
    if differs:
        what = "Took the tokenizer and chat template in the adapter's folder."
        return [Notice(what=what, why=f"Compared with the base model's: {differs}.")]
    return []


def _base_names(base: BaseModelRef) -> dict[str, Any]:
    return {"base_model_name_or_path": base.name, "revision": base.revision}


def _targets_of_recipe(config: Mapping[str, Any], layers: ModelLayers) -> list[str] | str:
    """The adapted layers that a recipe can name: not embeddings, nor the output layer."""
    names = config.get("target_modules")
    if not isinstance(names, list):
        return "all-linear"
    known = {*layers.names, *layers.counts}
    return sorted(name for name in names if name in known) or "all-linear"


def _write(folder: Path, source: Path, info: AdapterInfo, config: Mapping[str, Any]) -> None:
    """Write the adapter with the names and fields that were checked. PEFT sees no others."""
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if not info.renamed:
        (folder / WEIGHTS).symlink_to((source / WEIGHTS).absolute())
        return
    from safetensors.torch import load_file, save_file

    tensors = load_file(source / WEIGHTS)
    renamed = {info.renamed.get(name, name): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / WEIGHTS, metadata={"format": "pt"})


def plan_without_training(run: Run, base: BaseModelRef, task_spec: TaskSpec, why: str) -> Plan:
    """Return what is known about an adapter that this app did not train.

    Args:
        run: the run, with its adapter. Its first training measures the rest.
        base: its base model.
        task_spec: what it is for.
        why: a sentence that says how the adapter was made.
    """
    from safetensors import safe_open

    with safe_open(run.adapter / WEIGHTS, "pt") as file:
        names = list(file.keys())
        trainable = sum(file.get_tensor(name).numel() for name in names)
    recipe, layers = run.recipe, linear_layers(base.config, task_spec.task)
    config = json.loads((run.adapter / CONFIG).read_text(encoding="utf-8"))
    return Plan(
        device="",
        device_name="another machine",
        compute_dtype="float32",
        threads=1,
        why=why,
        base_name=base.name,
        base_revision=base.revision,
        base_on_hub=base.on_hub,
        task=task_spec.task,
        labels=task_spec.labels,
        target_modules=sorted(config.get("target_modules") or []),
        num_wrapped=sum(name.endswith((".lora_A.weight", ".lora_embedding_A")) for name in names),
        not_adapted=unadapted_notes(recipe, layers),
        trainable_parameters=trainable,
        all_parameters=layers.model.num_parameters() + trainable,
        learning_rate=0.0,
        learning_rate_why="not known",
        versions={"peft": importlib.metadata.version("peft")},
        **plan_fields_of(recipe),
    )
