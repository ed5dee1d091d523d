"""Rows and tokenized examples in memory-mapped Arrow files, which are read one by one."""

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from peft_space.data.pictures import FOLDER
from peft_space.data.row_normalization import Row, from_json, pictures_of
from peft_space.data.tokenization.answer_spans import NOTES, Note, Span

ROWS = pa.schema([("number", pa.int64()), ("row", pa.string())])
"""Rows as JSON with their number: of a file as it was read, or as normalized records."""

_IDS = pa.list_(pa.int32())
TOKENS = pa.schema(
    [
        ("row", pa.int64()), ("input_ids", _IDS), ("trained", _IDS), ("cut", pa.int32()),
        ("length", pa.int32()), ("num_trained", pa.int32()), ("typed_controls", pa.bool_()),
        ("notes", pa.int32()), ("problem", pa.string()), ("label", pa.string()),
        ("tags", pa.list_(pa.string())), ("types", pa.list_(pa.int8())), ("good", pa.bool_()),
        ("rejected_ids", _IDS), ("rejected_trained", _IDS), ("target_ids", _IDS),
        ("unknown", pa.string()), ("position", pa.int64()), ("pictures", pa.list_(pa.string())),
    ]
)  # fmt: skip
"""Tokenized examples. `trained` holds spans as start, end, start, end … `position` is that of the
row in its file; a long text has several examples."""
_OPTIONAL = (
    "label", "tags", "types", "good", "rejected_ids", "rejected_trained", "target_ids", "pictures",
)  # fmt: skip
_NOT_TRAINED_ON = (
    "row",
    "cut",
    "length",
    "typed_controls",
    "notes",
    "problem",
    "unknown",
    "position",
)
_LATER = ("pictures",)
"""Columns that count in a digest only if they are used, so that those of older runs stay."""

_HASHED_ROWS = 10_000

MASKED = -100
"""Label of a token that has no loss."""


@dataclass(frozen=True)
class TokenizedExample:
    """Input of the trainer for one row: token ids (T,), trained spans, and fields of some tasks."""

    row: int
    input_ids: list[int]
    trained: list[Span]
    """Spans of tokens that have a loss, in order."""
    cut: int = 0
    """Number of tokens that were cut off at the length limit."""
    typed_controls: bool = False
    """True if the row's text contains special tokens of the model, which become plain text."""
    notes: frozenset[Note] = frozenset()
    """What a user should know about how the row is written."""
    unknown: str = ""
    """Characters of the trained text that the tokenizer has no token for, each once."""
    texts: list[str] = field(default_factory=list)
    """Text of each token (T,), if requested; the first of several tokens has a character's text."""
    label: str | None = None
    """Text classification: the label."""
    tags: list[str] = field(default_factory=list)
    """Token classification: the tag of each token (T,), empty for a token that has no loss."""
    types: list[int] = field(default_factory=list)
    """Text pairs: 0 or 1 for each token (T,), if the model uses `token_type_ids`."""
    good: bool | None = None
    """Unpaired preference: the rating of the answer."""
    rejected: "TokenizedExample | None" = None
    """Preference: the rejected answer after the same prompt."""
    target: "TokenizedExample | None" = None
    """Source and target: the target."""
    pictures: list[str] = field(default_factory=list)
    """Paths of the pictures that the tokens stand for, in their order."""
    more: "tuple[TokenizedExample, ...]" = ()
    """Text to continue: the later pieces of a text that is longer than the limit."""

    @property
    def labels(self) -> list[int]:
        """`input_ids` where a token has a loss, `MASKED` elsewhere (T,)."""
        labels = [MASKED] * len(self.input_ids)
        for start, end in self.trained:
            labels[start:end] = self.input_ids[start:end]
        return labels

    @property
    def num_trained(self) -> int:
        """Number of tokens, tags or labels that have a loss.

        It is 0 if the row teaches nothing, such as a preference with one answer cut off.
        """
        count = sum(end - start for start, end in self.trained)
        if self.rejected is not None:
            return count + self.rejected.num_trained if count and self.rejected.num_trained else 0
        if self.target is not None:
            return self.target.num_trained
        return count + sum(tag != "" for tag in self.tags) + (self.label is not None)

    @property
    def length(self) -> int:
        """Number of tokens before the cut, of the longer sequence if there are two."""
        others = [other.length for other in (self.rejected, self.target) if other is not None]
        return max([len(self.input_ids) + self.cut, *others])


