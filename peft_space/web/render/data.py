"""Text, HTML and tables of the Data tab, made from results alone: without gradio."""

import html
import json
from collections import Counter
from typing import Any

import pandas as pd

from peft_space.data.dataset import DEMO_DATA, source_of
from peft_space.data.table import short_name
from peft_space.recipe import Task
from peft_space.runs.run import Run
from peft_space.web.render.overview import bars_html, escape, tiles_of
from peft_space.web.render.tokens import (
    cut_html,
    row_pictures_html,
    tokens_box,
    tokens_html,
)

Check = dict[str, Any]
"""The result of the operation `check`."""

TASK_WORDS: dict[Task, str] = {
    "causal-lm": "to answer questions (or continue a text)",
    "seq2seq-lm": "to rewrite one text as another",
    "sequence-classification": "to classify texts",
    "token-classification": "to tag words",
    "dpo": "to prefer the better of two answers (DPO)",
    "kto": "to prefer good answers over bad ones (KTO)",
    "image-text-to-text": "to answer questions about pictures",
}
SKIPPED = "skipped"
"""The rows that cannot be used, among the findings."""
MAX_LABELS = 40
MAX_CELL_LENGTH = 60
_LEGEND = (
    '<p class="legend"><span class="trained">learned</span> '
    '<span class="trained end">end-of-answer token</span> '
    '<span class="masked">context only</span> <span class="cut">✂ truncated</span></p>'
)


def check_markdown(check: Check) -> str:
    """Return the detected format and the notes of the readers, in a few sentences."""
    notes = escape(" ".join(check["notes"]))
    lines = [f"**{escape(check['source'])}**: {check['rows']:,} rows. {escape(check['why'])}"]
    if notes:
        lines.append(notes)
    if check["task"]:
        lines.append(f"The model will learn {TASK_WORDS[check['task']]}.")
    return " ".join(lines)


def tiles_html(check: Check) -> str:
    """Return the figures of the data: rows for training and testing, lengths, problems."""
    repeated = f"{check['num_repeated']:,} duplicates" if check["num_repeated"] else ""
    tiles = [
        ("Training rows", f"{check['to_train']:,}", repeated, ""),
        ("Test rows", f"{check['held_out']:,}", "kept from training", "test"),
    ]
    if lengths := check.get("lengths"):
        cut = lengths["num_cut"]
        note = f"longest {lengths['longest']:,}, " + (
            f"{cut:,} truncated at {check['max_length']:,}" if cut else "nothing is truncated"
        )
        tiles.append(("Typical row", f"{lengths['median']:,} tokens", note, "warn" if cut else ""))
    skipped = check["num_problems"]
    note = "see below" if skipped else "every row can be used"
    tiles.append(("Skipped rows", f"{skipped:,}", note, "warn" if skipped else ""))
    return tiles_of(tiles)


def run_rows(run: Run) -> tuple[int, int]:
    """Return how many rows a run trains on, and how many it is tested on."""
    about = json.loads(run.path("data", "about.json").read_text(encoding="utf-8"))
    train, held_out = (
        sum(end - start for start, end in about[part]) for part in ("train", "held_out")
    )
    return train, held_out


def run_data_html(run: Run) -> str:
    """Return which data a run was made of."""
    train, held_out = run_rows(run)
    source = f'<p class="source"><b>{html.escape(source_of(run))}</b></p>'
    tiles = [
        ("Training rows", f"{train:,}", "", ""),
        ("Test rows", f"{held_out:,}", "kept from training", "test"),
    ]
    return f"{source}<p>This run keeps its copy of the data.</p>{tiles_of(tiles)}"


def columns_html(check: Check) -> str:
    """Return each column as a chip with its role; those that nothing uses stand out."""
    roles = {column: role for role, column in check["column_mapping"]["columns"].items()}
    unused = {one["name"]: one for one in check["unused"]}
    chips = [
        f'<span class="chip">{html.escape(column)} <b>{html.escape(role)}</b></span>'
        for column, role in roles.items()
    ]
    for name, one in unused.items():
        example = html.escape(_shorten(str(one["example"])))
        chips.append(
            f'<span class="chip unused" title="for example {example}">{html.escape(name)} '
            f"<b>not used</b></span>"
        )
    return f'<div class="chips"><span>Columns:</span>{"".join(chips)}</div>' if chips else ""


def findings_html(check: Check) -> str:
    """Return the problems and what to check before training, as cards with their rows."""
    cards = []
    if check["problems"]:
        reasons = Counter(problem["problem"] for problem in check["problems"])
        words = "; ".join(f"{reason} ({count:,})" for reason, count in reasons.most_common(3))
        cards.append(_finding("Skipped rows", check["num_problems"], f"{words}.", "bad", SKIPPED))
    for note in check.get("base_notes", []):
        cards.append(f'<div class="card warn"><b>Base model</b><p>{html.escape(note)}</p></div>')
    for finding in check["findings"]:
        fixed = finding["fix"] in check["column_mapping"]["fixes"]
        words = f"{finding['words']}{' ✓ Fixed.' if fixed else ''}"
        shows = finding["kind"] if finding["rows"] and finding["kind"] != "leaks" else ""
        cards.append(_finding(finding["title"], finding["count"], words, "warn", shows))
    if not cards:
        return '<p class="fair">✓ No problems found.</p>'
    return f'<div class="cards findings">{"".join(cards)}</div>'


