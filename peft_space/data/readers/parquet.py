"""Reads Parquet and Arrow files; typed values become text."""

import contextlib
import itertools
import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from peft_space.data.column_mapping import IMAGES, normalized
from peft_space.data.pictures import Brought
from peft_space.data.readers import (
    MAX_ROW_CHARACTERS,
    NumberedRow,
    as_written,
    check_columns,
    check_row_length,
    check_unpacked_size,
    first_line,
)
from peft_space.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


def read_parquet(name: str, path: Path, brought: Brought) -> Iterator[NumberedRow]:
    """Yield the rows of a Parquet file.

    Args:
        name: the file, for messages.
        path: the file.
        brought: pictures in the rows are added to it.

    Raises:
        UserError: the file is damaged or too large, or a column contains bytes such as images.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        yield from _written(name, pq.read_schema(path), _rows(name, path), brought)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(name, "Parquet", error) from None


def read_arrow(name: str, path: Path, brought: Brought) -> Iterator[NumberedRow]:
    """Yield the rows of an Arrow file or stream, as `datasets` saves them, or of a Feather file.

    Args:
        name: the file, for messages.
        path: the file.
        brought: pictures in the rows are added to it.

    Raises:
        UserError: the file is damaged or too large, or a column contains bytes such as images.
    """
    import pyarrow as pa

    try:
        with pa.OSFile(str(path)) as file:
            # a file is a mark of eight bytes, a stream, and an index that is not needed
            start = 8 if file.read(6) == b"ARROW1" else 0
            file.seek(start)
            _check_messages(name, file)
            file.seek(start)
            reader = pa.ipc.open_stream(file)
            _check_types(name, reader.schema)
            yield from _written(name, reader.schema, _checked_rows(name, reader), brought)
    except (pa.ArrowException, OSError, UnicodeDecodeError, EOFError, struct.error) as error:
        raise _damaged(name, "Arrow", error) from None


def _check_messages(name: str, file: "pa.NativeFile") -> None:
    """Raise UserError if the batches of an Arrow stream, which are read at once, are too large."""
    import pyarrow as pa

    for message in iter(lambda: _next_message(file), None):
        if message.type in ("record batch", "dictionary"):
            check_unpacked_size(name, _unpacked_size(message))
        elif message.type == "schema":
            _check_types(name, pa.ipc.read_schema(message))


def _next_message(file: "pa.NativeFile") -> "pa.Message | None":
    import pyarrow as pa

    try:
        return pa.ipc.read_message(file)
    except EOFError:
        return None


def _unpacked_size(message: "pa.Message") -> int:
    """Return the size of the buffers of a batch: each compressed one begins with its size.

    The metadata of a message is a FlatBuffers table; Arrow's format declares its fields.
    """
    data, body = message.metadata.to_pybytes(), memoryview(message.body or b"")

    def field(table: int, slot: int) -> int:
        """Return the position of a field of a table, or 0."""
        fields = table - struct.unpack_from("<i", data, table)[0]
        if 4 + 2 * slot >= struct.unpack_from("<H", data, fields)[0]:
            return 0
        offset = struct.unpack_from("<H", data, fields + 4 + 2 * slot)[0]
        return table + offset if offset else 0

    def follow(position: int) -> int:
        return position + int(struct.unpack_from("<I", data, position)[0])

    batch = follow(field(follow(0), 2))
    if message.type == "dictionary":
        batch = follow(field(batch, 1))
    if not field(batch, 3):  # compression
        return len(body)
    buffers = follow(field(batch, 2))
    total = 0
    for index in range(struct.unpack_from("<I", data, buffers)[0]):
        offset, length = struct.unpack_from("<qq", data, buffers + 4 + 16 * index)
        total += max(struct.unpack_from("<q", body, offset)[0], length) if length >= 8 else 0
    return total


def _damaged(name: str, kind: str, error: Exception) -> UserError:
    return UserError(
        "data.damaged_file",
        f"{name}: the {kind} file is damaged or incomplete ({first_line(error)}). "
        "Save or download it again.",
    )


def _written(
    name: str, schema: "pa.Schema", rows: Iterator[dict[str, object]], brought: Brought
) -> Iterator[NumberedRow]:
    """Yield rows with their values as text, and pictures as the names of their content."""
    names = _label_names(schema)
    with_bytes = [field for field in schema if _contains_bytes(field.type)]
    with_pictures = [field.name for field in with_bytes if _is_picture(field)]
    with_texts = [field.name for field in with_bytes if not _is_picture(field)]
    for number, row in enumerate(rows, 1):
        row |= {column: _stored(row[column], brought) for column in with_pictures}
        row |= {column: _decoded(name, column, row[column]) for column in with_texts}
        named = {column: _named(cell, names.get(column)) for column, cell in row.items()}
        written = {column: as_written(_unpadded(cell)) for column, cell in named.items()}
        text = json.dumps(written, ensure_ascii=False)
        check_row_length(name, f"row {number}", len(text))
        yield number, text, written


def _stored(cell: object, brought: Brought) -> object:
    """Return a cell with the SHA-256 of each picture in place of its bytes."""
    if isinstance(cell, bytes):
        return {"picture": brought.add(cell)} if cell else None
    if isinstance(cell, list):
        return [_stored(one, brought) for one in cell]
    if isinstance(cell, dict):
        content = cell.get("bytes")
        return {"picture": brought.add(content)} if content else cell.get("path")
    return cell


def _decoded(name: str, column: str, cell: object) -> object:
    """Return the text that bytes are, as TensorFlow Datasets stores it.

    Raises:
        UserError: they are something else.
    """
    if isinstance(cell, list):
        return [_decoded(name, column, one) for one in cell]
    if not isinstance(cell, bytes):
        return cell
    with contextlib.suppress(UnicodeDecodeError):
        text = cell.decode()
        if "\0" not in text:
            return text
    raise _not_text(name, column)


def _not_text(name: str, column: str) -> UserError:
    return UserError(
        "data.binary_column",
        f"{name}: the column {column!r} contains bytes that are neither text nor pictures. "
        "Remove it.",
    )


def _label_names(schema: "pa.Schema") -> dict[str, list[str]]:
    """Return column -> names of its labels, which `datasets` stores with numbers (ClassLabel)."""
    metadata = schema.metadata or {}
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    names = {}
    for column, feature in features.items():
        while isinstance(feature, list) or (isinstance(feature, dict) and "feature" in feature):
            feature = feature[0] if isinstance(feature, list) else feature["feature"]
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            names[column] = list(map(str, feature.get("names") or []))
    return names


def _named(cell: object, names: list[str] | None) -> object:
    """Return the names of labels in place of their numbers; -1 means that there is none."""
    if not names:
        return cell
    if isinstance(cell, list):
        return [_named(one, names) for one in cell]
    return names[cell] if isinstance(cell, int) and 0 <= cell < len(names) else cell


def _unpadded(cell: object) -> object:
    """Return a cell without nulls in objects: Arrow gives all objects of a column the same keys."""
    if isinstance(cell, dict):
        return {key: _unpadded(value) for key, value in cell.items() if value is not None}
    return [_unpadded(value) for value in cell] if isinstance(cell, list) else cell


def _rows(name: str, path: Path) -> Iterator[dict[str, object]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        text_columns = [
            field.name
            for field in file.schema_arrow
            if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        ]
        batch_size = _check_footer(name, file)
    # a repeated text is stored once in the file; a dictionary stores it once in memory too
    with pq.ParquetFile(
        path, read_dictionary=text_columns, page_checksum_verification=True
    ) as file:
        yield from _rows_of_batches(file.iter_batches(batch_size=batch_size))


def _rows_of_batches(batches: Iterable["pa.RecordBatch"]) -> Iterator[dict[str, object]]:
    for batch in batches:
        step = 1 if batch.nbytes > MAX_ROW_CHARACTERS else 16
        slices = (batch.slice(start, step) for start in range(0, len(batch), step))
        yield from itertools.chain.from_iterable(part.to_pylist() for part in slices)


def _checked_rows(name: str, batches: Iterable["pa.RecordBatch"]) -> Iterator[dict[str, object]]:
    """Yield the rows of an Arrow file, whose offsets may point anywhere in a hostile file."""
    for batch in batches:
        batch.validate(full=True)
        check_unpacked_size(name, batch.num_rows * sum(len(c) + 7 for c in batch.schema.names))
        yield from _rows_of_batches([batch])


def _check_footer(name: str, file: "pq.ParquetFile") -> int:
    """Return how many rows to read at once. Raise UserError if the rows cannot be used."""
    _check_types(name, file.schema_arrow)
    columns = file.schema_arrow.names
    groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
    chunks = [group.column(index) for group in groups for index in range(group.num_columns)]
    # size of the rows as text if every value had one character
    min_text = file.metadata.num_rows * sum(len(column) + 7 for column in columns)
    check_unpacked_size(name, max(min_text, sum(c.total_uncompressed_size for c in chunks)))
    for chunk in chunks:
        mean_length = chunk.total_uncompressed_size / max(chunk.num_values, 1)
        check_row_length(name, f"a value of the column {chunk.path_in_schema!r}", mean_length)
    has_long_rows = any(
        group.total_byte_size > 200_000 * max(group.num_rows, 1) for group in groups
    )
    return 1 if has_long_rows else 16


def _check_types(name: str, schema: "pa.Schema") -> None:
    """Raise UserError if the columns are too many, not distinct, or contain bytes."""
    check_columns(name, schema.names)
    for field in schema:
        if _contains_bytes(field.type) and not _is_picture(field) and not _may_be_text(field.type):
            raise _not_text(name, field.name)


def _is_picture(field: "pa.Field") -> bool:
    """True for bytes in a column named after pictures, and for the Image feature of `datasets`."""
    import pyarrow as pa

    kind = field.type
    while pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        others = [kind.field(i) for i in range(kind.num_fields) if kind.field(i).name != "bytes"]
        has_bytes = kind.get_field_index("bytes") >= 0
        return has_bytes and not any(_contains_bytes(one.type) for one in others)
    return normalized(field.name) in IMAGES


def _may_be_text(kind: "pa.DataType") -> bool:
    """Return True for bytes, or a list of them."""
    import pyarrow as pa

    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _may_be_text(kind.value_type)
    return not pa.types.is_nested(kind)


def _contains_bytes(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    checks = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    if any(check(kind) for check in checks):
        return True
    return any(_contains_bytes(kind.field(i).type) for i in range(kind.num_fields))
