"""From files to TrainingData: what will be trained on, what is held out, and what is worth telling about which row.

Knows no model; `tokens.py` takes a tokenizer. The kept form of the data (`TrainingData.files`) is what a run stores and reads back.
"""

import contextlib
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from peft_space.data import arrow_store
from peft_space.data.arrow_store import Rows
from peft_space.data.quality import Finding, Findings, inspect
from peft_space.data.readers.formats import DECODER
from peft_space.data.records import (
    BadRow,
    Problem,
    TextClassification,
    TokenClassification,
    normalize_record,
    to_json,
)
from peft_space.data.rows_file import ROWS
from peft_space.data.schemas import ColumnMapping, detect_schema, make_column_mapping
from peft_space.data.table import Data, Table, demo_files, read_table
from peft_space.data.tokenization.sandbox import BatchTimeout, map_in_subprocesses
from peft_space.errors import UserError
from peft_space.runs.events import OnProgress, no_progress
from peft_space.runs.run import Run
from peft_space.storage.content_cache import get_or_create

DEMO_DATA = "demo"
"""The name of the built-in sample data wherever a file can be named."""
MOST_PROBLEMS = 1_000
"""Rows that are listed with what keeps them from being used; the rest are counted."""

_BATCH, _BATCH_SECONDS = 2_000, 60.0
_MOST_LABELS = 1_001
"""Of data with more different labels those are no labels."""
_NORMALIZER_VERSION = "3"
"""Raised when rows are understood differently than before, so that what was kept is worked out anew."""


@dataclass(frozen=True)
class TrainingData:
    """Files understood: `train` and `held_out` share no row and no repeated row; `problems` were left out."""

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
    """The first of them."""
    num_repeated: int = 0
    """Rows that are left out because they say the same as another: held-out rows are scored once, and the fix `deduplicate` trains once."""
    findings: list[Finding] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    """How many rows have which label, of labelled data."""

    def files(self) -> dict[str, str | Path]:
        """What keeps this data in a run: relative path -> text, or a file to copy."""
        about = {
            key: getattr(self, key)
            for key in (
                "source",
                "sha256",
                "num_rows",
                "columns",
                "notes",
                "num_problems",
                "num_repeated",
                "labels",
            )
        }
        about |= {
            "column_mapping": self.column_mapping.as_json(),
            "problems": [asdict(problem) for problem in self.problems],
        }
        about |= {"findings": [asdict(finding) for finding in self.findings]}
        about |= {"digests": {"train": self.train.digest, "held_out": self.held_out.digest}}
        about |= {"train": _ranges(self.train.positions), "held_out": _ranges(self.held_out.positions)}
        files: dict[str, str | Path] = {
            "data/about.json": json.dumps(about, ensure_ascii=False) + "\n",
            "data/rows.arrow": self.train.path,
        }
        return (
            files
            if self.held_out.path == self.train.path
            else files | {"data/held_out.arrow": self.held_out.path}
        )


def source_of(run: Run) -> str:
    """What the data of a run were called; nothing where they are gone."""
    path = run.path("data", "about.json")
    return json.loads(path.read_text(encoding="utf-8"))["source"] if path.is_file() else ""


def load_run_data(run: Run) -> TrainingData:
    """The data that was kept in a run when it was made."""
    about = json.loads(run.path("data", "about.json").read_text(encoding="utf-8"))
    digests, train, held_out = (about.pop(key) for key in ("digests", "train", "held_out"))
    rows, second = run.path("data", "rows.arrow"), run.path("data", "held_out.arrow")
    column_mapping = about.pop("column_mapping")
    about["problems"] = [Problem(**problem) for problem in about["problems"]]
    about["findings"] = [Finding(**finding) for finding in about["findings"]]
    return TrainingData(
        column_mapping=ColumnMapping(
            column_mapping["schema"], column_mapping["columns"], tuple(column_mapping["fixes"])
        ),
        train=Rows(rows, digests["train"], _from_ranges(train)),
        held_out=Rows(
            second if second.is_file() else rows, digests["held_out"], _from_ranges(held_out)
        ),
        **about,
    )


def detect_mappings(
    data: Data, on_progress: OnProgress = no_progress
) -> tuple[Table, list[ColumnMapping]]:
    """The rows of the data, and how they could be read: one reading where there is no doubt."""
    table = _table(data, on_progress)
    _check_same_schema(table)
    return table, detect_schema(
        table.source, table.columns, [row for _, row in table.rows(0, 1_000)]
    )


