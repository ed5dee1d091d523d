"""Confidence intervals of scores: paired bootstrap, and Wilson's interval of a share."""

import numpy as np

from peft_space.evaluation.metrics import Statistic

RESAMPLES = 1000


CONFIDENCE = 0.95


def point(score: Statistic, num_rows: int) -> float:
    """The score of the rows themselves."""
    return float(score(np.ones((1, num_rows)))[0])


def intervals(scores: dict[str, Statistic], num_rows: int, seed: int = 0) -> dict[str, list[float]]:
    """Between what each of the scores lies in 95 % of bootstrap samples of the rows; none of a single row.

    All are scored on the same samples, so that a difference of two is one of pairs. The same seed gives the same numbers.
    """
    if num_rows < 2:
        return {}
    drawn = np.random.default_rng(seed).integers(num_rows, size=(RESAMPLES, num_rows))
    counts = np.apply_along_axis(np.bincount, 1, drawn, minlength=num_rows).astype(float)
    ends = [100 * (1 - CONFIDENCE) / 2, 100 * (1 + CONFIDENCE) / 2]
    found = {}
    for name, score in scores.items():
        values = score(counts)
        if (defined := values[np.isfinite(values)]).size:
            low, high = np.percentile(defined, ends)
            found[name] = [float(low), float(high)]
    return found


def wilson(wins: int, trials: int) -> tuple[float, float]:
    """Between what a share lies with 95 % confidence, by Wilson's score interval (1927), which holds for few trials too. (0, 1) of none."""
    if not trials:
        return 0.0, 1.0
    z = 1.959963984540054
    share = wins / trials
    middle = share + z * z / (2 * trials)
    spread = z * (share * (1 - share) / trials + z * z / (4 * trials * trials)) ** 0.5
    return max(0.0, (middle - spread) / (1 + z * z / trials)), min(
        1.0, (middle + spread) / (1 + z * z / trials)
    )
