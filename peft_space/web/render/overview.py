"""What the page shows around its tabs and in several of them, from results alone: without gradio.

What one tab shows is in the module of its name: view_data, view_recipe, view_ranks, view_train, view_compare, view_runs.
"""

import base64
import html
import json
import shlex
import time
from pathlib import Path
from typing import Any

from peft_space.data.readers.hub import is_address
from peft_space.formatting import duration
from peft_space.formatting import escape as escape
from peft_space.recipe import Recipe
from peft_space.runs.run import Run, Status

STATUS_WORDS: dict[Status, str] = {
    "new": "ready to train",
    "queued": "waiting for its turn",
    "on_job": "training on Hugging Face Jobs",
    "running": "training",
    "paused": "paused",
    "stopped": "stopped early",
    "interrupted": "interrupted",
    "finished": "finished",
    "failed": "failed",
}
UNFINISHED: tuple[Status, ...] = (
    "new",
    "queued",
    "on_job",
    "running",
    "paused",
    "interrupted",
    "failed",
)
"""Of these runs the recipe is still what the visitor is busy with."""


def card_markdown(card: str, pictures: dict[str, str]) -> str:
    """A model card as the Hub shows it: what stands between the first two lines of three hyphens is not shown, nor is HTML taken as such.

    `pictures`: the SVG of each by its name in the card. They become part of the text, for they lie nowhere that the page could ask for them.
    """
    text = card.split("\n---\n", 1)[1] if card.startswith("---\n") and "\n---\n" in card else card
    shown = html.escape(text, quote=False)
    for name, svg in pictures.items():
        shown = shown.replace(
            f"]({name})", f"](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"
        )
    return shown


def plain(value: Any) -> str:
    """A value of a recipe, in words."""
    return (
        "automatic"
        if value is None
        else ", ".join(value)
        if isinstance(value, list)
        else str(value)
    )


def about(seconds: float | None) -> str:
    """A rough estimate in words."""
    return (
        "not known"
        if seconds is None
        else "under a minute"
        if seconds < 60
        else f"about {duration(seconds)}"
    )


def run_choices(runs: list[Run]) -> list[tuple[str, str]]:
    """(label, id) of each run, for a list to choose from."""
    return [(f"{run.name} · {date(run)}", run.directory.name) for run in runs]


def date(run: Run) -> str:
    """When a run was made, in the time of this machine."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.about["created"]))


def guide(
    fresh: bool, num_rows: int, status: Status | None, has_adapter: bool
) -> tuple[list[str], str]:
    """The marks of the five steps (done, next, busy, blocked), and one sentence that says what to do next.

    Args:
        fresh: whether there are data that no training was started with.
        num_rows: rows of them that can be trained on, 0 while they are read, doubtful or refused.
        status: of the chosen run, None where there is none.
    """
    after = "→" if has_adapter else "○"
    if status in ("queued", "on_job", "running"):
        return [
            "✓",
            "✓",
            "●",
            "○",
            "○",
        ], "The training runs. Watch it on **Train**; **Compare** opens when it is finished."
    if fresh and num_rows:
        words = "Data and recipe are ready: press *Start training* on **Train**."
        return [
            "✓",
            "✓",
            "→",
            after,
            after,
        ], words if has_adapter else f"{words} Compare and Publish need its adapter."
    if fresh:
        return [
            "→",
            "✓",
            "○",
            after,
            after,
        ], "Your data are not ready yet: **Data** says what they need."
    if has_adapter:
        words = "The adapter is there: see on **Compare** what it learnt, take it with you on **Publish**, or start another on **Data**."
        return ["✓", "✓", "✓", "→", "→"], words
    if status in ("paused", "interrupted", "failed"):
        return (
            ["✓", "✓", "→", "○", "○"],
            "The run has not finished: press *Resume* on **Train**. Compare and Publish need its adapter.",
        )
    return (
        ["→", "✓", "○", "○", "○"],
        "Bring your data, or try the demo. Training needs data; Compare and Publish need a trained adapter.",
    )


def commands(
    data: Any, held_out: str, column_mapping: dict[str, Any], recipe: Recipe
) -> tuple[str, str]:
    """The journey that the page is about to do, as command lines and as Python. Of files the names alone: where they are is another's machine."""
    chosen = recipe.model_dump(exclude_defaults=True)
    files = [
        _elsewhere(path)
        for path in ([data or "YOUR_FILE.jsonl"] if isinstance(data, str) else data)
    ]
    held_out = _elsewhere(held_out)
    line = f"python -m peft_space train {shlex.join(files)} --recipe {shlex.quote(json.dumps(chosen))} --out my-run"
    line += f" --held-out {shlex.quote(held_out)}" if held_out else ""
    line += (
        f" --column-mapping {shlex.quote(json.dumps(column_mapping, ensure_ascii=False))}"
        if column_mapping
        else ""
    )
    more = (f", held_out={held_out!r}" if held_out else "") + (
        f", column_mapping={column_mapping!r}" if column_mapping else ""
    )
    shell = [
        line,
        *(
            f"python -m peft_space {verb} my-run"
            for verb in (
                "evaluate",
                "compare --prompt 'Hello.'",
                "export --out my-adapter",
                "push --repo OWNER/NAME",
            )
        ),
    ]
    python = f"""\
from peft_space.settings import prepare_libraries

prepare_libraries()  # before torch is imported

from peft_space import verbs

run = verbs.make("my-run", {(files[0] if len(files) == 1 else files)!r}, {chosen!r}{more})["run"]
verbs.train(run)
print(verbs.evaluate(run))
print(verbs.compare(run, ["Hello."]))
verbs.export(run, "my-adapter")
# verbs.push(run, "OWNER/NAME")"""
    return "\n".join(shell), python


def _elsewhere(data: str) -> str:
    """How data are named on another machine: a file by its name alone, a dataset on the Hub as here."""
    return data if is_address(data) else Path(data).name
