"""Text and HTML that several tabs show, made from results alone: without gradio."""

import base64
import html
import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft_space.data.readers.hub import is_address
from peft_space.formatting import duration
from peft_space.formatting import escape as escape
from peft_space.recipe import Recipe
from peft_space.runs.run import Run


def table_html(titles: Sequence[str], rows: Sequence[Sequence[str]], css: str = "answers") -> str:
    """Return a table that stacks its cells on a narrow screen.

    Args:
        titles: the column titles, as HTML.
        rows: the cells of each row, as HTML.
        css: class names from `style.css`.
    """
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    lines = "".join(
        "<tr>"
        + "".join(
            f'<td data-title="{title}">{cell}</td>'
            for title, cell in zip(titles, cells, strict=True)
        )
        + "</tr>"
        for cells in rows
    )
    return f'<table class="{css}"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>'


def empty_html(words: str) -> str:
    """Return what a tab shows that has nothing yet."""
    return f'<div class="empty"><p>{html.escape(words)}</p></div>'


def tiles_of(tiles: Sequence[tuple[str, str, str, str]]) -> str:
    """Return figures as tiles.

    Args:
        tiles: title, figure, note and kind of each; the kind is a class of the style sheet.
    """
    cells = "".join(
        f'<div class="tile {kind}"><span>{html.escape(title)}</span> <b>{html.escape(figure)}</b>'
        f"<small>{html.escape(note)}</small></div>"
        for title, figure, note, kind in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def bars_html(title: str, bars: Sequence[tuple[str, int, bool]]) -> str:
    """Return a bar chart of counts.

    Args:
        title: of the chart.
        bars: label, count and whether it stands out, of each bar.
    """
    most = max((count for _, count, _ in bars), default=1)
    lines = "".join(
        f'<tr><th scope="row">{html.escape(label)}</th>'
        f'<td><i style="width:{100 * count / most:.1f}%" class="{"bad" if stands_out else ""}"></i>'
        f"</td><td>{count:,}</td></tr>"
        for label, count, stands_out in bars
    )
    return (
        f'<table class="bars"><caption>{html.escape(title)}</caption><tbody>{lines}</tbody></table>'
    )


def card_markdown(card: str, pictures: dict[str, str]) -> str:
    """Return a model card as the Hub shows it, without its metadata and with HTML escaped.

    Args:
        card: the Markdown.
        pictures: file name -> SVG. They are inlined, because the page cannot request them.
    """
    has_metadata = card.startswith("---\n") and "\n---\n" in card
    text = html.escape(card.split("\n---\n", 1)[1] if has_metadata else card, quote=False)
    for name, svg in pictures.items():
        encoded = base64.b64encode(svg.encode()).decode()
        text = text.replace(f"]({name})", f"](data:image/svg+xml;base64,{encoded})")
    return text


def plain(value: Any) -> str:
    """Return a recipe's value as text."""
    if value is None:
        return "automatic"
    return ", ".join(value) if isinstance(value, list) else str(value)


def about(seconds: float | None) -> str:
    """Return a rough duration as text."""
    if seconds is None:
        return "not known"
    return "under a minute" if seconds < 60 else f"about {duration(seconds)}"


def run_choices(runs: list[Run]) -> list[tuple[str, str]]:
    """Return (label, id) of each run, for a list to choose from."""
    return [(f"{run.name} · {date(run)}", run.directory.name) for run in runs]


def date(run: Run) -> str:
    """Return when a run was created, in this machine's time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.about["created"]))


def commands(
    data: str | list[str], held_out: str, column_mapping: dict[str, Any], recipe: Recipe
) -> tuple[str, str]:
    """Return the page's workflow as command lines and as Python.

    Files appear by name alone: their paths belong to this machine.
    """
    files = [
        _portable(path) for path in ([data or "YOUR_FILE.jsonl"] if isinstance(data, str) else data)
    ]
    held_out = _portable(held_out)
    choices = recipe.model_dump(exclude_defaults=True)
    options = {
        "--recipe": json.dumps(choices),
        "--out": "my-run",
        "--held-out": held_out,
        "--column-mapping": column_mapping and json.dumps(column_mapping, ensure_ascii=False),
    }
    flags = [part for flag, value in options.items() if value for part in (flag, value)]
    steps = (
        "evaluate my-run",
        "compare my-run --prompt 'Hello.'",
        "export my-run --out my-adapter",
        "push my-run --repo OWNER/NAME",
    )
    shell = [shlex.join(["train", *files, *flags]), *steps]
    named = {"held_out": held_out, "column_mapping": column_mapping}
    more = "".join(f", {name}={value!r}" for name, value in named.items() if value)
    source = files[0] if len(files) == 1 else files
    python = f"""\
from peft_space.settings import prepare_libraries

prepare_libraries()  # before torch is imported

from peft_space import operations

run = operations.make_run("my-run", {source!r}, {choices!r}{more})["run"]
operations.train(run)
print(operations.evaluate(run))
print(operations.compare(run, ["Hello."]))
operations.export(run, "my-adapter")
# operations.push(run, "OWNER/NAME")"""
    return "\n".join(f"peft-space {line}" for line in shell), python


def _portable(data: str) -> str:
    """Return how another machine names data: a file by its name, a Hub dataset by its address."""
    return data if is_address(data) else Path(data).name
