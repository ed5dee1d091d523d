"""Recommends what a recipe leaves open, each value with its reason and source, and says where a recipe crosses a red line.

Arithmetic only: it knows the figures of data, model and machine that it is given, loads nothing and measures nothing.
"""

import bisect
import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from peft_space.errors import UserError
from peft_space.recipe import Recipe, Task, make_recipe

LEAST_RANK, MOST_RANK = 8, 64
"""Ranks that are recommended."""

LABELS_RANK = 16
"""Rank that is enough for labels and tags wherever the capacity rule does not ask for more."""

LARGEST_BATCH = 32
"""Rows that one step averages at most: LoRA loses more by large batches than full fine-tuning does (LoRA Without Regret)."""

LEAST_STEPS, MOST_EPOCHS, MOST_PREFERENCE_EPOCHS = 60, 10, 3
"""Few rows are repeated until so many steps are taken, but never more often than this."""

FINELY_CUT = 2.5
"""Tokens a word from which on a tokenizer was evidently made for another language or vocabulary."""

_BITS_PER_PARAMETER = 2  # what a parameter can store (LoRA Without Regret)
_SHORT = 100  # steps of a training in which higher learning rates did best (LoRA Without Regret)
_OPTIMIZED = 16  # bytes of a trained parameter: itself, its gradient and the two averages of AdamW, in 32 bits
_ACTIVATIONS = 34  # bytes per token, layer and unit of width that 16-bit training keeps for the way back (arXiv 2205.05198, without attention scores)
_TOKENS_IN_A_BATCH = 4096  # where the memory is unknown
_REGRET = "LoRA Without Regret (Thinking Machines, 2025)"
_SPEED = "measured on a 2-core CPU"


@dataclass(frozen=True)
class DataFacts:
    """What is known of the rows to train."""

    task: Task
    num_rows: int
    """Rows to train, without the held-out ones."""
    trained_tokens: int
    """Tokens with a loss in one epoch; of rows that repeat each other only one counts."""
    lengths: tuple[int, ...]
    """Tokens a row, ascending: one a row, or the 101 percentiles from 0 to 100."""
    num_labels: int | None = None
    """Different labels or tags."""
    repeated_share: float = 0.0
    """Share (0 to 1) of rows that repeat another."""
    tokens_per_word: float | None = None
    """How finely the model's tokenizer cuts these texts."""
    bits_per_token: float | None = None
    """The base's loss on a sample of trained tokens, in bits (nats / ln 2)."""


@dataclass(frozen=True)
class ModelFacts:
    """What is known of the base model."""

    num_parameters: int
    hidden_size: int
    parameters_per_rank: int
    """Adapter parameters per unit of rank, over all modules that get an adapter: the sum of their inputs + outputs."""
    context_length: int | None
    vocab_size: int
    num_layers: int
    comes_quantized: str | None = None
    """How its weights were quantized by whoever published it, such as gptq."""


@dataclass(frozen=True)
class MachineFacts:
    """What is known of the machine that trains."""

    device: Literal["cpu", "cuda"]
    memory: int | None
    """Bytes free for training: of the GPU where there is one."""


@dataclass(frozen=True)
class Recommendation:
    """One recommended value of a recipe's field, the sentence that argues for it, and where that comes from."""

    field: str
    value: Any
    why: str
    source: str


@dataclass(frozen=True)
class RedLine:
    """Where a recipe goes too far: `stop` until it is mended, or a `warning`; in `words` what was found and what to do."""

    field: str
    kind: Literal["stop", "warning"]
    words: str


def recommend(data: DataFacts, model: ModelFacts, machine: MachineFacts) -> list[Recommendation]:
    """What to choose for these rows on this model and machine, in the order in which a recipe is filled in."""
    rank = _lora_rank(data, model)
    limit = _max_length(data, model)
    quantization = _quantization(model, machine)
    batch = _batch(
        data, model, machine, rank.value, limit.value, quantization.value if quantization else None
    )
    epochs = _num_epochs(data)
    rate = learning_rate(
        model.hidden_size, data.task, math.ceil(epochs.value * _steps_per_epoch(data))
    )
    method = _method(rank.value, model)
    return [
        rank,
        method,
        _lora_alpha(method.value),
        dataclasses.replace(rate, why=f"This {rate.why.removeprefix('which ')}."),
        epochs,
        *batch,
        limit,
        *([quantization] if quantization else []),
    ]


