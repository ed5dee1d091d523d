"""In which order rows are learnt: any, or so that rows of about the same length share a step, and less padding is computed. Knows no models."""

from collections.abc import Iterator

import numpy as np
import torch

from peft_space.recipe import Recipe, Task

WORTH_IT = 0.2
"""Rows go by length where they save this share of the tokens: any order is more random."""
_POOL = 50
"""Steps whose rows are drawn at random, and then sorted among them; transformers' LengthGroupedSampler takes as many."""


class ByLength(torch.utils.data.Sampler[int]):
    """Places of rows so that those of a step are about as long as each other; steps come in a random order.

    It follows from seed and epoch alone, so a resumed training goes on in it. The rows of a step are the same however it is shared into batches.
    """

    def __init__(self, lengths: np.ndarray, rows_a_step: int, seed: int):
        self.lengths, self.rows_a_step, self.seed = lengths, rows_a_step, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The Trainer says it, also where it resumes."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        draw = np.random.default_rng([self.seed, self.epoch])
        order = draw.permutation(len(self.lengths))
        whole = len(order) // self.rows_a_step * self.rows_a_step
        pools = np.split(
            order[:whole], range(_POOL * self.rows_a_step, whole, _POOL * self.rows_a_step)
        )
        by_length = np.concatenate(
            [pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools]
        )
        steps = draw.permutation(by_length.reshape(-1, self.rows_a_step))
        yield from [*steps.reshape(-1).tolist(), *order[whole:].tolist()]


def padded_tokens(lengths: np.ndarray, batch_size: int, rows_a_step: int | None = None) -> float:
    """Tokens that a row takes on average in batches, each padded to its longest row; shuffled, or by length with so many rows a step."""
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
    """The share of all tokens that need not be computed where rows go by length; 0 where they cannot, since TRL's trainers order rows themselves."""
    if task in ("dpo", "kto") or not len(lengths):
        return 0.0
    rows_a_step = recipe.batch_size * recipe.gradient_accumulation_steps
    return 1 - padded_tokens(lengths, recipe.batch_size, rows_a_step) / padded_tokens(
        lengths, recipe.batch_size
    )


def goes_by_length(lengths: np.ndarray, recipe: Recipe, task: Task) -> bool:
    """Whether rows of these lengths are ordered by them."""
    if recipe.row_order != "automatic":
        return recipe.row_order == "by_length" and task not in ("dpo", "kto")
    return saved_by_length(lengths, recipe, task) >= WORTH_IT
