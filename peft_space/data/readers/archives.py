"""Unpacks gzip files and zip archives within the size limits, and chooses the files to read."""

import gzip
import re
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from peft_space.data.pictures import MAX_BYTES, Brought, is_picture
from peft_space.data.readers import Note, check_unpacked_size, first_line
from peft_space.errors import UserError


def unpack_gzip(name: str, path: Path, folder: Path) -> Path:
    """Write the content of the gzip file `name` into `folder` and return the new file.

    Raises:
        UserError: the file is damaged, or its content is too large.
    """
    target = folder / "unpacked"
    try:
        with gzip.open(path) as packed, open(target, "wb") as file:
            while block := packed.read(1 << 20):
                check_unpacked_size(name, file.tell() + len(block))
                file.write(block)
    except (OSError, EOFError, zlib.error) as error:
        cause = "it ends too early" if isinstance(error, EOFError) else "it is damaged"
        message = f"{name}: the file cannot be unpacked: {cause}. Compress or download it again."
        raise UserError("data.damaged_file", message) from None
    return target


_NOT_ROWS = {
    "dataset_info.json", "state.json", "dataset_dict.json", "dataset_infos.json", "license",
    "license.txt", "license.md", "readme", "readme.txt", "readme.md",
}  # fmt: skip
"""Files in archives that describe a dataset: `datasets` writes some into saved folders."""
_SHARD = re.compile(r"[-_]\d{2,}[-_]of[-_]\d{2,}(?=\.\w+$)|(?<=part)[-_.]?\d+(?=\.\w+$)")
_MAX_FILES = 1_000
_MAX_PICTURES = 100_000


def choose_files(name: str, archive: zipfile.ZipFile, part: str, note: Note) -> list[str]:
    """Return the files of a zip archive that hold the rows: one table, or the parts of one.

    Args:
        name: the archive, for messages.
        archive: the archive.
        part: the file, folder or split that the user chose, or an empty text.
        note: receives a sentence about files that are not read.

    Raises:
        UserError: the part does not exist, or there are several tables and none is chosen.
    """
    tables = find_tables(archive)
    chosen = {
        title: parts
        for title, parts in tables.items()
        if not part or part in (title, *parts) or part in _names_of(title)
    }
    if part and not chosen:
        listed = _listed(tables)
        message = f"{name}: it contains no {part!r}. Choose one of {listed}."
        raise UserError("data.unknown_part", message)
    if not part and len(chosen) > 1:
        train = {title: parts for title, parts in chosen.items() if "train" in _names_of(title)}
        if len(train) != 1:
            raise UserError(
                "data.several_tables",
                f"{name}: it contains several tables ({_listed(tables)}). Write #NAME after the "
                "name of the file to choose one, or use the files in it.",
            )
        others = _listed(title for title in tables if title not in train)
        note(
            f"{name}: only {_listed(train)} is read, not {others}. "
            "Write #NAME after the name of the file to choose another one."
        )
        chosen = train
    if not chosen:
        message = f"{name}: the archive contains no file with rows. Use one with a data file."
        raise UserError("data.no_rows", message)
    return sorted(parts for shards in chosen.values() for parts in shards)


def find_tables(archive: zipfile.ZipFile) -> dict[str, list[str]]:
    """Return the tables in a zip archive: name -> its files, several if it was saved in parts."""
    files = [info.filename for info in archive.infolist() if _may_hold_rows(info)]
    tables: dict[str, list[str]] = {}
    for file in files[:_MAX_FILES]:
        tables.setdefault(_SHARD.sub("", file), []).append(file)
    return tables


def _may_hold_rows(info: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(info.filename)
    if info.is_dir() or _is_hidden(path) or is_picture(path.name):
        return False
    return path.name.lower() not in _NOT_ROWS


def _is_hidden(path: PurePosixPath) -> bool:
    return any(part.startswith((".", "__MACOSX")) and part != ".." for part in path.parts)


def has_table(archive: zipfile.ZipFile) -> bool:
    """Return True if a zip archive contains a file that may hold rows."""
    return any(map(_may_hold_rows, archive.infolist()))


def unpack_pictures(name: str, archive: zipfile.ZipFile, brought: Brought) -> None:
    """Add the pictures in the zip archive `name` to `brought`. Nothing is written by its path.

    Raises:
        UserError: the pictures are too large together, or too many.
    """
    infos = [info for info in archive.infolist() if is_picture(info.filename)]
    infos = [info for info in infos if not _is_hidden(PurePosixPath(info.filename))]
    if len(infos) > _MAX_PICTURES:
        raise UserError(
            "data.too_many_pictures",
            f"{name}: it contains {len(infos):,} pictures, and the limit is {_MAX_PICTURES:,}. "
            "Use fewer.",
        )
    total = 0
    for info in infos:
        try:
            with archive.open(info) as packed:
                content = packed.read(MAX_BYTES + 1)
        except (OSError, EOFError, zlib.error, RuntimeError, ValueError, NotImplementedError,
                zipfile.BadZipFile) as error:  # fmt: skip
            cause = "it has a password" if "encrypted" in str(error) else "it is damaged"
            brought.add_named(info.filename, None, f"{cause} in the archive")
            continue
        total += len(content)
        check_unpacked_size(name, total)
        brought.add_named(info.filename, content)


def _names_of(title: str) -> set[str]:
    """Return the names under which a table can be chosen: its file, its folder or its split."""
    path = PurePosixPath(title)
    folders = [part.lower() for part in path.parts[:-1]][-1:]
    split = re.split(r"[-_.]", path.stem.lower())
    return {path.name, path.stem, path.stem.lower(), *folders, *(split if not folders else ())}


def _listed(titles: object) -> str:
    names = list(map(str, titles))  # type: ignore[call-overload]
    rest = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + rest


def unpack_file(name: str, archive: zipfile.ZipFile, file: str, folder: Path) -> Path:
    """Write a file of the zip archive `name` into `folder` and return the new file.

    Raises:
        UserError: the archive is damaged or encrypted, or the file is too large.
    """
    target = folder / "member"
    try:
        with archive.open(file) as packed, open(target, "wb") as unpacked:
            while block := packed.read(1 << 20):
                check_unpacked_size(name, unpacked.tell() + len(block))
                unpacked.write(block)
    except (OSError, EOFError, zlib.error, RuntimeError, zipfile.BadZipFile) as error:
        cause = "it has a password" if "encrypted" in str(error) else first_line(error)
        message = f"{name}: {file} cannot be unpacked ({cause}). Use the file itself."
        raise UserError("data.damaged_file", message) from None
    return target
