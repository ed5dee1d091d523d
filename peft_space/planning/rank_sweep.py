"""Trains the same recipe briefly at several ranks, and compares their loss on held-out rows."""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

from peft_space.data.table import Data
from peft_space.errors import UserError
from peft_space.recipe import Recipe
from peft_space.runs.events import OnProgress, evaluations_of, no_progress, steps_of
from peft_space.runs.plan import read_plan
from peft_space.training.prepare import make_run
from peft_space.training.train import TrainOptions, train

RANKS = (2, 4, 8, 16, 32, 64)
MAX_STEPS = 60
"""Steps at each rank, unless the recipe has fewer."""
_MAX_RELATIVE_LOSS = 0.02
"""A lower rank is good enough if its loss exceeds the best one by less than this fraction,"""
_MAX_ABSOLUTE_LOSS = 0.01
"""or by less than this many nats, a hundredth of the perplexity."""


@dataclass(frozen=True)
class RankResult:
    """The result of one short training."""

    rank: int
    trainable_parameters: int
    loss: float
    """On held-out rows after the last step, in nats per token."""
    seconds: float


@dataclass(frozen=True)
class RankSweep:
    """The results by rank, ascending, and the lowest rank that is good `enough`."""

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
    """Train `recipe` at each of `ranks` for a few steps, with all else equal. Keeps no files.

    Args:
        data: the rows.
        recipe: the recipe; its rank is replaced.
        ranks: from 1 to 256.
        held_out: as in `prepare`.
        column_mapping: as in `prepare`.
        on_progress: is called with the progress.

    Raises:
        UserError: if a rank is out of range, no rows are held out, or a loss is not finite.
    """
    if not ranks or min(ranks) < 1 or max(ranks) > 256:
        raise UserError(
            "planning.rank_out_of_range", "Choose ranks from 1 to 256, such as 2, 8 and 32."
        )
    steps = min(recipe.max_steps or MAX_STEPS, MAX_STEPS)
    results, ascending = [], sorted(set(ranks))
    for number, rank in enumerate(ascending):
        progress = f"Training at rank {rank}, {number + 1} of {len(ascending)}"
        on_progress(number / len(ascending), progress)
        results.append(_train_at(_at_rank(recipe, rank, steps), data, held_out, column_mapping))
    return RankSweep(steps, results, lowest_good_rank(results))


def lowest_good_rank(results: list[RankResult]) -> int:
    """Return the lowest rank whose loss is about as good as the best one."""
    best = min(result.loss for result in results)
    limit = max(best * (1 + _MAX_RELATIVE_LOSS), best + _MAX_ABSOLUTE_LOSS)
    return next(result.rank for result in results if result.loss <= limit)


def _at_rank(recipe: Recipe, rank: int, steps: int) -> Recipe:
    reason = recipe.high_rank_reason or "A rank sweep measures whether so high a rank helps."
    changes = {"lora_rank": rank, "high_rank_reason": reason}
    changes |= dict.fromkeys(("max_steps", "eval_steps", "save_steps"), steps)
    return recipe.model_copy(update=changes)


def _train_at(
    recipe: Recipe, data: Data, held_out: Data | None, column_mapping: dict | None
) -> RankResult:
    with tempfile.TemporaryDirectory(prefix="peft_space-study-") as scratch:
        run = make_run(Path(scratch, "run"), data, recipe, held_out, column_mapping)
        with run.lock():
            train(run, TrainOptions(samples=False))
        history, plan = run.history(), read_plan(run)
    evaluations = evaluations_of(history)
    if not evaluations or plan is None:
        raise UserError(
            "training.no_held_out_rows",
            "A rank sweep needs held-out rows to compare on. "
            "Raise eval_split, or add a second file.",
        )
    loss = evaluations[-1].loss
    if not math.isfinite(loss):
        raise UserError(
            "planning.loss_not_finite",
            f"At rank {recipe.lora_rank} the loss is not a finite number. "
            "Lower the learning rate, and try again.",
        )
    seconds = sum(step.seconds for step in steps_of(history))
    return RankResult(recipe.lora_rank, plan.trainable_parameters, loss, seconds)
