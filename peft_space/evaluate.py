"""Scores both columns on the rows that were held out from training: exact match of greedy answers, and loss of the trained tokens."""

import math
import operator
from collections.abc import Sequence

import torch

from peft_space.compare import Column, Sampling, answer, only
from peft_space.data.check import data_of
from peft_space.data.render import MASKED, Example, render
from peft_space.data.shapes import Conversation
from peft_space.errors import UserError
from peft_space.events import OnProgress, quietly
from peft_space.models.load import Adapted
from peft_space.run import Run
from peft_space.scores import Evaluation, Scores, write_scores
from peft_space.training.tasks import collate

_BATCH = 8


def evaluate(run: Run, adapted: Adapted, on_progress: OnProgress = quietly) -> Evaluation:
    """Score both columns and keep the result in the run. Raises UserError where no row was held out."""
    held_out = data_of(run).held_out
    if not held_out:
        raise UserError(f"The run {run.name!r} has no held-out rows to score on. Train it again with held_out_share above 0.")
    examples = [example for example in render(adapted.tokenizer, held_out, run.recipe.max_length) if example.num_trained]
    if not examples:
        raise UserError(f"At {run.recipe.max_length} tokens every held-out answer is cut off. Train again with a larger max_length.")
    longest_answer = max(len(adapted.tokenizer(row.messages[-1]["content"])["input_ids"]) for row in held_out)
    columns: list[Scores] = []
    for number, column in enumerate(("base", "adapter")):
        on_progress(number / 2, f"Scoring the {column} on {len(held_out)} rows")
        exact = _exact_match(adapted, column, held_out, longest_answer + 8)  # type: ignore[arg-type]
        loss = mean_loss(adapted, column, examples)  # type: ignore[arg-type]
        columns.append(Scores(exact, loss, math.exp(min(loss, 700))))
    result = Evaluation(len(held_out), *columns)
    write_scores(run, result)
    return result


def mean_loss(adapted: Adapted, column: Column, examples: Sequence[Example]) -> float:
    """Mean negative log likelihood, in nats, of the tokens that `examples` train."""
    total, count = 0.0, 0
    for start in range(0, len(examples), _BATCH):
        batch = {
            key: value.to(adapted.model.device)
            for key, value in collate(examples[start : start + _BATCH], adapted.tokenizer.pad_token_id).items()
        }
        labels = batch.pop("labels")[:, 1:]
        with torch.inference_mode(), only(adapted, column):
            logits = adapted.model(**batch).logits[:, :-1].float()
        total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=MASKED, reduction="sum").item()
        count += int((labels != MASKED).sum())
    return total / count


def _exact_match(adapted: Adapted, column: Column, rows: Sequence[Conversation], max_new_tokens: int) -> float:
    wanted = [row.messages[-1]["content"].strip() for row in rows]
    given = answer(adapted, column, [row.messages[:-1] for row in rows], Sampling(max_new_tokens=max_new_tokens), expected=wanted)
    return sum(map(operator.eq, given, wanted)) / len(rows)
