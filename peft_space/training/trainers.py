"""Creates the trainer of transformers or TRL for a task, and its arguments."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer

from peft_space.compat.transformers import trainer_with_row_order, use_one_gpu
from peft_space.compat.trl import adds_router_loss, preference_trainer
from peft_space.data.arrow_store import MASKED, TokenizedExample
from peft_space.data.batches import Examples, collate_packed, collator_of, first_rows
from peft_space.evaluation.metrics import macro_f1
from peft_space.models.label_scorer import own_forward, score_labels_only
from peft_space.models.packing import pack_rows
from peft_space.recipe import Recipe, TaskSpec
from peft_space.runs.plan import Plan
from peft_space.runs.run import Run

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import EvalPrediction, PreTrainedTokenizerFast


_MAX_SAVE_STEPS = 100
"""Steps between checkpoints, so that an interruption in a long epoch loses little."""


def total_steps(recipe: Recipe, num_rows: int) -> int:
    """Return the optimizer steps of a whole training on `num_rows` rows."""
    steps = math.ceil(recipe.num_epochs * steps_per_epoch(recipe, num_rows))
    return min(steps, recipe.max_steps or steps)


def steps_per_epoch(recipe: Recipe, num_rows: int) -> int:
    """Return the optimizer steps of one epoch."""
    return math.ceil(math.ceil(num_rows / recipe.batch_size) / recipe.gradient_accumulation_steps)


def steps_between_saves(recipe: Recipe, num_rows: int) -> int:
    """Return the optimizer steps between two checkpoints."""
    return recipe.save_steps or min(steps_per_epoch(recipe, num_rows), _MAX_SAVE_STEPS)


def training_arguments(run: Run, plan: Plan, num_rows: int, evaluate: bool) -> dict[str, Any]:
    """Return the arguments of `TrainingArguments` and of TRL's subclasses of it.

    Args:
        run: the run to train.
        plan: what the run is trained with.
        num_rows: the number of training rows.
        evaluate: whether there are held-out rows.
    """
    recipe, checkpointing = run.recipe, plan.gradient_checkpointing
    return dict(  # noqa: C408 - reads like the call it becomes
        output_dir=str(run.path("checkpoints")),
        seed=recipe.seed,
        max_steps=total_steps(recipe, num_rows),
        per_device_train_batch_size=plan.batch_size,
        per_device_eval_batch_size=plan.batch_size,
        gradient_accumulation_steps=plan.gradient_accumulation_steps,
        learning_rate=plan.learning_rate,
        warmup_steps=recipe.warmup_ratio,
        lr_scheduler_type=recipe.lr_scheduler_type,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        bf16=plan.compute_dtype == "bfloat16",
        fp16=plan.compute_dtype == "float16",
        use_cpu=plan.device == "cpu",
        ddp_broadcast_buffers=False,
        eval_strategy="steps" if evaluate else "no",
        eval_steps=recipe.eval_steps or steps_per_epoch(recipe, num_rows),
        save_strategy="steps",
        save_steps=steps_between_saves(recipe, num_rows),
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would log a non-finite loss as 0
        include_num_input_tokens_seen="all" if plan.packing else "non_padding",
        remove_unused_columns=False,
        disable_tqdm=True,
        optim=recipe.optim,
        use_liger_kernel=recipe.use_liger_kernel,
        # the loss is this app's own, which computes no logits but those of labels
        liger_kernel_config={"cross_entropy": False, "fused_linear_cross_entropy": False},
        activation_checkpointing=checkpointing,
        activation_checkpointing_kwargs=_checkpointing(recipe, plan) if checkpointing else None,
    )


def _checkpointing(recipe: Recipe, plan: Plan) -> dict[str, Any]:
    return {
        "use_reentrant": False,
        "every_n_layers": recipe.checkpoint_every_n_layers,
        "offload": recipe.activation_offloading and plan.device == "cuda",
    }


class FrozenInputs(TrainerCallback):
    """Lets gradients end at the first adapter, with activation checkpointing as without it.

    With checkpointing, transformers asks for gradients of the input embeddings, those of a frozen
    vision tower included, and then keeps all that the tower computes. Only the reentrant kind of
    checkpointing needs that.
    """

    def __init__(self, model: PeftModel):
        self._model = model

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        base: Any = self._model.get_base_model()
        base.disable_input_require_grads()


def make_trainer(
    task_spec: TaskSpec,
    recipe: Recipe,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerFast,
    arguments: dict[str, Any],
    train: Examples,
    held_out: Examples | None,
    callbacks: list[TrainerCallback],
    order: torch.utils.data.Sampler[int] | None = None,
    packing: bool = False,
    continues_adapter: bool = False,
) -> Trainer:
    """Create the trainer for a task. It gets exactly the examples that the preview shows.

    Args:
        task_spec: the task, which decides between the trainers of transformers and TRL.
        recipe: the run's recipe.
        model: the base model with the adapter.
        tokenizer: the base model's tokenizer.
        arguments: arguments of `TrainingArguments`.
        train: training rows.
        held_out: held-out rows, or None for no evaluation.
        callbacks: called in this order on every step, evaluation and checkpoint.
        order: row order, if it is not the trainer's own.
        packing: whether training rows of a batch are laid end to end. Held-out rows are padded.
        continues_adapter: whether training continues an adapter, the reference of preferences.
    """
    collate = collator_of(task_spec, tokenizer)
    half = "bfloat16" if arguments["bf16"] else "float16" if arguments["fp16"] else None
    own_forward(model)  # that of a kept model has been changed
    if task_spec.task in ("causal-lm", "seq2seq-lm", "image-text-to-text"):
        score_labels_only(model, half or "float32")
    if packing:
        pack_rows(model)
    if recipe.torch_compile:
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.compile()
    if task_spec.task in ("dpo", "kto"):
        if task_spec.task == "kto":  # TRL insists; the rows are shuffled already
            arguments = arguments | {"train_sampling_strategy": "sequential"}
        trainer = preference_trainer(
            task_spec.task,
            model,
            arguments | {"beta": recipe.beta, "max_length": None},
            first_rows,
            order,
            train_dataset=_as_dataset(train),
            eval_dataset=_as_dataset(held_out) if held_out is not None else None,
            processing_class=tokenizer,
            data_collator=functools.partial(_collate_items, collate, task_spec.task == "kto"),
            continues_adapter=continues_adapter,
            callbacks=callbacks,
        )
        if not adds_router_loss(trainer):
            score_labels_only(model, half or "float32")
    else:
        trainer = trainer_with_row_order(
            order,
            first_rows,
            model=model,
            args=use_one_gpu(
                TrainingArguments(
                    **arguments,
                    prediction_loss_only=not task_spec.labels,
                    # Trainer would look for it in the signature of `forward`, and some heads only
                    # take it among other arguments: then it would evaluate without a loss
                    label_names=["labels"],
                )
            ),
            train_dataset=train,
            eval_dataset=held_out,
            data_collator=collate_packed if packing else collate,
            eval_collator=collate,
            callbacks=callbacks,
            **(_OF_CLASSIFIERS if task_spec.labels else {}),
        )
    trainer.remove_callback(PrinterCallback)  # the events hold the same
    return trainer


def classification_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """The cross-entropy of labels, divided by the number of labels of a whole step.

    Most classifiers of transformers accept that number and ignore it. Trainer then adds up the
    means of accumulated batches, so loss and gradient would be as many times too large.

    Args:
        outputs: have `logits` (B, C), or (B, T, C) for labels of tokens.
        labels: indices (B,) or (B, T). MASKED is not counted.
        num_items_in_batch: of all batches of a step; None for those of `labels`.
    """
    logits = outputs.logits.float().flatten(0, -2)
    total = torch.nn.functional.cross_entropy(
        logits, labels.flatten(), ignore_index=MASKED, reduction="sum"
    )
    count = (labels != MASKED).sum() if num_items_in_batch is None else num_items_in_batch
    return total / count


def _predictions(logits: Any, labels: Any) -> torch.Tensor:
    """Indices of the most likely labels, which are much smaller than the logits."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)


