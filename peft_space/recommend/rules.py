"""Recommended recipe values with reasons and sources, and the limits a recipe should not cross."""

import bisect
import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from peft_space.errors import UserError
from peft_space.recipe import Recipe, Task, make_recipe

MIN_RANK, MAX_RANK = 8, 64
"""Range of the recommended ranks."""

MAX_LABELS_RANK = 16
"""Highest rank recommended for labels and tags, unless the capacity rule asks for more."""

MAX_EFFECTIVE_BATCH = 32
"""Rows averaged in one step. LoRA loses more from large batches than full fine-tuning does
(LoRA Without Regret)."""

MIN_STEPS, MAX_EPOCHS, MAX_PREFERENCE_EPOCHS = 60, 10, 3
"""Small datasets are repeated until this many steps are taken, but for no more epochs than this."""

MAX_TOKENS_PER_WORD = 2.5
"""Above this, the tokenizer was evidently made for another language or vocabulary."""

MIN_REASON_LENGTH = 20
"""Characters of a `high_rank_reason`."""

_BITS_PER_PARAMETER = 2  # storage capacity of a parameter (LoRA Without Regret)
_MAX_SHORT_STEPS = 100  # runs in which higher learning rates did best (LoRA Without Regret)
_SHORT_FACTOR, _SHORT_FACTOR_OF_LABELS = 2.5, 1.5  # in such runs (benchmarks/rate_sweep.py)
_RANK_OF_FIT = 16  # where twice the rank is the alpha of the fit
_MEASURED_RANKS = (8, 64)  # outside of them, the rate of the nearest
_OPTIMIZER_BYTES = 16  # per trained parameter: itself, gradient and AdamW's two moments, 32 bits
# bytes per token, layer and unit of width that 16-bit training stores for the backward pass
# (arXiv 2205.05198, without attention scores)
_ACTIVATION_BYTES = 34
_DEFAULT_BATCH_TOKENS = 4096  # if the free memory is unknown
_REGRET = "LoRA Without Regret (Thinking Machines, 2025)"
_MEASURED_ON_CPU = "measured on a 2-core CPU"


@dataclass(frozen=True)
class DataFacts:
    """Facts about the training rows."""

    task: Task
    num_rows: int
    """Training rows, without the held-out ones."""
    trained_tokens: int
    """Tokens that contribute to the loss in one epoch. Of duplicate rows, only one counts."""
    lengths: tuple[int, ...]
    """Tokens per row, ascending: one value per row, or the 101 percentiles from 0 to 100."""
    num_labels: int | None = None
    """Different labels or tags."""
    repeated_share: float = 0.0
    """Fraction (0 to 1) of the rows that duplicate another row."""
    tokens_per_word: float | None = None
    """Tokens per word that the model's tokenizer needs for these texts."""
    bits_per_token: float | None = None
    """Loss of the base model on a sample of trained tokens, in bits (nats / ln 2)."""
    has_empty_thoughts: bool = False
    """True if most answers have no reasoning, the chat template writes an empty one before them,
    and its switch can make that part of the prompt."""


@dataclass(frozen=True)
class ModelFacts:
    """Facts about the base model."""

    num_parameters: int
    hidden_size: int
    parameters_per_rank: int
    """Adapter parameters per unit of rank: inputs + outputs, summed over all target modules."""
    context_length: int | None
    vocab_size: int
    num_layers: int
    comes_quantized: str | None = None
    """Format in which its publisher quantized the weights, such as gptq."""


@dataclass(frozen=True)
class MachineFacts:
    """Facts about the machine that trains."""

    device: Literal["cpu", "cuda"]
    memory: int | None
    """Free bytes: of the GPU if there is one, otherwise of the machine."""


@dataclass(frozen=True)
class Recommendation:
    """A recommended value for a recipe field, with the reason and its source."""

    field: str
    value: Any
    why: str
    source: str


@dataclass(frozen=True)
class RedLine:
    """A limit that a recipe crosses: a `stop` prevents training, a `warning` does not.

    `words` gives the problem and the fix.
    """

    field: str
    kind: Literal["stop", "warning"]
    words: str


