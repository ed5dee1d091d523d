"""Scores both columns on the rows that were held out from training: whether answers, labels or preferences are right, how sure that is, and the loss."""

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from peft_space.data.arrow_store import MASKED, TokenizedExample
from peft_space.data.batches import collate, collate_pairs, collator_of
from peft_space.data.dataset import load_run_data
from peft_space.data.records import Conversation, TextClassification
from peft_space.data.tokenization.render import prompt_ids, render
from peft_space.errors import UserError
from peft_space.evaluation import bootstrap, metrics
from peft_space.evaluation.base_check import SIDES, Side, check, use_side
from peft_space.evaluation.compare import Sampling, answer
from peft_space.evaluation.forgetting_prompts import GENERAL_PROMPTS
from peft_space.evaluation.metrics import Statistic
from peft_space.evaluation.results import (
    Evaluation,
    ForgettingScore,
    Interval,
    Scores,
    write_scores,
)
from peft_space.evaluation.resumable import ResumableBatches, key_of
from peft_space.models.architecture import CLASSIFYING
from peft_space.models.loading import AdaptedModel
from peft_space.runs.events import OnProgress, no_progress
from peft_space.runs.run import Run

_BATCH = 8
_ANSWERED_AT_ONCE = 16
_MOST_ROWS = 500
"""Held-out rows that are scored, evenly drawn where there are more."""
_MOST_COUNTED = 10_000
"""Trained rows that the commonest label is counted in, evenly drawn where there are more."""
_GENERAL_TOKENS = 32
_SAMPLES = 5
_MOST_CONFUSED = 60
"""Labels of a confusion matrix that is kept."""
_METHOD = 1
"""Raised when something is measured differently than before, so that what was kept is measured anew."""

Batch = Callable[[str, int, Callable[[], Any]], Any]
"""Called with a part of the scoring, the number of a batch in it and what measures it: the batch's results, one for each of its rows."""
Measured = dict[str, list[Any]]
"""What one column gave for each row, by kind."""


def evaluate(run: Run, adapted: AdaptedModel, on_progress: OnProgress = no_progress) -> Evaluation:
    """Score both columns and keep the result in the run; go on where it was interrupted. Raises UserError where no row was held out."""
    held_out, examples = _held_out(run, adapted)
    checked = check(adapted)
    batches = _num_batches(adapted, held_out, examples)
    done = iter(range(batches))
    told = (0.0, "")

    def on_batch(part: str) -> None:
        nonlocal told
        told = (next(done) / batches, f"Scoring {part}")
        on_progress(*told)

    def on_token() -> (
        None
    ):  # a batch of long answers can take minutes, in which who is told may want it to end
        on_progress(*told)

    scoring = ResumableBatches(run, _key(run, adapted, held_out, examples), on_batch)
    measured = {
        column: _measured(adapted, column, held_out, examples, scoring.batch, on_token)
        for column in SIDES
    }
    scores = {
        column: _statistics(
            adapted, held_out, examples, measured[column], measured["base"], run.recipe
        )
        for column in SIDES
    }
    result = Evaluation(
        num_rows=len(held_out),
        base=_points(scores["base"]),
        adapter=_points(scores["adapter"]),
        intervals=_intervals(scores),
        confusion=_confusion(adapted, examples, measured),
        majority=_majority(run, adapted, examples),
        general=_forgetting_score(adapted, scoring.batch, on_token),
        samples=_samples(held_out, measured),
        fairness=checked.in_words(),
    )
    write_scores(run, result)
    scoring.done()
    return result


def held_out_loss(run: Run, adapted: AdaptedModel) -> float:
    """The adapter's loss alone, as `evaluate` measures it, and nothing is kept. Raises UserError where no row was held out."""
    _, examples = _held_out(run, adapted)
    found = _measured(adapted, "adapter", [], examples, lambda part, number, measure: measure())
    return bootstrap.point(*_statistics(adapted, [], examples, found, found, run.recipe)["loss"])


