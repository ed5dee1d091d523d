"""Reads a model's tasks and linear layers from its module tree, without loading weights."""

import difflib
import functools
import inspect
import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peft_space.compat.transformers import auto_model_class, has_auto_model
from peft_space.data.column_mapping import Schema, tasks_of_schema
from peft_space.errors import UserError, as_user_error
from peft_space.models.config_values import text_config
from peft_space.models.layers_without_adapter import (
    WHY_LEFT_OUT,
    LeftOut,
    count_leaves,
    is_linear,
    leaf,
    left_out_layers,
)
from peft_space.recipe import Recipe, Task

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedConfig, PreTrainedModel

AUTO_CLASSES: dict[Task, str] = {
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "dpo": "AutoModelForCausalLM",
    "kto": "AutoModelForCausalLM",
    "image-text-to-text": "AutoModelForImageTextToText",
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
        "AutoModelForImageTextToText": not two_parts,
    }
    return [
        task
        for task, name in AUTO_CLASSES.items()
        if has_auto_model(auto_class(task), kind) and suits.get(name, True)
    ]


def text_half(config: "PreTrainedConfig", task: Task) -> str | None:
    """The class that is trained, if it is only the text half of a model that reads more than text.

    transformers has such a class for some multimodal models, for instance Qwen3.5. In the class of
    the whole model the same layers have other names.
    """
    model_class = auto_model_class(auto_class(task), type(config))
    whole = model_class.config_class is None or issubclass(type(config), model_class.config_class)
    return None if whole else model_class.__name__


def whole_class(config: "PreTrainedConfig", task: Task) -> Any | None:
    """The class of the whole base model, if a model that writes text is only its text half."""
    import transformers

    if task in CLASSIFYING or text_half(config, task) is None:
        return None
    published = getattr(transformers, next(iter(config.architectures or []), ""), None)
    if getattr(published, "config_class", None) is type(config):
        return published
    autos = (transformers.AutoModelForImageTextToText, transformers.AutoModelForMultimodalLM)
    fitting = (auto for auto in autos if has_auto_model(auto, type(config)))
    return next((auto_model_class(auto, type(config)) for auto in fitting), None)


def choose_task(
    recipe: Recipe, config: "PreTrainedConfig", schema: Schema, has_pictures: bool = False
) -> Task:
    """The recipe's task, or the first task that both the rows and the model allow.

    Args:
        recipe: its task, if it is not automatic.
        config: of the base model.
        schema: of the rows.
        has_pictures: whether rows have pictures, which only one task learns.

    Raises:
        UserError: the rows and the model do not allow the task. The message names what they do.
    """
    from_rows, from_model = tasks_of_schema(schema), tasks_of(config)
    if has_pictures:
        if "image-text-to-text" not in from_model:
            raise UserError(
                "models.reads_no_pictures",
                f"The rows have pictures, and models of the type {config.model_type!r} read only "
                "text. Choose a base model that reads pictures, such as Gemma 3, Qwen2.5-VL or "
                "SmolVLM.",
            )
        from_rows = ("image-text-to-text",)
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
    left_out: dict[str, LeftOut]
    """The reasons why other linear layers get no adapter, by their full names."""
    fused_experts: int
    """Blocks of experts whose weights are one tensor, not layers."""
    expert_tensors: list[str]
    """Ends of the names of their weights that have a matrix for each expert."""
    text_half: str | None
    """The class of the model, if the base model is more than this text half."""
    task: Task
    config: "PreTrainedConfig"
    """Of the base model."""
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
    if task not in (supported := tasks_of(config)):
        raise _unsupported_task(config, supported, task)
    model = _build_on_meta(auto_class(task), config)
    new_modules = _new_modules(model) if task in CLASSIFYING else []
    output = None if task in CLASSIFYING else model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if is_linear(module) and module is not output and name.partition(".")[0] not in new_modules
    ]
    fused_experts = sum(map(_is_fused_experts, model.modules()))
    left_out = left_out_layers(model, task, linear, fused_experts)
    names = [name for name in linear if name not in left_out]
    return ModelLayers(
        names=names,
        counts=count_leaves(names),
        attention=_attention_leaves(names),
        head=next((name for name, module in model.named_modules() if module is output), None),
        new_modules=new_modules,
        left_out=left_out,
        fused_experts=fused_experts,
        expert_tensors=_expert_tensors(model),
        text_half=text_half(config, task),
        task=task,
        config=config,
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


_POSITIONS = re.compile(r"wpe|positions?_embed\w*|embed_positions?|pos_encoding")
"""Names of embeddings and tables of positions."""


def num_places(model: Any) -> int | None:
    """The number of tokens that a model has positions for; None if it computes them for any.

    A longer row would end in an index error. Reads the tables of the part that reads text.

    Args:
        model: a model, with or without weights.
    """
    import torch
    from transformers import PreTrainedModel

    own = [model.config, text_config(model.config)]
    towers = tuple(
        f"{name}."
        for name, part in model.named_modules()
        if isinstance(part, PreTrainedModel)
        and (
            part.main_input_name not in _READS_TEXT
            or not (model.config.is_encoder_decoder or any(part.config is one for one in own))
        )
    )
    limits = [getattr(text_config(model.config), "max_seq_len", None)]  # of MPT, for its biases
    for name, module in model.named_modules():
        is_table = isinstance(module, torch.nn.Embedding) and _POSITIONS.fullmatch(leaf(name))
        if is_table and not name.startswith(towers):
            # some keep the first rows for padding
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - getattr(module, "offset", reserved))
    for name, table in model.named_buffers():
        if table.dim() == 2 and _POSITIONS.fullmatch(leaf(name)) and not name.startswith(towers):
            limits.append(len(table))
    return min((limit for limit in limits if limit is not None), default=None)