_THINKING_OFF = Recommendation(
    "thinking",
    "off",
    "The answers have no reasoning. With this the prompt says so, and the model does not learn it.",
    "the model's chat template",
)


def recommend(data: DataFacts, model: ModelFacts, machine: MachineFacts) -> list[Recommendation]:
    """Recommend values for these rows on this model and machine, in the order of the form."""
    rank = _lora_rank(data, model)
    limit = _max_length(data, model)
    quantization = _quantization(model, machine)
    format = quantization.value if quantization else None
    batch = _batch(data, model, machine, rank.value, limit.value, format)
    epochs = _num_epochs(data)
    steps = math.ceil(epochs.value * _steps_per_epoch(data))
    rate = learning_rate(model.hidden_size, data.task, steps, rank.value)
    rate = dataclasses.replace(rate, why=f"This {rate.why.removeprefix('which ')}.")
    method = _method(rank.value, model)
    thinking = [_THINKING_OFF] if data.has_empty_thoughts else []
    recommendations = [rank, method, _lora_alpha(method.value), rate, epochs, *batch, limit]
    return [*recommendations, *([quantization] if quantization else []), *thinking]


def changed_recommendations(
    recipe: Recipe, recommendations: list[Recommendation]
) -> list[Recommendation]:
    """Return the recommendations that differ from the recipe.

    A chosen alpha suits its method, so it stays if the method does. An empty learning rate becomes
    the recommended one anyway.
    """
    values = {item.field: item.value for item in recommendations}
    unchanged = {field for field, value in values.items() if getattr(recipe, field) == value}
    if values.get("method", recipe.method) == recipe.method:
        unchanged.add("lora_alpha")
    if recipe.learning_rate is None:
        unchanged.add("learning_rate")
    return [item for item in recommendations if item.field not in unchanged]


def recommended_recipe(recipe: Recipe, recommendations: list[Recommendation]) -> Recipe:
    """Return the recipe with all changed recommendations applied."""
    changes = changed_recommendations(recipe, recommendations)
    return make_recipe(recipe.model_dump() | {item.field: item.value for item in changes})


def learning_rate(
    hidden_size: int,
    task: Task | Literal["automatic"] = "causal-lm",
    num_steps: int | None = None,
    rank: int = 16,
) -> Recommendation:
    """Recommend a learning rate for LoRA on a model of this width.

    5e-4 x (2000 / hidden size) ^ 0.781 x (16 / rank) ^ 0.5 for ranks 8 to 64, rounded to two
    digits; up to 100 steps 2.5 times that, and 1.5 times for labels and tags; a tenth for
    preferences.

    The width is the fit for Llama models in "LoRA Without Regret" (Thinking Machines, 2025): ten
    times the rate of full fine-tuning, and more in short runs. That fit is for an alpha of 32 at
    every rank. With twice the rank, the best rate falls with the rank: by about 2 from rank 16 to
    64 (`benchmarks/rate_sweep.py`). For DPO and KTO, TRL's example commands reduce 2e-4 to 5e-6
    and less.

    Returns:
        The recommendation. Its `why` is a clause that follows the value and a comma.
    """
    preferences = task in ("dpo", "kto")
    short = num_steps is not None and num_steps <= _MAX_SHORT_STEPS and not preferences
    fit = 5e-4 * (2000 / hidden_size) ** 0.781
    lowest, highest = _MEASURED_RANKS
    fit *= (_RANK_OF_FIT / min(max(rank, lowest), highest)) ** 0.5
    has_labels = task in ("sequence-classification", "token-classification")
    factor = (_SHORT_FACTOR_OF_LABELS if has_labels else _SHORT_FACTOR) if short else 1
    exact = fit * factor / (10 if preferences else 1)
    value = round(exact, 1 - math.floor(math.log10(exact)))
    suits = f"suits rank {rank} on a model of width {hidden_size}, by LoRA Without Regret"
    why, source = f"which {suits}", _REGRET
    if preferences:
        why = f"which is a tenth of the rate that {suits}: preference training needs small steps"
        source = _preference_source(task)
    elif short:
        why = f"which is {factor} times the rate that {suits}: {num_steps} steps are few"
    return Recommendation("learning_rate", value, why, source)


