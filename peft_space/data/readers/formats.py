"""One generator for each kind of file: from its text or bytes to rows, each as (number, JSON text of the row, the row), values as written.

Knows how files are written; knows nothing about what rows mean, and keeps nothing.
"""

import csv
import datetime
import itertools
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from peft_space.errors import UserError

MOST_COLUMNS = 1_000
LONGEST_ROW = 20_000_000
"""Characters; a longer one is a broken quotation mark or a file in the wrong place."""
MOST_NESTED = 100
"""Lists and objects inside one another; Python's own limit would depend on who is reading."""

NumberedRow = tuple[int, str, dict[str, Any]]
Note = Callable[[str], None]
"""Takes what was recognised and is worth telling, in a sentence."""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, if no key is in it twice: one of the values would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise DuplicateKeyError(next(key for key in keys if keys.count(key) > 1))
    return found


class DuplicateKeyError(ValueError):
    """A key that an object has twice."""


# numbers stay as they are written: 1e5, 0.10 and thirty digits are text to a language model
DECODER = json.JSONDecoder(
    parse_int=str, parse_float=str, parse_constant=str, object_pairs_hook=unique_keys
)


# JSON


def json_lines(name: str, lines: Iterator[str]) -> Iterator[NumberedRow]:
    """A row a line; the number is the line's. Raises UserError naming the line that is no object."""
    for number, line in enumerate(lines, 1):
        if len(line) > LONGEST_ROW:
            raise UserError("todo", _too_long(name, f"line {number}"))
        if not (line := line.strip("\ufeff \t\r\n")):
            continue
        try:
            row = DECODER.decode(line)
            _check_text(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                "todo",
                f'{name}: line {number} is not JSON ({_why(error)}). Every line must be one object like {{"prompt": …}}.',
            ) from None
        yield number, line, _object(name, number, row)


def json_value(name: str, text: str) -> Iterator[NumberedRow]:
    """A list of objects; an object of lists or of objects; or one object. Raises UserError naming the place that is not JSON."""
    text = text.strip("\ufeff \t\r\n")
    if text.startswith("["):
        yield from _json_list(name, text)
        return
    try:
        value = DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        first_line = text.split("\n", 1)[0].strip()
        if (
            first_line.startswith("{") and first_line.endswith("}") and "\n" in text
        ):  # JSON Lines under another name
            yield from json_lines(name, iter(text.split("\n")))
            return
        where = (
            f"line {error.lineno}: {_why(error)}"
            if isinstance(error, json.JSONDecodeError)
            else _why(error)
        )
        raise UserError(
            "todo",
            f'{name}: this is not JSON ({where}). Bring a list of objects like [{{"prompt": …}}].',
        ) from None
    if not isinstance(value, dict):
        kind = {str: "text or number", bool: "true or false", type(None): "null"}[type(value)]
        raise UserError(
            "todo",
            f'{name}: the file holds a single {kind}. Bring a list of objects like [{{"prompt": …}}].',
        )
    for number, row in enumerate(_rows_of_object(name, value), 1):
        try:
            text = json.dumps(row, ensure_ascii=False)
            _check_text(text)
        except RecursionError as error:
            raise UserError(
                "todo",
                f"{name}: row {number} is {_why(error)}. Bring rows that hold text, or lists of messages.",
            ) from None
        yield number, text, row


def _json_list(name: str, text: str) -> Iterator[NumberedRow]:
    between = re.compile(r"[\s]*([,\]])[\s]*")
    at, number = re.compile(r"\[\s*").match(text).end(), 0  # type: ignore[union-attr]
    if text[at : at + 1] == "]":
        return
    while True:
        number += 1
        try:
            row, end = DECODER.raw_decode(text, at)
            _check_text(text[at:end])
        except (ValueError, RecursionError) as error:
            line = text.count("\n", 0, getattr(error, "pos", at)) + 1
            why = "there is a comma after the last row" if text[at : at + 1] == "]" else _why(error)
            if getattr(error, "pos", 0) >= len(text.rstrip()):
                why = "the file ends in the middle of it, so a part seems to be missing"
            raise UserError(
                "todo",
                f'{name}: this is not JSON (line {line}, row {number}: {why}). Bring a list of objects like [{{"prompt": …}}].',
            ) from None
        if end - at > LONGEST_ROW:
            raise UserError("todo", _too_long(name, f"row {number}"))
        if isinstance(row, str):
            row = {"text": row}
            yield number, json.dumps(row, ensure_ascii=False), row
        else:
            yield number, text[at:end], _object(name, number, row)
        after = between.match(text, end)
        if after is None:
            line = text.count("\n", 0, end) + 1
            what = (
                "it ends inside the list"
                if end == len(text)
                else "there is no comma between two rows"
            )
            raise UserError(
                "todo",
                f"{name}: this is not JSON (line {line}, after row {number}: {what}). Bring the whole file.",
            )
        at = after.end()
        if after[1] == "]":
            if text[at:].strip():
                line = text.count("\n", 0, at) + 1
                raise UserError(
                    "todo",
                    f"{name}: line {line}: there is something after the end of the list. Bring one list of rows a file.",
                )
            return