@functools.lru_cache(maxsize=32)
def _num_places_of(config_class: Any, values: str, task: Task) -> int | None:
    config = config_class.from_dict(json.loads(values))
    return num_places(_build_on_meta(auto_class(task), config))


def num_places_of(config: "PreTrainedConfig", task: Task) -> int | None:
    """`num_places` of the model of a config; None if it cannot learn the task."""
    if task not in tasks_of(config):
        return None
    config_class: Any = type(config)
    # not `to_json_string`, which writes an infinite number (of Mamba 2) as an object
    values = json.dumps(config.to_dict(), sort_keys=True, default=str)
    return _num_places_of(config_class, values, task)


def forward_options(model: Any, num_logits: int | None = None) -> dict[str, Any]:
    """Return arguments with which a model makes no cache and no more logits than needed.

    Args:
        model: a model, or a `PeftModel`. What its `forward` does not take is left out.
        num_logits: compute the logits of this many positions at the end; None means all.
    """
    forward = getattr(model, "get_base_model", lambda: model)().forward
    wanted = {"use_cache": False, "logits_to_keep": num_logits}
    takes = inspect.signature(forward).parameters
    return {name: value for name, value in wanted.items() if value is not None and name in takes}


def input_embeddings(model: Any) -> "Module | None":
    """The module with a row for each token. CANINE, which hashes characters, has none."""
    try:
        embeddings = model.get_input_embeddings()
    except NotImplementedError:
        return None
    return embeddings if hasattr(embeddings, "weight") else None


def num_parameters(module: "Module") -> int:
    """The number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def tower_parameters(layers: ModelLayers) -> int:
    """Parameters outside of the part that reads text: tower and projector."""
    config, model = layers.model.config, layers.model
    text = text_config(config)
    if text is config or layers.task != "image-text-to-text":
        return 0
    parts = [part for part in model.modules() if getattr(part, "config", None) is text]
    own = {id(parameter) for part in parts for parameter in part.parameters()}
    head = model.get_output_embeddings()
    own |= {id(parameter) for parameter in (head.parameters() if head is not None else [])}
    return sum(one.numel() for one in model.parameters() if id(one) not in own)


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


def _expert_tensors(model: "PreTrainedModel") -> list[str]:
    """Ends of the names of fused experts' weights that PEFT can adapt: one matrix an expert."""
    names = [
        f"{leaf(path)}.{name}"
        for path, module in model.named_modules()
        if _is_fused_experts(module)
        for name, weight in module.named_parameters(recurse=False)
        if weight.ndim == 3
    ]
    return list(dict.fromkeys(names))


