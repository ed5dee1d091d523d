"""The Recipe: every choice that shapes an adapter, declared once with its default, range, title and help.

Knows no torch, no gradio, no paths and no tokens. The form, the command line and the trainer all read this declaration.
"""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from peft_space.errors import UserError


def _shown(group: str) -> dict[str, str]:
    """Which part of the form shows a field."""
    return {"group": group}


TrainOn = Literal["automatic", "all_assistant", "last_assistant", "all_tokens", "message_weights"]
"""Which tokens of a row are trained."""

Task = Literal[
    "causal-lm", "seq2seq-lm", "sequence-classification", "token-classification", "dpo", "kto"
]
"""What a model learns: to go on with a text, to write a text from another, a label of a text, tags of its tokens, which of two answers is
better, or whether an answer is good."""


@dataclass(frozen=True)
class TaskSpec:
    """What a run learns: its task, and of a classification the labels in the order of the head's outputs. Kept in the run."""

    task: Task
    labels: tuple[str, ...] = ()

    def as_json(self) -> str:
        """What `goal_of` reads back."""
        return json.dumps({"task": self.task, "labels": self.labels}, ensure_ascii=False) + "\n"


CAUSAL_LM = TaskSpec("causal-lm")


class Recipe(BaseModel):
    """Everything that decides what adapter comes out, besides the data. `Recipe()` is a good start for most tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    base_model: str = Field(
        "demo", title="Base model", min_length=1, json_schema_extra=_shown("model")
    )
    """A model id on the Hugging Face Hub, a folder on this machine, or `demo`, the small model that comes with the app."""

    revision: str | None = Field(None, title="Revision", json_schema_extra=_shown("model"))
    """Branch, tag or commit of the base model. Empty: the newest; the commit that was used is written into the adapter."""

    task: Literal["automatic", Task] = Field(
        "automatic", title="Task", json_schema_extra=_shown("model")
    )
    """What the model learns. `automatic`: what the rows show, answers, labels, tags, or which of two answers is better."""

    quantization: Literal["nf4", "fp4", "int8", "none"] = Field(
        "nf4", title="Quantization of the base", json_schema_extra=_shown("model")
    )
    """How the frozen base is held in memory. `nf4` takes about a quarter of the memory of 16 bits (QLoRA), `int8` half."""

    double_quantization: bool = Field(
        True, title="Double quantization", json_schema_extra=_shown("model")
    )
    """Quantizes the scales of the 4-bit blocks too: saves another 0.4 bits a parameter at no measurable loss."""

    method: Literal["lora", "rslora", "dora", "pissa", "loftq"] = Field(
        "lora", title="Method", json_schema_extra=_shown("adapter")
    )
    """`lora` adds two small matrices to each chosen layer and trains only those. `rslora` suits ranks above 32; `dora` costs time and must be
    merged for vLLM; `pissa` and `loftq` start from the base's own weights and end as an ordinary LoRA of twice the rank."""

    lora_rank: int = Field(16, title="LoRA rank", ge=1, le=256, json_schema_extra=_shown("adapter"))
    """Width of the added matrices. 8 to 16 does for most tasks, 32 to 64 for complex ones; more needs a reason, written below."""

    high_rank_reason: str | None = Field(
        None, title="Reason for a rank over 64", json_schema_extra=_shown("adapter")
    )
    """Why this task needs a rank over 64. It is kept in the run and on the model card."""

    lora_alpha: int | None = Field(
        None, title="LoRA alpha", ge=1, le=1024, json_schema_extra=_shown("adapter")
    )
    """The adapter's output is scaled by alpha / rank (`rslora`: by its root). Empty: 2 x rank, for `rslora` 16, for `pissa` and `loftq` the rank."""

    lora_dropout: float = Field(
        0.05, title="LoRA dropout", ge=0.0, lt=1.0, json_schema_extra=_shown("adapter")
    )
    """Share of the adapter's inputs that is dropped at random in training, against learning rows by heart."""

    target_modules: Literal["all-linear", "attention"] | list[str] = Field(
        "all-linear", title="Target modules", json_schema_extra=_shown("adapter")
    )
    """Which layers get an adapter: `all-linear` (best for most tasks), `attention`, or a list of names such as q_proj, v_proj."""

    layers_to_transform: list[int] | None = Field(
        None, title="Blocks with an adapter", json_schema_extra=_shown("adapter")
    )
    """Numbers of the blocks, from 0, whose layers get an adapter. Empty: all."""

    lora_bias: Literal["none", "lora_only", "all"] = Field(
        "none", title="Biases", json_schema_extra=_shown("adapter")
    )
    """Which biases are trained too: none, those of the layers with an adapter, or all. With biases the adapter switched off is not quite the base."""

    modules_to_save: list[str] | None = Field(
        None, title="Modules to save", json_schema_extra=_shown("adapter")
    )
    """Layers trained in full and kept with the adapter, besides the head of the task, which always is. Empty: none."""

    learning_rate: float | None = Field(
        None, title="Learning rate", gt=0, le=0.1, json_schema_extra=_shown("training")
    )
    """Size of the optimizer's steps. Empty: chosen from the width of the base model; smaller models want larger steps."""

    num_epochs: float = Field(
        4.0, title="Epochs", gt=0, le=1000, json_schema_extra=_shown("training")
    )
    """How often each row is seen."""

    max_steps: int | None = Field(
        None, title="Steps at most", ge=1, json_schema_extra=_shown("training")
    )
    """Ends training after so many optimizer steps, whatever the epochs say. Empty: no limit."""

    batch_size: int = Field(
        8, title="Batch size", ge=1, le=1024, json_schema_extra=_shown("training")
    )
    """Rows that are in memory at once."""

    gradient_accumulation_steps: int = Field(
        1, title="Gradient accumulation", ge=1, le=1024, json_schema_extra=_shown("training")
    )
    """Batches that are added up before a step: the effective batch is batch size x this."""

    gradient_checkpointing: Literal["automatic", "on", "off"] = Field(
        "automatic", title="Gradient checkpointing", json_schema_extra=_shown("training")
    )
    """Computes activations twice in place of keeping them: less memory, a third more time. `automatic`: where memory does not do without."""

    row_order: Literal["automatic", "shuffled", "by_length"] = Field(
        "automatic", title="Order of the rows", json_schema_extra=_shown("training")
    )
    """`by_length`: at random, but so that rows of about the same length share a step, and less padding is computed. `automatic`: where that saves
    a fifth of the tokens. DPO and KTO take any order."""

    max_length: int = Field(
        512, title="Length limit, tokens", ge=8, le=131072, json_schema_extra=_shown("training")
    )
    """Longer rows are cut off at the end; the data check says how many."""

    train_on: TrainOn = Field(
        "automatic", title="What is trained", json_schema_extra=_shown("training")
    )
    """Which tokens the model learns to write. `automatic`: every answer; where messages carry weights, those of weight 1; of plain text all of it."""

    beta: float = Field(
        0.1, title="Beta of DPO and KTO", gt=0, le=10, json_schema_extra=_shown("training")
    )
    """How closely answers stay to the base's where preferences are learnt: more is closer."""

    compute_dtype: Literal["automatic", "float32", "bfloat16"] = Field(
        "automatic", title="Computed in", json_schema_extra=_shown("training")
    )
    """Format of the numbers in which a step is computed. `automatic`: what the GPU does natively; on a CPU what was measured to be faster, frozen weights included."""

    chat_template: Literal["own", "plain", "chatml", "alpaca", "vicuna"] = Field(
        "own", title="Chat template", json_schema_extra=_shown("model")
    )
    """How a conversation is written for the model. `own`: as the model's authors wrote theirs, or `plain` where the model comes without one."""

    warmup_ratio: float = Field(
        0.05, title="Warm-up", ge=0, lt=1, json_schema_extra=_shown("training")
    )
    """Share of the steps in which the learning rate rises from zero."""

    lr_scheduler_type: Literal["linear", "cosine", "constant_with_warmup"] = Field(
        "linear", title="Learning rate schedule", json_schema_extra=_shown("training")
    )
    """How the learning rate goes on after the warm-up."""

    weight_decay: float = Field(
        0.0, title="Weight decay", ge=0, le=1, json_schema_extra=_shown("training")
    )
    """Pulls the adapter's weights towards zero. LoRA rarely needs it."""

    max_grad_norm: float = Field(
        1.0, title="Gradient clipping", gt=0, json_schema_extra=_shown("training")
    )
    """Longer gradients are shortened to this norm."""

    eval_split: float = Field(
        0.1, title="Held-out share", ge=0, le=0.5, json_schema_extra=_shown("evaluation")
    )
    """Share of the rows that is kept from training, to score base and adapter on."""

    eval_steps: int | None = Field(
        None, title="Evaluate every … steps", ge=1, json_schema_extra=_shown("evaluation")
    )
    """How often the loss on held-out rows is taken. Empty: after each epoch."""

    early_stopping_patience: int | None = Field(
        None, title="Stop after … evaluations in vain", ge=1, json_schema_extra=_shown("evaluation")
    )
    """Training ends when the held-out loss has not fallen for so many evaluations in a row. Empty: it goes on to its last step."""

    load_best_model_at_end: bool = Field(
        True, title="Keep the best adapter", json_schema_extra=_shown("evaluation")
    )
    """Where the held-out loss rose again, the adapter of the step at which it was lowest is kept. Off: always the last step's."""

    save_steps: int | None = Field(
        None, title="Checkpoint every … steps", ge=1, json_schema_extra=_shown("evaluation")
    )
    """How often training can be resumed from. Empty: after each epoch, and always when it is stopped."""

    seed: int = Field(0, title="Seed", ge=0, le=2**31 - 1, json_schema_extra=_shown("training"))
    """The same seed, data and recipe give the same adapter on the same machine."""

    @property
    def alpha(self) -> int:
        """`lora_alpha`, or what suits the method where it was left open.

        LoRA scales by alpha / rank, so 2 x rank is a scale of 2 at every rank; rsLoRA by alpha / sqrt(rank), and 16 gives the same 2 at rank
        64. PiSSA and LoftQ start from a part of the base's own weights, which a scale of 1 leaves as it is.
        """
        if self.lora_alpha is not None:
            return self.lora_alpha
        return {"rslora": 16, "pissa": self.lora_rank, "loftq": self.lora_rank}.get(
            self.method, 2 * self.lora_rank
        )


