"""Normalizes all rows of a table in child processes and caches the result by its content."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Generator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from peft_space.data import arrow_store
from peft_space.data.arrow_store import ROWS, Rows
from peft_space.data.cells import (
    as_bool,
    as_rating,
    listed,
    message_turns,
    turns_of,
    unused_around_messages,
)
from peft_space.data.column_mapping import ColumnMapping, Fix
from peft_space.data.messages import (
    BadRow,
    FixableRow,
    has_speaker,
    unused_in_calls,
    unused_in_message,
)
from peft_space.data.pictures import (
    FOLDER,
    BrokenPicture,
    Brought,
    MissingPicture,
    Opener,
    unused_note,
)
from peft_space.data.readers.json import DECODER
from peft_space.data.row_checks import (
    Finding,
    Findings,
    combined_finding,
    fold_label,
    inspect,
    label_spellings,
    spelling_finding,
)
from peft_space.data.row_normalization import (
    Problem,
    TextClassification,
    TokenClassification,
    normalize_record,
    structured,
    to_json,
    unwrapped,
)
from peft_space.data.schema_detection import is_verdict
from peft_space.data.table import Table
from peft_space.data.tokenization.template_sandbox import BatchTimeout, map_in_subprocesses
from peft_space.data.unused_columns import is_bad_name
from peft_space.errors import UserError
from peft_space.runs.events import OnProgress
from peft_space.storage.content_cache import get_or_create

MAX_PROBLEMS = 1_000
"""Rows that are listed with the reason why they are left out; the others are only counted."""

_BATCH_ROWS, _BATCH_SECONDS = 2_000, 60.0
_BATCH_ROWS_WITH_PICTURES = 20
_NORMALIZER_VERSION = "27"
"""Change it when rows are normalized differently, so that cached rows are not used again."""


@dataclass(frozen=True)
class Normalized:
    """The usable rows of a table and the findings about all of them."""

    rows: Rows
    hashes: np.ndarray
    """64-bit digest of each usable row (N,); equal for rows with the same content."""
    label_codes: np.ndarray
    """64-bit digest of the label of each usable row (N,); 0 without a label."""
    positions: np.ndarray
    """Position of each usable row in the table (N,)."""
    num_problems: int
    problems: list[Problem]
    findings: tuple[dict[str, int], dict[str, list[int]], dict[str, int]]
    """Arguments of `Findings.merge`."""
    unused: list[dict[str, Any]]
    """As in `TrainingData`."""
    notes: list[str]
    """Sentences about pictures that no row names."""


_Setup = tuple[ColumnMapping, dict[str, str], Brought | None]
"""The mapping, folded label -> its usual spelling, and the pictures that came with the rows."""
_CLASSIFYING = ("text_classification", "text_pair_classification")
_HASHES = pa.schema([("hash", pa.int64()), ("label", pa.int64()), ("position", pa.int64())])


_FIXED: dict[Fix, str] = {
    "trim": "trailing", "merge": "unmerged", "drop_greeting": "greeted",
    "minus_one": "unlabeled",
}  # fmt: skip
"""Fix -> the finding about rows that cannot be used without it."""


def or_fix(normalized: Normalized, mapping: ColumnMapping) -> str:
    """Name the fix for rows that cannot be used, if there is one."""
    counts = normalized.findings[0]
    fix = next((fix for fix, kind in _FIXED.items() if counts.get(kind)), None)
    if fix is None or fix in mapping.fixes:
        return ""
    fixed = replace(mapping, fixes=(*mapping.fixes, fix)).as_choice()
    choice = json.dumps(fixed, ensure_ascii=False)
    return f", or use the fix {fix!r} with the column mapping {choice}"


def unified_labels(table: Table, mapping: ColumnMapping, on_progress: OnProgress) -> dict[str, str]:
    """Return the usual spelling of each label if the user wants labels to be unified."""
    if "unify" not in mapping.fixes or mapping.schema not in _CLASSIFYING:
        return {}
    fixes = tuple(fix for fix in mapping.fixes if fix != "unify")
    as_written = normalize_table(table, replace(mapping, fixes=fixes), on_progress)
    return label_spellings(as_written.findings[2])


def find_label_problems(normalized: Normalized) -> list[Finding]:
    """Return findings about labels that differ in spelling only, or that are several in one."""

    def rows_of(labels: list[str]) -> list[int]:
        numbers = arrow_store.open_arrow(normalized.rows.path)["number"].to_numpy()
        return numbers[np.isin(normalized.label_codes, list(map(_hash, labels)))].tolist()

    if not normalized.label_codes.any():
        return []
    labels = normalized.findings[2]
    return [*spelling_finding(labels, rows_of), *combined_finding(labels, rows_of)]


def normalize_table(
    table: Table,
    mapping: ColumnMapping,
    on_progress: OnProgress,
    labels: dict[str, str] | None = None,
) -> Normalized:
    """Return the usable rows of a table.

    Args:
        table: the rows.
        mapping: how they are read.
        on_progress: receives the progress.
        labels: folded label -> its usual spelling, which replaces the spelling of a row.
    """
    identity = [_NORMALIZER_VERSION, table.key, mapping.as_json(), labels or {}]
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    brought = Brought(table.pictures_folder, table.pictures or {})
    setup: _Setup = (mapping, labels or {}, brought)
    write = functools.partial(_normalize_into, table, setup, on_progress)
    folder = get_or_create("normalized", key, write)
    metadata = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    hashes = arrow_store.open_arrow(folder / "hashes.arrow")
    return Normalized(
        rows=Rows(folder / "rows.arrow", key),
        hashes=hashes["hash"].to_numpy(),
        label_codes=hashes["label"].to_numpy(),
        positions=hashes["position"].to_numpy(),
        num_problems=metadata["num_problems"],
        problems=[Problem(**problem) for problem in metadata["problems"]],
        findings=(metadata["counts"], metadata["rows"], metadata["labels"]),
        unused=metadata["unused"],
        notes=metadata.get("notes", []),
    )


@dataclass
class _Batch:
    """Normalized rows of one batch, as a child process returns them."""

    numbers: list[int] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    """Of the rows in the batch, from 0."""
    bad: list[tuple[int, Problem]] = field(default_factory=list)
    """(position in the batch, problem)."""
    findings: tuple[dict[str, int], dict[str, list[int]], dict[str, int]] = ({}, {}, {})
    unused: dict[str, list[Any]] = field(default_factory=dict)
    """Name of what is not used -> [rows that have it, example]."""
    pictures: list[tuple[int, list[str]]] = field(default_factory=list)
    """(row number, digests of its pictures)."""
    named: set[str] = field(default_factory=set)
    """Relative paths of the pictures that rows name."""


def _normalize_into(table: Table, setup: _Setup, on_progress: OnProgress, folder: Path) -> None:
    """Write rows.arrow, hashes.arrow and about.json into `folder`."""
    findings = Findings()
    problems: list[Problem] = []
    num_problems = done = 0
    hashes, numbers = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    unused: dict[str, list[Any]] = {}
    named: set[str] = set()
    seen: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        batches = stack.enter_context(contextlib.closing(_normalized_batches(table, setup, folder)))
        rows_writer = _open_writer(stack, folder / "rows.arrow", ROWS)
        hashes_writer = _open_writer(stack, folder / "hashes.arrow", _HASHES)
        try:
            for batch in batches:
                findings.merge(*batch.findings)
                named |= batch.named
                _count_repeated(batch, seen, findings)
                for name, (rows, example) in batch.unused.items():
                    unused.setdefault(name, [0, example])[0] += rows
                hashes.append(np.array(batch.hashes, np.int64))
                numbers.append(np.array(batch.numbers, np.int64))
                num_problems += len(batch.bad)
                for offset, problem in batch.bad[: MAX_PROBLEMS - len(problems)]:
                    problems.append(_with_file(table, problem, done + offset))
                rows_writer.write_batch(pa.record_batch([batch.numbers, batch.lines], schema=ROWS))
                codes = [batch.hashes, batch.labels, [done + at for at in batch.positions]]
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
    metadata["notes"] = unused_note(table.source, table.pictures or {}, sorted(named))
    (folder / "about.json").write_text(json.dumps(metadata, ensure_ascii=False), encoding="utf-8")


def _count_repeated(batch: _Batch, seen: dict[str, int], findings: Findings) -> None:
    """Find rows with a picture of an earlier row.

    Args:
        batch: the rows.
        seen: picture -> the first row that has it; the pictures of the batch are added.
        findings: receives the rows.
    """
    for number, digests in batch.pictures:
        if any(seen.setdefault(digest, number) != number for digest in digests):
            findings.add("pictures_repeated", number)


def _open_writer(stack: contextlib.ExitStack, path: Path, schema: pa.Schema) -> Any:
    file = stack.enter_context(pa.OSFile(str(path), "wb"))
    return stack.enter_context(pa.ipc.new_file(file, schema))


def _with_file(table: Table, problem: Problem, position: int) -> Problem:
    """Add the file to a problem if the table has several files."""
    if len(table.begins) == 1:
        return problem
    return Problem(problem.row, f"{problem.problem} ({table.where(problem.row, position)})")


def _normalized_batches(table: Table, setup: _Setup, folder: Path) -> Generator[_Batch]:
    has_pictures = table.pictures is not None or _names_pictures(table, setup[0])
    size = _BATCH_ROWS_WITH_PICTURES if has_pictures else _BATCH_ROWS
    return map_in_subprocesses(
        _receive,
        (setup, folder / FOLDER),
        _normalize_batch,
        table.texts(batch=size),
        max_children=1 + table.num_rows // (2 * size + 1_000),
        seconds=_BATCH_SECONDS,
    )


def _names_pictures(table: Table, mapping: ColumnMapping) -> bool:
    """Return True if the first rows name pictures: they take longer than texts."""
    first = next(table.texts(0, 20), ([], []))[1]
    return "images" in mapping.columns or any("image" in text for text in first)


def _receive(setup: _Setup, pictures: Path) -> tuple[_Setup, Path]:
    return setup, pictures


def _normalize_batch(received: tuple[_Setup, Path], rows: tuple[list[int], list[str]]) -> _Batch:
    """Normalize a batch in a child process."""
    (mapping, spellings, brought), pictures = received
    batch, findings = _Batch(), Findings()
    opener = Opener(brought or Brought(), pictures)
    verdicts = _Verdicts()
    for position, (number, text) in enumerate(zip(*rows, strict=True)):
        record = DECODER.decode(text)
        if record and all(_is_name(cell, name) for name, cell in record.items()):
            batch.bad.append((position, Problem(number, "it repeats the names of the columns")))
            continue
        unused = _count_unused(record, mapping, batch.unused)
        try:
            row = normalize_record(number, record, mapping, opener)
        except BadRow as error:
            batch.bad.append((position, Problem(number, str(error))))
            if isinstance(error, BrokenPicture):
                findings.add("pictures_broken", number)
            if isinstance(error, MissingPicture):
                findings.add("pictures_missing", number)
            if isinstance(error, FixableRow):
                findings.add(error.finding, number)
            continue
        if isinstance(row, TextClassification) and spellings:
            row = replace(row, label=spellings.get(fold_label(row.label), row.label))
        kinds = [*inspect(row), *dict.fromkeys(opener.kinds)]
        turns = record.get(mapping.columns.get("messages", ""))
        if isinstance(turns, list) and all(isinstance(turn, str) for turn in turns):
            kinds.append("alternating")
        if mapping.schema in _ANSWERING:
            verdicts.add(number, unused)
        if any(str(record[name]).lower() in _HELD_OUT for name in _SPLITS & record.keys()):
            kinds.append("own_split")
        named = [mapping.columns[role] for role in _TEXTS if role in mapping.columns]
        if any(_is_structured(record.get(name), name) for name in named):
            kinds.append("structured")
        if opener.opened:
            batch.pictures.append((number, opener.opened))
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
        batch.positions.append(position)
        batch.lines.append(to_json(row))
        batch.hashes.append(_hash(batch.lines[-1]))
        batch.labels.append(_hash(row.label) if isinstance(row, TextClassification) else 0)
    for number in verdicts.bad_rows():
        findings.add("bad_verdict", number)
    batch.named = opener.used
    batch.findings = (dict(findings.counts), dict(findings.rows), dict(findings.labels))
    return batch


def _is_structured(cell: Any, column: str) -> bool:
    """Return True for an object, or a list, that is learned as JSON."""
    if isinstance(cell, str) and cell.startswith("[") and unwrapped(cell, column) == cell:
        return all(isinstance(one, str) for one in listed(cell) or [0])
    return structured(unwrapped(cell, column)) is not None


def _is_name(cell: Any, column: str) -> bool:
    """Return True if a cell repeats the name of its column."""
    return not isinstance(cell, (list, dict)) and str(cell).strip() == column


class _Verdicts:
    """Rows whose answers a column calls bad that is not used, such as `liked`."""

    def __init__(self) -> None:
        self._bad: dict[str, list[int]] = {}
        self._others: set[str] = set()

    def add(self, number: int, unused: dict[str, Any]) -> None:
        for name, cell in unused.items():
            key = name.rpartition(": ")[2]  # also a key of a message
            if is_bad_name(key) and (is_bad := as_bool(cell)) is not None:
                rating: bool | None = not is_bad
            elif is_verdict(key):
                rating = as_rating(cell)
            else:
                continue
            if rating is None:
                self._others.add(name)
            elif not rating:
                self._bad.setdefault(name, []).append(number)

    def bad_rows(self) -> list[int]:
        """Return their numbers. A column with other values too, such as counts, says nothing."""
        columns = [rows for name, rows in self._bad.items() if name not in self._others]
        return sorted({number for rows in columns for number in rows})


_MAX_EXAMPLE = 80


def _count_unused(
    record: dict[str, Any], mapping: ColumnMapping, unused: dict[str, list[Any]]
) -> dict[str, Any]:
    """Count what is not used of a row: columns, and keys of its messages. Returns these."""
    used = mapping.used
    empty = (None, "")
    found = {name: cell for name, cell in record.items() if name not in used and cell not in empty}
    columns = mapping.of_row(record).columns
    for role in _WITH_MESSAGES:
        if role in columns:
            cell = record.get(columns[role])
            written = unwrapped(cell, columns[role]) if isinstance(cell, str) else cell
            cell = written if isinstance(written, list) else cell
            inner = _unused_in_cell(cell, role, columns[role])
            found |= {f"{columns[role]}: {key}": value for key, value in inner.items()}
    for name, cell in found.items():
        text = cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)
        if name not in unused:
            unused[name] = [0, text[:_MAX_EXAMPLE] + " …" * (len(text) > _MAX_EXAMPLE)]
        unused[name][0] += 1
    return found


_ANSWERING = ("alpaca", "question_answer", "prompt_completion", "messages", "sharegpt")
_SPLITS = {"split", "set", "partition", "Split", "Set", "Partition"}
_HELD_OUT = ("test", "validation", "valid", "val", "dev", "eval")
_TEXTS = ("instruction", "question", "prompt", "source", "answer", "target")
_WITH_MESSAGES = ("messages", "prompt", "chosen", "rejected", "question", "answer")


def _unused_in_cell(cell: Any, role: str, column: str) -> dict[str, Any]:
    """Return what is not used of the messages or calls in a cell, and answers after the first."""
    unused: dict[str, Any] = {}
    right = unwrapped(cell, column) if role == "answer" and isinstance(cell, list) else None
    if isinstance(right, str):  # of objects, the one that is correct
        return {"other answers": [one for one in cell if one.get("text") != right]}
    if role in ("question", "answer", "prompt") and structured(cell) is not None:
        return {}  # all of it is written as JSON
    if isinstance(cell, dict) and isinstance(cell.get("text"), list):  # as in SQuAD
        unused = {key: value for key, value in cell.items() if key != "text" and value}
        cell = cell["text"]
    elif isinstance(cell, dict) and {"choices", "aliases"} & cell.keys():
        used = {"choices", "value"}
        unused = {key: value for key, value in cell.items() if key not in used and value}
    unused |= unused_around_messages(cell)
    turns = turns_of(cell) if role == "messages" else message_turns(cell)
    if turns and all("text" in turn for turn in turns) and not any(map(has_speaker, turns)):
        unused["other answers"] = turns[1:]
    elif turns is not None:
        for turn in turns:
            unused |= unused_in_message(turn) if has_speaker(turn) else unused_in_calls(turn)
    elif role == "answer" and isinstance(cell, list) and len(set(map(str, cell))) > 1:
        unused["other answers"] = cell[1:]
    return unused


def _hash(text: str) -> int:
    """Return a 64-bit digest: two of a million rows collide in one case of 37 million."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), signed=True)
