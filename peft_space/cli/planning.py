"""check, advise, estimate, dry-run, study."""

import argparse
import json
import shlex
from typing import Any

from peft_space import operations
from peft_space.cli.given import column_mapping_of, data_of
from peft_space.cli.output import Show
from peft_space.errors import UserError
from peft_space.recipe import make_recipe, read_recipe


def check(given: argparse.Namespace, show: Show) -> None:
    """Say what is in a data file, and what is wrong with which row."""
    found = operations.check(data_of(given), given.model, column_mapping=column_mapping_of(given))
    found.pop("examples", None)
    if "question" in found:
        ways = [
            json.dumps({"schema": way["schema"], "columns": way["columns"]}, ensure_ascii=False)
            for way in found["question"]
        ]
        show(
            found,
            "\n".join(
                [
                    *found["notes"],
                    f"{found['source']}: its columns can be read in several ways. Choose one:",
                    *(f"  --column-mapping '{way}'" for way in ways),
                ]
            ),
        )
        raise UserError("todo", "It is not decided how to read the file.")
    lines = [f"{found['source']}: {found['rows']} rows. {found['why']}", *found["notes"]]
    lines.append(
        f"{found['to_train']} to train, {found['held_out']} to score on{_repeated(found)}."
    )
    if "lengths" in found:
        counted = found["lengths"]
        lines.append(
            f"Tokens a row: median {counted['median']}, longest {counted['longest']}; {counted['num_cut']} rows are cut off at the limit."
        )
    lines += [
        f"{finding['title']}: {finding['count']:,}. {finding['words']}"
        for finding in found["findings"]
    ]
    lines += [f"Row {problem['row']}: {problem['problem']}." for problem in found["problems"]]
    show(found, "\n".join(lines))


def _repeated(found: dict[str, Any]) -> str:
    return (
        f"; {found['num_repeated']} that say the same as another are left out"
        if found["num_repeated"]
        else ""
    )


def advise(given: argparse.Namespace, show: Show) -> None:
    """Say which recipe suits the data, the base model and this machine, and why."""
    found = operations.recommend(
        data_of(given),
        read_recipe(given.recipe).model_dump(),
        given.held_out,
        column_mapping_of(given),
    )
    lines = [
        f"{advice['field']}: {json.dumps(advice['value'])}{'' if advice['changes'] else ' (as it is)'}. {advice['why']} [{advice['source']}]"
        for advice in found["advice"]
    ]
    lines += [
        f"{'Not possible' if line['kind'] == 'stop' else 'Mind'}: {line['words']}"
        for line in found["red_lines"]
    ]
    chosen = json.dumps(make_recipe(found["recipe"]).model_dump(exclude_defaults=True))
    show(
        found,
        "\n".join(
            [
                *lines,
                f"Next: python -m peft_space train {shlex.join(given.data)} --recipe {shlex.quote(chosen)} --out RUN_DIR",
            ]
        ),
    )


def estimate(given: argparse.Namespace, show: Show) -> None:
    """Say roughly what memory and time a training will take, and on which hardware of a Space it would fit."""
    found = operations.estimate(
        data_of(given),
        read_recipe(given.recipe).model_dump(),
        given.held_out,
        column_mapping_of(given),
    )
    spaces = [
        f"{line['name']:14} {'fits' if line['fits'] else 'does not fit'}: {line['need'] / 1e9:,.2f} of {line['memory'] / 1e9:,.0f} GB"
        for line in found["spaces"]
    ]
    show(found, "\n".join([*found["words"], *spaces]))


def dry_run(given: argparse.Namespace, show: Show) -> None:
    """Train four steps for real, and say what memory and time the whole training will take. Nothing of it is kept."""
    found = operations.dry_run(
        data_of(given),
        read_recipe(given.recipe).model_dump(),
        given.held_out,
        column_mapping_of(given),
    )
    show(found, "\n".join(found["words"]))


def study(given: argparse.Namespace, show: Show) -> None:
    """Train a recipe briefly at several ranks, and say which is enough."""
    if not all(rank.strip().isdigit() for rank in given.ranks.split(",")):
        raise UserError("todo", f"--ranks {given.ranks!r} are no ranks. Write them like 2,8,32.")
    ranks = [int(rank) for rank in given.ranks.split(",")]
    found = operations.rank_sweep(
        data_of(given),
        read_recipe(given.recipe).model_dump(),
        ranks,
        given.held_out,
        column_mapping_of(given),
    )
    lines = [
        f"rank {one['rank']:3}: held-out loss {one['loss']:.4f}, {one['trainable_parameters']:,} trainable"
        for one in found["results"]
    ]
    show(
        found,
        "\n".join(
            [
                *lines,
                f"Rank {found['enough']} is enough: its loss after {found['steps']} steps is within 2 %, or 0.01, of the best.",
            ]
        ),
    )
