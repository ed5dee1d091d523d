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

from peft_space.data import store
from peft_space.data.cache import kept
from peft_space.data.formats import DECODER
from peft_space.data.pool import TookTooLong, in_children
from peft_space.data.read import Data, Table, demo_files, read_table
from peft_space.data.report import Finding, Findings, inspect
from peft_space.data.rows import BadRow, Labelled, Problem, Tagged, to_json, understand
from peft_space.data.rows_file import ROWS
from peft_space.data.shapes import Reading, make_reading, recognise
from peft_space.data.store import Rows
from peft_space.errors import UserError
from peft_space.events import OnProgress, quietly
from peft_space.run import Run

DEMO = "demo"
"""The name of the built-in sample data wherever a file can be named."""
MOST_PROBLEMS = 1_000
"""Rows that are listed with what keeps them from being used; the rest are counted."""

_BATCH, _BATCH_SECONDS = 2_000, 60.0
_MOST_LABELS = 1_001
"""Of data with more different labels those are no labels."""
_UNDERSTANDER = "3"
"""Raised when rows are understood differently than before, so that what was kept is worked out anew."""


@dataclass(frozen=True)
class TrainingData:
    """Files understood: `train` and `held_out` share no row and no repeated row; `problems` were left out."""

    source: str
    sha256: str
    num_rows: int
    reading: Reading
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
            for key in ("source", "sha256", "num_rows", "columns", "notes", "num_problems", "num_repeated", "labels")
        }
        about |= {"reading": self.reading.as_json(), "problems": [asdict(problem) for problem in self.problems]}
        about |= {"findings": [asdict(finding) for finding in self.findings]}
        about |= {"digests": {"train": self.train.digest, "held_out": self.held_out.digest}}
        about |= {"train": _ranges(self.train.index), "held_out": _ranges(self.held_out.index)}
        files: dict[str, str | Path] = {"data/about.json": json.dumps(about, ensure_ascii=False) + "\n", "data/rows.arrow": self.train.path}
        return files if self.held_out.path == self.train.path else files | {"data/held_out.arrow": self.held_out.path}


def source_of(run: Run) -> str:
    """What the data of a run were called; nothing where they are gone."""
    path = run.path("data", "about.json")
    return json.loads(path.read_text(encoding="utf-8"))["source"] if path.is_file() else ""


def data_of(run: Run) -> TrainingData:
    """The data that was kept in a run when it was made."""
    about = json.loads(run.path("data", "about.json").read_text(encoding="utf-8"))
    digests, train, held_out = (about.pop(key) for key in ("digests", "train", "held_out"))
    rows, second = run.path("data", "rows.arrow"), run.path("data", "held_out.arrow")
    reading = about.pop("reading")
    about["problems"] = [Problem(**problem) for problem in about["problems"]]
    about["findings"] = [Finding(**finding) for finding in about["findings"]]
    return TrainingData(
        reading=Reading(reading["shape"], reading["columns"], tuple(reading["fixes"])),
        train=Rows(rows, digests["train"], _from_ranges(train)),
        held_out=Rows(second if second.is_file() else rows, digests["held_out"], _from_ranges(held_out)),
        **about,
    )


def readings_of(data: Data, on_progress: OnProgress = quietly) -> tuple[Table, list[Reading]]:
    """The rows of the data, and how they could be read: one reading where there is no doubt."""
    table = _table(data, on_progress)
    _refuse_different_shapes(table)
    return table, recognise(table.source, table.columns, [row for _, row in table.rows(0, 1_000)])


