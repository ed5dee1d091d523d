"""Scores the base model and the adapter on the held-out rows, with confidence intervals."""

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from peft_space import hardware
from peft_space.data.arrow_store import MASKED, TokenizedExample
from peft_space.data.batches import collate, collate_pairs, collator_of
from peft_space.data.dataset import load_run_data
from peft_space.data.messages import shown_text, split_thought
from peft_space.data.row_normalization import Conversation, TextClassification, pictures_of
from peft_space.data.tokenization.render import render, without_reasoning
from peft_space.errors import UserError, oom_device
from peft_space.evaluation import metrics
from peft_space.evaluation.adapter_off_check import SIDES, Side, check, use_side
from peft_space.evaluation.generate import (
    BATCH_SIZE,
    NO_LENGTH_LIMIT,
    Sampling,
    answer,
    decode,
    fit_prompt,
    num_cut,
    tokenize_prompt,
)
from peft_space.evaluation.metrics import Statistic
from peft_space.evaluation.prompts import GENERAL_PROMPTS
from peft_space.evaluation.results import (
    Evaluation,
    ForgettingScore,
    Interval,
    ResumableBatches,
    Scores,
    key_of,
    write_scores,
)
from peft_space.evaluation.tool_calls import are_equal_calls, call_the_same, function_names
from peft_space.models.architecture import CLASSIFYING
from peft_space.models.loading import MAX_SCORING_BATCH, AdaptedModel
from peft_space.recipe import Recipe
from peft_space.runs.events import OnProgress, no_progress
from peft_space.runs.run import Run

_MAX_ROWS = 500
"""Held-out rows that are scored, evenly spaced if there are more."""
_MAX_ROWS_COUNTED = 10_000
"""Trained rows in which the most common label is counted, evenly spaced if there are more."""
_GENERAL_TOKENS = 32
_NUM_SAMPLES = 50
_MAX_CONFUSION_LABELS = 60
_METHOD = 5
"""Increased when something is measured differently, so that stored batches are discarded."""

_Result = TypeVar("_Result")
Batch = Callable[[str, int, Callable[[], Any]], Any]
"""Called with a part of the evaluation, the number of a batch in it, and a function that measures
the batch. Returns its results, one for each row."""
Measurements = dict[str, list[Any]]
"""The measurements of one side, by kind: one value for each row."""
RowScore = tuple[Statistic, int]
"""A score, and the number of rows that it is of."""


def evaluate(run: Run, adapted: AdaptedModel, on_progress: OnProgress = no_progress) -> Evaluation:
    """Score both sides on the held-out rows, and store the result in the run.

    Resumes an evaluation that was interrupted.

    Raises:
        UserError: no row was held out, or none has anything to score.
    """
    rows, examples = _held_out(run, adapted)
    fairness = check(adapted)
    num_batches = _num_batches(adapted, rows, examples)
    num_done, progress = 0, (0.0, "")

    def on_batch(part: str) -> None:
        nonlocal num_done, progress
        progress = (num_done / num_batches, f"Scoring {part}")
        num_done += 1
        on_progress(*progress)

    def on_token() -> None:  # a batch of long answers takes minutes, and the callback may stop it
        on_progress(*progress)

    stored = ResumableBatches(run, _key(run, adapted, rows, examples), on_batch)
    measured = {
        side: _measure(adapted, side, rows, examples, stored.batch, on_token) for side in SIDES
    }
    scores = {
        side: _scores(adapted, rows, examples, measured[side], measured["base"], run.recipe)
        for side in SIDES
    }
    evaluation = Evaluation(
        num_rows=len(rows),
        base=_points(scores["base"]),
        adapter=_points(scores["adapter"]),
        intervals=_intervals(scores),
        confusion=_confusion(adapted, measured),
        majority=_majority(run, adapted, examples),
        general=_forgetting_score(adapted, stored.batch, on_token),
        samples=_samples(adapted, rows, measured),
        num_cut=_num_cut_prompts(adapted, rows),
        fairness=fairness.in_words(),
    )
    write_scores(run, evaluation)
    stored.done()
    return evaluation


def held_out_loss(run: Run, adapted: AdaptedModel) -> float:
    """The adapter's loss alone, as `evaluate` measures it. Stores nothing.

    Raises:
        UserError: no row was held out, or none has anything to score.
    """
    _, examples = _held_out(run, adapted)
    measured = _measure(adapted, "adapter", [], examples, lambda part, number, measure: measure())
    scores = _scores(adapted, [], examples, measured, measured, run.recipe)
    return metrics.point(*scores["loss"])


