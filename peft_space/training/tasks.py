"""For each task: what its rows become in a batch, and which library's trainer learns from them. What is learnt from is what was previewed."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from peft_space.data.example import MASKED, Example
from peft_space.data.store import Tokens
from peft_space.models.load import Goal
from peft_space.recipe import Recipe
from peft_space.scores import macro_f1

Batch = dict[str, torch.Tensor]


class Examples(torch.utils.data.Dataset[Example]):
    """Rendered rows that have something to learn in them, as the trainer draws them from the disk."""

    def __init__(self, tokens: Tokens, shuffled_by: int | None = None):
        """`shuffled_by` is a seed for who takes rows in the order in which they are given."""
        index = tokens.index[tokens.column("num_trained") > 0]
        self.tokens = tokens.at(index if shuffled_by is None else np.random.default_rng(shuffled_by).permutation(index))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Example:
        return self.tokens[index]

    def lengths(self, max_length: int) -> np.ndarray:
        """Tokens of each row, cut off at the limit."""
        return np.minimum(self.tokens.column("length"), max_length)

    def of_median_length(self) -> Example:
        """A row that is neither short nor long."""
        lengths = self.tokens.column("length")
        return self.tokens[int(np.argsort(lengths, kind="stable")[len(lengths) // 2])]


# Batches: B rows, padded on the right to the longest, T


def collate(examples: Sequence[Example], pad_token_id: int) -> Batch:
    """Of texts to go on with: `input_ids`, `attention_mask` and `labels`, each (B, T)."""
    return _sequences([example.input_ids for example in examples], pad_token_id) | {
        "labels": _padded([example.labels for example in examples], MASKED)
    }


def collate_labelled(examples: Sequence[Example], pad_token_id: int, labels: Sequence[str]) -> Batch:
    """Of labelled texts: `input_ids` and `attention_mask` (B, T), `labels` (B,) as places in `labels`; of two texts also `token_type_ids`."""
    return _sequences([example.input_ids for example in examples], pad_token_id) | _types(examples) | {
        "labels": torch.tensor([labels.index(str(example.label)) for example in examples])
    }  # fmt: skip


def collate_tagged(examples: Sequence[Example], pad_token_id: int, labels: Sequence[str]) -> Batch:
    """Of tagged tokens: as `collate`, `labels` being places in `labels`, where a token has a tag."""
    tags = [[labels.index(tag) if tag else MASKED for tag in example.tags] for example in examples]
    return _sequences([example.input_ids for example in examples], pad_token_id) | {"labels": _padded(tags, MASKED)}


def collate_pairs(examples: Sequence[Example], pad_token_id: int) -> Batch:
    """Of sources and targets: `input_ids` and `attention_mask` (B, T) of the sources, `labels` (B, U) of the targets."""
    targets = [example.target.labels for example in examples if example.target]
    return _sequences([example.input_ids for example in examples], pad_token_id) | {"labels": _padded(targets, MASKED)}


def collate_preferences(examples: Sequence[Example], pad_token_id: int) -> Batch:
    """Of preferences: first all preferred answers, then all rejected: `input_ids`, `attention_mask` and `completion_mask`, each (2 B, T)."""
    both = [*examples, *(example.rejected for example in examples if example.rejected)]
    return _with_completions(both, pad_token_id)


def collate_rated(examples: Sequence[Example], pad_token_id: int) -> Batch:
    """Of rated answers: `input_ids`, `attention_mask` and `completion_mask` (B, T), `label` (B,), and the same with `KL_` before their names.

    KTO estimates how far the model has moved by giving each prompt the answer of the row before (arXiv 2402.01306, section 4.2).
    """
    others = [*examples[-1:], *examples[:-1]]
    mismatched = [_with_answer_of(example, other) for example, other in zip(examples, others, strict=True)]
    moved = {f"KL_{name}": value for name, value in _with_completions(mismatched, pad_token_id).items()}
    return _with_completions(examples, pad_token_id) | moved | {"label": torch.tensor([bool(example.good) for example in examples])}


def _with_answer_of(example: Example, other: Example) -> Example:
    prompt, answer = example.input_ids[: example.trained[0][0]], other.input_ids[other.trained[0][0] : other.trained[-1][1]]
    return Example(example.row, [*prompt, *answer], [(len(prompt), len(prompt) + len(answer))])


def _with_completions(examples: Sequence[Example], pad_token_id: int) -> Batch:
    trained = [[int(label != MASKED) for label in example.labels] for example in examples]
    return _sequences([example.input_ids for example in examples], pad_token_id) | {"completion_mask": _padded(trained, 0)}


def _sequences(rows: Sequence[list[int]], pad_token_id: int) -> Batch:
    return {"input_ids": _padded(rows, pad_token_id), "attention_mask": _padded([[1] * len(row) for row in rows], 0)}


def _types(examples: Sequence[Example]) -> Batch:
    if not any(example.types for example in examples):
        return {}
    return {"token_type_ids": _padded([example.types or [0] * len(example.input_ids) for example in examples], 0)}


def _padded(rows: Sequence[list[int]], value: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def collator_of(goal: Goal, pad_token_id: int) -> Callable[[Sequence[Example]], Batch]:
    """What makes a batch of a goal's examples."""
    match goal.task:
        case "sequence-classification":
            return functools.partial(collate_labelled, pad_token_id=pad_token_id, labels=goal.labels)
        case "token-classification":
            return functools.partial(collate_tagged, pad_token_id=pad_token_id, labels=goal.labels)
        case "seq2seq-lm":
            return functools.partial(collate_pairs, pad_token_id=pad_token_id)
        case "dpo":
            return functools.partial(collate_preferences, pad_token_id=pad_token_id)
        case "kto":
            return functools.partial(collate_rated, pad_token_id=pad_token_id)
    return functools.partial(collate, pad_token_id=pad_token_id)