def _refuse_different_shapes(table: Table) -> None:
    """Files that are joined are read alike; one of another shape would be lost row by row."""
    shapes = {}
    for number, (name, begin) in enumerate(table.begins):
        end = table.begins[number + 1][1] if number + 1 < len(table.begins) else table.num_rows
        rows = [row for _, row in table.rows(begin, min(end, begin + 200))]
        shapes.setdefault(recognise(name, list(dict.fromkeys(column for row in rows for column in row)), rows)[0].shape, name)
    if len(shapes) > 1:
        told = " and ".join(f"{name} holds {shape}" for shape, name in shapes.items())
        raise UserError(
            f"{told}: files of different shapes cannot be joined. Bring them one at a time, or bring one in the shape of the other."
        )


def training_data(
    data: Data,
    held_out_share: float,
    seed: int,
    held_out: Data | None = None,
    reading: Mapping[str, Any] | None = None,
    on_progress: OnProgress = quietly,
) -> TrainingData:
    """Read, recognise and split.

    Args:
        data: a file, several that are joined, or `demo`.
        held_out: rows to score on; without them, `held_out_share` of the rows of `data` are kept from training.
        reading: how to read the columns and what to mend, as `Reading.as_json` gives it; a `shape` of None leaves that to be recognised.

    Raises UserError where nothing in the data can be trained on, or where it could be read in several ways and `reading` does not say which.
    """
    table, plausible = readings_of(data, on_progress) if not (reading or {}).get("shape") else (_table(data, on_progress), [])
    chosen = _chosen(table, plausible, reading)
    understood = _understood(table, chosen, on_progress)
    if not understood.hashes.size:
        first = understood.problems[0]
        raise UserError(
            f"{table.source}: none of its {table.num_rows:,} rows can be trained on; row {first.row}: {first.problem}. Mend the rows."
        )
    findings = Findings()
    findings.merge(*understood.findings)
    problems, num_problems, notes = list(understood.problems), understood.num_problems, list(table.notes)
    if data == DEMO:
        held_out = demo_files()[1]
    if held_out is None:
        places = _split(understood, held_out_share, seed, "deduplicate" in chosen.fixes)
        kept_rows = understood.rows
    else:
        second_table = read_table(held_out, on_progress)
        kept_rows, places, more = _held_out_rows(understood, second_table, chosen, findings)
        problems += more
        num_problems += len(more)
        notes.append(f"To score on: {second_table.source}, {second_table.num_rows:,} rows, {len(places.held_out):,} of which can be used.")
    return TrainingData(
        source=table.source,
        sha256=table.sha256,
        num_rows=table.num_rows,
        reading=chosen,
        columns=table.columns,
        notes=notes,
        train=Rows(understood.rows.path, understood.rows.digest, places.train),
        held_out=Rows(kept_rows.path, kept_rows.digest, places.held_out),
        num_problems=num_problems,
        problems=problems[:MOST_PROBLEMS],
        num_repeated=len(understood.hashes) - len(places.train) - (len(places.held_out) if held_out is None else 0),
        findings=findings.told(),
        labels=dict(sorted(findings.labels.items(), key=lambda pair: -pair[1])[:_MOST_LABELS]),
    )


def _table(data: Data, on_progress: OnProgress) -> Table:
    return read_table(demo_files()[0] if data == DEMO else data, on_progress)


def _chosen(table: Table, plausible: Sequence[Reading], wanted: Mapping[str, Any] | None) -> Reading:
    if wanted and wanted.get("shape"):
        return make_reading(wanted, table.columns)
    if len(plausible) > 1:
        ways = "; or ".join(
            f"{reading.shape} with " + ", ".join(f"{c!r} as {r}" for r, c in reading.columns.items()) for reading in plausible
        )
        example = json.dumps({key: value for key, value in plausible[0].as_json().items() if key != "fixes"}, ensure_ascii=False)
        raise UserError(
            f"{table.source}: its columns can be read in several ways: {ways}. Say which: on the Data tab, or with the reading {example}."
        )
    if wanted and wanted.get("fixes"):
        return make_reading(plausible[0].as_json() | {"fixes": wanted["fixes"]}, table.columns)
    return plausible[0]


# Understanding every row