def bits_to_learn(data: DataFacts) -> float:
    """Estimate the information in the rows: trained tokens x bits per token, without duplicates.

    Bits per token are the measured loss of the base model. Without a measurement they are 1 (LoRA
    Without Regret), and log2(labels) for a label or tag. They are 2 if the tokenizer needs many
    tokens per word, on the assumption that the base model hardly knows the texts. A preference
    teaches at most 1 bit per row: DPO starts from a loss of ln 2 per pair (arXiv 2305.18290).
    """
    distinct_rows = data.num_rows * (1 - data.repeated_share)
    if data.task in ("dpo", "kto"):
        return distinct_rows
    tokens = distinct_rows if data.task == "sequence-classification" else data.trained_tokens
    if data.bits_per_token is not None:
        return tokens * data.bits_per_token
    if _has_labels(data):
        return tokens * math.log2(max(data.num_labels or 2, 2))
    return tokens * (2 if _is_unfamiliar_text(data) else 1)


def needed_rank(data: DataFacts, model: ModelFacts) -> float:
    """Return the rank whose parameters just hold the information in the rows.

    Bits / (2 x adapter parameters per unit of rank). Source: LoRA Without Regret (Thinking
    Machines, 2025): a parameter stores about 2 bits. Beyond that capacity, learning slows.
    """
    return bits_to_learn(data) / (_BITS_PER_PARAMETER * model.parameters_per_rank)


def _lora_rank(data: DataFacts, model: ModelFacts) -> Recommendation:
    """Twice the needed rank, a power of two from 8 to 64; at most 16 for labels if enough."""
    needed = needed_rank(data, model)
    rank = min(max(_power_of_two_from(2 * needed), MIN_RANK), MAX_RANK)
    if _has_labels(data) and needed <= MAX_LABELS_RANK:
        rank = min(rank, MAX_LABELS_RANK)
    bits = f"about {_round_number(bits_to_learn(data))} bits of information"
    if needed > MAX_RANK:
        why = (
            f"Your data hold {bits}, more than the capacity of rank {MAX_RANK}: training learns "
            "more slowly and loses facts. Use more target modules, a larger base model, or a "
            "smaller, cleaner dataset."
        )
    elif rank == MIN_RANK:
        why = f"Your data hold {bits}, which fit in rank {rank}."
    else:
        minimum = max(math.ceil(needed), 1)
        why = f"Your data hold {bits}. They need at least rank {minimum}; {rank} leaves a margin."
    return Recommendation("lora_rank", rank, why, f"capacity rule of {_REGRET}")


def _method(rank: int, model: ModelFacts) -> Recommendation:
    if rank > 32:
        why = f"At rank {rank}, plain LoRA scales its output down too far; rsLoRA does not."
        return Recommendation("method", "rslora", why, "arXiv 2312.03732")
    why = "With a good learning rate, the variants are hardly better than plain LoRA."
    if model.comes_quantized:
        why += f" The base model comes quantized ({model.comes_quantized}) and stays that way."
    return Recommendation("method", "lora", why, "arXiv 2602.04998")


def _lora_alpha(method: str) -> Recommendation:
    scale, source = "2 x rank, a scale of 2 at every rank", "arXiv 2106.09685"
    if method == "rslora":
        scale, source = "16, divided by the square root of the rank", "arXiv 2312.03732"
    why = f"Left empty, it takes the default of the method: {scale}."
    return Recommendation("lora_alpha", None, why, source)


