"""Reads CSV and TSV; every field stays text, and errors name the row and the line."""

import csv
import itertools
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from peft_space.data.readers import (
    MAX_ROW_CHARACTERS,
    Note,
    NumberedRow,
    check_columns,
    check_row_length,
)
from peft_space.errors import UserError

if TYPE_CHECKING:
    import _csv

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def read_delimited(
    name: str, lines: Iterator[str], sample: str, is_tsv: bool, note: Note
) -> Iterator[NumberedRow]:
    """Yield the rows of a CSV or TSV file.

    Args:
        name: the file, for messages.
        lines: the lines of the file.
        sample: the beginning of the file, from which delimiter and quoting are detected.
        is_tsv: True if the file name ends in .tsv.
        note: receives a sentence about what was detected.

    Raises:
        UserError: a row does not fit the header or is not valid CSV.
    """
    declared = re.match(r"sep=([,;\t|])\r?\n", sample)  # first line of files written by Excel
    if declared:
        next(lines)
        sample = sample[declared.end() :]
    delimiter = declared[1] if declared else "\t" if is_tsv else _detect_delimiter(sample)
    # in most TSV files a quotation mark is part of the text
    is_quoted = not is_tsv or re.search(r'(^|\t)"[^\t\n]*"(\t|\r?$)', sample, re.M)
    csv.field_size_limit(MAX_ROW_CHARACTERS)
    reader = csv.reader(
        lines,
        delimiter=delimiter,
        strict=True,
        quoting=csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE,
    )
    records = _records(name, reader)
    first = next(records, None)
    if first is None:
        return
    columns, has_header = detect_header(name, first[1], note)
    if delimiter != ("\t" if is_tsv else ","):
        note(f"The columns are separated by {_DELIMITERS[delimiter]}.")
    if not has_header:
        records = itertools.chain([first], records)
    for number, (line, record) in enumerate(records, 1):
        if len(record) != len(columns):
            fields = "1 field" if len(record) == 1 else f"{len(record)} fields"
            raise UserError(
                "data.ragged_row",
                f"{name}: row {number} (line {line}) has {fields}, but the first line has "
                f"{len(columns)}. Check the separators and quotation marks there.",
            )
        row = dict(zip(columns, record, strict=True))
        yield number, json.dumps(row, ensure_ascii=False), row


def _records(name: str, reader: "_csv.Reader") -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, fields) for each record that is not blank."""
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "field limit" in str(error):
                place = f"a field of the row that begins on line {line}"
                check_row_length(name, place, MAX_ROW_CHARACTERS + 1)
            cause = "inside quoted text is not doubled"
            if "unexpected end" in str(error):
                cause = "is never closed"
            raise UserError(
                "data.invalid_csv",
                f"{name}: the row that begins on line {line} is not valid CSV: "
                f"a quotation mark {cause}. Check the quotation marks there.",
            ) from None
        if record and (len(record) > 1 or record[0].strip()):
            yield line, record


def _detect_delimiter(sample: str) -> str:
    """Return the delimiter that gives the first records the same, largest number of fields."""
    best, max_fields = ",", 1
    lines = sample.splitlines(keepends=True)[:50]
    for delimiter in _DELIMITERS:
        try:
            counts = [len(record) for record in csv.reader(lines, delimiter=delimiter) if record]
        except csv.Error:
            continue
        complete = counts[:-1] if len(counts) > 2 else counts  # the sample may cut the last record
        if complete and min(complete) == max(complete) > max_fields:
            best, max_fields = delimiter, complete[0]
    if max_fields > 1:
        return best
    header = sample.split("\n", 1)[0]
    return max(_DELIMITERS, key=header.count)


def detect_header(name: str, record: list[str], note: Note) -> tuple[list[str], bool]:
    """Return the column names, and True if `record`, the first one, contains them."""
    cells = [cell.strip().lstrip("\ufeff") for cell in record]
    names = [cell or f"column {number}" for number, cell in enumerate(cells, 1)]
    has_header = any(cells) and not all(_is_value(cell) for cell in cells if cell)
    if not has_header:
        names = [f"column {number}" for number in range(1, len(record) + 1)]
        note("The first line contains no column names, so the names are column 1, column 2 …")
    elif unnamed := [str(number) for number, cell in enumerate(cells, 1) if not cell]:
        note(f"Column {', '.join(unnamed)} has no name in the first line.")
    check_columns(name, names)
    return names, has_header


def _is_value(cell: str) -> bool:
    """Return True for a number or a sentence, which cannot be the name of a column."""
    is_number = re.fullmatch(r"[-+]?[\d.,]+([eE][-+]?\d+)?%?", cell)
    return bool(is_number or len(cell) > 60 or re.search(r"[.!?]$|\n", cell))
