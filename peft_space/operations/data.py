"""What is in files, and how a recipe would have it trained."""

import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peft_space.data.quality import as_json
from peft_space.data.table import Data
from peft_space.errors import UserError
from peft_space.operations.progress import Json, Report, progress
from peft_space.recipe import Recipe, Task, make_recipe

_PEEKED = 200
_SMALL_BYTES = 100_000


def check(
    data: Data,
    model: str | None = None,
    recipe: Json | None = None,
    held_out: Data | None = None,
    column_mapping: Json | None = None,
    rows_shown: int = 50,
    report: Report | None = None,
) -> Json:
    """What is in a data file: `rows`, `schema`, `columns`, `problems`, `findings`; with a model or recipe also how its rows are rendered for training.

    Where the columns can be read in several ways and `column_mapping` does not say which, the result has these ways as `question` and nothing rendered.
    While the rest is still being read, `report` gets a `preview` of the first rows.
    """
    from peft_space.data.dataset import detect_mappings, histogram, lengths, load_dataset

    values = dict(recipe or {}) | ({"base_model": model} if model else {})
    wanted = make_recipe(values)
    if not (column_mapping or {}).get("schema"):
        if values and report and not _is_small(data):
            _report_first_rows(data, wanted, rows_shown, report)
        table, plausible = detect_mappings(data, progress(report))
        if len(plausible) > 1:
            told = {
                "source": table.source,
                "rows": table.num_rows,
                "columns": table.columns,
                "notes": table.notes,
            }
            _, row = next(table.rows(0, 1))
            ways = [
                one.as_json()
                | {"first_row": {role: row.get(column) for role, column in one.columns.items()}}
                for one in plausible
            ]
            return told | {"question": ways, "problems": [], "to_train": 0, "held_out": 0}
    from peft_space.training.prepare import prepare

    rendered = prepare(data, wanted, held_out, column_mapping, progress(report)) if values else None
    found = (
        rendered.data
        if rendered
        else load_dataset(
            data, wanted.eval_split, wanted.seed, held_out, column_mapping, progress(report)
        )
    )
    result: Json = {
        "source": found.source,
        "rows": found.num_rows,
        "schema": found.column_mapping.schema,
        "column_mapping": found.column_mapping.as_json(),
        "columns": found.columns,
        "notes": found.notes,
        "why": found.column_mapping.why(),
        "task": rendered.task_spec.task if rendered else None,
        "to_train": len(found.train),
        "held_out": len(found.held_out),
        "num_problems": found.num_problems,
        "num_repeated": found.num_repeated,
        "problems": [asdict(problem) for problem in found.problems],
        "findings": as_json(found.findings),
        "labels": found.labels,
    }
    if rendered:
        result["lengths"] = asdict(lengths(rendered.train))
        result["max_length"] = wanted.max_length
        result["bin_width"], result["histogram"] = histogram(rendered.train, wanted.max_length)
        result["examples"] = _drawn(wanted, rendered.task_spec.task, list(found.train[:rows_shown]))
    return result


def _is_small(data: Data) -> bool:
    """Whether data are read and rendered about as soon as their first rows are."""
    paths = [Path(one) for one in ([data] if isinstance(data, str | Path) else data)]
    return (
        all(path.is_file() for path in paths)
        and sum(path.stat().st_size for path in paths) < _SMALL_BYTES
    )


def _report_first_rows(data: Data, recipe: Recipe, rows_shown: int, report: Report) -> None:
    """Show the first rows of a large file while the rest is read. What is wrong with them is told later, with all the others."""
    from peft_space.data.dataset import DEMO_DATA
    from peft_space.data.records import BadRow, normalize_record
    from peft_space.data.schemas import detect_schema
    from peft_space.data.table import peek

    if data == DEMO_DATA:
        return
    try:
        columns, rows = peek(data, _PEEKED)
        plausible = detect_schema("", columns, [row for _, row in rows])
    except UserError:  # the whole reading, which goes on, says it too
        return
    if len(plausible) > 1:
        return
    understood = []
    for number, row in rows[:rows_shown]:
        with contextlib.suppress(BadRow):
            understood.append(normalize_record(number, row, plausible[0]))
    if understood:
        report({"preview": _drawn(recipe, _task(recipe, plausible[0].schema), understood)})


def show_rows(
    data: Data,
    recipe: Json,
    numbers: list[int],
    held_out: Data | None = None,
    column_mapping: Json | None = None,
) -> Json:
    """The rows of these numbers as `examples`: as they are rendered for training, or, where they are left out, as they stand in the file (`raw`)."""
    from peft_space.data.dataset import detect_mappings
    from peft_space.data.records import BadRow, normalize_record
    from peft_space.data.schemas import make_column_mapping

    wanted = make_recipe(recipe)
    table, plausible = detect_mappings(data)
    chosen = (
        make_column_mapping(column_mapping, table.columns)
        if column_mapping and column_mapping.get("schema")
        else plausible[0]
    )
    left, examples, understood = set(numbers), {}, []
    for number, row in table.rows():
        if number in left:
            left.discard(number)
            try:
                understood.append(normalize_record(number, row, chosen))
            except BadRow as problem:
                raw = json.dumps(row, ensure_ascii=False, indent=2)
                examples[number] = {
                    "row": number,
                    "tokens": [],
                    "cut": 0,
                    "raw": raw[:20_000],
                    "problem": str(problem),
                }
            if not left:
                break
    drawn = _drawn(wanted, _task(wanted, chosen.schema), understood) if understood else []
    examples |= {example["row"]: example for example in drawn}
    return {"examples": [examples[number] for number in numbers if number in examples]}


def _task(recipe: Recipe, schema: Any) -> Task:
    from peft_space.models.architecture import choose_task
    from peft_space.models.resolve import find_base

    return choose_task(recipe, find_base(recipe.base_model, recipe.revision).config, schema)


def _drawn(recipe: Recipe, task: Task, rows: list[Any]) -> list[Json]:
    """Rows as they will be trained, to be shown."""
    from peft_space.data.tokenization.tokenize import preview
    from peft_space.models.resolve import find_base, load_tokenizer

    tokenizer = load_tokenizer(
        find_base(recipe.base_model, recipe.revision), recipe.chat_template, task
    )
    return preview(tokenizer, rows, recipe.max_length, recipe.train_on, task)


def warm() -> Json:
    """Import what a check of data needs; it takes seconds."""
    import peft_space.training.prepare
    from peft_space.models.resolve import find_base, load_tokenizer

    load_tokenizer(find_base(Recipe().base_model))
    return {"warm": peft_space.training.prepare.__name__}