def _accuracy(evaluated: EvalPrediction) -> dict[str, float]:
    counted = evaluated.label_ids != MASKED
    predictions, labels = evaluated.predictions[counted], evaluated.label_ids[counted]
    accuracy = float((predictions == labels).mean())
    return {"accuracy": accuracy, "macro-F1": macro_f1(predictions, labels)}


_OF_CLASSIFIERS: dict[str, Any] = {
    "compute_loss_func": classification_loss,
    "compute_metrics": _accuracy,
    "preprocess_logits_for_metrics": _predictions,
}


def _collate_items(collate: Any, with_previous: bool, items: Sequence[Any]) -> Any:
    examples = [item["example"] for item in items]
    if not with_previous:
        return collate(examples)
    return collate(examples, previous=[item["previous"] for item in items])


def _as_dataset(examples: Examples) -> Dataset:
    """The examples as the kind of dataset that TRL takes. They stay on disk."""
    from datasets import Dataset

    def load(batch: dict[str, list[int]]) -> dict[str, list[TokenizedExample]]:
        places = batch["place"]  # with -1, the last example precedes the first
        return {
            "example": [examples[place] for place in places],
            "previous": [examples[place - 1] for place in places],
        }

    return Dataset.from_dict({"place": list(range(len(examples)))}).with_transform(load)


