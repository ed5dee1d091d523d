"""Reads data files into a table of rows, stored in an Arrow file with every value verbatim."""

import functools
import hashlib
import itertools
import json
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from peft_space.data.arrow_store import ROWS, read_batches
from peft_space.data.pictures import MAX_BYTES, Brought, is_picture, too_many_bytes
from peft_space.data.readers import MAX_COLUMNS, Note, NumberedRow, check_unpacked_size
from peft_space.data.readers.archives import (
    choose_files,
    has_table,
    unpack_file,
    unpack_gzip,
    unpack_pictures,
)
from peft_space.data.readers.csv import read_delimited
from peft_space.data.readers.excel import read_excel
from peft_space.data.readers.file_type_and_encoding import (
    GZIP,
    KINDS,
    SAMPLE_SIZE,
    binary_kind,
    check_file,
    check_not_empty,
    detect_encoding,
    named_kind,
    text_kind,
    unsupported,
)
from peft_space.data.readers.hub import download, is_address, parse_address
from peft_space.data.readers.json import DECODER, read_json, read_json_lines
from peft_space.data.readers.parquet import read_arrow, read_parquet
from peft_space.data.readers.plain_text import read_conll, read_text
from peft_space.demo import HELD_OUT_FILE, TRAIN_FILE
from peft_space.errors import UserError
from peft_space.runs.events import OnProgress, no_progress
from peft_space.storage.atomic_io import sha256_file
from peft_space.storage.content_cache import get_or_create

Data = str | Path | Sequence[str | Path]
"""A file, the address of a dataset on the Hub, or several of these that are concatenated.

After the name of a workbook or a zip archive, #NAME chooses a sheet, or a file or split in it.
"""

_RAW_PICTURES = "raw_pictures"
"""The folder of pictures as they were brought, next to the file of the rows."""
_BATCH_ROWS, _BATCH_CHARACTERS = 4_000, 16_000_000
_READER_VERSION = "10"
"""Change it when the readers change, so that cached tables are not used again."""


class _Source(NamedTuple):
    """A file, and the sheet of a workbook or the part of an archive that the user chose."""

    path: Path
    part: str = ""
    picture: str = ""
    """The relative path of a picture, under which rows name it."""


