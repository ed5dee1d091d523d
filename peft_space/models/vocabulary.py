"""The tokenizer and the number of embeddings of a run, where they are not those of its base.

An adapter made elsewhere may bring a tokenizer with another chat template or more tokens, and
belong to a base whose embeddings were resized.
"""

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_space.data.tokenization.chat_template import TEMPLATES
from peft_space.errors import UserError
from peft_space.models.architecture import ModelLayers, input_embeddings
from peft_space.models.config_values import text_config
from peft_space.models.resolve import BaseModelRef, find_base, load_tokenizer
from peft_space.recipe import Task
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
    return with_vocabulary(base, run.path(*VOCABULARY.split("/")))


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
