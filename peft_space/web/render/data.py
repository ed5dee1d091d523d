"""What the Data tab shows, from results alone: without gradio."""

import html
from typing import Any

import pandas as pd

from peft_space.recipe import Task
from peft_space.web.render.overview import escape

TASKS_IN_WORDS: dict[Task, str] = {
    "causal-lm": "to answer, or to go on with a text",
    "seq2seq-lm": "to write one text from another",
    "sequence-classification": "which label a text has",
    "token-classification": "which tag each word has",
    "dpo": "which of two answers is better (DPO)",
    "kto": "which answers are good (KTO)",
}
_MOST_TOKENS_SHOWN = 2_000
_LONGEST_CELL = 60
_LEGEND = (
    '<p class="legend"><span class="trained">trained</span> <span class="trained end">end of the answer, trained</span> '
    '<span class="masked">read, not trained</span> <span class="cut">✂ cut off</span></p>'
)


def check_markdown(found: dict[str, Any]) -> str:
    """What was understood of the data, in a few sentences."""
    lines = [
        f"**{escape(found['source'])}**: {found['rows']:,} rows. {escape(found['why'])} {escape(' '.join(found['notes']))}"
    ]
    if " + " in found["source"]:
        lines.append(
            "All files in the list are read as one. Take away with × what does not belong to them."
        )
    repeated = (
        f"; {found['num_repeated']:,} that say the same as another are left out"
        if found["num_repeated"]
        else ""
    )
    lines.append(
        f"{found['to_train']:,} rows to train on, {found['held_out']:,} held out to score base and adapter{repeated}."
    )
    if found["task"]:
        lines.append(f"The model will learn {TASKS_IN_WORDS[found['task']]}.")
    if "lengths" in found:
        counted = found["lengths"]
        cut = (
            f"{counted['num_cut']:,} of the rows are cut off at the limit of {found['max_length']}"
            if counted["num_cut"]
            else "no row is cut off"
        )
        lines.append(
            f"A row has {counted['median']:,} tokens (median), {counted['longest']:,} at most; {cut}."
        )
    count = found["num_problems"]
    left_out = (
        "1 row cannot be used and is left out; it is"
        if count == 1
        else f"{count:,} rows cannot be used and are left out; they are"
    )
    lines.append(f"⚠ {left_out} listed below." if count else "✓ Every row can be used.")
    return "\n\n".join(lines)


def findings_markdown(found: dict[str, Any]) -> str:
    """What is worth telling before training, each with the first of its rows."""
    lines = []
    for finding in found["findings"]:
        rows = ", ".join(map(str, finding["rows"][:5])) + (" …" if finding["count"] > 5 else "")
        where = f" ({'rows' if finding['count'] > 1 else 'row'} {rows})" if rows else ""
        mended = " ✓ Mended." if finding["fix"] in found["column_mapping"]["fixes"] else ""
        lines.append(
            f"- **{escape(finding['title'])}: {finding['count']:,}**{where}. {escape(finding['words'])}{mended}"
        )
    return (
        "\n".join(["**Worth knowing**", *lines])
        if lines
        else "✓ Nothing else stands out in the rows."
    )


def findings_rows(found: dict[str, Any]) -> dict[str, list[int]]:
    """Choice in the preview -> the numbers of its rows."""
    rows = {
        f"{one['title']} ({one['count']:,})": one["rows"]
        for one in found["findings"]
        if one["rows"] and one["kind"] != "leaks"
    }
    if found["problems"]:
        rows[f"Rows that cannot be used ({found['num_problems']:,})"] = [
            problem["row"] for problem in found["problems"]
        ]
    return rows


def reading_in_words(column_mapping: dict[str, Any]) -> str:
    """One way to read a file, to choose from, with what the first row would then say."""
    chosen = ", ".join(
        f"“{column}” is the {role}" for role, column in column_mapping["columns"].items()
    )
    first = "; ".join(
        f"{role}: {_shortened(str(cell))}" for role, cell in column_mapping["first_row"].items()
    )
    return f"{column_mapping['schema']}: {chosen}. First row: {first}"


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_CELL else line[: _LONGEST_CELL - 1] + "…"


