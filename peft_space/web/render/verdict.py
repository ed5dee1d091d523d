"""The verdict of an evaluation: what got better, on how many rows, and what else changed."""

import difflib
import html
from collections.abc import Sequence
from typing import Any, Literal

from peft_space.evaluation.results import TITLES, Evaluation, Scores, main_score, percent
from peft_space.web.render.overview import tiles_of

FEW_ROWS = 20
"""With fewer test rows, the verdict warns that chance decides much."""
NO_EFFECT, STRONG_EFFECT = 0.95, 0.8
"""Token agreement on unrelated prompts above and below which side effects are none and strong."""
MIN_DIFFERENCE = 0.01
"""How much more alike an answer must be to the expected one to count as better."""
Outcome = Literal["improved", "worse", "unchanged"]
_LOWER_IS_BETTER = ("loss", "perplexity")


def headline(scores: Evaluation) -> tuple[str, str]:
    """Return the kind of the verdict, "good", "bad" or "", and the sentence that says it."""
    name = main_score(scores.adapter)
    before, after = _figures(scores, name)
    rows = f"{scores.num_rows} test row{'s' * (scores.num_rows != 1)}"
    change = f"{TITLES[name]} {before} → {after} on {rows}"
    kind = direction(scores)
    words = {"good": "Better than the base model", "bad": "Worse than the base model"}
    return kind, f"{words.get(kind, 'No clear difference from the base model')}: {change}."


def direction(scores: Evaluation) -> str:
    """Return "good" or "bad" if the main score surely changed, else an empty text."""
    name = main_score(scores.adapter)
    low, high = _interval(scores, name)
    if name in _LOWER_IS_BETTER:
        low, high = -high, -low
    return "good" if low > 0 else "bad" if high < 0 else ""


def _interval(scores: Evaluation, name: str) -> tuple[float, float]:
    """The interval of the difference; without one, the difference itself."""
    ends = scores.intervals.get("difference", {}).get(name)
    if ends:
        return ends[0], ends[1]
    change = getattr(scores.adapter, name) - getattr(scores.base, name)
    return change, change


def _figures(scores: Evaluation, name: str) -> tuple[str, str]:
    def figure(side: Scores) -> str:
        value = getattr(side, name)
        return _share(value) if name not in (*_LOWER_IS_BETTER, "margin") else f"{value:.3g}"

    return figure(scores.base), figure(scores.adapter)


def _share(value: float) -> str:
    return percent(value).replace(".0%", "%").replace("%", " %")


def side_effects(scores: Evaluation) -> tuple[str, str, str]:
    """Return kind, a word and a sentence about the answers to unrelated questions."""
    general = scores.general
    if general is None:
        return "", "not measured", "this task writes no free text"
    changed = sum(answer["base"] != answer["adapter"] for answer in general.answers)
    words = f"{changed} of {general.num_prompts} unrelated answers changed"
    words += f" ({general.agreement:.0%} token agreement)"
    if general.agreement >= NO_EFFECT:
        return "good", "none", words
    if general.agreement >= STRONG_EFFECT:
        return "warn", "some", words
    return "bad", "strong", f"{words}; fine if the model does only this task"


def verdict_html(scores: Evaluation) -> str:
    """Return the verdict: a sentence, and the figures before and after as tiles."""
    kind, words = headline(scores)
    name = main_score(scores.adapter)
    tiles = [_before_after(scores, name, kind)]
    if name != "loss":
        tiles.append(_before_after(scores, "loss", ""))
    for extra in ("valid_json", "matches_pattern"):
        if getattr(scores.adapter, extra) is not None and extra != name:
            tiles.append(_before_after(scores, extra, ""))
    effect, word, sentence = side_effects(scores)
    tiles.append(("Side effects", word, sentence, effect))
    few = scores.num_rows < FEW_ROWS
    note = "few rows: chance decides much" if few else "kept from training"
    tiles.append(("Test rows", str(scores.num_rows), note, "warn" if few else "test"))
    sign = {"good": "✓", "bad": "!"}.get(kind, "≈")
    return (
        f'<div class="verdict {kind}"><p><b aria-hidden="true">{sign}</b> {html.escape(words)}</p>'
        f"{tiles_of(tiles)}</div>"
    )


def _before_after(scores: Evaluation, name: str, kind: str) -> tuple[str, str, str, str]:
    before, after = _figures(scores, name)
    return TITLES[name].capitalize(), f"{before} → {after}", "base → fine-tuned", kind


def outcome_of(row: dict[str, Any]) -> Outcome:
    """Return what the adapter did to one answer, measured against the expected one."""
    before, after = (likeness(row[side], row["expected"]) for side in ("base", "adapter"))
    if abs(after - before) < MIN_DIFFERENCE:
        return "unchanged"
    return "improved" if after > before else "worse"


def likeness(answer: str, expected: str) -> float:
    """Return how alike two texts are, from 0 to 1; 1 only if they are equal."""
    answer, expected = answer.strip(), expected.strip()
    if answer == expected:
        return 1.0
    return min(0.99, difflib.SequenceMatcher(None, answer, expected, autojunk=False).ratio())


def counted_outcomes(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return the choices of the filter, with their numbers: label and value."""
    outcomes = [outcome_of(row) for row in rows]
    titles = {"improved": "Right or closer", "worse": "Worse", "unchanged": "Unchanged"}
    choices = [(f"All ({len(rows)})", "all")]
    return choices + [
        (f"{title} ({outcomes.count(outcome)})", outcome)  # type: ignore[arg-type]
        for outcome, title in titles.items()
    ]


def filter_title(scores: Evaluation) -> str:
    """Return the title of the filter, which says if not every test row is shown."""
    shown = len(scores.samples)
    more = shown < scores.num_rows
    return f"Show (the first {shown} of {scores.num_rows} test rows)" if more else "Show"


def filtered(rows: Sequence[dict[str, Any]], outcome: str | None) -> list[dict[str, Any]]:
    """Return the rows with this outcome; all of them for "all"."""
    return [row for row in rows if outcome in ("all", None) or outcome_of(row) == outcome]