def changed_recommendations(recipe: Recipe, advices: list[Recommendation]) -> list[Recommendation]:
    """The advices whose value is not the recipe's.

    An alpha suits a method: it is left alone where the method stays. A rate that is left open becomes the advised one anyway.
    """
    advised = {advice.field: advice.value for advice in advices}
    same_method = advised.get("method", recipe.method) == recipe.method
    kept = {"lora_alpha"} if same_method else set()
    kept |= {"learning_rate"} if recipe.learning_rate is None else set()
    return [
        advice
        for advice in advices
        if getattr(recipe, advice.field) != advice.value and advice.field not in kept
    ]


def recommended_recipe(recipe: Recipe, advices: list[Recommendation]) -> Recipe:
    """The recipe with all that changes. Raises UserError where an advice names no field or no value of it."""
    return make_recipe(
        recipe.model_dump()
        | {advice.field: advice.value for advice in changed_recommendations(recipe, advices)}
    )


def learning_rate(
    hidden_size: int, task: Task | Literal["automatic"] = "causal-lm", num_steps: int | None = None
) -> Recommendation:
    """For LoRA on a model of this width: 5e-4 x (2000 / hidden size) ^ 0.781, two digits; half more below 100 steps; a tenth for preferences.

    Source: the fit for Llama models published with "LoRA Without Regret" (Thinking Machines, 2025): ten times the rate of full
    fine-tuning, fifteen times in runs of about a hundred steps, independent of the rank. For DPO and KTO, TRL's example commands go down from
    2e-4 to 5e-6 and less. `why` goes on after the value and a comma.
    """
    preferences = task in ("dpo", "kto")
    short = num_steps is not None and num_steps <= _SHORT and not preferences
    exact = (
        5e-4 * (2000 / hidden_size) ** 0.781 * (1.5 if short else 1) / (10 if preferences else 1)
    )
    value = round(exact, 1 - math.floor(math.log10(exact)))
    suits = f"suits LoRA on a model of width {hidden_size}, by the fit published with LoRA Without Regret"
    if preferences:
        return Recommendation(
            "learning_rate",
            value,
            f"which is a tenth of what {suits}: preferences are learnt in small steps",
            _preferences(task),
        )
    if short:
        return Recommendation(
            "learning_rate",
            value,
            f"which is half more than what {suits}: {num_steps} steps are few",
            _REGRET,
        )
    return Recommendation("learning_rate", value, f"which {suits}", _REGRET)


def bits_to_learn(data: DataFacts) -> float:
    """Bits that the rows can teach: trained tokens x bits a token, where rows that repeat another count nothing.

    Bits a token are the base's measured loss; where none was measured 1 (LoRA Without Regret), 2 where the tokenizer cuts the texts
    finely (an assumption: the base hardly knows them), log2(labels) for a label or tag. A preference teaches at most 1 bit a row:
    DPO starts from a loss of ln 2 a pair (arXiv 2305.18290).
    """
    distinct_rows = data.num_rows * (1 - data.repeated_share)
    if data.task in ("dpo", "kto"):
        return distinct_rows
    tokens = distinct_rows if data.task == "sequence-classification" else data.trained_tokens
    if data.bits_per_token is not None:
        return tokens * data.bits_per_token
    if _has_labels(data):
        return tokens * math.log2(max(data.num_labels or 2, 2))
    return tokens * (2 if _is_finely_cut(data) else 1)


def needed_rank(data: DataFacts, model: ModelFacts) -> float:
    """The rank whose parameters just hold what the rows can teach: bits / (2 x adapter parameters per unit of rank).

    Source: LoRA Without Regret (Thinking Machines, 2025): a parameter stores about 2 bits. Past capacity learning slows.
    """
    return bits_to_learn(data) / (_BITS_PER_PARAMETER * model.parameters_per_rank)


def _lora_rank(data: DataFacts, model: ModelFacts) -> Recommendation:
    """Twice the needed rank as a power of two, within 8 to 64. Labels are bounded by 16 where that is enough for them."""
    needed = needed_rank(data, model)
    rank = min(max(_power_of_two_from(2 * needed), LEAST_RANK), MOST_RANK)
    if _has_labels(data) and needed <= LABELS_RANK:
        rank = min(rank, LABELS_RANK)
    bits = f"about {_in_words(bits_to_learn(data))} bits to learn"
    if needed > MOST_RANK:
        why = (
            f"Your data bring {bits}, more than an adapter of rank {MOST_RANK} holds: learning slows and facts are lost. "
            "Use more target modules, a larger base, or a smaller, cleaner set."
        )
    elif rank == LEAST_RANK:
        why = f"Your data bring {bits}, and rank {rank} has room for them."
    else:
        why = f"Your data bring {bits}: they need rank {max(math.ceil(needed), 1)} at least, and {rank} leaves room."
    return Recommendation("lora_rank", rank, why, f"capacity rule of {_REGRET}")


