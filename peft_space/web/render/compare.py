"""HTML and tables of the Compare tab, made from results alone: without gradio."""

import difflib
import html
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from peft_space.evaluation.results import (
    Evaluation,
    cut_words,
    differences,
    majority_words,
    shown_with_intervals,
)

MAX_MARKED_WORDS = 2000
MAX_LABELS = 8
_SIDES = ("base", "adapter")


def answers_html(rows: Sequence[dict[str, Any]], marked: bool = False) -> str:
    """Return one card per prompt: the expected answer, the base's and the fine-tuned model's.

    Args:
        rows: each has prompt, base and adapter, and may have rendered, expected, chances, tags
            and others, and `pictures` as data URIs.
        marked: the answers are complete, so they are marked against the expected one. Without an
            expected answer nothing is right or wrong, and nothing is marked.
    """
    return "".join(_card_html(row, marked) for row in rows)


def _card_html(row: dict[str, Any], marked: bool) -> str:
    expected = row.get("expected") or ""
    untrained_head = bool(row.get("chances") or row.get("tags"))
    base, adapter = _answer_cells(row, expected if marked else "")
    base_title = "Base (untrained classifier)" if untrained_head else "Base"
    checks = not untrained_head and marked and expected
    cells = [cell_html("expected", "Expected", pre_html(expected))] if expected else []
    cells.append(
        cell_html("base", base_title, base, _check(row["base"], expected) if checks else "")
    )
    verdict = _check(row["adapter"], expected) if checks else ""
    cells.append(cell_html("tuned", "Fine-tuned", adapter, verdict))
    for name, text in (row.get("others") or {}).items():
        cells.append(cell_html("other", html.escape(name), pre_html(text)))
    pictures = pictures_html(row.get("pictures") or [])
    shown = f"{pictures}{pre_html(row['prompt'])}{_cut_html(row)}{_rendered_html(row)}"
    prompt = f'<div class="prompt"><h4>Prompt</h4>{shown}</div>'
    return (
        f'<article class="comparison">{prompt}<div class="sides">{"".join(cells)}</div></article>'
    )


def pictures_html(uris: Sequence[str]) -> str:
    """Return pictures, given as data URIs, next to each other; nothing without them."""
    shown = "".join(f'<img src="{html.escape(uri)}" alt="Picture of the row">' for uri in uris)
    return f'<div class="pictures">{shown}</div>' if shown else ""


def cell_html(css: str, title: str, content: str, check: str = "") -> str:
    """Return one answer of a prompt: `css` is expected, base, tuned or other."""
    return f'<section class="side {css}"><h4>{title}{check}</h4>{content}</section>'


def _check(answer: str, expected: str) -> str:
    if answer.strip() == expected.strip():
        return ' <span class="badge ok">✓ matches</span>'
    return ' <span class="badge bad">✗ differs</span>'


def pre_html(text: str) -> str:
    """Return a text with its white space."""
    return f"<pre>{html.escape(text)}</pre>"


def _cut_html(row: dict[str, Any]) -> str:
    """Return how much of a prompt the model did not read; empty if it read all."""
    if not row.get("cut"):
        return ""
    words = f"{row['cut']:,} tokens are cut: the model has no positions for them."
    return f'<p class="cut">✂ {words}</p>'


def _rendered_html(row: dict[str, Any]) -> str:
    if not row.get("rendered"):
        return ""
    return f"<details><summary>as the model sees it</summary>{pre_html(row['rendered'])}</details>"


def _answer_cells(row: dict[str, Any], expected: str) -> list[str]:
    """Return the content of both sides, with their differences from `expected` marked."""
    if chances := row.get("chances"):
        return [_chances_html(chances[side]) for side in _SIDES]
    if tags := row.get("tags"):
        return [f"<p>{_tags_html(tags[side])}</p>" for side in _SIDES]
    if expected:
        return [f"<pre>{marked_words(row[side], expected)}</pre>" for side in _SIDES]
    return [pre_html(row[side]) for side in _SIDES]


def marked_words(answer: str, expected: str) -> str:
    """Return an answer as HTML, with the words marked that the expected one does not have.

    Nothing is marked if the texts have nothing in common, or are very long.
    """
    words, others = re.findall(r"\s+|[^\s]+", answer), re.findall(r"\s+|[^\s]+", expected)
    if max(len(words), len(others)) > 2 * MAX_MARKED_WORDS:
        return html.escape(answer)
    changes = difflib.SequenceMatcher(None, words, others, autojunk=False).get_opcodes()
    if not any(
        kind == "equal" and "".join(words[start:end]).strip() for kind, start, end, _, _ in changes
    ):
        return html.escape(answer)
    return "".join(
        _marked(words[start:end], "" if kind == "equal" else "del")
        for kind, start, end, _, _ in changes
    )


def _marked(words: list[str], tag: str) -> str:
    text = html.escape("".join(words))
    return f"<{tag}>{text}</{tag}>" if tag and text.strip() else text


def _chances_html(chances: dict[str, float]) -> str:
    ranked = sorted(chances.items(), key=lambda item: -item[1])
    lines = []
    for label, chance in ranked[:MAX_LABELS]:
        name = html.escape(label)
        bar = f'<i style="width:{100 * chance:.0f}%"></i>'
        lines.append(f"<li><span>{name}: {chance:.1%}</span>{bar}</li>")
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
    titles = {"base": "base", "adapter": "fine-tuned"}
    answers = [{side: row[side] for side in _SIDES} | (row.get("others") or {}) for row in rows]
    counts = {
        titles.get(name, name): sum(
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
    """Return the checks of the comparison: a badge if it is fair, the reason if it is not."""
    if not words:
        return ""
    if "NOT FAIR" in words:
        return f'<p class="unfair">{html.escape(words)}</p>'
    return (
        '<details class="fair"><summary>✓ Fair comparison verified</summary>'
        f"<p>{html.escape(words)}</p></details>"
    )


def scores_table(scores: Evaluation) -> pd.DataFrame:
    """Return a line per score: base, adapter and their difference, with confidence intervals."""
    base, adapter = (shown_with_intervals(scores, side) for side in _SIDES)
    change = differences(scores)
    lines = [
        [title, base.get(title, "–"), value, change.get(title, "–")]
        for title, value in adapter.items()
    ]
    return pd.DataFrame(lines, columns=["Score", "Base", "Fine-tuned", "Difference"])


def more_scores_html(scores: Evaluation) -> str:
    """Return what the table of scores leaves out: baseline, side effects, confusion, fairness."""
    sentences = filter(None, [majority_words(scores), cut_words(scores)])
    parts = [f"<p>{html.escape(words)}</p>" for words in sentences]
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
    title = {"base": "Base", "adapter": "Fine-tuned"}[side]
    caption = f"{title}: rows are actual labels, columns predicted labels"
    return (
        f'<div class="wide"><table class="confusion"><caption>{caption}</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def pair_html(pair: dict[str, Any]) -> str:
    """Return a pair of answers for the blind vote."""
    pictures = pictures_html(pair.get("pictures") or [])
    prompt = f'<div class="prompt"><h4>Prompt</h4>{pictures}{pre_html(pair["prompt"])}</div>'
    sides = "".join(
        cell_html("other", title, pre_html(pair[title.lower()])) for title in ("Left", "Right")
    )
    return f'<article class="comparison">{prompt}<div class="sides">{sides}</div></article>'