def _check_same_schema(table: Table) -> None:
    """Files that are joined are read alike; one of another schema would be lost row by row."""
    schemas = {}
    for number, (name, begin) in enumerate(table.begins):
        end = table.begins[number + 1][1] if number + 1 < len(table.begins) else table.num_rows
        rows = [row for _, row in table.rows(begin, min(end, begin + 200))]
        schemas.setdefault(
            detect_schema(
                name, list(dict.fromkeys(column for row in rows for column in row)), rows
            )[0].schema,
            name,
        )
    if len(schemas) > 1:
        told = " and ".join(f"{name} holds {schema}" for schema, name in schemas.items())
        raise UserError(
            "todo",
            f"{told}: files of different schemas cannot be joined. Bring them one at a time, or bring one in the schema of the other.",
        )


def load_dataset(
    data: Data,
    eval_split: float,
    seed: int,
    held_out: Data | None = None,
    column_mapping: Mapping[str, Any] | None = None,
    on_progress: OnProgress = no_progress,
) -> TrainingData:
    """Read, recognise and split.

    Args:
        data: a file, several that are joined, or `demo`.
        held_out: rows to score on; without them, `eval_split` of the rows of `data` are kept from training.
        column_mapping: how to read the columns and what to mend, as `ColumnMapping.as_json` gives it; a `schema` of None leaves that to be recognised.

    Raises UserError where nothing in the data can be trained on, or where it could be read in several ways and `column_mapping` does not say which.
    """
    table, plausible = (
        detect_mappings(data, on_progress)
        if not (column_mapping or {}).get("schema")
        else (_table(data, on_progress), [])
    )
    chosen = _chosen(table, plausible, column_mapping)
    understood = _normalized(table, chosen, on_progress)
    if not understood.hashes.size:
        first = understood.problems[0]
        raise UserError(
            "todo",
            f"{table.source}: none of its {table.num_rows:,} rows can be trained on; row {first.row}: {first.problem}. Mend the rows.",
        )
    findings = Findings()
    findings.merge(*understood.findings)
    problems, num_problems, notes = (
        list(understood.problems),
        understood.num_problems,
        list(table.notes),
    )
    if data == DEMO_DATA:
        held_out = demo_files()[1]
    if held_out is None:
        places = _split(understood, eval_split, seed, "deduplicate" in chosen.fixes)
        kept_rows = understood.rows
    else:
        second_table = read_table(held_out, on_progress)
        kept_rows, places, more = _held_out_rows(understood, second_table, chosen, findings)
        problems += more
        num_problems += len(more)
        notes.append(
            f"To score on: {second_table.source}, {second_table.num_rows:,} rows, {len(places.held_out):,} of which can be used."
        )
    return TrainingData(
        source=table.source,
        sha256=table.sha256,
        num_rows=table.num_rows,
        column_mapping=chosen,
        columns=table.columns,
        notes=notes,
        train=Rows(understood.rows.path, understood.rows.digest, places.train),
        held_out=Rows(kept_rows.path, kept_rows.digest, places.held_out),
        num_problems=num_problems,
        problems=problems[:MOST_PROBLEMS],
        num_repeated=len(understood.hashes)
        - len(places.train)
        - (len(places.held_out) if held_out is None else 0),
        findings=findings.told(),
        labels=dict(sorted(findings.labels.items(), key=lambda pair: -pair[1])[:_MOST_LABELS]),
    )


def _table(data: Data, on_progress: OnProgress) -> Table:
    return read_table(demo_files()[0] if data == DEMO_DATA else data, on_progress)


def _chosen(
    table: Table, plausible: Sequence[ColumnMapping], wanted: Mapping[str, Any] | None
) -> ColumnMapping:
    if wanted and wanted.get("schema"):
        return make_column_mapping(wanted, table.columns)
    if len(plausible) > 1:
        ways = "; or ".join(
            f"{column_mapping.schema} with "
            + ", ".join(f"{c!r} as {r}" for r, c in column_mapping.columns.items())
            for column_mapping in plausible
        )
        example = json.dumps(
            {key: value for key, value in plausible[0].as_json().items() if key != "fixes"},
            ensure_ascii=False,
        )
        raise UserError(
            "todo",
            f"{table.source}: its columns can be read in several ways: {ways}. Say which: on the Data tab, or with the reading {example}.",
        )
    if wanted and wanted.get("fixes"):
        return make_column_mapping(
            plausible[0].as_json() | {"fixes": wanted["fixes"]}, table.columns
        )
    return plausible[0]


# Understanding every row


@dataclass(frozen=True)
class _Normalized:
    """Every row of a table that can be used, and what was found on the way."""

    rows: Rows
    hashes: np.ndarray
    """Of each row of `rows`; equal where rows say the same."""
    label_codes: np.ndarray
    num_problems: int
    problems: list[Problem]
    findings: tuple[dict[str, int], dict[str, list[int]], dict[str, int]]


