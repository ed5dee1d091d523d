"""Recognizes a data file's kind by its content, and detects its text encoding."""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

from peft_space import settings
from peft_space.data.readers import Note
from peft_space.data.readers.csv import looks_delimited
from peft_space.data.readers.json import looks_like_json
from peft_space.data.readers.plain_text import looks_tagged
from peft_space.errors import UserError

KINDS = (
    ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".xlsx", ".txt", ".conll", ".arrow",
    ".zip",
)  # fmt: skip
SUFFIXES = (*KINDS, ".gz")
"""Endings of the names of supported files; each kind may be compressed with gzip."""
_OTHER_SUFFIXES = {
    "": ".txt", ".text": ".txt", ".md": ".txt", ".markdown": ".txt", ".tab": ".tsv",
    ".conllu": ".conll", ".iob": ".conll", ".iob2": ".conll", ".bio": ".conll",
    ".feather": ".arrow", ".pq": ".parquet", ".xlsm": ".xlsx",
}  # fmt: skip
"""Other ending -> kind. The ending decides only if the content fits several kinds."""

SAMPLE_SIZE = 65_536
"""Bytes, or characters, at the beginning of a file from which its format is detected."""
_BLOCK_SIZE = 1 << 22
_SAVE_AS_UTF_8 = "Save the file as UTF-8."


def named_kind(name: str) -> str | None:
    """Return the kind of a file by its name, without `.gz`, or None if it is not supported."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    if suffix not in KINDS and re.search(r"\s", suffix):  # "v. 2 of my rows" has no ending
        suffix = ""
    return suffix if suffix in KINDS else _OTHER_SUFFIXES.get(suffix)


def unsupported(name: str) -> UserError:
    """Return the error for a file of a kind that is not supported."""
    return UserError(
        "data.unsupported_file_type",
        f"{name}: unsupported file type. Use one of {', '.join(KINDS)}; "
        "each may be compressed with gzip.",
    )


def check_file(path: Path) -> None:
    """Raise UserError if the path is not a readable file, or its size is not supported."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            message = f"{path}: not a file. Enter the name of a file."
            raise UserError("data.file_not_readable", message)
        with open(path, "rb"):
            pass
    except OSError as error:
        cause = (error.strerror or "unknown error").lower()
        message = f"{path}: the file cannot be read ({cause}). Check its name."
        raise UserError("data.file_not_readable", message) from None
    limit = settings.max_file_megabytes()
    if size > limit * 1e6:
        raise UserError(
            "data.file_too_large",
            f"{path.name}: the file has {size / 1e6:.1f} MB; the limit is {limit:g} MB. "
            "Use fewer rows, or raise PEFT_SPACE_MAX_FILE_MB.",
        )


# Kinds

GZIP, ZIP = b"\x1f\x8b", b"PK\x03\x04"
_BINARY_KINDS = {
    b"PAR1": ".parquet",
    ZIP: ".zip",
    b"PK\x05\x06": ".zip",  # without a file
    b"ARROW1": ".arrow",
    b"\xff\xff\xff\xff": ".arrow",  # a stream
}
"""First bytes of a file -> its kind. A workbook is a zip archive."""
_NOT_SUPPORTED = {
    b"version https://git-lfs": "a Git LFS pointer. Download the file itself: `git lfs pull`",
    b"%PDF": "a PDF. Convert it to text (.txt) or to rows (.csv or .jsonl)",
    b"\x89PNG": "an image. Add a table that names it",
    b"\xff\xd8\xff": "an image. Add a table that names it",
    b"\xd0\xcf\x11\xe0": "an old Office file. Save it as .xlsx or .csv",
    b"SQLite format 3": "a database. Export the table as .csv",
    b"BZh": "a bzip2 file. Unpack it",
    b"\xfd7zXZ": "an xz file. Unpack it",
    b"\x28\xb5\x2f\xfd": "a Zstandard file. Unpack it",
    GZIP: "compressed with gzip twice. Unpack it once",
}
"""First bytes of a file -> what it is, and what to do."""


def binary_kind(name: str, head: bytes) -> str | None:
    """Return the kind that `head`, the first bytes after unpacking, proves; None for text.

    Raises:
        UserError: the file is empty or of a kind that is not supported.
    """
    check_not_empty(name, head)
    for signature, meaning in _NOT_SUPPORTED.items():
        if head.startswith(signature):
            raise UserError("data.wrong_file_type", f"{name}: this is {meaning}.")
    for signature, kind in _BINARY_KINDS.items():
        if head.startswith(signature):
            return kind
    by_name = named_kind(name)
    is_named_binary = by_name in _BINARY_KINDS.values() or by_name == ".xlsx"
    is_text = _unicode_encoding(head) or not re.search(rb"[\x00-\x08\x0e-\x1a]", head)
    if is_named_binary and not is_text:
        message = f"{name}: not a {by_name} file. Save or download it again."
        raise UserError("data.wrong_file_type", message)
    return None


