"""Reads a model's tasks and linear layers from its module tree, without loading weights."""

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peft_space.compat.peft import layers_taken_for_experts
from peft_space.compat.transformers import has_auto_model
from peft_space.data.schema_detection import Schema, tasks_of_schema
from peft_space.errors import UserError, as_user_error
from peft_space.recipe import Recipe, Task

if TYPE_CHECKING:
    from peft import PeftModel
    from torch.nn import Module
    from transformers import PreTrainedConfig, PreTrainedModel

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
"""Tasks with a new head, which is always trained and saved with the adapter."""
MAX_LABELS = 1_000
_MAX_MODULES = 200_000
"""The largest models have a few ten thousand."""


def auto_class(task: Task) -> Any:
    """The class of transformers that loads models for a task."""
    import transformers

    return getattr(transformers, AUTO_CLASSES[task])


def tasks_of(config: "PreTrainedConfig") -> list[Task]:
    """The tasks that models with this config can learn, the most natural first.

    transformers also lists encoders and encoder-decoders as causal LMs, for other uses. They do
    not continue text, so the causal tasks are not offered for them.
    """
    from transformers import AutoModelForMaskedLM

    kind, two_parts = type(config), config.is_encoder_decoder
    suits = {
        "AutoModelForCausalLM": not two_parts and not has_auto_model(AutoModelForMaskedLM, kind),
        "AutoModelForSeq2SeqLM": two_parts,  # not a decoder behind an audio tower
    }
    return [
        task
        for task, name in AUTO_CLASSES.items()
        if has_auto_model(auto_class(task), kind) and suits.get(name, True)
    ]


def choose_task(recipe: Recipe, config: "PreTrainedConfig", schema: Schema) -> Task:
    """The recipe's task, or the first task that both the rows and the model allow.

    Raises:
        UserError: the rows and the model do not allow the task. The message names what they do.
    """
    from_rows, from_model = tasks_of_schema(schema), tasks_of(config)
    possible = [task for task in from_rows if task in from_model]
    if recipe.task == "automatic":
        if possible:
            return possible[0]
        raise _unsupported_task(config, from_model, from_rows[0])
    if recipe.task not in from_model:
        raise _unsupported_task(config, from_model, recipe.task)
    if recipe.task not in possible:
        raise UserError(
            "models.task_mismatch",
            f"Rows of the schema {schema} cannot train {recipe.task}. "
            f"Set the task to {' or '.join(possible) or 'automatic'}, "
            "or map the columns differently on the Data tab.",
        )
    return recipe.task


def _unsupported_task(config: "PreTrainedConfig", supported: list[Task], task: Task) -> UserError:
    limits = {
        "causal-lm": "do not continue text, so they cannot learn to answer",
        "seq2seq-lm": "do not write one text from another",
    }
    offer = f"They can learn {', '.join(supported)}." if supported else "They can learn no task."
    return UserError(
        "models.task_unsupported",
        f"Models of the type {config.model_type!r} {limits.get(task, f'cannot learn {task}')}. "
        f"{offer} Choose another base model.",
    )


@dataclass(frozen=True)
class ModelLayers:
    """The linear layers of a model that can get an adapter: all but the head."""

    names: list[str]
    """Their full names, in order."""
    counts: dict[str, int]
    """The number of layers for each last part of a name."""
    attention: list[str]
    """Last parts of names that only attention layers have."""
    head: str | None
    """The output layer of a model that writes text. Choosing all layers never includes it."""
    new_modules: list[str]
    """The top modules that a task adds to the model, which start untrained."""
    fused_experts: int
    """Blocks of experts whose weights are one tensor, not layers: they get no adapter."""
    taken_for_experts: list[str]
    """Last parts of names that PEFT takes for experts, so these layers get no adapter either."""
    other_modalities: list[str]
    """Full names of layers that text never reaches, such as those of a vision tower."""
    task: Task
    model: "PreTrainedModel"
    """The model on the meta device: its shapes, without weights."""

    @property
    def can_checkpoint(self) -> bool:
        """True if transformers can compute this architecture's activations again."""
        return self.model.supports_gradient_checkpointing


