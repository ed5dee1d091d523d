"""Text, HTML and tables of the Data tab, made from results alone: without gradio."""

import html
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from peft_space.data.column_mapping import SCHEMA_TITLES, Schema
from peft_space.data.dataset import DEMO_DATA, source_of
from peft_space.data.table import short_name
from peft_space.recipe import Task
from peft_space.runs.run import Run
from peft_space.web.render.overview import bars_html, escape, tiles_of

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
_LEARNED_FROM: dict[Schema, str] = {
    "text": "to continue texts like these",
    "preference": TASK_WORDS["dpo"],
    "unpaired_preference": TASK_WORDS["kto"],
    "text_classification": TASK_WORDS["sequence-classification"],
    "text_pair_classification": TASK_WORDS["sequence-classification"],
    "token_classification": TASK_WORDS["token-classification"],
    "image_text": TASK_WORDS["image-text-to-text"],
}
"""What a model learns from rows before a base model is chosen; otherwise answers."""
SKIPPED = "skipped"
"""The rows that cannot be used, among the findings."""
MAX_LABELS = 40
MAX_CELL_LENGTH = 60


def check_markdown(check: Check) -> str:
    """Return the detected format and the notes of the readers, in a few sentences."""
    notes = escape(" ".join(check["notes"]))
    lines = [f"**{escape(check['source'])}**: {check['rows']:,} rows. {escape(check['why'])}"]
    if notes:
        lines.append(notes)
    answers = "to write answers like those in your rows"
    learned = TASK_WORDS.get(check["task"]) or _LEARNED_FROM.get(check["schema"], answers)
    lines.append(f"The model will learn {learned}.")
    return " ".join(lines)


def tiles_html(check: Check) -> str:
    """Return the figures of the data: rows for training and testing, lengths, problems."""
    repeated = f"{check['num_repeated']:,} duplicates" if check["num_repeated"] else ""
    tiles = [
        ("Training rows", f"{check['to_train']:,}", repeated, ""),
        _test_tile(check["held_out"]),
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


def _test_tile(count: int) -> tuple[str, str, str, str]:
    if not count:
        return "Test rows", "0", "too few rows to keep some: the result cannot be tested", "warn"
    return "Test rows", f"{count:,}", "kept from training", "test"


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


def rows_table(browsed: dict[str, Any], used: Sequence[str] = ()) -> pd.DataFrame:
    """Return rows as they were brought, with what is wrong with them.

    Args:
        browsed: the result of the operation `browse`.
        used: the columns to show first.
    """
    columns = browsed["columns"]
    places = sorted(range(len(columns)), key=lambda place: columns[place] not in used)
    lines = [
        [str(row["row"]), row.get("problem", "✓"), *(row["cells"][place] for place in places)]
        for row in browsed["rows"]
    ]
    return pd.DataFrame(lines, columns=["Row", "Check", *(columns[place] for place in places)])


def range_words(browsed: dict[str, Any], offset: int) -> str:
    """Return which of the matching rows are shown."""
    if not browsed["rows"]:
        return "No rows match."
    last = offset + len(browsed["rows"])
    return f"Rows {offset + 1:,} to {last:,} of {browsed['matches']:,}"


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
    title = SCHEMA_TITLES[mapping["schema"]].capitalize()
    return f"{title}: {roles}{assistant}{left_out}. First row: {first}"


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_CELL_LENGTH else line[: MAX_CELL_LENGTH - 1] + "…"


def source_html(data: str | list[str]) -> str:
    """Return the one chip that says which data the page uses."""
    return f'<p class="source"><b>{html.escape(names_of(data))}</b></p>'


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
        f'<button class="row" data-value="{kind}" id="use-{kind}"><b>{html.escape(title)}</b>'
        f"<small>{html.escape(about)}</small></button>"
        for kind, (title, about) in examples.items()
    )
    return f'<div class="list">{buttons}</div>'
