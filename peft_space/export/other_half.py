"""Puts a merged text half back into the whole model of a base that reads more than text."""

import copy
from typing import TYPE_CHECKING, Any

from peft_space.models.architecture import whole_class
from peft_space.models.resolve import BaseModelRef
from peft_space.recipe import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def num_parameters_of_whole(base: BaseModelRef, task: Task) -> int | None:
    """The parameters of the whole base; None if the trained class is not a half of it."""
    import torch

    if (model_class := whole_class(base.config, task)) is None:
        return None
    with torch.device("meta"):
        return model_class(copy.deepcopy(base.config)).num_parameters()


def load_whole(base: BaseModelRef, task: Task) -> "PreTrainedModel | None":
    """Load the whole base in its own dtype, so that its files are only mapped.

    Returns:
        None if the trained class is not a half of it, or the files of the base lack the other half.
    """
    if (model_class := whole_class(base.config, task)) is None:
        return None
    whole, info = model_class.from_pretrained(
        base.location,
        revision=base.revision if base.on_hub else None,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        dtype="auto",
    )
    return None if info["missing_keys"] else whole


def put_back(half: "PreTrainedModel", whole: "PreTrainedModel") -> "PreTrainedModel | None":
    """Replace the text half of a whole model by another one.

    Args:
        half: the text half, with its output layer.
        whole: it is changed.

    Returns:
        The whole model; None if it is not clear where the half belongs.
    """
    output = half.get_output_embeddings()
    bodies = [child for child in half.children() if child is not output]
    # a whole model holds its text half with the output layer, or without it
    for part in (half, *bodies) if len(bodies) == 1 else (half,):
        places = [name for name, module in whole.named_modules() if type(module) is type(part)]
        if len(places) == 1:
            whole.set_submodule(places[0], part)
            if part is not half:
                whole.set_output_embeddings(output)
            _take_config(whole.config, half.config)
            return whole
    return None


def _take_config(config: Any, part: Any) -> None:
    """Use the config of the half, whose vocabulary and tied weights may have changed."""
    for name, value in list(vars(config).items()):
        if type(value) is type(part):
            setattr(config, name, part)
    config.tie_word_embeddings = part.tie_word_embeddings
