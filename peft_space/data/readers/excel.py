"""Reads a sheet of an .xlsx workbook; cells become the text that Excel shows."""

import datetime
import itertools
import json
import re
import statistics
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
from peft_space.data.schema_detection import is_known_name
from peft_space.errors import UserError

if TYPE_CHECKING:
    from openpyxl.workbook import Workbook

_Record = tuple[int, list[str | None]]
"""Number of a row in the sheet, and the texts of its cells."""
_NUM_PEEKED = 50
_MAX_LISTED = 5


def read_excel(name: str, path: Path, sheet: str, note: Note) -> Iterator[NumberedRow]:
    """Yield the rows of one sheet.

    Args:
        name: the workbook, for messages.
        path: the workbook.
        sheet: the sheet to read; if empty, the first with a table.
        note: receives a sentence about sheets, rows and cells that are not read as they are.

    Raises:
        UserError: the workbook is damaged or too large, it has no such sheet, or a row has more
            cells than the header.
    """
    book, formulas, layouts = _open(name, path)
    title = _choose_sheet(name, book, sheet, note)
    if title is None:
        return
    cells = _Cells(formulas[title] if formulas else None, layouts.get(title, _Layout([], set())))
    records = cells.records(book[title])
    peeked = list(itertools.islice(records, _NUM_PEEKED))
    titles = _num_title_rows(peeked)
    if titles:
        above = [next(filter(None, texts))[:60] for _, texts in peeked[:titles]]
        note(f"Above the header, these rows are not read: {'; '.join(map(repr, above))}.")
    peeked = peeked[titles:]
    width = max((n for n, cell in enumerate(peeked[0][1], 1) if cell is not None), default=0)
    cells_of_header = [[cell or "" for cell in texts[:width]] for _, texts in peeked]
    columns, has_header = detect_header(name, cells_of_header, note)
    records = itertools.chain(peeked[1:] if has_header else peeked, records)
    for number, (row_number, texts) in enumerate(records, 1):
        stray = next((n for n, cell in enumerate(texts) if n >= width and cell is not None), None)
        if stray is not None:
            raise UserError(
                "data.ragged_row",
                f"{name}: row {number} has more cells than the first line has column names "
                f"(cell {_letters(stray)}{row_number}). Name the columns, or clear the cells.",
            )
        row = dict(zip(columns, [*texts, *[None] * width], strict=False))
        yield number, json.dumps(row, ensure_ascii=False), row
    cells.report(note)


def find_sheets(name: str, path: Path) -> tuple[list[str], str | None]:
    """Return the sheets of a workbook, and the one that `read_excel` chooses.

    Raises:
        UserError: the workbook is damaged or too large.
    """
    book, _, _ = _open(name, path)
    return [one.title for one in book.worksheets], _choose_sheet(name, book, "", lambda note: None)


def _letters(column: int) -> str:
    """Return the letters of a column, from 0."""
    letters = ""
    column += 1
    while column:
        column, digit = divmod(column - 1, 26)
        letters = chr(ord("A") + digit) + letters
    return letters


class _Layout(NamedTuple):
    """What a sheet has besides the values of its cells."""

    merged: list[tuple[int, int, int]]
    """(first row, last row, column) of cells that are merged into one."""
    hidden: set[int]
    """Numbers of the rows that Excel does not show, for example because of a filter."""


def _open(name: str, path: Path) -> "tuple[Workbook, Workbook | None, dict[str, _Layout]]":
    """Return the workbook, again with formulas if it has any, and sheet -> layout."""
    import openpyxl

    try:
        with zipfile.ZipFile(path) as archive:
            has_formulas, layouts = _inspect_parts(name, archive)
        # from a path, openpyxl reads only names that end in .xlsx
        book = openpyxl.load_workbook(path.open("rb"), read_only=True, data_only=True)
        formulas = openpyxl.load_workbook(path.open("rb"), read_only=True) if has_formulas else None
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, EOFError) as error:
        raise UserError(
            "data.damaged_file",
            f"{name}: the .xlsx file is damaged or incomplete ({first_line(error)}). "
            "Save it again, or as .csv.",
        ) from None
    for one in filter(None, (book, formulas)):
        for sheet in one.worksheets:
            sheet.reset_dimensions()  # a stray cell in the last corner would make wide rows
    return book, formulas, layouts