def _rows_of_object(name: str, value: dict[str, Any]) -> list[dict[str, Any]]:
    parts = list(value.values())
    lists = [part for part in parts if isinstance(part, list)]
    of_rows = [
        key
        for key, part in value.items()
        if isinstance(part, list) and part and all(isinstance(row, dict) for row in part)
    ]
    chat = {"messages", "conversations", "conversation", "dialogue", "dialog", "turns"} & {
        key.lower() for key in value
    }
    if of_rows and not chat and len(of_rows) == len(lists):
        if len(of_rows) > 1:
            raise UserError(
                "todo",
                f"{name}: there are several lists of rows in it ({', '.join(of_rows)}). Bring a file for each.",
            )
        return value[of_rows[0]]
    if parts and len(lists) == len(parts) and not chat:
        lengths = {len(part) for part in lists}
        if len(lengths) > 1:
            told = ", ".join(f"{key!r} has {len(part)}" for key, part in value.items())
            raise UserError(
                "todo",
                f"{name}: the columns are not of one length ({told} values). Make them equally long.",
            )
        return [dict(zip(value, cells, strict=True)) for cells in zip(*lists, strict=True)]
    if parts and all(isinstance(part, dict) for part in parts):
        keys = [list(part) for part in parts]
        if all(key == keys[0] for key in keys) and all(
            key.isdigit() for key in keys[0]
        ):  # as pandas writes a table by column
            return [{column: cells[index] for column, cells in value.items()} for index in keys[0]]
        return [row if "key" in row else {"key": key, **row} for key, row in value.items()]
    return [value]