def _normalized(
    table: Table, column_mapping: ColumnMapping, on_progress: OnProgress
) -> _Normalized:
    told = json.dumps([_NORMALIZER_VERSION, table.key, column_mapping.as_json()], sort_keys=True)
    key = hashlib.sha256(told.encode()).hexdigest()
    folder = get_or_create(
        "understood", key, functools.partial(_normalize_into, table, column_mapping, on_progress)
    )
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    marks = arrow_store.open_arrow(folder / "marks.arrow")
    return _Normalized(
        rows=Rows(folder / "rows.arrow", key),
        hashes=marks["hash"].to_numpy(),
        label_codes=marks["label"].to_numpy(),
        num_problems=about["num_problems"],
        problems=[Problem(**problem) for problem in about["problems"]],
        findings=(about["counts"], about["rows"], about["labels"]),
    )


_MARKS = pa.schema([("hash", pa.int64()), ("label", pa.int64())])


def _normalize_into(
    table: Table, column_mapping: ColumnMapping, on_progress: OnProgress, folder: Path
) -> None:
    findings = Findings()
    problems: list[Problem] = []
    marks: list[np.ndarray] = [np.empty((0, 2), np.int64)]
    num_problems, done = 0, 0
    batches = ((column_mapping, numbers, texts) for numbers, texts in table.texts(batch=_BATCH))
    results = map_in_subprocesses(
        _no_setup,
        (),
        _normalize_batch,
        batches,
        most_children=1 + table.num_rows // 5_000,
        seconds=_BATCH_SECONDS,
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(results))
        rows_writer, marks_writer = (
            stack.enter_context(
                pa.ipc.new_file(stack.enter_context(pa.OSFile(str(folder / name), "wb")), schema)
            )
            for name, schema in (("rows.arrow", ROWS), ("marks.arrow", _MARKS))
        )
        try:
            for numbers, lines, hashes, labels, bad, found in results:
                findings.merge(*found)
                marks.append(np.array([hashes, numbers], np.int64).T)
                num_problems += len(bad)
                problems += [_located(table, problem, done + offset) for offset, problem in bad][
                    : MOST_PROBLEMS - len(problems)
                ]
                rows_writer.write_batch(pa.record_batch([numbers, lines], schema=ROWS))
                marks_writer.write_batch(pa.record_batch([hashes, labels], schema=_MARKS))
                done += len(numbers) + len(bad)
                on_progress(
                    done / table.num_rows, f"Understood {done:,} of {table.num_rows:,} rows"
                )
        except BatchTimeout:
            raise UserError(
                "todo",
                f"{table.source}: the rows after row {done:,} took too long to read. Look for something very long there.",
            ) from None
    hashes, numbers = np.concatenate(marks).T
    for again in np.setdiff1d(np.arange(len(hashes)), np.unique(hashes, return_index=True)[1]):
        findings.add("duplicates", int(numbers[again]))
    about = {"num_problems": num_problems, "problems": [asdict(problem) for problem in problems]}
    about |= {"counts": findings.counts, "rows": findings.rows, "labels": findings.labels}
    (folder / "about.json").write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")


def _located(table: Table, problem: Problem, index: int) -> Problem:
    """The problem, with its file where there are several."""
    if len(table.begins) == 1:
        return problem
    return Problem(problem.row, f"{problem.problem} ({table.where(problem.row, index)})")


def _no_setup() -> None:
    """A child needs nothing to understand rows."""


def _normalize_batch(
    state: None, batch: tuple[ColumnMapping, list[int], list[str]]
) -> tuple[Any, ...]:
    """In a child: numbers, rows as JSON, hashes and label codes of the good rows; the bad ones by their place; what was found."""
    column_mapping, numbers, texts = batch
    good: list[int] = []
    lines: list[str] = []
    hashes: list[int] = []
    labels: list[int] = []
    bad: list[tuple[int, Problem]] = []
    findings = Findings()
    for place, (number, text) in enumerate(zip(numbers, texts, strict=True)):
        try:
            row = normalize_record(number, DECODER.decode(text), column_mapping)
        except BadRow as problem:
            bad.append((place, Problem(number, str(problem))))
            if "the last message is not an answer" in str(problem):
                findings.add("trailing", number)
            continue
        found = inspect(row)
        for kind in found:
            findings.add(kind, number)
        if "secrets" in found and "drop_secrets" in column_mapping.fixes:
            bad.append((place, Problem(number, "it has what looks like a key or a token")))
            continue
        good.append(number)
        lines.append(to_json(row))
        hashes.append(_mark(lines[-1]))
        labels.append(_mark(row.label) if isinstance(row, TextClassification) else 0)
        for label in (
            [row.label]
            if isinstance(row, TextClassification)
            else set(row.tags)
            if isinstance(row, TokenClassification)
            else ()
        ):
            findings.labels[label] += 1
    return (
        good,
        lines,
        hashes,
        labels,
        bad,
        (dict(findings.counts), dict(findings.rows), dict(findings.labels)),
    )


