"""Reads CSV and TSV; every field stays text, and errors name the row and the line."""

import csv
import io
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING

from peft_space.data.column_mapping import is_known_name
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

_DELIMITERS = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "vertical bars"}
_RARE_DELIMITERS = {
    "^": "the character ^", "~": "tildes", "\x01": "control characters (1)",
    "\x1f": "control characters (31)", "¦": "broken bars", "§": "the character §",
}  # fmt: skip
_NUM_PEEKED = 50
"""Records from which the delimiter and the header are detected."""


def read_delimited(
    name: str, file: IO[str], sample: str, is_tsv: bool, note: Note
) -> Iterator[NumberedRow]:
    """Yield the rows of a CSV or TSV file.

    Args:
        name: the file, for messages.
        file: the file, at its beginning; opened with `newline=""`.
        sample: the beginning of the file, from which the delimiter is detected.
        is_tsv: True if the file name ends in .tsv.
        note: receives a sentence about what was detected.

    Raises:
        UserError: a row does not fit the header or is not valid CSV.
    """
    if _MARKDOWN.match(sample):
        yield from _read_markdown(name, file)
        return
    declared, names = _DECLARED.match(sample), None
    if declared:
        delimiter = declared["sep"] or _ANKI_DELIMITERS[declared["name"].lower()]
        names = _ANKI_COLUMNS.search(declared[0])
        sample = sample[declared.end() :]
    elif is_tsv and "\t" in sample.lstrip().split("\n", 1)[0]:
        delimiter = "\t"
    else:
        delimiter = _detect_delimiter(sample)
    csv.field_size_limit(MAX_ROW_CHARACTERS)
    num_declared = declared[0].count("\n") if declared else 0
    is_quoted = delimiter != "\t" or _is_quoted_tsv(file, num_declared, note)
    file.seek(0)
    _skip(file, num_declared)
    reader = csv.reader(
        file,
        delimiter=delimiter,
        strict=True,
        quoting=csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE,
        skipinitialspace=is_quoted and f'"{delimiter} "' in sample,
    )
    records = _records(name, reader)
    peeked = list(itertools.islice(records, _NUM_PEEKED))
    if not peeked:
        return
    if num_above := _lines_above([record for _, record in peeked]):
        above = " ".join(" ".join(filter(None, record)) for _, record in peeked[:num_above])
        if above.strip():
            note(f"Lines above the names of the columns are left out: {above[:_MAX_ABOVE]!r}.")
        peeked = peeked[num_above:]
    if names:
        columns, has_header = names[1].split(delimiter), False
        check_columns(name, columns)
    else:
        columns, has_header = detect_header(name, [record for _, record in peeked], note)
    if delimiter != ("\t" if is_tsv else ","):
        known = _DELIMITERS | _RARE_DELIMITERS
        note(f"The columns are separated by {known[delimiter]}.")
    width = len(columns)
    for number, (line, record) in enumerate(
        itertools.chain(peeked[1:] if has_header else peeked, records), 1
    ):
        if len(record) > width and not any(record[width:]):  # commas at the end of the line
            del record[width:]
        yield _row_of(name, number, line, columns, record)


def _row_of(
    name: str, number: int, line: int, columns: list[str], record: list[str]
) -> NumberedRow:
    """Return the row of a record.

    Raises:
        UserError: it has more or fewer fields than there are columns.
    """
    if len(record) != len(columns):
        fields = "1 field" if len(record) == 1 else f"{len(record)} fields"
        raise UserError(
            "data.ragged_row",
            f"{name}: row {number} (line {line}) has {fields}, but the first line has "
            f"{len(columns)}. Check the separators and quotation marks there.",
        )
    row = dict(zip(columns, record, strict=True))
    return number, json.dumps(row, ensure_ascii=False), row