def _choose_sheet(name: str, book: "Workbook", sheet: str, note: Note) -> str | None:
    """Return the title of the sheet to read, or None if no sheet contains anything."""
    titles = [one.title for one in book.worksheets]
    if sheet:
        if sheet not in titles:
            listed = ", ".join(titles)
            message = f"{name}: the sheet {sheet!r} does not exist. Choose one of {listed}."
            raise UserError("data.unknown_part", message)
        return sheet
    widths = {}  # sheet -> cells in the fullest of its first rows
    for one in book.worksheets:
        rows = (row for row in one.iter_rows(values_only=True) if any(c is not None for c in row))
        first = list(itertools.islice(rows, 20))
        is_table = len(first) > 1
        count = max((sum(c is not None for c in row) for row in first), default=0)
        is_hidden = one.sheet_state != "visible"
        if count:
            widths[one.title] = (not is_hidden) * 100 + is_table * min(count, 2)
    if not widths:
        return None
    chosen = max(widths, key=lambda title: widths[title])  # the first of the best
    if others := [title for title in widths if title != chosen]:
        note(
            f"The sheet {chosen!r} is read. Other sheets with content: "
            f"{', '.join(map(repr, others))}. Choose one on the page, or write #SHEET after the "
            "name of the file."
        )
    elif len(titles) > 1:
        note(f"Only the sheet {chosen!r} of {len(titles)} has content.")
    return chosen


def _num_title_rows(records: list[_Record]) -> int:
    """Return how many rows above the header have far fewer cells than the rows below them."""
    counts = [sum(cell is not None for cell in texts) for _, texts in records]
    skipped = 0
    while skipped < min(len(counts) - 2, 10):
        below = statistics.median(counts[skipped + 1 : skipped + 21])
        texts = list(filter(None, records[skipped][1]))
        if len(texts) * 2 > max(below, 2) or below < 2 or any(map(is_known_name, texts)):
            break
        skipped += 1
    return skipped


class _Cells:
    """Converts the cells of a sheet to text, and remembers those that are not as they are.

    Args:
        formulas: the same sheet with the formulas of its cells, or None if there are none.
        layout: of the sheet.
    """

    def __init__(self, formulas: Any, layout: _Layout):
        self._formulas = formulas
        self._merged, self._hidden_rows = sorted(layout.merged), layout.hidden
        self._hidden: list[str] = []
        self._unknown: list[str] = []
        self._errors: list[str] = []
        self._filled: list[str] = []

    def records(self, sheet: Any) -> Iterator[_Record]:
        """Yield each row that is not blank."""
        formulas = self._formulas.iter_rows() if self._formulas is not None else None
        waiting = iter(self._merged)
        upcoming = next(waiting, None)
        open_ranges: dict[int, tuple[int, str | None]] = {}  # column -> (last row, text)
        for number, row in enumerate(sheet.iter_rows(), 1):
            texts = [self._text(cell) for cell in row]
            for column, formula in enumerate(next(formulas, ()) if formulas else ()):
                value = texts[column] if column < len(texts) else None
                if value is None and getattr(formula, "data_type", "") == "f":
                    self._unknown.append(f"{_letters(column)}{number}")
            for column, (last, text) in list(open_ranges.items()):
                if number > last:
                    del open_ranges[column]
                    continue
                texts += [None] * (column + 1 - len(texts))
                texts[column] = text if texts[column] is None else texts[column]
            while upcoming is not None and upcoming[0] <= number:
                first, last, column = upcoming
                text = texts[column] if column < len(texts) else None
                if first == number and text is not None:
                    open_ranges[column] = (last, text)
                    self._filled.append(f"{_letters(column)}{first}:{_letters(column)}{last}")
                upcoming = next(waiting, None)
            if any(text is not None for text in texts):
                self._hidden += [str(number)] if number in self._hidden_rows else []
                yield number, texts

    def _text(self, cell: Any) -> str | None:
        value = cell.value
        if value is None:
            return None
        if cell.data_type == "e":
            self._errors.append(cell.coordinate)
        return value if isinstance(value, str) else as_shown(value, cell.number_format)

    def report(self, note: Note) -> None:
        """Report the cells that are not read as they are, and rows that Excel does not show."""
        if self._hidden:
            note(
                f"The sheet hides {len(self._hidden):,} rows, which are read too "
                f"(lines {_some(self._hidden)}). To leave them out, delete them from the sheet."
            )
        if self._filled:
            note(f"Merged cells: every row has their text ({_some(self._filled)}).")
        if self._unknown:
            note(
                f"Formulas without a stored result are read as empty ({_some(self._unknown)}). "
                "Open the workbook in Excel or LibreOffice and save it."
            )
        if self._errors:
            cells = _some(self._errors)
            note(f"Cells contain an error such as #N/A, which is read as text ({cells}).")


def _some(places: list[str]) -> str:
    rest = f" and {len(places) - _MAX_LISTED:,} more" if len(places) > _MAX_LISTED else ""
    return ", ".join(places[:_MAX_LISTED]) + rest


_NUMBER_FORMAT = re.compile(
    r"(?P<before>[$€£¥]?\s?)(?:(?P<thousands>#,##0)|(?P<digits>0+|#*0|#))(?P<places>\.0+)?"
    r"(?P<after>\s?%?\s?[$€£¥]?)"
)


