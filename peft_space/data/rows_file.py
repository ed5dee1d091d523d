"""Numbered rows as JSON in an Arrow file: one form for what was read and for what was understood. Knows nothing of what is in a row."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

ROWS = pa.schema([("number", pa.int64()), ("row", pa.string())])


def texts_in(
    path: Path, batch: int, start: int = 0, stop: int | None = None
) -> Iterator[tuple[list[int], list[str]]]:
    """(numbers, rows) of the file in order, at most `batch` at once.

    They are read piece by piece: of a file that is mapped into memory every page that was looked at would stay there.
    """
    with pa.OSFile(str(path)) as file:
        reader = pa.ipc.open_file(file)
        begin = 0
        for index in range(reader.num_record_batches):
            piece = reader.get_batch(index)
            end = begin + piece.num_rows
            for at in range(max(start, begin), end if stop is None else min(stop, end), batch):
                part = piece.slice(
                    at - begin, min(batch, (end if stop is None else min(stop, end)) - at)
                )
                yield part["number"].to_pylist(), part["row"].to_pylist()
            begin = end
            if stop is not None and begin >= stop:
                return