def _held_out(run: Run, adapted: AdaptedModel) -> tuple[list[Any], list[TokenizedExample]]:
    """The held-out rows that are scored, and those of them that have something to score, rendered."""
    held_out = _known(load_run_data(run).held_out, adapted)
    if not held_out:
        raise UserError(
            "todo",
            f"The run {run.name!r} has no held-out rows to score on. Train it again with eval_split above 0.",
        )
    recipe, task = run.recipe, adapted.goal.task
    rendered = render(
        adapted.tokenizer, held_out, recipe.max_length, recipe.train_on, task, with_texts=False
    )
    examples = [example for example in rendered if example.num_trained]
    if not examples:
        raise UserError(
            "todo",
            f"At {run.recipe.max_length} tokens every held-out answer is cut off. Train again with a larger max_length.",
        )
    return held_out, examples


def _known(held_out: Any, adapted: AdaptedModel) -> list[Any]:
    """At most so many rows, evenly drawn; not those of a label that was never trained."""
    rows = [held_out[at] for at in _evenly(len(held_out), _MOST_ROWS)]
    return [
        row
        for row in rows
        if not isinstance(row, TextClassification) or row.label in adapted.goal.labels
    ]


def _evenly(count: int, most: int) -> list[int]:
    return [int(at) for at in np.linspace(0, count - 1, min(count, most))]


def _key(
    run: Run, adapted: AdaptedModel, rows: Sequence[Any], examples: Sequence[TokenizedExample]
) -> str:
    """Names all that decides what is measured."""
    return key_of(
        run,
        _METHOD,
        rows,
        examples,
        run.recipe,
        adapted.goal,
        str(adapted.model.device),
        adapted.model.dtype,
    )


def _num_batches(
    adapted: AdaptedModel, rows: Sequence[Any], examples: Sequence[TokenizedExample]
) -> int:
    answered = math.ceil(len(_answered(adapted, rows)) / _ANSWERED_AT_ONCE)
    rejected = math.ceil(sum(example.rejected is not None for example in examples) / _BATCH)
    general = 2 + len(GENERAL_PROMPTS) if _answers_generally(adapted) else 0
    return 2 * (math.ceil(len(examples) / _BATCH) + rejected + answered) + general


def _in_batches(
    batch: Batch,
    part: str,
    items: Sequence[Any],
    size: int,
    measure: Callable[[Sequence[Any]], list[Any]],
) -> list[Any]:
    starts = range(0, len(items), size)
    return [
        found
        for start in starts
        for found in batch(
            part, start // size, functools.partial(measure, items[start : start + size])
        )
    ]


def _measured(
    adapted: AdaptedModel,
    column: Side,
    rows: Sequence[Any],
    examples: Sequence[TokenizedExample],
    batch: Batch,
    on_token: Callable[[], None] | None = None,
) -> Measured:
    """What one column makes of the rows."""
    if adapted.goal.task in CLASSIFYING:
        return {
            "labels": _in_batches(
                batch,
                f"the {column}",
                examples,
                _BATCH,
                lambda some: _predicted_labels(adapted, column, some),
            )
        }

    def likelihoods(some: Sequence[TokenizedExample]) -> list[float]:
        return log_likelihoods(adapted, column, some).tolist()

    found: Measured = {
        "likelihoods": _in_batches(batch, f"the {column}", examples, _BATCH, likelihoods)
    }
    if adapted.goal.task == "dpo":
        rejected = [example.rejected for example in examples if example.rejected]
        found["rejected"] = _in_batches(
            batch, f"the {column} on the worse answers", rejected, _BATCH, likelihoods
        )
    if answered := _answered(adapted, rows):
        # those of like length together, so that few wait for one that is long
        limits = _limits(adapted, answered)
        order = sorted(range(len(answered)), key=limits.__getitem__)

        def answers(places: Sequence[int]) -> list[str]:
            some, most = [answered[at] for at in places], [limits[at] for at in places]
            turns, tools = [row.messages[:-1] for row in some], [row.tools for row in some]
            return answer(
                adapted,
                column,
                turns,
                Sampling(max_new_tokens=max(most)),
                tools=tools,
                limits=most,
                on_token=on_token,
            )

        given = _in_batches(batch, f"the {column}'s answers", order, _ANSWERED_AT_ONCE, answers)
        found["answers"] = [text for _, text in sorted(zip(order, given, strict=True))]
    return found


def _answered(adapted: AdaptedModel, rows: Sequence[Any]) -> list[Conversation]:
    """The rows that are answered for their score."""
    return (
        [row for row in rows if isinstance(row, Conversation)]
        if adapted.goal.task in ("causal-lm", "seq2seq-lm")
        else []
    )