# The rows


def _held_out(run: Run, adapted: AdaptedModel) -> tuple[list[Any], list[TokenizedExample]]:
    """The held-out rows that are scored, and the examples with something to score."""
    rows = _select_rows(load_run_data(run).held_out, adapted)
    if run.recipe.reasoning_of_rows == "leave_out":
        rows = [without_reasoning(row) for row in rows]
    if not rows:
        raise UserError(
            "evaluation.no_held_out_rows",
            f"The run {run.name!r} has no held-out rows to score. "
            "Train it again with eval_split above 0.",
        )
    recipe, task = run.recipe, adapted.task_spec.task
    rendered = render(
        adapted.tokenizer,
        rows,
        recipe.max_length,
        recipe.train_on,
        task,
        recipe.reasoning_of_rows,
        with_texts=False,
    )
    pieces = [piece for example in rendered for piece in (example, *example.more)]
    examples = [piece for piece in pieces if piece.num_trained]
    if not examples:
        raise UserError(
            "evaluation.answers_truncated",
            f"At {recipe.max_length} tokens every held-out answer is truncated. "
            "Train again with a larger max_length.",
        )
    return rows, examples


def _select_rows(held_out: Any, adapted: AdaptedModel) -> list[Any]:
    """Evenly spaced rows, without labels that were never trained."""
    labels = adapted.task_spec.labels
    rows = [held_out[place] for place in _spaced(len(held_out), _MAX_ROWS)]
    return [row for row in rows if not isinstance(row, TextClassification) or row.label in labels]


def _spaced(count: int, limit: int) -> list[int]:
    return [int(place) for place in np.linspace(0, count - 1, min(count, limit))]


def _key(
    run: Run, adapted: AdaptedModel, rows: Sequence[Any], examples: Sequence[TokenizedExample]
) -> str:
    model, task_spec = adapted.model, adapted.task_spec
    device = str(model.device)
    return key_of(run, _METHOD, rows, examples, run.recipe, task_spec, device, model.dtype)


def _num_batches(
    adapted: AdaptedModel, rows: Sequence[Any], examples: Sequence[TokenizedExample]
) -> int:
    answered = math.ceil(len(_rows_to_answer(adapted, rows)) / BATCH_SIZE)
    rejected = sum(example.rejected is not None for example in examples)
    scored = math.ceil(len(examples) / MAX_SCORING_BATCH) + math.ceil(rejected / MAX_SCORING_BATCH)
    general = 2 + len(GENERAL_PROMPTS) if _answers_questions(adapted) else 0
    return 2 * (scored + answered) + general


def _rows_to_answer(adapted: AdaptedModel, rows: Sequence[Any]) -> list[Conversation]:
    if adapted.task_spec.task not in ("causal-lm", "seq2seq-lm", "image-text-to-text"):
        return []
    return [row for row in rows if isinstance(row, Conversation)]


def _ends_with_call(row: Conversation) -> bool:
    return bool(row.messages[-1].get("tool_calls"))


def expected_answer(adapted: AdaptedModel, row: Conversation) -> str:
    """The text of the last message, or its calls as the model writes them."""
    if not _ends_with_call(row):
        return row.messages[-1]["content"].strip()
    written = without_reasoning(row)
    [example] = render(adapted.tokenizer, [written], NO_LENGTH_LIMIT, "last_assistant")
    return "".join(
        decode(adapted, example.input_ids[start:end]) for start, end in example.trained
    ).strip()


def _thought_of(row: Conversation) -> str:
    return row.messages[-1].get("reasoning_content") or ""


# Measurements


