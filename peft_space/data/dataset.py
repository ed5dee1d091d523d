"""Loads a dataset: reads the files, normalizes the rows, splits them and reports problems."""

import contextlib
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from peft_space.data import arrow_store
from peft_space.data.arrow_store import ROWS, Rows, Subset
from peft_space.data.cells import message_turns
from peft_space.data.messages import BadRow, UnansweredRow, UnmergedRow, unused_keys
from peft_space.data.quality import Finding, Findings, inspect
from peft_space.data.readers.json import DECODER
from peft_space.data.row_normalization import (
    Problem,
    TextClassification,
    TokenClassification,
    normalize_record,
    to_json,
)
from peft_space.data.schema_detection import ColumnMapping, detect_schema, make_column_mapping
from peft_space.data.table import Data, Table, demo_files, read_table
from peft_space.data.tokenization.template_sandbox import BatchTimeout, map_in_subprocesses
from peft_space.errors import UserError
from peft_space.runs.events import OnProgress, no_progress
from peft_space.runs.run import Run
from peft_space.storage.content_cache import get_or_create

DEMO_DATA = "demo"
"""Name of the built-in sample data, accepted in place of a file."""
MAX_PROBLEMS = 1_000
"""Rows that are listed with the reason why they are left out; the others are only counted."""

_BATCH_ROWS, _BATCH_SECONDS = 2_000, 60.0
_SAMPLE_ROWS, _SAMPLE_ROWS_PER_FILE = 1_000, 200
_MAX_LABELS = 1_001
"""With more distinct values, a column is not a label."""
_STORED_AS_IS = (
    "source", "sha256", "num_rows", "columns", "notes", "num_problems", "num_repeated", "labels",
    "unused",
)  # fmt: skip
_NORMALIZER_VERSION = "8"
"""Change it when rows are normalized differently, so that cached rows are not used again."""


@dataclass(frozen=True)
class TrainingData:
    """A loaded dataset. No row of `held_out` equals a row of `train`; bad rows are left out."""

    source: str
    sha256: str
    num_rows: int
    column_mapping: ColumnMapping
    columns: list[str]
    notes: list[str]
    train: Rows
    held_out: Rows
    num_problems: int
    problems: list[Problem]
    """The first `MAX_PROBLEMS` rows that are left out."""
    num_repeated: int = 0
    """Rows left out as duplicates.

    A held-out row is scored once. The fix `deduplicate` also trains a row once.
    """
    findings: list[Finding] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    """Label or tag -> number of rows."""
    unused: list[dict[str, Any]] = field(default_factory=list)
    """What is in the rows and not used: `name`, `rows` that have it, and an `example`."""

    def files(self) -> dict[str, str | Path]:
        """Return the files of a run that store this data: relative path -> text, or file to copy.

        `load_run_data` reads them.
        """
        about = {name: getattr(self, name) for name in _STORED_AS_IS} | {
            "column_mapping": self.column_mapping.as_json(),
            "problems": [asdict(problem) for problem in self.problems],
            "findings": [asdict(finding) for finding in self.findings],
            "digests": {"train": self.train.digest, "held_out": self.held_out.digest},
            "train": _to_ranges(self.train.positions),
            "held_out": _to_ranges(self.held_out.positions),
        }
        files: dict[str, str | Path] = {
            "data/about.json": json.dumps(about, ensure_ascii=False) + "\n",
            "data/rows.arrow": self.train.path,
        }
        if self.held_out.path != self.train.path:
            files["data/held_out.arrow"] = self.held_out.path
        return files


def source_of(run: Run) -> str:
    """Return the name of a run's dataset, or an empty text if its data are gone."""
    path = run.path("data", "about.json")
    return json.loads(path.read_text(encoding="utf-8"))["source"] if path.is_file() else ""


