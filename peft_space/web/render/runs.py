"""Tables of runs, made without gradio."""

import pandas as pd

from peft_space.data.dataset import source_of
from peft_space.evaluation.results import read_scores, shown
from peft_space.formatting import duration
from peft_space.recipe import Recipe
from peft_space.runs.events import evaluations_of, steps_of
from peft_space.runs.run import Run
from peft_space.web.render.overview import date, plain
from peft_space.web.render.progress import figures_of
from peft_space.web.states import STATUS_WORDS


def runs_table(runs: list[Run]) -> pd.DataFrame:
    """Return one line per run, in the order of `runs`."""
    lines = []
    for run in runs:
        history = run.history()
        figures = figures_of(history)
        lines.append(
            [
                run.name,
                STATUS_WORDS[run.status(history)],
                run.recipe.base_model,
                source_of(run),
                score_of(run),
                f"{figures.test_loss:.4f}" if figures and figures.test_loss is not None else "",
                duration(figures.elapsed) if figures else "",
                f"{run.size() / 1e6:.1f} MB",
                date(run),
            ]
        )
    columns = ["Name", "Status", "Base model", "Data", "Score"]
    columns += ["Test loss", "Time", "Size", "Created"]
    return pd.DataFrame(lines, columns=columns)


def score_of(run: Run) -> str:
    """Return the main score of a run's adapter; empty if it was not evaluated."""
    evaluation = read_scores(run)
    if evaluation is None:
        return ""
    title, value = next(iter(shown(evaluation.adapter).items()))
    return f"{value} {title}"


def differences(run: Run, other: Run) -> pd.DataFrame:
    """Return the results of two runs, and the settings in which their recipes differ."""
    figures = [figures_of(one.history()) for one in (run, other)]
    losses = [
        f"{one.test_loss:.4f}" if one and one.test_loss is not None else "–" for one in figures
    ]
    times = [duration(one.elapsed) if one else "–" for one in figures]
    lines = [
        ["Score", score_of(run) or "–", score_of(other) or "–"],
        ["Test loss", *losses],
        ["Time", *times],
        ["Data", source_of(run), source_of(other)],
    ]
    left, right = run.recipe.model_dump(), other.recipe.model_dump()
    lines += [
        [str(Recipe.model_fields[name].title), plain(left[name]), plain(right[name])]
        for name in left
        if left[name] != right[name]
    ]
    return pd.DataFrame(lines, columns=["", *_names(run, other)])


def _names(run: Run, other: Run) -> list[str]:
    return [run.name, other.name if other.name != run.name else f"{other.name} (2)"]


def curves_table(run: Run, other: Run) -> pd.DataFrame:
    """Return the loss curves of two runs in long form: step, loss and run."""
    points = []
    for one, name in zip((run, other), _names(run, other), strict=True):
        history = one.history()
        events = evaluations_of(history) or steps_of(history)
        points += [(event.step, event.loss, name) for event in events]
    return pd.DataFrame(points, columns=["step", "loss", "run"])
