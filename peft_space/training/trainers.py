"""For each task: what its rows become in a batch, and which library's trainer learns from them. What is learnt from is what was previewed."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from peft_space.data.arrow_store import MASKED, TokenizedExample
from peft_space.data.batches import Batch, Examples, collator_of
from peft_space.evaluation.metrics import macro_f1
from peft_space.recipe import Recipe, TaskSpec

# Batches: B rows, padded on the right to the longest, T


# Trainers


def make_trainer(
    goal: TaskSpec,
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
        return _preference_trainer(
            goal, recipe, model, tokenizer, arguments, train, held_out, callbacks, collator
        )
    measured = (
        {"compute_metrics": _accuracy, "preprocess_logits_for_metrics": _likeliest}
        if goal.labels
        else {}
    )
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
    goal: TaskSpec,
    recipe: Recipe,
    model: Any,
    tokenizer: Any,
    arguments: dict[str, Any],
    train: Examples,
    held_out: Examples | None,
    callbacks: list[TrainerCallback],
    collator: Callable[[Sequence[TokenizedExample]], Batch],
) -> Trainer:
    """TRL's trainer, with its own rendering replaced, and the base itself, the adapter switched off, as the reference."""
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

    trainer_class, config_class = (
        (DPOTrainer, DPOConfig) if goal.task == "dpo" else (KTOTrainer, KTOConfig)
    )

    class Previewed(trainer_class):  # type: ignore[misc, valid-type]
        """Takes examples as they are, and writes no model card of its own."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            pass

    more = (
        {"train_sampling_strategy": "sequential"} if goal.task == "kto" else {}
    )  # TRL insists; the rows are shuffled already
    trainer = Previewed(
        model=model,
        args=config_class(**arguments | more, beta=recipe.beta, max_length=None),
        train_dataset=_by_place(train),
        eval_dataset=_by_place(held_out) if held_out is not None else None,
        processing_class=tokenizer,
        data_collator=lambda items: collator([item["example"] for item in items]),
        callbacks=callbacks,
    )
    if (
        "ref" in model.peft_config
    ):  # a copy of the new adapter: without it TRL switches the adapter off, which is the base itself
        model.delete_adapter("ref")
    for parameter in model.parameters():
        if (
            parameter.requires_grad
        ):  # TRL casts those of quantized models to bfloat16, in which small steps are lost
            parameter.data = parameter.data.float()
    return trainer


def _by_place(examples: Examples) -> Any:
    """The examples as the kind of dataset that TRL takes; they stay on the disk."""
    from datasets import Dataset

    def drawn(batch: dict[str, list[int]]) -> dict[str, list[TokenizedExample]]:
        return {"example": [examples[place] for place in batch["place"]]}

    return Dataset.from_dict({"place": list(range(len(examples)))}).with_transform(drawn)
