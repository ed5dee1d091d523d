"""The recipe: every choice that shapes an adapter, with its default, range, title and help."""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from peft_space.errors import UserError

TrainOn = Literal["automatic", "all_assistant", "last_assistant", "all_tokens", "message_weights"]
"""The tokens of a row that contribute to the loss."""

Reasoning = Literal["train", "read", "leave_out"]
"""What the model learns from the reasoning before an answer."""

Task = Literal[
    "causal-lm",
    "seq2seq-lm",
    "sequence-classification",
    "token-classification",
    "dpo",
    "kto",
    "image-text-to-text",
]
"""The training task: continue a text, write a text from another one, label a text, or tag its
tokens. Also: prefer one of two answers (dpo), learn from answers rated good or bad (kto), or answer
questions about pictures (image-text-to-text)."""


@dataclass(frozen=True)
class TaskSpec:
    """The task of a run and, for a classifier, its labels in the order of the head's outputs."""

    task: Task
    labels: tuple[str, ...] = ()

    def as_json(self) -> str:
        """Serialize for the file that `models.loading.task_spec_for` reads."""
        return json.dumps({"task": self.task, "labels": self.labels}, ensure_ascii=False) + "\n"


CAUSAL_LM = TaskSpec("causal-lm")


def _field(group: str, title: str, default: Any, **constraints: Any) -> Any:
    """Declare a field; `group` names the part of the form that shows it."""
    return Field(default, title=title, json_schema_extra={"group": group}, **constraints)


def _check_pattern(pattern: str | None) -> str | None:
    import regex

    try:
        regex.compile(pattern or "")
    except regex.error as error:
        problem = f"it is not a regular expression ({error})"
        raise PydanticCustomError("pattern", "{problem}", {"problem": problem}) from None
    return pattern


FROM_BASE = ("pissa", "loftq")
"""Methods whose adapter does not start at zero."""
_MAX_NEW_TOKENS = 256
_MAX_TOKEN_LENGTH = 64


def _check_new_tokens(words: list[str] | None) -> list[str] | None:
    words = words or []
    problem = ""
    if len(words) > _MAX_NEW_TOKENS:
        problem = f"there are {len(words):,} of them, and the limit is {_MAX_NEW_TOKENS}"
    for word in words:
        if not word.strip() or word != word.strip():
            problem = f"{word!r} is empty, or begins or ends with white space"
        elif len(word) > _MAX_TOKEN_LENGTH:
            problem = f"{word[:20]!r}… has more than {_MAX_TOKEN_LENGTH} characters"
        elif words.count(word) > 1:
            problem = f"{word!r} is named twice"
    if problem:
        raise PydanticCustomError("new_tokens", "{problem}", {"problem": problem})
    return words or None