@dataclass(frozen=True)
class _Understood:
    """Every row of a table that can be used, and what was found on the way."""

    rows: Rows
    hashes: np.ndarray
    """Of each row of `rows`; equal where rows say the same."""
    label_codes: np.ndarray
    num_problems: int
    problems: list[Problem]
    findings: tuple[dict[str, int], dict[str, list[int]], dict[str, int]]


def _understood(table: Table, reading: Reading, on_progress: OnProgress) -> _Understood:
    told = json.dumps([_UNDERSTANDER, table.key, reading.as_json()], sort_keys=True)
    key = hashlib.sha256(told.encode()).hexdigest()
    folder = kept("understood", key, functools.partial(_understand_into, table, reading, on_progress))
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    marks = store.opened(folder / "marks.arrow")
    return _Understood(
        rows=Rows(folder / "rows.arrow", key),
        hashes=marks["hash"].to_numpy(),
        label_codes=marks["label"].to_numpy(),
        num_problems=about["num_problems"],
        problems=[Problem(**problem) for problem in about["problems"]],
        findings=(about["counts"], about["rows"], about["labels"]),
    )


_MARKS = pa.schema([("hash", pa.int64()), ("label", pa.int64())])


def _understand_into(table: Table, reading: Reading, on_progress: OnProgress, folder: Path) -> None:
    findings = Findings()
    problems: list[Problem] = []
    marks: list[np.ndarray] = [np.empty((0, 2), np.int64)]
    num_problems, done = 0, 0
    batches = ((reading, numbers, texts) for numbers, texts in table.texts(batch=_BATCH))
    results = in_children(_nothing, (), _understand_batch, batches, most_children=1 + table.num_rows // 5_000, seconds=_BATCH_SECONDS)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(results))
        rows_writer, marks_writer = (
            stack.enter_context(pa.ipc.new_file(stack.enter_context(pa.OSFile(str(folder / name), "wb")), schema))
            for name, schema in (("rows.arrow", ROWS), ("marks.arrow", _MARKS))
        )
        try:
            for numbers, lines, hashes, labels, bad, found in results:
                findings.merge(*found)
                marks.append(np.array([hashes, numbers], np.int64).T)
                num_problems += len(bad)
                problems += [_located(table, problem, done + offset) for offset, problem in bad][: MOST_PROBLEMS - len(problems)]
                rows_writer.write_batch(pa.record_batch([numbers, lines], schema=ROWS))
                marks_writer.write_batch(pa.record_batch([hashes, labels], schema=_MARKS))
                done += len(numbers) + len(bad)
                on_progress(done / table.num_rows, f"Understood {done:,} of {table.num_rows:,} rows")
        except TookTooLong:
            raise UserError(
                f"{table.source}: the rows after row {done:,} took too long to read. Look for something very long there."
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


def _nothing() -> None:
    """A child needs nothing to understand rows."""


def _understand_batch(state: None, batch: tuple[Reading, list[int], list[str]]) -> tuple[Any, ...]:
    """In a child: numbers, rows as JSON, hashes and label codes of the good rows; the bad ones by their place; what was found."""
    reading, numbers, texts = batch
    good: list[int] = []
    lines: list[str] = []
    hashes: list[int] = []
    labels: list[int] = []
    bad: list[tuple[int, Problem]] = []
    findings = Findings()
    for place, (number, text) in enumerate(zip(numbers, texts, strict=True)):
        try:
            row = understand(number, DECODER.decode(text), reading)
        except BadRow as problem:
            bad.append((place, Problem(number, str(problem))))
            if "the last message is not an answer" in str(problem):
                findings.add("trailing", number)
            continue
        found = inspect(row)
        for kind in found:
            findings.add(kind, number)
        if "secrets" in found and "drop_secrets" in reading.fixes:
            bad.append((place, Problem(number, "it has what looks like a key or a token")))
            continue
        good.append(number)
        lines.append(to_json(row))
        hashes.append(_mark(lines[-1]))
        labels.append(_mark(row.label) if isinstance(row, Labelled) else 0)
        for label in [row.label] if isinstance(row, Labelled) else set(row.tags) if isinstance(row, Tagged) else ():
            findings.labels[label] += 1
    return good, lines, hashes, labels, bad, (dict(findings.counts), dict(findings.rows), dict(findings.labels))


def _mark(text: str) -> int:
    """A 64-bit digest; two of a million different rows have the same in one case of 37 million."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), signed=True)


# Training and held-out rows


def _split(understood: _Understood, share: float, seed: int, deduplicate: bool) -> store.Places:
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
    return store.Places(np.flatnonzero(trained), held_out)


def _held_out_rows(understood: _Understood, table: Table, reading: Reading, findings: Findings) -> tuple[Rows, store.Places, list[Problem]]:
    """The rows of a second file that are not also trained on, and what is wrong with the others."""
    same = all(column in table.columns for column in reading.columns.values())
    second = reading if same else _chosen(table, recognise(table.source, table.columns, [row for _, row in table.rows(0, 1_000)]), None)
    other = _understood(table, second, quietly)
    leaked = np.isin(other.hashes, understood.hashes)
    numbers = store.opened(other.rows.path)["number"].to_numpy()
    problems = [Problem(int(number), f"the row is also trained on, so it proves nothing (in {table.source})") for number in numbers[leaked]]
    for number in numbers[leaked]:
        findings.add("leaks", int(number))
    problems += [Problem(problem.row, f"{problem.problem} (in {table.source})") for problem in other.problems]
    _, first = np.unique(other.hashes, return_index=True)
    held_out = np.array([place for place in np.sort(first) if not leaked[place]], dtype=np.int64)
    _, train = np.unique(understood.hashes, return_index=True)
    train = np.sort(train) if "deduplicate" in reading.fixes else np.arange(len(understood.hashes))
    return other.rows, store.Places(train, held_out), problems


def _ranges(index: np.ndarray) -> list[list[int]]:
    """Places as [start, end) ranges: a split of a million rows in a few hundred kilobytes."""
    if not len(index):
        return []
    breaks = np.flatnonzero(np.diff(index) != 1)
    starts, ends = np.r_[index[0], index[breaks + 1]], np.r_[index[breaks], index[-1]] + 1
    return np.stack([starts, ends], axis=1).tolist()


def _from_ranges(ranges: list[list[int]]) -> np.ndarray:
    return np.concatenate([np.arange(start, end, dtype=np.int64) for start, end in ranges] or [np.empty(0, np.int64)])


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


def lengths(tokens: store.Tokens) -> Lengths:
    """Count the tokens of rendered rows."""
    full, trained = tokens.column("length"), tokens.column("num_trained")
    return Lengths(
        median=int(np.median(full)),
        longest=int(full.max()),
        num_cut=int((tokens.column("cut") > 0).sum()),
        num_untrained=int((trained == 0).sum()),
        num_trained_tokens=int(trained.sum()),
    )


def histogram(tokens: store.Tokens, max_length: int, most_bars: int = 30) -> tuple[int, list[dict[str, Any]]]:
    """How many rows have how many tokens: the width of a bar, and bars with `tokens` (where it begins), `rows`, and whether they are `cut` off."""
    full = tokens.column("length")
    width = max(1, -(-int(full.max()) // most_bars))
    counts = Counter(zip((full // width * width).tolist(), (full > max_length).tolist(), strict=True))
    return width, [{"tokens": start, "cut": cut, "rows": rows} for (start, cut), rows in sorted(counts.items())]


def numbers_where(tokens: store.Tokens, chosen: np.ndarray) -> Iterator[int]:
    """Row numbers of the rendered rows for which `chosen` holds."""
    return (int(number) for number in tokens.column("row")[chosen])
