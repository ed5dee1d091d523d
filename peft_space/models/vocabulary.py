"""The tokenizer and the number of embeddings of a run, where they are not those of its base.

An adapter made elsewhere may bring a tokenizer with another chat template or more tokens, and
belong to a base whose embeddings were resized.
"""

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_space.data.tokenization.chat_template import TEMPLATES
from peft_space.errors import UserError
from peft_space.models.architecture import ModelLayers, input_embeddings
from peft_space.models.config_values import config_number, text_config
from peft_space.models.resolve import (
    BaseModelRef,
    add_new_tokens,
    find_base,
    load_tokenizer,
    own_tokenizer,
)
from peft_space.recipe import FROM_BASE, Recipe, Task
from peft_space.runs.run import Run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY = "data/tokenizer"
"""The folder of a run with its tokenizer and the number of embeddings, each if it differs."""
SAVED_EMBEDDINGS = (
    ".weight", ".base_layer.weight", ".original_module.weight", ".modules_to_save.weight",
    ".token_adapter.base_layer.weight",
)  # fmt: skip
"""Ends of the names of whole embeddings, which PEFT saves if they were resized or have a LoRA."""
_TOKENIZER, _NUM_EMBEDDINGS = "tokenizer.json", "num_embeddings.json"


def find_base_of_run(run: Run, revision: str | None) -> BaseModelRef:
    """Find the base model of a run, with the run's tokenizer and number of embeddings.

    Args:
        run: the run.
        revision: of the base model.

    Raises:
        UserError: there is no such model, or it is out of reach.
    """
    base = find_base(run.recipe.base_model, revision)
    return with_new_tokens(with_vocabulary(base, vocabulary_folder(run)), run.recipe)


def vocabulary_folder(run: Run) -> Path:
    """Return the folder `VOCABULARY` of a run, which may not exist."""
    return run.path(*VOCABULARY.split("/"))


def has_resized_base(run: Run) -> bool:
    """Return True if the run's adapter came with embeddings of another number than the base's."""
    return (vocabulary_folder(run) / _NUM_EMBEDDINGS).is_file()


def with_new_tokens(base: BaseModelRef, recipe: Recipe) -> BaseModelRef:
    """Return the base with enough embeddings for the recipe's new tokens.

    Raises:
        UserError: a new token is a token already.
    """
    if not recipe.new_tokens:
        return base
    tokenizer = own_tokenizer(base, {})
    add_new_tokens(tokenizer, recipe.new_tokens)
    needed = len(tokenizer)
    rows = config_number(base.config, "vocab_size")
    return with_num_embeddings(base, needed) if needed > rows else base


def check_new_tokens(recipe: Recipe, layers: ModelLayers) -> None:
    """Check that the model can learn the recipe's new tokens.

    Raises:
        UserError: it has no embeddings of tokens, or the adapter does not start at zero.
    """
    if not recipe.new_tokens:
        return
    problem = ""
    if recipe.method in FROM_BASE:
        problem = f"{recipe.method} starts from the base's own weights, which have no new tokens"
    elif input_embeddings(layers.model) is None:
        problem = f"{type(layers.model).__name__} has no embeddings of tokens"
    if problem:
        raise UserError(
            "models.new_tokens_impossible",
            f"{problem[0].upper()}{problem[1:]}. Leave new_tokens empty, or choose lora as the "
            "method.",
        )


def initialize_new_tokens(model: Any, base: BaseModelRef, words: Sequence[str]) -> list[int]:
    """Set the rows of new tokens to the mean of the rows of the tokens that they replace.

    Both the embeddings and the output layer have such rows.

    Args:
        model: with enough embeddings.
        base: the model's.
        words: the new tokens.

    Returns:
        The ids of the new tokens.
    """
    import torch

    old = own_tokenizer(base, {})
    new = copy.deepcopy(old)
    new.add_tokens(list(words))
    ids = [new.get_vocab()[word] for word in words]
    for layer in {input_embeddings(model), model.get_output_embeddings()} - {None}:
        with torch.no_grad():
            for word, row in zip(words, ids, strict=True):
                pieces = old(word, add_special_tokens=False)["input_ids"]
                layer.weight[row] = layer.weight[pieces].float().mean(0).to(layer.weight.dtype)
    return ids


def token_rows(
    model: Any, layers: ModelLayers, new: Sequence[int], ends: Sequence[int], full: Sequence[str]
) -> list[int] | dict[str, list[int]] | None:
    """Return the rows of single tokens to train, as PEFT's `trainable_token_indices`.

    Args:
        model: the base model.
        layers: of the base model.
        new: tokens whose embeddings and rows of the output layer are trained.
        ends: tokens whose rows of the output layer are trained.
        full: names of modules that are trained in full.
    """
    embeddings: Any = input_embeddings(model)
    output = model.get_output_embeddings()
    if output is not None and output.weight is embeddings.weight:
        return sorted({*new, *ends}) or None
    name = next(name for name, module in model.named_modules() if module is embeddings)
    rows = {name: sorted(new)}
    if output is not None:
        rows[str(layers.head)] = sorted({*new, *ends})
    kept = {name: ids for name, ids in rows.items() if ids and name not in full}
    return kept or None


def with_vocabulary(base: BaseModelRef, folder: Path) -> BaseModelRef:
    """Return the base with the tokenizer and the number of embeddings that a folder contains."""
    if (folder / _TOKENIZER).is_file():
        base = dataclasses.replace(base, tokenizer=str(folder))
    if (folder / _NUM_EMBEDDINGS).is_file():
        base = with_num_embeddings(base, int(json.loads((folder / _NUM_EMBEDDINGS).read_text())))
    return base