def _is_fused_experts(module: "Module") -> bool:
    has_weights = any(True for _ in module.parameters(recurse=False))
    return type(module).__name__.endswith("Experts") and has_weights


def _attention_leaves(names: list[str]) -> list[str]:
    """Last parts that occur only under a module named attention; BERT's `dense` does not."""
    inside = {name for name in names if "att" in name.rpartition(".")[0].lower()}
    outside = {leaf(name) for name in names if name not in inside}
    return [last for last in count_leaves(names) if last in set(map(leaf, inside)) - outside]


def target_modules(recipe: Recipe, layers: ModelLayers) -> list[str]:
    """The names of the layers that get an adapter, as PEFT's `target_modules` takes them.

    Raises:
        UserError: the recipe names a layer that is not in the model, or an empty list.
    """
    if recipe.target_modules == "all-linear":
        return list(layers.counts)
    if recipe.target_modules == "attention":
        return layers.attention
    if not recipe.target_modules:
        raise UserError(
            "models.unknown_module",
            "The base model gets no adapter: target_modules is empty. "
            f"Choose from {', '.join(layers.counts)}.",
        )
    for name in recipe.target_modules:
        if not _matching(layers.names, [name]):
            raise _no_adapter_on(name, layers)
    return list(recipe.target_modules)


def _no_adapter_on(name: str, layers: ModelLayers) -> UserError:
    """The error for a target that names nothing, or only layers that cannot get an adapter."""
    modules = dict(layers.model.named_modules())
    found = _matching((full for full in modules if full), [name])
    code, hint = "models.layer_left_out", ""
    if found:
        problem = f"puts no adapter on {name!r}: {_why_not(found[0], modules[found[0]], layers)}"
    else:
        code, hint = "models.unknown_module", _did_you_mean([name], layers.counts)
        problem = f"has no linear layer {name!r}"
        if layers.fused_experts and name in ("w1", "w2", "w3"):
            problem += ", because transformers stores its experts as one tensor"
    return UserError(
        code, f"The base model {problem}. {hint}Choose from {', '.join(layers.counts)}."
    )


def _why_not(name: str, module: "Module", layers: ModelLayers) -> str:
    """Why a layer of the base model cannot get an adapter."""
    in_full = "To train it, name it in modules_to_save, which trains it in full"
    if name in layers.left_out:
        return WHY_LEFT_OUT[layers.left_out[name]]
    if module is layers.model.get_output_embeddings():
        tied = getattr(text_config(layers.model.config), "tie_word_embeddings", False)
        shared = " and shares its weights with the embeddings" if tied else ""
        return f"it is the output layer{shared}. {in_full}"
    if module is input_embeddings(layers.model):
        return f"it is the embeddings. {in_full}"
    if _is_fused_experts(module):
        return "its experts are stored as one tensor"
    if name.partition(".")[0] in layers.new_modules:
        return "it is part of the new head, which is trained in full"
    return f"it is of the type {type(module).__name__}, not linear"


