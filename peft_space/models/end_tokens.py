"""Finds out which tokens that end answers a base model never learned: in memory or in its files."""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_space.data.batches import Examples
from peft_space.models.architecture import (
    CLASSIFYING,
    ModelLayers,
    fully_trained_modules,
    modules_to_save,
)
from peft_space.models.repo_files import FLOATS, local_weights, read_header
from peft_space.models.resolve import BaseModelRef
from peft_space.models.special_tokens import answer_tokens
from peft_space.recipe import Recipe, Task

if TYPE_CHECKING:
    from torch import Tensor

_ROWS_SEARCHED = 50
_ROWS_AT_ONCE = 8192
_SAME_ROW = 1e-3
"""Rows of the output layer that differ by a smaller part of their length count as equal."""


def tokens_at_ends(rows: Examples, tokenizer: Any, task: Task) -> list[int]:
    """The stop tokens with which answers of the first rows end."""
    if task in CLASSIFYING:
        return []
    examples = [rows[place] for place in range(min(len(rows), _ROWS_SEARCHED))]
    answers = [example.target or example for example in examples]
    last = {answer.input_ids[answer.trained[-1][1] - 1] for answer in answers if answer.trained}
    return sorted(last & set(answer_tokens(tokenizer, task, None).stops))


def tokens_as_likely(model: Any, token: int) -> int:
    """How many other tokens a model always finds exactly as likely as this one.

    Many base models never saw their end token in training, so its row of the output layer is that
    of other unused tokens. An adapter on other layers cannot make it likelier than these.

    Args:
        model: with an output layer.
        token: the token that ends the answers to train.
    """
    weight = getattr(model.get_output_embeddings(), "weight", None)
    if weight is None or weight.ndim != 2 or not weight.is_floating_point():
        return 0
    return _count_equal(weight.detach().split(_ROWS_AT_ONCE), weight[token])


def _count_equal(parts: "Iterable[Tensor]", row: "Tensor") -> int:
    """How many other rows of the output layer equal this one."""
    row = row.detach().float()
    length = row.norm()
    equal = (((part.float() - row).norm(dim=1) <= _SAME_ROW * length).sum() for part in parts)
    return int(sum(equal)) - 1


def unlearned_ends_in_files(
    base: BaseModelRef, layers: ModelLayers, tokens: Sequence[int]
) -> dict[int, int]:
    """The tokens that a base cannot tell from others, with the number of these.

    Args:
        base: its weights are read only if they are on this machine.
        layers: of the base model.
        tokens: tokens that end the answers to train.

    Returns:
        Nothing if the output layer is not on this machine, or is quantized.
    """
    if not tokens or (found := _output_layer(base, layers)) is None:
        return {}
    path, name, changed = found
    counts = {token: _count_in_file(path, name, token, changed) for token in tokens}
    return {token: count for token, count in counts.items() if count}


def _output_layer(base: BaseModelRef, layers: ModelLayers) -> tuple[Path, str, int] | None:
    """The file with the weight of the output layer, its name, and when the file was changed."""
    model = layers.model
    output, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    is_tied = f"{layers.head}.weight" in getattr(model, "all_tied_weights_keys", {})
    modules = [embeddings, output] if is_tied else [output, embeddings]
    files = {path: header for path in local_weights(base) if (header := read_header(path))}
    for module in modules:
        name = next((name for name, one in model.named_modules() if one is module), "")
        end = f".{name.rpartition('.')[2]}.weight"  # what is before it differs between classes
        for path, header in files.items():
            for tensor, shape in header.shapes.items():
                fits = len(shape) == 2 and shape[-1:] == tuple(module.weight.shape)[-1:]
                if f".{tensor}".endswith(end) and fits and header.dtypes[tensor] in FLOATS:
                    return path, tensor, path.stat().st_mtime_ns
    return None


@functools.lru_cache(maxsize=64)
def _count_in_file(path: Path, name: str, token: int, changed: int) -> int:
    """Cached, because large files take seconds. `changed` is when the file was last written."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        weight = file.get_slice(name)
        size = weight.get_shape()[0]
        if token >= size:
            return 0
        starts = range(0, size, _ROWS_AT_ONCE)
        parts = (weight[start : start + _ROWS_AT_ONCE] for start in starts)
        return _count_equal(parts, weight[token : token + 1][0])


def trains_output_layer(recipe: Recipe, layers: ModelLayers) -> bool:
    """True if the recipe trains the output layer in full, and with it the row of every token."""
    return layers.head in fully_trained_modules(layers, modules_to_save(recipe, layers))


def explain_unlearned_end(name: str, count: int, is_trained: bool) -> tuple[str, str]:
    """What the app does about an end token that the base never learned, and why.

    Args:
        name: of the token.
        count: of the tokens that the base cannot tell from it.
        is_trained: whether its row of the output layer is trained.
    """
    why = f"The base never learned it: {count:,} other tokens have the same row of the output layer"
    why += ", so no other layer can make it likelier than these."
    if is_trained:
        return f"The row of the token {name}, which ends answers, is trained too.", why
    what = f"Answers may not end, because the base does not know the token {name}."
    return what, f"{why} Train a new adapter with the method lora, which trains this row too."