@dataclass(frozen=True)
class Table:
    """Rows of one or more files, stored in the Arrow file `path` (schema `arrow_store.ROWS`).

    Rows are numbered from 1 without the header; in .jsonl files the number is the line number.
    """

    source: str
    sha256: str
    """SHA-256 of the file, or of each file."""
    key: str
    """Cache key: tables with equal keys have equal rows."""
    columns: list[str]
    num_rows: int
    notes: list[str]
    """Facts detected in the files: encoding, separator, missing header."""
    path: Path
    begins: list[tuple[str, int]]
    """(file, number of rows before it), for each file."""
    pictures: dict[str, str] | None = None
    """The pictures that came with the rows, as `Brought.names`; None if there are none."""
    pictures_folder: Path | None = None
    """The folder of their content."""

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (number, row) from position `start` to `stop`."""
        for numbers, texts in self.texts(start, stop):
            yield from zip(numbers, map(DECODER.decode, texts), strict=True)

    def texts(
        self, start: int = 0, stop: int | None = None, batch: int = _BATCH_ROWS
    ) -> Iterator[tuple[list[int], list[str]]]:
        """Yield (numbers, rows as JSON) in batches of at most `batch` rows."""
        yield from read_batches(self.path, batch, start, stop)

    def where(self, number: int, position: int) -> str:
        """Name a row in a sentence: its number, and its file if there are several files.

        Args:
            number: the number of the row in its file.
            position: the position of the row in the table, from 0.
        """
        if len(self.begins) == 1:
            return f"row {number}"
        name, _ = next(begin for begin in reversed(self.begins) if begin[1] <= position)
        return f"row {number} of {name}"


def read_table(data: Data, on_progress: OnProgress = no_progress) -> Table:
    """Read one or more files; the result is cached by the files' content.

    Raises:
        UserError: a file is missing, too large, empty, damaged or not supported. The message
            names the file and the place.
    """
    source, sources = _locate(data, on_progress)
    digests = [sha256_file(source.path) for source in sources]
    names = [picture or path.name + (f"#{part}" if part else "") for path, part, picture in sources]
    identity = json.dumps([_READER_VERSION, digests, names])
    key = hashlib.sha256(identity.encode()).hexdigest()
    folder = get_or_create("rows", key, functools.partial(_read_into, sources, on_progress))
    metadata = json.loads((folder / "table.json").read_text(encoding="utf-8"))
    begins = [(name, before) for name, before in metadata.pop("begins")]
    path = folder / "rows.arrow"
    if "pictures" in metadata:
        metadata["pictures_folder"] = folder / _RAW_PICTURES
    of_tables = [one for one, file in zip(digests, sources, strict=True) if not file.picture]
    return Table(
        source, " + ".join(of_tables or digests[:1]), key, path=path, begins=begins, **metadata
    )


def short_name(data: Data) -> str:
    """Return the name of the first file or dataset, without its folder or owner."""
    first = data if isinstance(data, str | Path) else data[0]
    return parse_address(str(first)).name if is_address(first) else Path(first).name


def split_part(item: str | Path) -> tuple[Path, str]:
    """Return the path of a file, and the part of it that is named after a `#`, if any."""
    path, text = Path(item), str(item)
    if "#" not in text or path.exists():
        return path, ""
    places = [place for place, character in enumerate(text) if character == "#"]
    # the names of a folder and of a sheet can contain # too
    place = next((place for place in places if Path(text[:place]).is_file()), places[-1])
    before, part = text[:place], text[place + 1 :]
    return (Path(before), part) if part else (path, "")


def peek(data: Data, max_rows: int = 200) -> tuple[list[str], list[tuple[int, dict[str, Any]]]]:
    """Return the columns and the first numbered rows of the first file without reading the rest.

    Raises:
        UserError: as in `read_table`.
    """
    source = _locate(data, no_progress)[1][0]
    with tempfile.TemporaryDirectory() as scratch:
        reading = _read_rows(source, Path(scratch), lambda note: None, Brought())
        rows = itertools.islice(reading, max_rows)
        numbered = [(number, row) for number, _, row in rows]
    return list(dict.fromkeys(column for _, row in numbered for column in row)), numbered


def demo_files() -> tuple[Path, Path]:
    """Return the files of the built-in sample data: rows to train on, and held-out rows."""
    return TRAIN_FILE, HELD_OUT_FILE


def _locate(data: Data, on_progress: OnProgress) -> tuple[str, list[_Source]]:
    """Return the name of the data, and their files after a check."""
    names: list[str] = []
    sources: list[_Source] = []
    items = [data] if isinstance(data, str | Path) else list(data)
    folder = Path(items[0]) if len(items) == 1 and not is_address(items[0]) else None
    if folder is not None and folder.is_dir():
        return folder.name, _sources_in(folder)
    for item in items:
        if is_address(item):
            name, files = download(str(item), KINDS, on_progress)
            sources += map(_Source, files)
        else:
            path, part = split_part(item)
            source = _Source(path, part, path.name if not part and is_picture(path.name) else "")
            name = Path(item).name
            sources.append(source)
        names.append(name)
    for path, _, _ in sources:
        check_file(path)
    shown = [name for name, source in zip(names, sources, strict=False) if not source.picture]
    is_mixed = len(names) == len(sources) and 0 < len(shown) < len(names)
    return " + ".join(shown if is_mixed else names), sources


def _sources_in(folder: Path) -> list[_Source]:
    """Return the table and the pictures in a folder.

    Raises:
        UserError: it has more than one table, or neither a table nor a picture.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [path for path in files if "/." not in f"/{path.relative_to(folder)}"]
    tables = [path for path in files if named_kind(path.name) not in (None, ".txt")]
    pictures = [_Source(path, "", str(path.relative_to(folder))) for path in files]
    pictures = [one for one in pictures if is_picture(one.picture)]
    if len(tables) > 1:
        raise UserError(
            "data.several_tables",
            f"{folder}: the folder has {len(tables)} tables. Use a folder with one table and its "
            "pictures, or the names of the files.",
        )
    sources = [*map(_Source, tables), *pictures] or [_Source(folder)]
    for source in sources:
        check_file(source.path)
    return sources