def _limits(adapted: AdaptedModel, rows: Sequence[Conversation]) -> list[int]:
    """How many tokens each answer may have: twice as many as the row's own. What comes after makes a wrong answer no less wrong."""
    wanted = [row.messages[-1]["content"].strip() for row in rows]
    return [
        min(4096, 2 * len(ids) + 8)
        for ids in adapted.tokenizer(wanted, add_special_tokens=False)["input_ids"]
    ]


def _statistics(
    adapted: AdaptedModel,
    rows: Sequence[Any],
    examples: Sequence[TokenizedExample],
    found: Measured,
    base: Measured,
    recipe: Any,
) -> dict[str, tuple[Statistic, int]]:
    """Each score of the task as something to be asked of any sample of its rows, and how many there are."""
    match adapted.goal.task:
        case "sequence-classification" | "token-classification":
            scores = _of_labels(adapted, examples, found)
        case "dpo":
            scores = _of_preferences(examples, found, base, recipe.beta)
        case "kto":
            scores = _of_ratings(examples, found, base, recipe.beta)
        case _:
            loss = metrics.ratio(
                -np.array(found["likelihoods"]),
                np.array([example.num_trained for example in examples]),
            )
            scores = {
                "loss": loss,
                "perplexity": lambda counts: np.exp(np.minimum(loss(counts), 700)),
            }
    counted = {name: (score, len(examples)) for name, score in scores.items()}
    if "answers" in found:
        wanted = [row.messages[-1]["content"].strip() for row in _answered(adapted, rows)]
        pairs = list(zip(found["answers"], wanted, strict=True))
        for name, score in (
            ("exact_match", str.__eq__),
            ("chrf", metrics.chrf),
            ("rouge_l", metrics.rouge_l),
        ):
            counted[name] = (metrics.mean([float(score(*pair)) for pair in pairs]), len(pairs))
    return counted


def _points(scores: dict[str, tuple[Statistic, int]]) -> Scores:
    found = {name: bootstrap.point(*score) for name, score in scores.items()}
    return Scores(**{name: value for name, value in found.items() if not math.isnan(value)})


def _intervals(
    scores: dict[Side, dict[str, tuple[Statistic, int]]],
) -> dict[str, dict[str, Interval]]:
    found: dict[str, dict[str, Interval]] = {"base": {}, "adapter": {}, "difference": {}}
    for name, (base, num_rows) in scores["base"].items():
        adapter = scores["adapter"][name][0]
        asked = {
            "base": base,
            "adapter": adapter,
            "difference": lambda counts, one=base, other=adapter: other(counts) - one(counts),
        }
        for kind, interval in bootstrap.intervals(asked, num_rows).items():
            found[kind][name] = interval
    return found


def mean_loss(adapted: AdaptedModel, column: Side, examples: Sequence[TokenizedExample]) -> float:
    """Mean negative log likelihood, in nats, of the tokens that `examples` train."""
    return -float(log_likelihoods(adapted, column, examples).sum()) / sum(
        example.num_trained for example in examples
    )


def log_likelihoods(
    adapted: AdaptedModel, column: Side, examples: Sequence[TokenizedExample]
) -> np.ndarray:
    """Of each example the log-probability, in nats, of the tokens that it trains, (N,)."""
    pairs = adapted.goal.task == "seq2seq-lm"
    together = collate_pairs if pairs else collate
    sums: list[float] = []
    for batch, logits in _logits(
        adapted, column, examples, lambda some: together(some, adapted.tokenizer.pad_token_id)
    ):
        labels = batch["labels"] if pairs else batch["labels"][:, 1:]
        aligned = (logits if pairs else logits[:, :-1]).float()
        losses = torch.nn.functional.cross_entropy(
            aligned.transpose(1, 2), labels, ignore_index=MASKED, reduction="none"
        )
        sums += (-losses.sum(1)).tolist()
    return np.array(sums)


def _logits(
    adapted: AdaptedModel,
    column: Side,
    examples: Sequence[TokenizedExample],
    together: Callable[[Sequence[TokenizedExample]], Any],
) -> Any:
    """(batch, logits) of all examples in order."""
    for start in range(0, len(examples), _BATCH):
        batch = {
            key: value.to(adapted.model.device)
            for key, value in together(examples[start : start + _BATCH]).items()
        }
        given = (
            batch
            if adapted.goal.task == "seq2seq-lm"
            else {key: value for key, value in batch.items() if key != "labels"}
        )
        with torch.inference_mode(), use_side(adapted, column):
            yield batch, adapted.model(**given).logits