def _object(name: str, number: int, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        kind = {list: "list", bool: "true or false", type(None): "null"}.get(
            type(row), "text or number"
        )
        raise UserError(
            "todo",
            f'{name}: row {number} is a {kind}, not an object. Every row must look like {{"prompt": …, "completion": …}}.',
        )
    return row


_MEANINGS = {
    "Unterminated string": "a text begins that is never closed",
    "Extra data": "something follows the end of the value",
    "Expecting property name": "a key in double quotes is missing",
    "Expecting value": "a value is missing",
    "Expecting ',' delimiter": "a comma is missing",
    "Expecting ':' delimiter": "a colon is missing",
    "Invalid control character": "a line break or another control character stands inside a text",
    "Invalid \\escape": "a backslash stands before a character that needs none",
    "Invalid \\\\uXXXX": "four hexadecimal digits are missing after \\u",
}
"""What Python's messages, by their beginnings, mean to someone who looks at the file."""


def _why(error: Exception) -> str:
    if isinstance(error, DuplicateKeyError):
        return f"an object has the key {str(error)!r} twice"
    if isinstance(error, json.JSONDecodeError):
        meaning = next(
            (meaning for start, meaning in _MEANINGS.items() if error.msg.startswith(start)),
            error.msg,
        )
        return f"at character {error.colno} {meaning}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


_HALF = re.compile(r"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]")
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|([\[{])|([\]}])')


def _check_text(text: str) -> None:
    """Raises what `_why` explains where JSON that can be parsed still holds what later steps cannot write or walk through."""
    if text.count("[") + text.count("{") > MOST_NESTED:
        depth = deepest = 0
        for found in _BRACKETS.finditer(text):
            depth += bool(found[1]) - bool(found[2])
            deepest = max(deepest, depth)
        if deepest > MOST_NESTED:
            raise RecursionError
    if _HALF.search(text):
        try:
            json.dumps(DECODER.decode(text), ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError(
                "half a character, a lone \\ud800 to \\udfff, stands in a text"
            ) from None


def _too_long(name: str, where: str) -> str:
    return f"{name}: {where} has more than {LONGEST_ROW / 1e6:.0f} million characters. Split it, or leave it out."


# Tables of text


def delimited_rows(
    name: str, lines: Iterator[str], sample: str, tabs: bool, note: Note
) -> Iterator[NumberedRow]:
    """The rows of a .csv or .tsv file, every field text. Raises UserError naming the row that does not fit.

    Args:
        sample: the beginning of the file, from which delimiter and header are told.
        tabs: whether the name says that tabs separate.
    """
    told = re.match(r"sep=([,;\t|])\r?\n", sample)  # Excel's own first line
    if told:
        next(lines)
        sample = sample[told.end() :]
    delimiter = told[1] if told else "\t" if tabs else _delimiter(sample)
    quoting = (
        csv.QUOTE_NONE
        if tabs and not re.search(r'(^|\t)"[^\t\n]*"(\t|\r?$)', sample, re.M)
        else csv.QUOTE_MINIMAL
    )
    csv.field_size_limit(LONGEST_ROW)
    reader = csv.reader(lines, delimiter=delimiter, strict=True, quoting=quoting)
    records = _records(name, reader)
    first = next(records, None)
    if first is None:
        return
    header, has_header = _header(name, first[1], note)
    if delimiter != ("\t" if tabs else ","):
        note(
            f"The columns are separated by {({';': 'semicolons', '|': 'bars', chr(9): 'tabs', ',': 'commas'})[delimiter]}."
        )
    number = 0
    if not has_header:
        number = 1
        yield number, *_record(header, first[1])
    for line, record in records:
        number += 1
        if len(record) != len(header):
            fields = "1 field" if len(record) == 1 else f"{len(record)} fields"
            raise UserError(
                "todo",
                f"{name}: row {number} (line {line}) has {fields}, the first line has {len(header)}. "
                "Check the separators and quotation marks there.",
            )
        yield number, *_record(header, record)


def _records(name: str, reader: Any) -> Iterator[tuple[int, list[str]]]:
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "field limit" in str(error):
                raise UserError(
                    "todo", _too_long(name, f"a field of the row that begins on line {line}")
                ) from None
            never = "unexpected end" in str(error)
            what = (
                "a quotation mark that is never closed"
                if never
                else "a quotation mark inside quoted text that is not doubled"
            )
            raise UserError(
                "todo",
                f"{name}: the row that begins on line {line} is not CSV ({what}). Check the quotation marks there.",
            ) from None
        if record and (len(record) > 1 or record[0].strip()):
            yield line, record


def _record(header: list[str], record: list[str]) -> tuple[str, dict[str, str]]:
    row = dict(zip(header, record, strict=True))
    return json.dumps(row, ensure_ascii=False), row


def _delimiter(sample: str) -> str:
    """The one that gives the first records the same number of fields, most of them where several do."""
    best, most = ",", 1
    for delimiter in ",;\t|":
        try:
            counts = [
                len(record)
                for record in csv.reader(sample.splitlines(keepends=True)[:50], delimiter=delimiter)
                if record
            ]
        except csv.Error:
            continue
        whole = counts[:-1] if len(counts) > 2 else counts  # the sample may end inside the last one
        if whole and min(whole) == max(whole) > most:
            best, most = delimiter, whole[0]
    if most > 1:
        return best
    heads = {delimiter: sample.split("\n", 1)[0].count(delimiter) for delimiter in ",;\t|"}
    return max(heads, key=lambda delimiter: heads[delimiter]) if any(heads.values()) else ","


def _header(name: str, record: list[str], note: Note) -> tuple[list[str], bool]:
    """The columns' names, and whether the first line is theirs."""
    if len(record) > MOST_COLUMNS:
        raise UserError(
            "todo",
            f"{name}: there are {len(record):,} columns, at most {MOST_COLUMNS:,} are read. Keep those that the model should see.",
        )
    cells = [cell.strip().lstrip("\ufeff") for cell in record]
    if not any(cells) or all(_is_value(cell) for cell in cells if cell):
        note("The first line names no columns, so they are called column 1, column 2 …")
        return [f"column {number}" for number in range(1, len(record) + 1)], False
    names = [cell or f"column {number}" for number, cell in enumerate(cells, 1)]
    if unnamed := [str(number) for number, cell in enumerate(cells, 1) if not cell]:
        note(f"Column {', '.join(unnamed)} has no name in the first line.")
    if twice := sorted({column for column in names if names.count(column) > 1}):
        raise UserError(
            "todo",
            f"{name}: the column {twice[0]!r} occurs twice in the first line. Give every column a name of its own.",
        )
    return names, True


def _is_value(cell: str) -> bool:
    """Whether this is no name of a column: a number, or a sentence."""
    return (
        bool(re.fullmatch(r"[-+]?[\d.,]+([eE][-+]?\d+)?%?", cell))
        or len(cell) > 60
        or bool(re.search(r"[.!?]$|\n", cell))
    )


def lines_of_text(name: str, text: IO[str], note: Note) -> Iterator[NumberedRow]:
    """Plain text: a row a paragraph where empty lines part it, else a row a line. It is read twice, as it may not fit into memory."""
    filled = (bool(line.strip()) for line in text)
    changes = sum(
        1
        for _ in itertools.islice(
            itertools.groupby(itertools.dropwhile(lambda full: not full, filled)), 3
        )
    )
    parted = changes == 3  # text, an empty line, text
    text.seek(0)
    note("Each paragraph is a row." if parted else "Each line is a row.")
    paragraph: list[str] = []
    for number, line in enumerate(itertools.chain(text, [""]), 1):
        line = (line.lstrip("\ufeff") if number == 1 else line).rstrip("\r\n")
        if line.strip():
            paragraph.append(line)
        if paragraph and not (parted and line.strip()):
            row = {"text": "\n".join(paragraph)}
            first = number - len(paragraph) + (0 if parted else 1)
            if len(row["text"]) > LONGEST_ROW:
                raise UserError("todo", _too_long(name, f"the text that begins on line {first}"))
            yield first, json.dumps(row, ensure_ascii=False), row
            paragraph = []


def tagged_tokens(name: str, lines: Iterator[str]) -> Iterator[NumberedRow]:
    """CoNLL: a token and its tag a line, sentences parted by lines without either. The number is the sentence's."""
    tokens: list[str] = []
    tags: list[str] = []
    number = length = 0
    for line_number, line in enumerate(itertools.chain(lines, [""]), 1):
        if (
            line.strip()
            and not line.startswith("-DOCSTART-")
            and not (line.startswith("# ") and "\t" not in line and " = " in line)
        ):
            parts = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
            if len(parts) < 2 or not parts[0] or not parts[-1].strip():
                raise UserError(
                    "todo",
                    f"{name}: line {line_number} has no tag after the token. Write TOKEN, a tab and TAG on every line.",
                )
            length += len(line)
            if length > LONGEST_ROW:
                raise UserError(
                    "todo", _too_long(name, f"sentence {number + 1}, up to line {line_number},")
                )
            tokens.append(parts[0])
            tags.append(parts[-1].strip())
        elif tokens:
            number += 1
            row = {"tokens": tokens, "tags": tags}
            yield number, json.dumps(row, ensure_ascii=False), row
            tokens, tags, length = [], [], 0


# Typed tables


def parquet(name: str, path: Path, most_bytes: float) -> Iterator[NumberedRow]:
    """The rows of a Parquet file. Raises UserError where it is broken, or a column holds images or other bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            texts = [
                field.name
                for field in file.schema_arrow
                if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
            ]
            most = _check_parquet(name, file, most_bytes)
        # a text that is repeated lies in the file once; so it shall in memory
        with pq.ParquetFile(path, read_dictionary=texts, page_checksum_verification=True) as file:
            number = 0
            for batch in file.iter_batches(batch_size=most):
                step = 1 if batch.nbytes > LONGEST_ROW else len(batch)
                for row in itertools.chain.from_iterable(
                    batch.slice(at, step).to_pylist() for at in range(0, len(batch), step)
                ):
                    number += 1
                    written = {column: _written(cell) for column, cell in row.items()}
                    text = json.dumps(written, ensure_ascii=False)
                    if len(text) > LONGEST_ROW:
                        raise UserError("todo", _too_long(name, f"row {number}"))
                    yield number, text, written
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(
            "todo",
            f"{name}: this is no whole Parquet file ({_first_line(error)}). Save or download it again.",
        ) from None


def _check_parquet(name: str, file: Any, most_bytes: float) -> int:
    """Refuse by its footer a file whose rows will not be read, or would not fit. Returns how many rows to read at once."""
    columns = file.schema_arrow.names
    if len(columns) > MOST_COLUMNS:
        raise UserError(
            "todo",
            f"{name}: there are {len(columns):,} columns, at most {MOST_COLUMNS:,} are read. Keep those you need.",
        )
    for field in file.schema_arrow:
        if _holds_bytes(field.type):
            raise UserError(
                "todo",
                f"{name}: the column {field.name!r} holds bytes, such as images, and no text. Leave it out.",
            )
    if twice := [column for column in columns if columns.count(column) > 1]:
        raise UserError(
            "todo",
            f"{name}: the column {twice[0]!r} occurs twice. Give every column a name of its own.",
        )
    groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
    chunks = [group.column(index) for group in groups for index in range(group.num_columns)]
    shortest = file.metadata.num_rows * sum(
        len(column) + 7 for column in columns
    )  # each row as text, were every value one character
    if max(shortest, sum(chunk.total_uncompressed_size for chunk in chunks)) > most_bytes:
        raise UserError(
            "todo",
            f"{name}: it unpacks to more than {most_bytes / 1e6:.0f} MB. Bring fewer rows, or raise PEFT_SPACE_MAX_FILE_MB.",
        )
    for chunk in chunks:
        if chunk.total_uncompressed_size > LONGEST_ROW * max(chunk.num_values, 1):
            raise UserError(
                "todo", _too_long(name, f"a value of the column {chunk.path_in_schema!r}")
            )
    return (
        1
        if any(group.total_byte_size > 200_000 * max(group.num_rows, 1) for group in groups)
        else 16
    )


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    ):
        return True
    return any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))


def excel(name: str, path: Path, most_bytes: float, note: Note) -> Iterator[NumberedRow]:
    """The rows of the first sheet of an .xlsx file that has any."""
    import openpyxl

    try:
        with zipfile.ZipFile(path) as archive:
            _check_parts(name, archive, most_bytes)
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, EOFError) as error:
        raise UserError(
            "todo",
            f"{name}: this is no whole .xlsx file ({_first_line(error)}). Save it again, or as .csv.",
        ) from None
    for sheet in book.worksheets:
        sheet.reset_dimensions()  # one stray cell in the last corner would make a million wide rows
    sheet = next(
        (
            sheet
            for sheet in book.worksheets
            if any(
                any(cell is not None for cell in row) for row in sheet.iter_rows(values_only=True)
            )
        ),
        None,
    )
    if sheet is None:
        return
    if len(book.worksheets) > 1:
        note(f"Of {len(book.worksheets)} sheets the one named {sheet.title!r} is read.")
    records = ([_cell(cell) for cell in row] for row in sheet.iter_rows(values_only=True))
    records = (record for record in records if any(cell is not None for cell in record))
    first = next(records)
    while first and first[-1] is None:
        first.pop()
    header, has_header = _header(name, [cell or "" for cell in first], note)
    number = 0
    if not has_header:
        number = 1
        row = dict(zip(header, first, strict=True))
        yield number, json.dumps(row, ensure_ascii=False), row
    for record in records:
        number += 1
        if any(cell is not None for cell in record[len(header) :]):
            raise UserError(
                "todo",
                f"{name}: row {number} has more cells than the first line names columns. Name them, or clear the cells.",
            )
        row = dict(zip(header, [*record, *[None] * len(header)], strict=False))
        yield number, json.dumps(row, ensure_ascii=False), row


def _check_parts(name: str, archive: zipfile.ZipFile, most_bytes: float) -> None:
    """Refuse a workbook that would not fit: as a whole, or for one text in it, as texts are read in one piece."""
    unpacked = sum(part.file_size for part in archive.infolist())
    if unpacked > most_bytes:
        raise UserError(
            "todo",
            f"{name}: it unpacks to {unpacked / 1e6:.0f} MB, at most {most_bytes / 1e6:.0f} MB are read. Bring fewer rows.",
        )
    for part in archive.infolist():
        with archive.open(part) as file:
            length = 0
            while part.file_size > LONGEST_ROW and (block := file.read(1 << 20)):
                length = (
                    len(block) - 1 - block.rfind(b"<") if b"<" in block else length + len(block)
                )
                if length > LONGEST_ROW:
                    raise UserError("todo", _too_long(name, "one cell"))


def _cell(value: Any) -> str | None:
    return None if value is None else str(_written(value))


def _written(value: Any) -> Any:
    """A typed value as text; what is nested keeps its form."""
    if isinstance(value, dict):
        return {str(key): _written(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_written(inner) for inner in value]
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)


def _first_line(error: Exception) -> str:
    return (str(error).strip().split("\n", 1)[0] or type(error).__name__)[:200]