def _method(rank: int, model: ModelFacts) -> Recommendation:
    if rank > 32:
        return Recommendation(
            "method",
            "rslora",
            f"At rank {rank} plain LoRA scales its output down too far; rsLoRA does not.",
            "arXiv 2312.03732",
        )
    fixed = (
        f" The base comes quantized ({model.comes_quantized}), which stays as it is."
        if model.comes_quantized
        else ""
    )
    return Recommendation(
        "method",
        "lora",
        f"With a good learning rate the variants are hardly better than plain LoRA.{fixed}",
        "arXiv 2602.04998",
    )


def _lora_alpha(method: str) -> Recommendation:
    scale = (
        "16, divided by the root of the rank"
        if method == "rslora"
        else "2 x rank, a scale of 2 at every rank"
    )
    return Recommendation(
        "lora_alpha",
        None,
        f"Left empty it suits the method: {scale}.",
        "arXiv 2312.03732" if method == "rslora" else "arXiv 2106.09685",
    )


def _num_epochs(data: DataFacts) -> Recommendation:
    """4, 3, 2 or 1 by the number of rows, less what rows repeat each other, and more where the steps would be too few.

    Anchors: 15 epochs on 1,000 rows (LIMA, arXiv 2305.11206), 3 on 52,000 (Stanford Alpaca); up to 4 epochs are about as good as new
    data (arXiv 2305.16264); one for preferences (TRL's example commands).
    """
    preferences = data.task in ("dpo", "kto")
    usual = (
        1
        if preferences
        else next(
            epochs
            for below, epochs in ((1_000, 4), (20_000, 3), (100_000, 2), (math.inf, 1))
            if data.num_rows < below
        )
    )
    epochs = max(1, round(usual * (1 - data.repeated_share)))
    least = min(
        math.ceil(LEAST_STEPS / _steps_per_epoch(data)),
        MOST_PREFERENCE_EPOCHS if preferences else MOST_EPOCHS,
    )
    rows = f"{data.num_rows:,} row{'s' if data.num_rows != 1 else ''}"
    if least > epochs:
        why = f"{rows} make few steps an epoch: {least} epochs come to {least * _steps_per_epoch(data)} steps."
    elif preferences:
        why = "Seen again, preferences are soon learnt by heart."
    elif epochs < usual:
        why = f"{data.repeated_share:.0%} of the rows repeat another, so each epoch shows them several times."
    else:
        why = f"{rows}: the fewer there are, the more often each is shown, but after about 4 times little is gained."
    return Recommendation(
        "num_epochs",
        float(max(epochs, least)),
        why,
        _preferences(data.task) if preferences else "arXiv 2305.16264",
    )


def _batch(
    data: DataFacts,
    model: ModelFacts,
    machine: MachineFacts,
    rank: int,
    max_length: int,
    quantization: str | None,
) -> tuple[Recommendation, Recommendation]:
    """(batch size, gradient accumulation): as many of a step's rows at once as half of the free memory holds."""
    effective = _effective_batch(data)
    tokens = _tokens_that_fit(data, model, machine, rank, quantization)
    fits = tokens // (max_length * (2 if data.task == "dpo" else 1))
    batch = min(effective, _power_of_two_up_to(max(fits, 1)))
    if fits < 1:
        why = f"Even one row of {max_length:,} tokens may not fit into memory; a lower length limit or a smaller base would."
    elif machine.memory is None:
        why = f"{batch} x {max_length:,} tokens at once is moderate; the free memory is not known."
    else:
        why = f"{batch} x {max_length:,} tokens at once should fit into the free memory."
    steps = effective // batch
    added = f"{steps} batches of {batch} make" if steps > 1 else "One batch makes"
    reason = f"{added} a step of {effective}; small sets want small steps, and over {LARGEST_BATCH} LoRA learns less."
    return Recommendation("batch_size", batch, why, "arXiv 2205.05198"), Recommendation(
        "gradient_accumulation_steps", steps, reason, _REGRET
    )


def _max_length(data: DataFacts, model: ModelFacts) -> Recommendation:
    """The smallest of 64, 128, 256, … that holds 99 % of the rows, within the model's context."""
    wanted = min(
        max(_power_of_two_from(data.lengths[math.ceil(0.99 * len(data.lengths)) - 1]), 64), 131_072
    )
    length = min(wanted, model.context_length or wanted)
    held = bisect.bisect_right(data.lengths, length) / len(data.lengths)
    if length < wanted:
        why = f"The model reads no more than {length:,} tokens; {held:.0%} of the rows fit."
    else:
        why = (
            f"{held:.0%} of the rows fit; a lower limit would cut more, a higher one takes memory."
        )
    return Recommendation("max_length", length, why, "measured here")


