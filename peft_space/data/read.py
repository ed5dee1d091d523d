"""Reads a data file into a Table of rows, each value exactly as written. Knows nothing about what the rows mean."""

import csv
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_space import settings
from peft_space.demo import HELD_OUT_FILE, TRAIN_FILE
from peft_space.errors import UserError

SUFFIXES = (".json", ".jsonl", ".csv")


@dataclass(frozen=True)
class Table:
    """Rows of a file. `rows[i]` was row `numbers[i]` of the file, counted from 1 without a header (in .jsonl: the line)."""

    source: str
    sha256: str
    columns: list[str]
    rows: list[dict[str, Any]]
    numbers: list[int]


def read_table(path: str | Path) -> Table:
    """The rows of a .json (list of objects, or JSON Lines), .jsonl or .csv file in UTF-8.

    Raises UserError where the file is missing, too large, empty, of another kind, or broken, naming the line.
    """
    path = Path(path)
    name = path.name
    content = _bytes_of(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: byte {error.start + 1} is not UTF-8 text. Save the file as UTF-8 and bring it again.") from None
    if not text.strip():
        raise UserError(f"{name}: the file is empty. Bring a file with at least one row.")
    reader = {".csv": _read_csv, ".jsonl": _read_json_lines, ".json": _read_json}[path.suffix.lower()]
    numbered = reader(name, text)
    if not numbered:
        raise UserError(f"{name}: there are no rows in it. Bring a file with at least one row.")
    columns = list(dict.fromkeys(column for _, row in numbered for column in row))
    return Table(name, hashlib.sha256(content).hexdigest(), columns, [row for _, row in numbered], [number for number, _ in numbered])


def demo_tables() -> tuple[Table, Table]:
    """The built-in sample data: rows to train on, rows to score on."""
    return read_table(TRAIN_FILE), read_table(HELD_OUT_FILE)


def _bytes_of(path: Path) -> bytes:
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path.name}: files of this kind are not read. Bring one of {', '.join(SUFFIXES)}.")
    try:
        size = path.stat().st_size
        if size > settings.max_file_megabytes() * 1e6:
            limit = f"{settings.max_file_megabytes():g} MB"
            raise UserError(
                f"{path.name}: the file has {size / 1e6:.1f} MB, the limit is {limit}. Bring fewer rows, or raise PEFT_SPACE_MAX_FILE_MB."
            )
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read ({(error.strerror or 'unknown error').lower()}). Check its name.") from None


def _read_csv(name: str, text: str) -> list[tuple[int, dict[str, Any]]]:
    try:
        dialect = csv.Sniffer().sniff(text[:20_000], delimiters=",;\t|")
    except csv.Error:
        dialect = csv.excel
    csv.field_size_limit(10_000_000)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=dialect.delimiter, strict=True)
    try:
        header, *records = [record for record in reader if record]
    except csv.Error as error:
        raise UserError(f"{name}: line {reader.line_num} is not CSV ({error}). Check the quotation marks there.") from None
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise UserError(f"{name}: the column {twice[0]!r} occurs twice in the first line. Give every column a name of its own.")
    for number, record in enumerate(records, 1):
        if len(record) != len(header):
            raise UserError(
                f"{name}: row {number} has {len(record)} fields, the first line has {len(header)}. Check the commas and quotation marks there."
            )
    return [(number, dict(zip(header, record, strict=True))) for number, record in enumerate(records, 1)]


def _read_json_lines(name: str, text: str) -> list[tuple[int, dict[str, Any]]]:
    numbered = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            why = getattr(error, "msg", "nested too deeply")
            raise UserError(f'{name}: line {number} is not JSON ({why}). Every line must be one object like {{"prompt": …}}.') from None
        numbered.append((number, _object(name, number, row)))
    return numbered


def _read_json(name: str, text: str) -> list[tuple[int, dict[str, Any]]]:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        first_line = text.lstrip().split("\n", 1)[0].strip()
        if first_line.startswith("{") and first_line.endswith("}"):
            return _read_json_lines(name, text)
        where = f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise UserError(f'{name}: this is not JSON ({where}). Bring a list of objects like [{{"prompt": …}}].') from None
    if isinstance(value, dict):  # {"data": [...]}, or a single row
        lists = [inner for inner in value.values() if isinstance(inner, list) and inner and isinstance(inner[0], dict)]
        value = lists[0] if len(value) == 1 and lists and not {"messages", "conversations"} & set(value) else [value]
    if not isinstance(value, list):
        raise UserError(f'{name}: the file holds a single {type(value).__name__}. Bring a list of objects like [{{"prompt": …}}].')
    return [(number, _object(name, number, row)) for number, row in enumerate(value, 1)]


def _object(name: str, number: int, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(
            f'{name}: row {number} is a {type(row).__name__}, not an object. Every row must look like {{"prompt": …, "completion": …}}.'
        )
    return row
