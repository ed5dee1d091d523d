"""Reads JSON and JSON Lines; numbers stay text, exactly as written."""

import io
import json
import re
from collections.abc import Iterator
from typing import Any

from peft_space.data.cells import NotPythonError, python_to_json
from peft_space.data.column_mapping import listed_names
from peft_space.data.readers import Note, NumberedRow, WrittenNumber, check_row_length
from peft_space.errors import UserError

_MAX_NESTING = 100
"""Lists and objects inside one another. Python's own limit depends on the caller's stack."""
_USE_A_LIST = 'Use a list of objects such as [{"prompt": …}].'
_CHAT_KEYS = {"messages", "conversations", "conversation", "dialogue", "dialog", "turns"}


class _DuplicateKeyError(ValueError):
    """An object contains this key twice."""


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object. One of the values would be lost if a key occurred twice."""
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _DuplicateKeyError(next(key for key in keys if keys.count(key) > 1))
    return value


DECODER = json.JSONDecoder(
    parse_int=WrittenNumber,
    parse_float=WrittenNumber,
    parse_constant=str,
    object_pairs_hook=_reject_duplicate_keys,
)
"""Parses JSON and keeps numbers as the text that was written."""


def looks_like_json(sample: str, is_sure: bool) -> bool:
    """Return True if the beginning of a text is JSON, or objects as Python writes them.

    Args:
        sample: the beginning.
        is_sure: True if a bracket is enough, because the name of the file says that it is JSON.
    """
    text = sample.lstrip(_BLANK)
    if is_sure:
        return text.startswith(("{", "["))
    if not _JSON_START.match(text):
        return False
    opened = text.find("{")
    try:  # the first object, or a list that is not of objects
        first = text[opened:] if opened >= 0 else text
        value, end = DECODER.raw_decode(first)
        return isinstance(value, dict | list) and (opened >= 0 or end == len(first.rstrip(_BLANK)))
    except RecursionError:
        return True
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError) and error.pos >= len(text) - opened - 1:
            return True  # it is longer than the sample
        key = re.match(r"""\{\s*(['"])[^'"\n]{1,100}\1\s*:""", first)
        return key is not None


_JSON_START = re.compile(r"""\{\s*["'}]|\[\s*(?:\{\s*["'}]|"|\[)""")


_BLANK = "\ufeff\x1e \t\r\n"
"""White space, byte order marks, and the mark before each object of a JSON text sequence."""
_BETWEEN_ROWS = re.compile(r"[\ufeff\x1e\s,]*")


def read_json_lines(name: str, lines: Iterator[str], note: Note) -> Iterator[NumberedRow]:
    """Yield the objects of a file with one object on each line; the row number is the line number.

    Also reads objects that follow each other on a line, or that take several lines, and objects
    as Python writes them.

    Args:
        name: the file, for messages.
        lines: the lines of the file.
        note: receives a sentence about what is not JSON Lines.

    Raises:
        UserError: a line is not a JSON object; the message names the line.
    """
    notes = _Notes(note)
    last = 0
    for number, line in enumerate(lines, 1):
        check_row_length(name, f"line {number}", len(line))
        if not (line := line.strip(_BLANK)):
            continue
        if line.startswith(("//", "#")) and not last:
            notes.comment(number)
            continue
        try:
            row = DECODER.decode(line)
            _check_content(line)
            notes.nan(line, f"line {number}")
        except (ValueError, RecursionError) as error:
            repaired = _objects_of_line(line, error, number, notes)
            if repaired is None and getattr(error, "pos", -1) >= len(line):
                rest = f"{line}\n{''.join(lines)}".rstrip(_BLANK)
                yield from _read_objects(name, rest, number, last, notes)
                return
            if repaired is None:
                raise _invalid_line(name, number, _explain(error)) from None
            for text, row in repaired:
                last = max(last + 1, number)
                yield last, text, _check_object(name, last, row)
            continue
        if _is_table(row) and not _is_list_of_objects(row):  # a page of rows
            for one in row:
                last = max(last + 1, number)
                yield last, json.dumps(one, ensure_ascii=False), one
            continue
        last = max(last + 1, number)
        if _is_list_of_objects(row):
            row = {"messages": row}
            line = json.dumps(row, ensure_ascii=False)
        yield last, line, _check_object(name, last, row)


def _is_list_of_objects(row: Any) -> bool:
    """Return True for a list of objects in the place of a row: the messages of a conversation."""
    return _is_table(row) and any(_SPEAKERS & one.keys() for one in row)


_SPEAKERS = {"role", "from", "speaker", "author", "sender", "sender_name", "type", "user", "human"}


class _Notes:
    """Reports each kind of departure from JSON once, with the line where it is first."""

    def __init__(self, note: Note):
        self._note = note
        self._kinds: set[str] = set()

    def add(self, kind: str, sentence: str) -> None:
        if kind not in self._kinds:
            self._kinds.add(kind)
            self._note(sentence)

    def python(self, line: int) -> None:
        self.add(
            "python", f"Rows are written as in Python, not JSON (line {line}). They are converted."
        )

    def comment(self, line: int) -> None:
        self.add("comment", f"Line {line} is a comment. It is left out.")

    def not_lines(self, line: int) -> None:
        self.add(
            "not_lines",
            f"From line {line} on, a line is not exactly one object. Each object is a row.",
        )

    def nan(self, text: str, place: str) -> None:
        """Report a value NaN in `text`, which is valid JSON."""
        if "NaN" not in text or "nan" in self._kinds or not _NAN.search(text):
            return
        found: list[str] = []  # the match can be part of a text
        json.loads(text, parse_constant=found.append)
        if "NaN" in found:
            self.add("nan", f"A value is NaN ({place}). It is read as the text NaN, not as empty.")


_NAN = re.compile(r"[:\[,]\s*NaN\s*[,\]}]")


def _invalid_line(name: str, number: int, cause: str) -> UserError:
    return UserError(
        "data.invalid_json",
        f"{name}: line {number} is not valid JSON: {cause}. "
        'Every line must be an object such as {"prompt": …}.',
    )


def _is_python(text: str, error: Exception) -> bool:
    """Return True if an error of the JSON parser is at something that only Python writes."""
    return text[getattr(error, "pos", len(text)) :][:1] in ("'", "N", "T", "F", "(", "n")


def _objects_of_line(
    line: str, error: Exception, number: int, notes: _Notes
) -> list[tuple[str, Any]] | None:
    """Return (text, object) for each object on a line that is not valid JSON, or None."""
    if not isinstance(error, json.JSONDecodeError):
        return None
    is_python = error.msg != "Extra data" and _is_python(line, error)
    objects = []
    try:
        if is_python:
            line = python_to_json(line)
        position = _start_of_row(line, 0)
        while position < len(line):
            row, end = DECODER.raw_decode(line, position)
            if not isinstance(row, dict):
                return None
            _check_content(line[position:end])
            objects.append((line[position:end], row))
            position = _start_of_row(line, end)
    except (ValueError, RecursionError):
        return None
    if is_python:
        notes.python(number)
    if len(objects) > 1 or line.endswith(","):
        notes.not_lines(number)
    return objects


def _start_of_row(text: str, position: int) -> int:
    between = _BETWEEN_ROWS.match(text, position)
    return between.end() if between else position


def _read_objects(
    name: str, text: str, line: int, last: int, notes: _Notes
) -> Iterator[NumberedRow]:
    """Yield the objects of a text that may each take several lines.

    Args:
        name: the file, for messages.
        text: the objects.
        line: the number of the first line.
        last: the number of the row before.
        notes: receives what is not JSON Lines.
    """
    position, is_translated = _start_of_row(text, 0), False
    while position < len(text):
        number = max(last + 1, line)
        try:
            row, end = DECODER.raw_decode(text, position)
            check_row_length(name, f"the row that begins on line {line}", end - position)
            _check_content(text[position:end])
        except (ValueError, RecursionError) as error:
            if _is_python(text, error) and not is_translated:
                text, position = _translated(name, text[position:], line, notes), 0
                is_translated = True
                continue
            line += text.count("\n", position, getattr(error, "pos", position))
            raise _invalid_line(name, line, _explain(error)) from None
        notes.not_lines(line)
        notes.nan(text[position:end], f"line {line}")
        yield number, text[position:end], _check_object(name, number, row)
        last, begin = number, position
        position = _start_of_row(text, end)
        line += text.count("\n", begin, position)


def _translated(name: str, text: str, line: int, notes: _Notes) -> str:
    """Return JSON for rows that Python wrote. `line` is the number of the first line."""
    try:
        translated = python_to_json(text)
    except NotPythonError as error:
        line += text.count("\n", 0, error.position)
        raise _invalid_line(name, line, str(error)) from None
    notes.python(line)
    return translated


_PYTHON_START = re.compile(r"[\s\[{(]*'")


def read_json(name: str, text: str, note: Note) -> Iterator[NumberedRow]:
    """Yield the rows of a list of objects, an object of lists or objects, or a single object.

    Raises:
        UserError: the text is not valid JSON or contains no rows; the message names the place.
    """
    notes = _Notes(note)
    text = text.strip(_BLANK)
    if _PYTHON_START.match(text):
        text = _translated(name, text, 1, notes)
    if text.startswith("["):
        if _LISTS_IN_LINES.match(text):
            yield from read_json_lines(name, io.StringIO(text), note)
        else:
            yield from _read_list(name, text, notes)
        return
    try:
        value = DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        if text.startswith("{"):  # JSON Lines named .json, or objects that follow each other
            yield from read_json_lines(name, io.StringIO(text), note)
            return
        place = f"line {getattr(error, 'lineno', 1)}"
        raise _invalid_json(name, place, _explain(error)) from None
    if not isinstance(value, dict):
        kind = _kind_of(value)
        message = f"{name}: the file contains a single {kind}. {_USE_A_LIST}"
        raise UserError("data.not_rows", message)
    rows = _rows_of_object(name, value)
    rest = [key for key, part in value.items() if part is not rows]
    if 0 < len(rest) < len(value):
        note(f"The file also has {listed_names(rest)}: this is not used.")
    for number, row in enumerate(rows, 1):
        try:
            text = json.dumps(row, ensure_ascii=False)
            _check_content(text)
        except (ValueError, RecursionError) as error:
            raise _invalid_json(name, f"row {number}", _explain(error)) from None
        yield number, text, row


_LISTS_IN_LINES = re.compile(r"\[\s*\{.*\}\s*\][ \t\r]*\n\s*\[\s*\{")
"""Two lines that are lists of objects each."""


def _invalid_json(name: str, place: str, cause: str, advice: str = _USE_A_LIST) -> UserError:
    message = f"{name}: not valid JSON at {place}: {cause}. {advice}"
    return UserError("data.invalid_json", message)


def _line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _read_list(name: str, text: str, notes: _Notes) -> Iterator[NumberedRow]:
    position, number = len(text) - len(text[1:].lstrip()), 0
    closed = text[position : position + 1] == "]"
    while not closed:
        number += 1
        row, end = _decode_row(name, text, position, number)
        notes.nan(text[position:end], f"row {number}")
        if isinstance(row, str) or _is_list_of_objects(row):
            row = {"text" if isinstance(row, str) else "messages": row}
            yield number, json.dumps(row, ensure_ascii=False), row
        else:
            yield number, text[position:end], _check_object(name, number, row)
        position, closed = _after_row(name, text, end, number)


def _decode_row(name: str, text: str, position: int, number: int) -> tuple[Any, int]:
    try:
        row, end = DECODER.raw_decode(text, position)
        check_row_length(name, f"row {number}", end - position)
        _check_content(text[position:end])
    except (ValueError, RecursionError) as error:
        where = getattr(error, "pos", position)
        cause = _explain(error)
        if text[position : position + 1] == "]":
            cause = "there is a comma after the last row"
        if where >= len(text.rstrip()):
            cause = "the file ends in the middle of it; a part seems to be missing"
        place = f"line {_line_of(text, where)}, row {number}"
        raise _invalid_json(name, place, cause) from None
    return row, end


_SEPARATOR = re.compile(r"\s*([,\]])\s*")


def _after_row(name: str, text: str, end: int, number: int) -> tuple[int, bool]:
    """Return where the next row begins, and True if the list ends instead."""
    separator = _SEPARATOR.match(text, end)
    if separator is None:
        cause = (
            "the file ends inside the list"
            if end == len(text)
            else "there is no comma between two rows"
        )
        place = f"line {_line_of(text, end)}, after row {number}"
        raise _invalid_json(name, place, cause, "Use the whole file.")
    position = separator.end()
    if separator[1] == "]" and text[position:].strip():
        place = f"line {_line_of(text, position)}"
        cause = "there is text after the end of the list"
        raise _invalid_json(name, place, cause, "Use one list of rows per file.")
    return position, separator[1] == "]"


def _rows_of_object(name: str, value: dict[str, Any]) -> list[dict[str, Any]]:
    parts = list(value.values())
    lists = [part for part in parts if isinstance(part, list)]
    is_chat = any(key.lower() in _CHAT_KEYS and not _has_chats(value[key]) for key in value)
    tables = [key for key, part in value.items() if _is_table(part)]
    if {"features", "rows"} <= set(tables):  # an answer of the Hub's dataset viewer
        tables.remove("features")
    names = value.get("columns")
    if isinstance(names, list) and _is_list_of_lists(value.get("data"), len(names)):
        return [dict(zip(names, cells, strict=True)) for cells in value["data"]]  # pandas' "split"
    is_columns = len(lists) == len(parts) > len(tables) and len({len(one) for one in lists}) == 1
    if tables and not is_chat and not is_columns:
        if len(tables) > 1:
            names = ", ".join(tables)
            message = f"{name}: it contains several lists of rows ({names}). Use one file for each."
            raise UserError("data.several_tables", message)
        return value[tables[0]]
    if parts and len(lists) == len(parts) and not is_chat:
        if not is_columns and all(_are_pairs(part) for part in parts):
            return _rows_of_splits(value)
        are_texts = all(type(one) is str for part in lists for one in part)  # no written numbers
        if are_texts and len({len(part) for part in lists}) > 1:  # texts under their labels
            return [{"text": text, "label": key} for key in value for text in value[key]]
        return _rows_of_columns(name, value)
    if "chunkedPrompt" in value:  # an export of Google AI Studio
        return [value]
    if (inner := _inner_rows(name, value)) is not None:
        return inner
    are_texts = len(parts) > 1 and all(isinstance(part, str) for part in parts)
    if are_texts and sum(" " in key.strip() for key in value) > len(value) / 2:
        return [{"question": key, "answer": part} for key, part in value.items()]
    if parts and all(isinstance(part, dict) for part in parts):
        keys = [list(part) for part in parts]
        if all(key == keys[0] for key in keys) and all(key.isdigit() for key in keys[0]):
            # pandas writes a table by column like this
            return [{column: cells[index] for column, cells in value.items()} for index in keys[0]]
        return [row if "key" in row else {"key": key, **row} for key, row in value.items()]
    return [value]


def _are_pairs(part: Any) -> bool:
    return _is_list_of_lists(part, 2) and all(isinstance(one, str) for pair in part for one in pair)


def _rows_of_splits(value: dict[str, list[list[str]]]) -> list[dict[str, Any]]:
    """Return the rows of splits with pairs of a text and a label, as CLINC150 has them."""
    return [
        {"text": text, "label": label, "split": split}
        for split, pairs in value.items()
        for text, label in pairs
    ]


_MAX_DEPTH = 4


def _inner_rows(name: str, value: dict[str, Any], depth: int = 0) -> list[dict[str, Any]] | None:
    """Return the rows in the only object or list that answers of APIs wrap around them, or None."""
    inner = {key: part for key, part in value.items() if isinstance(part, dict)}
    if depth == _MAX_DEPTH or len(inner) != 1 or (depth == 0 and len(value) > _MAX_WRAPPER):
        return None
    [part] = inner.values()
    tables = [one for one in part.values() if _is_table(one)]
    if len(tables) == 1:
        return tables[0]
    rows = list(part.values())
    if len(rows) > 1 and _is_table(rows) and all(row.keys() == rows[0].keys() for row in rows):
        return [row if "key" in row else {"key": key, **row} for key, row in part.items()]
    return _inner_rows(name, part, depth + 1)


_MAX_WRAPPER = 8
"""Keys of an object that wraps rows, such as `status` and `data`. A row can have more."""


def _has_chats(part: Any) -> bool:
    """Return True for a list of conversations, each with a list of messages."""
    return _is_table(part) and all(
        any(key.lower() in _CHAT_KEYS and isinstance(row[key], list) for key in row) for row in part
    )


def _is_list_of_lists(part: Any, length: int) -> bool:
    return isinstance(part, list) and all(
        isinstance(cells, list) and len(cells) == length for cells in part
    )


def _is_table(part: Any) -> bool:
    return isinstance(part, list) and bool(part) and all(isinstance(row, dict) for row in part)


def _rows_of_columns(name: str, columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    if len({len(cells) for cells in columns.values()}) > 1:
        lengths = ", ".join(f"{key!r} has {len(cells)}" for key, cells in columns.items())
        message = f"{name}: the columns have different lengths ({lengths} values). Make them equal."
        raise UserError("data.unequal_columns", message)
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _check_object(name: str, number: int, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(
            "data.row_not_object",
            f"{name}: row {number} is a {_kind_of(row)}, not an object. "
            'Every row must look like {"prompt": …, "completion": …}.',
        )
    return row


def _kind_of(value: Any) -> str:
    kinds = {list: "list", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "text or number")


_CAUSES = {
    "Unterminated string": "a text is never closed",
    "Extra data": "something follows the end of the value",
    "Expecting property name": "a key in double quotes is missing",
    "Expecting value": "a value is missing",
    "Expecting ',' delimiter": "a comma is missing",
    "Expecting ':' delimiter": "a colon is missing",
    "Invalid control character": "a text contains a line break or another control character",
    "Invalid \\escape": "a backslash precedes a character that needs none",
    "Invalid \\\\uXXXX": "four hexadecimal digits are missing after \\u",
}
"""Beginning of a message of Python's json module -> cause in plain words."""


def _explain(error: Exception) -> str:
    if isinstance(error, _DuplicateKeyError):
        return f"an object has the key {str(error)!r} twice"
    if isinstance(error, json.JSONDecodeError):
        causes = (cause for start, cause in _CAUSES.items() if error.msg.startswith(start))
        return f"at character {error.colno} {next(causes, error.msg)}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


_SURROGATE = re.compile(
    r"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]"
)
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|([\[{])|([\]}])')


def _check_content(text: str) -> None:
    """Raise ValueError or RecursionError for valid JSON that later steps cannot write or walk."""
    if text.count("[") + text.count("{") > _MAX_NESTING:
        depth = 0
        for bracket in _BRACKETS.finditer(text):
            depth += bool(bracket[1]) - bool(bracket[2])
            if depth > _MAX_NESTING:
                raise RecursionError
    has_escapes = "\\ud" in text or "\\uD" in text  # far cheaper than the pattern
    if has_escapes and _SURROGATE.search(text):
        try:
            json.dumps(DECODER.decode(text), ensure_ascii=False).encode()
        except UnicodeEncodeError:
            cause = "a text contains half a character (a lone \\ud800 to \\udfff)"
            raise ValueError(cause) from None