def linear_layers(config: "PreTrainedConfig", task: Task = "causal-lm") -> ModelLayers:
    """Build the model of a config on the meta device and list its linear layers.

    Raises:
        UserError: the architecture cannot learn the task, or the config describes no model.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    if task not in (supported := tasks_of(config)):
        raise _unsupported_task(config, supported, task)
    model = _build_on_meta(auto_class(task), config)
    new_modules = _new_modules(model) if task in CLASSIFYING else []
    output = None if task in CLASSIFYING else model.get_output_embeddings()
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
        and module is not output
        and name.partition(".")[0] not in new_modules
    ]
    other_modalities = _other_modalities(model, names)
    names = [name for name in names if name not in set(other_modalities)]
    fused_experts = sum(map(_is_fused_experts, model.modules()))
    skipped = layers_taken_for_experts(model, list(_count_leaves(names))) if fused_experts else []
    names = [name for name in names if _leaf(name) not in skipped]
    return ModelLayers(
        names=names,
        counts=_count_leaves(names),
        attention=_attention_leaves(names),
        head=next((name for name, module in model.named_modules() if module is output), None),
        new_modules=new_modules,
        fused_experts=fused_experts,
        taken_for_experts=skipped,
        other_modalities=other_modalities,
        task=task,
        model=model,
    )


def blocks_of(model: Any) -> "list[Module]":
    """The transformer blocks of a model: what gradient checkpointing takes for blocks.

    Of models without gradient checkpointing, the parts of the longest list of modules, or the model
    itself if it has no list.
    """
    import torch
    from transformers.modeling_layers import GradientCheckpointingLayer

    blocks: list[Module] = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return blocks or ([*max(lists, key=num_parameters)] if lists else [model])


def num_parameters(module: "Module") -> int:
    """The number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def _build_on_meta(auto_model: Any, config: "PreTrainedConfig") -> "PreTrainedModel":
    import torch
    from torch.nn.modules.module import register_module_module_registration_hook

    num_modules = 0

    def count(parent: Any, name: str, module: Any) -> None:
        nonlocal num_modules
        num_modules += 1
        if num_modules > _MAX_MODULES:
            raise UserError(
                "models.invalid_config",
                f"The base model's config asks for more than {_MAX_MODULES:,} modules. "
                "Choose another base model.",
            )

    hook = register_module_module_registration_hook(count)
    try:
        with torch.device("meta"):
            return auto_model.from_config(config, trust_remote_code=False)
    except Exception as error:
        if as_user_error(error):
            raise
        reason = str(error).strip().split("\n", 1)[0].rstrip(".")
        raise UserError(
            "models.invalid_config",
            f"The base model's config does not describe a model: {reason[:300]}. "
            "Choose another base model.",
        ) from error
    finally:
        hook.remove()


def _new_modules(model: "PreTrainedModel") -> list[str]:
    """Modules outside the body. The body has one name in all models of a type."""
    return [
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
    ]


_READS_TEXT = ("input_ids", "inputs", "inputs_embeds")
"""Main inputs of models that read text; towers read `pixel_values` or `input_features`."""


def _other_modalities(model: "PreTrainedModel", names: list[str]) -> list[str]:
    """The layers that only pictures or sound pass through: towers and projectors.

    An encoder-decoder passes text through all of its parts but its towers. Other models pass it
    through the part that has the text configuration.
    """
    from transformers import PreTrainedModel

    parts = {
        name: part for name, part in model.named_modules() if isinstance(part, PreTrainedModel)
    }
    if model.config.is_encoder_decoder:
        towers = [n for n, part in parts.items() if part.main_input_name not in _READS_TEXT]
        return [name for name in names if name.startswith(tuple(f"{tower}." for tower in towers))]
    text = text_config(model.config)
    inside = tuple(f"{name}." for name, part in parts.items() if name and part.config is text)
    if text is model.config or not inside:
        return []
    return [name for name in names if not name.startswith(inside)]


