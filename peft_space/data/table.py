"""Reads data files into a Table whose rows lie in an Arrow file, each value exactly as written. Knows nothing about what the rows mean.

What a file is and how it is encoded is told here; how each kind is written is `formats.py`'s business.
"""

import functools
import gzip
import hashlib
import itertools
import json
import re
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from peft_space import settings
from peft_space.data.readers import formats
from peft_space.data.readers.formats import DECODER, Note, NumberedRow
from peft_space.data.readers.hub import download, is_address, parse_address
from peft_space.data.rows_file import ROWS, texts_in
from peft_space.demo import HELD_OUT_FILE, TRAIN_FILE
from peft_space.errors import UserError
from peft_space.runs.events import OnProgress, no_progress
from peft_space.storage.content_cache import get_or_create

KINDS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".xlsx", ".txt", ".conll")
SUFFIXES = (*KINDS, ".gz")
"""How the names of files end that can be brought; each may be packed with gzip."""

Data = str | Path | Sequence[str | Path]
"""A file, the address of a dataset on the Hub, or several that are joined."""

_BATCH_ROWS, _BATCH_CHARACTERS = 4_000, 16_000_000
_READER = "1"
"""Raised when a file is read differently than before, so that what was kept is read anew."""
_UNPACKED = 2.0
"""A packed file may unpack to so many times the limit of a file."""