MIN_SAVING = 0.2
"""Minimum share of tokens that grouping must save, because it makes the order less random."""
_POOL_STEPS = 50
"""Steps whose rows are drawn at random, then sorted, as in transformers' LengthGroupedSampler."""


class ByLength(torch.utils.data.Sampler[int]):
    """Yields indices of rows so that the rows of a step have similar lengths, in random step order.

    The order depends only on seed and epoch, so a resumed training continues it. The rows of a step
    are the same for every batch size.

    Args:
        lengths: tokens (N,) of each row.
        rows_a_step: rows of an optimizer step.
        seed: of the random order.
    """

    def __init__(self, lengths: np.ndarray, rows_a_step: int, seed: int):
        self.lengths, self.rows_a_step, self.seed = lengths, rows_a_step, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Trainer at the start of each epoch, and when resuming."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        draw = np.random.default_rng([self.seed, self.epoch])
        order = draw.permutation(len(self.lengths))
        whole = len(order) // self.rows_a_step * self.rows_a_step
        pool = _POOL_STEPS * self.rows_a_step
        pools = np.split(order[:whole], range(pool, whole, pool))
        by_length = np.concatenate(
            [pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools]
        )
        steps = draw.permutation(by_length.reshape(-1, self.rows_a_step))
        yield from [*steps.reshape(-1).tolist(), *order[whole:].tolist()]


def padded_tokens(lengths: np.ndarray, batch_size: int, rows_a_step: int | None = None) -> float:
    """Return the average tokens per row in batches that are padded to their longest row.

    Args:
        lengths: tokens (N,) of each row.
        batch_size: rows of a batch.
        rows_a_step: rows of a step, if rows are grouped by length; None if they are shuffled.
    """
    if not len(lengths):
        return 0.0
    order = (
        list(ByLength(lengths, rows_a_step, 0))
        if rows_a_step
        else np.random.default_rng(0).permutation(len(lengths))
    )
    batches = np.split(lengths[order], range(batch_size, len(lengths), batch_size))
    return sum(int(batch.max()) * len(batch) for batch in batches) / len(lengths)


def saved_by_length(lengths: np.ndarray, recipe: Recipe) -> float:
    """Return the share of the tokens that grouping saves."""
    if not len(lengths):
        return 0.0
    rows_a_step = recipe.batch_size * recipe.gradient_accumulation_steps
    return 1 - padded_tokens(lengths, recipe.batch_size, rows_a_step) / padded_tokens(
        lengths, recipe.batch_size
    )


def goes_by_length(lengths: np.ndarray, recipe: Recipe, packing: bool = False) -> bool:
    """Return True if rows of these lengths are grouped by length. Packed rows need no grouping."""
    return not packing and saved_by_length(lengths, recipe) >= MIN_SAVING
