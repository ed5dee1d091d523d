"""Shows the contents of data files, and how a recipe renders their rows for training."""

import contextlib
import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_space.errors import UserError
from peft_space.operations.registry import (
    ColumnMapping,
    DataSource,
    HeldOut,
    Json,
    Progress,
    RecipeChoices,
    Report,
    operation,
    progress,
)
from peft_space.recipe import Recipe, Task, make_recipe

if TYPE_CHECKING:
    from peft_space.data.column_mapping import ColumnMapping as Mapping
    from peft_space.data.dataset import TrainingData
    from peft_space.data.table import Table

_NUM_PEEKED = 200
_NUM_SHOWN = 50
_SMALL_BYTES = 100_000
_MAX_RAW = 20_000
"""Characters of an unusable row that are shown."""
_MAX_CELL = 300
"""Characters of a cell in a table of rows."""


def _check_text(result: Json, arguments: Json) -> str:
    if "question" in result:
        choose = f"{result['source']}: the columns can be read in several ways. Choose one:"
        if len(result["question"]) == 1:
            choose = (
                f"{result['source']}: a column looks like a part of the task, and the app does not "
                "use it. Name its role, or leave it out:"
            )
        flags = [f"  --column-mapping '{_as_argument(one)}'" for one in result["question"]]
        return "\n".join([*result["notes"], choose, *flags])
    repeated = result["num_repeated"]
    lines = [
        f"{result['source']}: {result['rows']} rows. {result['why']}",
        *result["notes"],
        f"{result['to_train']} to train, {result['held_out']} to score on"
        f"{f'; {repeated} duplicates are left out' if repeated else ''}.",
    ]
    if counts := result.get("lengths"):
        lines.append(
            f"Tokens per row: median {counts['median']}, longest {counts['longest']}; "
            f"{counts['num_cut']} rows are truncated at the limit."
        )
    lines += [*result.get("not_adapted", []), *result.get("base_notes", [])]
    for finding in result["findings"]:
        lines.append(f"{finding['title']}: {finding['count']:,}. {finding['words']}")
        fixes = result["column_mapping"]["fixes"]
        if finding["fix"] and finding["fix"] not in fixes:
            fixed = result["column_mapping"] | {"fixes": [*fixes, finding["fix"]]}
            lines.append(f"  To fix it: --column-mapping '{_as_argument(fixed)}'")
    if unused := result["unused"]:
        lines.append("Not used:")
        lines += [
            f"  {one['name']} ({one['rows']:,} rows), for example {one['example']}"
            for one in unused
        ]
    lines += [f"Row {problem['row']}: {problem['problem']}." for problem in result["problems"]]
    if arguments.get("show"):
        lines += ["", "Rows as they are trained; the tokens between ⟦ and ⟧ have a loss:"]
        lines += [line for one in result["examples"] for line in _example_lines(one)]
    return "\n".join(lines)


def _example_lines(example: Json) -> list[str]:
    """A rendered row for the terminal."""
    lines = [f"Row {example['row']}:"]
    if "tags" in example:
        lines.append(" ".join(f"{text}/{tag}" if tag else text for text, tag in example["tags"]))
    elif example["tokens"]:
        lines.append(_marked(example["tokens"]))
    for name in ("rejected", "target"):
        if example.get(name):
            lines.append(f"{name.capitalize()}: {_marked(example[name])}")
    lines += [
        f"{name.capitalize()}: {example[name]}" for name in ("label", "problem") if name in example
    ]
    if "pieces" in example:
        lines.append(f"This is the first of {example['pieces']} pieces.")
    if example["cut"]:
        lines.append(f"{example['cut']:,} more tokens are cut off.")
    return lines


def _marked(tokens: list[list[Any]]) -> str:
    """The text of tokens, with each trained part between two brackets."""
    parts = []
    for is_trained, group in itertools.groupby(tokens, key=lambda token: token[1]):
        text = "".join(text for text, _ in group)
        parts.append(f"⟦{text}⟧" if is_trained else text)
    return "".join(parts)


def _as_argument(mapping: Json) -> str:
    """Return a column mapping as the user gives it, without what has no value."""
    given = {
        name: value
        for name, value in mapping.items()
        if name != "first_row" and value not in (None, [])
    }
    return json.dumps(given, ensure_ascii=False)