_DECLARED = re.compile(
    r"\ufeff?(?:sep=(?P<sep>[,;\t|])\r?\n"  # the first line of files by Excel
    r"|#separator:(?P<name>(?i:tab|comma|semicolon|pipe)|[,;\t|])\r?\n"  # those by Anki
    r"(?:#[\w ]+:[^\n]*\n)*)"
)
_ANKI_DELIMITERS = {name: name for name in _DELIMITERS} | {
    "tab": "\t", "comma": ",", "semicolon": ";", "pipe": "|",
}  # fmt: skip
_ANKI_COLUMNS = re.compile(r"^#columns:(.*?)\r?$", re.MULTILINE)


_MARKDOWN = re.compile(r"\ufeff?\s*\|(?:[^|\n]*\|){2,}[ \t]*\r?\n[ \t]*\|(?:[ \t]*:?-+:?[ \t]*\|)+")


def _read_markdown(name: str, file: IO[str]) -> Iterator[NumberedRow]:
    """Yield the rows of a table in Markdown: its second line separates the names from the rows."""
    file.seek(0)
    columns: list[str] = []
    number = 0
    for line_number, line in enumerate(file, 1):
        if not (line := line.strip("\ufeff \t\r\n")):
            continue
        cells = [
            cell.strip().replace("\\|", "|")
            for cell in _BAR.split(line.removeprefix("|").removesuffix("|"))
        ]
        if not columns:
            columns = [cell or f"column {at}" for at, cell in enumerate(cells, 1)]
            check_columns(name, columns)
            continue
        if set(line) <= set("|:- \t"):
            continue
        number += 1
        yield _row_of(name, number, line_number, columns, cells)


_BAR = re.compile(r"(?<!\\)\|")


def _skip(file: IO[str], num_lines: int) -> None:
    for _ in range(num_lines):
        next(file)


def _is_quoted_tsv(file: IO[str], num_declared: int, note: Note) -> bool:
    """Return True if quotation marks around the fields of a TSV file are not part of the text.

    In most TSV files every line is a row, and a quotation mark is a part of the text like
    any other. Some programs quote fields, as in CSV; then a field can contain line breaks.
    """
    _skip(file, num_declared)
    width = 0
    is_any_quoted = is_stray = is_ragged = False
    for line in file:
        if not line.strip():
            continue
        num_fields = line.count("\t") + 1
        width = width or num_fields
        is_ragged |= num_fields != width
        if '"' in line and len(line) <= MAX_ROW_CHARACTERS:
            for field in line.rstrip("\r\n").split("\t"):
                if field.startswith('"'):
                    is_any_quoted = True
                    inner = field[1:-1].replace('""', "")
                    is_stray |= len(field) < 2 or field[-1] != '"' or '"' in inner
    is_quoted = is_any_quoted and not is_stray
    if is_any_quoted and (is_ragged or not is_stray):
        # a quoted field can contain a tab or a line break
        file.seek(0)
        _skip(file, num_declared)
        try:
            reader = csv.reader(file, delimiter="\t", strict=True)
            is_quoted = all(len(record) == width for record in reader if record)
        except csv.Error:
            is_quoted = False
    if is_any_quoted:
        note(
            "Quotation marks around fields are not part of the text."
            if is_quoted
            else "Quotation marks are part of the text: they are not in pairs around fields."
        )
    return is_quoted


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


_MAX_TITLES, _MAX_ABOVE = 5, 80


def _lines_above(records: list[list[str]]) -> int:
    """Return the number of the first records that are a title, and not the names of columns.

    They have one field, or one filled field, and a full record with a known name follows.
    """
    for number, record in enumerate(records[: _MAX_TITLES + 1]):
        filled = [cell.strip() for cell in record if cell.strip()]
        if len(record) > 1 and len(filled) == len(record):
            return number if any(map(is_known_name, filled)) else 0
        if len(filled) > 1 or any(map(is_known_name, filled)):
            return 0
    return 0


def _detect_delimiter(sample: str) -> str:
    """Return the delimiter that gives the first records the same, largest number of fields."""
    best, max_fields = ",", 1
    for delimiter in (*_DELIMITERS, *_RARE_DELIMITERS):
        records = _first_records(sample, delimiter)
        counts = {len(record) for record in records[_lines_above(records) :]}
        is_rare = delimiter in _RARE_DELIMITERS
        if is_rare and (max_fields > 1 or len(records) < 3):
            continue
        if len(counts) == 1 and max(counts) > max_fields:
            best, max_fields = delimiter, max(counts)
    if max_fields > 1:
        return best
    header = sample.split("\n", 1)[0]
    return max(_DELIMITERS, key=lambda delimiter: (header.count(delimiter), delimiter == ","))


