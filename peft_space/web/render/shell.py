"""HTML of the sidebar and the header, made from runs without gradio."""

import html
from typing import Any

from peft_space.data.dataset import source_of
from peft_space.evaluation.results import read_scores, shown
from peft_space.formatting import escape
from peft_space.runs.run import Run, Status
from peft_space.web.states import ACTIVE, STATUS_WORDS, status_line

MAX_LISTED = 12
"""Runs in the sidebar; the others are in the list of all runs."""
_DOTS: dict[Status, str] = {
    "finished": "ok",
    "stopped": "ok",
    "running": "go",
    "queued": "go",
    "on_job": "go",
    "failed": "bad",
    "interrupted": "bad",
}


def runs_html(runs: list[Run], selected: str, query: str) -> str:
    """Return the buttons of the sidebar: a new fine-tune, the newest runs, and all runs.

    Args:
        runs: those that match `query`, newest first.
        selected: the id of the shown run; empty for the new fine-tune.
        query: what the visitor searched for.
    """
    current = "" if selected else ' aria-current="true"'
    new = f'<button class="new" data-value="new"{current}>New fine-tune</button>'
    lines = [_run_html(run, run.directory.name == selected) for run in runs[:MAX_LISTED]]
    if not runs:
        words = "No run matches." if query else "No runs yet."
        lines = [f'<p class="none">{words}</p>']
    more = f"All runs ({len(runs)})" if runs else "All runs"
    lines.append(f'<button class="all" data-value="all">{more}</button>')
    return f'{new}<nav aria-label="Runs">{"".join(lines)}</nav>'


def _run_html(run: Run, selected: bool) -> str:
    history = run.history()
    status = run.status(history)
    line = status_line(status, progress_of(run, history) if status in ACTIVE else None)
    scores = read_scores(run) if status in ("finished", "stopped") else None
    if scores:
        title, figure = next(iter(shown(scores.adapter).items()))
        line = f"{line} · {figure} {title}"
    current = ' aria-current="true"' if selected else ""
    return (
        f'<button class="run" data-value="{run.directory.name}"{current}>'
        f'<i class="dot {_DOTS.get(status, "")}"></i><span>{html.escape(run.name)}'
        f"<small>{html.escape(line)}</small></span></button>"
    )


def progress_of(run: Run, history: list[Any]) -> list[Any] | None:
    """Return [share, seconds left] of a training; None before its first step."""
    from peft_space.web.render.progress import figures_of

    figures = figures_of(history)
    return [figures.share, figures.seconds_left] if figures else None


def machine_html(words: str) -> str:
    """Return what the machine is."""
    return f'<p class="machine">{html.escape(words)}</p>'


def draft_header_html(source: str, model: str) -> str:
    """Return the header of the new fine-tune."""
    about = [html.escape(part) for part in (source, model) if part]
    return _header("New fine-tune", "", "", about, "PEFT Space", "", "draft")


def run_header_html(run: Run, progress: list[Any] | None) -> str:
    """Return the header of a run: name, status, base model and data."""
    status = run.status()
    line = status_line(status, progress)
    share = f"{100 * progress[0]:.0f} % · " if progress and status in ACTIVE else ""
    name = html.escape(run.name)
    about = [html.escape(run.recipe.base_model), html.escape(source_of(run))]
    title = f"{share}{run.name} – PEFT Space"
    word = STATUS_WORDS[status]
    dot = _DOTS.get(status, "")
    return _header(name, line, dot, about, title, run.directory.name, word)


def _header(
    name: str, line: str, dot: str, about: list[str], title: str, run: str, status: str
) -> str:
    pill = f'<span class="pill {dot}">{html.escape(line)}</span>' if line else ""
    facts = "".join(f"<span>{part}</span>" for part in about if part)
    return (
        f'<div class="header" data-title="{html.escape(title)}" data-run="{run}" '
        f'data-status="{status}"><h1>{name}</h1>{pill}<div class="facts">{facts}</div></div>'
    )


def delete_question(run: Run) -> str:
    """Return the question before a run is deleted."""
    return (
        f"Delete **{escape(run.name)}** with its data, checkpoints and adapter? "
        "This cannot be undone."
    )
