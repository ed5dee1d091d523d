"""Prompts for comparisons: from a text box, a file, or held-out rows; and general questions."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft_space.data.dataset import load_run_data
from peft_space.data.messages import PICTURE, BadRow, Message, shown_text
from peft_space.data.pictures import MAX_BYTES, Brought, Opener, place_pictures, too_many_bytes
from peft_space.data.row_normalization import (
    Conversation,
    Preference,
    Row,
    TextClassification,
    TokenClassification,
    UnpairedPreference,
)
from peft_space.data.table import Table, read_table
from peft_space.data.tokenization.template_sandbox import BatchTimeout, map_in_subprocesses
from peft_space.errors import UserError
from peft_space.runs.run import Run
from peft_space.storage.content_cache import get_or_create

MAX_PROMPTS = 1000
_MAX_ROWS_SEARCHED = 2000
PROMPT_SEPARATOR = "\n---\n"
_SEPARATOR_LINE = re.compile(r"(?m)^\s*---\s*$")
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
"""Names of a column of prompts, the likeliest first. In a file of one column any name will do."""

GENERAL_PROMPTS = (
    "What is the capital of France?",
    "How many days are in a week?",
    "Name three colours.",
    "Which is larger, 17 or 71?",
    "What is 12 plus 30?",
    "Translate into Spanish: Good morning.",
    "Write one sentence about the sea.",
    "What do bees make?",
    "Give a word that means the same as happy.",
    "Put in alphabetical order: pear, apple, fig.",
    "Is ice colder than steam? Answer yes or no.",
    "Explain in one sentence why the sky is dark at night.",
    "What comes next: 2, 4, 6, 8?",
    "Write a polite reply to: Can we meet tomorrow?",
    "Name an animal that can fly.",
    "Summarise in five words: The train was late because of snow.",
)
"""Short general questions, written for this app. An adapter should hardly change their answers.
A change of wording changes the scores."""


def split_prompts(text: str) -> list[str]:
    """The prompts in a text, separated by lines of three hyphens."""
    return [prompt.strip() for prompt in _SEPARATOR_LINE.split(text) if prompt.strip()]


def read_prompts(path: str | Path) -> list[str]:
    """Read the prompts in a file.

    A .txt file has them between lines of three hyphens, or else one on each line or paragraph. A
    table has them in one column.

    Raises:
        UserError: there are none or too many, or it is unclear which column has them.
    """
    name = Path(path).name
    table = read_table(str(path))
    if name.lower().endswith(".txt"):
        prompts = [row["text"] for _, row in table.rows()]
        text = "\n".join(prompts)
        prompts = split_prompts(text) if _SEPARATOR_LINE.search(text) else prompts
    else:
        column = _prompt_column(name, table)
        values = (row.get(column) for _, row in table.rows())
        texts = (value.strip() for value in values if isinstance(value, str))
        prompts = [text for text in texts if text]
    if not prompts:
        raise UserError(
            "evaluation.no_prompts",
            f"There is no prompt in {name}. Write one on each line, or a column named prompt.",
        )
    if len(prompts) > MAX_PROMPTS:
        raise UserError(
            "evaluation.too_many_prompts",
            f"{name} has {len(prompts):,} prompts. The limit is {MAX_PROMPTS:,}.",
        )
    return prompts


def _prompt_column(name: str, table: Table) -> str:
    if len(table.columns) == 1:
        return table.columns[0]
    by_lower_name = {column.lower(): column for column in table.columns}
    for prompt_column in PROMPT_COLUMNS:
        if prompt_column in by_lower_name:
            return by_lower_name[prompt_column]
    columns = ", ".join(table.columns[:8])
    raise UserError(
        "evaluation.no_prompt_column",
        f"{name} has no column of prompts, only {columns}. Rename one of them to prompt.",
    )


def held_out_prompts(run: Run, count: int, start: int = 0) -> list[dict[str, Any]]:
    """Prompts from the held-out rows of a run.

    Args:
        count: the number of prompts, at most one from each row.
        start: the number of the first one. After the last row comes the first one again.

    Returns:
        prompt, system and expected of each, and the paths of its `pictures` if it has some. Then
        <image> in the prompt is the place of each; without it, they precede the text.

    Raises:
        UserError: no held-out row is one question and one answer.
    """
    rows = load_run_data(run).held_out[:_MAX_ROWS_SEARCHED]
    prompts = [prompt for row in rows if (prompt := _prompt_of(row))]
    if not prompts:
        raise UserError(
            "evaluation.no_prompts",
            "This run has no held-out rows of one question and one answer. Type a prompt.",
        )
    return [prompts[(start + offset) % len(prompts)] for offset in range(min(count, len(prompts)))]


def _prompt_of(row: Row) -> dict[str, Any] | None:
    """The prompt of a row and its expected answer; None if it is not one question and answer."""
    match row:
        case TextClassification(second=None):
            return {"prompt": row.text, "system": "", "expected": row.label}
        case TokenClassification():
            pairs = zip(row.tokens, row.tags, strict=True)
            expected = " ".join(f"{word}/{tag}" for word, tag in pairs)
            return {"prompt": " ".join(row.tokens), "system": "", "expected": expected}
        case Conversation():
            messages, is_good = row.messages, True
        case UnpairedPreference():
            messages, is_good = row.messages, row.good
        case Preference():
            messages, is_good = [*row.prompt, *row.chosen], True
        case _:
            return None
    roles = [message["role"] for message in messages if message["role"] != "system"]
    if roles != ["user", "assistant"]:
        return None
    question: dict[str, Any] = {"prompt": shown_text(messages[-2]["content"])}
    if pictures := messages[-2].get("images"):
        question = {"prompt": question["prompt"].removeprefix("<image>" * len(pictures))}
        question["pictures"] = pictures
    return question | {
        "system": messages[0]["content"] if messages[0]["role"] == "system" else "",
        "expected": messages[-1]["content"] if is_good else "",
    }


_SECONDS = 30.0


def with_pictures(prompt: str, paths: Sequence[str | Path]) -> Message:
    """Return the message of a question about pictures.

    Args:
        prompt: with <image> in the place of each picture; without it, they precede the text.
        paths: files of pictures, which are opened in a child process.

    Raises:
        UserError: a picture cannot be opened, or the places do not fit.
    """
    try:
        message: Message = {"role": "user", "content": prompt}
        [placed] = place_pictures([message], [str(path) for path in paths])
        return placed | {"images": [_copy_of(Path(path)) for path in paths]} if paths else message
    except BadRow as error:
        raise UserError(
            "evaluation.unusable_picture", f"The prompt cannot be asked: {error}."
        ) from None


def _copy_of(path: Path) -> str:
    """Return the path of the plain copy of a picture."""
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= MAX_BYTES else None
    except OSError as error:
        reason = (error.strerror or "unknown error").lower()
        raise BadRow(f"the picture {path.name} cannot be read ({reason})") from None
    if content is None:
        raise BadRow(f"the picture {path.name} cannot be used: {too_many_bytes(size)}")
    brought = Brought()
    brought.add_named(path.name, content)
    key = brought.names[path.name]

    def write(folder: Path) -> None:
        (folder / key).write_bytes(content)
        try:
            opened = map_in_subprocesses(
                Opener, (Brought(folder, brought.names), folder), _open, [path.name], 1, _SECONDS
            )
            digest = next(iter(opened))
        except BatchTimeout:
            raise BadRow(f"the picture {path.name} took too long to open") from None
        (folder / "name.txt").write_text(f"{digest}.png")

    folder = get_or_create("prompt_pictures", key, write)
    return str(folder / (folder / "name.txt").read_text())


def _open(opener: Opener, name: str) -> str:
    [message] = opener.open_row([{"role": "user", "content": PICTURE, "images": [name]}])
    return message["images"][0]