def with_num_embeddings(base: BaseModelRef, number: int) -> BaseModelRef:
    """Return the base with another number of embeddings."""
    config: Any = copy.deepcopy(base.config)
    for part in {id(one): one for one in (config, text_config(config))}.values():
        if hasattr(part, "vocab_size"):
            part.vocab_size = number
    return dataclasses.replace(base, config=config, num_embeddings=number)


def write_vocabulary(
    folder: Path, tokenizer: "PreTrainedTokenizerFast | None", num_embeddings: int | None
) -> list[Path]:
    """Write what differs from the base model into a new folder.

    Args:
        folder: the folder to create.
        tokenizer: None if it is the base model's.
        num_embeddings: None if it is the base model's.

    Returns:
        The files.
    """
    folder.mkdir()
    if tokenizer is not None:
        tokenizer.save_pretrained(folder, save_jinja_files=False)  # a run's data are JSON
    if num_embeddings is not None:
        (folder / _NUM_EMBEDDINGS).write_text(f"{num_embeddings}\n")
    return sorted(path for path in folder.iterdir() if path.suffix == ".json")


@dataclasses.dataclass(frozen=True)
class AdapterTokenizer:
    """What was found about the tokenizer in an adapter's folder."""

    tokenizer: "PreTrainedTokenizerFast | None"
    """None if it is the same as the base model's, or cannot be used."""
    differs: str = ""
    """How it differs from the base model's."""
    problem: str = ""
    """Why it cannot be used."""


def tokenizer_of_adapter(
    folder: Path, base: BaseModelRef, task: Task, template_is_chosen: bool
) -> AdapterTokenizer:
    """Return the tokenizer in an adapter's folder if it differs from the base model's.

    Args:
        folder: of the adapter.
        base: its base model.
        task: of the run.
        template_is_chosen: the recipe names a chat template, so only the tokens count.
    """
    try:
        own = load_tokenizer(base, None, task)
    except UserError:  # a base without a tokenizer
        own = None
    template = folder / "chat_template.jinja"
    try:
        if _has_vocabulary(folder):
            located = dataclasses.replace(base, tokenizer=str(folder))
            brought = load_tokenizer(located, None, task)
        elif own is not None and template.is_file():
            brought = copy.deepcopy(own)
            brought.chat_template = template.read_text(encoding="utf-8")
        else:
            return AdapterTokenizer(None)
    except (UserError, UnicodeDecodeError) as error:
        return AdapterTokenizer(None, problem=str(error))
    if own is None:
        return AdapterTokenizer(brought, "the base model has no tokenizer")
    if brought.chat_template == TEMPLATES["plain"]:  # it has none
        brought.chat_template = own.chat_template
    differences = _differences(brought, own, template_is_chosen)
    return (
        AdapterTokenizer(brought, ", ".join(differences)) if differences else AdapterTokenizer(None)
    )


def _has_vocabulary(folder: Path) -> bool:
    names = ("tokenizer.json", "vocab.json", "vocab.txt")
    return any((folder / name).is_file() for name in names) or any(folder.glob("*.model"))


def _differences(
    brought: "PreTrainedTokenizerFast", own: "PreTrainedTokenizerFast", ignore_template: bool
) -> list[str]:
    found = []
    more = len(brought.get_vocab().keys() - own.get_vocab().keys())
    if more:
        found.append(f"{more} more token{'s' * (more > 1)}")
    elif brought.get_vocab() != own.get_vocab():
        found.append("other tokens")
    if not ignore_template and brought.chat_template != own.chat_template:
        found.append("another chat template")
    titles = {"bos_token": "beginning", "eos_token": "end", "pad_token": "padding"}
    for name, title in titles.items():
        if (token := getattr(brought, name)) != getattr(own, name):
            found.append(f"{token} as its {title} token")
    text = "The quick brown fox, 1234 times.\n  Ünïcode 猫"
    if not found and brought(text)["input_ids"] != own(text)["input_ids"]:
        found.append("other rules that split a text")
    return found


def rows_for_tokens(config: Mapping[str, Any], layers: ModelLayers) -> int | None:
    """Return the number of embeddings that an adapter with rows of single tokens needs.

    Args:
        config: of the adapter.
        layers: of the base model.

    Returns:
        None if the base model has enough.
    """
    rows = config.get("trainable_token_indices") or []
    ids = [one for part in rows.values() for one in part] if isinstance(rows, dict) else rows
    needed = max(ids, default=-1) + 1
    embeddings: Any = input_embeddings(layers.model)
    return needed if embeddings is not None and needed > len(embeddings.weight) else None


def num_embeddings_in(shapes: Mapping[str, tuple[int, ...]], layers: ModelLayers) -> int | None:
    """Return the number of embeddings that an adapter was trained with, if its file shows it.

    Args:
        shapes: of the adapter's tensors, by PEFT's names.
        layers: of the base model.
    """
    model: Any = layers.model
    embeddings = {input_embeddings(model), model.get_output_embeddings()} - {None}
    for name, module in model.named_modules():
        if module not in embeddings:
            continue
        is_head = module is model.get_output_embeddings()
        places = [(part, 0) for part in SAVED_EMBEDDINGS] + [(".lora_embedding_A", 1)]
        for part, dimension in [*places, *([(".lora_B.weight", 0)] if is_head else [])]:
            shape = shapes.get(f"base_model.model.{name}{part}")
            if shape and len(shape) == 2:
                return shape[dimension]
    return None
