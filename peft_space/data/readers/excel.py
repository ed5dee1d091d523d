"""Reads the first sheet with content of an .xlsx workbook."""

import itertools
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_space.data.readers import (
    MAX_ROW_CHARACTERS,
    Note,
    NumberedRow,
    as_written,
    check_row_length,
    check_unpacked_size,
    first_line,
)
from peft_space.data.readers.csv import detect_header
from peft_space.errors import UserError

if TYPE_CHECKING:
    from openpyxl.workbook import Workbook


def read_excel(name: str, path: Path, note: Note) -> Iterator[NumberedRow]:
    """Yield the rows of the first sheet that contains any.

    Raises:
        UserError: the workbook is damaged or too large, or a row has more cells than the header.
    """
    records = _records(_open(name, path), note)
    first = next(records, None)
    if first is None:
        return
    while first and first[-1] is None:
        first.pop()
    columns, has_header = detect_header(name, [cell or "" for cell in first], note)
    if not has_header:
        records = itertools.chain([first], records)
    for number, record in enumerate(records, 1):
        if any(cell is not None for cell in record[len(columns) :]):
            raise UserError(
                "data.ragged_row",
                f"{name}: row {number} has more cells than the first line has column names. "
                "Name the columns, or clear the cells.",
            )
        cells = [*record, *[None] * len(columns)]
        row = dict(zip(columns, cells, strict=False))
        yield number, json.dumps(row, ensure_ascii=False), row


def _open(name: str, path: Path) -> "Workbook":
    import openpyxl

    try:
        with zipfile.ZipFile(path) as archive:
            _check_parts(name, archive)
        return openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, EOFError) as error:
        raise UserError(
            "data.damaged_file",
            f"{name}: the .xlsx file is damaged or incomplete ({first_line(error)}). "
            "Save it again, or as .csv.",
        ) from None


def _records(book: "Workbook", note: Note) -> Iterator[list[str | None]]:
    """Yield the cells of each row that is not blank."""
    for sheet in book.worksheets:
        sheet.reset_dimensions()  # a stray cell in the last corner would make a million wide rows
    for sheet in book.worksheets:
        rows = ([_cell(cell) for cell in row] for row in sheet.iter_rows(values_only=True))
        filled = (row for row in rows if any(cell is not None for cell in row))
        if (first := next(filled, None)) is not None:
            if len(book.worksheets) > 1:
                note(f"Only the sheet {sheet.title!r} of {len(book.worksheets)} is read.")
            yield first
            yield from filled
            return


def _cell(value: Any) -> str | None:
    return None if value is None else str(as_written(value))


def _check_parts(name: str, archive: zipfile.ZipFile) -> None:
    """Raise UserError if the workbook, or a text that is read at once, does not fit in memory."""
    check_unpacked_size(name, sum(part.file_size for part in archive.infolist()))
    for part in archive.infolist():
        if part.file_size <= MAX_ROW_CHARACTERS:
            continue
        with archive.open(part) as file:
            length = 0  # characters since the last tag
            while block := file.read(1 << 20):
                tag = block.rfind(b"<")
                length = length + len(block) if tag < 0 else len(block) - 1 - tag
                check_row_length(name, "a cell", length)