def _predicted_labels(
    adapted: AdaptedModel, column: Side, examples: Sequence[TokenizedExample]
) -> list[tuple[list[int], list[int], float]]:
    """Of each example its likeliest labels, as places, those that are right, and the sum of their losses in nats."""
    found = []
    for batch, logits in _logits(
        adapted, column, examples, collator_of(adapted.goal, adapted.tokenizer.pad_token_id)
    ):
        for labels, chances in zip(batch["labels"], logits.float(), strict=True):
            counted = labels.reshape(-1) != MASKED
            right, chosen = labels.reshape(-1)[counted], chances.reshape(len(counted), -1)[counted]
            loss = torch.nn.functional.cross_entropy(chosen, right, reduction="sum")
            found.append((chosen.argmax(-1).tolist(), right.tolist(), loss.item()))
    return found


def _of_labels(
    adapted: AdaptedModel, examples: Sequence[TokenizedExample], found: Measured
) -> dict[str, Statistic]:
    guesses, wanted, losses = zip(*found["labels"], strict=True)
    sizes = np.array([len(right) for right in wanted])
    every_guess, every_label = (
        np.concatenate([np.array(one, dtype=int) for one in some]) for some in (guesses, wanted)
    )
    row = np.repeat(np.arange(len(sizes)), sizes)
    right = np.bincount(row, every_guess == every_label, len(sizes))
    labels = adapted.goal.labels
    scores = {
        "loss": metrics.ratio(np.array(losses), sizes),
        "accuracy": metrics.ratio(right, sizes),
        "macro_f1": metrics.macro_f1_of_rows(row, every_guess, every_label, len(labels)),
    }
    if adapted.goal.task == "token-classification" and metrics.are_entities(labels):
        pairs = [
            [metrics.entities([labels[at] for at in one]) for one in pair]
            for pair in zip(guesses, wanted, strict=True)
        ]
        counts = np.array([(len(given & right), len(given), len(right)) for given, right in pairs])
        scores["entity_f1"] = metrics.f1(*counts.T)
    return scores


def _of_preferences(
    examples: Sequence[TokenizedExample], found: Measured, base: Measured, beta: float
) -> dict[str, Statistic]:
    better, worse, base_better, base_worse = (
        np.array(some[kind]) for some in (found, base) for kind in ("likelihoods", "rejected")
    )  # fmt: skip
    lengths = np.array([_num_tokens(example) for example in examples])
    worse_lengths = np.array(
        [_num_tokens(example.rejected) for example in examples if example.rejected]
    )
    return {
        "loss": metrics.ratio(-better, lengths),
        "preferred": metrics.mean(better / lengths > worse / worse_lengths),
        "margin": metrics.mean(beta * ((better - base_better) - (worse - base_worse))),
    }


def _of_ratings(
    examples: Sequence[TokenizedExample], found: Measured, base: Measured, beta: float
) -> dict[str, Statistic]:
    sums = np.array(found["likelihoods"])
    good = np.array([float(bool(example.good)) for example in examples])
    rewards = beta * (sums - np.array(base["likelihoods"]))
    lengths = np.array([_num_tokens(example) for example in examples])
    liked = good if good.any() else 1 - good
    of_good, of_others = (
        metrics.ratio(rewards * good, good),
        metrics.ratio(rewards * (1 - good), 1 - good),
    )
    return {
        "loss": metrics.ratio(-sums * liked, lengths * liked),
        "margin": lambda counts: of_good(counts) - of_others(counts),
    }


def _num_tokens(example: TokenizedExample) -> int:
    return sum(end - start for start, end in example.trained)


def _confusion(
    adapted: AdaptedModel, examples: Sequence[TokenizedExample], measured: dict[Side, Measured]
) -> dict[str, Any] | None:
    labels = adapted.goal.labels
    if not 0 < len(labels) <= _MOST_CONFUSED:
        return None
    tables: dict[str, Any] = {"labels": list(labels)}
    for column, found in measured.items():
        guesses, wanted = (
            np.array([at for row in found["labels"] for at in row[side]], dtype=int)
            for side in (0, 1)
        )
        tables[column] = metrics.confusion(guesses, wanted, len(labels)).tolist()
    return tables


