"""Rows and token ids in Arrow files, drawn one by one from the disk: a million take no more memory than a thousand."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from peft_space.data.records import Row, from_json
from peft_space.data.tokenization.example import TokenizedExample
from peft_space.data.tokenization.spans import Span

TOKENS = pa.schema(
    [
        ("row", pa.int64()), ("input_ids", pa.list_(pa.int32())), ("trained", pa.list_(pa.int32())),
        ("cut", pa.int32()), ("length", pa.int32()), ("num_trained", pa.int32()), ("typed_controls", pa.bool_()), ("problem", pa.string()),
        ("label", pa.string()), ("tags", pa.list_(pa.string())), ("types", pa.list_(pa.int8())), ("good", pa.bool_()),
        ("rejected_ids", pa.list_(pa.int32())), ("rejected_trained", pa.list_(pa.int32())), ("target_ids", pa.list_(pa.int32())),
    ]
)  # fmt: skip


_HASHED_AT_ONCE = 10_000
"""Rows."""


def open_arrow(path: Path) -> pa.Table:
    """The table in an Arrow file, mapped into memory, not read."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


class Rows(Sequence[Row]):
    """Rows of the Arrow file `path` (`rows_file.ROWS`), those at the places `index`, in its order."""

    def __init__(self, path: Path, digest: str, index: np.ndarray | None = None):
        self.path, self.digest = path, digest
        self._table = open_arrow(path)
        self.positions = np.arange(self._table.num_rows, dtype=np.int64) if index is None else index

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> "Rows": ...
    def __getitem__(self, at: int | slice) -> "Row | Rows":
        if isinstance(at, slice):
            return Rows(self.path, self.digest, self.positions[at])
        place = int(self.positions[at])
        return from_json(self._table["number"][place].as_py(), self._table["row"][place].as_py())

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(a == b for a, b in zip(self, other, strict=True))
        )

    def whole(self) -> "Rows":
        """All rows of the file, which is what is tokenized."""
        return Rows(self.path, self.digest)


class Tokens(Sequence[TokenizedExample]):
    """Rendered rows in the Arrow file `path` (`TOKENS`), those at the places `index`."""

    def __init__(self, path: Path, index: np.ndarray | None = None):
        self.path = path
        self._table = open_arrow(path)
        self.positions = np.arange(self._table.num_rows, dtype=np.int64) if index is None else index
        # columns of other tasks are empty, and reading a cell takes time
        optional = (
            "label",
            "tags",
            "types",
            "good",
            "rejected_ids",
            "rejected_trained",
            "target_ids",
        )
        used = [name for name in optional if self._table[name].null_count < self._table.num_rows]
        self._columns = ["row", "input_ids", "trained", "cut", "typed_controls", *used]

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[TokenizedExample]:
        return (self[at] for at in range(len(self)))

    @overload
    def __getitem__(self, at: int) -> TokenizedExample: ...
    @overload
    def __getitem__(self, at: slice) -> "Tokens": ...
    def __getitem__(self, at: int | slice) -> "TokenizedExample | Tokens":
        if isinstance(at, slice):
            return Tokens(self.path, self.positions[at])
        place = int(self.positions[at])
        cell = {name: self._table[name][place].as_py() for name in self._columns}
        row, rejected, target = cell["row"], cell.get("rejected_ids"), cell.get("target_ids")
        return TokenizedExample(
            row=row,
            input_ids=cell["input_ids"],
            trained=_spans(cell["trained"]),
            cut=cell["cut"],
            typed_controls=cell["typed_controls"],
            label=cell.get("label"),
            tags=cell.get("tags") or [],
            types=cell.get("types") or [],
            good=cell.get("good"),
            rejected=TokenizedExample(row, rejected, _spans(cell["rejected_trained"]))
            if rejected
            else None,
            target=TokenizedExample(row, target, [(0, len(target))])
            if target is not None
            else None,
        )

    def at(self, index: np.ndarray) -> "Tokens":
        """Those at these places of the file."""
        return Tokens(self.path, index)

    def column(self, name: str) -> np.ndarray:
        """One number a row: `row`, `cut`, `length` (before the cut), `num_trained` or `typed_controls`."""
        return self._table[name].to_numpy()[self.positions]

    def digest(self) -> str:
        """SHA-256 of all that a trainer is given of these rows, in their order."""
        digest = hashlib.sha256(str(len(self.positions)).encode())
        columns = self._table.select(
            [
                name
                for name in TOKENS.names
                if name not in ("row", "cut", "length", "typed_controls", "problem")
            ]
        )
        for start in range(0, len(self.positions), _HASHED_AT_ONCE):
            for column in columns.take(self.positions[start : start + _HASHED_AT_ONCE]).columns:
                for content in _contents(column):
                    digest.update(content)
        return digest.hexdigest()

    def largest_id(self) -> int:
        """The largest token id of the whole file; -1 where it has none."""
        columns = [
            self._table[name]
            for name in ("input_ids", "rejected_ids", "target_ids")
            if name in self._table.column_names
        ]
        return max(
            (pc.max(pc.list_flatten(column)).as_py() or -1 for column in columns), default=-1
        )

    def labels(self) -> list[str | None]:
        """The label of each row."""
        return self._table["label"].take(self.positions).to_pylist()

    def problems(self) -> dict[int, str]:
        """Place in the file -> why the row could not be rendered."""
        column = self._table["problem"]
        places = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
        return {int(place): column[int(place)].as_py() for place in places}


def _contents(column: pa.ChunkedArray) -> Iterator[bytes]:
    """The cells of a column as bytes: of lists their lengths and what is in them."""
    if pa.types.is_list(column.type):
        yield pc.fill_null(pc.list_value_length(column), -1).to_numpy().tobytes()
        column = pc.list_flatten(column)
    integers = pa.types.is_integer(column.type)
    yield column.to_numpy().tobytes() if integers else json.dumps(column.to_pylist()).encode()


def token_columns(rendered: Sequence[TokenizedExample | tuple[int, str]]) -> dict[str, list[Any]]:
    """Rendered rows, or (number, why not), as columns of `TOKENS`."""
    lines = [
        _line(one)
        if isinstance(one, TokenizedExample)
        else (one[0], [], [], 0, 0, 0, False, one[1], *[None] * 7)
        for one in rendered
    ]
    return {name: [line[number] for line in lines] for number, name in enumerate(TOKENS.names)}


def _line(one: TokenizedExample) -> tuple[Any, ...]:
    rejected = (
        (one.rejected.input_ids, _flat(one.rejected.trained)) if one.rejected else (None, None)
    )
    return (
        one.row, one.input_ids, _flat(one.trained), one.cut, one.length, one.num_trained, one.typed_controls, None,
        one.label, one.tags or None, one.types or None, one.good, *rejected, one.target.input_ids if one.target else None,
    )  # fmt: skip


def _flat(spans: Sequence[Span]) -> list[int]:
    return [at for span in spans for at in span]


def _spans(flat: Sequence[int]) -> list[Span]:
    return list(zip(flat[::2], flat[1::2], strict=True))


@dataclasses.dataclass(frozen=True)
class Subset:
    """Which rows of a file are trained on, and which are held out, as places in it."""

    train: np.ndarray
    held_out: np.ndarray
