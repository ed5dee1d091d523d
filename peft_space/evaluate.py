"""Scores both columns on the rows that were held out from training: whether answers, labels or preferences are right, and the loss."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from peft_space.compare import Column, Sampling, answer, only
from peft_space.data.check import data_of
from peft_space.data.example import MASKED, Example
from peft_space.data.render import render
from peft_space.data.rows import Conversation, Labelled
from peft_space.errors import UserError
from peft_space.events import OnProgress, quietly
from peft_space.models.load import Adapted
from peft_space.run import Run
from peft_space.scores import Evaluation, Scores, macro_f1, write_scores
from peft_space.training.tasks import collate, collate_pairs, collator_of

_BATCH = 8
_MOST_ROWS = 500
"""Held-out rows that are scored, evenly drawn where there are more."""


def evaluate(run: Run, adapted: Adapted, on_progress: OnProgress = quietly) -> Evaluation:
    """Score both columns and keep the result in the run. Raises UserError where no row was held out."""
    held_out, examples = _held_out(run, adapted)
    columns: list[Scores] = []
    for number, column in enumerate(("base", "adapter")):
        on_progress(number / 2, f"Scoring the {column} on {len(held_out)} rows")
        columns.append(_scores(adapted, column, held_out, examples, run.recipe.preference_beta))  # type: ignore[arg-type]
    result = Evaluation(len(held_out), *columns)
    write_scores(run, result)
    return result


def held_out_loss(run: Run, adapted: Adapted) -> float:
    """The adapter's loss alone, as `evaluate` measures it, and nothing is kept. Raises UserError where no row was held out."""
    _, examples = _held_out(run, adapted)
    if adapted.goal.task in ("causal-lm", "seq2seq-lm"):
        return mean_loss(adapted, "adapter", examples)
    return _scores(adapted, "adapter", [], examples, run.recipe.preference_beta).loss


def _held_out(run: Run, adapted: Adapted) -> tuple[list[Any], list[Example]]:
    """The held-out rows that are scored, and those of them that have something to score, rendered."""
    held_out = _known(data_of(run).held_out, adapted)
    if not held_out:
        raise UserError(f"The run {run.name!r} has no held-out rows to score on. Train it again with held_out_share above 0.")
    recipe, task = run.recipe, adapted.goal.task
    rendered = render(adapted.tokenizer, held_out, recipe.max_length, recipe.loss_on, task, with_texts=False)
    examples = [example for example in rendered if example.num_trained]
    if not examples:
        raise UserError(f"At {run.recipe.max_length} tokens every held-out answer is cut off. Train again with a larger max_length.")
    return held_out, examples


def _known(held_out: Any, adapted: Adapted) -> list[Any]:
    """At most so many rows, evenly drawn; not those of a label that was never trained."""
    rows = [held_out[int(at)] for at in np.linspace(0, len(held_out) - 1, min(len(held_out), _MOST_ROWS))]
    return [row for row in rows if not isinstance(row, Labelled) or row.label in adapted.goal.labels]


def _scores(adapted: Adapted, column: Column, rows: Sequence[Any], examples: Sequence[Example], beta: float) -> Scores:
    match adapted.goal.task:
        case "sequence-classification" | "token-classification":
            return _of_labels(adapted, column, examples)
        case "dpo":
            return _of_preferences(adapted, column, examples, beta)
        case "kto":
            return _of_ratings(adapted, column, examples, beta)
    answered = [row for row in rows if isinstance(row, Conversation)]
    loss = mean_loss(adapted, column, examples)
    return Scores(loss, math.exp(min(loss, 700)), _exact_match(adapted, column, answered) if answered else None)


def mean_loss(adapted: Adapted, column: Column, examples: Sequence[Example]) -> float:
    """Mean negative log likelihood, in nats, of the tokens that `examples` train."""
    return -float(log_likelihoods(adapted, column, examples).sum()) / sum(example.num_trained for example in examples)


