"""Groups rows of similar length in a step, so that less padding is computed."""

from collections.abc import Iterator

import numpy as np
import torch

from peft_space.recipe import Recipe, Task

MIN_SAVING = 0.2
"""Minimum share of tokens that grouping must save, because it makes the order less random."""
_POOL_STEPS = 50
"""Steps whose rows are drawn at random, then sorted, as in transformers' LengthGroupedSampler."""


class ByLength(torch.utils.data.Sampler[int]):
    """Yields indices of rows so that the rows of a step have similar lengths, in random step order.

    The order depends only on seed and epoch, so a resumed training continues it. The rows of a step
    are the same for every batch size.

    Args:
        lengths: tokens (N,) of each row.
        rows_a_step: rows of an optimizer step.
        seed: of the random order.
    """

    def __init__(self, lengths: np.ndarray, rows_a_step: int, seed: int):
        self.lengths, self.rows_a_step, self.seed = lengths, rows_a_step, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Trainer at the start of each epoch, and when resuming."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        draw = np.random.default_rng([self.seed, self.epoch])
        order = draw.permutation(len(self.lengths))
        whole = len(order) // self.rows_a_step * self.rows_a_step
        pool = _POOL_STEPS * self.rows_a_step
        pools = np.split(order[:whole], range(pool, whole, pool))
        by_length = np.concatenate(
            [pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools]
        )
        steps = draw.permutation(by_length.reshape(-1, self.rows_a_step))
        yield from [*steps.reshape(-1).tolist(), *order[whole:].tolist()]


def padded_tokens(lengths: np.ndarray, batch_size: int, rows_a_step: int | None = None) -> float:
    """Return the average tokens per row in batches that are padded to their longest row.

    Args:
        lengths: tokens (N,) of each row.
        batch_size: rows of a batch.
        rows_a_step: rows of a step, if rows are grouped by length; None if they are shuffled.
    """
    if not len(lengths):
        return 0.0
    order = (
        list(ByLength(lengths, rows_a_step, 0))
        if rows_a_step
        else np.random.default_rng(0).permutation(len(lengths))
    )
    batches = np.split(lengths[order], range(batch_size, len(lengths), batch_size))
    return sum(int(batch.max()) * len(batch) for batch in batches) / len(lengths)


def saved_by_length(lengths: np.ndarray, recipe: Recipe, task: Task) -> float:
    """Return the share of the tokens that grouping saves; 0 for TRL's own row order."""
    if task in ("dpo", "kto") or not len(lengths):
        return 0.0
    rows_a_step = recipe.batch_size * recipe.gradient_accumulation_steps
    return 1 - padded_tokens(lengths, recipe.batch_size, rows_a_step) / padded_tokens(
        lengths, recipe.batch_size
    )


def goes_by_length(lengths: np.ndarray, recipe: Recipe, task: Task) -> bool:
    """Return True if rows of these lengths are grouped by length."""
    if recipe.row_order != "automatic":
        return recipe.row_order == "by_length" and task not in ("dpo", "kto")
    return saved_by_length(lengths, recipe, task) >= MIN_SAVING