@operation(group="data", streams=True, text=_check_text)
def check(
    data: DataSource,
    recipe: RecipeChoices = None,
    held_out: HeldOut = None,
    column_mapping: ColumnMapping = None,
    show: int | None = None,
    report: Progress = None,
) -> Json:
    """Show the schema of a dataset, and the rows that cannot be used.

    With a recipe, also render the rows for its base model.

    Args:
        show: how many rows to show as they are trained, with the trained tokens marked
        report: while a large file is read, also receives a `preview` of its first rows

    Returns:
        `rows`, `schema`, `column_mapping`, `columns`, `notes`, `unused` (columns and keys of
        messages that nothing uses), `problems`, `findings` and more;
        with a recipe or `show`, `lengths`, `histogram`, `not_adapted` (the layers and experts that
        get no adapter, and why), `base_notes` (what the app does about special tokens that the base
        never learned or lacks) and `examples`: 50, or as many as `show` says, each with its
        `row`, and `tokens` with [text, is trained] for each. If the columns can be read in several
        ways, or one of them looks like a part of the task and is not used, and `column_mapping`
        does not decide, the ways are listed in `question`.
    """
    from peft_space.data.column_mapping import is_question
    from peft_space.data.dataset import detect_mappings, load_dataset
    from peft_space.data.lengths import histogram, lengths
    from peft_space.models.architecture import num_places_of
    from peft_space.models.resolve import find_base
    from peft_space.training.prepare import prepare

    is_rendered, on_progress = bool(recipe) or bool(show), progress(report)
    chosen, num_shown = make_recipe(dict(recipe or {})), _NUM_SHOWN if show is None else show
    if not (column_mapping or {}).get("schema"):
        if is_rendered and report and not _is_small(data):
            _report_first_rows(data, chosen, num_shown, report)
        table, mappings = detect_mappings(data, on_progress)
        if is_question(mappings):
            return _question(table, mappings)
    if not is_rendered:
        return _describe(
            load_dataset(
                data,
                chosen.eval_split,
                chosen.seed,
                held_out,
                column_mapping,
                on_progress,
                chosen.file_weights,
            )
        )
    prepared = prepare(data, chosen, held_out, column_mapping, on_progress)
    task = prepared.task_spec.task
    places = num_places_of(find_base(chosen.base_model, chosen.revision).config, task)
    max_length = min(chosen.max_length, places or chosen.max_length)
    width, counts = histogram(prepared.train, max_length)
    return _describe(prepared.data) | {
        "task": task,
        "lengths": asdict(lengths(prepared.train)),
        "max_length": max_length,
        "bin_width": width,
        "histogram": counts,
        "examples": _render(chosen, task, list(prepared.data.train[:num_shown])),
        "not_adapted": prepared.not_adapted,
        "base_notes": prepared.base_notes,
    }


def _describe(data: "TrainingData") -> Json:
    from peft_space.data.row_checks import as_json

    return {
        "source": data.source,
        "rows": data.num_rows,
        "schema": data.column_mapping.schema,
        "column_mapping": data.column_mapping.as_json(),
        "columns": data.columns,
        "notes": data.notes,
        "why": data.column_mapping.why(),
        "task": None,
        "to_train": len(data.train),
        "held_out": len(data.held_out),
        "num_problems": data.num_problems,
        "num_repeated": data.num_repeated,
        "problems": [asdict(problem) for problem in data.problems],
        "findings": as_json(data.findings),
        "labels": data.labels,
        "unused": data.unused,
    }


def _question(table: "Table", mappings: "list[Mapping]") -> Json:
    """The result where the columns can be read in several ways."""
    _, row = next(table.rows(0, 1))
    first_rows = [
        {role: row.get(column) for role, column in one.columns.items()} for one in mappings
    ]
    pairs = zip(mappings, first_rows, strict=True)
    return {
        "source": table.source,
        "rows": table.num_rows,
        "columns": table.columns,
        "notes": table.notes,
        "question": [one.as_json() | {"first_row": first_row} for one, first_row in pairs],
        "problems": [],
        "to_train": 0,
        "held_out": 0,
    }


def _is_small(data: str | list[str]) -> bool:
    """Return True if reading all data takes hardly longer than reading the first rows."""
    paths = [Path(one) for one in ([data] if isinstance(data, str | Path) else data)]
    sizes = [path.stat().st_size if path.is_file() else _SMALL_BYTES for path in paths]
    return sum(sizes) < _SMALL_BYTES


