"""Prompts to compare by: from a box of text, a file, or a run's held-out rows, many at once. Knows nothing of models."""

import re
from pathlib import Path

from peft_space.data.dataset import load_run_data
from peft_space.data.records import (
    Conversation,
    Preference,
    Row,
    TextClassification,
    TokenClassification,
    UnpairedPreference,
)
from peft_space.data.table import read_table
from peft_space.errors import UserError
from peft_space.runs.run import Run

MOST_PROMPTS = 1000
_MOST_LOOKED_AT = 2000
BETWEEN = "\n---\n"
_LINE = re.compile(r"(?m)^\s*---\s*$")
PROMPT_COLUMNS = (
    "prompt",
    "question",
    "instruction",
    "input",
    "query",
    "source",
    "text",
    "sentence",
)
"""What a column of prompts is called, the likeliest first; a file of one column may call it anything."""


def split_prompts(text: str) -> list[str]:
    """The prompts of a text, with a line of three hyphens between each two."""
    return [prompt.strip() for prompt in _LINE.split(text) if prompt.strip()]


def read_prompts(path: str | Path) -> list[str]:
    """The prompts in a file: of .txt those between lines of three hyphens, or else each line or paragraph; of tables those of one column.

    Raises UserError where there are none, too many, or the column cannot be told.
    """
    name = Path(path).name
    table = read_table(str(path))
    if name.lower().endswith(".txt"):
        prompts = [row["text"] for _, row in table.rows()]
        together = "\n".join(prompts)
        prompts = split_prompts(together) if _LINE.search(together) else prompts
    else:
        known = {column.lower(): column for column in table.columns}
        column = next(
            (known[one] for one in PROMPT_COLUMNS if one in known),
            table.columns[0] if len(table.columns) == 1 else None,
        )
        if column is None:
            columns = ", ".join(table.columns[:8])
            raise UserError(
                "todo", f"{name} has no column of prompts, only {columns}. Name one of them prompt."
            )
        prompts = [
            row[column].strip()
            for _, row in table.rows()
            if isinstance(row.get(column), str) and row[column].strip()
        ]
    if not prompts:
        raise UserError(
            "todo", f"There is no prompt in {name}. Write one a line, or a column called prompt."
        )
    if len(prompts) > MOST_PROMPTS:
        raise UserError(
            "todo", f"{name} has {len(prompts):,} prompts. Take {MOST_PROMPTS:,} at most."
        )
    return prompts


def held_out_prompts(run: Run, count: int, start: int = 0) -> list[dict[str, str]]:
    """`count` of the rows that were not trained on, each as {prompt, system, expected}, from the `start`-th on and round again.

    Raises UserError where no row is one question and one answer.
    """
    asked = [one for row in load_run_data(run).held_out[:_MOST_LOOKED_AT] if (one := _asked(row))]
    if not asked:
        raise UserError(
            "todo", "This run has no held-out rows of one question and one answer. Type a prompt."
        )
    return [asked[(start + offset) % len(asked)] for offset in range(min(count, len(asked)))]


def _asked(row: Row) -> dict[str, str] | None:
    """A row as a prompt and its own answer, where it is one."""
    match row:
        case TextClassification(second=None):
            return {"prompt": row.text, "system": "", "expected": row.label}
        case TokenClassification():
            words = " ".join(
                f"{word}/{tag}" for word, tag in zip(row.tokens, row.tags, strict=True)
            )
            return {"prompt": " ".join(row.tokens), "system": "", "expected": words}
        case Conversation() | UnpairedPreference():
            messages, good = row.messages, not isinstance(row, UnpairedPreference) or row.good
        case Preference():
            messages, good = [*row.prompt, *row.chosen], True
        case _:
            return None
    if [message["role"] for message in messages if message["role"] != "system"] != [
        "user",
        "assistant",
    ]:
        return None
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    return {
        "prompt": messages[-2]["content"],
        "system": system,
        "expected": messages[-1]["content"] if good else "",
    }