@dataclass(frozen=True)
class Table:
    """Rows of files. They lie in the Arrow file `path`: `number`, counted from 1 without a header (in .jsonl: the line), and `row`, its JSON."""

    source: str
    sha256: str
    """Of the file; of several those of each."""
    key: str
    """Under which it is kept: equal where the rows are."""
    columns: list[str]
    num_rows: int
    notes: list[str]
    """What was recognised of the file itself: encoding, separator, missing header."""
    path: Path
    begins: list[tuple[str, int]]
    """(file, number of rows before it), for each file."""

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number, row) from the `start`-th row on, in order."""
        for numbers, texts in self.texts(start, stop):
            yield from zip(numbers, map(DECODER.decode, texts), strict=True)

    def texts(
        self, start: int = 0, stop: int | None = None, batch: int = _BATCH_ROWS
    ) -> Iterator[tuple[list[int], list[str]]]:
        """The same unparsed, in batches of at most so many."""
        yield from texts_in(self.path, batch, start, stop)

    def where(self, number: int, index: int) -> str:
        """How a row is called in a sentence: its number, and its file where there are several."""
        if len(self.begins) == 1:
            return f"row {number}"
        name, _ = next(begin for begin in reversed(self.begins) if begin[1] <= index)
        return f"row {number} of {name}"


def read_table(data: Data, on_progress: OnProgress = no_progress) -> Table:
    """The rows of a file, or of several joined. What was read is kept by its content, so that reading it again takes no time.

    Raises UserError where a file is missing, too large, empty, of another kind, or broken, naming file and place.
    """
    source, paths = _found(data, on_progress)
    digests = []
    for path in paths:
        _check_size(path)
        with open(path, "rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    key = hashlib.sha256(
        json.dumps([_READER, digests, [path.name for path in paths]]).encode()
    ).hexdigest()
    folder = get_or_create("rows", key, functools.partial(_read_into, paths, on_progress))
    about = json.loads((folder / "table.json").read_text(encoding="utf-8"))
    begins = [(name, before) for name, before in about.pop("begins")]
    return Table(
        source=source,
        sha256=" + ".join(digests),
        key=key,
        path=folder / "rows.arrow",
        begins=begins,
        **about,
    )


def short_name(data: Data) -> str:
    """What data are called where there is little room: the name of the first file, or of the dataset."""
    first = data if isinstance(data, str | Path) else data[0]
    return parse_address(str(first)).name if is_address(first) else Path(first).name


def peek(data: Data, most: int = 200) -> tuple[list[str], list[tuple[int, dict[str, Any]]]]:
    """Columns and the first rows of the first file, without reading the rest. Raises UserError as `read_table` does."""
    first = _found(data, no_progress)[1][0]
    _check_size(first)
    with tempfile.TemporaryDirectory() as scratch:
        rows = [
            (number, row)
            for number, _, row in itertools.islice(
                _rows_of(first, Path(scratch), lambda note: None), most
            )
        ]
    return list(dict.fromkeys(column for _, row in rows for column in row)), rows


def demo_files() -> tuple[Path, Path]:
    """The built-in sample data: rows to train on, rows to score on."""
    return TRAIN_FILE, HELD_OUT_FILE


def _found(data: Data, on_progress: OnProgress) -> tuple[str, list[Path]]:
    """What the data are called, and the files they are in."""
    given = [data] if isinstance(data, str | Path) else list(data)
    sources, paths = [], []
    for one in given:
        source, files = (
            download(str(one), KINDS, on_progress)
            if is_address(one)
            else (Path(one).name, [Path(one)])
        )
        sources.append(source)
        paths += files
    for path in paths:
        if _kind(path) is None:
            raise UserError(
                "todo",
                f"{path.name}: files of this kind are not read. Bring one of {', '.join(KINDS)}, packed with gzip or not.",
            )
    return " + ".join(sources), paths


def _kind(path: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in KINDS else None


def _check_size(path: Path) -> None:
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise UserError("todo", f"{path}: this is no file. Give the name of a file.")
        with open(path, "rb"):
            pass
    except OSError as error:
        raise UserError(
            "todo",
            f"{path}: the file cannot be read ({(error.strerror or 'unknown error').lower()}). Check its name.",
        ) from None
    if size > settings.max_file_megabytes() * 1e6:
        limit = f"{settings.max_file_megabytes():g} MB"
        raise UserError(
            "todo",
            f"{path.name}: the file has {size / 1e6:.1f} MB, the limit is {limit}. Bring fewer rows, or raise PEFT_SPACE_MAX_FILE_MB.",
        )


def _read_into(paths: list[Path], on_progress: OnProgress, folder: Path) -> None:
    """Write rows.arrow and table.json into `folder`."""
    columns: dict[str, None] = {}
    notes: list[str] = []
    begins: list[tuple[str, int]] = []
    count = 0
    with (
        tempfile.TemporaryDirectory(dir=folder) as scratch,
        pa.OSFile(str(folder / "rows.arrow"), "wb") as file,
        pa.ipc.new_file(file, ROWS) as writer,
    ):
        for path in paths:
            begins.append((path.name, count))
            before = count
            try:
                for batch, batch_columns in _batches(
                    _rows_of(path, Path(scratch), notes.append), path.name
                ):
                    columns.update(batch_columns)
                    if len(columns) > formats.MOST_COLUMNS:
                        raise UserError(
                            "todo",
                            f"{path.name}: its rows have more than {formats.MOST_COLUMNS:,} different columns. Keep those you need.",
                        )
                    writer.write_batch(batch)
                    count += batch.num_rows
                    on_progress(0.0, f"Read {count:,} rows")
                if count == before:
                    raise UserError(
                        "todo",
                        f"{path.name}: there are no rows in it. Bring a file with at least one row.",
                    )
            except UserError as error:
                if len(paths) == 1:
                    raise
                raise UserError(
                    "todo", f"{error} Or take {path.name} away and go on with the rest."
                ) from None
    about = {"columns": list(columns), "num_rows": count, "notes": notes, "begins": begins}
    (folder / "table.json").write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")


def _batches(
    rows: Iterator[NumberedRow], name: str
) -> Iterator[tuple[pa.RecordBatch, dict[str, None]]]:
    numbers: list[int] = []
    texts: list[str] = []
    columns: dict[str, None] = {}
    size, total, limit = 0, 0, _UNPACKED * settings.max_file_megabytes() * 1e6
    for number, text, row in rows:
        numbers.append(number)
        texts.append(text)
        columns.update(dict.fromkeys(row))
        size += len(text)
        if len(texts) == _BATCH_ROWS or size > _BATCH_CHARACTERS:
            total += size
            if total > limit:
                raise UserError(
                    "todo",
                    f"{name}: it unpacks to more than {limit / 1e6:.0f} MB. Bring fewer rows, or raise PEFT_SPACE_MAX_FILE_MB.",
                )
            yield _batch(name, numbers, texts), columns
            numbers, texts, columns, size = [], [], {}, 0
    if texts:
        yield _batch(name, numbers, texts), columns


def _batch(name: str, numbers: list[int], texts: list[str]) -> pa.RecordBatch:
    try:
        return pa.record_batch(
            [pa.array(numbers, pa.int64()), pa.array(texts, pa.string())], schema=ROWS
        )
    except (
        UnicodeEncodeError
    ):  # JSON text itself can hold half a character only where the file's encoding let it pass
        raise UserError(
            "todo",
            f"{name}: near row {numbers[0]} there is half a character (a lone surrogate). Save the file as UTF-8.",
        ) from None


def _rows_of(path: Path, scratch: Path, note: Note) -> Iterator[NumberedRow]:
    """The rows of one file, whatever kind it is."""
    name, kind = path.name, _kind(path)
    if path.suffix.lower() == ".gz":
        path = _unpacked(path, scratch)
    with open(path, "rb") as file:
        head = file.read(65_536)
    _refuse_what_it_is_not(name, head, str(kind))
    if kind == ".parquet":
        yield from formats.parquet(name, path, _UNPACKED * settings.max_file_megabytes() * 1e6)
        return
    if kind == ".xlsx":
        yield from formats.excel(name, path, _UNPACKED * settings.max_file_megabytes() * 1e6, note)
        return
    encoding = _encoding(name, path, head, note)
    with open(
        path, encoding=encoding, newline="" if kind in (".csv", ".tsv") else "\n", errors="strict"
    ) as text:
        sample = text.read(65_536).lstrip("\ufeff")
        if not sample.strip():
            raise UserError(
                "todo", f"{name}: the file is empty. Bring a file with at least one row."
            )
        text.seek(0)
        match kind:
            case ".csv" | ".tsv":
                yield from formats.delimited_rows(
                    name, _without_mark(text), sample, kind == ".tsv", note
                )
            case ".txt":
                yield from formats.lines_of_text(name, text, note)
            case ".conll":
                yield from formats.tagged_tokens(name, _without_mark(text))
            case _ if kind != ".json" and not sample.lstrip().startswith("["):
                yield from formats.json_lines(name, text)
            case _:
                yield from formats.json_value(name, text.read())


def _without_mark(text: IO[str]) -> Iterator[str]:
    """The lines, without a byte order mark, which is no part of the first one."""
    for number, line in enumerate(text):
        yield line.lstrip("\ufeff") if number == 0 else line


def _unpacked(path: Path, scratch: Path) -> Path:
    """What is in a gzip file, as a file in `scratch`."""
    most = int(_UNPACKED * settings.max_file_megabytes() * 1e6)
    target = scratch / path.stem
    try:
        with gzip.open(path) as packed, open(target, "wb") as file:
            total = 0
            while block := packed.read(1 << 20):
                total += len(block)
                if total > most:
                    raise UserError(
                        "todo",
                        f"{path.name}: it unpacks to more than {most / 1e6:.0f} MB. Bring fewer rows, or raise PEFT_SPACE_MAX_FILE_MB.",
                    )
                file.write(block)
    except (OSError, EOFError, zlib.error) as error:
        why = "it ends too early" if isinstance(error, EOFError) else "it is damaged"
        why = "it is not packed with gzip" if str(error).startswith("Not a gzipped") else why
        raise UserError(
            "todo", f"{path.name}: it cannot be unpacked, as {why}. Pack or download it again."
        ) from None
    return target


_BEGINNINGS = {
    b"version https://git-lfs": "a pointer of Git LFS stands in the file's place. Fetch the file itself with `git lfs pull`",
    b"%PDF": "this is a PDF. Bring its text as .txt, or rows as .csv or .jsonl",
    b"\x89PNG": "this is an image. Bring text",
    b"\xff\xd8\xff": "this is an image. Bring text",
    b"PK\x03\x04": "this is a zip archive. Unpack it and bring the file inside",
    b"\x1f\x8b": "this is packed with gzip. Let its name end in .gz",
    b"PAR1": "this is a Parquet file. Let its name end in .parquet",
    b"\xd0\xcf\x11\xe0": "this is an old Office file. Save it as .xlsx or .csv",
    b"SQLite format 3": "this is a database. Export the table as .csv",
    b"BZh": "this is packed with bzip2. Unpack it",
    b"\xfd7zXZ": "this is packed with xz. Unpack it",
}
_EXPECTED = {".parquet": b"PAR1", ".xlsx": b"PK\x03\x04"}


def _refuse_what_it_is_not(name: str, head: bytes, kind: str) -> None:
    if not head.strip():
        raise UserError("todo", f"{name}: the file is empty. Bring a file with at least one row.")
    for beginning, what in _BEGINNINGS.items():
        if head.startswith(beginning) and _EXPECTED.get(kind) != beginning:
            twice = beginning == b"\x1f\x8b" and name.lower().endswith(".gz")
            raise UserError(
                "todo",
                f"{name}: this is packed with gzip twice. Unpack it once."
                if twice
                else f"{name}: {what}.",
            )
    if kind in _EXPECTED and not head.startswith(_EXPECTED[kind]):
        raise UserError("todo", f"{name}: this is no {kind} file. Save or download it again.")
    start = head[:500].lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if kind not in _EXPECTED and start.startswith((b"<!doctype html", b"<html")):
        raise UserError(
            "todo", f"{name}: this is a web page, not the file. Download the file itself."
        )
    if kind in (".csv", ".tsv") and start.startswith(b"<?xml"):
        raise UserError(
            "todo",
            f"{name}: this is XML, such as a server's error message. Download the file itself, or save it as .csv.",
        )
    if kind in (".csv", ".tsv") and re.match(rb'(\[\s*)?\{\s*"[^"]*"\s*:', start):
        raise UserError(
            "todo",
            f"{name}: this is JSON. Let its name end in .jsonl where every line is an object, else in .json.",
        )


def _encoding(name: str, path: Path, head: bytes, note: Note) -> str:
    """How the file's text is encoded. Raises UserError where it is no text."""
    for mark, encoding in (
        (b"\xff\xfe\x00\x00", "utf-32"),
        (b"\x00\x00\xfe\xff", "utf-32"),
        (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
    ):
        if head.startswith(mark):
            return _noted(path, name, encoding, note)
    zeros = head[0:2000:2].count(0), head[1:2000:2].count(0)
    wide = (
        "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    )  # of two bytes a letter, Latin ones leave the same one zero
    if max(zeros) > max(1, len(head[:2000]) // 10) and min(zeros) <= max(zeros) // 2:
        return _noted(path, name, wide, note)
    try:
        _decode_whole(path, "utf-8")
    except UnicodeDecodeError as error:
        position = error.start
    else:
        _refuse_zeros(path, name)
        return "utf-8"
    if not min(zeros) and max(zeros) > 3:  # few of the letters are Latin
        return _noted(path, name, wide, note)
    _refuse_zeros(path, name)
    around = _around(path, position)
    whole = len(
        re.findall(
            rb"[\xc3-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}", around
        )
    )
    if whole > len(re.findall(rb"[\x80-\xff]", around)) // 4 and whole > 3:
        where = f"line {_line(path, position)} has a byte"
        raise UserError(
            "todo",
            f"{name}: {where} that is not UTF-8, as the rest is. Correct it there, or save the file as UTF-8 again.",
        )
    if _reads_as_western(
        around
    ):  # what most files that are not UTF-8 are; short ones look like anything to statistics
        return _noted(path, name, "cp1252", note)
    from charset_normalizer import from_bytes

    best = from_bytes(around).best()
    if best is None:
        where = f"line {_line(path, position)} has a byte in no encoding"
        raise UserError(
            "todo",
            f"{name}: {where} that could be told. Save the file as UTF-8 and bring it again.",
        )
    encoding = (
        "cp1252" if best.encoding in ("latin_1", "iso8859_15", "ascii", "utf_8") else best.encoding
    )
    return _noted(path, name, encoding, note)


_BESIDE_WORDS = set("äöüßéèêëàâáãåæçñíìîïóòôõøœúùûšž" + "“”‘’„–—…€«»°§©®™•·¡¿£¢ºª²³½¼\u00a0")
_IN_WORDS = re.compile(r"[^\W\d_][¡¿£¢²³½¼¾¹×÷¤¦¨¯¬±µ¶¸º°§•€‰ƒ„†‡‹›«»“”…–—][^\W\d_]")


def _reads_as_western(around: bytes) -> bool:
    """Whether this is plausible as cp1252: only letters of Western Europe and signs of print, and no sign inside a word."""
    try:
        text = around.decode("cp1252")
    except UnicodeDecodeError:
        return False
    odd = [character for character in text if not character.isascii()]
    letters = sum(character.isalpha() for character in text)
    foreign = (
        sum(character.isalpha() for character in odd) > letters * 0.4
    )  # another alphabet, every letter of which is beyond ASCII
    return (
        not foreign
        and all(character.lower() in _BESIDE_WORDS for character in odd)
        and len(_IN_WORDS.findall(text)) <= len(odd) // 20
    )


def _refuse_zeros(path: Path, name: str) -> None:
    """A zero byte is no text: something else was renamed, or a disk failed while the file was written."""
    with open(path, "rb") as file:
        at = 0
        while block := file.read(1 << 22):
            if (zero := block.find(b"\0")) >= 0:
                where = f"there is a zero byte on line {_line(path, at + zero)}"
                raise UserError(
                    "todo",
                    f"{name}: this is no text, as {where}. Remove it, or save the file as UTF-8 text.",
                )
            at += len(block)


def _line(path: Path, position: int) -> int:
    with open(path, "rb") as file:
        return 1 + sum(
            file.read(min(1 << 22, position - at)).count(b"\n")
            for at in range(0, position, 1 << 22)
        )


def _noted(path: Path, name: str, encoding: str, note: Note) -> str:
    try:
        _decode_whole(path, encoding)
    except (UnicodeDecodeError, UnicodeError) as error:
        place = f"byte {error.start + 1} " if isinstance(error, UnicodeDecodeError) else "it "
        raise UserError(
            "todo",
            f"{name}: {place}is not {encoding}, as the rest seems to be. Save the file as UTF-8 and bring it again.",
        ) from None
    note(
        f"The text is encoded in {encoding}, not in UTF-8. Check that letters with accents are right; if not, save the file as UTF-8."
    )
    return encoding


def _decode_whole(path: Path, encoding: str) -> None:
    """Raises UnicodeDecodeError, with `start` counted from the beginning of the file, where the file is not in `encoding`."""
    at = 0
    with open(path, "rb") as file:
        import codecs

        decoder = codecs.getincrementaldecoder(encoding)()
        while block := file.read(1 << 22):
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                raise UnicodeDecodeError(
                    error.encoding,
                    b"",
                    at - pending + error.start,
                    at - pending + error.end,
                    error.reason,
                ) from None
            at += len(block)
        decoder.decode(b"", final=True)


def _around(path: Path, position: int) -> bytes:
    """What is near a byte, from which an encoding can be told: letters with accents are rare in a long file."""
    with open(path, "rb") as file:
        file.seek(max(0, position - 20_000))
        return file.read(60_000)