def check_not_empty(name: str, head: bytes | str) -> None:
    """Raise UserError if the beginning of a file contains only white space."""
    if not head.strip():
        message = f"{name}: the file is empty. Use a file with at least one row."
        raise UserError("data.empty_file", message)


def text_kind(name: str, sample: str, note: Note) -> str:
    """Return the kind of a text file: the kind in its name, unless its content is another kind.

    Args:
        name: the file.
        sample: its first characters.
        note: receives a sentence if the content is not what the name says.

    Raises:
        UserError: the file is a web page, or of a kind that is not supported.
    """
    by_name, found = named_kind(name), None
    start = sample[:500].lstrip("\ufeff \t\r\n").lower()
    if start.startswith(("<!doctype html", "<html")):
        message = f"{name}: this is a web page. Download the file itself."
        raise UserError("data.wrong_file_type", message)
    if start.startswith("#format=webanno"):
        message = "an export in WebAnno TSV. Export it as CoNLL 2002 or CoNLL 2003"
        raise UserError("data.wrong_file_type", f"{name}: this is {message}.")
    is_whole = len(sample) < SAMPLE_SIZE
    if looks_like_json(sample, is_sure=by_name in (".json", ".jsonl", ".ndjson")):
        found = ".json"
    elif by_name != ".csv" and looks_tagged(sample, is_whole):
        found = ".conll"
    elif by_name not in (".csv", ".tsv", ".conll") and looks_delimited(sample, is_whole):
        found = ".csv"
    if start.startswith("<?xml") and found is None and by_name not in (None, ".txt"):
        message = "XML, such as an error of a server. Download the file itself, or save it as .csv"
        raise UserError("data.wrong_file_type", f"{name}: this is {message}.")
    if found is None and by_name in (".parquet", ".xlsx", ".arrow", ".zip"):
        message = f"{name}: not a {by_name} file. Save or download it again."
        raise UserError("data.wrong_file_type", message)
    if found is None and by_name is None:
        raise unsupported(name)
    is_json = found == ".json" and by_name in (".json", ".jsonl", ".ndjson")
    if found and found != by_name and not is_json:
        note(f"{name} is read as {_CONTENTS[found]}, because that is its content.")
    return str(by_name if is_json else found or by_name)


_CONTENTS = {
    ".json": "JSON",
    ".conll": "CoNLL (a token and its tag on each line)",
    ".csv": "a table",
}


# Encodings

_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_UNLIKELY = ("mac_cyrillic", "mac_greek", "mac_iceland", "mac_latin2", "mac_turkish")
"""Encodings whose short texts look like those of Windows, which are much more frequent."""
_SUPERSETS = {
    "ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254", "iso8859-11": "cp874",
    "tis-620": "cp874", "euc_kr": "cp949", "gb2312": "gb18030",
}  # fmt: skip
"""Encoding -> one that decodes all its text alike, and more. What follows a sample may need it."""
_JAPANESE_BY_ESCAPES = re.compile(rb"\x1b\$[@B]")
"""Begins Japanese in ISO-2022-JP, which has no byte that ASCII does not have."""


def detect_encoding(name: str, path: Path, note: Note) -> str:
    """Return the name of a codec that decodes the whole file.

    Args:
        name: the file, for messages.
        path: the unpacked file.
        note: receives a sentence if the encoding is not UTF-8.

    Raises:
        UserError: the file is not text, or no encoding fits; the message names the line.
    """
    with open(path, "rb") as file:
        head = file.read(SAMPLE_SIZE)
    encoding = _unicode_encoding(head)
    if encoding is None and _JAPANESE_BY_ESCAPES.search(head):
        encoding = "iso2022_jp"
    if encoding is None:
        position = _first_invalid(path, "utf-8")
        if position is None:
            _check_no_zero_bytes(name, path)
            return "utf-8-sig"
        encoding = _guess_encoding(name, path, position)
    if (position := _first_invalid(path, encoding)) is not None:
        place = f"line {_line_of(path, position)}"
        message = f"{name}: {place} is not valid {encoding} like the rest. {_SAVE_AS_UTF_8}"
        raise UserError("data.unknown_encoding", message)
    note(
        f"The text is encoded in {encoding}, not in UTF-8. "
        "Check that accented letters are correct; if they are not, save the file as UTF-8."
    )
    return encoding


