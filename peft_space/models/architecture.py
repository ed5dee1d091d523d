"""What an architecture is made of, read from its module tree on the meta device. Loads no weights, keeps no table of names.

Which tasks it can learn, which linear layers it has, which of them belong to attention, and which modules are the head of a task.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peft_space.data.schemas import Schema, tasks_of_schema
from peft_space.errors import UserError, as_user_error
from peft_space.recipe import Recipe, Task

AUTO_CLASSES: dict[Task, str] = {
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "dpo": "AutoModelForCausalLM",
    "kto": "AutoModelForCausalLM",
}
"""The class of transformers that loads models for a task."""
CLASSIFYING: tuple[Task, ...] = ("sequence-classification", "token-classification")
"""Tasks with a new head, which is always trained and kept with the adapter."""
MOST_LABELS = 1_000


def auto_class(task: Task) -> Any:
    """The class of transformers that loads models for a task."""
    import transformers

    return getattr(transformers, AUTO_CLASSES[task])


def tasks_of(config: Any) -> list[Task]:
    """The tasks that models with this config can learn, the most natural first.

    Encoders and encoder-decoders are listed by transformers as causal LMs too, for other uses; what they write is no continuation, so that
    is not offered.
    """
    from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    kind = type(config)
    writes_on = (
        kind not in AutoModelForMaskedLM._model_mapping
        and kind not in AutoModelForSeq2SeqLM._model_mapping
    )
    return [
        task
        for task, name in AUTO_CLASSES.items()
        if kind in auto_class(task)._model_mapping and (name != "AutoModelForCausalLM" or writes_on)
    ]


def choose_task(recipe: Recipe, config: Any, shape: Schema) -> Task:
    """What is to be learnt from rows of this shape: what the recipe says, or the first task that both rows and model allow.

    Raises UserError where they do not go together, naming what would.
    """
    allowed, can = tasks_of_schema(shape), tasks_of(config)
    both = [task for task in allowed if task in can]
    if recipe.task == "automatic" and both:
        return both[0]
    if recipe.task in both:
        return recipe.task  # type: ignore[return-value]
    if recipe.task != "automatic" and recipe.task not in can:
        raise UserError("todo", _cannot(config, can, recipe.task))
    if recipe.task != "automatic":
        raise UserError(
            "todo",
            f"Rows read as {shape} do not show what {recipe.task} learns. Set the task to {' or '.join(both) or 'automatic'}, "
            "or read the columns differently on the Data tab.",
        )
    raise UserError("todo", _cannot(config, can, allowed[0]))


def _cannot(config: Any, can: list[Task], wanted: Task) -> str:
    verbs = {
        "causal-lm": "do not continue text, so they cannot learn to answer",
        "seq2seq-lm": "do not write one text from another",
    }
    offered = (
        f"They can learn {', '.join(can)}." if can else "They can learn none of the tasks here."
    )
    return f"Models of the kind {config.model_type!r} {verbs.get(wanted, f'cannot learn {wanted}')}. {offered} Choose another base model."


@dataclass(frozen=True)
class ModelLayers:
    """The linear layers of a model that can get an adapter: all but the head."""

    names: list[str]
    """Their full names, in order."""
    counts: dict[str, int]
    """How many there are of each last part of a name."""
    attention: list[str]
    """Last parts of names that only layers of attention have."""
    head: str | None
    """The output layer of a model that writes text, which is never wrapped by choosing all layers."""
    new_modules: list[str]
    """The top modules that a task adds to the model, which come untrained."""
    fused_experts: int
    """Blocks of experts whose weights are one block of numbers, not layers: they get no adapter."""
    taken_for_experts: list[str]
    """Last parts of names of layers that PEFT would take for experts, so that they can get none either."""
    task: Task
    model: Any
    """The model on the meta device: its shapes, without weights."""


def linear_layers(config: Any, task: Task = "causal-lm") -> ModelLayers:
    """Build the model of `config` for a task on the meta device (no memory, no weights) and look which linear layers it has.

    Raises UserError where there is no such model.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    if task not in (can := tasks_of(config)):
        raise UserError("todo", _cannot(config, can, task))
    model = _on_meta(auto_class(task), config)
    new = _new_modules(model) if task in CLASSIFYING else []
    output = None if task in CLASSIFYING else model.get_output_embeddings()
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
    }
    names = [
        name
        for name, module in linear.items()
        if module is not output and name.partition(".")[0] not in new
    ]
    experts = sum(
        type(module).__name__.endswith("Experts") and _has_weights(module)
        for module in model.modules()
    )
    taken = _expert_like_layers(model, names) if experts else []
    names = [name for name in names if name.rpartition(".")[2] not in taken]
    return ModelLayers(
        names=names,
        counts=_counts(names),
        attention=_attention(names),
        head=next((name for name, module in model.named_modules() if module is output), None),
        new_modules=new,
        fused_experts=experts,
        taken_for_experts=taken,
        task=task,
        model=model,
    )


_MOST_MODULES = 200_000
"""The largest models have a few ten thousand."""


