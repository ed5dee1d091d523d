"""The scores of base and adapter on held-out rows, as a run keeps them. How they are measured is `evaluate.py`'s business."""

import json
from dataclasses import asdict, dataclass

import numpy as np

from peft_space import durable
from peft_space.run import Run


@dataclass(frozen=True)
class Scores:
    """One column on the held-out rows; None where a task has no such score."""

    loss: float
    """Mean over the rows' trained tokens, tags or labels, in nats; of preferences over the tokens of the preferred answers."""
    perplexity: float | None = None
    """e to the loss, where texts are written."""
    exact_match: float | None = None
    """Share of rows, 0 to 1, whose greedy answer is the row's answer, white space at the ends aside."""
    accuracy: float | None = None
    """Share of labels or tags, 0 to 1, that are right."""
    macro_f1: float | None = None
    """Mean over the labels or tags of F1, 0 to 1, so that rare ones count as much."""
    preferred: float | None = None
    """Share of rows, 0 to 1, in which a token of the better answer is likelier, on average, than one of the other."""
    margin: float | None = None
    """By how much better answers are rewarded: beta x log-probability under the column over that under the base. So it is 0 for the base."""


TITLES = {
    "exact_match": "exact match", "accuracy": "accuracy", "macro_f1": "macro-F1", "preferred": "better answer likelier",
    "margin": "reward margin", "loss": "loss", "perplexity": "perplexity",
}  # fmt: skip
"""In the order in which they are shown; the first that a task has is its main one."""
_NUMBERS = {"loss": ".4f", "perplexity": ".3f", "margin": ".3f"}


@dataclass(frozen=True)
class Evaluation:
    """Both columns on the same rows."""

    num_rows: int
    base: Scores
    adapter: Scores


def shown(scores: Scores) -> dict[str, str]:
    """Title -> figure of each score that there is, the main one first."""
    values = {name: getattr(scores, name) for name in TITLES}
    return {TITLES[name]: _figure(name, value) for name, value in values.items() if value is not None}


def _figure(name: str, value: float) -> str:
    return format(value, _NUMBERS[name]) if name in _NUMBERS else percent(value)


def main_score(scores: Scores) -> str:
    """The name of the score that says most about a task."""
    return next(name for name in TITLES if getattr(scores, name) is not None)


def percent(share: float | None) -> str:
    """A share as it is shown; a dash where there is none."""
    return "–" if share is None else f"{share:.1%}"


def macro_f1(guesses: np.ndarray, wanted: np.ndarray) -> float:
    """Mean F1, 0 to 1, over the labels that occur in either."""
    return float(np.mean([_f1(guesses == label, wanted == label) for label in np.union1d(guesses, wanted)]))


def _f1(guessed: np.ndarray, wanted: np.ndarray) -> float:
    return 2 * float((guessed & wanted).sum()) / float(guessed.sum() + wanted.sum())


def write_scores(run: Run, scores: Evaluation) -> None:
    """Keep what was measured last."""
    durable.write_text(run.path("scores.json"), json.dumps(asdict(scores), indent=2) + "\n")


def read_scores(run: Run) -> Evaluation | None:
    """What `evaluate` measured last on this run."""
    path = run.path("scores.json")
    if not path.is_file():
        return None
    values = json.loads(path.read_text())
    return Evaluation(values["num_rows"], Scores(**values["base"]), Scores(**values["adapter"]))
