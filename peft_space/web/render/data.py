"""Text, HTML and tables of the Data tab, made from results alone: without gradio."""

import html
from collections.abc import Sequence
from typing import Any

import pandas as pd

from peft_space.recipe import Task
from peft_space.web.render.overview import escape

Check = dict[str, Any]
"""The result of the operation `check`."""

TASK_WORDS: dict[Task, str] = {
    "causal-lm": "to answer questions (or continue a text)",
    "seq2seq-lm": "to rewrite one text as another",
    "sequence-classification": "to classify texts",
    "token-classification": "to tag words",
    "dpo": "to prefer the better of two answers (DPO)",
    "kto": "to prefer good answers over bad ones (KTO)",
}
MAX_TOKENS = 2_000
MAX_LABELS = 40
MAX_CELL_LENGTH = 60
_LEGEND = (
    '<p class="legend"><span class="trained">learned</span> '
    '<span class="trained end">end-of-answer token</span> '
    '<span class="masked">context only</span> <span class="cut">✂ truncated</span></p>'
)


def check_markdown(check: Check) -> str:
    """Return a few sentences about the data: format, split, task, lengths, skipped rows."""
    source, notes = escape(check["source"]), escape(" ".join(check["notes"]))
    lines = [f"**{source}**: {check['rows']:,} rows. {escape(check['why'])} {notes}"]
    if " + " in check["source"]:
        lines.append("All listed files are combined. Remove any that don't belong with ×.")
    repeated = f"; {check['num_repeated']:,} duplicates skipped" if check["num_repeated"] else ""
    lines.append(
        f"{check['to_train']:,} rows for training, {check['held_out']:,} for testing{repeated}."
    )
    if check["task"]:
        lines.append(f"The model will learn {TASK_WORDS[check['task']]}.")
    if lengths := check.get("lengths"):
        count = lengths["num_cut"]
        truncated = f"{count:,} rows are truncated at {check['max_length']:,} tokens."
        lines.append(
            f"Typical row: {lengths['median']:,} tokens. Longest: {lengths['longest']:,}. "
            + (truncated if count else "Nothing is truncated.")
        )
    skipped = check["num_problems"]
    rows = "1 row" if skipped == 1 else f"{skipped:,} rows"
    lines.append(
        f"⚠ {rows} will be skipped (see below)." if skipped else "✓ Every row can be used."
    )
    return "\n\n".join(lines)


def findings_markdown(check: Check) -> str:
    """Return a list of things to check before training, each with its first rows."""
    lines = []
    for finding in check["findings"]:
        rows = ", ".join(map(str, finding["rows"][:5])) + (" …" if finding["count"] > 5 else "")
        where = f" ({'rows' if finding['count'] > 1 else 'row'} {rows})" if rows else ""
        fixed = " ✓ Fixed" if finding["fix"] in check["column_mapping"]["fixes"] else ""
        title = f"**{escape(finding['title'])}: {finding['count']:,}**{where}"
        lines.append(f"- {title}. {escape(finding['words'])}{fixed}")
    shown = ["**Things to check**", *lines] if lines else ["✓ No other issues found."]
    if check["unused"]:
        shown += ["", "**Not used**: the model never sees these."]
    for one in check["unused"]:
        example = escape(_shorten(str(one["example"])))
        shown.append(f"- {escape(one['name'])} ({one['rows']:,} rows), for example “{example}”")
    return "\n".join(shown)


def findings_rows(check: Check) -> dict[str, list[int]]:
    """Return the choices of the preview -> the numbers of their rows."""
    rows = {
        f"{finding['title']} ({finding['count']:,})": finding["rows"]
        for finding in check["findings"]
        if finding["rows"] and finding["kind"] != "leaks"
    }
    if check["problems"]:
        title = f"Skipped rows ({check['num_problems']:,})"
        rows[title] = [problem["row"] for problem in check["problems"]]
    return rows


def mapping_label(mapping: dict[str, Any]) -> str:
    """Return one way to read a file, to choose from, with the first row read that way."""
    roles = ", ".join(f"“{column}” is the {role}" for role, column in mapping["columns"].items())
    first = "; ".join(
        f"{role}: {_shorten(str(cell))}" for role, cell in mapping["first_row"].items()
    )
    left_out = ", ".join(f"“{column}”" for column in mapping.get("left_out") or [])
    left_out = f", leaving out {left_out}" if left_out else ""
    return f"{mapping['schema']}: {roles}{left_out}. First row: {first}"


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_CELL_LENGTH else line[: MAX_CELL_LENGTH - 1] + "…"


def labels_table(check: Check) -> pd.DataFrame:
    """Return the most frequent labels and their row counts, for a plot."""
    return pd.DataFrame(list(check["labels"].items())[:MAX_LABELS], columns=["label", "rows"])