def make_recipe(values: dict[str, Any]) -> Recipe:
    """The recipe that `values` describe. Raises UserError naming every wrong key and value, and the nearest known key."""
    if not isinstance(values, dict):
        raise UserError(
            "todo",
            f'The recipe is a {type(values).__name__}, not an object. Write it as JSON like {{"lora_rank": 16}}.',
        )
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        faults = {
            str(fault["loc"][0]): fault for fault in error.errors()
        }  # a union reports each branch: once a field is enough
        raise UserError(
            "todo", " ".join(_sentence(name, fault) for name, fault in faults.items())
        ) from None


def read_recipe(text_or_path: str | Path) -> Recipe:
    """The recipe in a JSON file, or in a string that is itself a JSON object. Raises UserError where there is none."""
    text = str(text_or_path)
    if not text.lstrip().startswith("{"):
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                "todo",
                f"The recipe file {text_or_path} cannot be read ({_reason(error)}). Give the path of a JSON file, or {{}} for the defaults.",
            ) from None
    try:
        return make_recipe(json.loads(text))
    except json.JSONDecodeError as error:
        raise UserError(
            "todo",
            f'The recipe is not JSON (line {error.lineno}: {error.msg}). Write it like {{"lora_rank": 16}}.',
        ) from None


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or "not text").lower()


def _sentence(name: str, fault: dict[str, Any]) -> str:
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, Recipe.model_fields, n=1, cutoff=0.4)
        hint = (
            f"Did you mean {near[0]}?" if near else f"Known keys: {', '.join(Recipe.model_fields)}."
        )
        return f"The recipe has no key {name!r}. {hint}"
    wanted = fault["msg"][0].lower() + fault["msg"][1:]
    return f"{name} cannot be {fault['input']!r}: {wanted}. Change {name} in the recipe (default: {json.dumps(Recipe.model_fields[name].default)})."
