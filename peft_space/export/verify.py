"""Proves an export: the very files that were written answer as the adapter does on the base that it was trained on, or how far they are off.

Both are asked the same held-out rows, one model in memory after the other. What a text model is compared on are the adapter's own greedy
answers: where at each of their tokens the export finds the same one likeliest, it gives the same answer.
"""

import gc
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from peft_space import hardware
from peft_space.data.arrow_store import TokenizedExample
from peft_space.data.dataset import load_run_data
from peft_space.data.records import Row, TextClassification
from peft_space.data.tokenization.render import render, stop_token_ids
from peft_space.errors import UserError
from peft_space.export.merge import Dtype, MergeInto, load_published_base
from peft_space.export.verify_weights import expected_deltas, layers_missing_delta
from peft_space.models.architecture import CLASSIFYING, auto_class
from peft_space.models.loading import (
    AdaptedModel,
    base_of,
    inference_dtype,
    load_adapted,
    load_base_model,
)
from peft_space.models.quantization import quantization_of
from peft_space.models.repo_files import read_header
from peft_space.recipe import TaskSpec
from peft_space.runs.events import OnProgress, no_progress
from peft_space.runs.run import Run
from peft_space.storage import atomic_io

NEEDED = {"float32": 0.99, "bfloat16": 0.95, "float16": 0.95, "q8_0": 0.95}
"""Share of greedy tokens, or labels, that must agree. Rounding to 16 or 8 bits turns a few that were nearly even; float32 hardly any."""
MOST_KL = {"float32": 1e-6, "bfloat16": 3e-3, "float16": 3e-3, "q8_0": 3e-3}
"""Nats a token that may lie between merged and adapter where both have the same base. On the built-in model the dtype alone leaves 2e-12, 2e-4,
2e-6 and 4e-6 (docs/export.md)."""
IDENTICAL = 1e-4
"""Logits of the adapter loaded twice: the same numbers, but for the order in which a GPU or 4-bit layers add them up."""

_MOST_ROWS, _MOST_TOKENS, _BATCH = 60, 64, 8
_ROWS_OF_ADAPTER = 8
_MOST_LOGITS = 2**27
"""Numbers that are kept of the first model: half a GiB. The tokens of further rows are compared, their logits not."""


@dataclass(frozen=True)
class Verification:
    """How far an export is from the adapter on its base."""

    compared: str
    """Which two models, in words."""
    rows: str
    """On what, in words."""
    num_answers: int
    num_tokens: int
    """Tokens of the answers; of a classification its labels or tags."""
    identical: int
    """Answers that are the same from the first token to the last."""
    agreement: float
    """Share of tokens, 0 to 1, of which both find the same likeliest."""
    needed: float
    max_logit_difference: float
    mean_logit_difference: float
    max_probability_difference: float
    mean_kl: float
    """KL divergence of the export's probabilities from the adapter's, in nats a token."""
    adapter_kl: float
    """The same of the base's from the adapter's: how much the adapter changes at all."""
    what: str
    """What is counted: tokens, labels or tags."""
    faults: list[str]
    """Why it did not pass."""
    greedy: bool = True
    """Whether the answers are the adapter's own, rather than those of the rows."""

    @property
    def passed(self) -> bool:
        return not self.faults

    def words(self) -> str:
        """All of it in sentences."""
        answers = (
            "greedy answers are the same from first to last"
            if self.greedy
            else "answers have the same likeliest tokens throughout"
        )
        same = (
            f"{self.identical} of {self.num_answers} {answers}, and "
            if self.what == "tokens"
            else ""
        )
        kept = [
            f"{same}{self.agreement:.2%} of {self.num_tokens:,} {self.what} agree ({self.needed:.0%} are needed).",
            f"Logits differ by {self.max_logit_difference:.2g} at most, {self.mean_logit_difference:.2g} on average; "
            f"probabilities by {self.max_probability_difference:.2g} at most.",
            f"The KL divergence is {self.mean_kl:.2g} nats, where the adapter itself changes {self.adapter_kl:.2g}.",
        ]
        verdict = "✓ Passed." if self.passed else "✗ Not passed: " + "; ".join(self.faults) + "."
        sentences = [
            f"{self.compared}, on {self.rows}.",
            *(sentence[0].upper() + sentence[1:] for sentence in kept),
            verdict,
        ]
        return " ".join(sentences)


@dataclass(frozen=True)
class _Question:
    """`ids` that are given, and the `answer` to them; of a classification there is none, and of tags `places` says where they are."""

    ids: list[int]
    answer: list[int]
    types: list[int]
    places: list[int]


