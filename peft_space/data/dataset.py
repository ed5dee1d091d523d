"""Loads a dataset: reads the files, normalizes the rows, splits them and reports problems."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from peft_space.data import arrow_store
from peft_space.data.arrow_store import Rows, Subset
from peft_space.data.column_mapping import (
    ColumnMapping,
    Schema,
    is_question,
    listed_names,
    make_column_mapping,
    tasks_of_schema,
)
from peft_space.data.pictures import FOLDER
from peft_space.data.restructuring import restructure
from peft_space.data.row_checks import (
    Finding,
    Findings,
)
from peft_space.data.row_normalization import (
    Problem,
)
from peft_space.data.schema_detection import detect_schema
from peft_space.data.table import Data, Table, demo_files, read_table
from peft_space.data.table_normalization import (
    MAX_PROBLEMS,
    Normalized,
    find_label_problems,
    normalize_table,
    or_fix,
    unified_labels,
)
from peft_space.errors import UserError
from peft_space.runs.events import OnProgress, no_progress
from peft_space.runs.run import Run

DEMO_DATA = "demo"
"""Name of the built-in sample data, accepted in place of a file."""
_SAMPLE_ROWS, _SAMPLE_ROWS_PER_FILE = 1_000, 200
_MAX_LABELS = 1_001
"""With more distinct values, a column is not a label."""
_STORED_AS_IS = (
    "source", "sha256", "num_rows", "columns", "notes", "num_problems", "num_repeated", "labels",
    "unused",
)  # fmt: skip


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
        for path in (*self.train.picture_files(), *self.held_out.picture_files()):
            files[f"data/{FOLDER}/{path.name}"] = path
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
    mapping = ColumnMapping.from_json(about.pop("column_mapping"))
    about["problems"] = [Problem(**problem) for problem in about["problems"]]
    about["findings"] = [Finding(**finding) for finding in about["findings"]]
    held_out_rows = second if second.is_file() else rows
    return TrainingData(
        column_mapping=mapping,
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
    return table, _mapping_of_files(table) or _detect(table)


def _read(data: Data, on_progress: OnProgress) -> Table:
    return restructure(read_table(demo_files()[0] if data == DEMO_DATA else data, on_progress))


def _detect(table: Table) -> list[ColumnMapping]:
    rows = [row for _, row in table.rows(0, _SAMPLE_ROWS)]
    return detect_schema(table.source, table.columns, rows)


def _mapping_of_files(table: Table) -> list[ColumnMapping]:
    """Return the mapping of files that are read differently; empty if one mapping suits all.

    Raises:
        UserError: the files have different tasks, or one of them can be read in several ways.
    """
    if len(table.begins) == 1:
        return []
    read_as: list[tuple[str, list[ColumnMapping]]] = []
    ends = [begin for _, begin in table.begins[1:]] + [table.num_rows]
    for (name, begin), end in zip(table.begins, ends, strict=True):
        end = min(end, begin + _SAMPLE_ROWS_PER_FILE)
        rows = [row for _, row in table.rows(begin, end)]
        columns = list(dict.fromkeys(column for row in rows for column in row))
        read_as.append((name, detect_schema(name, columns, rows)))
    schemas = {mappings[0].schema: name for name, mappings in reversed(read_as)}
    is_certain = not any(is_question(mappings) for _, mappings in read_as)
    if len(schemas) == 1 and not is_certain:
        return []
    if len(schemas) > 1:
        is_answering = all("seq2seq-lm" in tasks_of_schema(schema) for schema in schemas)
        if not (is_certain and is_answering):
            raise _mixed_schemas(schemas)
    different: list[ColumnMapping] = []
    by_size = sorted((mappings[0] for _, mappings in read_as), key=lambda one: -len(one.columns))
    for mapping in by_size:
        if not any(mapping.columns.items() <= other.columns.items() for other in different):
            different.append(mapping)
    return [replace(different[0], others=tuple(different[1:]))] if len(different) > 1 else []


def _mixed_schemas(schemas: Mapping[Schema, str]) -> UserError:
    names = reversed(list(schemas.items()))
    listed = " and ".join(f"{name} has the schema {schema}" for schema, name in names)
    return UserError(
        "data.mixed_schemas",
        f"{listed}. Files with different schemas can only be combined if all have questions and "
        "answers, and each can be read in one way. Use one file at a time, or convert one file to "
        "the schema of the other.",
    )


def load_dataset(
    data: Data,
    eval_split: float,
    seed: int,
    held_out: Data | None = None,
    column_mapping: Mapping[str, Any] | None = None,
    on_progress: OnProgress = no_progress,
    file_weights: Sequence[float] | None = None,
) -> TrainingData:
    """Read, normalize and split a dataset.

    Args:
        data: a file, several files that are concatenated, or `DEMO_DATA`.
        eval_split: share of the rows to hold out, from 0 to 1; ignored if `held_out` is given.
        seed: seed of the split.
        held_out: a dataset to hold out instead.
        column_mapping: as `ColumnMapping.as_json` returns it; detected if it has no `schema`.
        on_progress: receives the progress.
        file_weights: how often an epoch takes the rows of each file; once if it is None.

    Raises:
        UserError: the weights are not one for each file, no row can be used, or the columns are
            ambiguous and `column_mapping` does not resolve it.
    """
    plausible: list[ColumnMapping] = []
    if (column_mapping or {}).get("schema"):
        table = _read(data, on_progress)
    else:
        table, plausible = detect_mappings(data, on_progress)
    mapping = _choose_mapping(table, plausible, column_mapping)
    _check_weights(table, file_weights)
    labels = unified_labels(table, mapping, on_progress)
    normalized = normalize_table(table, mapping, on_progress, labels)
    if not normalized.hashes.size:
        first = normalized.problems[0]
        raise UserError(
            "data.no_usable_rows",
            f"{table.source}: none of the {table.num_rows:,} rows can be used for training; "
            f"row {first.row}: {first.problem}. Correct the rows{or_fix(normalized, mapping)}.",
        )
    findings = Findings()
    findings.merge(*normalized.findings)
    problems, num_problems = list(normalized.problems), normalized.num_problems
    notes = [*table.notes, *normalized.notes]
    if data == DEMO_DATA:
        held_out = demo_files()[1]
    if held_out is None:
        held_out_rows = normalized.rows
        subset = _split(normalized, eval_split, seed, "deduplicate" in mapping.fixes)
        num_repeated = len(normalized.hashes) - len(subset.train) - len(subset.held_out)
    else:
        second = restructure(read_table(held_out, on_progress))
        held_out_rows, subset, rejected = _hold_out(normalized, second, mapping, findings, labels)
        num_repeated = len(normalized.hashes) - len(subset.train)
        problems += rejected
        num_problems += len(rejected)
        notes.append(
            f"Held-out dataset: {second.source}, {second.num_rows:,} rows, of which "
            f"{len(subset.held_out):,} can be used."
        )
    trained = _weighted(subset.train, normalized.positions, table, file_weights, seed)
    by_count = sorted(findings.labels.items(), key=lambda pair: -pair[1])
    return TrainingData(
        source=table.source,
        sha256=table.sha256,
        num_rows=table.num_rows,
        column_mapping=mapping,
        columns=table.columns,
        notes=notes,
        train=Rows(normalized.rows.path, normalized.rows.digest, trained),
        held_out=Rows(held_out_rows.path, held_out_rows.digest, subset.held_out),
        num_problems=num_problems,
        problems=problems[:MAX_PROBLEMS],
        num_repeated=num_repeated,
        findings=[*find_label_problems(normalized), *findings.to_list()],
        labels=dict(by_count[:_MAX_LABELS]),
        unused=normalized.unused,
    )


def _choose_mapping(
    table: Table, plausible: Sequence[ColumnMapping], choice: Mapping[str, Any] | None
) -> ColumnMapping:
    if choice and choice.get("schema"):
        return make_column_mapping(choice, table.columns)
    if is_question(plausible):
        options = "; or ".join(map(_describe, plausible))
        example = json.dumps(plausible[0].as_choice(), ensure_ascii=False)
        what = "the columns can be used in more than one way"
        if len(plausible) == 1:
            what = "a column looks like a part of the task and would not be used"
        raise UserError(
            "data.ambiguous_columns",
            f"{table.source}: {what}: {options}. Choose one on the Data tab, or with the column "
            f"mapping {example}.",
        )
    if choice and choice.get("fixes"):
        values = plausible[0].as_json() | {"fixes": choice["fixes"]}
        return make_column_mapping(values, table.columns)
    return plausible[0]


def _describe(mapping: ColumnMapping) -> str:
    columns = ", ".join(f"{column!r} as {role}" for role, column in mapping.columns.items())
    left_out = f", without {listed_names(mapping.left_out)}" if mapping.left_out else ""
    assistant = f", {mapping.assistant!r} as the assistant" if mapping.assistant else ""
    return f"{mapping.schema} with {columns}{assistant}{left_out}"


# Training and held-out rows


def _split(normalized: Normalized, share: float, seed: int, deduplicate: bool) -> Subset:
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


def _check_weights(table: Table, weights: Sequence[float] | None) -> None:
    if weights is not None and len(weights) != len(table.begins):
        raise UserError(
            "data.wrong_file_weights",
            f"file_weights has {len(weights)} numbers and the data {len(table.begins)} files. "
            "Give one number for each file, in their order, or leave it empty.",
        )


def _weighted(
    train: np.ndarray,
    positions: np.ndarray,
    table: Table,
    weights: Sequence[float] | None,
    seed: int,
) -> np.ndarray:
    """Take the rows of each file as often as its weight says; of a fraction, a random share.

    Args:
        train: indices of the training rows (N,).
        positions: position in the table of each usable row.
    """
    if weights is None:
        return train
    draw = np.random.default_rng(seed)
    begins = [begin for _, begin in table.begins]
    file_of = np.searchsorted(begins, positions[train], side="right") - 1
    parts = []
    for number, weight in enumerate(weights):
        rows = train[file_of == number]
        whole, rest = divmod(weight, 1)
        share = np.sort(draw.permutation(rows)[: round(rest * len(rows))])
        parts += [*[rows] * int(whole), share]
    if not any(map(len, parts)):
        raise UserError(
            "data.wrong_file_weights",
            f"{table.source}: file_weights leaves no row to train. Give a larger weight.",
        )
    return np.concatenate(parts)


def _hold_out(
    normalized: Normalized,
    table: Table,
    mapping: ColumnMapping,
    findings: Findings,
    labels: dict[str, str],
) -> tuple[Rows, Subset, list[Problem]]:
    """Hold out the rows of a second dataset that are not also training rows."""
    if not mapping.used <= set(table.columns):
        second_mapping = _choose_mapping(table, _detect(table), None)
    else:
        second_mapping = mapping
    second = normalize_table(table, second_mapping, no_progress, labels)
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
