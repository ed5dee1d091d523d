"""What the Compare tab shows, from results alone: without gradio."""

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

_MOST_WORDS_MARKED = 2000
_LABELS_SHOWN = 8


def answers_html(rows: Sequence[dict[str, Any]], marked: bool = False) -> str:
    """Prompts with both columns' answers side by side; each row has prompt, base, adapter, and may have rendered, expected, chances, tags and others.

    Args:
        marked: the words in which the columns differ are marked.
    """
    if not rows:
        return ""
    others = list(rows[0].get("others") or {})
    with_own = any(row.get("expected") for row in rows)
    head_is_new = any(row.get("chances") or row.get("tags") for row in rows)
    titles = [
        "Prompt",
        "Base, with an untrained head" if head_is_new else "Base",
        "Adapter",
        *map(html.escape, others),
        *(["The row's own answer"] if with_own else []),
    ]
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    lines = []
    for row in rows:
        rendered = (
            f"<details><summary>as the model sees it</summary><pre>{html.escape(row['rendered'])}</pre></details>"
            if row.get("rendered")
            else ""
        )
        cells = [f"<pre>{html.escape(row['prompt'])}</pre>{rendered}", *_columns(row, marked)]
        cells += [f"<pre>{html.escape(row['others'][name])}</pre>" for name in others]
        if with_own:
            cells.append(f"<pre>{html.escape(row.get('expected') or '')}</pre>")
        lines.append(
            "<tr>"
            + "".join(
                f'<td data-title="{title}">{cell}</td>'
                for title, cell in zip(titles, cells, strict=True)
            )
            + "</tr>"
        )
    return f'<table class="answers"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def _columns(row: dict[str, Any], marked: bool) -> list[str]:
    if chances := row.get("chances"):
        return [_chances_html(chances[column]) for column in ("base", "adapter")]
    if tags := row.get("tags"):
        return [f"<p>{_tags_html(tags[column])}</p>" for column in ("base", "adapter")]
    pair = (
        marked_words(row["base"], row["adapter"])
        if marked
        else (html.escape(row["base"]), html.escape(row["adapter"]))
    )
    return [f"<pre>{text}</pre>" for text in pair]


def marked_words(base: str, adapter: str) -> tuple[str, str]:
    """Both texts as HTML; words of the base that the adapter does not say are `del`, words of the adapter that the base does not say are `ins`.

    Nothing is marked where nothing is common, or where texts are very long.
    """
    one, other = re.findall(r"\s+|[^\s]+", base), re.findall(r"\s+|[^\s]+", adapter)
    plain = html.escape(base), html.escape(adapter)
    if max(len(one), len(other)) > 2 * _MOST_WORDS_MARKED:
        return plain
    changes = difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    if not any(
        kind == "equal" and "".join(one[start:end]).strip() for kind, start, end, _, _ in changes
    ):
        return plain
    shown = ["", ""]
    for kind, start, end, begin, stop in changes:
        for side, (words, name) in enumerate(((one[start:end], "del"), (other[begin:stop], "ins"))):
            text = html.escape("".join(words))
            shown[side] += (
                text if kind == "equal" or not text.strip() else f"<{name}>{text}</{name}>"
            )
    return shown[0], shown[1]


def _chances_html(chances: dict[str, float]) -> str:
    likeliest = sorted(chances.items(), key=lambda one: -one[1])
    lines = [
        f'<li><meter min="0" max="1" value="{share:.4f}" aria-label="{html.escape(label)}"></meter> {html.escape(label)}: {share:.1%}</li>'
        for label, share in likeliest[:_LABELS_SHOWN]
    ]
    more = (
        f"<li>{len(likeliest) - _LABELS_SHOWN} more labels</li>"
        if len(likeliest) > _LABELS_SHOWN
        else ""
    )
    return f'<ul class="chances">{"".join(lines)}{more}</ul>'


def _tags_html(tags: Sequence[Sequence[str]]) -> str:
    return " ".join(
        html.escape(word)
        if tag == "O"
        else f"<mark>{html.escape(word)}<sub>{html.escape(tag)}</sub></mark>"
        for word, tag in tags
    )