def _num_epochs(data: DataFacts) -> Recommendation:
    """4, 3, 2 or 1 by the number of rows; fewer for duplicates, more if the steps would be too few.

    Anchors: 15 epochs on 1,000 rows (LIMA, arXiv 2305.11206), 3 on 52,000 (Stanford Alpaca), and
    one for preferences (TRL's example commands). Up to 4 epochs are about as good as new data
    (arXiv 2305.16264).
    """
    preferences = data.task in ("dpo", "kto")
    by_rows = ((1_000, 4), (20_000, 3), (100_000, 2), (math.inf, 1))
    usual = 1 if preferences else next(n for limit, n in by_rows if data.num_rows < limit)
    epochs = max(1, round(usual * (1 - data.repeated_share)))
    limit = MAX_PREFERENCE_EPOCHS if preferences else MAX_EPOCHS
    minimum = min(math.ceil(MIN_STEPS / _steps_per_epoch(data)), limit)
    rows = f"{data.num_rows:,} row{'s' if data.num_rows != 1 else ''}"
    if minimum > epochs:
        steps = minimum * _steps_per_epoch(data)
        why = f"{rows} give few steps per epoch: {minimum} epochs take {steps} steps."
    elif preferences:
        why = "Models soon memorize preferences that they see again."
    elif epochs < usual:
        why = f"{data.repeated_share:.0%} of the rows are duplicates, so each epoch repeats them."
    else:
        why = f"{rows}: small datasets need more passes, but more than about 4 gain little."
    source = _preference_source(data.task) if preferences else "arXiv 2305.16264"
    return Recommendation("num_epochs", float(max(epochs, minimum)), why, source)


def _batch(
    data: DataFacts,
    model: ModelFacts,
    machine: MachineFacts,
    rank: int,
    max_length: int,
    quantization: str | None,
) -> tuple[Recommendation, Recommendation]:
    """(batch size, gradient accumulation), with as many rows as half of the free memory holds."""
    effective = _effective_batch(data)
    tokens = _tokens_that_fit(data, model, machine, rank, quantization)
    capacity = tokens // (max_length * (2 if data.task == "dpo" else 1))
    batch = min(effective, _power_of_two_up_to(max(capacity, 1)))
    if capacity < 1:
        why = (
            f"Even one row of {max_length:,} tokens may not fit in memory. "
            "Lower max_length or choose a smaller base model."
        )
    elif machine.memory is None:
        why = f"{batch} x {max_length:,} tokens is moderate; the free memory is unknown."
    else:
        why = f"{batch} x {max_length:,} tokens at once should fit in the free memory."
    steps = effective // batch
    batches = f"{steps} batches of {batch} make" if steps > 1 else "One batch makes"
    reason = (
        f"{batches} a step of {effective} rows. Small datasets do better with small steps, and "
        f"LoRA learns less from steps of more than {MAX_EFFECTIVE_BATCH} rows."
    )
    return (
        Recommendation("batch_size", batch, why, "arXiv 2205.05198"),
        Recommendation("gradient_accumulation_steps", steps, reason, _REGRET),
    )


def _max_length(data: DataFacts, model: ModelFacts) -> Recommendation:
    """The smallest of 64, 128, 256, … that holds 99 % of the rows, within the model's context."""
    percentile = data.lengths[math.ceil(0.99 * len(data.lengths)) - 1]
    ideal = min(max(_power_of_two_from(percentile), 64), 131_072)
    length = min(ideal, model.context_length or ideal)
    share = bisect.bisect_right(data.lengths, length) / len(data.lengths)
    why = f"{share:.0%} of the rows fit. A lower limit truncates more; a higher one needs memory."
    if length < ideal:
        why = f"The model's context is {length:,} tokens; {share:.0%} of the rows fit."
    return Recommendation("max_length", length, why, "measured here")


def _quantization(model: ModelFacts, machine: MachineFacts) -> Recommendation | None:
    """NF4, unless the base model fits in half of a CPU's memory. None if it comes quantized."""
    if model.comes_quantized:
        return None
    if machine.device == "cuda":
        why = "On a GPU, 4 bits leave more memory for the batch, at no measurable loss (QLoRA)."
    elif machine.memory is None:
        why = "The free memory is unknown, and 4 bits need the least (QLoRA)."
    elif _weight_bytes(model, machine, "none") > machine.memory / 2:
        why = "In full precision the base model needs over half of the memory; 4 bits, an eighth."
    else:
        why = "The base model fits easily, and on a CPU 4 bits are slower, mostly in generation."
        return Recommendation("quantization", "none", why, _MEASURED_ON_CPU)
    return Recommendation("quantization", "nf4", why, "arXiv 2305.14314")


