"""Rows and token ids in Arrow files, drawn one by one from the disk: a million take no more memory than a thousand."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from peft_space.data.render import Example
from peft_space.data.rows import Row, from_json

TOKENS = pa.schema(
    [
        ("row", pa.int64()), ("input_ids", pa.list_(pa.int32())), ("trained", pa.list_(pa.int32())),
        ("cut", pa.int32()), ("length", pa.int32()), ("num_trained", pa.int32()), ("typed_controls", pa.bool_()), ("problem", pa.string()),
    ]
)  # fmt: skip


def opened(path: Path) -> pa.Table:
    """The table in an Arrow file, mapped into memory, not read."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


class Rows(Sequence[Row]):
    """Rows of the Arrow file `path` (`rows_file.ROWS`), those at the places `index`, in its order."""

    def __init__(self, path: Path, digest: str, index: np.ndarray | None = None):
        self.path, self.digest = path, digest
        self._table = opened(path)
        self.index = np.arange(self._table.num_rows, dtype=np.int64) if index is None else index

    def __len__(self) -> int:
        return len(self.index)

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> "Rows": ...
    def __getitem__(self, at: int | slice) -> "Row | Rows":
        if isinstance(at, slice):
            return Rows(self.path, self.digest, self.index[at])
        place = int(self.index[at])
        return from_json(self._table["number"][place].as_py(), self._table["row"][place].as_py())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def whole(self) -> "Rows":
        """All rows of the file, which is what is tokenized."""
        return Rows(self.path, self.digest)


class Tokens(Sequence[Example]):
    """Rendered rows in the Arrow file `path` (`TOKENS`), those at the places `index`."""

    def __init__(self, path: Path, index: np.ndarray | None = None):
        self.path = path
        self._table = opened(path)
        self.index = np.arange(self._table.num_rows, dtype=np.int64) if index is None else index

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[Example]:
        return (self[at] for at in range(len(self)))

    @overload
    def __getitem__(self, at: int) -> Example: ...
    @overload
    def __getitem__(self, at: slice) -> "Tokens": ...
    def __getitem__(self, at: int | slice) -> "Example | Tokens":
        if isinstance(at, slice):
            return Tokens(self.path, self.index[at])
        place = int(self.index[at])
        spans = self._table["trained"][place].values.to_pylist()
        return Example(
            row=self._table["row"][place].as_py(),
            input_ids=self._table["input_ids"][place].values.to_pylist(),
            trained=list(zip(spans[::2], spans[1::2], strict=True)),
            cut=self._table["cut"][place].as_py(),
            typed_controls=self._table["typed_controls"][place].as_py(),
        )

    def at(self, index: np.ndarray) -> "Tokens":
        """Those at these places of the file."""
        return Tokens(self.path, index)

    def column(self, name: str) -> np.ndarray:
        """One number a row: `row`, `cut`, `length` (before the cut), `num_trained` or `typed_controls`."""
        return self._table[name].to_numpy()[self.index]

    def problems(self) -> dict[int, str]:
        """Place in the file -> why the row could not be rendered."""
        column = self._table["problem"]
        places = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
        return {int(place): column[int(place)].as_py() for place in places}


def token_columns(rendered: Sequence[Example | tuple[int, str]]) -> dict[str, list[Any]]:
    """Rendered rows, or (number, why not), as columns of `TOKENS`."""
    lines = []
    for one in rendered:
        if isinstance(one, Example):
            flat = [at for span in one.trained for at in span]
            line = (one.row, one.input_ids, flat, one.cut, len(one.input_ids) + one.cut, one.num_trained, one.typed_controls, None)
        else:
            line = (one[0], [], [], 0, 0, 0, False, one[1])
        lines.append(line)
    return {name: [line[number] for line in lines] for number, name in enumerate(TOKENS.names)}


@dataclasses.dataclass(frozen=True)
class Places:
    """Which rows of a file are trained on, and which are held out, as places in it."""

    train: np.ndarray
    held_out: np.ndarray