def commonest_label(run: Run) -> str:
    """The commonest label, or tag, of the trained rows."""
    trained = load_run_data(run).train
    rows = (trained[at] for at in _evenly(len(trained), _MOST_COUNTED))
    counted = Counter(
        label
        for row in rows
        for label in ([row.label] if isinstance(row, TextClassification) else row.tags)
    )  # type: ignore[union-attr]
    return counted.most_common(1)[0][0]


def _majority(
    run: Run, adapted: AdaptedModel, examples: Sequence[TokenizedExample]
) -> dict[str, Any] | None:
    """The commonest label, or tag, and how much of what is scored it is."""
    if adapted.goal.task not in CLASSIFYING:
        return None
    label = commonest_label(run)
    scored = [
        one
        for example in examples
        for one in ([example.label] if example.label is not None else filter(None, example.tags))
    ]
    return {"label": label, "share": scored.count(label) / len(scored)}


def _samples(rows: Sequence[Any], measured: dict[Side, Measured]) -> list[dict[str, str]]:
    if "answers" not in measured["base"]:
        return []
    answered = [row for row in rows if isinstance(row, Conversation)][:_SAMPLES]
    return [
        {
            "prompt": row.messages[-2]["content"] if len(row.messages) > 1 else "",
            "expected": row.messages[-1]["content"],
        }
        | {column: found["answers"][at] for column, found in measured.items()}
        for at, row in enumerate(answered)
    ]


def _answers_generally(adapted: AdaptedModel) -> bool:
    return adapted.goal.task in ("causal-lm", "dpo", "kto")


def _forgetting_score(
    adapted: AdaptedModel, batch: Batch, on_token: Callable[[], None] | None = None
) -> ForgettingScore | None:
    """How far the adapter is from the base on questions that have nothing to do with the training; of models that answer questions."""
    if not _answers_generally(adapted):
        return None
    turns = [[{"role": "user", "content": prompt}] for prompt in GENERAL_PROMPTS]
    sampling = Sampling(max_new_tokens=_GENERAL_TOKENS)
    answers = {
        column: batch(
            f"the {column} on general questions",
            0,
            functools.partial(answer, adapted, column, turns, sampling, on_token=on_token),
        )
        for column in SIDES
    }
    pairs = list(zip(turns, answers["base"], strict=True))
    apart = _in_batches(
        batch,
        "how far they are apart there",
        pairs,
        1,
        lambda some: [_kl_and_agreement(adapted, *some[0])],
    )
    divergence, agreeing, places = np.array(apart, dtype=float).T
    scores = {
        "agreement": metrics.ratio(agreeing, places),
        "divergence": metrics.ratio(divergence, places),
    }
    ends = bootstrap.intervals(scores, len(apart))
    return ForgettingScore(
        len(apart), int(places.sum()), bootstrap.point(scores["agreement"], len(apart)), ends["agreement"],
        bootstrap.point(scores["divergence"], len(apart)), ends["divergence"],
        [{"prompt": prompt} | {column: answers[column][at] for column in SIDES} for at, prompt in enumerate(GENERAL_PROMPTS)],
    )  # fmt: skip


def _kl_and_agreement(
    adapted: AdaptedModel, turns: list[dict[str, Any]], said: str
) -> tuple[float, int, int]:
    """Over the places of an answer: the sum of the divergences of adapter from base in nats, where the likeliest token is the same, and how many."""
    asked = prompt_ids(adapted.tokenizer, turns)
    told = adapted.tokenizer(said, add_special_tokens=False)["input_ids"] if said else []
    ids = torch.tensor([asked + told], device=adapted.model.device)
    chances = {}
    for column in SIDES:
        with torch.inference_mode(), use_side(adapted, column):
            logits = adapted.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[
                0, len(asked) - 1 :
            ]
        chances[column] = logits.float().log_softmax(-1)
    base, tuned = chances["base"], chances["adapter"]
    divergence = (base.exp() * (base - tuned)).sum()
    return float(divergence), int((base.argmax(-1) == tuned.argmax(-1)).sum()), len(base)