def notes_on_data(run: Run) -> list[str]:
    """Return a sentence or two for each kind of row that is left out, cut, or suspicious."""
    path = run.path("data", "about.json")
    about = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    notes = []
    if number := about.get("num_problems"):
        first = about["problems"][0]
        notes.append(
            f"Rows that cannot be used: {number:,}. They are left out. "
            f"Row {first['row']}: {first['problem']}."
        )
    for finding in about.get("findings", []):
        notes.append(f"{finding['title']}: {finding['count']:,}. {finding['words']}")
    return notes


def load_run_data(run: Run) -> TrainingData:
    """Return the dataset that is stored in a run."""
    about = json.loads(run.path("data", "about.json").read_text(encoding="utf-8"))
    digests, train, held_out = (about.pop(key) for key in ("digests", "train", "held_out"))
    rows, second = run.path("data", "rows.arrow"), run.path("data", "held_out.arrow")
    mapping = about.pop("column_mapping")
    mapping["fixes"] = tuple(mapping["fixes"])
    about["problems"] = [Problem(**problem) for problem in about["problems"]]
    about["findings"] = [Finding(**finding) for finding in about["findings"]]
    held_out_rows = second if second.is_file() else rows
    return TrainingData(
        column_mapping=ColumnMapping(**mapping),
        train=Rows(rows, digests["train"], _from_ranges(train)),
        held_out=Rows(held_out_rows, digests["held_out"], _from_ranges(held_out)),
        **about,
    )


def detect_mappings(
    data: Data, on_progress: OnProgress = no_progress
) -> tuple[Table, list[ColumnMapping]]:
    """Return the table of the data and its plausible column mappings, the likeliest first.

    Raises:
        UserError: the files cannot be read, fit no schema, or have different schemas.
    """
    table = _read(data, on_progress)
    _check_same_schema(table)
    return table, _detect(table)


def _read(data: Data, on_progress: OnProgress) -> Table:
    return read_table(demo_files()[0] if data == DEMO_DATA else data, on_progress)


def _detect(table: Table) -> list[ColumnMapping]:
    rows = [row for _, row in table.rows(0, _SAMPLE_ROWS)]
    return detect_schema(table.source, table.columns, rows)


def _check_same_schema(table: Table) -> None:
    """Raise UserError if files have different schemas: all rows of one file would be rejected."""
    schemas: dict[str, str] = {}
    ends = [begin for _, begin in table.begins[1:]] + [table.num_rows]
    for (name, begin), end in zip(table.begins, ends, strict=True):
        end = min(end, begin + _SAMPLE_ROWS_PER_FILE)
        rows = [row for _, row in table.rows(begin, end)]
        columns = list(dict.fromkeys(column for row in rows for column in row))
        schemas.setdefault(detect_schema(name, columns, rows)[0].schema, name)
    if len(schemas) > 1:
        listed = " and ".join(f"{name} has the schema {schema}" for schema, name in schemas.items())
        raise UserError(
            "data.mixed_schemas",
            f"{listed}. Files with different schemas cannot be combined. "
            "Use one file at a time, or convert one file to the schema of the other.",
        )