def _quantization(model: ModelFacts, machine: MachineFacts) -> Recommendation | None:
    """NF4, but for a base that fits into half of a CPU's memory. None where the base comes quantized: then it is fixed."""
    if model.comes_quantized:
        return None
    if machine.device == "cuda":
        return Recommendation(
            "quantization",
            "nf4",
            "On a GPU 4 bits leave the memory to the batch, at no measurable loss (QLoRA).",
            "arXiv 2305.14314",
        )
    if machine.memory is None:
        return Recommendation(
            "quantization",
            "nf4",
            "The free memory is not known, and 4 bits take least of it (QLoRA).",
            "arXiv 2305.14314",
        )
    if _weight_bytes(model, machine, "none") > machine.memory / 2:
        return Recommendation(
            "quantization",
            "nf4",
            "In full the base takes more than half of the memory; 4 bits take an eighth of that.",
            "arXiv 2305.14314",
        )
    return Recommendation(
        "quantization",
        "none",
        "The base fits easily, and on a CPU 4 bits are slower, above all when answering.",
        _SPEED,
    )


def red_lines(
    recipe: Recipe, model: ModelFacts | None = None, data: DataFacts | None = None
) -> list[RedLine]:
    """Where the recipe goes too far, as far as the given facts tell; `refuse` ends what may not go on."""
    task = data.task if data and recipe.task == "automatic" else recipe.task
    lines = [*_rank_lines(recipe), *_method_lines(recipe, task, model)]
    if model:
        lines += _model_lines(recipe, task, model)
    if model and data:
        lines += _capacity_lines(recipe, model, data)
    if data and _is_finely_cut(data):
        words = (
            f"The base's tokenizer cuts these texts finely ({data.tokens_per_word:.1f} tokens a word), as in a language it hardly knows. "
            "A base that was trained on this language learns them better."
        )
        lines.append(RedLine("base_model", "warning", words))
    return lines


def check_red_lines(lines: list[RedLine]) -> None:
    """Raises UserError with the words of every `stop`, if there is one."""
    stops = [line.words for line in lines if line.kind == "stop"]
    if stops:
        raise UserError("todo", " ".join(stops))


def _rank_lines(recipe: Recipe) -> list[RedLine]:
    if recipe.lora_rank <= MOST_RANK:
        return []
    reason = (recipe.high_rank_reason or "").strip()
    over = f"Rank {recipe.lora_rank} is over {MOST_RANK}"
    if len(reason) < 20:
        words = f"{over}, which few tasks need. Lower it, or write why in high_rank_reason, in 20 characters or more."
        return [RedLine("lora_rank", "stop", words)]
    return [
        RedLine(
            "lora_rank", "warning", f"{over}, for this reason: “{reason}”. It is kept with the run."
        )
    ]


def _method_lines(recipe: Recipe, task: str, model: ModelFacts | None) -> list[RedLine]:
    lines = []
    if recipe.method in ("pissa", "loftq"):
        name = {"pissa": "PiSSA", "loftq": "LoftQ"}[recipe.method]
        if task in ("dpo", "kto"):
            words = f"{name} changes the base, and {task.upper()} compares with the base as it was. Choose lora or rslora as the method."
            lines.append(RedLine("method", "stop", words))
        if model and model.comes_quantized:
            words = f"{name} starts from the base's full weights, and this base comes quantized ({model.comes_quantized}). Choose lora, or the base unquantized."
            lines.append(RedLine("method", "stop", words))
        if recipe.method == "loftq" and recipe.quantization not in ("nf4", "fp4"):
            words = "LoftQ makes up for what 4 bits lose, and the base is not held in 4 bits. Choose nf4 as quantization, or lora as the method."
            lines.append(RedLine("method", "stop", words))
        words = f"{name} decomposes every layer before training starts and ends as a LoRA of rank {2 * recipe.lora_rank}, so the adapter is twice as large."
        lines.append(RedLine("method", "warning", words))
    if recipe.method == "dora":
        words = "DoRA trains more slowly, and vLLM does not load it: merge it into the base for vLLM, or choose lora."
        lines.append(RedLine("method", "warning", words))
    if recipe.lora_bias != "none":
        words = "Biases are trained too, so with the adapter switched off the model is not quite the base. Choose none for an exact comparison."
        lines.append(RedLine("lora_bias", "warning", words))
    return lines


