"""The rank study: the same recipe trained briefly at several ranks, and what held-out rows say of each. Nothing of the trainings stays."""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

from peft_space.data.table import Data
from peft_space.errors import UserError
from peft_space.recipe import Recipe
from peft_space.runs.events import OnProgress, no_progress
from peft_space.runs.plan import read_plan
from peft_space.runs.status import evaluations_of, steps_of
from peft_space.training.prepare import make_run
from peft_space.training.train import train

RANKS = (2, 4, 8, 16, 32, 64)
SHORT_STEPS = 60
"""Steps at each rank, unless the recipe has fewer."""
_FLAT = 0.02
"""A lower rank is as good where its loss is above the best by less than this share,"""
_NEGLIGIBLE = 0.01
"""or by less than so many nats: that is a hundredth of the perplexity."""


@dataclass(frozen=True)
class RankResult:
    """What one short training came to."""

    rank: int
    trainable_parameters: int
    loss: float
    """On held-out rows after the last step, in nats a token."""
    seconds: float


@dataclass(frozen=True)
class RankSweep:
    """The trainings by rank, ascending, and the lowest rank that is as good as the best."""

    steps: int
    results: list[RankResult]
    enough: int


def rank_sweep(
    data: Data,
    recipe: Recipe,
    ranks: tuple[int, ...] = RANKS,
    held_out: Data | None = None,
    column_mapping: dict | None = None,
    on_progress: OnProgress = no_progress,
) -> RankSweep:
    """Train `recipe` at each of `ranks` for a few steps, everything else alike. Raises UserError where no rows are held out."""
    if not ranks or min(ranks) < 1 or max(ranks) > 256:
        raise UserError("todo", "Choose ranks from 1 to 256, such as 2, 8 and 32.")
    steps = min(recipe.max_steps or SHORT_STEPS, SHORT_STEPS)
    results = []
    for number, rank in enumerate(sorted(set(ranks))):
        on_progress(
            number / len(set(ranks)), f"Training at rank {rank}, {number + 1} of {len(set(ranks))}"
        )
        results.append(_at(rank, data, recipe, steps, held_out, column_mapping))
    return RankSweep(steps, results, enough_of(results))


def enough_of(results: list[RankResult]) -> int:
    """The lowest rank whose loss is as good as the best."""
    best = min(result.loss for result in results)
    return next(
        result.rank
        for result in results
        if result.loss <= max(best * (1 + _FLAT), best + _NEGLIGIBLE)
    )


def _at(
    rank: int,
    data: Data,
    recipe: Recipe,
    steps: int,
    held_out: Data | None,
    column_mapping: dict | None,
) -> RankResult:
    reason = recipe.high_rank_reason or "A rank study measures whether so high a rank is worth it."
    changed = {
        "lora_rank": rank,
        "high_rank_reason": reason,
        "max_steps": steps,
        "eval_steps": steps,
        "save_steps": steps,
    }
    with tempfile.TemporaryDirectory(prefix="peft_space-study-") as scratch:
        run = make_run(
            Path(scratch, "run"), data, recipe.model_copy(update=changed), held_out, column_mapping
        )
        with run.lock():
            train(run)
        happened, plan = run.history(), read_plan(run)
        evaluations = evaluations_of(happened)
        if not evaluations or plan is None:
            raise UserError(
                "todo",
                "A rank study needs held-out rows to compare on. Raise eval_split, or bring a second file.",
            )
        loss = evaluations[-1].loss
        if not math.isfinite(loss):
            raise UserError(
                "todo",
                f"At rank {rank} the loss is no longer a number. Lower the learning rate, and try again.",
            )
        return RankResult(
            rank, plan.trainable_parameters, loss, sum(step.seconds for step in steps_of(happened))
        )
