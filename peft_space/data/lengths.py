"""Counts the tokens of a tokenized dataset."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from peft_space.data import arrow_store


@dataclass(frozen=True)
class Lengths:
    """Token counts of a tokenized dataset, and the effect of the length limit."""

    median: int
    longest: int
    num_cut: int
    """Rows that are cut off."""
    num_untrained: int
    """Rows without a trained token within the limit; they are left out."""
    num_trained_tokens: int
    """Tokens that have a loss, in one epoch."""


def lengths(tokens: arrow_store.Tokens) -> Lengths:
    """Count the tokens of a tokenized dataset."""
    counts, trained = tokens.column("length"), tokens.column("num_trained")
    return Lengths(
        median=int(np.median(counts)),
        longest=int(counts.max()),
        num_cut=int((tokens.column("cut") > 0).sum()),
        num_untrained=int((trained == 0).sum()),
        num_trained_tokens=int(trained.sum()),
    )


def histogram(
    tokens: arrow_store.Tokens, max_length: int, max_bars: int = 30
) -> tuple[int, list[dict[str, Any]]]:
    """Count the rows by length.

    Returns:
        The width of a bar, and for each bar `tokens` (its start), `rows`, and `cut` (True if
        these rows are cut off).
    """
    counts = tokens.column("length")
    width = max(1, -(-int(counts.max()) // max_bars))
    starts, is_cut = (counts // width * width).tolist(), (counts > max_length).tolist()
    bars = sorted(Counter(zip(starts, is_cut, strict=True)).items())
    return width, [{"tokens": start, "cut": cut, "rows": rows} for (start, cut), rows in bars]


def row_numbers_where(tokens: arrow_store.Tokens, mask: np.ndarray) -> Iterator[int]:
    """Yield the numbers of the rows for which `mask` (N,) is True."""
    return (int(number) for number in tokens.column("row")[mask])