def log_likelihoods(adapted: Adapted, column: Column, examples: Sequence[Example]) -> np.ndarray:
    """Of each example the log-probability, in nats, of the tokens that it trains, (N,)."""
    pairs = adapted.goal.task == "seq2seq-lm"
    together = collate_pairs if pairs else collate
    sums: list[float] = []
    for batch, logits in _logits(adapted, column, examples, lambda some: together(some, adapted.tokenizer.pad_token_id)):
        labels = batch["labels"] if pairs else batch["labels"][:, 1:]
        aligned = (logits if pairs else logits[:, :-1]).float()
        losses = torch.nn.functional.cross_entropy(aligned.transpose(1, 2), labels, ignore_index=MASKED, reduction="none")
        sums += (-losses.sum(1)).tolist()
    return np.array(sums)


def _logits(adapted: Adapted, column: Column, examples: Sequence[Example], together: Callable[[Sequence[Example]], Any]) -> Any:
    """(batch, logits) of all examples in order."""
    for start in range(0, len(examples), _BATCH):
        batch = {key: value.to(adapted.model.device) for key, value in together(examples[start : start + _BATCH]).items()}
        given = batch if adapted.goal.task == "seq2seq-lm" else {key: value for key, value in batch.items() if key != "labels"}
        with torch.inference_mode(), only(adapted, column):
            yield batch, adapted.model(**given).logits


def _exact_match(adapted: Adapted, column: Column, rows: Sequence[Conversation]) -> float:
    wanted = [row.messages[-1]["content"].strip() for row in rows]
    longest = max(len(ids) for ids in adapted.tokenizer(wanted)["input_ids"])
    sampling = Sampling(max_new_tokens=min(4096, longest + 8))
    given = answer(adapted, column, [row.messages[:-1] for row in rows], sampling, expected=wanted, tools=[row.tools for row in rows])
    return sum(map(operator.eq, given, wanted)) / len(rows)


def _of_labels(adapted: Adapted, column: Column, examples: Sequence[Example]) -> Scores:
    guesses, wanted, losses = [], [], []
    for batch, logits in _logits(adapted, column, examples, collator_of(adapted.goal, adapted.tokenizer.pad_token_id)):
        counted = batch["labels"] != MASKED
        labels, chosen = batch["labels"][counted], logits[counted].float()
        losses += torch.nn.functional.cross_entropy(chosen, labels, reduction="none").tolist()
        guesses += chosen.argmax(-1).tolist()
        wanted += labels.tolist()
    guessed, right = np.array(guesses), np.array(wanted)
    return Scores(float(np.mean(losses)), accuracy=float((guessed == right).mean()), macro_f1=macro_f1(guessed, right))


def _of_preferences(adapted: Adapted, column: Column, examples: Sequence[Example], beta: float) -> Scores:
    rejected = [example.rejected for example in examples if example.rejected]
    better, worse = (log_likelihoods(adapted, column, some) for some in (examples, rejected))
    base_better, base_worse = (log_likelihoods(adapted, "base", some) for some in (examples, rejected))
    lengths, worse_lengths = (np.array([_num_tokens(example) for example in some]) for some in (examples, rejected))
    return Scores(
        loss=float(-better.sum() / lengths.sum()),
        preferred=float((better / lengths > worse / worse_lengths).mean()),
        margin=float(beta * ((better - base_better) - (worse - base_worse)).mean()),
    )


def _of_ratings(adapted: Adapted, column: Column, examples: Sequence[Example], beta: float) -> Scores:
    sums, base_sums = (log_likelihoods(adapted, one, examples) for one in (column, "base"))  # type: ignore[arg-type]
    good = np.array([bool(example.good) for example in examples])
    rewards = beta * (sums - base_sums)
    lengths = np.array([_num_tokens(example) for example in examples])
    margin = float(rewards[good].mean() - rewards[~good].mean()) if good.any() and not good.all() else None
    liked = good if good.any() else ~good
    return Scores(loss=float(-sums[liked].sum() / lengths[liked].sum()), margin=margin)


def _num_tokens(example: Example) -> int:
    return sum(end - start for start, end in example.trained)