class Recipe(BaseModel):
    """Everything except the data that determines the adapter. The defaults suit most tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    base_model: str = _field("model", "Base model", "demo", min_length=1)
    """A model id on the Hugging Face Hub, a folder on this machine, or `demo`, the small model
    that comes with the app."""

    revision: str | None = _field("model", "Revision", None)
    """Branch, tag or commit of the base model. Empty: the latest commit. The adapter records
    the commit that was used."""

    task: Literal["automatic", Task] = _field("model", "Task", "automatic")
    """The training task. `automatic` infers it from the rows: answers, labels, tags or
    preferences."""

    labels: list[str] | None = _field("model", "Labels in order", None)
    """The labels of a classification, in the order of the outputs of its head. Empty: the order of
    a base or adapter that names them, else alphabetical or numerical."""

    src_lang: str | None = _field("model", "Source language", None)
    """The language that a multilingual translation model translates from, as its tokenizer calls
    it, such as eng_Latn. Empty: the tokenizer's own setting."""

    tgt_lang: str | None = _field("model", "Target language", None)
    """The language that a multilingual translation model translates into, such as deu_Latn. Empty:
    the tokenizer's own setting."""

    quantization: Literal["nf4", "fp4", "int8", "none"] = _field(
        "model", "Quantization of the base model", "nf4"
    )
    """Number format of the frozen base weights. `nf4` needs about a quarter of the memory of
    16-bit weights (QLoRA), `int8` half."""

    double_quantization: bool = _field("model", "Double quantization", True)
    """Also quantizes the scales of the 4-bit blocks. This saves 0.4 bits per parameter at no
    measurable loss."""

    method: Literal["lora", "rslora", "dora", "pissa", "loftq"] = _field(
        "adapter", "Method", "lora"
    )
    """`lora` trains two small matrices per target layer. `rslora` suits ranks above 32. `dora` is
    slower and must be merged for vLLM. `pissa` and `loftq` start from the base weights and produce
    a LoRA of twice the rank."""

    lora_rank: int = _field("adapter", "LoRA rank", 16, ge=1, le=256)
    """Rank of the LoRA matrices. Most tasks need 8 to 16. Give a reason for a rank over 64."""

    high_rank_reason: str | None = _field("adapter", "Reason for a rank over 64", None)
    """The reason why this task needs a rank over 64. It is stored in the run and shown on the
    model card."""

    lora_alpha: float | None = _field("adapter", "LoRA alpha", None, gt=0, le=65_536)
    """The adapter's output is scaled by alpha / rank (`rslora`: alpha / √rank). Empty: 2 x rank;
    16 for `rslora`; the rank for `pissa` and `loftq`."""

    lora_dropout: float = _field("adapter", "LoRA dropout", 0.05, ge=0.0, lt=1.0)
    """Fraction of the adapter's inputs that training drops at random, to reduce overfitting."""

    target_modules: Literal["all-linear", "attention"] | list[str] = _field(
        "adapter", "Target modules", "all-linear"
    )
    """The layers that get an adapter: `all-linear` (best for most tasks), `attention`, or a list
    of names such as q_proj, v_proj."""

    layers_to_transform: list[int] | None = _field("adapter", "Blocks with an adapter", None)
    """Indices, from 0, of the transformer blocks that get an adapter. Empty: all blocks."""

    adapt_experts: bool = _field("adapter", "Adapt experts", False)
    """Also gives each expert of a mixture a LoRA, if the experts are stored as one tensor. Its rank
    is the LoRA rank divided by the experts that a token uses. It needs a dropout of 0."""

    train_projector: bool = _field("adapter", "Train the projector", False)
    """Also trains in full the part that turns what a vision tower sees into tokens, and saves it
    with the adapter. It needs rows with pictures. The tower itself stays as it is."""

    lora_bias: Literal["none", "lora_only", "all"] = _field("adapter", "Biases", "none")
    """The biases that are trained: none, those of the layers with an adapter, or all. With trained
    biases, the model with the adapter off differs slightly from the base model."""

    modules_to_save: list[str] | None = _field("adapter", "Modules to save", None)
    """Layers that are trained in full and saved with the adapter. A classification head is always
    included. Empty: no other layers."""

    learning_rate: float | None = _field("training", "Learning rate", None, gt=0, le=0.1)
    """Step size of the optimizer. Empty: derived from the width of the base model, because smaller
    models need larger steps."""

    file_weights: list[Annotated[float, Field(ge=0, le=100)]] | None = _field(
        "training", "Weights of the files", None
    )
    """With several files, how often an epoch takes the rows of each one, in their order: 2 is
    twice, 0.5 a random half. Empty: once."""

    num_epochs: float = _field("training", "Epochs", 4.0, gt=0, le=1000)
    """Number of passes over the training rows."""

    max_steps: int | None = _field("training", "Maximum steps", None, ge=1)
    """Training ends after this many optimizer steps, regardless of the epochs. Empty: no limit."""

    batch_size: int = _field("training", "Batch size", 8, ge=1, le=1024)
    """Rows that are processed at once. A smaller batch needs less memory."""

    gradient_accumulation_steps: int = _field(
        "training", "Gradient accumulation steps", 1, ge=1, le=1024
    )
    """Batches whose gradients are summed before each optimizer step. The effective batch size is
    batch size x this value."""

    gradient_checkpointing: Literal["automatic", "on", "off"] = _field(
        "training", "Gradient checkpointing", "automatic"
    )
    """Recomputes activations instead of storing them: less memory, about a third more time.
    `automatic`: only if memory is short."""

    checkpoint_every_n_layers: int = _field(
        "training", "Blocks per gradient checkpoint", 1, ge=1, le=1000
    )
    """With gradient checkpointing, recomputes only every n-th block. More blocks that keep their
    activations take more memory and less time."""

    activation_offloading: bool = _field("training", "Offload activations", False)
    """With gradient checkpointing on a GPU, holds the inputs of the blocks in the machine's memory.
    Long rows then need less GPU memory, and more time. It has no effect on a CPU."""

    optim: Literal["adamw_torch", "paged_adamw_8bit"] = _field(
        "training", "Optimizer", "adamw_torch"
    )
    """`paged_adamw_8bit` (bitsandbytes) holds AdamW's states in 8 bits, and moves them out of a
    GPU that is short of memory. It saves 6 bytes per trainable parameter."""

    use_liger_kernel: bool = _field("training", "Liger kernels", False)
    """Replaces parts of known architectures by the faster GPU kernels of the package liger-kernel,
    which you install yourself."""

    torch_compile: bool = _field("training", "Compile blocks", False)
    """Compiles the blocks of the model with torch.compile. The first steps take longer, later ones
    less time, and dropout draws other random numbers. It cannot be used on ZeroGPU."""

    shard_base: Literal["automatic", "on", "off"] = _field(
        "training", "Spread the base over GPUs", "automatic"
    )
    """Each GPU holds a part of every block and receives the rest when it computes (FSDP). This
    takes more time. `automatic`: only if the base does not fit on one GPU."""

    max_length: int = _field("training", "Maximum length (tokens)", 512, ge=8, le=131072)
    """Longer rows are truncated at the end, and longer plain texts are trained in pieces. The data
    check reports how many."""

    train_on: TrainOn = _field("training", "Trained tokens", "automatic")
    """The tokens that contribute to the loss. `automatic`: every answer; messages of weight 1 if
    messages have weights; all tokens of plain text."""

    reasoning: Reasoning = _field("training", "Reasoning", "train")
    """Reasoning before an answer, such as `reasoning_content` or <think> in the text. `train` it
    like the answer, `read` it without a loss, or `leave_out`."""

    beta: float = _field("training", "Beta (DPO and KTO)", 0.1, gt=0, le=10)
    """KL strength of preference training: higher values keep the model closer to the base model."""

    compute_dtype: Literal["automatic", "float32", "bfloat16"] = _field(
        "training", "Compute dtype", "automatic"
    )
    """Number format of the computation. `automatic`: the GPU's native format. On a CPU, the format
    that was measured to be faster, which is also used for the frozen weights."""

    chat_template: Literal["own", "plain", "chatml", "alpaca", "vicuna"] = _field(
        "model", "Chat template", "own"
    )
    """Format in which the model reads a conversation. `own`: the base model's template, or `plain`
    if it has none."""

    thinking: Literal["own", "on", "off"] = _field("model", "Thinking", "own")
    """The switch for reasoning in the chat template of models such as Qwen3. `own`: as the template
    sets it. The adapter is asked as it was trained. `off` leaves out the reasoning of the rows."""

    new_tokens: Annotated[list[str] | None, AfterValidator(_check_new_tokens)] = _field(
        "model", "New tokens", None
    )
    """Words that become one token each, such as names that the tokenizer cuts into many. Their rows
    of the embeddings begin as the mean of the old tokens' and are trained. A new token also
    matches inside longer words. Empty: the tokens of the base model."""

    warmup_ratio: float = _field("training", "Warmup ratio", 0.05, ge=0, lt=1)
    """Fraction of the steps over which the learning rate rises from zero."""

    lr_scheduler_type: Literal["linear", "cosine", "constant_with_warmup"] = _field(
        "training", "Learning rate schedule", "linear"
    )
    """Shape of the learning rate curve after the warmup."""

    weight_decay: float = _field("training", "Weight decay", 0.0, ge=0, le=1)
    """Pulls the adapter's weights toward zero. LoRA rarely needs it."""

    max_grad_norm: float = _field("training", "Maximum gradient norm", 1.0, gt=0)
    """Gradients with a larger norm are scaled down to this norm."""

    eval_split: float = _field("evaluation", "Held-out fraction", 0.1, ge=0, le=0.5)
    """Fraction of the rows that is held out from training, to evaluate the base model and the
    adapter."""

    eval_steps: int | None = _field("evaluation", "Evaluation interval (steps)", None, ge=1)
    """Optimizer steps between two evaluations on the held-out rows. Empty: one epoch."""

    early_stopping_patience: int | None = _field(
        "evaluation", "Early-stopping patience (evaluations)", None, ge=1
    )
    """Training stops when this many evaluations in a row bring no lower evaluation loss. Empty:
    no early stopping."""

    load_best_model_at_end: bool = _field("evaluation", "Keep the best adapter", True)
    """Keeps the adapter with the lowest evaluation loss if that loss rose afterward. Off: always
    keeps the adapter of the last step."""

    answer_pattern: Annotated[str | None, AfterValidator(_check_pattern)] = _field(
        "evaluation", "Answer pattern", None, max_length=1000
    )
    """A regular expression that a whole answer should match, such as [A-E] or \\d{4}-\\d{2}-\\d{2}.
    The scores then give the share of answers that do. Empty: no such score."""

    save_steps: int | None = _field("evaluation", "Checkpoint interval (steps)", None, ge=1)
    """Optimizer steps between two checkpoints. Empty: one epoch, but at most 100 steps. Training
    also saves a checkpoint when you stop or pause it."""

    seed: int = _field("training", "Seed", 0, ge=0, le=2**31 - 1)
    """On one CPU, the same seed, data and recipe give the same adapter. GPUs add in any order."""

    @property
    def alpha(self) -> int | float:
        """`lora_alpha`, or the default of the method if it is empty.

        LoRA scales by alpha / rank, so 2 x rank is a scale of 2 at every rank. The scale in rsLoRA
        is alpha / sqrt(rank), so 16 gives the same scale of 2 at rank 64. PiSSA and LoftQ start
        from a part of the base weights, which a scale of 1 leaves unchanged.
        """
        if self.lora_alpha is not None:
            return int(self.lora_alpha) if self.lora_alpha.is_integer() else self.lora_alpha
        defaults = {"rslora": 16, "pissa": self.lora_rank, "loftq": self.lora_rank}
        return defaults.get(self.method, 2 * self.lora_rank)

    @property
    def reasoning_of_rows(self) -> Reasoning:
        """`reasoning`, or "leave_out" if thinking is switched off."""
        return "leave_out" if self.thinking == "off" else self.reasoning

    @property
    def languages(self) -> tuple[str | None, str | None]:
        """Source and target of a translation."""
        return self.src_lang, self.tgt_lang


