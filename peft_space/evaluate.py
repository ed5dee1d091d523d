"""Scores both columns on the rows that were held out from training: exact match of greedy answers, and loss of the trained tokens."""

import math
import operator
from collections.abc import Sequence

import numpy as np
import torch

from peft_space.compare import Column, Sampling, answer, only
from peft_space.data.check import data_of
from peft_space.data.render import MASKED, Example, render
from peft_space.data.rows import Conversation
from peft_space.errors import UserError
from peft_space.events import OnProgress, quietly
from peft_space.models.load import Adapted
from peft_space.run import Run
from peft_space.scores import Evaluation, Scores, write_scores
from peft_space.training.tasks import collate

_BATCH = 8
_MOST_ROWS = 500
"""Held-out rows that are scored, evenly drawn where there are more."""


def evaluate(run: Run, adapted: Adapted, on_progress: OnProgress = quietly) -> Evaluation:
    """Score both columns and keep the result in the run. Raises UserError where no row was held out."""
    held_out = data_of(run).held_out
    if not held_out:
        raise UserError(f"The run {run.name!r} has no held-out rows to score on. Train it again with held_out_share above 0.")
    held_out = [held_out[int(at)] for at in np.linspace(0, len(held_out) - 1, min(len(held_out), _MOST_ROWS))]
    rendered = render(adapted.tokenizer, held_out, run.recipe.max_length, run.recipe.loss_on, with_texts=False)
    examples = [example for example in rendered if example.num_trained]
    if not examples:
        raise UserError(f"At {run.recipe.max_length} tokens every held-out answer is cut off. Train again with a larger max_length.")
    answered = [row for row in held_out if isinstance(row, Conversation)]
    columns: list[Scores] = []
    for number, column in enumerate(("base", "adapter")):
        on_progress(number / 2, f"Scoring the {column} on {len(held_out)} rows")
        exact = _exact_match(adapted, column, answered) if answered else None  # type: ignore[arg-type]
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


def _exact_match(adapted: Adapted, column: Column, rows: Sequence[Conversation]) -> float:
    wanted = [row.messages[-1]["content"].strip() for row in rows]
    longest = max(len(ids) for ids in adapted.tokenizer(wanted)["input_ids"])
    sampling = Sampling(max_new_tokens=min(4096, longest + 8))
    given = answer(adapted, column, [row.messages[:-1] for row in rows], sampling, expected=wanted, tools=[row.tools for row in rows])
    return sum(map(operator.eq, given, wanted)) / len(rows)