def _read_into(sources: list[_Source], on_progress: OnProgress, folder: Path) -> None:
    """Write rows.arrow and table.json into `folder`."""
    columns: dict[str, None] = {}
    notes: list[str] = []
    begins: list[tuple[str, int]] = []
    count = 0
    raw = folder / _RAW_PICTURES
    brought = Brought(raw)
    for one in sources:
        if one.picture:
            size = one.path.stat().st_size
            content = one.path.read_bytes() if size <= MAX_BYTES else None
            brought.add_named(one.picture, content, too_many_bytes(size))
    tables = [source for source in sources if not source.picture]
    if not tables:
        tables = [_table_of_folders(folder, brought)]
    with (
        tempfile.TemporaryDirectory(dir=folder) as scratch,
        pa.OSFile(str(folder / "rows.arrow"), "wb") as file,
        pa.ipc.new_file(file, ROWS) as writer,
    ):
        for source in tables:
            path = source.path
            begins.append((path.name, count))
            try:
                rows = _read_rows(source, Path(scratch), notes.append, brought)
                for batch in _batches(rows, path.name, columns):
                    writer.write_batch(batch)
                    count += batch.num_rows
                    on_progress(0.0, f"Read {count:,} rows")
                if count == begins[-1][1]:
                    message = f"{path.name}: the file has no rows. Use a file with at least one."
                    raise UserError("data.no_rows", message)
            except UserError as error:
                if len(tables) == 1:
                    raise
                message = f"{error} Or remove {path.name} and use the other files."
                raise UserError(error.code, message) from None
    metadata = {"columns": list(columns), "num_rows": count, "notes": notes, "begins": begins}
    if brought.names or raw.is_dir():
        metadata["pictures"] = brought.names
    (folder / "table.json").write_text(json.dumps(metadata, ensure_ascii=False), encoding="utf-8")


def _batches(
    rows: Iterator[NumberedRow], name: str, columns: dict[str, None]
) -> Iterator[pa.RecordBatch]:
    """Yield batches of rows, and add the columns of each batch to `columns`."""
    numbers: list[int] = []
    texts: list[str] = []
    size = total = 0
    for number, text, row in rows:
        numbers.append(number)
        texts.append(text)
        columns.update(dict.fromkeys(row))
        size += len(text)
        if len(texts) == _BATCH_ROWS or size > _BATCH_CHARACTERS:
            total += size
            check_unpacked_size(name, total)
            yield _batch(name, numbers, texts, columns)
            numbers, texts, size = [], [], 0
    if texts:
        yield _batch(name, numbers, texts, columns)


def _batch(
    name: str, numbers: list[int], texts: list[str], columns: dict[str, None]
) -> pa.RecordBatch:
    if len(columns) > MAX_COLUMNS:
        raise UserError(
            "data.too_many_columns",
            f"{name}: the rows have more than {MAX_COLUMNS:,} different columns. "
            "Keep the ones that you need.",
        )
    try:
        arrays = [pa.array(numbers, pa.int64()), pa.array(texts, pa.string())]
    except UnicodeEncodeError:  # possible only if the encoding of the file allows it
        raise UserError(
            "data.lone_surrogate",
            f"{name}: a row near row {numbers[0]} contains half a character (a lone surrogate). "
            "Save the file as UTF-8.",
        ) from None
    return pa.record_batch(arrays, schema=ROWS)


def _table_of_folders(folder: Path, brought: Brought) -> _Source:
    """Write a table that labels each picture with the name of its folder, and return it.

    Raises:
        UserError: they are not in folders.
    """
    labels = {name: Path(name).parent.name for name in brought.names}
    if not all(labels.values()):
        raise UserError(
            "data.pictures_without_table",
            "There are pictures and no table that says what they show. Add a .csv file with the "
            "columns file_name and text, or put the pictures of each label in a folder.",
        )
    path = folder / "labels.jsonl"
    rows = [{"file_name": name, "label": label} for name, label in sorted(labels.items())]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return _Source(path)


def _read_rows(
    source: _Source, scratch: Path, note: Note, brought: Brought
) -> Iterator[NumberedRow]:
    """Yield the rows of a file of any kind.

    Args:
        source: the file.
        scratch: a folder for temporary files.
        note: receives a sentence about what was detected.
        brought: the pictures in the file are added to it.
    """
    path, part, _ = source
    name = path.name
    kind, path = _unpacked(name, path, scratch)
    if kind == ".zip":
        yield from _read_archive(name, path, part, scratch, note, brought)
        return
    if part and kind != ".xlsx":
        message = f"{name}: it has no parts to choose from. Remove #{part} after its name."
        raise UserError("data.unknown_part", message)
    yield from _read_unpacked(name, kind, path, part, note, brought)


