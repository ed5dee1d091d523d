"""The facts that advice rests on: counted from the rendered rows, read from the model's tree, and asked of the machine."""

import math
import re
from typing import Any

import numpy as np

from peft_space import hardware
from peft_space.data.batches import Examples, example_batch
from peft_space.data.quality import texts_of
from peft_space.estimation.hub_hardware import zerogpu_hardware
from peft_space.models.architecture import linear_layers, wrapped_layers
from peft_space.models.loading import load_base_model
from peft_space.models.quantization import quantization_of
from peft_space.models.resolve import BaseModelRef, load_tokenizer
from peft_space.recipe import Recipe, Task
from peft_space.recommend.rules import DataFacts, MachineFacts, ModelFacts
from peft_space.training.prepare import Prepared

_SAMPLED = 200
_MEASURED = 32
_SMALL = 300_000_000
"""Parameters up to which the base's own loss is measured unasked: it takes seconds."""


def data_facts(
    prepared: Prepared, base: BaseModelRef, recipe: Recipe, measured: bool = True
) -> DataFacts:
    """What is known of the rows to train; with the base's loss on some of them, unless that is not to be `measured`."""
    tokens, goal = prepared.train, prepared.goal
    repeated = prepared.data.num_repeated / max(1, prepared.data.num_repeated + len(tokens))
    return DataFacts(
        task=goal.task,
        num_rows=len(tokens),
        trained_tokens=int(tokens.column("num_trained").sum() * (1 - repeated)),
        lengths=tuple(
            int(length)
            for length in np.percentile(tokens.column("length"), range(101), method="higher")
        ),
        num_labels=len(goal.labels) or None,
        repeated_share=repeated,
        tokens_per_word=_tokens_per_word(prepared, base, recipe),
        bits_per_token=bits_per_token(prepared, base, recipe) if measured else None,
    )


def _tokens_per_word(prepared: Prepared, base: BaseModelRef, recipe: Recipe) -> float | None:
    """Of the first rows; None where the texts are not written in words between spaces."""
    tokenizer = load_tokenizer(base, recipe.chat_template, prepared.goal.task)
    text = "\n".join(one for row in prepared.data.train[:_SAMPLED] for one in texts_of(row))
    words = len(re.findall(r"\w+|[^\w\s]", text))
    return len(tokenizer(text, add_special_tokens=False)["input_ids"]) / words if words else None


def bits_per_token(prepared: Prepared, base: BaseModelRef, recipe: Recipe) -> float | None:
    """The untouched base's loss, in bits, on some rows to train; None for tasks without such a loss, and for large models on a CPU."""
    goal = prepared.goal
    size = linear_layers(base.config, goal.task).model.num_parameters()
    if goal.labels or goal.task == "kto" or (hardware.device() == "cpu" and size > _SMALL):
        return None
    import torch

    model = load_base_model(
        base, recipe.model_copy(update={"quantization": "none"}), "float32", goal
    ).eval()
    tokenizer = load_tokenizer(base, recipe.chat_template, goal.task)
    examples = Examples(prepared.train)
    total, count = 0.0, 0
    for place in np.linspace(0, len(examples) - 1, min(len(examples), _MEASURED)).astype(int):
        batch = example_batch(goal, examples[int(place)], tokenizer.pad_token_id)
        batch = {name: value.to(model.device) for name, value in batch.items()}
        num_trained = int((batch["labels"] >= 0).sum())
        with torch.inference_mode():
            total += float(model(**batch).loss) * num_trained
        count += num_trained
    return total / count / math.log(2)


def model_facts(base: BaseModelRef, recipe: Recipe, task: Task) -> ModelFacts:
    """What is known of the base model, with the recipe's target modules."""
    layers = linear_layers(base.config, task)
    modules = dict(layers.model.named_modules())
    config = base.config.get_text_config()
    wanted = quantization_of(recipe, base.config)
    return ModelFacts(
        num_parameters=layers.model.num_parameters(),
        hidden_size=config.hidden_size,
        parameters_per_rank=sum(
            sum(modules[name].weight.shape) for name in wrapped_layers(recipe, layers)
        ),
        context_length=_context_length(config),
        vocab_size=config.vocab_size,
        num_layers=config.num_hidden_layers,
        comes_quantized=None if wanted == recipe.quantization else wanted,
    )


def _context_length(config: Any) -> int | None:
    """Tokens that the model has places for; relative ones, such as T5's, have no end."""
    given = getattr(config, "max_position_embeddings", None)
    return given if isinstance(given, int) and given > 0 else None


def machine_facts() -> MachineFacts:
    """What is known of the machine that trains."""
    kind = zerogpu_hardware()
    return (
        MachineFacts(kind.device, kind.usable)
        if kind
        else MachineFacts(hardware.device(), hardware.free_memory())
    )
