"""Matches the labels of the rows with the outputs of a base that is a classifier already."""

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from peft_space.errors import UserError
from peft_space.recipe import Recipe, Task

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_NUMBERED = re.compile(r"label[_ ]?(\d+)", re.IGNORECASE)
"""The names that transformers gives to outputs without a name."""
_HEADS = {
    "sequence-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
}


def labels_in_order(
    found: Collection[str], recipe: Recipe, config: "PreTrainedConfig", task: Task
) -> tuple[str, ...]:
    """The labels of the rows in the order of the outputs of the head.

    It is the order of the recipe; or that of the base, if it has outputs of these names; or else
    numerical or alphabetical. The outputs of the base that no row has stay.

    Args:
        found: the labels of the rows.
        recipe: its `labels` decide first.
        config: of the base.
        task: a classification.

    Raises:
        UserError: the recipe lists other labels than the rows have.
    """
    if recipe.labels is not None:
        return _listed(found, recipe.labels)
    names = base_labels(config, task)
    by_name = {_name(label): label for label in found}
    if names and len(by_name) == len(found) and by_name.keys() <= set(map(_name, names)):
        return tuple(by_name.get(_name(name), name) for name in names)
    numeric = all(label.lstrip("-").isdigit() for label in found)
    return tuple(sorted(found, key=int if numeric else str))


def _listed(found: Collection[str], listed: Sequence[str]) -> tuple[str, ...]:
    missing, repeated = set(found) - set(listed), len(set(listed)) < len(listed)
    if missing or repeated or len(listed) < 2:
        reason = f"the rows also have {min(missing)!r}" if missing else "they repeat, or are one"
        raise UserError(
            "training.labels_differ",
            f"The recipe lists the labels {', '.join(listed) or 'of no name'}, but {reason}. "
            "List every label of the rows once, in the order of the outputs, or leave it empty.",
        )
    return tuple(listed)


def base_labels(config: "PreTrainedConfig", task: Task) -> tuple[str, ...]:
    """The names of the outputs of a base that is a classifier of this task; empty for others."""
    head = _HEADS.get(task)
    if not head or not any(name.endswith(head) for name in config.architectures or ()):
        return ()
    names: dict[Any, Any] = dict(config.id2label or {})
    return tuple(str(names[number]) for number in sorted(names))


def keeps_head(
    labels: Sequence[str], recipe: Recipe, config: "PreTrainedConfig", task: Task
) -> bool:
    """True if the outputs of the base's head are these labels, in this order.

    A recipe that lists as many labels as a base has outputs without names says which is which.
    """
    names = base_labels(config, task)
    if len(names) != len(labels):
        return False
    unnamed = all(_NUMBERED.fullmatch(name) for name in names)
    return list(map(_name, names)) == list(map(_name, labels)) or (
        unnamed and recipe.labels is not None
    )


def _name(label: str) -> str:
    """A label as it is compared: LABEL_3 and 3 are the same."""
    number = _NUMBERED.fullmatch(label.strip())
    return str(int(number[1])) if number else label.strip().casefold()


def explain_head(
    labels: Sequence[str], recipe: Recipe, config: "PreTrainedConfig", task: Task
) -> tuple[str, str]:
    """What becomes of the base's head, and why. Two sentences for the user."""
    names, order = base_labels(config, task), ", ".join(labels)
    if keeps_head(labels, recipe, config, task):
        return (
            f"The base's own head is trained further, with the outputs {order}.",
            f"The base names its outputs {', '.join(names)}.",
        )
    why = "The base has no head for labels."
    if names:
        why = f"The base's own head has the outputs {', '.join(names)}, which are other labels."
    return f"A new head is trained, with the outputs {order}.", why


def output_layer(new_modules: Sequence[str], model: Any) -> str | None:
    """The full name of the layer of a head that computes the outputs: its last linear layer.

    Args:
        new_modules: the modules of the head.
        model: the model with a head.
    """
    import torch

    inside = tuple(f"{name}." for name in new_modules)
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and f"{name}.".startswith(inside)
    ]
    return layers[-1] if layers else None