def unadapted_notes(recipe: Recipe, layers: ModelLayers) -> list[str]:
    """Sentences that say which parts, layers and experts get no adapter, and why."""
    notes = []
    if layers.text_half:
        keeps = "The merged model keeps the rest as it is."
        if whole_class(layers.config, layers.task) is None:
            keeps = "A merged model cannot read pictures or sound."
        notes.append(
            f"The base model reads more than text. Only its text half, {layers.text_half}, is "
            f"trained and scored. {keeps}"
        )
    if layers.fused_experts and not recipe.adapt_experts:
        remedy = " adapt_experts in the recipe adapts them." if layers.expert_tensors else ""
        notes.append(
            f"{layers.fused_experts} blocks of experts get no adapter, because each is stored as "
            f"one tensor.{remedy}"
        )
    for reason, why in WHY_LEFT_OUT.items():
        names = [name for name, found in layers.left_out.items() if found == reason]
        if names:
            counted = ", ".join(f"{last} ({n})" for last, n in count_leaves(names).items())
            notes.append(f"{len(names)} layers get no adapter, because {why}: {counted}.")
    return notes


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
    if not names:
        raise UserError(
            "models.no_layers",
            f"{type(layers.model).__name__} has no layer for an adapter with target_modules "
            f"{recipe.target_modules}. Choose other target modules, or another base model.",
        )
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
        UserError: the recipe names a module that is not in the model, which PEFT would ignore, or
            wants a projector that it has not.
    """
    full_names = [name for name, _ in layers.model.named_modules() if name]
    known = {*full_names, *map(leaf, full_names)}
    for name in recipe.modules_to_save or []:
        if name not in known:
            hint = _did_you_mean([name], known) or "Leave modules_to_save empty."
            raise UserError(
                "models.unknown_module",
                f"The base model has no module {name!r} to save. {hint.strip()}",
            )
    projectors = _projectors(layers) if recipe.train_projector else []
    return list(dict.fromkeys([*layers.new_modules, *projectors, *(recipe.modules_to_save or [])]))


_PROJECTOR = re.compile(
    r"multi_modal_projector|mm_projector|projector|connector|merger|aligner|embed_vision"
)
"""Names of the modules between a vision tower and a language model."""


def _projectors(layers: ModelLayers) -> list[str]:
    """The modules that turn what a vision tower sees into tokens.

    Raises:
        UserError: the model has none, or learns from texts alone.
    """
    names = [name for name, _ in layers.model.named_modules() if _PROJECTOR.fullmatch(leaf(name))]
    outer = [name for name in names if not name.startswith(tuple(f"{one}." for one in names))]
    if layers.task != "image-text-to-text" or not outer:
        reason = "has no projector of a known name"
        if layers.task != "image-text-to-text":
            reason = "learns from texts here, which do not pass through its projector"
        raise UserError(
            "models.no_projector",
            f"{type(layers.model).__name__} {reason}. Set train_projector to false.",
        )
    return list(dict.fromkeys(map(leaf, outer)))


def peft_targets(
    recipe: Recipe, layers: ModelLayers, untrained: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """PEFT's `target_modules` and `exclude_modules` for exactly the layers of `wrapped_layers`.

    PEFT matches ends of names. An end that matches something else too, such as the number that a
    block and a layer have in common, is replaced by the full names of its layers.

    Args:
        recipe: chooses the layers.
        layers: of the base model.
        untrained: modules that are trained in full, so their layers get no adapter.
    """
    every_block = recipe.model_copy(update={"layers_to_transform": None})
    saved = set(fully_trained_modules(layers, untrained))
    here = set(wrapped_layers(recipe, layers)) - saved
    wanted = set(wrapped_layers(every_block, layers)) - saved
    modules = dict(layers.model.named_modules())
    linear = {name for name, module in modules.items() if is_linear(module)}
    targets: list[str] = []
    excluded: list[str] = []
    for target in target_modules(recipe, layers):
        matched = _matching(modules, [target])
        others = [name for name in matched if name not in wanted]
        hidden = any(_matching(wanted, [name]) for name in others)
        if hidden or not linear.issuperset(others):
            targets += [name for name in matched if name in here]
        else:
            targets.append(target)
            excluded += others
    return list(dict.fromkeys(targets)), list(dict.fromkeys(excluded))


def fully_trained_modules(layers: ModelLayers, saved: Sequence[str]) -> list[str]:
    """Full names of the linear layers inside modules that are saved whole. They get no adapter."""
    modules = {name: module for name, module in layers.model.named_modules() if name}
    saved_names = _matching(modules, saved)
    inside = tuple(f"{name}." for name in saved_names)
    return [
        name
        for name, module in modules.items()
        if is_linear(module) and (name in saved_names or name.startswith(inside))
    ]
