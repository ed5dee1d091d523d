"""Reads JSON and JSON Lines; numbers stay text, exactly as written."""

import json
import re
from collections.abc import Iterator
from typing import Any

from peft_space.data.readers import NumberedRow, WrittenNumber, check_row_length
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


def read_json_lines(name: str, lines: Iterator[str]) -> Iterator[NumberedRow]:
    """Yield one row for each line that is not blank; the row number is the line number.

    Raises:
        UserError: a line is not a JSON object; the message names the line.
    """
    for number, line in enumerate(lines, 1):
        check_row_length(name, f"line {number}", len(line))
        if not (line := line.strip("\ufeff \t\r\n")):
            continue
        try:
            row = DECODER.decode(line)
            _check_content(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                "data.invalid_json",
                f"{name}: line {number} is not valid JSON: {_explain(error)}. "
                'Every line must be an object such as {"prompt": …}.',
            ) from None
        yield number, line, _check_object(name, number, row)


def read_json(name: str, text: str) -> Iterator[NumberedRow]:
    """Yield the rows of a list of objects, an object of lists or objects, or a single object.

    Raises:
        UserError: the text is not valid JSON or contains no rows; the message names the place.
    """
    text = text.strip("\ufeff \t\r\n")
    if text.startswith("["):
        yield from _read_list(name, text)
        return
    try:
        value = DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        beginning = text.split("\n", 1)[0].strip()
        if beginning.startswith("{") and beginning.endswith("}") and "\n" in text:
            yield from read_json_lines(name, iter(text.split("\n")))  # JSON Lines named .json
            return
        place = f"line {getattr(error, 'lineno', 1)}"
        raise _invalid_json(name, place, _explain(error)) from None
    if not isinstance(value, dict):
        kind = _kind_of(value)
        message = f"{name}: the file contains a single {kind}. {_USE_A_LIST}"
        raise UserError("data.not_rows", message)
    for number, row in enumerate(_rows_of_object(name, value), 1):
        try:
            text = json.dumps(row, ensure_ascii=False)
            _check_content(text)
        except (ValueError, RecursionError) as error:
            raise _invalid_json(name, f"row {number}", _explain(error)) from None
        yield number, text, row


def _invalid_json(name: str, place: str, cause: str, advice: str = _USE_A_LIST) -> UserError:
    message = f"{name}: not valid JSON at {place}: {cause}. {advice}"
    return UserError("data.invalid_json", message)


def _line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _read_list(name: str, text: str) -> Iterator[NumberedRow]:
    position, number = len(text) - len(text[1:].lstrip()), 0
    closed = text[position : position + 1] == "]"
    while not closed:
        number += 1
        row, end = _decode_row(name, text, position, number)
        if isinstance(row, str):
            row = {"text": row}
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
    is_chat = any(key.lower() in _CHAT_KEYS for key in value)
    tables = [key for key, part in value.items() if _is_table(part)]
    if tables and not is_chat and len(tables) == len(lists):
        if len(tables) > 1:
            names = ", ".join(tables)
            message = f"{name}: it contains several lists of rows ({names}). Use one file for each."
            raise UserError("data.several_tables", message)
        return value[tables[0]]
    if parts and len(lists) == len(parts) and not is_chat:
        return _rows_of_columns(name, value)
    if parts and all(isinstance(part, dict) for part in parts):
        keys = [list(part) for part in parts]
        if all(key == keys[0] for key in keys) and all(key.isdigit() for key in keys[0]):
            # pandas writes a table by column like this
            return [{column: cells[index] for column, cells in value.items()} for index in keys[0]]
        return [row if "key" in row else {"key": key, **row} for key, row in value.items()]
    return [value]


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
    if _SURROGATE.search(text):
        try:
            json.dumps(DECODER.decode(text), ensure_ascii=False).encode()
        except UnicodeEncodeError:
            cause = "a text contains half a character (a lone \\ud800 to \\udfff)"
            raise ValueError(cause) from None