def make_recipe(values: dict[str, Any]) -> Recipe:
    """Validate `values` as a recipe.

    Raises:
        UserError: if a key is unknown or a value is invalid. The message names all of them.
    """
    if not isinstance(values, dict):
        raise UserError(
            "recipe.not_an_object",
            f"The recipe is a {type(values).__name__}, not a JSON object. "
            'Write it like {"lora_rank": 16}.',
        )
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        # a union reports one error per branch: one per field is enough
        problems = {str(details["loc"][0]): details for details in error.errors()}
        unknown = any(details["type"] == "extra_forbidden" for details in problems.values())
        raise UserError(
            "recipe.unknown_key" if unknown else "recipe.invalid_value",
            " ".join(_describe_problem(name, details) for name, details in problems.items()),
        ) from None


def read_recipe(text_or_path: str | Path) -> Recipe:
    """Read a recipe from a JSON file, or from a string that is itself a JSON object.

    Raises:
        UserError: if the file cannot be read, is not JSON, or is not a valid recipe.
    """
    text = str(text_or_path)
    if not text.lstrip().startswith("{"):
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = (getattr(error, "strerror", None) or "not text").lower()
            raise UserError(
                "recipe.unreadable",
                f"The recipe file {text_or_path} cannot be read ({reason}). "
                "Give the path of a JSON file, or {} for the defaults.",
            ) from None
    try:
        return make_recipe(json.loads(text))
    except json.JSONDecodeError as error:
        raise UserError(
            "recipe.not_json",
            f"The recipe is not valid JSON (line {error.lineno}: {error.msg}). "
            'Write it like {"lora_rank": 16}.',
        ) from None


def _describe_problem(name: str, details: Any) -> str:
    if details["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, Recipe.model_fields, n=1, cutoff=0.4)
        known = f"Known keys: {', '.join(Recipe.model_fields)}."
        return f"The recipe has no key {name!r}. " + (f"Did you mean {near[0]}?" if near else known)
    reason = details["msg"][0].lower() + details["msg"][1:]
    default = json.dumps(Recipe.model_fields[name].default)
    return (
        f"{name} cannot be {details['input']!r}: {reason}. "
        f"Change {name} in the recipe (default: {default})."
    )