@dataclass(frozen=True)
class _Seen:
    """What the adapter says of one question, at each of N tokens: the likeliest, (N,), its logits (N, V) if they are kept, and how far the base is off."""

    likeliest: torch.Tensor
    logits: torch.Tensor | None
    base_kl: torch.Tensor


def verify_merged(
    run: Run,
    folder: Path,
    dtype: Dtype | Literal["q8_0"],
    into: MergeInto,
    on_progress: OnProgress = no_progress,
    of_gguf: bool = False,
) -> Verification:
    """Compare the merged model in `folder`, loaded as anybody loads it, with the run's adapter on the base that it was trained on.

    Args:
        of_gguf: whether `folder` has what the numbers of a GGUF file, which were rounded to `dtype`, stand for.
    """
    base, goal = base_of(run)
    held = quantization_of(run.recipe, base.config)
    on_progress(0.5, "Loading the adapter, to compare")
    adapted = load_adapted(run)
    rows, examples = _examples(run, adapted, _MOST_ROWS)
    questions = _questions(adapted, examples, on_progress)
    seen = _ask(adapted, questions)
    added = expected_deltas(
        adapted.model,
        None if into == "dequantized" or held == "none" else load_published_base(run, base, goal),
    )
    faults = [
        *_wrong_tokens(run, folder, goal, examples),
        *([] if of_gguf else _wrong_dtype(folder, dtype)),
    ]
    del adapted
    gc.collect()
    on_progress(0.8, "Asking the merged model the same")
    model, lacking = _load(folder, goal)
    exactly = (
        inference_dtype() if dtype == "float32" else dtype
    )  # what the adapter was computed in, if that is coarser
    faults += [*lacking, *layers_missing_delta(model, added, dtype)]
    numbers = _compare(model, goal, questions, seen)
    if not numbers["agreement"] >= NEEDED[exactly]:
        faults.append(
            f"{numbers['agreement']:.2%} of the likeliest agree, and {NEEDED[exactly]:.0%} must"
        )
    same_base = held == "none" or into == "dequantized"
    if same_base and not numbers["mean_kl"] <= MOST_KL[exactly]:
        faults.append(
            f"the KL divergence is {numbers['mean_kl']:.2g} nats, and {dtype} alone leaves less than {MOST_KL[exactly]:g}"
        )
    what_into = (
        {"full": "the base in full precision", "dequantized": "the dequantized base"}[into]
        if held != "none"
        else "the base"
    )
    written = f"written as GGUF in {dtype}" if of_gguf else f"in {dtype}"
    compared = f"The model merged into {what_into}, {written}, against the adapter on {_held(held)}"
    return Verification(compared, rows, needed=NEEDED[exactly], faults=faults, **numbers)


def verify_adapter(run: Run, folder: Path, on_progress: OnProgress = no_progress) -> Verification:
    """Compare the adapter in `folder`, put by plain PEFT on its base loaded alone, with what this app shows of the run."""
    from peft import PeftModel

    base, goal = base_of(run, folder)
    on_progress(0.2, "Loading the adapter, to compare")
    adapted = load_adapted(run)
    rows, examples = _examples(run, adapted, _ROWS_OF_ADAPTER)
    questions = [_question(example, goal) for example in examples]
    seen = _ask(adapted, questions)
    faults = _wrong_tokens(run, folder, goal, examples)
    del adapted
    gc.collect()
    on_progress(0.6, "Loading the exported adapter in PEFT")
    model = PeftModel.from_pretrained(
        load_base_model(base, run.recipe, inference_dtype(), goal), folder
    ).eval()
    numbers = _compare(model, goal, questions, seen)
    if not numbers["max_logit_difference"] <= IDENTICAL:
        faults.append(
            f"logits differ by {numbers['max_logit_difference']:.2g}, and the same adapter gives the same"
        )
    compared = f"The exported adapter in plain PEFT, on {_held(quantization_of(run.recipe, base.config))}, against the adapter of the run"
    return Verification(compared, rows, needed=1.0, faults=faults, greedy=False, **numbers)


def reject_mismatch(proof: Verification, what_else: str) -> None:
    """Raise UserError where a proof did not pass, with its numbers and what to do."""
    if not proof.passed:
        raise UserError(
            "todo",
            f"Not exported, because it does not answer as the adapter does. {proof.words()} {what_else} Or insist, and it is kept.",
        )


def write_verification(folder: Path, proof: Verification) -> None:
    """Keep it beside what it proves: proof.json, and in words in the README."""
    values = asdict(proof) | {"passed": proof.passed, "words": proof.words()}
    atomic_io.write_text(
        folder / "proof.json", json.dumps(values, ensure_ascii=False, indent=2) + "\n"
    )
    card = folder / "README.md"
    atomic_io.write_text(
        card, card.read_text(encoding="utf-8") + f"\n## Proof\n\n{proof.words()}\n"
    )