def _measure(
    adapted: AdaptedModel,
    side: Side,
    rows: Sequence[Any],
    examples: Sequence[TokenizedExample],
    batch: Batch,
    on_token: Callable[[], None] | None = None,
) -> Measurements:
    """Everything that the scores of one side need."""
    part = f"the {side}"
    if adapted.task_spec.task in CLASSIFYING:
        predict = functools.partial(_predicted_labels, adapted, side)
        return {"labels": _in_batches(batch, part, examples, MAX_SCORING_BATCH, predict)}

    def likelihoods(examples: Sequence[TokenizedExample]) -> list[float]:
        return log_likelihoods(adapted, side, examples).tolist()

    measured: Measurements = {
        "likelihoods": _in_batches(batch, part, examples, MAX_SCORING_BATCH, likelihoods)
    }
    if adapted.task_spec.task == "dpo":
        rejected = [example.rejected for example in examples if example.rejected]
        part = f"the {side} on the worse answers"
        measured["rejected"] = _in_batches(batch, part, rejected, MAX_SCORING_BATCH, likelihoods)
    if to_answer := _rows_to_answer(adapted, rows):
        answered = _measure_answers(adapted, side, to_answer, batch, on_token)
        measured["answers"], measured["ended"] = map(list, zip(*answered, strict=True))
    return measured