def _unicode_encoding(head: bytes) -> str | None:
    """Return the encoding that a byte order mark, or a zero in every other byte, proves."""
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return encoding
    even, odd = head[0:2000:2].count(0), head[1:2000:2].count(0)
    if max(even, odd) > max(1, len(head[:2000]) // 10) and min(even, odd) <= max(even, odd) // 2:
        return "utf-16-be" if even > odd else "utf-16-le"
    return None


def _guess_encoding(name: str, path: Path, position: int) -> str:
    """Return the likeliest encoding of a file whose byte at `position` is not UTF-8."""
    with open(path, "rb") as file:  # letters with accents can be rare in a long file
        file.seek(max(0, position - 20_000))
        sample = file.read(60_000)
    if position > 20_000:
        sample = sample[sample.find(b"\n") + 1 :]
    if len(sample) > 30_000:
        sample = sample[: sample.rfind(b"\n") + 1] or sample
    text = sample.decode("utf-8", errors="replace")
    num_invalid = text.count("\ufffd")
    is_mostly_utf_8 = sum(not character.isascii() for character in text) > 2 * num_invalid + 3
    found = None if is_mostly_utf_8 else _likeliest(sample)
    if found is None or not found.startswith("utf-16"):
        _check_no_zero_bytes(name, path)
    if found is None:
        place = f"line {_line_of(path, position)}"
        problem = f"{place} contains a byte that is not UTF-8"
        message = f"{name}: {problem}. Correct it, or save the file as UTF-8."
        raise UserError("data.unknown_encoding", message)
    return found


def _likeliest(sample: bytes) -> str | None:
    """Return the likeliest encoding of text that is not UTF-8; None if it is not text."""
    from chardet import EncodingEra, detect

    if (wide := _utf_16(sample)) is not None:
        return wide
    if b"\0" not in sample:  # not UTF-16. Among many other lines, those with accents count little
        first, *rest = sample.splitlines()
        sample = b"\n".join([first, *(line for line in rest if not line.isascii())])
        text = sample.decode("cp1252", errors="replace")
        if "\ufffd" not in text and "".join(filter(str.isalpha, text)).isascii():
            return "cp1252"  # only symbols, such as quotation marks, are not ASCII
    found = detect(
        sample, encoding_era=EncodingEra.ALL & ~EncodingEra.MAINFRAME, compat_names=False,
        exclude_encodings=_UNLIKELY,
    )["encoding"]  # fmt: skip
    return found and _SUPERSETS.get(found, codecs.lookup(found).name)


def _utf_16(sample: bytes) -> str | None:
    """Return the byte order in which a sample with zeros is lines of printable text, or None.

    In a Chinese text few of the bytes are zeros: those of commas and line breaks.
    """
    for encoding in ("utf-16-le", "utf-16-be") if b"\0" in sample else ():
        text = sample[: len(sample) // 2 * 2].decode(encoding, errors="replace")
        num_printable = sum(one.isprintable() or one.isspace() for one in text)
        if "\n" in text and "\ufffd" not in text and num_printable == len(text):
            return encoding
    return None


def _blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (position, content) of each block of a file."""
    with open(path, "rb") as file:
        position = 0
        while block := file.read(_BLOCK_SIZE):
            yield position, block
            position += len(block)


def _first_invalid(path: Path, encoding: str) -> int | None:
    """Return the position of the first byte that is not valid in `encoding`, or None."""
    decoder = codecs.getincrementaldecoder(encoding)()
    position = 0
    try:
        for position, block in _blocks(path):
            pending = len(decoder.getstate()[0])
            position -= pending
            decoder.decode(block)
        position = path.stat().st_size - len(decoder.getstate()[0])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        return position + error.start
    return None


def _check_no_zero_bytes(name: str, path: Path) -> None:
    """Raise UserError for a zero byte: another file type, or the rest of a failed write."""
    for position, block in _blocks(path):
        if (zero := block.find(b"\0")) >= 0:
            place = f"line {_line_of(path, position + zero)} contains a zero byte"
            message = f"{name}: not a text file: {place}. Remove it, or save the file as UTF-8."
            raise UserError("data.not_text", message)


def _line_of(path: Path, position: int) -> int:
    """Return the number of the line that contains the byte at `position`."""
    line = 1
    for start, block in _blocks(path):
        if start >= position:
            break
        line += block[: position - start].count(b"\n")
    return line