def red_lines(
    recipe: Recipe, model: ModelFacts | None = None, data: DataFacts | None = None
) -> list[RedLine]:
    """Return the limits that the recipe crosses, as far as the given facts show."""
    task = data.task if data and recipe.task == "automatic" else recipe.task
    lines = [*_rank_lines(recipe), *_method_lines(recipe, task, model)]
    if model:
        lines += _model_lines(recipe, task, model)
    if model and data:
        lines += _capacity_lines(recipe, model, data)
    if data and _is_unfamiliar_text(data):
        words = (
            f"The base model's tokenizer needs {data.tokens_per_word:.1f} tokens per word, as for "
            "a language it hardly knows. A base model trained on this language learns better."
        )
        lines.append(RedLine("base_model", "warning", words))
    return lines


def check_red_lines(lines: list[RedLine]) -> None:
    """Reject a recipe that crosses a `stop`.

    Raises:
        UserError: with the text of every `stop`.
    """
    stops = [line.words for line in lines if line.kind == "stop"]
    if stops:
        raise UserError("recipe.red_line", " ".join(stops))


def _rank_lines(recipe: Recipe) -> list[RedLine]:
    if recipe.lora_rank <= MAX_RANK:
        return []
    reason = (recipe.high_rank_reason or "").strip()
    over = f"Rank {recipe.lora_rank} is over {MAX_RANK}"
    if len(reason) >= MIN_REASON_LENGTH:
        words = f"{over}, for this reason: “{reason}”. The reason is stored in the run."
        return [RedLine("lora_rank", "warning", words)]
    words = (
        f"{over}, which few tasks need. Lower it, or give the reason in high_rank_reason, "
        f"in {MIN_REASON_LENGTH} characters or more."
    )
    return [RedLine("lora_rank", "stop", words)]


def _method_lines(recipe: Recipe, task: str, model: ModelFacts | None) -> list[RedLine]:
    lines = []
    if recipe.method in ("pissa", "loftq"):
        lines += _initialized_from_base_lines(recipe, task, model)
    if recipe.method == "dora":
        words = (
            "DoRA trains more slowly, and vLLM cannot load it: merge it into the base model for "
            "vLLM, or choose lora."
        )
        lines.append(RedLine("method", "warning", words))
    if recipe.lora_bias != "none":
        words = (
            "Biases are trained too, so the model with the adapter off differs slightly from the "
            "base model. Choose none for an exact comparison."
        )
        lines.append(RedLine("lora_bias", "warning", words))
    return lines


def _initialized_from_base_lines(
    recipe: Recipe, task: str, model: ModelFacts | None
) -> list[RedLine]:
    """Limits of PiSSA and LoftQ."""
    name = {"pissa": "PiSSA", "loftq": "LoftQ"}[recipe.method]
    stops = []
    if task in ("dpo", "kto"):
        stops.append(
            f"{name} changes the base model, and {task.upper()} compares with the original. "
            "Choose lora or rslora as the method."
        )
    if model and model.comes_quantized:
        stops.append(
            f"{name} needs full-precision weights, and this base model comes quantized "
            f"({model.comes_quantized}). Choose lora, or the unquantized base model."
        )
    if recipe.method == "loftq" and recipe.quantization not in ("nf4", "fp4"):
        stops.append(
            "LoftQ corrects the error of 4-bit quantization, and the base model is not in 4 bits. "
            "Choose nf4 as quantization, or lora as the method."
        )
    warning = (
        f"{name} decomposes every target layer before training and produces a LoRA of rank "
        f"{2 * recipe.lora_rank}, so the adapter is twice as large."
    )
    return [
        *(RedLine("method", "stop", words) for words in stops),
        RedLine("method", "warning", warning),
    ]


def _model_lines(
    recipe: Recipe, task: Task | Literal["automatic"], model: ModelFacts
) -> list[RedLine]:
    lines = []
    share = recipe.lora_rank * model.parameters_per_rank / model.num_parameters
    if model.num_parameters >= 1e9 and share > 0.01:
        words = (
            f"Rank {recipe.lora_rank} trains {share:.1%} of the base model's parameters. More than "
            "1 % needs memory and overfits sooner; watch the evaluation loss."
        )
        lines.append(RedLine("lora_rank", "warning", words))
    recommended = learning_rate(model.hidden_size, task, rank=recipe.lora_rank).value
    if recipe.learning_rate and recipe.learning_rate > 10 * recommended:
        words = (
            f"The learning rate {recipe.learning_rate:g} is more than ten times the recommended "
            f"{recommended:g}: training may not converge. Lower it or leave it empty."
        )
        lines.append(RedLine("learning_rate", "warning", words))
    return lines