def load_dataset(
    data: Data,
    eval_split: float,
    seed: int,
    held_out: Data | None = None,
    column_mapping: Mapping[str, Any] | None = None,
    on_progress: OnProgress = no_progress,
) -> TrainingData:
    """Read, normalize and split a dataset.

    Args:
        data: a file, several files that are concatenated, or `DEMO_DATA`.
        eval_split: share of the rows to hold out, from 0 to 1; ignored if `held_out` is given.
        seed: seed of the split.
        held_out: a dataset to hold out instead.
        column_mapping: as `ColumnMapping.as_json` returns it; detected if it has no `schema`.
        on_progress: receives the progress.

    Raises:
        UserError: no row can be used, or the columns are ambiguous and `column_mapping` does
            not resolve it.
    """
    plausible: list[ColumnMapping] = []
    if (column_mapping or {}).get("schema"):
        table = _read(data, on_progress)
    else:
        table, plausible = detect_mappings(data, on_progress)
    mapping = _choose_mapping(table, plausible, column_mapping)
    normalized = _normalize(table, mapping, on_progress)
    if not normalized.hashes.size:
        first = normalized.problems[0]
        raise UserError(
            "data.no_usable_rows",
            f"{table.source}: none of the {table.num_rows:,} rows can be used for training; "
            f"row {first.row}: {first.problem}. Correct the rows.",
        )
    findings = Findings()
    findings.merge(*normalized.findings)
    problems, num_problems = list(normalized.problems), normalized.num_problems
    notes = list(table.notes)
    if data == DEMO_DATA:
        held_out = demo_files()[1]
    if held_out is None:
        held_out_rows = normalized.rows
        subset = _split(normalized, eval_split, seed, "deduplicate" in mapping.fixes)
        num_repeated = len(normalized.hashes) - len(subset.train) - len(subset.held_out)
    else:
        second = read_table(held_out, on_progress)
        held_out_rows, subset, rejected = _hold_out(normalized, second, mapping, findings)
        num_repeated = len(normalized.hashes) - len(subset.train)
        problems += rejected
        num_problems += len(rejected)
        notes.append(
            f"Held-out dataset: {second.source}, {second.num_rows:,} rows, of which "
            f"{len(subset.held_out):,} can be used."
        )
    by_count = sorted(findings.labels.items(), key=lambda pair: -pair[1])
    return TrainingData(
        source=table.source,
        sha256=table.sha256,
        num_rows=table.num_rows,
        column_mapping=mapping,
        columns=table.columns,
        notes=notes,
        train=Rows(normalized.rows.path, normalized.rows.digest, subset.train),
        held_out=Rows(held_out_rows.path, held_out_rows.digest, subset.held_out),
        num_problems=num_problems,
        problems=problems[:MAX_PROBLEMS],
        num_repeated=num_repeated,
        findings=findings.to_list(),
        labels=dict(by_count[:_MAX_LABELS]),
        unused=normalized.unused,
    )


def _choose_mapping(
    table: Table, plausible: Sequence[ColumnMapping], choice: Mapping[str, Any] | None
) -> ColumnMapping:
    if choice and choice.get("schema"):
        return make_column_mapping(choice, table.columns)
    if len(plausible) > 1:
        options = "; or ".join(map(_describe, plausible))
        example = {key: value for key, value in plausible[0].as_json().items() if key != "fixes"}
        raise UserError(
            "data.ambiguous_columns",
            f"{table.source}: the columns can be used in more than one way: {options}. Choose one "
            "on the Data tab, or with the column mapping "
            f"{json.dumps(example, ensure_ascii=False)}.",
        )
    if choice and choice.get("fixes"):
        values = plausible[0].as_json() | {"fixes": choice["fixes"]}
        return make_column_mapping(values, table.columns)
    return plausible[0]


def _describe(mapping: ColumnMapping) -> str:
    columns = ", ".join(f"{column!r} as {role}" for role, column in mapping.columns.items())
    return f"{mapping.schema} with {columns}"


# Normalization of all rows


@dataclass(frozen=True)
class _Normalized:
    """The usable rows of a table and the findings about all of them."""

    rows: Rows
    hashes: np.ndarray
    """64-bit digest of each usable row (N,); equal for rows with the same content."""
    label_codes: np.ndarray
    """64-bit digest of the label of each usable row (N,); 0 without a label."""
    num_problems: int
    problems: list[Problem]
    findings: tuple[dict[str, int], dict[str, list[int]], dict[str, int]]
    """Arguments of `Findings.merge`."""
    unused: list[dict[str, Any]]
    """As in `TrainingData`."""


_HASHES = pa.schema([("hash", pa.int64()), ("label", pa.int64())])