def example_batch(goal: Goal, example: Example, pad_token_id: int) -> Batch:
    """One example as the model itself takes it, with `labels`; of preferences and ratings the answer as a text to go on with."""
    return collate([example], pad_token_id) if goal.task in ("dpo", "kto") else collator_of(goal, pad_token_id)([example])


# Trainers


def make_trainer(
    goal: Goal,
    recipe: Recipe,
    model: Any,
    tokenizer: Any,
    arguments: dict[str, Any],
    train: Examples,
    held_out: Examples | None,
    callbacks: list[TrainerCallback],
    order: torch.utils.data.Sampler[int] | None = None,
) -> Trainer:
    """The library's trainer for a goal, fed with the examples as they were previewed.

    Args:
        arguments: what `TrainingArguments` takes.
        order: of the rows, where it is not the trainer's own.
    """
    collator = collator_of(goal, tokenizer.pad_token_id)
    if goal.task in ("dpo", "kto"):
        return _preference_trainer(goal, recipe, model, tokenizer, arguments, train, held_out, callbacks, collator)
    measured = {"compute_metrics": _accuracy, "preprocess_logits_for_metrics": _likeliest} if goal.labels else {}
    return _Ordered(
        order,
        model=model,
        args=TrainingArguments(**arguments, prediction_loss_only=not goal.labels),
        train_dataset=train,
        eval_dataset=held_out,
        data_collator=collator,
        callbacks=callbacks,
        **measured,
    )


class _Ordered(Trainer):
    """A Trainer that takes rows in an order that it is given."""

    def __init__(self, order: torch.utils.data.Sampler[int] | None, **kwargs: Any):
        self._order = order
        super().__init__(**kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self._order or super()._get_train_sampler(train_dataset)

    def floating_point_ops(self, inputs: Any) -> int:
        """None are counted: nobody is told, and it goes through all parameters in every step."""
        return 0


def _likeliest(logits: Any, labels: Any) -> torch.Tensor:
    """The places of the likeliest labels: all that the metrics need, and far less to keep than the logits."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)


def _accuracy(predicted: Any) -> dict[str, float]:
    counted = predicted.label_ids != MASKED
    guesses, wanted = predicted.predictions[counted], predicted.label_ids[counted]
    return {"accuracy": float((guesses == wanted).mean()), "macro-F1": macro_f1(guesses, wanted)}


def _preference_trainer(
    goal: Goal,
    recipe: Recipe,
    model: Any,
    tokenizer: Any,
    arguments: dict[str, Any],
    train: Examples,
    held_out: Examples | None,
    callbacks: list[TrainerCallback],
    collator: Callable[[Sequence[Example]], Batch],
) -> Trainer:
    """TRL's trainer, with its own rendering replaced, and the base itself, the adapter switched off, as the reference."""
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

    trainer_class, config_class = (DPOTrainer, DPOConfig) if goal.task == "dpo" else (KTOTrainer, KTOConfig)

    class Previewed(trainer_class):  # type: ignore[misc, valid-type]
        """Takes examples as they are, and writes no model card of its own."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            pass

    more = {"train_sampling_strategy": "sequential"} if goal.task == "kto" else {}  # TRL insists; the rows are shuffled already
    trainer = Previewed(
        model=model,
        args=config_class(**arguments | more, beta=recipe.preference_beta, max_length=None),
        train_dataset=_by_place(train),
        eval_dataset=_by_place(held_out) if held_out is not None else None,
        processing_class=tokenizer,
        data_collator=lambda items: collator([item["example"] for item in items]),
        callbacks=callbacks,
    )
    if "ref" in model.peft_config:  # a copy of the new adapter: without it TRL switches the adapter off, which is the base itself
        model.delete_adapter("ref")
    for parameter in model.parameters():
        if parameter.requires_grad:  # TRL casts those of quantized models to bfloat16, in which small steps are lost
            parameter.data = parameter.data.float()
    return trainer


def _by_place(examples: Examples) -> Any:
    """The examples as the kind of dataset that TRL takes; they stay on the disk."""
    from datasets import Dataset

    def drawn(batch: dict[str, list[int]]) -> dict[str, list[Example]]:
        return {"example": [examples[place] for place in batch["place"]]}

    return Dataset.from_dict({"place": list(range(len(examples)))}).with_transform(drawn)
