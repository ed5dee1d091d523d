"""Stores the results of an evaluation: batch by batch while it runs, and in the end its scores.

A resumed evaluation gives the same numbers. The result of a batch is JSON.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peft_space.runs.run import Run
from peft_space.storage import atomic_io


@dataclass(frozen=True)
class Scores:
    """The scores of one side on the held-out rows; None if the task has no such score."""

    loss: float
    """Mean over the trained tokens, tags or labels, in nats. For preferences, over the tokens of
    the preferred answers."""
    perplexity: float | None = None
    """e to the power of the loss, for tasks that write text."""
    exact_match: float | None = None
    """Share of rows, 0 to 1, whose greedy answer equals the row's, apart from outer white space."""
    chrf: float | None = None
    """Mean over the rows of chrF2 of the greedy answer, 0 to 1: shared character n-grams."""
    rouge_l: float | None = None
    """Mean over the rows of ROUGE-L of the greedy answer, 0 to 1: shared words in order."""
    same_json: float | None = None
    """Share of rows, 0 to 1, whose greedy answer is the same JSON value. Counts only rows whose own
    answer is a JSON object or list."""
    valid_json: float | None = None
    """Share of the same rows, 0 to 1, whose greedy answer is a JSON object or list."""
    same_number: float | None = None
    """Share of rows, 0 to 1, whose greedy answer is the same number. Counts only rows whose own
    answer is a number."""
    matches_pattern: float | None = None
    """Share of rows, 0 to 1, whose greedy answer matches the recipe's `answer_pattern`."""
    tool_call: float | None = None
    """Share of the rows that end with tool calls, 0 to 1, whose greedy answer calls the same
    functions with the same arguments."""
    tool_name: float | None = None
    """The same for the names of the functions alone."""
    ended: float | None = None
    """Share of rows, 0 to 1, whose greedy answer the model ended itself, before it reached its
    limit of twice the tokens of the row's own answer."""
    accuracy: float | None = None
    """Share of correct labels or tags, 0 to 1."""
    macro_f1: float | None = None
    """Mean over the labels or tags of F1, 0 to 1, so that rare ones count as much."""
    entity_f1: float | None = None
    """F1, 0 to 1, of entities with the correct span and type, if the tags mark entities."""
    preferred: float | None = None
    """Share of rows, 0 to 1, in which the tokens of the better answer are likelier on average."""
    margin: float | None = None
    """How much more better answers are rewarded. A reward is beta times the log-probability of an
    answer minus that under the base, so it is 0 for the base."""


TITLES = {
    "exact_match": "exact match",
    "same_json": "same JSON",
    "valid_json": "valid JSON",
    "same_number": "right number",
    "tool_call": "right calls",
    "tool_name": "right functions",
    "matches_pattern": "matches the pattern",
    "chrf": "chrF",
    "rouge_l": "ROUGE-L",
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "entity_f1": "entity F1",
    "preferred": "better answer likelier",
    "margin": "reward margin",
    "loss": "loss",
    "perplexity": "perplexity",
    "ended": "ended before the limit",
}
"""In the order in which they are shown. The first one that a task has is its main score."""
_FORMATS = {"loss": ".4f", "perplexity": ".3f", "margin": ".3f"}
Interval = list[float]
"""[low, high]."""


@dataclass(frozen=True)
class ForgettingScore:
    """How much the adapter changes the answers to general questions, unrelated to the training."""

    num_prompts: int
    num_tokens: int
    """Places in the base's answers at which the next tokens of both sides are compared."""
    agreement: float
    """Share of these places, 0 to 1, at which both sides have the same likeliest token."""
    agreement_interval: Interval
    divergence: float
    """Mean KL divergence of the adapter's next-token distribution from the base's, in nats."""
    divergence_interval: Interval
    answers: list[dict[str, str]]
    """prompt, base, adapter: the beginning of each side's own answer."""

    def in_words(self) -> str:
        """The result in two sentences."""
        low, high = self.agreement_interval
        changed = sum(answer["base"] != answer["adapter"] for answer in self.answers)
        return (
            f"On {self.num_prompts} general questions, the adapter's likeliest next token is the "
            f"base's at {percent(self.agreement)} of {self.num_tokens} places "
            f"({low:.0%} to {high:.0%}); divergence {self.divergence:.3f} nats. "
            f"It begins {changed} of the answers differently."
        )


@dataclass(frozen=True)
class Evaluation:
    """The scores of both sides on the same rows."""

    num_rows: int
    base: Scores
    adapter: Scores
    intervals: dict[str, dict[str, Interval]] = field(default_factory=dict)
    """95 % bootstrap intervals over the rows, by score, of `base`, `adapter` and their paired
    `difference`."""
    confusion: dict[str, Any] | None = None
    """`labels`; for `base` and `adapter` the counts of each label (row) predicted as each label
    (column)."""
    majority: dict[str, Any] | None = None
    """The most common `label` in training, and its `share` of the scored rows or tags."""
    general: ForgettingScore | None = None
    samples: list[dict[str, Any]] = field(default_factory=list)
    """prompt, expected, base, adapter of the first rows that were answered."""
    num_cut: int = 0
    """Prompts that are longer than the model has positions for, and are read only in part."""
    fairness: str = ""
    """The result of the check that the comparison is fair, in sentences."""


def shown(scores: Scores) -> dict[str, str]:
    """Title -> figure of each score that exists, the main one first."""
    values = {name: getattr(scores, name) for name in TITLES}
    return {
        TITLES[name]: _figure(name, value) for name, value in values.items() if value is not None
    }