def _normalize(table: Table, mapping: ColumnMapping, on_progress: OnProgress) -> _Normalized:
    identity = [_NORMALIZER_VERSION, table.key, mapping.as_json()]
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    write = functools.partial(_normalize_into, table, mapping, on_progress)
    folder = get_or_create("normalized", key, write)
    metadata = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    hashes = arrow_store.open_arrow(folder / "hashes.arrow")
    return _Normalized(
        rows=Rows(folder / "rows.arrow", key),
        hashes=hashes["hash"].to_numpy(),
        label_codes=hashes["label"].to_numpy(),
        num_problems=metadata["num_problems"],
        problems=[Problem(**problem) for problem in metadata["problems"]],
        findings=(metadata["counts"], metadata["rows"], metadata["labels"]),
        unused=metadata["unused"],
    )


@dataclass
class _Batch:
    """Normalized rows of one batch, as a child process returns them."""

    numbers: list[int] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    bad: list[tuple[int, Problem]] = field(default_factory=list)
    """(position in the batch, problem)."""
    findings: tuple[dict[str, int], dict[str, list[int]], dict[str, int]] = ({}, {}, {})
    unused: dict[str, list[Any]] = field(default_factory=dict)
    """Name of what is not used -> [rows that have it, example]."""


def _normalize_into(
    table: Table, mapping: ColumnMapping, on_progress: OnProgress, folder: Path
) -> None:
    """Write rows.arrow, hashes.arrow and about.json into `folder`."""
    findings = Findings()
    problems: list[Problem] = []
    num_problems = done = 0
    hashes, numbers = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    unused: dict[str, list[Any]] = {}
    with contextlib.ExitStack() as stack:
        batches = stack.enter_context(contextlib.closing(_normalized_batches(table, mapping)))
        rows_writer = _open_writer(stack, folder / "rows.arrow", ROWS)
        hashes_writer = _open_writer(stack, folder / "hashes.arrow", _HASHES)
        try:
            for batch in batches:
                findings.merge(*batch.findings)
                for name, (rows, example) in batch.unused.items():
                    unused.setdefault(name, [0, example])[0] += rows
                hashes.append(np.array(batch.hashes, np.int64))
                numbers.append(np.array(batch.numbers, np.int64))
                num_problems += len(batch.bad)
                for offset, problem in batch.bad[: MAX_PROBLEMS - len(problems)]:
                    problems.append(_with_file(table, problem, done + offset))
                rows_writer.write_batch(pa.record_batch([batch.numbers, batch.lines], schema=ROWS))
                codes = [batch.hashes, batch.labels]
                hashes_writer.write_batch(pa.record_batch(codes, schema=_HASHES))
                done += len(batch.numbers) + len(batch.bad)
                on_progress(done / table.num_rows, f"Checked {done:,} of {table.num_rows:,} rows")
        except BatchTimeout:
            raise UserError(
                "data.row_too_slow",
                f"{table.source}: the rows after row {done:,} took too long to read. "
                "Check these rows for a very long value.",
            ) from None
    every_hash, every_number = np.concatenate(hashes), np.concatenate(numbers)
    first = np.unique(every_hash, return_index=True)[1]
    for position in np.setdiff1d(np.arange(len(every_hash)), first):
        findings.add("duplicates", int(every_number[position]))
    metadata = {"num_problems": num_problems, "problems": [asdict(problem) for problem in problems]}
    metadata |= {"counts": findings.counts, "rows": findings.rows, "labels": findings.labels}
    metadata["unused"] = [
        {"name": name, "rows": rows, "example": example} for name, (rows, example) in unused.items()
    ]
    (folder / "about.json").write_text(json.dumps(metadata, ensure_ascii=False), encoding="utf-8")


def _open_writer(stack: contextlib.ExitStack, path: Path, schema: pa.Schema) -> Any:
    file = stack.enter_context(pa.OSFile(str(path), "wb"))
    return stack.enter_context(pa.ipc.new_file(file, schema))