def text_config(config: "PreTrainedConfig") -> Any:
    """The configuration of the part that writes text: the config itself unless it is composite."""
    from transformers import PreTrainedConfig

    parts = (getattr(config, name, None) for name in ("text_config", "decoder", "generator"))
    return next((part for part in parts if isinstance(part, PreTrainedConfig)), config)


def set_pad_token(model: "PreTrainedModel | PeftModel", pad_token_id: int) -> None:
    """Set the padding token where the model has none. A classifier looks for the last text token.

    Composite configurations have it in their text part, and heads read it from either.
    """
    for config in (model.config, text_config(model.config)):
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = pad_token_id


def _is_fused_experts(module: "Module") -> bool:
    has_weights = any(True for _ in module.parameters(recurse=False))
    return type(module).__name__.endswith("Experts") and has_weights


def _leaf(name: str) -> str:
    """The last part of a module's full name."""
    return name.rpartition(".")[2]


def _count_leaves(names: list[str]) -> dict[str, int]:
    leaves = [_leaf(name) for name in names]
    return {leaf: leaves.count(leaf) for leaf in dict.fromkeys(leaves)}


def _attention_leaves(names: list[str]) -> list[str]:
    """Last parts that occur only under a module named attention; BERT's `dense` does not."""
    inside = {name for name in names if "att" in name.rpartition(".")[0].lower()}
    outside = {_leaf(name) for name in names if name not in inside}
    return [leaf for leaf in _count_leaves(names) if leaf in set(map(_leaf, inside)) - outside]


def target_modules(recipe: Recipe, layers: ModelLayers) -> list[str]:
    """The names of the layers that get an adapter, as PEFT's `target_modules` takes them.

    Raises:
        UserError: the recipe names a layer that is not in the model, or an empty list.
    """
    if recipe.target_modules == "all-linear":
        return list(layers.counts)
    if recipe.target_modules == "attention":
        return layers.attention
    unknown = [name for name in recipe.target_modules if not _matching(layers.names, [name])]
    if not unknown and recipe.target_modules:
        return list(recipe.target_modules)
    reason = "gets no adapter: target_modules is empty"
    if unknown:
        reason = _why_no_adapter(unknown[0], layers)
    hint = _did_you_mean(unknown, layers.counts) if "has no" in reason else ""
    raise UserError(
        "models.unknown_module",
        f"The base model {reason}. {hint}Choose from {', '.join(layers.counts)}.",
    )


def _why_no_adapter(name: str, layers: ModelLayers) -> str:
    """Why a layer that a recipe names cannot get an adapter, after "The base model"."""
    modules = dict(layers.model.named_modules())
    found = _matching((full for full in modules if full), [name])
    if not found:
        per_expert = layers.fused_experts and name in ("w1", "w2", "w3")
        hint = ", because transformers stores its experts as one tensor" if per_expert else ""
        return f"has no linear layer {name!r}{hint}"
    in_full = "To train it, name it in modules_to_save, which trains it in full"
    output, embeddings = (
        layers.model.get_output_embeddings(), layers.model.get_input_embeddings(),
    )  # fmt: skip
    module = modules[found[0]]
    if module is output:
        tied = getattr(text_config(layers.model.config), "tie_word_embeddings", False)
        shared = " and shares its weights with the embeddings" if tied else ""
        return f"puts no adapter on {name!r}: it is the output layer{shared}. {in_full}"
    if module is embeddings:
        return f"puts no adapter on {name!r}: it is the embeddings. {in_full}"
    if found[0] in layers.other_modalities:
        return f"puts no adapter on {name!r}: only pictures or sound pass through it"
    if _leaf(name) in layers.taken_for_experts or _is_fused_experts(module):
        return f"puts no adapter on {name!r}: PEFT takes it for experts, stored as one tensor"
    if found[0].partition(".")[0] in layers.new_modules:
        return f"puts no adapter on {name!r}: it is part of the new head, which is trained in full"
    return f"puts no adapter on {name!r}: it is of the type {type(module).__name__}, not linear"