def open_arrow(path: Path) -> pa.Table:
    """Open an Arrow file as a memory-mapped table."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def read_batches(
    path: Path, batch: int, start: int = 0, stop: int | None = None
) -> Iterator[tuple[list[int], list[str]]]:
    """Yield (numbers, rows as JSON) of a `ROWS` file in batches.

    The file is read in pieces: every page of a memory-mapped file that was read would stay in
    memory.

    Args:
        path: the Arrow file.
        batch: largest number of rows in a batch.
        start: position of the first row.
        stop: position after the last row; None for all rows.
    """
    with pa.OSFile(str(path)) as file:
        reader = pa.ipc.open_file(file)
        begin = 0
        for index in range(reader.num_record_batches):
            piece = reader.get_batch(index)
            end = begin + piece.num_rows
            last = end if stop is None else min(stop, end)
            for position in range(max(start, begin), last, batch):
                part = piece.slice(position - begin, min(batch, last - position))
                yield part["number"].to_pylist(), part["row"].to_pylist()
            begin = end
            if stop is not None and begin >= stop:
                return


class Rows(Sequence[Row]):
    """Rows of a `ROWS` file with normalized records, in the order of `positions`.

    Args:
        path: the Arrow file.
        digest: identifies the content of the whole file.
        positions: rows of the file (N,); None for all rows.
    """

    def __init__(self, path: Path, digest: str, positions: np.ndarray | None = None):
        self.path, self.digest = path, digest
        self._table = open_arrow(path)
        every = np.arange(self._table.num_rows, dtype=np.int64)
        self.positions = every if positions is None else positions
        folder = path.parent / FOLDER
        self.pictures = folder if folder.is_dir() else None
        """The folder of the rows' pictures; None if they have none."""

    def __len__(self) -> int:
        return len(self.positions)

    def picture_files(self) -> list[Path]:
        """Return the pictures of these rows."""
        if self.pictures is None:
            return []
        rows = (self[index] for index in range(len(self)))
        return sorted({Path(path) for row in rows for path in pictures_of(row)})

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> "Rows": ...
    def __getitem__(self, index: int | slice) -> "Row | Rows":
        if isinstance(index, slice):
            return Rows(self.path, self.digest, self.positions[index])
        position = int(self.positions[index])
        number, row = self._table["number"][position], self._table["row"][position]
        return from_json(number.as_py(), row.as_py(), self.pictures)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(a == b for a, b in zip(self, other, strict=True))

    def whole(self) -> "Rows":
        """Return all rows of the file."""
        return Rows(self.path, self.digest)