def _unpacked(name: str, path: Path, scratch: Path) -> tuple[str | None, Path]:
    """Return the kind of a file, or None for text, and the file after unpacking gzip."""
    with open(path, "rb") as file:
        is_packed = file.read(2) == GZIP
    if is_packed:
        path = unpack_gzip(name, path, scratch)
    with open(path, "rb") as file:
        kind = binary_kind(name, file.read(SAMPLE_SIZE))
    return (kind_of_zip(name, path) if kind == ".zip" else kind), path


def kind_of_zip(name: str, path: Path) -> str:
    """Return .xlsx for a workbook and .zip for other archives."""
    kind = named_kind(name)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        if kind == ".xlsx":
            return kind
        if kind is None:
            raise unsupported(name) from None
        message = f"{name}: the zip archive is damaged or incomplete. Save or download it again."
        raise UserError("data.damaged_file", message) from None
    if "xl/workbook.xml" in names:
        return ".xlsx"
    is_office = kind != ".xlsx" and "[Content_Types].xml" in names  # such as Word
    if is_office or names[:1] == ["mimetype"]:  # or LibreOffice
        raise unsupported(name)
    has_rows = any(named_kind(member) not in (None, ".txt") for member in names)
    has_rows = has_rows or any(map(is_picture, names))
    return ".xlsx" if kind == ".xlsx" and not has_rows else ".zip"


def _read_unpacked(
    name: str, kind: str | None, path: Path, part: str, note: Note, brought: Brought
) -> Iterator[NumberedRow]:
    if kind == ".parquet":
        yield from read_parquet(name, path, brought)
    elif kind == ".arrow":
        yield from read_arrow(name, path, brought)
    elif kind == ".xlsx":
        yield from read_excel(name, path, part, note)
    else:
        yield from _read_text_file(name, path, note)


def _read_archive(
    name: str, path: Path, part: str, scratch: Path, note: Note, brought: Brought
) -> Iterator[NumberedRow]:
    """Yield the rows of the chosen files of a zip archive; several are numbered as one."""
    with zipfile.ZipFile(path) as archive:
        unpack_pictures(name, archive, brought)
        if brought.names and not has_table(archive):
            table = _table_of_folders(scratch, brought)
            yield from _read_text_file(f"{name}: folders", table.path, note)
            return
        files = choose_files(name, archive, part, note)
        if len(files) > 1:
            note(f"{name}: {len(files)} files are read as one: {files[0]} to {files[-1]}.")
        before = 0
        for file in files:
            member = unpack_file(name, archive, file, scratch)
            full_name = f"{name}: {file}"
            kind, member = _unpacked(full_name, member, scratch)
            if kind == ".zip":
                message = f"{full_name} is an archive in an archive. Unpack it once."
                raise UserError("data.wrong_file_type", message)
            last = 0
            for number, text, row in _read_unpacked(full_name, kind, member, "", note, brought):
                last = number
                yield before + number, text, row
            before += last


def _read_text_file(name: str, path: Path, note: Note) -> Iterator[NumberedRow]:
    encoding = detect_encoding(name, path, note)
    with open(path, encoding=encoding, newline="") as file:
        sample = file.read(SAMPLE_SIZE)
    check_not_empty(name, sample)
    kind = text_kind(name, sample, note)
    newline = "" if kind in (".csv", ".tsv") else "\n"
    with open(path, encoding=encoding, newline=newline) as file:
        match kind:
            case ".csv" | ".tsv":
                is_tsv = named_kind(name) == ".tsv"
                yield from read_delimited(name, file, sample, is_tsv, note)
            case ".txt":
                yield from read_text(name, file, note)
            case ".conll":
                yield from read_conll(name, file, note)
            case _ if kind != ".json" and not sample.lstrip("\ufeff \t\r\n").startswith("["):
                yield from read_json_lines(name, file, note)
            case _:
                yield from read_json(name, file.read(), note)
