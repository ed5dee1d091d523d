"""Reads Parquet files; typed values become text."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

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


def read_parquet(name: str, path: Path) -> Iterator[NumberedRow]:
    """Yield the rows of a Parquet file.

    Raises:
        UserError: the file is damaged or too large, or a column contains bytes such as images.
    """
    import pyarrow as pa

    try:
        names = _label_names(path)
        for number, row in enumerate(_rows(name, path), 1):
            named = {column: _named(cell, names.get(column)) for column, cell in row.items()}
            written = {column: as_written(_unpadded(cell)) for column, cell in named.items()}
            text = json.dumps(written, ensure_ascii=False)
            check_row_length(name, f"row {number}", len(text))
            yield number, text, written
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(
            "data.damaged_file",
            f"{name}: the Parquet file is damaged or incomplete ({first_line(error)}). "
            "Save or download it again.",
        ) from None


def _label_names(path: Path) -> dict[str, list[str]]:
    """Return column -> names of its labels, which `datasets` stores with numbers (ClassLabel)."""
    import pyarrow.parquet as pq

    metadata = pq.read_schema(path).metadata or {}
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
        for batch in file.iter_batches(batch_size=batch_size):
            step = 1 if batch.nbytes > MAX_ROW_CHARACTERS else len(batch)
            slices = (batch.slice(start, step) for start in range(0, len(batch), step))
            yield from itertools.chain.from_iterable(part.to_pylist() for part in slices)


def _check_footer(name: str, file: "pq.ParquetFile") -> int:
    """Return how many rows to read at once. Raise UserError if the rows cannot be used."""
    columns = file.schema_arrow.names
    check_columns(name, columns)
    for field in file.schema_arrow:
        if _contains_bytes(field.type):
            raise UserError(
                "data.binary_column",
                f"{name}: the column {field.name!r} contains bytes, such as images. Remove it.",
            )
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


def _contains_bytes(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    checks = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    if any(check(kind) for check in checks):
        return True
    return any(_contains_bytes(kind.field(i).type) for i in range(kind.num_fields))