def _in_batches(
    batch: Batch,
    part: str,
    items: Sequence[Any],
    size: int,
    measure: Callable[[Sequence[Any]], list[Any]],
) -> list[Any]:
    results: list[Any] = []
    for start in range(0, len(items), size):
        measure_batch = functools.partial(measure, items[start : start + size])
        results += batch(part, start // size, measure_batch)
    return results


def _measure_answers(
    adapted: AdaptedModel,
    side: Side,
    rows: Sequence[Conversation],
    batch: Batch,
    on_token: Callable[[], None] | None,
) -> list[tuple[str, bool]]:
    """One side's greedy answers to the rows, in their order, and which ended by themselves.

    An answer may have twice as many tokens as the row's own: more cannot make it right. Rows with
    similar limits share a batch, so that few wait for a long one.
    """
    texts = [f"{_thought_of(row)}{expected_answer(adapted, row)}" for row in rows]
    targets = adapted.tokenizer(texts, add_special_tokens=False)
    limits = [min(4096, 2 * len(ids) + 8) for ids in targets["input_ids"]]
    order = sorted(range(len(rows)), key=limits.__getitem__)

    def answers(places: Sequence[int]) -> list[tuple[str, bool]]:
        batch_limits, ended = [limits[place] for place in places], list[bool]()
        texts = answer(
            adapted,
            side,
            [rows[place].messages[:-1] for place in places],
            Sampling(max_new_tokens=max(batch_limits)),
            tools=[rows[place].tools for place in places],
            limits=batch_limits,
            on_token=on_token,
            ended=ended,
        )
        return list(zip(texts, ended, strict=True))

    answered = _in_batches(batch, f"the {side}'s answers", order, BATCH_SIZE, answers)
    in_order = sorted(zip(order, answered, strict=True))
    return [(text, ended) for _, (text, ended) in in_order]


def mean_loss(adapted: AdaptedModel, side: Side, examples: Sequence[TokenizedExample]) -> float:
    """Mean negative log-likelihood, in nats, of the tokens that the examples train."""
    num_tokens = sum(example.num_trained for example in examples)
    return -float(log_likelihoods(adapted, side, examples).sum()) / num_tokens


def log_likelihoods(
    adapted: AdaptedModel, side: Side, examples: Sequence[TokenizedExample]
) -> np.ndarray:
    """The log-probability, in nats, of the tokens that each example trains, (N,)."""
    task = adapted.task_spec.task
    pad: Any = functools.partial(
        collate_pairs if task == "seq2seq-lm" else collate,
        pad_token_id=adapted.tokenizer.pad_token_id,
    )
    if task == "image-text-to-text":
        pad = collator_of(adapted.task_spec, adapted.tokenizer)

    def score(part: Sequence[TokenizedExample]) -> list[float]:
        batch = _batch(adapted, part, pad)
        return adapted.scorer(batch.pop("labels"), batch).row_sums().tolist()

    return np.array(_scored(adapted, side, examples, score))


def _scored(
    adapted: AdaptedModel,
    side: Side,
    examples: Sequence[TokenizedExample],
    score: Callable[[Sequence[TokenizedExample]], list[_Result]],
) -> list[_Result]:
    """Score all examples in order. Batches are halved when memory runs out, as in training."""
    results: list[_Result] = []
    size = min(adapted.scoring_batch, len(examples))
    while len(results) < len(examples):
        try:
            with torch.inference_mode(), use_side(adapted, side):
                results += score(examples[len(results) : len(results) + size])
        except Exception as error:
            if size == 1 or oom_device(error) is None:
                raise
            size //= 2
        else:
            continue
        hardware.release_memory()  # once the exception no longer refers to the tensors
    return results


def _batch(
    adapted: AdaptedModel,
    examples: Sequence[TokenizedExample],
    collate_batch: Callable[[Sequence[TokenizedExample]], dict[str, Tensor]],
) -> dict[str, Tensor]:
    tensors = collate_batch(examples)
    return {name: tensor.to(adapted.model.device) for name, tensor in tensors.items()}


def _predicted_labels(
    adapted: AdaptedModel, side: Side, examples: Sequence[TokenizedExample]
) -> list[tuple[list[int], list[int], float]]:
    """For each example the predicted and the correct label numbers, and the sum of the losses."""
    collator = collator_of(adapted.task_spec, adapted.tokenizer)

    def predict(part: Sequence[TokenizedExample]) -> list[tuple[list[int], list[int], float]]:
        batch = _batch(adapted, part, collator)
        labels = batch.pop("labels")
        return list(map(_prediction, labels, adapted.model(**batch).logits.float()))

    return _scored(adapted, side, examples, predict)


def _prediction(row_labels: Tensor, row_logits: Tensor) -> tuple[list[int], list[int], float]:
    labels = row_labels.reshape(-1)
    scored = labels != MASKED
    targets, chosen = labels[scored], row_logits.reshape(len(scored), -1)[scored]
    loss = torch.nn.functional.cross_entropy(chosen, targets, reduction="sum")
    return chosen.argmax(-1).tolist(), targets.tolist(), loss.item()


# Scores


def _scores(
    adapted: AdaptedModel,
    rows: Sequence[Any],
    examples: Sequence[TokenizedExample],
    measured: Measurements,
    base: Measurements,
    recipe: Recipe,
) -> dict[str, RowScore]:
    """Each score of the task, as a function of resampled rows."""
    match adapted.task_spec.task:
        case "sequence-classification" | "token-classification":
            statistics = _label_scores(adapted, measured)
        case "dpo":
            statistics = _preference_scores(examples, measured, base, recipe.beta)
        case "kto":
            statistics = _rating_scores(examples, measured, base, recipe.beta)
        case _:
            lengths = np.array([example.num_trained for example in examples])
            loss = metrics.ratio(-np.array(measured["likelihoods"]), lengths)
            statistics = {
                "loss": loss,
                "perplexity": lambda counts: np.exp(np.minimum(loss(counts), 700)),
            }
    scores = {name: (statistic, len(examples)) for name, statistic in statistics.items()}
    if "answers" in measured:
        answered = _rows_to_answer(adapted, rows)
        scores |= _answer_scores(adapted, answered, measured["answers"], recipe.answer_pattern)
        scores["ended"] = metrics.mean(measured["ended"]), len(measured["ended"])
    return scores


def _answer_scores(
    adapted: AdaptedModel,
    rows: Sequence[Conversation],
    answers: Sequence[str],
    pattern: str | None,
) -> dict[str, RowScore]:
    """Texts are compared as texts or values, and calls by their names and arguments."""
    values: dict[str, list[float]] = {}
    for row, written in zip(rows, answers, strict=True):
        # thoughts can differ where answers are equal
        answer, target = split_thought(written)[1].strip(), expected_answer(adapted, row)
        if _ends_with_call(row):
            names = function_names(row)
            found: dict[str, float] = {
                "tool_call": are_equal_calls(answer, target),
                "tool_name": call_the_same(answer, target, names),
            }
        else:
            found = {
                "exact_match": answer == target,
                "chrf": metrics.chrf(answer, target),
                "rouge_l": metrics.rouge_l(answer, target),
                **metrics.value_scores(answer, target),
            }
        if pattern:
            found["matches_pattern"] = metrics.matches(answer, pattern)
        for name, value in found.items():
            values.setdefault(name, []).append(float(value))
    return {name: (metrics.mean(numbers), len(numbers)) for name, numbers in values.items()}


def _label_scores(adapted: AdaptedModel, measured: Measurements) -> dict[str, Statistic]:
    predictions, targets, losses = zip(*measured["labels"], strict=True)
    sizes = np.array([len(row) for row in targets])
    all_predictions, all_targets = (
        np.concatenate([np.array(row, dtype=int) for row in rows])
        for rows in (predictions, targets)
    )
    row_of_each = np.repeat(np.arange(len(sizes)), sizes)
    num_correct = np.bincount(row_of_each, all_predictions == all_targets, len(sizes))
    labels = adapted.task_spec.labels
    scores = {
        "loss": metrics.ratio(np.array(losses), sizes),
        "accuracy": metrics.ratio(num_correct, sizes),
        "macro_f1": metrics.macro_f1_of_rows(
            row_of_each, all_predictions, all_targets, len(labels)
        ),
    }
    if adapted.task_spec.task == "token-classification" and metrics.are_entities(labels):
        counts = []
        for pair in zip(predictions, targets, strict=True):
            predicted, correct = (metrics.entities([labels[at] for at in row]) for row in pair)
            counts.append((len(predicted & correct), len(predicted), len(correct)))
        scores["entity_f1"] = metrics.f1(*np.array(counts).T)
    return scores


def _preference_scores(
    examples: Sequence[TokenizedExample], measured: Measurements, base: Measurements, beta: float
) -> dict[str, Statistic]:
    better, worse = np.array(measured["likelihoods"]), np.array(measured["rejected"])
    base_better, base_worse = np.array(base["likelihoods"]), np.array(base["rejected"])
    lengths = np.array([_num_tokens(example) for example in examples])
    worse_lengths = np.array(
        [_num_tokens(example.rejected) for example in examples if example.rejected]
    )
    return {
        "loss": metrics.ratio(-better, lengths),
        "preferred": metrics.mean(better / lengths > worse / worse_lengths),
        "margin": metrics.mean(beta * ((better - base_better) - (worse - base_worse))),
    }


def _rating_scores(
    examples: Sequence[TokenizedExample], measured: Measurements, base: Measurements, beta: float
) -> dict[str, Statistic]:
    sums = np.array(measured["likelihoods"])
    good = np.array([float(bool(example.good)) for example in examples])
    rewards = beta * (sums - np.array(base["likelihoods"]))
    lengths = np.array([_num_tokens(example) for example in examples])
    scored = good if good.any() else 1 - good
    good_reward = metrics.ratio(rewards * good, good)
    bad_reward = metrics.ratio(rewards * (1 - good), 1 - good)
    return {
        "loss": metrics.ratio(-sums * scored, lengths * scored),
        "margin": metrics.difference(good_reward, bad_reward),
    }


def _num_tokens(example: TokenizedExample) -> int:
    return sum(end - start for start, end in example.trained)


def _points(scores: dict[str, RowScore]) -> Scores:
    points = {name: metrics.point(*score) for name, score in scores.items()}
    return Scores(**{name: value for name, value in points.items() if not math.isnan(value)})


def _intervals(scores: dict[Side, dict[str, RowScore]]) -> dict[str, dict[str, Interval]]:
    intervals: dict[str, dict[str, Interval]] = {"base": {}, "adapter": {}, "difference": {}}
    for name, (base, num_rows) in scores["base"].items():
        adapter = scores["adapter"][name][0]
        difference = metrics.difference(adapter, base)
        statistics = {"base": base, "adapter": adapter, "difference": difference}
        for kind, interval in metrics.bootstrap_intervals(statistics, num_rows).items():
            intervals[kind][name] = interval
    return intervals


def _confusion(adapted: AdaptedModel, measured: dict[Side, Measurements]) -> dict[str, Any] | None:
    labels = adapted.task_spec.labels
    if not 0 < len(labels) <= _MAX_CONFUSION_LABELS:
        return None
    tables: dict[str, Any] = {"labels": list(labels)}
    for side, measurements in measured.items():
        predictions, targets = (
            np.array([label for row in measurements["labels"] for label in row[kind]], dtype=int)
            for kind in (0, 1)
        )
        tables[side] = metrics.confusion(predictions, targets, len(labels)).tolist()
    return tables


def commonest_label(run: Run) -> str:
    """The most common label, or tag, of the trained rows."""
    trained = load_run_data(run).train
    counts: Counter[str] = Counter()
    for place in _spaced(len(trained), _MAX_ROWS_COUNTED):
        row: Any = trained[place]
        counts.update([row.label] if isinstance(row, TextClassification) else row.tags)
    return counts.most_common(1)[0][0]


def _majority(
    run: Run, adapted: AdaptedModel, examples: Sequence[TokenizedExample]
) -> dict[str, Any] | None:
    """The most common label or tag, and its share of the scored positions."""
    if adapted.task_spec.task not in CLASSIFYING:
        return None
    label = commonest_label(run)
    scored: list[str | None] = []
    for example in examples:
        scored += filter(None, example.tags) if example.label is None else [example.label]
    return {"label": label, "share": scored.count(label) / len(scored)}


def _samples(
    adapted: AdaptedModel, rows: Sequence[Any], measured: dict[Side, Measurements]
) -> list[dict[str, Any]]:
    """Prompts, expected and given answers, and names of pictures in the run's `data/pictures`."""
    if "answers" not in measured["base"]:
        return []
    samples = []
    answered = _rows_to_answer(adapted, rows)[:_NUM_SAMPLES]
    for place, row in enumerate(answered):
        prompt = shown_text(row.messages[-2]["content"]) if len(row.messages) > 1 else ""
        answers = {side: measured[side]["answers"][place] for side in measured}
        samples.append({"prompt": prompt, "expected": expected_answer(adapted, row)} | answers)
        if pictures := pictures_of(row):
            samples[-1]["pictures"] = [Path(path).name for path in pictures]
    return samples


def _num_cut_prompts(adapted: AdaptedModel, rows: Sequence[Any]) -> int:
    to_answer = _rows_to_answer(adapted, rows)
    if adapted.num_places is None:
        return 0
    return sum(num_cut(adapted, row.messages[:-1], 1, row.tools) > 0 for row in to_answer)


# Forgetting


def _answers_questions(adapted: AdaptedModel) -> bool:
    return adapted.task_spec.task in ("causal-lm", "dpo", "kto", "image-text-to-text")


def _forgetting_score(
    adapted: AdaptedModel, batch: Batch, on_token: Callable[[], None] | None = None
) -> ForgettingScore | None:
    """How much the adapter changes answers to general questions; None if it answers none."""
    if not _answers_questions(adapted):
        return None
    turns = [[{"role": "user", "content": prompt}] for prompt in GENERAL_PROMPTS]
    sampling = Sampling(max_new_tokens=_GENERAL_TOKENS)
    answers = {}
    for side in SIDES:
        generate = functools.partial(answer, adapted, side, turns, sampling, on_token=on_token)
        answers[side] = batch(f"the {side} on general questions", 0, generate)
    results = []
    for number, (messages, text) in enumerate(zip(turns, answers["base"], strict=True)):
        compare = functools.partial(_kl_and_agreement, adapted, messages, text)
        results.append(batch("the difference on general questions", number, compare))
    divergence, agreeing, places = np.array(results, dtype=float).T
    scores = {
        "agreement": metrics.ratio(agreeing, places),
        "divergence": metrics.ratio(divergence, places),
    }
    points = {name: metrics.point(score, len(results)) for name, score in scores.items()}
    intervals = metrics.bootstrap_intervals(scores, len(results))
    return ForgettingScore(
        num_prompts=len(results),
        num_tokens=int(places.sum()),
        agreement=points["agreement"],
        agreement_interval=intervals["agreement"],
        divergence=points["divergence"],
        divergence_interval=intervals["divergence"],
        answers=[
            {"prompt": prompt} | {side: answers[side][number] for side in SIDES}
            for number, prompt in enumerate(GENERAL_PROMPTS)
        ],
    )


def _kl_and_agreement(
    adapted: AdaptedModel, messages: list[dict[str, Any]], text: str
) -> tuple[float, int, int]:
    """Compare the next-token distributions of both sides at the places of an answer.

    Returns:
        The sum of the adapter's KL divergences from the base, in nats; the number of places with
        the same most likely token; and the number of places.
    """
    prompt = fit_prompt(adapted, tokenize_prompt(adapted, messages), _GENERAL_TOKENS)
    text_ids = adapted.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    ids = torch.tensor([(prompt + text_ids)[: adapted.num_places]], device=adapted.model.device)
    log_shares = {}
    for side in SIDES:
        with torch.inference_mode(), use_side(adapted, side):
            logits = adapted.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        log_shares[side] = logits[0, len(prompt) - 1 :].float().log_softmax(-1)
    base, adapter = log_shares["base"], log_shares["adapter"]
    divergence = (base.exp() * (base - adapter)).sum()
    agreeing = (base.argmax(-1) == adapter.argmax(-1)).sum()
    return float(divergence), int(agreeing), len(base)