def _did_you_mean(unknown: list[str], known: Collection[str]) -> str:
    near = difflib.get_close_matches(unknown[0], known, n=1) if unknown else []
    return f"Did you mean {near[0]}? " if near else ""


def _matching(names: Iterable[str], targets: Sequence[str]) -> list[str]:
    """The names that PEFT matches to one of `targets`: by the whole name or its last parts."""
    endings = tuple(f".{target}" for target in targets)
    return [name for name in names if name in targets or name.endswith(endings)]


def wrapped_layers(recipe: Recipe, layers: ModelLayers) -> list[str]:
    """The full names of the layers that get an adapter.

    Raises:
        UserError: the recipe names a layer or a block that is not in the model.
    """
    fully_trained = set(fully_trained_modules(layers, modules_to_save(recipe, layers)))
    targets = _matching(layers.names, target_modules(recipe, layers))
    names = [name for name in targets if name not in fully_trained]
    if recipe.layers_to_transform is None:
        return names
    blocks = {name: int(number[1]) for name in layers.names if (number := _BLOCK.search(name))}
    if recipe.layers_to_transform and not blocks:
        raise UserError(
            "models.unknown_module",
            "The base model has no numbered blocks. Leave layers_to_transform empty.",
        )
    if unknown := sorted(set(recipe.layers_to_transform) - set(blocks.values())):
        raise UserError(
            "models.unknown_module",
            f"The base model has no block {unknown[0]}. "
            f"Choose among 0 to {max(blocks.values())}, or leave layers_to_transform empty.",
        )
    return [name for name in names if blocks.get(name) in recipe.layers_to_transform]


_BLOCK = re.compile(r"\.(\d+)\.")


def modules_to_save(recipe: Recipe, layers: ModelLayers) -> list[str]:
    """The modules that are trained in full and saved with the adapter.

    These are the head that the task adds, and the modules that the recipe names.

    Raises:
        UserError: the recipe names a module that is not in the model. PEFT would ignore it.
    """
    full_names = [name for name, _ in layers.model.named_modules() if name]
    known = {*full_names, *map(_leaf, full_names)}
    for name in recipe.modules_to_save or []:
        if name not in known:
            hint = _did_you_mean([name], known) or "Leave modules_to_save empty."
            raise UserError(
                "models.unknown_module",
                f"The base model has no module {name!r} to save. {hint.strip()}",
            )
    return list(dict.fromkeys([*layers.new_modules, *(recipe.modules_to_save or [])]))


def excluded_modules(
    layers: ModelLayers, targets: Sequence[str], saved: Sequence[str]
) -> list[str]:
    """Full names of layers that PEFT would adapt by their last part, but that must get no adapter.

    Args:
        layers: of the base model.
        targets: what PEFT gets as `target_modules`.
        saved: the modules that are saved whole.
    """
    return [*fully_trained_modules(layers, saved), *_matching(layers.other_modalities, targets)]


def fully_trained_modules(layers: ModelLayers, saved: Sequence[str]) -> list[str]:
    """Full names of the linear layers inside modules that are saved whole. They get no adapter."""
    import torch

    modules = {name: module for name, module in layers.model.named_modules() if name}
    saved_names = _matching(modules, saved)
    inside = tuple(f"{name}." for name in saved_names)
    return [
        name
        for name, module in modules.items()
        if isinstance(module, torch.nn.Linear) and (name in saved_names or name.startswith(inside))
    ]
