"""Creates the trainer of transformers or TRL for a task, and its arguments."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from peft_space.compat.transformers import trainer_with_row_order
from peft_space.compat.trl import preference_trainer
from peft_space.data.arrow_store import MASKED, TokenizedExample
from peft_space.data.batches import Examples, collator_of
from peft_space.evaluation.metrics import macro_f1
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
        eval_strategy="steps" if evaluate else "no",
        eval_steps=recipe.eval_steps or steps_per_epoch(recipe, num_rows),
        save_strategy="steps",
        save_steps=steps_between_saves(recipe, num_rows),
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would log a non-finite loss as 0
        include_num_input_tokens_seen="non_padding",
        remove_unused_columns=False,
        disable_tqdm=True,
        gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
    )


def make_trainer(
    task_spec: TaskSpec,
    recipe: Recipe,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerFast,
    arguments: dict[str, Any],
    train: Examples,
    held_out: Examples | None,
    callback: TrainerCallback,
    order: torch.utils.data.Sampler[int] | None = None,
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
        callback: is called on every step, evaluation and checkpoint.
        order: row order, if it is not the trainer's own. Ignored by TRL's trainers.
    """
    collate = collator_of(task_spec, tokenizer.pad_token_id)
    if task_spec.task in ("dpo", "kto"):
        if task_spec.task == "kto":  # TRL insists; the rows are shuffled already
            arguments = arguments | {"train_sampling_strategy": "sequential"}
        trainer = preference_trainer(
            task_spec.task,
            model,
            arguments | {"beta": recipe.beta, "max_length": None},
            train_dataset=_as_dataset(train),
            eval_dataset=_as_dataset(held_out) if held_out is not None else None,
            processing_class=tokenizer,
            data_collator=lambda items: collate([item["example"] for item in items]),
            callbacks=[callback],
        )
    else:
        metrics: dict[str, Any] = {}
        if task_spec.labels:
            metrics = {"compute_metrics": _accuracy, "preprocess_logits_for_metrics": _predictions}
        trainer = trainer_with_row_order(
            order,
            model=model,
            args=TrainingArguments(**arguments, prediction_loss_only=not task_spec.labels),
            train_dataset=train,
            eval_dataset=held_out,
            data_collator=collate,
            callbacks=[callback],
            **metrics,
        )
    trainer.remove_callback(PrinterCallback)  # the events hold the same
    return trainer


def _predictions(logits: Any, labels: Any) -> torch.Tensor:
    """Indices of the most likely labels, which are much smaller than the logits."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)


def _accuracy(evaluated: EvalPrediction) -> dict[str, float]:
    counted = evaluated.label_ids != MASKED
    predictions, labels = evaluated.predictions[counted], evaluated.label_ids[counted]
    accuracy = float((predictions == labels).mean())
    return {"accuracy": accuracy, "macro-F1": macro_f1(predictions, labels)}


def _as_dataset(examples: Examples) -> Dataset:
    """The examples as the kind of dataset that TRL takes. They stay on disk."""
    from datasets import Dataset

    def load(batch: dict[str, list[int]]) -> dict[str, list[TokenizedExample]]:
        return {"example": [examples[place] for place in batch["place"]]}

    return Dataset.from_dict({"place": list(range(len(examples)))}).with_transform(load)