def shown_with_intervals(evaluation: Evaluation, side: str) -> dict[str, str]:
    """Title -> figure of each score of one side, followed by its interval."""
    figures = {}
    for name, title in TITLES.items():
        if (value := getattr(getattr(evaluation, side), name)) is not None:
            ends = evaluation.intervals.get(side, {}).get(name, [])
            figures[title] = _with_interval(_figure(name, value), [_figure(name, e) for e in ends])
    return figures


def differences(evaluation: Evaluation) -> dict[str, str]:
    """Title -> adapter minus base, followed by the interval of the paired difference."""
    figures = {}
    for name, title in TITLES.items():
        base, adapter = getattr(evaluation.base, name), getattr(evaluation.adapter, name)
        if base is not None and adapter is not None:
            ends = evaluation.intervals.get("difference", {}).get(name, [])
            change = _change(name, adapter - base)
            figures[title] = _with_interval(change, [_change(name, end) for end in ends])
    return figures


def _with_interval(figure: str, ends: list[str]) -> str:
    return f"{figure} ({' to '.join(ends)})" if ends else figure


def _change(name: str, value: float) -> str:
    return format(value, f"+{_FORMATS[name]}") if name in _FORMATS else f"{100 * value:+.1f}"


def _figure(name: str, value: float) -> str:
    return format(value, _FORMATS[name]) if name in _FORMATS else percent(value)


def majority_words(evaluation: Evaluation) -> str:
    """The score of always answering the most common label; empty if the task has no labels."""
    if not evaluation.majority:
        return ""
    label, share = evaluation.majority["label"], percent(evaluation.majority["share"])
    return f"Always answering {label!r}, the most common in training, would be right in {share}."


def cut_words(evaluation: Evaluation) -> str:
    """Say how many prompts the model read only in part; empty if it read all."""
    count = evaluation.num_cut
    if not count:
        return ""
    prompts = "1 prompt is" if count == 1 else f"{count:,} prompts are"
    return f"{prompts} cut off for the answers: the model has no positions for the rest."


def main_score(scores: Scores) -> str:
    """The name of the score that says most about a task."""
    return next(name for name in TITLES if getattr(scores, name) is not None)


def percent(share: float | None) -> str:
    """A share as a percentage; a dash for None."""
    return "–" if share is None else f"{share:.1%}"


def write_scores(run: Run, evaluation: Evaluation) -> None:
    """Store the latest evaluation in the run."""
    atomic_io.write_text(run.path("scores.json"), json.dumps(asdict(evaluation), indent=2) + "\n")


def read_scores(run: Run) -> Evaluation | None:
    """The latest evaluation of a run; None if there is none."""
    path = run.path("scores.json")
    return evaluation_from_json(json.loads(path.read_text())) if path.is_file() else None


def evaluation_from_json(values: dict[str, Any]) -> Evaluation:
    """The evaluation that `asdict` was applied to."""
    general = ForgettingScore(**values["general"]) if values.get("general") else None
    sides = {side: Scores(**values[side]) for side in ("base", "adapter")}
    return Evaluation(**{**values, **sides, "general": general})


# Batches


SCORING, ANSWERING = "scoring.jsonl", "answering.jsonl"
"""Files in a run: of an evaluation, and of the answers for a vote. A line is a batch."""


class ResumableBatches:
    """The batches of one evaluation that have been measured so far.

    Args:
        run: the run that stores them.
        key: identifies the adapter, the rows and everything else that decides the results. Batches
            stored with another key are discarded.
        on_batch: called with the part before each of its batches, stored or not.
        file: the name of the file in the run.
    """

    def __init__(self, run: Run, key: str, on_batch: Callable[[str], None], file: str = SCORING):
        self._path, self._on_batch = run.path(file), on_batch
        self._results = _read(self._path, key)
        if not self._results:
            self._path.write_text(json.dumps(key) + "\n")

    def batch(self, part: str, number: int, measure: Callable[[], Any]) -> Any:
        """The stored results of a batch, or those of `measure`, which are then stored."""
        self._on_batch(part)
        place = (part, number)
        if place not in self._results:
            result = measure()
            with open(self._path, "a") as file:
                file.write(json.dumps([part, number, result]) + "\n")
            self._results[place] = json.loads(json.dumps(result))  # equal to a stored one
        return self._results[place]

    def done(self) -> None:
        """Delete the stored batches."""
        self._path.unlink(missing_ok=True)  # a concurrent evaluation may have deleted them


def key_of(run: Run, *decisive: Any) -> str:
    """A key for the run's adapter and everything else that decides the results."""
    digest = hashlib.sha256(repr(decisive).encode())
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        with open(run.adapter / name, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def num_saved_batches(run: Run) -> list[int]:
    """Sizes in bytes of the files with stored batches. They change with every batch."""
    files = [run.path(name) for name in (SCORING, ANSWERING)]
    return [path.stat().st_size for path in files if path.is_file()]


def _read(path: Path, key: str) -> dict[tuple[str, int], Any]:
    """The batches stored with this key. Removes an incomplete last line, which a kill leaves."""
    if not path.is_file():
        return {}
    text = path.read_text()
    complete = text[: text.rfind("\n") + 1]
    first, *lines = complete.splitlines() or [""]
    if first != json.dumps(key):
        return {}
    if complete != text:
        path.write_text(complete)
    return {(part, number): result for part, number, result in map(json.loads, lines)}