def _capacity_lines(recipe: Recipe, model: ModelFacts, data: DataFacts) -> list[RedLine]:
    needed, recommended = needed_rank(data, model), _lora_rank(data, model).value
    bits = f"about {_round_number(bits_to_learn(data))} bits"
    if recipe.lora_rank < needed:
        remedy = "Use more target modules, a larger base model, or a smaller, cleaner dataset."
        if needed <= MAX_RANK:
            remedy = f"Use rank {recommended}."
        words = (
            f"The data hold {bits}, more than the capacity of rank {recipe.lora_rank}: training "
            f"learns more slowly and loses facts. {remedy}"
        )
    elif recipe.lora_rank > 4 * recommended:
        words = (
            f"Rank {recipe.lora_rank} is more than four times what the data need ({bits}). "
            f"Rank {recommended} is enough, and it is smaller and faster."
        )
    else:
        return []
    return [RedLine("lora_rank", "warning", words)]


def _effective_batch(data: DataFacts) -> int:
    """Rows averaged in one step, a power of two: few for small datasets, so that steps are many."""
    by_rows = ((100, 4), (1_000, 8), (10_000, 16), (math.inf, MAX_EFFECTIVE_BATCH))
    usual = next(rows for limit, rows in by_rows if data.num_rows < limit)
    return min(usual, _power_of_two_up_to(max(data.num_rows, 1)))


def _steps_per_epoch(data: DataFacts) -> int:
    return math.ceil(max(data.num_rows, 1) / _effective_batch(data))


def _tokens_that_fit(
    data: DataFacts, model: ModelFacts, machine: MachineFacts, rank: int, quantization: str | None
) -> int:
    """Tokens whose activations and logits need half of the memory left by base and adapter.

    Bytes per token: 34 x layers x width in 16 bits (arXiv 2205.05198), twice that in the 32 bits of
    a CPU. Add the logits (over the vocabulary or the labels), their gradient and one copy in 32
    bits.
    """
    if machine.memory is None:
        return _DEFAULT_BATCH_TOKENS
    adapter = _OPTIMIZER_BYTES * rank * model.parameters_per_rank
    free = machine.memory - _weight_bytes(model, machine, quantization) - adapter
    precision = 2 if machine.device == "cpu" else 1
    activations = _ACTIVATION_BYTES * model.num_layers * model.hidden_size * precision
    logits = 3 * 4 * ((data.num_labels or 2) if _has_labels(data) else model.vocab_size)
    return max(int(free / 2 / (activations + logits)), 0)


def _weight_bytes(model: ModelFacts, machine: MachineFacts, quantization: str | None) -> float:
    """4.127 bits per parameter in 4-bit formats (arXiv 2305.14314); otherwise 16, on a CPU 32."""
    if quantization != "none":
        return model.num_parameters * 4.127 / 8
    return model.num_parameters * (4 if machine.device == "cpu" else 2)


def _has_labels(data: DataFacts) -> bool:
    return data.task in ("sequence-classification", "token-classification")


def _is_unfamiliar_text(data: DataFacts) -> bool:
    return data.tokens_per_word is not None and data.tokens_per_word > MAX_TOKENS_PER_WORD


def _preference_source(task: str) -> str:
    papers = {"dpo": "DPO, arXiv 2305.18290", "kto": "KTO, arXiv 2402.01306"}
    return f"{papers[task]}; TRL's examples"


def _power_of_two_from(number: float) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << max(math.ceil(number) - 1, 0).bit_length()


def _power_of_two_up_to(number: int) -> int:
    """The largest power of two that is at most `number`, which is at least 1."""
    return 1 << (number.bit_length() - 1)


def _round_number(number: float) -> str:
    """Format a number with two or three digits: 9,000, 1.2 million."""
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{float(f'{number:.2g}'):,.0f}"
