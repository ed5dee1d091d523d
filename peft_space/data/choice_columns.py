"""Reads multiple-choice questions that have a column for each choice, such as `A` to `D`."""

import itertools
import re
from collections.abc import Iterator
from typing import Any

from peft_space.data.cells import listed

Row = dict[str, Any]
Numbered = tuple[int, Row]

_CHOICE = re.compile(
    r"(?P<word>(?:choice|option|opt|op|ending|candidate|sol)_?)?(?P<mark>[a-h]|[0-8])",
    re.IGNORECASE,
)
_QUESTIONS = (
    "question", "ctx", "prompt", "premise", "query", "context", "sentence", "goal", "stem",
    "problem",
)  # fmt: skip
_KEYS = (
    "answerkey", "answer_key", "correct_option", "correct_answer", "correct_choice", "correct",
    "right_answer", "answer", "label", "cop", "target", "gold", "key",
)  # fmt: skip
_SAMPLE_ROWS = 1_000
"""Rows that decide if numbers of choices begin with 0."""


def has_choice_columns(row: Row) -> bool:
    """Return True if a row has a question, a column for each of several choices, and a key."""
    row = _with_columns(row)
    columns, key = _choice_columns(row), _key_of(row)
    if not columns or key is None or _question_of(row, columns) is None:
        return False
    texts = [row[name] for name in columns.values() if row[name] not in (None, "")]
    is_known = any(_place(row[key], columns, row, first) is not None for first in (0, 1))
    return len(texts) > 1 and (row[key] in (None, "", -1, "-1") or is_known)


def join_choices(rows: Iterator[Numbered]) -> Iterator[Numbered]:
    """Yield the rows with their choices in one column, and the right one as the answer.

    A key is the mark of a column (`B`, `2`), the text of a choice, or a number. Numbers count from
    0, unless the marks are numbers and every key is one of them.
    """
    rows = ((number, _with_columns(row)) for number, row in rows)
    sample = list(itertools.islice(rows, _SAMPLE_ROWS))
    first = _first_number([row for _, row in sample])
    for number, row in itertools.chain(sample, rows):
        columns, key = _choice_columns(row), _key_of(row)
        question = _question_of(row, columns) if columns else None
        if question is None or key is None:
            yield number, row
            continue
        filled = {mark: name for mark, name in columns.items() if row[name] not in (None, "")}
        place = _place(row[key], columns, row, first)
        used = {question, key, *columns.values()}
        rest = {name: cell for name, cell in row.items() if name not in used}
        yield (
            number,
            {
                "question": row[question],
                "choices": [str(row[name]) for name in filled.values()],
                "answer": None if place is None else list(filled).index(list(columns)[place]),
                **rest,
            },
        )


def _with_columns(row: Row) -> Row:
    """Return a row with a column for each ending of a list of endings, as HellaSwag has them."""
    endings = listed(row.get("endings"))
    if not endings or len(endings) > _MAX_ENDINGS or not all(isinstance(e, str) for e in endings):
        return row
    rest = {name: cell for name, cell in row.items() if name != "endings"}
    return rest | {f"ending{number}": text for number, text in enumerate(endings)}


_MAX_ENDINGS = 9


def _choice_columns(row: Row) -> dict[str, str]:
    """Mark -> column of each choice, in the order of the marks; empty if there are not several."""
    groups: dict[str, dict[str, str]] = {}
    for name in row:
        if match := _CHOICE.fullmatch(name):
            word, mark = (match["word"] or "").lower(), match["mark"].lower()
            if word or not mark.isdigit():
                groups.setdefault(f"{word}{mark.isdigit()}", {})[mark] = name
    for marks in sorted(groups.values(), key=len, reverse=True):
        ordered = sorted(marks)
        follow = all(ord(b) - ord(a) == 1 for a, b in itertools.pairwise(ordered))
        if len(ordered) > 1 and follow and ordered[0] in ("0", "1", "a"):
            return {mark: marks[mark] for mark in ordered}
    return {}


def _named(row: Row, names: tuple[str, ...]) -> str | None:
    by_name = {name.lower(): name for name in row}
    return next((by_name[name] for name in names if name in by_name), None)


def _key_of(row: Row) -> str | None:
    return _named(row, _KEYS)


def _question_of(row: Row, columns: dict[str, str]) -> str | None:
    name = _named(row, _QUESTIONS)
    return name if name not in columns.values() else None


def _first_number(rows: list[Row]) -> int:
    """The number by which a key means the first choice: 0, or 1 if the marks begin with it."""
    columns = next(filter(None, map(_choice_columns, rows)), {})
    name = next(filter(None, map(_key_of, rows)), None)
    keys = {_whole(row.get(name or "")) for row in rows} - {None, -1}
    if not keys or 0 in keys or next(iter(columns), "") == "0":
        return 0
    return 1 if next(iter(columns), "") == "1" or len(columns) in keys else 0


def _place(key: Any, columns: dict[str, str], row: Row, first: int) -> int | None:
    """The place of the choice that a key names, from 0."""
    text = str(key).strip()
    texts = [str(row[name]).strip() for name in columns.values()]
    marks, names = list(columns), [name.lower() for name in columns.values()]
    number = _whole(key)
    if number is not None and text not in texts:
        place = number - first
        return place if 0 <= place < len(columns) and texts[place] else None
    if text in texts:
        return texts.index(text)
    bare = text.lower().strip("().: ")
    return marks.index(bare) if bare in marks else names.index(bare) if bare in names else None


def _whole(cell: Any) -> int | None:
    text = str(cell).strip().removesuffix(".0")
    return int(text) if re.fullmatch(r"-?\d{1,3}", text) and not isinstance(cell, bool) else None