def _held(quantization: str) -> str:
    where = "the base" if quantization == "none" else f"the base quantized as {quantization}"
    return f"{where}, computed in {inference_dtype()}"


# What is asked


def _examples(run: Run, adapted: AdaptedModel, most: int) -> tuple[str, list[TokenizedExample]]:
    """At most so many held-out rows, evenly drawn, and what they are in words. Where none was held out, trained ones."""
    data = load_run_data(run)
    kind, rows = (
        ("held-out rows", data.held_out)
        if len(data.held_out)
        else ("rows that were trained on, as none was held out", data.train)
    )
    chosen = [rows[int(at)] for at in np.linspace(0, len(rows) - 1, min(len(rows), most))]
    known = [
        row
        for row in chosen
        if not isinstance(row, TextClassification) or row.label in adapted.goal.labels
    ]
    examples = [
        example
        for example in _rendered(run, adapted.tokenizer, adapted.goal, known)
        if example.input_ids and example.num_trained
    ]
    if not examples:
        raise UserError(
            "todo",
            f"There is no row to prove the export on: at {run.recipe.max_length} tokens every answer is cut off.",
        )
    return f"{len(examples)} {kind}", examples


def _rendered(
    run: Run, tokenizer: Any, goal: TaskSpec, rows: Sequence[Row]
) -> list[TokenizedExample]:
    return render(
        tokenizer, rows, run.recipe.max_length, run.recipe.train_on, goal.task, with_texts=False
    )


