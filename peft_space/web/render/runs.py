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


def differences(runs: list[Run]) -> pd.DataFrame:
    """Return one line per run: its results, and the settings in which the recipes differ."""
    recipes = [run.recipe.model_dump() for run in runs]
    differing = [
        name for name in recipes[0] if any(one[name] != recipes[0][name] for one in recipes)
    ]
    lines = []
    for run, name, recipe in zip(runs, _names(runs), recipes, strict=True):
        figures = figures_of(run.history())
        loss = figures.test_loss if figures else None
        lines.append(
            {
                "Run": name,
                **{str(Recipe.model_fields[one].title): plain(recipe[one]) for one in differing},
                "Score": score_of(run) or "–",
                "Test loss": "–" if loss is None else f"{loss:.4f}",
                "Time": duration(figures.elapsed) if figures else "–",
                "Data": source_of(run),
            }
        )
    return pd.DataFrame(lines)


def _names(runs: list[Run]) -> list[str]:
    """The names of the runs, with numbers where two are equal."""
    names: list[str] = []
    for run in runs:
        same = sum(one.name == run.name for one in runs[: len(names)])
        names.append(f"{run.name} ({same + 1})" if same else run.name)
    return names


def curves_table(runs: list[Run]) -> tuple[str, pd.DataFrame]:
    """Return what the curves of runs show, and the curves in long form: step, loss and run.

    They are of the test loss if every run has at least two evaluations, or else of training.
    """
    histories = [run.history() for run in runs]
    of_tests = all(len(evaluations_of(history)) > 1 for history in histories)
    points = [
        (event.step, event.loss, name)
        for history, name in zip(histories, _names(runs), strict=True)
        for event in (evaluations_of(history) if of_tests else steps_of(history))
    ]
    table = pd.DataFrame(points, columns=["step", "loss", "run"])
    return "Test loss" if of_tests else "Training loss", table
