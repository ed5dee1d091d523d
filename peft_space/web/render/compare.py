"""HTML and tables of the Compare tab, made from results alone: without gradio."""

import difflib
import html
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from peft_space.evaluation.results import (
    TITLES,
    Evaluation,
    differences,
    main_score,
    majority_words,
    shown_with_intervals,
)
from peft_space.web.render.overview import table_html

MAX_MARKED_WORDS = 2000
MAX_LABELS = 8
_SIDES = ("base", "adapter")


def answers_html(rows: Sequence[dict[str, Any]], marked: bool = False) -> str:
    """Return prompts with the answers of base and adapter next to each other.

    Args:
        rows: each has prompt, base and adapter, and may have rendered, expected, chances, tags
            and others.
        marked: mark the words in which base and adapter differ.
    """
    if not rows:
        return ""
    others = list(rows[0].get("others") or {})
    show_expected = any(row.get("expected") for row in rows)
    untrained_head = any(row.get("chances") or row.get("tags") for row in rows)
    titles = ["Prompt", "Base (untrained classifier)" if untrained_head else "Base", "Adapter"]
    titles += [html.escape(name) for name in others]
    titles += ["Expected answer"] if show_expected else []
    lines = []
    for row in rows:
        cells = [_pre(row["prompt"]) + _rendered_html(row), *_answer_cells(row, marked)]
        cells += [_pre(row["others"][name]) for name in others]
        cells += [_pre(row.get("expected") or "")] if show_expected else []
        lines.append(cells)
    return table_html(titles, lines)