def _mark(text: str) -> int:
    """A 64-bit digest; two of a million different rows have the same in one case of 37 million."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), signed=True)


# Training and held-out rows


def _split(
    understood: _Normalized, share: float, seed: int, deduplicate: bool
) -> arrow_store.Subset:
    """Hold out `share` of the different rows, of each label alike; rows that say the same are on one side, at least one row is left to train on."""
    _, first, group_of = np.unique(understood.hashes, return_index=True, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(first))
    order = order[np.argsort(understood.label_codes[first][order], kind="stable")]
    place = np.arange(len(order))
    picked = np.floor((place + 1) * share + 0.5) > np.floor(place * share + 0.5)
    held_out_groups = order[picked][: len(order) - 1]
    held_out = np.sort(first[held_out_groups])
    trained = ~np.isin(group_of, held_out_groups)
    if deduplicate:
        trained &= np.isin(np.arange(len(group_of)), first)
    return arrow_store.Subset(np.flatnonzero(trained), held_out)


def _held_out_rows(
    understood: _Normalized, table: Table, column_mapping: ColumnMapping, findings: Findings
) -> tuple[Rows, arrow_store.Subset, list[Problem]]:
    """The rows of a second file that are not also trained on, and what is wrong with the others."""
    same = all(column in table.columns for column in column_mapping.columns.values())
    second = (
        column_mapping
        if same
        else _chosen(
            table,
            detect_schema(table.source, table.columns, [row for _, row in table.rows(0, 1_000)]),
            None,
        )
    )
    other = _normalized(table, second, no_progress)
    leaked = np.isin(other.hashes, understood.hashes)
    numbers = arrow_store.open_arrow(other.rows.path)["number"].to_numpy()
    problems = [
        Problem(
            int(number), f"the row is also trained on, so it proves nothing (in {table.source})"
        )
        for number in numbers[leaked]
    ]
    for number in numbers[leaked]:
        findings.add("leaks", int(number))
    problems += [
        Problem(problem.row, f"{problem.problem} (in {table.source})") for problem in other.problems
    ]
    _, first = np.unique(other.hashes, return_index=True)
    held_out = np.array([place for place in np.sort(first) if not leaked[place]], dtype=np.int64)
    _, train = np.unique(understood.hashes, return_index=True)
    train = (
        np.sort(train)
        if "deduplicate" in column_mapping.fixes
        else np.arange(len(understood.hashes))
    )
    return other.rows, arrow_store.Subset(train, held_out), problems


def _ranges(index: np.ndarray) -> list[list[int]]:
    """Places as [start, end) ranges: a split of a million rows in a few hundred kilobytes."""
    if not len(index):
        return []
    breaks = np.flatnonzero(np.diff(index) != 1)
    starts, ends = np.r_[index[0], index[breaks + 1]], np.r_[index[breaks], index[-1]] + 1
    return np.stack([starts, ends], axis=1).tolist()


def _from_ranges(ranges: list[list[int]]) -> np.ndarray:
    return np.concatenate(
        [np.arange(start, end, dtype=np.int64) for start, end in ranges] or [np.empty(0, np.int64)]
    )


# Lengths


@dataclass(frozen=True)
class Lengths:
    """Token counts of the rows: what the length limit does to them."""

    median: int
    longest: int
    num_cut: int
    """Rows with tokens beyond the limit."""
    num_untrained: int
    """Rows none of whose answer is left within the limit; they teach nothing and are left out."""
    num_trained_tokens: int
    """Tokens a loss is taken on, in one epoch."""


def lengths(tokens: arrow_store.Tokens) -> Lengths:
    """Count the tokens of rendered rows."""
    full, trained = tokens.column("length"), tokens.column("num_trained")
    return Lengths(
        median=int(np.median(full)),
        longest=int(full.max()),
        num_cut=int((tokens.column("cut") > 0).sum()),
        num_untrained=int((trained == 0).sum()),
        num_trained_tokens=int(trained.sum()),
    )


def histogram(
    tokens: arrow_store.Tokens, max_length: int, most_bars: int = 30
) -> tuple[int, list[dict[str, Any]]]:
    """How many rows have how many tokens: the width of a bar, and bars with `tokens` (where it begins), `rows`, and whether they are `cut` off."""
    full = tokens.column("length")
    width = max(1, -(-int(full.max()) // most_bars))
    counts = Counter(
        zip((full // width * width).tolist(), (full > max_length).tolist(), strict=True)
    )
    return width, [
        {"tokens": start, "cut": cut, "rows": rows} for (start, cut), rows in sorted(counts.items())
    ]


def row_numbers_where(tokens: arrow_store.Tokens, chosen: np.ndarray) -> Iterator[int]:
    """Row numbers of the rendered rows for which `chosen` holds."""
    return (int(number) for number in tokens.column("row")[chosen])