def problems_table(check: Check) -> pd.DataFrame:
    """Return one line per skipped row."""
    lines = [[problem["row"], problem["problem"]] for problem in check["problems"]]
    return pd.DataFrame(lines, columns=["row", "problem"])


def lengths_table(check: Check) -> pd.DataFrame:
    """Return the histogram of row lengths, for a plot: tokens, rows, within the limit or not."""
    bars = [
        [bar["tokens"], bar["rows"], "truncated" if bar["cut"] else "within the limit"]
        for bar in check["histogram"]
    ]
    return pd.DataFrame(bars, columns=["tokens", "rows", "length"])


def example_html(example: dict[str, Any]) -> str:
    """Return a row as the model sees it in training, token by token, or why it is skipped."""
    name = f"Row {example['row']}"
    if "problem" in example:
        raw = f'<pre class="raw">{html.escape(example["raw"])}</pre>' if "raw" in example else ""
        problem = html.escape(example["problem"])
        return f"<p><strong>{name} is skipped:</strong> {problem}.</p>{raw}"
    if "tags" in example:
        return _tags_html(name, example["tags"], example["cut"])
    tokens = tokens_html(name, example["tokens"], example["cut"], example.get("unknown"))
    if "rejected" in example:
        rejected = tokens_html(
            f"{name}, rejected", example["rejected"], example["rejected_cut"],
            example.get("rejected_unknown"),
        )  # fmt: skip
        return _legend(example) + _titled("Preferred", tokens) + _titled("Rejected", rejected)
    if "target" in example:
        target = tokens_html(
            f"{name}, target", example["target"], example["target_cut"],
            example.get("target_unknown"),
        )  # fmt: skip
        return _legend(example) + _titled("Input", tokens) + _titled("Target", target)
    is_label = "label" in example
    label = f"<p><strong>Label:</strong> {html.escape(example['label'])}</p>" if is_label else ""
    learns_text = any(trained for _, trained in example["tokens"])
    legend = (
        _legend(example) if learns_text else "<p>The model reads the text and learns the label.</p>"
    )
    return f"{legend}{tokens}{label}"


def _legend(example: dict[str, Any]) -> str:
    if not any(key.endswith("unknown") for key in example):
        return _LEGEND
    return _LEGEND.replace("</p>", ' <s class="masked">unknown to the tokenizer</s></p>')


def _titled(title: str, content: str) -> str:
    return f"<p><strong>{title}</strong></p>{content}"


def _tags_html(name: str, tags: list[list[str]], num_cut: int) -> str:
    """Return tokens with their tags; untagged ones, such as later parts of a word, are gray."""
    tokens = [
        f'<span class="{"trained" if tag else "masked"}">{html.escape(text)}'
        f"{f'<sub>{html.escape(tag)}</sub>' if tag else ''}</span>"
        for text, tag in tags
    ]
    legend = "<p>The model learns the tag below each token. Gray tokens are context only.</p>"
    return legend + _tokens_box(f"{name}, tags", " ".join(tokens) + _cut_html(num_cut))


def _cut_html(num_cut: int) -> str:
    return f'<span class="cut">✂ {num_cut:,} tokens truncated</span>' if num_cut else ""


def _tokens_box(label: str, content: str) -> str:
    return f'<div class="tokens" role="group" aria-label="{label}" tabindex="0">{content}</div>'


def tokens_html(
    name: str, row: list[list[Any]], num_cut: int, unknown: Sequence[int] | None = None
) -> str:
    """Return a rendered row: learned tokens marked, ends of answers boxed, the others gray.

    Args:
        name: of the row, for screen readers.
        row: [text, whether the model learns it] of each token.
        num_cut: tokens beyond the length limit.
        unknown: places of tokens that stand for text which the tokenizer has no token for.
    """
    tokens = row[:MAX_TOKENS]
    pieces = []
    for number, (text, trained) in enumerate(tokens):
        kind = "masked"
        if trained:
            kind = "trained end" if not num_cut and _ends_answer(row, number) else "trained"
        shown = html.escape(text).replace("\n", '<span class="break">↵</span>\n')
        shown = shown or '<span class="break">‧</span>'  # the character continues
        if number in (unknown or ()):
            kind, shown = f"{kind} unknown", f"<s>{shown}</s>"
        pieces.append(f'<span class="{kind}" title="token {number + 1}: {kind}">{shown}</span>')
    if more := len(row) - len(tokens):
        pieces.append(f'<span class="masked"> … and {more:,} more tokens</span>')
    return _tokens_box(f"{name}, token by token", "".join(pieces) + _cut_html(num_cut))


def _ends_answer(row: list[list[Any]], number: int) -> bool:
    return number + 1 == len(row) or (number + 1 < MAX_TOKENS and not row[number + 1][1])