def _finding(title: str, count: int, words: str, kind: str, shows: str) -> str:
    button = f'<button class="small" data-value="{shows}">Show rows</button>' if shows else ""
    return (
        f'<div class="card {kind}"><b>{html.escape(title)}: {count:,}</b>'
        f"<p>{html.escape(words)}</p>{button}</div>"
    )


def findings_rows(check: Check) -> dict[str, list[int]]:
    """Return the kind of each finding -> the numbers of its rows."""
    rows = {finding["kind"]: finding["rows"] for finding in check["findings"] if finding["rows"]}
    if check["problems"]:
        rows[SKIPPED] = [problem["row"] for problem in check["problems"]]
    return rows


def rows_table(browsed: dict[str, Any]) -> pd.DataFrame:
    """Return rows as they were brought, with what is wrong with them."""
    lines = [[str(row["row"]), row.get("problem", "✓"), *row["cells"]] for row in browsed["rows"]]
    return pd.DataFrame(lines, columns=["Row", "Check", *browsed["columns"]])


def range_words(browsed: dict[str, Any], offset: int) -> str:
    """Return which of the matching rows are shown."""
    if not browsed["rows"]:
        return "No rows match."
    last = offset + len(browsed["rows"])
    return f"Rows {offset + 1:,} to {last:,} of {browsed['matches']:,}"


def chat_html(row: dict[str, Any]) -> str:
    """Return a row as a conversation, or why it is skipped."""
    if problem := row.get("problem"):
        return f"<p><strong>Row {row['row']} is skipped:</strong> {html.escape(problem)}.</p>"
    bubbles = "".join(
        f'<div class="bubble {html.escape(one["role"])}"><small>{html.escape(one["role"])}</small>'
        f"<pre>{html.escape(one['content'])}</pre></div>"
        for one in row.get("messages") or []
    )
    if not bubbles:
        bubbles = f"<pre>{html.escape(chr(10).join(row['cells']))}</pre>"
    return (
        f'<div class="chat" tabindex="0" role="group" aria-label="Row {row["row"]}">{bubbles}</div>'
    )


def lengths_html(check: Check) -> str:
    """Return the histogram of row lengths in tokens."""
    width = int(check["bin_width"])
    bars = [
        (_range(int(bar["tokens"]), width), bar["rows"], bar["cut"]) for bar in check["histogram"]
    ]
    return bars_html("Row length in tokens, and the number of rows", bars)


def _range(start: int, width: int) -> str:
    return f"{start:,}" if width == 1 else f"{start:,}–{start + width - 1:,}"


def labels_html(check: Check) -> str:
    """Return how many rows each of the most frequent labels has."""
    labels = list(check["labels"].items())[:MAX_LABELS]
    return bars_html("Rows of each label", [(label, count, False) for label, count in labels])


def mapping_label(mapping: dict[str, Any]) -> str:
    """Return one way to read a file, to choose from, with the first row read that way."""
    roles = ", ".join(f"“{column}” is the {role}" for role, column in mapping["columns"].items())
    first = "; ".join(
        f"{role}: {_shorten(str(cell))}" for role, cell in mapping["first_row"].items()
    )
    left_out = ", ".join(f"“{column}”" for column in mapping.get("left_out") or [])
    left_out = f", leaving out {left_out}" if left_out else ""
    speaker = mapping.get("assistant")
    assistant = f", “{speaker}” is the assistant" if speaker else ""
    return f"{mapping['schema']}: {roles}{assistant}{left_out}. First row: {first}"


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_CELL_LENGTH else line[: MAX_CELL_LENGTH - 1] + "…"


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
    pictures = row_pictures_html(example.get("pictures", []))
    legend = (
        _legend(example) if learns_text else "<p>The model reads the text and learns the label.</p>"
    )
    pieces = ""
    if "pieces" in example:
        pieces = f"<p>This is the first of {example['pieces']} pieces of a long text.</p>"
    return f"{legend}{pictures}{tokens}{label}{pieces}"


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
    return legend + tokens_box(f"{name}, tags", " ".join(tokens) + cut_html(num_cut))


def source_html(data: str | list[str]) -> str:
    """Return the one chip that says which data the page uses."""
    return f'<p class="source"><b>{escape(names_of(data))}</b></p>'


def names_of(data: str | list[str]) -> str:
    """Return the names of the files or the dataset."""
    if data == DEMO_DATA:
        return "Example: support tickets"
    return " + ".join(short_name(path) for path in ([data] if isinstance(data, str) else data))


def examples_html(examples: dict[str, tuple[str, str]]) -> str:
    """Return one button per example.

    Args:
        examples: kind -> title and description.
    """
    buttons = "".join(
        f'<button class="row" data-value="{kind}" id="use-{kind}"><b>{escape(title)}</b>'
        f"<small>{escape(about)}</small></button>"
        for kind, (title, about) in examples.items()
    )
    return f'<div class="list">{buttons}</div>'