def labels_table(found: dict[str, Any]) -> pd.DataFrame:
    """The commonest labels and their rows."""
    return pd.DataFrame(list(found["labels"].items())[:40], columns=["label", "rows"])


def problems_table(found: dict[str, Any]) -> pd.DataFrame:
    """One line a row that cannot be used."""
    return pd.DataFrame(
        [[problem["row"], problem["problem"]] for problem in found["problems"]],
        columns=["row", "problem"],
    )


def lengths_table(found: dict[str, Any]) -> pd.DataFrame:
    """The histogram of token counts: tokens, rows, and whether a bar is within the limit."""
    bars = [
        [bar["tokens"], bar["rows"], "cut off" if bar["cut"] else "within the limit"]
        for bar in found["histogram"]
    ]
    return pd.DataFrame(bars, columns=["tokens", "rows", "fate"])


def example_html(example: dict[str, Any]) -> str:
    """A row as it will be trained, token by token, with its label, tags, target or rejected answer; else what is wrong with it."""
    name = f"Row {example['row']}"
    if "problem" in example:
        raw = f'<pre class="raw">{html.escape(example["raw"])}</pre>' if "raw" in example else ""
        return (
            f"<p><strong>{name} is left out:</strong> {html.escape(example['problem'])}.</p>{raw}"
        )
    if "tags" in example:
        return _tags_html(name, example["tags"], example["cut"])
    own = tokens_html(name, example["tokens"], example["cut"])
    if "rejected" in example:
        worse = tokens_html(f"{name}, rejected", example["rejected"], example["rejected_cut"])
        return f"{_LEGEND}<p><strong>Preferred</strong></p>{own}<p><strong>Rejected</strong></p>{worse}"
    if "target" in example:
        target = tokens_html(f"{name}, target", example["target"], example["target_cut"])
        return f"{_LEGEND}<p><strong>Read</strong></p>{own}<p><strong>To be written</strong></p>{target}"
    label = (
        f"<p><strong>Label:</strong> {html.escape(example['label'])}</p>"
        if "label" in example
        else ""
    )
    legend = (
        _LEGEND
        if any(trained for _, trained in example["tokens"])
        else "<p>The text is read; what is trained is its label.</p>"
    )
    return f"{legend}{own}{label}"


def _tags_html(name: str, tags: list[list[str]], cut: int) -> str:
    """Tokens, each that is trained with its tag below it; the others, such as the later parts of a word, grey."""
    tokens = [
        f'<span class="{"trained" if tag else "masked"}">{html.escape(text)}{f"<sub>{html.escape(tag)}</sub>" if tag else ""}</span>'
        for text, tag in tags
    ]
    end = f'<span class="cut">✂ {cut:,} tokens are cut off here</span>' if cut else ""
    legend = "<p>Trained is the tag below a token; grey tokens are read alone.</p>"
    return f'{legend}<div class="tokens" role="group" aria-label="{name}, tags" tabindex="0">{" ".join(tokens)}{end}</div>'


def tokens_html(name: str, row: list[list[Any]], cut: int) -> str:
    """A rendered row: trained tokens underlined on green, the end of an answer boxed, the others grey, and where it is cut off."""
    tokens = row[:_MOST_TOKENS_SHOWN]
    pieces = []
    for number, (text, trained) in enumerate(tokens):
        ends = (
            trained
            and (number + 1 == len(row) or (number + 1 < len(tokens) and not tokens[number + 1][1]))
            and not cut
        )
        kind = "trained end" if ends else "trained" if trained else "masked"
        shown = (
            html.escape(text).replace("\n", '<span class="break">↵</span>\n')
            or '<span class="break">‧</span>'
        )  # a character goes on
        pieces.append(f'<span class="{kind}" title="token {number + 1}: {kind}">{shown}</span>')
    if more := len(row) - len(tokens):
        pieces.append(f'<span class="masked"> … and {more:,} more tokens</span>')
    if cut:
        pieces.append(f'<span class="cut">✂ {cut:,} tokens are cut off here</span>')
    return f'<div class="tokens" role="group" aria-label="{name}, token by token" tabindex="0">{"".join(pieces)}</div>'