def as_shown(value: Any, number_format: str) -> str:
    """Return a value of a cell as text: as its number format shows it, if that is a simple one."""
    if isinstance(value, datetime.datetime):
        has_time = re.search(r"[hs]", re.sub(r'"[^"]*"|\[[^]]*\]', "", number_format).lower())
        if not has_time and value.time() == datetime.time():
            return value.date().isoformat()
        return value.isoformat(sep=" ")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(as_written(value))
    # such as `_-* #,##0.00 "€"` or `[$€-407] 0.00;…`: the first part is for positive numbers
    pattern = number_format.split(";")[0]
    pattern = re.sub(r"\[\$([^-\]]*)[^]]*\]|\[[^]]*\]", lambda match: match[1] or "", pattern)
    pattern = re.sub(r"[_*].|\\", "", pattern).replace('"', "").strip()
    simple = _NUMBER_FORMAT.fullmatch(pattern)
    is_rounded = simple and not simple["places"] and "%" not in simple["after"] and value % 1
    if simple is None or is_rounded or (value < 0 and ";" in number_format):
        return str(value) if isinstance(value, int) else f"{value:.15g}"
    places = max(len(simple["places"] or "") - 1, 0)
    if "%" in simple["after"]:
        value *= 100
    width = len((simple["digits"] or "").replace("#", ""))
    written = f"{abs(value):{',' if simple['thousands'] else ''}.{places}f}"
    whole, _, fraction = written.partition(".")
    written = whole.zfill(width) + (f".{fraction}" if fraction else "")
    return ("-" if value < 0 else "") + simple["before"] + written + simple["after"]


_MERGED = re.compile(rb'<mergeCell\s+ref="([A-Z]{1,3})(\d{1,7}):([A-Z]{1,3})(\d{1,7})"')
_FORMULA = re.compile(rb"<(?:\w+:)?f[\s>/]")
_HIDDEN_ROW = re.compile(
    rb'<(?:\w+:)?row\s(?=[^>]*?\bhidden="(?:1|true)")[^>]*?\br="(\d{1,7})"[^>]*>'
)
_MAX_MERGED = 100_000
_MAX_TAG = 1_000
"""Bytes of a tag that two blocks of a file share."""


def _inspect_parts(name: str, archive: zipfile.ZipFile) -> tuple[bool, dict[str, _Layout]]:
    """Return True if a sheet has formulas, and sheet -> layout.

    Raises:
        UserError: the workbook, or a text that is read at once, does not fit in memory.
    """
    check_unpacked_size(name, sum(part.file_size for part in archive.infolist()))
    has_formulas = False
    layouts: dict[str, _Layout] = {}
    titles = _titles(archive)
    for part in archive.infolist():
        is_sheet = part.filename in titles
        if not is_sheet and part.file_size <= MAX_ROW_CHARACTERS:
            continue
        ranges: list[tuple[int, int, int]] = []
        hidden: set[int] = set()
        with archive.open(part) as file:
            length, rest = 0, b""  # characters since the last tag, and the end of the last block
            while block := file.read(1 << 20):
                tag = block.rfind(b"<")
                length = length + len(block) if tag < 0 else len(block) - 1 - tag
                check_row_length(name, "a cell", length)
                both = rest + block
                has_formulas |= is_sheet and _FORMULA.search(both) is not None
                for match in _MERGED.finditer(both) if is_sheet else ():
                    if match.end() > len(rest) and len(ranges) < _MAX_MERGED:
                        ranges.append((int(match[2]), int(match[4]), _column(match[1])))
                if is_sheet:
                    hidden.update(int(match[1]) for match in _HIDDEN_ROW.finditer(both))
                rest = both[-_MAX_TAG:]
        if is_sheet:
            tall = [one for one in ranges if one[0] < one[1]]
            layouts[titles[part.filename]] = _Layout(tall, hidden)
    return has_formulas, layouts


def _column(letters: bytes) -> int:
    """Return the number of a column, from 0."""
    number = 0
    for letter in letters:
        number = number * 26 + letter - ord("A") + 1
    return number - 1


def _titles(archive: zipfile.ZipFile) -> dict[str, str]:
    """Return the file of each sheet in a workbook -> its title."""
    from xml.etree import ElementTree

    names = set(archive.namelist())
    parts = ("xl/workbook.xml", "xl/_rels/workbook.xml.rels")
    if not names.issuperset(parts) or any(archive.getinfo(p).file_size > 1e6 for p in parts):
        return {}
    try:
        book, relations = (ElementTree.fromstring(archive.read(part)) for part in parts)
    except ElementTree.ParseError:
        return {}
    targets = {one.get("Id"): str(one.get("Target")) for one in relations}
    titles = {}
    for sheet in book.iter():
        if sheet.tag.endswith("}sheet"):
            relation = next((v for k, v in sheet.attrib.items() if k.endswith("}id")), None)
            target = targets.get(relation, "").lstrip("/")
            titles[target if target.startswith("xl/") else f"xl/{target}"] = str(sheet.get("name"))
    return titles
