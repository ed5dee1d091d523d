"""Collects the facts behind recommendations: about the rows, the base model and the machine."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import numpy as np

from peft_space import hardware
from peft_space.data.batches import Examples, example_batch
from peft_space.data.row_checks import texts_of
from peft_space.data.tokenization.chat_template import set_thinking
from peft_space.errors import oom_device
from peft_space.estimation.hub_hardware import zerogpu_hardware
from peft_space.models.architecture import linear_layers, wrapped_layers
from peft_space.models.config_values import config_number
from peft_space.models.label_scorer import LabelScorer
from peft_space.models.loading import inference_dtype, load_base_model
from peft_space.models.quantization import quantization_of
from peft_space.models.resolve import BaseModelRef, load_tokenizer
from peft_space.models.special_tokens import set_special_tokens
from peft_space.recipe import Recipe, Task
from peft_space.recommend.rules import DataFacts, MachineFacts, ModelFacts
from peft_space.training.prepare import Prepared

if TYPE_CHECKING:
    pass

_TEXT_SAMPLE = 200
"""Rows whose words are counted."""
_LOSS_SAMPLE = 32
"""Rows on which the base model's loss is measured."""
_MAX_CPU_PARAMETERS = 300_000_000
"""Largest model whose loss is measured on a CPU: it takes seconds."""


def data_facts(
    prepared: Prepared, base: BaseModelRef, recipe: Recipe, measured: bool = True
) -> DataFacts:
    """Return the facts about the training rows.

    Args:
        prepared: the rows.
        base: the base model.
        recipe: the recipe.
        measured: whether to measure the base model's loss on some rows.
    """
    tokens, task_spec = prepared.train, prepared.task_spec
    repeated = prepared.data.num_repeated / max(1, prepared.data.num_repeated + len(tokens))
    lengths = np.percentile(tokens.column("length"), range(101), method="higher")
    return DataFacts(
        task=task_spec.task,
        num_rows=len(tokens),
        trained_tokens=int(tokens.column("num_trained").sum() * (1 - repeated)),
        lengths=tuple(int(length) for length in lengths),
        num_labels=len(task_spec.labels) or None,
        repeated_share=repeated,
        tokens_per_word=_tokens_per_word(prepared, base, recipe),
        bits_per_token=bits_per_token(prepared, base, recipe) if measured else None,
        has_empty_thoughts=_has_empty_thoughts(prepared, base, recipe),
    )


def _has_empty_thoughts(prepared: Prepared, base: BaseModelRef, recipe: Recipe) -> bool:
    counts = {finding.kind: finding.count for finding in prepared.data.findings}
    if counts.get("empty_thought", 0) <= len(prepared.train) / 2:
        return False
    template = load_tokenizer(base, recipe, prepared.task_spec.task).get_chat_template()
    return set_thinking(template, False) is not None


def _tokens_per_word(prepared: Prepared, base: BaseModelRef, recipe: Recipe) -> float | None:
    """Tokens per word of the first rows. None if the texts have no words between spaces."""
    tokenizer = load_tokenizer(base, recipe, prepared.task_spec.task)
    text = "\n".join(text for row in prepared.data.train[:_TEXT_SAMPLE] for text in texts_of(row))
    words = len(re.findall(r"\w+|[^\w\s]", text))
    return len(tokenizer(text, add_special_tokens=False)["input_ids"]) / words if words else None


def bits_per_token(prepared: Prepared, base: BaseModelRef, recipe: Recipe) -> float | None:
    """Measure the base model's loss, in bits per token, on some training rows.

    A GPU holds the base as training would: quantized if the recipe says so, the rest in 16 bits.

    Returns:
        The loss. None for tasks without such a loss, for large models on a CPU, and for those that
        do not fit in the GPU's free memory.
    """
    task_spec = prepared.task_spec
    size = linear_layers(base.config, task_spec.task).model.num_parameters()
    on_gpu = hardware.device() == "cuda"
    too_large = not on_gpu and size > _MAX_CPU_PARAMETERS
    if task_spec.labels or task_spec.task == "kto" or too_large:
        return None
    held = recipe if on_gpu else recipe.model_copy(update={"quantization": "none"})
    try:
        return _measured_bits(prepared, base, held)
    except Exception as error:
        if on_gpu and oom_device(error):
            return None
        raise
    finally:
        hardware.release_memory()


def _measured_bits(prepared: Prepared, base: BaseModelRef, recipe: Recipe) -> float:
    import torch

    task_spec = prepared.task_spec
    model = load_base_model(base, recipe, inference_dtype(base.config), task_spec).eval()
    scorer = LabelScorer(model)
    tokenizer = load_tokenizer(base, recipe, task_spec.task)
    set_special_tokens(model, tokenizer)
    examples, total, count = Examples(prepared.train), 0.0, 0
    places = np.linspace(0, len(examples) - 1, min(len(examples), _LOSS_SAMPLE)).astype(int)
    for place in places:
        batch = example_batch(task_spec, examples[int(place)], tokenizer)
        batch = {name: value.to(model.device) for name, value in batch.items()}
        num_trained = int((batch["labels"] >= 0).sum())
        with torch.inference_mode():
            total -= float(scorer(batch.pop("labels"), batch).log_probs.sum())
        count += num_trained
    return total / count / math.log(2)


def model_facts(base: BaseModelRef, recipe: Recipe, task: Task) -> ModelFacts:
    """Return the facts about the base model, with the recipe's target modules."""
    layers = linear_layers(base.config, task)
    modules = dict(layers.model.named_modules())
    config, quantization = base.config, quantization_of(recipe, base.config)
    shapes = (modules[name].weight.shape for name in wrapped_layers(recipe, layers))
    return ModelFacts(
        num_parameters=layers.model.num_parameters(),
        hidden_size=config_number(config, "hidden_size"),
        parameters_per_rank=sum(sum(shape) for shape in shapes),
        context_length=config_number(config, "max_position_embeddings") or None,
        vocab_size=config_number(config, "vocab_size"),
        num_layers=config_number(config, "num_hidden_layers"),
        comes_quantized=None if quantization == recipe.quantization else quantization,
    )


def machine_facts() -> MachineFacts:
    """Return the facts about the machine that trains."""
    if kind := zerogpu_hardware():
        return MachineFacts(kind.device, kind.usable)
    return MachineFacts(hardware.device(), hardware.free_memory())