def _on_meta(of_task: Any, config: Any) -> Any:
    """The model without weights. Raises UserError where its config is of none, or of one without end."""
    import torch
    from torch.nn.modules.module import register_module_module_registration_hook

    made = 0

    def count(parent: Any, name: str, module: Any) -> None:
        nonlocal made
        made += 1
        if made > _MOST_MODULES:
            raise UserError(
                "todo",
                f"The base model's config asks for more than {_MOST_MODULES:,} modules. Choose another base model.",
            )

    counting = register_module_module_registration_hook(count)
    try:
        with torch.device("meta"):
            return of_task.from_config(config, trust_remote_code=False)
    except Exception as error:
        if as_user_error(error):
            raise
        first = str(error).strip().split("\n", 1)[0].rstrip(".")
        raise UserError(
            "todo",
            f"No model can be made from the base model's config: {first[:300]}. Choose another base model.",
        ) from error
    finally:
        counting.remove()


def _new_modules(model: Any) -> list[str]:
    """Modules beside the body, which carries the name that its kind has in every model (`base_model_prefix`)."""
    return [
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
    ]


def _has_weights(module: Any) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def _expert_like_layers(model: Any, names: list[str]) -> list[str]:
    """Names that PEFT 0.21 turns into those of the experts' block, passing over the layers that bear them: asked of PEFT itself."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    leaves = list(_counts(names))
    config = LoraConfig(target_modules=leaves)
    convert_peft_config_for_transformers(config, model, None)
    return [leaf for leaf in leaves if leaf not in (config.target_modules or ())]


def _counts(names: list[str]) -> dict[str, int]:
    leaves = [name.rpartition(".")[2] for name in names]
    return {leaf: leaves.count(leaf) for leaf in dict.fromkeys(leaves)}


def _attention(names: list[str]) -> list[str]:
    """Leaves under a part of the tree whose name says attention; not those that layers elsewhere have too, such as BERT's `dense`."""
    inside = {name.rpartition(".")[2] for name in names if "att" in name.rpartition(".")[0].lower()}
    outside = {
        name.rpartition(".")[2] for name in names if "att" not in name.rpartition(".")[0].lower()
    }
    return [leaf for leaf in _counts(names) if leaf in inside - outside]


def target_modules(recipe: Recipe, layers: ModelLayers) -> list[str]:
    """The names of layers that get an adapter, as PEFT takes them. Raises UserError where a chosen name is not in the model."""
    if recipe.target_modules == "all-linear":
        return list(layers.counts)
    if recipe.target_modules == "attention":
        return layers.attention
    unknown = [name for name in recipe.target_modules if not _named(layers.names, [name])]
    if unknown or not recipe.target_modules:
        near = difflib.get_close_matches(unknown[0], layers.counts, n=1) if unknown else []
        hint = f"Did you mean {near[0]}? " if near else ""
        what = (
            f"has no linear layer {unknown[0]!r}"
            if unknown
            else "gets no adapter: target_modules is empty"
        )
        raise UserError(
            "todo", f"The base model {what}. {hint}Choose from {', '.join(layers.counts)}."
        )
    return list(recipe.target_modules)


def _named(names: list[str], targets: list[str]) -> list[str]:
    """Those of `names` that PEFT takes for one of `targets`: the whole name, or its last parts."""
    return [
        name
        for name in names
        if any(name == target or name.endswith(f".{target}") for target in targets)
    ]


def wrapped_layers(recipe: Recipe, layers: ModelLayers) -> list[str]:
    """The full names of the layers that get an adapter. Raises UserError where the recipe names what is not there."""
    whole = set(fully_trained_modules(layers, modules_to_save(recipe, layers)))
    names = [
        name for name in _named(layers.names, target_modules(recipe, layers)) if name not in whole
    ]
    if recipe.layers_to_transform is None:
        return names
    block = re.compile(r"\.(\d+)\.")
    numbers = {int(found[1]) for name in layers.names if (found := block.search(name))}
    if wrong := sorted(set(recipe.layers_to_transform) - numbers):
        raise UserError(
            "todo",
            f"The base model has no block {wrong[0]}. Choose among 0 to {max(numbers)}, or leave layers_to_transform empty."
            if numbers
            else "The base model has no numbered blocks. Leave layers_to_transform empty.",
        )
    return [
        name
        for name in names
        if (found := block.search(name)) and int(found[1]) in recipe.layers_to_transform
    ]


def modules_to_save(recipe: Recipe, layers: ModelLayers) -> list[str]:
    """What is trained in full and kept with the adapter: the head that the task adds, whatever the recipe says, and what the recipe names.

    Raises UserError where that is not in the model; PEFT would pass over it without a word.
    """
    known = {
        part
        for name, _ in layers.model.named_modules()
        for part in (name, name.rpartition(".")[2])
        if part
    }
    for name in recipe.modules_to_save or []:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UserError(
                "todo",
                f"The base model has no module {name!r} to save. "
                + (f"Did you mean {near[0]}?" if near else "Leave modules_to_save empty."),
            )
    return list(dict.fromkeys([*layers.new_modules, *(recipe.modules_to_save or [])]))


def fully_trained_modules(layers: ModelLayers, saved: Sequence[str]) -> list[str]:
    """Full names of the linear layers in modules that are saved whole: they get no adapter besides."""
    import torch

    every = {name: module for name, module in layers.model.named_modules() if name}
    whole = _named(list(every), list(saved))
    return [
        name
        for name, module in every.items()
        if isinstance(module, torch.nn.Linear)
        and any(name == one or name.startswith(f"{one}.") for one in whole)
    ]