def _question(example: TokenizedExample, goal: TaskSpec) -> _Question:
    """The row's own answer, after all that comes before it; of a text its second half."""
    if goal.task in CLASSIFYING:
        return _Question(
            example.input_ids, [], example.types, [at for at, tag in enumerate(example.tags) if tag]
        )
    if example.target is not None:
        return _Question(example.input_ids, example.target.input_ids[:_MOST_TOKENS], [], [])
    start = example.trained[-1][0] or max(1, len(example.input_ids) // 2)
    return _Question(
        example.input_ids[:start], example.input_ids[start : start + _MOST_TOKENS], [], []
    )


def _questions(
    adapted: AdaptedModel, examples: Sequence[TokenizedExample], on_progress: OnProgress
) -> list[_Question]:
    """The same, answered by the adapter itself, taking the likeliest token always."""
    questions = [_question(example, adapted.goal) for example in examples]
    if adapted.goal.task in CLASSIFYING:
        return questions
    answered = []
    for start in range(0, len(questions), _BATCH):
        on_progress(
            0.5 + 0.25 * start / len(questions),
            f"The adapter answers rows {start + 1} to {min(start + _BATCH, len(questions))}",
        )
        prompts = [question.ids for question in questions[start : start + _BATCH]]
        answered += [
            _Question(ids, answer, [], [])
            for ids, answer in zip(prompts, _greedy(adapted, prompts), strict=True)
        ]
    return answered


def _greedy(adapted: AdaptedModel, prompts: list[list[int]]) -> list[list[int]]:
    """The likeliest tokens after each prompt, up to the one that ends an answer."""
    tokenizer, pairs = adapted.tokenizer, adapted.goal.task == "seq2seq-lm"
    stops = [tokenizer.eos_token_id] if pairs else stop_token_ids(tokenizer)
    longest = max(map(len, prompts))

    def padded(row: list[int], value: int) -> list[int]:
        missing = [value] * (longest - len(row))
        return row + missing if pairs else missing + row

    ids = torch.tensor(
        [padded(prompt, tokenizer.pad_token_id) for prompt in prompts], device=adapted.model.device
    )
    mask = torch.tensor(
        [padded([1] * len(prompt), 0) for prompt in prompts], device=adapted.model.device
    )
    with torch.inference_mode():
        output = adapted.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=_MOST_TOKENS, do_sample=False, temperature=None, top_p=None, top_k=None,
            eos_token_id=stops, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
    answers = [row[1 if pairs else longest :].tolist() for row in output]
    ends = [
        next((at + 1 for at, token in enumerate(answer) if token in stops), len(answer))
        for answer in answers
    ]
    return [answer[:end] for answer, end in zip(answers, ends, strict=True)]


# What is answered


def _ask(adapted: AdaptedModel, questions: Sequence[_Question]) -> list[_Seen]:
    seen, kept = [], 0
    for question in questions:
        logits = _logits(adapted.model, adapted.goal, question)
        with adapted.model.disable_adapter():
            base = _logits(adapted.model, adapted.goal, question)
        kept += logits.numel()
        seen.append(
            _Seen(logits.argmax(-1), logits if kept <= _MOST_LOGITS else None, _kl(logits, base))
        )
    return seen


def _logits(model: Any, goal: TaskSpec, question: _Question) -> torch.Tensor:
    """(N, V) in float32: what is said at each token of the answer; of labels and tags (N, L). One row at a time, so that nothing is padded."""
    given: dict[str, Any] = {"input_ids": torch.tensor([question.ids], device=model.device)}
    if question.types:
        given["token_type_ids"] = torch.tensor([question.types], device=model.device)
    if goal.task == "seq2seq-lm":
        given["labels"] = torch.tensor([question.answer], device=model.device)
    elif goal.task not in CLASSIFYING:
        given["input_ids"] = torch.tensor([question.ids + question.answer], device=model.device)
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    with torch.inference_mode():
        logits = model(**given).logits
    if goal.task == "token-classification":
        logits = logits[0, question.places]
    elif goal.task not in (*CLASSIFYING, "seq2seq-lm"):
        logits = logits[0, len(question.ids) - 1 : -1]
    return logits.reshape(-1, logits.shape[-1]).float().cpu()


def _kl(wanted: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(wanted || other) of the probabilities of each token, in nats, (N,)."""
    log_wanted, log_other = wanted.double().log_softmax(-1), other.double().log_softmax(-1)
    return (log_wanted.exp() * (log_wanted - log_other)).sum(-1).clamp(min=0)


def _compare(
    model: Any, goal: TaskSpec, questions: Sequence[_Question], seen: Sequence[_Seen]
) -> dict[str, Any]:
    agree, differences, chances, kl = [], [], [], []
    for question, before in zip(questions, seen, strict=True):
        logits = _logits(model, goal, question)
        agree.append(logits.argmax(-1) == before.likeliest)
        if before.logits is not None:
            differences.append((logits - before.logits).abs().flatten())
            chances.append((logits.softmax(-1) - before.logits.softmax(-1)).abs().max())
            kl.append(_kl(before.logits, logits))
    everywhere, difference = torch.cat(agree), torch.cat(differences)
    return {
        "num_answers": len(agree),
        "num_tokens": len(everywhere),
        "identical": sum(bool(one.all()) for one in agree),
        "agreement": everywhere.double().mean().item(),
        "max_logit_difference": difference.max().item(),
        "mean_logit_difference": difference.double().mean().item(),
        "max_probability_difference": torch.stack(chances).max().item(),
        "mean_kl": torch.cat(kl).mean().item(),
        "adapter_kl": torch.cat([one.base_kl for one in seen]).mean().item(),
        "what": {"sequence-classification": "labels", "token-classification": "tags"}.get(
            goal.task, "tokens"
        ),
    }


# The files


def _load(folder: Path, goal: TaskSpec) -> tuple[Any, list[str]]:
    """The model in `folder` in its own dtype, and which of its weights are missing."""
    where = {"device_map": {"": torch.cuda.current_device()}} if hardware.device() == "cuda" else {}
    model, found = auto_class(goal.task).from_pretrained(
        folder, dtype="auto", output_loading_info=True, **where
    )
    missing = sorted(found["missing_keys"])
    return model.eval(), [
        f"{len(missing)} weights are missing, such as {missing[0]}"
    ] if missing else []


def _wrong_dtype(folder: Path, dtype: str) -> list[str]:
    wanted = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]
    headers = [read_header(path) for path in sorted(folder.glob("*.safetensors"))]
    others = {
        kind for header in headers if header for kind in header.dtypes.values() if "F" in kind
    } - {wanted}
    told = json.loads((folder / "config.json").read_text()).get("dtype")
    faults = [f"weights are stored as {', '.join(sorted(others))}, not {wanted}"] if others else []
    return faults + ([f"its config says {told}, not {dtype}"] if told != dtype else [])


def _wrong_tokens(
    run: Run, folder: Path, goal: TaskSpec, examples: Sequence[TokenizedExample]
) -> list[str]:
    """Whether the tokenizer in `folder`, with its chat template, gives the tokens that were trained."""
    from transformers import AutoTokenizer

    data, numbers = load_run_data(run), {example.row for example in examples}
    rows = [
        row for row in (data.held_out if len(data.held_out) else data.train) if row.row in numbers
    ]
    again = _rendered(run, AutoTokenizer.from_pretrained(folder), goal, rows)
    ids = {example.row: example.input_ids for example in examples}
    return (
        []
        if all(ids[example.row] == example.input_ids for example in again)
        else ["its tokenizer gives other tokens for the same rows"]
    )
