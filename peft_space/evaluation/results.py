"""The scores of base and adapter on held-out rows, as a run keeps them. How they are measured is `evaluate.py`'s business."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from peft_space.runs.run import Run
from peft_space.storage import atomic_io


@dataclass(frozen=True)
class Scores:
    """One column on the held-out rows; None where a task has no such score."""

    loss: float
    """Mean over the rows' trained tokens, tags or labels, in nats; of preferences over the tokens of the preferred answers."""
    perplexity: float | None = None
    """e to the loss, where texts are written."""
    exact_match: float | None = None
    """Share of rows, 0 to 1, whose greedy answer is the row's answer, white space at the ends aside."""
    chrf: float | None = None
    """Mean over the rows of chrF2 of the greedy answer, 0 to 1: character n-grams that it shares with the row's answer."""
    rouge_l: float | None = None
    """Mean over the rows of ROUGE-L of the greedy answer, 0 to 1: words that it has in the same order as the row's answer."""
    accuracy: float | None = None
    """Share of labels or tags, 0 to 1, that are right."""
    macro_f1: float | None = None
    """Mean over the labels or tags of F1, 0 to 1, so that rare ones count as much."""
    entity_f1: float | None = None
    """F1, 0 to 1, of entities that are right from first to last word and in kind, where the tags mark any."""
    preferred: float | None = None
    """Share of rows, 0 to 1, in which a token of the better answer is likelier, on average, than one of the other."""
    margin: float | None = None
    """By how much better answers are rewarded: beta x log-probability under the column over that under the base. So it is 0 for the base."""


TITLES = {
    "exact_match": "exact match", "chrf": "chrF", "rouge_l": "ROUGE-L", "accuracy": "accuracy", "macro_f1": "macro-F1", "entity_f1": "entity F1",
    "preferred": "better answer likelier", "margin": "reward margin", "loss": "loss", "perplexity": "perplexity",
}  # fmt: skip
"""In the order in which they are shown; the first that a task has is its main one."""
_NUMBERS = {"loss": ".4f", "perplexity": ".3f", "margin": ".3f"}
Interval = list[float]
"""From, to."""


@dataclass(frozen=True)
class ForgettingScore:
    """How much the adapter changed what is answered to questions that have nothing to do with the training."""

    num_prompts: int
    num_tokens: int
    """Of the base's own answers; at each of them both columns were asked what comes next."""
    agreement: float
    """Share of these places, 0 to 1, at which the likeliest token is the same."""
    agreement_interval: Interval
    divergence: float
    """Mean Kullback-Leibler divergence of the adapter's next-token distribution from the base's, in nats."""
    divergence_interval: Interval
    answers: list[dict[str, str]]
    """prompt, base, adapter: what both answer by themselves, its beginning."""

    def in_words(self) -> str:
        """One sentence."""
        low, high = self.agreement_interval
        changed = sum(given["base"] != given["adapter"] for given in self.answers)
        return (
            f"On {self.num_prompts} general questions, at {percent(self.agreement)} of {self.num_tokens} places ({low:.0%} to {high:.0%}) the "
            f"adapter's likeliest next token is the base's; divergence {self.divergence:.3f} nats. It begins {changed} of the answers differently."
        )


@dataclass(frozen=True)
class Evaluation:
    """Both columns on the same rows."""

    num_rows: int
    base: Scores
    adapter: Scores
    intervals: dict[str, dict[str, Interval]] = field(default_factory=dict)
    """Of `base`, `adapter` and their `difference`, by score: 95 % by bootstrap over the rows, seeded; the difference is of pairs."""
    confusion: dict[str, Any] | None = None
    """`labels`, and for `base` and `adapter` how often each label (line) was taken for each (column)."""
    majority: dict[str, Any] | None = None
    """The `label` that is commonest in training, and its `share` of what is scored: what always answering it would get."""
    general: ForgettingScore | None = None
    samples: list[dict[str, str]] = field(default_factory=list)
    """prompt, expected, base, adapter of the first rows that were answered."""
    fairness: str = ""
    """What was checked of the columns, in words."""


def shown_with_intervals(scores: Evaluation, column: str) -> dict[str, str]:
    """As `shown`, each figure with the interval behind it."""
    found = {}
    for name, title in TITLES.items():
        if (value := getattr(getattr(scores, column), name)) is not None:
            interval = scores.intervals.get(column, {}).get(name)
            found[title] = _figure(name, value) + (
                f" ({' to '.join(_figure(name, end) for end in interval)})" if interval else ""
            )
    return found


def differences(scores: Evaluation) -> dict[str, str]:
    """Title -> adapter minus base, with the interval of the pairs."""
    found = {}
    for name, title in TITLES.items():
        base, adapter = getattr(scores.base, name), getattr(scores.adapter, name)
        if base is not None and adapter is not None:
            ends = scores.intervals.get("difference", {}).get(name)
            found[title] = _change(name, adapter - base) + (
                f" ({' to '.join(_change(name, end) for end in ends)})" if ends else ""
            )
    return found


def majority_words(scores: Evaluation) -> str:
    """What always answering the commonest label would get, of a classification; nothing of other tasks."""
    if not scores.majority:
        return ""
    return f"Always answering {scores.majority['label']!r}, the commonest in training, would be right in {percent(scores.majority['share'])}."


def _change(name: str, value: float) -> str:
    return format(value, f"+{_NUMBERS[name]}") if name in _NUMBERS else f"{100 * value:+.1f}"


def shown(scores: Scores) -> dict[str, str]:
    """Title -> figure of each score that there is, the main one first."""
    values = {name: getattr(scores, name) for name in TITLES}
    return {
        TITLES[name]: _figure(name, value) for name, value in values.items() if value is not None
    }


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
    return float(
        np.mean([_f1(guesses == label, wanted == label) for label in np.union1d(guesses, wanted)])
    )


def _f1(guessed: np.ndarray, wanted: np.ndarray) -> float:
    return 2 * float((guessed & wanted).sum()) / float(guessed.sum() + wanted.sum())


def write_scores(run: Run, scores: Evaluation) -> None:
    """Keep what was measured last."""
    atomic_io.write_text(run.path("scores.json"), json.dumps(asdict(scores), indent=2) + "\n")


def read_scores(run: Run) -> Evaluation | None:
    """What `evaluate` measured last on this run."""
    path = run.path("scores.json")
    return evaluation_from_json(json.loads(path.read_text())) if path.is_file() else None


def evaluation_from_json(values: dict[str, Any]) -> Evaluation:
    """What was written, or told by `verbs.evaluate`, as it was."""
    general = ForgettingScore(**values["general"]) if values.get("general") else None
    columns = {name: Scores(**values[name]) for name in ("base", "adapter")}
    return Evaluation(**{**values, **columns, "general": general})
