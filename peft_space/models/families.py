"""What an architecture is made of, read from its module tree on the meta device. Loads no weights, keeps no table of names."""

import difflib
from dataclasses import dataclass
from typing import Any

from peft_space.errors import UserError
from peft_space.recipe import Recipe


@dataclass(frozen=True)
class LinearLayers:
    """The linear layers of a model by the last part of their name: how many of each, and which are part of attention."""

    counts: dict[str, int]
    attention: list[str]
    head: str | None
    """The output layer, which is never wrapped by choosing all layers."""
    model: Any
    """The model on the meta device: its shapes, without weights."""


def linear_layers(config: Any) -> LinearLayers:
    """Build the causal LM of `config` on the meta device (no memory, no weights) and look which linear layers it has."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise UserError(
            f"Models of the kind {config.model_type!r} do not continue text, so they cannot learn to answer. Choose a causal LM."
        ) from error
    head = model.get_output_embeddings()
    counts: dict[str, int] = {}
    attention: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head:
            leaf = name.rpartition(".")[2]
            counts[leaf] = counts.get(leaf, 0) + 1
            if "att" in name.rpartition(".")[0].rpartition(".")[2].lower():  # self_attn, attention, SelfAttention, attn
                attention.add(leaf)
    head_name = next((name for name, module in model.named_modules() if module is head), None)
    return LinearLayers(counts, [leaf for leaf in counts if leaf in attention], head_name, model)


def check_modules_to_save(recipe: Recipe, layers: LinearLayers) -> None:
    """Raise UserError where the recipe wants to save a module that is not in the model; PEFT would pass over it without a word."""
    known = {part for name, _ in layers.model.named_modules() for part in (name, name.rpartition(".")[2]) if part}
    for name in recipe.modules_to_save or []:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UserError(
                f"The base model has no module {name!r} to save. "
                + (f"Did you mean {near[0]}?" if near else "Leave modules_to_save empty.")
            )


def target_modules(recipe: Recipe, layers: LinearLayers) -> list[str]:
    """The layer names that get an adapter. Raises UserError where a chosen name is not in the model."""
    if recipe.target_modules == "all-linear":
        return list(layers.counts)
    if recipe.target_modules == "attention":
        return layers.attention
    unknown = [name for name in recipe.target_modules if name not in layers.counts]
    if unknown or not recipe.target_modules:
        near = difflib.get_close_matches(unknown[0], layers.counts, n=1) if unknown else []
        hint = f"Did you mean {near[0]}? " if near else ""
        what = f"has no linear layer {unknown[0]!r}" if unknown else "gets no adapter: target_modules is empty"
        raise UserError(f"The base model {what}. {hint}Choose from {', '.join(layers.counts)}.")
    return list(recipe.target_modules)