def _first_records(sample: str, delimiter: str, is_quoted: bool = True) -> list[list[str]]:
    """Return the first records without the last, which may be cut off; empty if not valid."""
    lines = itertools.islice(io.StringIO(sample, newline=""), _NUM_PEEKED)
    try:
        records = list(
            csv.reader(
                lines,
                delimiter=delimiter,
                quoting=csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE,
            )
        )
    except csv.Error:
        return []
    records = [record for record in records if record]
    return records[:-1] if len(records) > 2 else records


def looks_delimited(sample: str, is_whole: bool) -> bool:
    """Return True if the beginning of a text is surely a table, and not prose with commas.

    A table has a header with the name of a known column, or as many tabs in each line.

    Args:
        sample: the beginning of the text.
        is_whole: True if that is the whole text.
    """
    if _DECLARED.match(sample) or _MARKDOWN.match(sample):
        return True
    for delimiter in _DELIMITERS:
        records = _first_records(sample, delimiter, is_quoted=delimiter != "\t")
        if len(records) < 2 or len(records[0]) < 2:
            continue
        names = [name.strip().lstrip("\ufeff").strip('"') for name in records[0]]
        if len({len(record) for record in records}) > 1:
            continue
        are_names = all(re.fullmatch(r"[\w #./()-]{0,40}", name) for name in names)
        if are_names and len(set(names)) == len(names) and any(map(is_known_name, names)):
            return True
        cells = [cell for record in records for cell in record]
        varies = all(len(set(column)) > 1 for column in zip(*records, strict=True))
        if delimiter == "\t" and len(records) >= 5 and varies and all(map(str.strip, cells)):
            return True
    return False


def detect_header(name: str, records: list[list[str]], note: Note) -> tuple[list[str], bool]:
    """Return the column names, and True if the first of the first records contains them."""
    record = records[0]
    cells = [cell.strip().lstrip("\ufeff") for cell in record]
    names = [cell or f"column {number}" for number, cell in enumerate(cells, 1)]
    columns = list(itertools.zip_longest(*records[1:], fillvalue=""))
    has_header = any(cells) and not all(
        _is_value(cell, columns[index] if index < len(columns) else ())
        for index, cell in enumerate(cells)
        if cell
    )
    if has_header and not any(map(is_known_name, cells)):
        # a word that is also a value of its column, such as a label, or differs in a number only
        pairs = zip(cells, columns, strict=False)
        has_header = not any(
            cell
            and [_NUMBER.sub("#", one.strip()) for one in column].count(_NUMBER.sub("#", cell)) > 1
            for cell, column in pairs
        )
    if not has_header:
        names = [f"column {number}" for number in range(1, len(record) + 1)]
        note("The first line contains no column names, so the names are column 1, column 2 …")
    else:
        unnamed = [number for number, cell in enumerate(cells, 1) if not cell]
        filled = [str(n) for n in unnamed if n <= len(columns) and any(columns[n - 1])]
        if len(filled) == 1:
            note(f"Column {filled[0]} has no name in the first line.")
        elif filled:
            note(f"Columns {', '.join(filled)} have no name in the first line.")
    check_columns(name, names)
    return names, has_header


_NUMBER = re.compile(r"\d+")


def _is_value(cell: str, others: Sequence[str] = ()) -> bool:
    """Return True for a number or a sentence, which cannot be the name of a column.

    A question can be a column name, as in survey forms, if the cells below it are not questions.
    """
    if cell.endswith("?") and len(cell) <= 200 and others:
        return sum(other.strip().endswith("?") for other in others) * 5 >= len(others)
    is_number = re.fullmatch(r"[-+]?[\d.,]+([eE][-+]?\d+)?%?", cell)
    return bool(is_number or len(cell) > 60 or re.search(r"[.!?]$|\n", cell))