def _report_first_rows(
    data: str | list[str], recipe: Recipe, rows_shown: int, report: Report
) -> None:
    """Report the first rows of a large file while the rest is read. Its problems follow later."""
    from peft_space.data.column_mapping import is_question
    from peft_space.data.dataset import DEMO_DATA
    from peft_space.data.messages import BadRow
    from peft_space.data.restructuring import form_of
    from peft_space.data.row_normalization import normalize_record, pictures_of
    from peft_space.data.schema_detection import detect_schema
    from peft_space.data.table import peek

    if data == DEMO_DATA:
        return
    try:
        columns, rows = peek(data, _NUM_PEEKED)
        if form_of([row for _, row in rows]):  # its first rows are not examples
            return
        mappings = detect_schema("", columns, [row for _, row in rows])
    except UserError:  # reading the whole file raises it again
        return
    if is_question(mappings):
        return
    records = []
    for number, row in rows[:rows_shown]:
        with contextlib.suppress(BadRow):
            records.append(normalize_record(number, row, mappings[0]))
    if records and not any(map(pictures_of, records)):  # those are opened with the whole file
        report({"preview": _render(recipe, _task(recipe, mappings[0].schema, records), records)})


def _parts_text(result: Json, arguments: Json) -> str:
    lines = []
    for menu in result["menus"]:
        lines.append(f"{menu['kind'].capitalize()}:")
        lines += [
            f"  {name}{' (read)' if name == menu['chosen'] else ''}: {data}"
            for name, data in menu["data"].items()
        ]
    return "\n".join(lines) or "The data have one part."


@operation(group="data", text=_parts_text)
def parts(data: DataSource) -> Json:
    """List the sheets, tables, configurations or splits from which the app reads one.

    Returns:
        `menus`: each has a `kind`, the `chosen` part (null if you have to choose), and `data`, an
        object with the name of each part and what you give as data to read it. A file or a dataset
        with one part has no menu, and several files have none.
    """
    from peft_space.data.dataset import DEMO_DATA
    from peft_space.data.sheets_and_splits import find_parts

    items = [data] if isinstance(data, str) else data
    menus = find_parts(items[0]) if len(items) == 1 and items[0] != DEMO_DATA else []
    return {"menus": [asdict(menu) for menu in menus]}


@operation(group="data")
def show_rows(
    data: DataSource,
    numbers: list[int],
    recipe: RecipeChoices = None,
    held_out: HeldOut = None,
    column_mapping: ColumnMapping = None,
) -> Json:
    """Show rows as the app renders them for training.

    Args:
        numbers: the numbers of the rows, from 1.

    Returns:
        `examples`. Rows that cannot be used have their `problem` and their `raw` text.
    """
    from peft_space.data.column_mapping import make_column_mapping
    from peft_space.data.dataset import detect_mappings
    from peft_space.data.messages import BadRow
    from peft_space.data.row_normalization import normalize_record, pictures_of

    chosen = make_recipe(recipe or {})
    table, mappings = detect_mappings(data)
    mapping = mappings[0]
    if column_mapping and column_mapping.get("schema"):
        mapping = make_column_mapping(column_mapping, table.columns)
    remaining, examples, records = set(numbers), {}, []
    for number, row in table.rows():
        if not remaining:
            break
        if number not in remaining:
            continue
        remaining.discard(number)
        try:
            records.append(normalize_record(number, row, mapping))
        except BadRow as problem:
            raw = json.dumps(row, ensure_ascii=False, indent=2)[:_MAX_RAW]
            unusable = {"tokens": [], "cut": 0, "raw": raw, "problem": str(problem)}
            examples[number] = {"row": number, **unusable}
    if any(map(pictures_of, records)):
        records = _with_pictures(table, mapping, [record.row for record in records])
    rendered = _render(chosen, _task(chosen, mapping.schema, records), records) if records else []
    examples |= {example["row"]: example for example in rendered}
    return {"examples": [examples[number] for number in numbers if number in examples]}


def _with_pictures(table: "Table", mapping: "Mapping", numbers: list[int]) -> list[Any]:
    """The rows with these numbers, with the copies of their pictures."""
    from peft_space.data.table_normalization import normalize_table
    from peft_space.runs.events import no_progress

    wanted = set(numbers)
    return [row for row in normalize_table(table, mapping, no_progress).rows if row.row in wanted]