def _with_file(table: Table, problem: Problem, position: int) -> Problem:
    """Add the file to a problem if the table has several files."""
    if len(table.begins) == 1:
        return problem
    return Problem(problem.row, f"{problem.problem} ({table.where(problem.row, position)})")


def _normalized_batches(table: Table, mapping: ColumnMapping) -> Generator[_Batch]:
    return map_in_subprocesses(
        _receive_mapping,
        (mapping,),
        _normalize_batch,
        table.texts(batch=_BATCH_ROWS),
        max_children=1 + table.num_rows // 5_000,
        seconds=_BATCH_SECONDS,
    )


def _receive_mapping(mapping: ColumnMapping) -> ColumnMapping:
    return mapping


def _normalize_batch(mapping: ColumnMapping, rows: tuple[list[int], list[str]]) -> _Batch:
    """Normalize a batch in a child process."""
    batch, findings = _Batch(), Findings()
    for position, (number, text) in enumerate(zip(*rows, strict=True)):
        record = DECODER.decode(text)
        _count_unused(record, mapping, batch.unused)
        try:
            row = normalize_record(number, record, mapping)
        except BadRow as error:
            batch.bad.append((position, Problem(number, str(error))))
            if isinstance(error, UnansweredRow):
                findings.add("trailing", number)
            if isinstance(error, UnmergedRow):
                findings.add("unmerged", number)
            continue
        kinds = inspect(row)
        for kind in kinds:
            findings.add(kind, number)
        if "secrets" in kinds and "drop_secrets" in mapping.fixes:
            batch.bad.append((position, Problem(number, "it contains a likely key or token")))
            continue
        labels: set[str] = set()
        if isinstance(row, TextClassification):
            labels = {row.label}
        elif isinstance(row, TokenClassification):
            labels = set(row.tags)
        for label in labels:
            findings.labels[label] += 1
        batch.numbers.append(number)
        batch.lines.append(to_json(row))
        batch.hashes.append(_hash(batch.lines[-1]))
        batch.labels.append(_hash(row.label) if isinstance(row, TextClassification) else 0)
    batch.findings = (dict(findings.counts), dict(findings.rows), dict(findings.labels))
    return batch


_MAX_EXAMPLE = 80


def _count_unused(
    record: dict[str, Any], mapping: ColumnMapping, unused: dict[str, list[Any]]
) -> None:
    """Count the columns of a row, and the keys of its messages, that are not used."""
    used = set(mapping.columns.values())
    found = {name: cell for name, cell in record.items() if name not in used and cell is not None}
    of_messages = ("messages", "prompt", "chosen", "rejected", "question", "answer")
    for column in {mapping.columns[role] for role in of_messages if role in mapping.columns}:
        for turn in message_turns(record.get(column)) or []:
            found |= {f"{column}: {key}": turn[key] for key in unused_keys(turn)}
    for name, cell in found.items():
        text = cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)
        if name not in unused:
            unused[name] = [0, text[:_MAX_EXAMPLE] + " …" * (len(text) > _MAX_EXAMPLE)]
        unused[name][0] += 1