def _pre(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"


def _rendered_html(row: dict[str, Any]) -> str:
    if not row.get("rendered"):
        return ""
    return f"<details><summary>as the model sees it</summary>{_pre(row['rendered'])}</details>"


def _answer_cells(row: dict[str, Any], marked: bool) -> list[str]:
    if chances := row.get("chances"):
        return [_chances_html(chances[side]) for side in _SIDES]
    if tags := row.get("tags"):
        return [f"<p>{_tags_html(tags[side])}</p>" for side in _SIDES]
    if marked:
        return [f"<pre>{text}</pre>" for text in marked_words(row["base"], row["adapter"])]
    return [_pre(row[side]) for side in _SIDES]


def marked_words(base: str, adapter: str) -> tuple[str, str]:
    """Return both texts as HTML, with their differences marked.

    Words that only the base says are `del`; words that only the adapter says are `ins`. Nothing is
    marked if the texts have nothing in common, or are very long.
    """
    words, others = re.findall(r"\s+|[^\s]+", base), re.findall(r"\s+|[^\s]+", adapter)
    unmarked = html.escape(base), html.escape(adapter)
    if max(len(words), len(others)) > 2 * MAX_MARKED_WORDS:
        return unmarked
    changes = difflib.SequenceMatcher(None, words, others, autojunk=False).get_opcodes()
    if not any(
        kind == "equal" and "".join(words[start:end]).strip() for kind, start, end, _, _ in changes
    ):
        return unmarked
    left = right = ""
    for kind, start, end, other_start, other_end in changes:
        left += _marked(words[start:end], "" if kind == "equal" else "del")
        right += _marked(others[other_start:other_end], "" if kind == "equal" else "ins")
    return left, right


def _marked(words: list[str], tag: str) -> str:
    text = html.escape("".join(words))
    return f"<{tag}>{text}</{tag}>" if tag and text.strip() else text


def _chances_html(chances: dict[str, float]) -> str:
    ranked = sorted(chances.items(), key=lambda item: -item[1])
    lines = []
    for label, chance in ranked[:MAX_LABELS]:
        name = html.escape(label)
        meter = f'<meter min="0" max="1" value="{chance:.4f}" aria-label="{name}"></meter>'
        lines.append(f"<li>{meter} {name}: {chance:.1%}</li>")
    if len(ranked) > MAX_LABELS:
        lines.append(f"<li>{len(ranked) - MAX_LABELS} more labels</li>")
    return f'<ul class="chances">{"".join(lines)}</ul>'


def _tags_html(tags: Sequence[Sequence[str]]) -> str:
    words = [
        html.escape(word)
        if tag == "O"
        else f"<mark>{html.escape(word)}<sub>{html.escape(tag)}</sub></mark>"
        for word, tag in tags
    ]
    return " ".join(words)


def summary_html(comparison: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """Return what can be said of all answers together, and how the comparison was checked.

    Args:
        comparison: the result of the operation `compare`.
        rows: the answers, as `answers_html` takes them.
    """
    generated = not rows or not (rows[0].get("chances") or rows[0].get("tags"))
    sentences = [_same_answers(rows)] if len(rows) > 1 else []
    with_expected = [row for row in rows if row.get("expected")]
    if with_expected and not any(row.get("chances") for row in rows):
        sentences.append(_exact_matches(with_expected))
    if label := comparison.get("commonest"):
        sentences.append(f'Baseline: always answering "{label}".')
    if generated:
        sentences.append(_sampling_sentence(comparison["sampling"]))
    text = f"<p>{html.escape(' '.join(sentences))}</p>" if sentences else ""
    return text + fairness_html(comparison["fairness"]["words"])


def _same_answers(rows: Sequence[dict[str, Any]]) -> str:
    same = sum(row["base"] == row["adapter"] for row in rows)
    if not same:
        return f"All {len(rows)} answers differ."
    return f"{same} of {len(rows)} answers are the same."


def _exact_matches(rows: Sequence[dict[str, Any]]) -> str:
    answers = [{side: row[side] for side in _SIDES} | (row.get("others") or {}) for row in rows]
    counts = {
        name: sum(
            answer[name].strip() == row["expected"].strip()
            for answer, row in zip(answers, rows, strict=True)
        )
        for name in answers[0]
    }
    parts = [f"{name} {count}/{len(rows)}" for name, count in counts.items()]
    return f"Exact matches: {', '.join(parts)}."


def _sampling_sentence(sampling: dict[str, Any]) -> str:
    limit = f"up to {sampling['max_new_tokens']:,} tokens, seed {sampling['seed']}."
    if not sampling["temperature"]:
        return f"Greedy decoding, {limit}"
    return f"Temperature {sampling['temperature']:g}, top p {sampling['top_p']:g}, {limit}"


def fairness_html(words: str) -> str:
    """Return the checks of the comparison."""
    css = "unfair" if "NOT FAIR" in words else "fair"
    return f'<p class="{css}">{html.escape(words)}</p>' if words else ""


def scores_table(scores: Evaluation) -> pd.DataFrame:
    """Return a line per score: base, adapter and their difference, with confidence intervals."""
    base, adapter = (shown_with_intervals(scores, side) for side in _SIDES)
    change = differences(scores)
    lines = [
        [title, base.get(title, "–"), value, change.get(title, "–")]
        for title, value in adapter.items()
    ]
    return pd.DataFrame(lines, columns=["score", "base", "adapter", "difference"])


def score_bars(scores: Evaluation) -> tuple[str, pd.DataFrame]:
    """Return title and bars of the task's main score. Shares are in percent."""
    main = main_score(scores.adapter)
    factor, unit = (1, "") if main in ("margin", "loss") else (100, ", %")
    bars = [[side, factor * getattr(getattr(scores, side), main)] for side in _SIDES]
    if main == "accuracy" and scores.majority:
        bars.append(["most frequent label", factor * scores.majority["share"]])
    table = pd.DataFrame(bars, columns=["column", "score"])
    return f"{TITLES[main]}{unit}".capitalize(), table


def more_scores_html(scores: Evaluation) -> str:
    """Return what the table of scores leaves out: baseline, side effects, confusion, fairness."""
    parts = [f"<p>{html.escape(words)}</p>" if (words := majority_words(scores)) else ""]
    if scores.general:
        answers = answers_html(scores.general.answers, marked=True)
        parts.append(
            "<h4>Side effects on unrelated prompts</h4>"
            f"<p>{html.escape(scores.general.in_words())}</p>"
            f"<details><summary>Show these answers</summary>{answers}</details>"
        )
    if scores.confusion:
        tables = "".join(_confusion_html(side, scores.confusion) for side in reversed(_SIDES))
        parts.append(f"<details><summary>Confusion matrix</summary>{tables}</details>")
    return "".join(parts) + fairness_html(scores.fairness)


def _confusion_html(side: str, confusion: dict[str, Any]) -> str:
    labels = [html.escape(label) for label in confusion["labels"]]
    head = "".join(f'<th scope="col">{label}</th>' for label in labels)
    lines = []
    for actual, (label, counts) in enumerate(zip(labels, confusion[side], strict=True)):
        cells = "".join(
            f"<td>{f'<b>{count}</b>' if predicted == actual else count or '·'}</td>"
            for predicted, count in enumerate(counts)
        )
        lines.append(f'<tr><th scope="row">{label}</th>{cells}</tr>')
    caption = f"{side}: rows are actual labels, columns predicted labels"
    return (
        f'<div class="wide"><table class="confusion"><caption>{caption}</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def pair_html(pair: dict[str, str]) -> str:
    """Return a pair of answers for the blind vote."""
    titles = ["Prompt", "Left", "Right"]
    return table_html(titles, [[_pre(pair[title.lower()]) for title in titles]])
