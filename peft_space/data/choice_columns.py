"""Reads multiple-choice questions: a column for each choice, or a list of them, and a key."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from peft_space.data.cells import choices_of
from peft_space.data.column_mapping import normalized
from peft_space.data.readers import WrittenNumber

Row = dict[str, Any]
Numbered = tuple[int, Row]

_CHOICE = re.compile(
    r"(?P<word>(?:choice|option|opt|op|ending|candidate|sol|answer|ans|holding|alternative|antwort"
    r"|opcion|opción|réponse|reponse|risposta|respuesta|resposta)_?)?"
    r"(?P<mark>[a-z]|[0-8])",
    re.IGNORECASE,
)
_QUESTIONS = (
    "question", "ctx", "prompt", "premise", "query", "context", "sentence", "goal", "stem",
    "problem", "question_stem", "citing_prompt", "frage", "pregunta", "pergunta", "domanda",
)  # fmt: skip
_KEYS = (
    "answerkey", "answer_key", "correct_option", "correct_answer", "correct_choice", "correct",
    "right_answer", "answer_idx", "answer_index", "correct_idx", "correct_index",
    "correct_answer_idx", "answer", "label", "cop", "target", "gold", "key", "ans", "right",
    "correct_letter", "correct_ans", "correct_answer_letter", "right_option", "solution",
    "correct_answer(s)", "correct_answers", "richtig", "lösung", "richtige_antwort", "correcta",
    "respuesta_correcta", "bonne_réponse", "risposta_corretta", "resposta_correta",
)  # fmt: skip
_SAMPLE_ROWS = 1_000
"""Rows that decide if numbers of choices begin with 0."""


def has_choice_columns(row: Row) -> bool:
    """Return True if a row has a question, several choices in columns or a list, and a key.

    `have_keys` says if the keys of the rows are such.
    """
    row = _with_columns(row)
    columns, key = _choice_columns(row), _key_of(row)
    if not columns or key is None or _question_of(row, columns) is None:
        return False
    return sum(row[name] not in (None, "") for name in columns.values()) > 1


_MOST = 0.8


def have_keys(rows: Sequence[Row]) -> bool:
    """Return True if most rows have a key that names a choice, or an empty key."""
    known = 0
    for row in map(_with_columns, rows):
        columns, key = _choice_columns(row), row[_key_of(row) or ""]
        is_known = any(_place(key, columns, row, rule) is not None for rule in _RULES)
        known += key in (None, "", -1, "-1") or is_known
    return known >= _MOST * len(rows)


def join_choices(rows: Iterator[Numbered]) -> Iterator[Numbered]:
    """Yield the rows with their choices in one column, and the right one as the answer.

    A key is the mark of a column (`B`, `2`), the text of a choice, or a number. The first rows
    decide for all of them: if a key is a number or a text, and if numbers begin with 0 or 1.
    """
    rows = ((number, _with_columns(row)) for number, row in rows)
    sample = list(itertools.islice(rows, _SAMPLE_ROWS))
    rule = _rule_of([row for _, row in sample])
    for number, row in itertools.chain(sample, rows):
        columns, key = _choice_columns(row), _key_of(row)
        question = _question_of(row, columns) if columns else None
        if question is None or key is None:
            yield number, row
            continue
        filled = [name for name in columns.values() if row[name] not in (None, "")]
        place = _place(row[key], columns, row, rule)
        used = {question, key, *columns.values()}
        asked = str(row[question])
        if "premise" in row and question != "premise":  # as COPA has it
            used.add("premise")
            asked = f"{row['premise']}\n{asked}"
        answer = None if _whole(row[key]) is not None else row[key]
        if place is not None:
            name = list(columns.values())[place]
            answer = f"{chr(ord('A') + filled.index(name))}. {row[name]}"
        rest = {name: cell for name, cell in row.items() if name not in used}
        given = rest.pop("answer", None)
        if given is not None and str(given).strip() not in _texts_of(row):
            rest["given answer"] = given
        choices = [str(row[name]) for name in filled]
        yield number, {"question": asked, "choices": choices, "answer": answer, **rest}


def _with_columns(row: Row) -> Row:
    """Return a row with a column for each choice of a list, if a key says which one is right."""
    question = row.get("question")
    if isinstance(question, dict) and isinstance(question.get("stem"), str):  # as in ARC's file
        row = row | {**question, "question": question["stem"]}
        del row["stem"]
    for name in _LISTS:
        texts = [text for _, text in choices_of(row.get(name)) or []]
        if not 1 < len(texts) <= _MAX_CHOICES:
            continue
        marks = [mark[1] for mark in map(_MARKED.match, texts) if mark]
        if marks == [chr(ord("A") + n) for n in range(len(texts))]:
            texts = [_MARKED.sub("", text) for text in texts]
        rest = {other: cell for other, cell in row.items() if other != name}
        # accepted answers next to the answer are not choices
        key = _key_of(rest)
        if key and (name, key.lower()) != ("answers", "answer") and _question_of(rest, {}):
            return rest | {f"choice_{chr(ord('a') + n)}": text for n, text in enumerate(texts)}
    return row


_LISTS = ("choices", "options", "endings", "candidates", "answers")
_MAX_CHOICES = 26
_MARKED = re.compile(r"\(?([A-Z])[).:]\s*")


@dataclass(frozen=True)
class _Rule:
    """How the keys of a table name a choice."""

    first: int
    """The number of the first choice: 0 or 1."""
    numbers_are_texts: bool = False
    """True if a number as a key is the text of a choice."""


_RULES = (_Rule(0), _Rule(1), _Rule(0, numbers_are_texts=True))


def _choice_columns(row: Row) -> dict[str, str]:
    """Mark -> column of each choice, in the order of the marks; empty if there are not several."""
    groups: dict[str, dict[str, str]] = {}
    for name in row:
        if match := _CHOICE.fullmatch(normalized(name)):
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
    by_name = {normalized(name): name for name in row}
    return next((by_name[name] for name in names if name in by_name), None)


def _key_of(row: Row) -> str | None:
    return _named(row, _KEYS)


def _question_of(row: Row, columns: dict[str, str]) -> str | None:
    name = _named(row, _QUESTIONS)
    return name if name not in columns.values() else None


def _rule_of(rows: list[Row]) -> _Rule:
    """Return the rule that the keys of the first rows follow.

    Numbers are texts if each of them is the text of a choice. They begin with 1 if the marks are
    numbers that do, if one of them is the number of choices, or if none of many is 0.
    """
    columns = next(filter(None, map(_choice_columns, rows)), {})
    name = next(filter(None, map(_key_of, rows)), "")
    keys = [(row, number) for row in rows if (number := _whole(row.get(name))) is not None]
    numbers = [number for _, number in keys if number != -1]
    is_text = bool(keys) and all(str(n) in _texts_of(row) for row, n in keys if n != -1)
    if is_text and not set(numbers) <= set(range(len(columns) + 1)):
        return _Rule(0, numbers_are_texts=True)
    if is_text and not any(isinstance(row.get(name), WrittenNumber | int) for row, _ in keys):
        return _Rule(0, numbers_are_texts=True)
    if not numbers or 0 in numbers or next(iter(columns), "") == "0":
        return _Rule(0)
    never_zero = len(numbers) >= 4 * len(columns)
    begins = next(iter(columns), "") == "1" or len(columns) in numbers or never_zero
    return _Rule(1 if begins else 0)


def _texts_of(row: Row) -> list[str]:
    return [str(row[name]).strip() for name in _choice_columns(row).values()]


def _place(key: Any, columns: dict[str, str], row: Row, rule: _Rule) -> int | None:
    """The place of the choice that a key names, from 0."""
    text = str(key).strip()
    texts = [str(row[name]).strip() for name in columns.values()]
    marks, names = list(columns), [name.lower() for name in columns.values()]
    number = _whole(key)
    if number is not None and not rule.numbers_are_texts:
        place = number - rule.first
        return place if 0 <= place < len(columns) and texts[place] else None
    if text in texts:
        return texts.index(text)
    bare = _BEFORE_MARK.sub("", text.lower()).strip("().: ")
    return marks.index(bare) if bare in marks else names.index(bare) if bare in names else None


_BEFORE_MARK = re.compile(r"^(?:option|choice|answer)\s+")


def _whole(cell: Any) -> int | None:
    text = str(cell).strip().removesuffix(".0")
    return int(text) if re.fullmatch(r"-?\d{1,3}", text) and not isinstance(cell, bool) else None