def summary_html(found: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """What is to be said of all answers together, and whether the comparison was fair. `found` is the result of `verbs.compare`."""
    said = []
    if len(rows) > 1:
        same = sum(row["base"] == row["adapter"] for row in rows)
        said.append(f"{same} of {len(rows)} answers are the same.")
    owned = [row for row in rows if row.get("expected")]
    if owned and not any(row.get("chances") for row in rows):
        columns = [
            {"base": row["base"], "adapter": row["adapter"], **(row.get("others") or {})}
            for row in owned
        ]
        right = {
            name: sum(
                given[name].strip() == row["expected"].strip()
                for given, row in zip(columns, owned, strict=True)
            )
            for name in columns[0]
        }
        said.append(
            "The row's own answer, word for word: "
            + ", ".join(f"{name} {count} of {len(owned)}" for name, count in right.items())
            + "."
        )
    if found.get("commonest"):
        said.append(
            f"The commonest in training is {found['commonest']!r}: a column that says this always has learnt nothing else."
        )
    drawn = found["sampling"]
    how = (
        "the likeliest token always"
        if not drawn["temperature"]
        else f"temperature {drawn['temperature']:g}, top p {drawn['top_p']:g}"
    )
    if not rows or not (rows[0].get("chances") or rows[0].get("tags")):
        said.append(
            f"Both columns: {how}, seed {drawn['seed']}, {drawn['max_new_tokens']:,} tokens at most."
        )
    text = f"<p>{html.escape(' '.join(said))}</p>" if said else ""
    return text + fairness_html(found["fairness"]["words"])


def fairness_html(words: str) -> str:
    """What was checked of the columns."""
    return (
        f'<p class="{"unfair" if "NOT FAIR" in words else "fair"}">{html.escape(words)}</p>'
        if words
        else ""
    )


def scores_table(scores: Evaluation) -> pd.DataFrame:
    """Each score of both columns and their difference, with intervals, a line each."""
    base, adapter, change = (
        shown_with_intervals(scores, "base"),
        shown_with_intervals(scores, "adapter"),
        differences(scores),
    )
    return pd.DataFrame(
        [
            [title, base.get(title, "–"), figure, change.get(title, "–")]
            for title, figure in adapter.items()
        ],
        columns=["score", "base", "adapter", "difference"],
    )


def score_bars(scores: Evaluation) -> tuple[str, pd.DataFrame]:
    """The title and the bars of the score that says most about the task; shares in percent."""
    main = main_score(scores.adapter)
    factor, unit = (1, "") if main in ("margin", "loss") else (100, ", %")
    bars = [
        [name, factor * getattr(column, main)]
        for name, column in (("base", scores.base), ("adapter", scores.adapter))
    ]
    if main == "accuracy" and scores.majority:
        bars.append(["commonest label", factor * scores.majority["share"]])
    return f"{TITLES[main]}{unit}".capitalize(), pd.DataFrame(bars, columns=["column", "score"])


def more_scores_html(scores: Evaluation) -> str:
    """What stands beside the table: the commonest label, confusions, what became of general answers, and whether it was fair."""
    parts = [f"<p>{html.escape(words)}</p>" if (words := majority_words(scores)) else ""]
    if scores.general:
        answers = answers_html(scores.general.answers, marked=True)
        parts.append(
            f"<h4>What the adapter does to other answers</h4><p>{html.escape(scores.general.in_words())}</p>"
            f"<details><summary>The beginnings of these answers</summary>{answers}</details>"
        )
    if scores.confusion:
        tables = "".join(
            _confusion_html(column, scores.confusion) for column in ("adapter", "base")
        )
        parts.append(f"<details><summary>Which was taken for which</summary>{tables}</details>")
    return "".join(parts) + fairness_html(scores.fairness)


def _confusion_html(column: str, confusion: dict[str, Any]) -> str:
    labels = [html.escape(label) for label in confusion["labels"]]
    head = "".join(f'<th scope="col">{label}</th>' for label in labels)
    lines = []
    for place, (label, counts) in enumerate(zip(labels, confusion[column], strict=True)):
        cells = "".join(
            f"<td>{f'<b>{count}</b>' if other == place else count or '·'}</td>"
            for other, count in enumerate(counts)
        )
        lines.append(f'<tr><th scope="row">{label}</th>{cells}</tr>')
    caption = f"{column}: each line is what was right, each column what was said"
    return (
        f'<div class="wide"><table class="confusion"><caption>{caption}</caption><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def pair_html(pair: dict[str, str]) -> str:
    """A pair to vote on, blind."""
    cells = [("Prompt", pair["prompt"]), ("Left", pair["left"]), ("Right", pair["right"])]
    head = "".join(f'<th scope="col">{title}</th>' for title, _ in cells)
    line = "".join(
        f'<td data-title="{title}"><pre>{html.escape(text)}</pre></td>' for title, text in cells
    )
    return f'<table class="answers"><thead><tr>{head}</tr></thead><tbody><tr>{line}</tr></tbody></table>'