@operation(group="data", internal="The page shows a dataset page by page with it.")
def browse(
    data: DataSource,
    query: str = "",
    offset: int = 0,
    limit: int = 50,
    numbers: list[int] | None = None,
    column_mapping: ColumnMapping = None,
) -> Json:
    """Return rows of a dataset as they were brought, and as the messages that are read from them.

    Args:
        query: only rows in whose cells this text occurs, in any case
        offset: how many matching rows to leave out
        limit: how many rows to return
        numbers: only the rows with these numbers, from 1

    Returns:
        `columns`, the number of rows that match (`matches`), and `rows`: each has its `row` number,
        its `cells`, and the `problem` that makes it unusable, or `messages`: what is read of it,
        each with `role`, `content`, and `reasoning` and `tool_calls` if it has some. Texts, labels
        and tags are messages of such a role.
    """
    from peft_space.data.column_mapping import make_column_mapping
    from peft_space.data.dataset import detect_mappings

    table, mappings = detect_mappings(data)
    mapping = mappings[0]
    if column_mapping and column_mapping.get("schema"):
        mapping = make_column_mapping(column_mapping, table.columns)
    words, rows, matches = query.strip().lower(), [], 0
    chosen = set(numbers) if numbers is not None else None
    for number, row in table.rows():
        if chosen is not None and number not in chosen:
            continue
        cells = [_cell_text(row.get(column)) for column in table.columns]
        if words and not any(words in cell.lower() for cell in cells):
            continue
        if offset <= matches < offset + limit:
            rows.append({"row": number, "cells": [cell[:_MAX_CELL] for cell in cells]})
            rows[-1] |= _as_messages(number, row, mapping)
        matches += 1
    return {"columns": table.columns, "matches": matches, "rows": rows}


def _cell_text(cell: Any) -> str:
    if cell is None:
        return ""
    return cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)


def _as_messages(number: int, row: Json, mapping: "Mapping") -> Json:
    """The messages of a row, or the problem that makes it unusable."""
    from peft_space.data.messages import BadRow
    from peft_space.data.row_normalization import normalize_record

    try:
        record = normalize_record(number, row, mapping)
    except BadRow as problem:
        return {"problem": str(problem)}
    return {"messages": [_message_text(one) for one in _messages_of(record)]}


def _messages_of(record: Any) -> list[Json]:
    """What is read of a row, as messages."""
    from peft_space.data import row_normalization as rows

    match record:
        case rows.Conversation():
            return record.messages
        case rows.Preference():
            sides = {"preferred": record.chosen, "rejected": record.rejected}
            answers = [one | {"role": side} for side, ones in sides.items() for one in ones]
            return [*record.prompt, *answers]
        case rows.UnpairedPreference():
            rating = "preferred" if record.good else "rejected"
            return [*record.messages[:-1], record.messages[-1] | {"role": rating}]
        case rows.TextClassification():
            texts = {"text": record.text, "second text": record.second, "label": record.label}
            return [{"role": role, "content": text} for role, text in texts.items() if text]
        case rows.TokenClassification():
            words = " ".join(record.tokens)
            return [{"role": "text", "content": words}, {"role": "tags", "content": record.tags}]
        case _:
            return [{"role": "text", "content": record.text}]


def _message_text(message: Json) -> Json:
    shown = {"role": str(message.get("role", "")), "content": message.get("content") or ""}
    shown |= {
        "reasoning": message.get("reasoning_content"),
        "tool_calls": message.get("tool_calls"),
    }
    return {name: _cell_text(value)[:_MAX_RAW] for name, value in shown.items() if value}


def _task(recipe: Recipe, schema: Any, rows: list[Any]) -> Task:
    from peft_space.data.row_normalization import pictures_of
    from peft_space.models.architecture import choose_task
    from peft_space.models.resolve import find_base

    config = find_base(recipe.base_model, recipe.revision).config
    return choose_task(recipe, config, schema, any(map(pictures_of, rows)))


def _render(recipe: Recipe, task: Task, rows: list[Any]) -> list[Json]:
    """Rows as the trainer sees them, for a preview."""
    from peft_space.data.tokenization.tokenize import preview
    from peft_space.models.resolve import find_base, load_tokenizer

    base = find_base(recipe.base_model, recipe.revision)
    tokenizer = load_tokenizer(base, recipe, task)
    return preview(
        tokenizer, rows, recipe.max_length, recipe.train_on, task, recipe.reasoning_of_rows
    )


@operation(group="data", internal="The page prepares its worker processes with it.")
def warm() -> Json:
    """Import the modules that a check of data needs, which takes seconds."""
    import peft_space.training.prepare
    from peft_space.models.resolve import find_base, load_tokenizer

    load_tokenizer(find_base(Recipe().base_model))
    return {"warm": peft_space.training.prepare.__name__}