def _hash(text: str) -> int:
    """Return a 64-bit digest: two of a million rows collide in one case of 37 million."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), signed=True)


# Training and held-out rows


def _split(normalized: _Normalized, share: float, seed: int, deduplicate: bool) -> Subset:
    """Hold out a share of the distinct rows, with the same share of each label.

    Rows with the same content stay on one side, and at least one row is left to train on.
    """
    _, first, group_of = np.unique(normalized.hashes, return_index=True, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(first))
    order = order[np.argsort(normalized.label_codes[first][order], kind="stable")]
    rank = np.arange(len(order))
    is_held_out = np.floor((rank + 1) * share + 0.5) > np.floor(rank * share + 0.5)
    held_out_groups = order[is_held_out][: len(order) - 1]
    is_trained = ~np.isin(group_of, held_out_groups)
    if deduplicate:
        is_trained &= np.isin(np.arange(len(group_of)), first)
    return Subset(np.flatnonzero(is_trained), np.sort(first[held_out_groups]))


def _hold_out(
    normalized: _Normalized, table: Table, mapping: ColumnMapping, findings: Findings
) -> tuple[Rows, Subset, list[Problem]]:
    """Hold out the rows of a second dataset that are not also training rows."""
    if not all(column in table.columns for column in mapping.columns.values()):
        second_mapping = _choose_mapping(table, _detect(table), None)
    else:
        second_mapping = mapping
    second = _normalize(table, second_mapping, no_progress)
    is_leaked = np.isin(second.hashes, normalized.hashes)
    numbers = arrow_store.open_arrow(second.rows.path)["number"].to_numpy()
    problems = []
    for number in map(int, numbers[is_leaked]):
        findings.add("leaks", number)
        reason = f"the row is also a training row, so its score proves nothing (in {table.source})"
        problems.append(Problem(number, reason))
    for problem in second.problems:
        problems.append(Problem(problem.row, f"{problem.problem} (in {table.source})"))
    first = np.unique(second.hashes, return_index=True)[1]
    held_out = np.sort(first[~is_leaked[first]]).astype(np.int64)
    train = np.arange(len(normalized.hashes))
    if "deduplicate" in mapping.fixes:
        train = np.sort(np.unique(normalized.hashes, return_index=True)[1])
    return second.rows, Subset(train, held_out), problems


def _to_ranges(positions: np.ndarray) -> list[list[int]]:
    """Return positions as [start, end) ranges: for a million rows, a few hundred kilobytes."""
    if not len(positions):
        return []
    breaks = np.flatnonzero(np.diff(positions) != 1)
    starts = np.r_[positions[0], positions[breaks + 1]]
    ends = np.r_[positions[breaks], positions[-1]] + 1
    return np.stack([starts, ends], axis=1).tolist()


def _from_ranges(ranges: list[list[int]]) -> np.ndarray:
    parts = [np.arange(start, end, dtype=np.int64) for start, end in ranges]
    return np.concatenate(parts or [np.empty(0, np.int64)])


# Lengths


@dataclass(frozen=True)
class Lengths:
    """Token counts of a tokenized dataset, and the effect of the length limit."""

    median: int
    longest: int
    num_cut: int
    """Rows that are cut off."""
    num_untrained: int
    """Rows without a trained token within the limit; they are left out."""
    num_trained_tokens: int
    """Tokens that have a loss, in one epoch."""


def lengths(tokens: arrow_store.Tokens) -> Lengths:
    """Count the tokens of a tokenized dataset."""
    counts, trained = tokens.column("length"), tokens.column("num_trained")
    return Lengths(
        median=int(np.median(counts)),
        longest=int(counts.max()),
        num_cut=int((tokens.column("cut") > 0).sum()),
        num_untrained=int((trained == 0).sum()),
        num_trained_tokens=int(trained.sum()),
    )


def histogram(
    tokens: arrow_store.Tokens, max_length: int, max_bars: int = 30
) -> tuple[int, list[dict[str, Any]]]:
    """Count the rows by length.

    Returns:
        The width of a bar, and for each bar `tokens` (its start), `rows`, and `cut` (True if
        these rows are cut off).
    """
    counts = tokens.column("length")
    width = max(1, -(-int(counts.max()) // max_bars))
    starts, is_cut = (counts // width * width).tolist(), (counts > max_length).tolist()
    bars = sorted(Counter(zip(starts, is_cut, strict=True)).items())
    return width, [{"tokens": start, "cut": cut, "rows": rows} for (start, cut), rows in bars]


def row_numbers_where(tokens: arrow_store.Tokens, mask: np.ndarray) -> Iterator[int]:
    """Yield the numbers of the rows for which `mask` (N,) is True."""
    return (int(number) for number in tokens.column("row")[mask])