class Tokens(Sequence[TokenizedExample]):
    """Tokenized examples of a `TOKENS` file, in the order of `positions`.

    Args:
        path: the Arrow file.
        positions: rows of the file (N,); None for all rows.
        pictures: the folder of the pictures of the rows, if they have some.
    """

    def __init__(
        self, path: Path, positions: np.ndarray | None = None, pictures: Path | None = None
    ):
        self.path, self._pictures = path, pictures
        self._table = open_arrow(path)
        every = np.arange(self._table.num_rows, dtype=np.int64)
        self.positions = every if positions is None else positions
        # columns of other tasks are empty, and reading a cell takes time
        num_rows = self._table.num_rows
        stored = [name for name in _OPTIONAL if name in self._table.column_names]  # may be older
        used = [name for name in stored if self._table[name].null_count < num_rows]
        self._columns = ["row", "input_ids", "trained", "cut", "typed_controls", *used]

    @property
    def has_pictures(self) -> bool:
        """True if some rows of the file have pictures."""
        return "pictures" in self._columns

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[TokenizedExample]:
        return (self[index] for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> TokenizedExample: ...
    @overload
    def __getitem__(self, index: slice) -> "Tokens": ...
    def __getitem__(self, index: int | slice) -> "TokenizedExample | Tokens":
        if isinstance(index, slice):
            return self.at(self.positions[index])
        position = int(self.positions[index])
        cells = {name: self._table[name][position].as_py() for name in self._columns}
        if self._pictures and cells.get("pictures"):
            cells["pictures"] = [str(self._pictures / f"{one}.png") for one in cells["pictures"]]
        return _example_of(cells)

    def at(self, positions: np.ndarray) -> "Tokens":
        """Return the examples at these positions of the file."""
        return Tokens(self.path, positions, self._pictures)

    def of_rows(self, positions: np.ndarray) -> "Tokens":
        """Return the examples of the rows at these positions of the file of rows."""
        rows = self._table["position"].to_numpy()
        if len(rows) == 0 or rows[-1] == len(rows) - 1:  # no row has several examples
            return self.at(positions)
        starts = np.searchsorted(rows, positions)
        counts = np.searchsorted(rows, positions, side="right") - starts
        before = np.repeat(np.cumsum(counts) - counts, counts)
        return self.at(np.repeat(starts, counts) + np.arange(counts.sum()) - before)

    def row_positions(self) -> np.ndarray:
        """Return the position of each row in the file of rows, once for all of its examples."""
        rows = self._table["position"].to_numpy()
        is_first = np.diff(rows, prepend=-1) > 0
        return rows[self.positions][is_first[self.positions]]

    def column(self, name: str) -> np.ndarray:
        """Return a column of numbers (N,).

        Args:
            name: `row`, `cut`, `length` (before the cut), `num_trained`, `typed_controls` or
                `notes` (a bit for each of `NOTES`).
        """
        return self._table[name].to_numpy()[self.positions]

    def digest(self) -> str:
        """Return the SHA-256 of everything that the trainer reads, in the order of the rows."""
        digest = hashlib.sha256(str(len(self.positions)).encode())
        unused = [name for name in _LATER if name not in self._columns]
        names = [name for name in TOKENS.names if name not in (*_NOT_TRAINED_ON, *unused)]
        columns = self._table.select(names)
        for start in range(0, len(self.positions), _HASHED_ROWS):
            part = columns.take(self.positions[start : start + _HASHED_ROWS])
            for column in part.columns:
                for content in _bytes_of(column):
                    digest.update(content)
        return digest.hexdigest()

    def largest_id(self) -> int:
        """Return the largest token id of the whole file, or -1 if it has no tokens."""
        return _largest_id(self.path)

    def labels(self) -> list[str | None]:
        """Return the label of each row (N,)."""
        return self._table["label"].take(self.positions).to_pylist()

    def unknown(self) -> list[str | None]:
        """Return the characters of each row that have no token (N,)."""
        return self._table["unknown"].take(self.positions).to_pylist()

    def equal_pairs(self) -> np.ndarray:
        """Return a mask (N,): preferences whose two answers have the same tokens after the cut."""
        mask = np.zeros(len(self.positions), dtype=bool)
        both = self._table.select(["input_ids", "rejected_ids"])
        if both["rejected_ids"].null_count == len(both):
            return mask
        for start in range(0, len(mask), _HASHED_ROWS):
            part = both.take(self.positions[start : start + _HASHED_ROWS])
            pairs = zip(*(column.to_pylist() for column in part.columns), strict=True)
            mask[start : start + len(part)] = [bool(one) and one == other for one, other in pairs]
        return mask

    def problems(self) -> dict[int, str]:
        """Return position in the file -> reason, for rows that could not be rendered."""
        column = self._table["problem"]
        positions = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
        return {int(position): column[int(position)].as_py() for position in positions}


@functools.lru_cache(maxsize=8)
def _largest_id(path: Path) -> int:
    """Return the largest id of a `TOKENS` file, read in pieces as in `read_batches`."""
    names = ("input_ids", "rejected_ids", "target_ids")
    options = pa.ipc.IpcReadOptions(included_fields=[TOKENS.get_field_index(n) for n in names])
    largest = -1
    with pa.OSFile(str(path)) as file:
        reader = pa.ipc.open_file(file, options=options)
        for index in range(reader.num_record_batches):
            for column in reader.get_batch(index).columns:
                largest = max(largest, pc.max(pc.list_flatten(column)).as_py() or -1)
    return largest


def _example_of(cells: dict[str, Any]) -> TokenizedExample:
    row, rejected, target = cells["row"], cells.get("rejected_ids"), cells.get("target_ids")
    rejected_example = target_example = None
    if rejected:
        rejected_example = TokenizedExample(row, rejected, _spans(cells["rejected_trained"]))
    if target is not None:
        target_example = TokenizedExample(row, target, [(0, len(target))])
    return TokenizedExample(
        row=row,
        input_ids=cells["input_ids"],
        trained=_spans(cells["trained"]),
        cut=cells["cut"],
        typed_controls=cells["typed_controls"],
        label=cells.get("label"),
        tags=cells.get("tags") or [],
        types=cells.get("types") or [],
        good=cells.get("good"),
        pictures=cells.get("pictures") or [],
        rejected=rejected_example,
        target=target_example,
    )


def _bytes_of(column: pa.ChunkedArray) -> Iterator[bytes]:
    """Yield the content of a column; for lists, the lengths and then the elements."""
    if pa.types.is_list(column.type):
        yield pc.fill_null(pc.list_value_length(column), -1).to_numpy().tobytes()
        column = pc.list_flatten(column)
    is_integer = pa.types.is_integer(column.type)
    yield column.to_numpy().tobytes() if is_integer else json.dumps(column.to_pylist()).encode()


def token_columns(rendered: Sequence[TokenizedExample | tuple[int, str]]) -> dict[str, list[Any]]:
    """Return the columns of a `TOKENS` file.

    Args:
        rendered: an example, or (row number, problem) for a row that could not be rendered.
            Their places become positions.
    """
    records = []
    for position, item in enumerate(rendered):
        if isinstance(item, TokenizedExample):
            of_row = [_record(example) for example in (item, *item.more)]
        else:
            of_row = [_problem_record(*item)]
        records += [record | {"position": position} for record in of_row]
    return {name: [record[name] for record in records] for name in TOKENS.names}


def _problem_record(row: int, problem: str) -> dict[str, Any]:
    numbers = {
        "row": row,
        "cut": 0,
        "length": 0,
        "num_trained": 0,
        "typed_controls": False,
        "notes": 0,
    }
    content: dict[str, Any] = {"input_ids": [], "trained": [], "problem": problem}
    return dict.fromkeys((*_OPTIONAL, "unknown")) | numbers | content


def _record(example: TokenizedExample) -> dict[str, Any]:
    rejected, target = example.rejected, example.target
    notes = example.notes | (rejected.notes if rejected else frozenset())
    return {
        "row": example.row,
        "input_ids": example.input_ids,
        "trained": _flat(example.trained),
        "cut": example.cut,
        "length": example.length,
        "num_trained": example.num_trained,
        "typed_controls": example.typed_controls,
        "notes": sum(1 << NOTES.index(note) for note in notes),
        "problem": None,
        "label": example.label,
        "tags": example.tags or None,
        "types": example.types or None,
        "pictures": [Path(path).stem for path in example.pictures] or None,
        "good": example.good,
        "rejected_ids": rejected.input_ids if rejected else None,
        "rejected_trained": _flat(rejected.trained) if rejected else None,
        "target_ids": target.input_ids if target else None,
        "unknown": "".join(part.unknown for part in (example, rejected, target) if part) or None,
    }


def _flat(spans: Sequence[Span]) -> list[int]:
    return [position for span in spans for position in span]


def _spans(flat: Sequence[int]) -> list[Span]:
    return list(zip(flat[::2], flat[1::2], strict=True))


class Subset(NamedTuple):
    """Positions in a file of the rows to train on (N,) and of the held-out rows (M,)."""

    train: np.ndarray
    held_out: np.ndarray