def _model_lines(
    recipe: Recipe, task: Task | Literal["automatic"], model: ModelFacts
) -> list[RedLine]:
    lines = []
    share = recipe.lora_rank * model.parameters_per_rank / model.num_parameters
    if model.num_parameters >= 1e9 and share > 0.01:
        words = f"Rank {recipe.lora_rank} trains {share:.1%} of the base's parameters. Over 1 % takes memory and learns by heart sooner; watch the held-out loss."
        lines.append(RedLine("lora_rank", "warning", words))
    advised = learning_rate(model.hidden_size, task).value
    if recipe.learning_rate and recipe.learning_rate > 10 * advised:
        words = f"The learning rate {recipe.learning_rate:g} is more than ten times the advised {advised:g}: training may not converge. Lower it or leave it empty."
        lines.append(RedLine("learning_rate", "warning", words))
    return lines


def _capacity_lines(recipe: Recipe, model: ModelFacts, data: DataFacts) -> list[RedLine]:
    needed, advised = needed_rank(data, model), _lora_rank(data, model).value
    bits = f"about {_in_words(bits_to_learn(data))} bits"
    if recipe.lora_rank < needed:
        remedy = (
            f"Use rank {advised}."
            if needed <= MOST_RANK
            else "Use more target modules, a larger base, or a smaller, cleaner set."
        )
        words = f"The data bring {bits} to learn, more than rank {recipe.lora_rank} holds: learning slows and facts are lost. {remedy}"
        return [RedLine("lora_rank", "warning", words)]
    if recipe.lora_rank > 4 * advised:
        words = f"Rank {recipe.lora_rank} is more than four times what the data need ({bits}): rank {advised} is enough, smaller and faster."
        return [RedLine("lora_rank", "warning", words)]
    return []


def _effective_batch(data: DataFacts) -> int:
    """Rows that one step averages: few where there are few rows, so that steps are many. A power of two."""
    usual = next(
        rows
        for below, rows in ((100, 4), (1_000, 8), (10_000, 16), (math.inf, LARGEST_BATCH))
        if data.num_rows < below
    )
    return min(usual, _power_of_two_up_to(max(data.num_rows, 1)))


def _steps_per_epoch(data: DataFacts) -> int:
    return math.ceil(max(data.num_rows, 1) / _effective_batch(data))


def _tokens_that_fit(
    data: DataFacts, model: ModelFacts, machine: MachineFacts, rank: int, quantization: str | None
) -> int:
    """Tokens whose activations and logits take half of the memory that the base and the adapter leave.

    Bytes a token: 34 x layers x width in 16 bits (arXiv 2205.05198), twice that in the 32 bits of a CPU, and the logits (over
    the vocabulary or the labels), their gradient and one copy in 32 bits.
    """
    if machine.memory is None:
        return _TOKENS_IN_A_BATCH
    free = (
        machine.memory
        - _weight_bytes(model, machine, quantization)
        - _OPTIMIZED * rank * model.parameters_per_rank
    )
    activations = (
        _ACTIVATIONS * model.num_layers * model.hidden_size * (2 if machine.device == "cpu" else 1)
    )
    logits = 3 * 4 * ((data.num_labels or 2) if _has_labels(data) else model.vocab_size)
    return max(int(free / 2 / (activations + logits)), 0)


def _weight_bytes(model: ModelFacts, machine: MachineFacts, quantization: str | None) -> float:
    """Bytes of the base: 4.127 bits a parameter in NF4 or another 4-bit form (arXiv 2305.14314), else 16, on a CPU 32."""
    if quantization != "none":
        return model.num_parameters * 4.127 / 8
    return model.num_parameters * (4 if machine.device == "cpu" else 2)


def _has_labels(data: DataFacts) -> bool:
    return data.task in ("sequence-classification", "token-classification")


def _is_finely_cut(data: DataFacts) -> bool:
    return data.tokens_per_word is not None and data.tokens_per_word > FINELY_CUT


def _preferences(task: str) -> str:
    return (
        "KTO, arXiv 2402.01306; TRL's examples"
        if task == "kto"
        else "DPO, arXiv 2305.18290; TRL's examples"
    )


def _power_of_two_from(number: float) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << max(math.ceil(number) - 1, 0).bit_length()


def _power_of_two_up_to(number: int) -> int:
    """The largest power of two that is at most `number`, which is at least 1."""
    return 1 << (number.bit_length() - 1)


def _in_words(number: float) -> str:
    """Two or three digits of a number are enough: 9,000, 1.2 million."""
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{float(f'{number:.2g}'):,.0f}"
