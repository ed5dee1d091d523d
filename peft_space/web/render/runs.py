"""What the Runs tab shows, from results alone: without gradio."""

import pandas as pd

from peft_space.data.dataset import source_of
from peft_space.evaluation.results import Evaluation, shown
from peft_space.recipe import Recipe
from peft_space.runs.run import Run
from peft_space.web.render.overview import STATUS_WORDS, date, plain


def runs_table(runs: list[Run], scores: dict[str, Evaluation | None]) -> pd.DataFrame:
    """One line a run: name, base, data, state, exact match of the adapter, date, size."""
    columns = ["name", "base", "data", "state", "score", "made", "size"]
    lines = []
    for run in runs:
        score = scores[run.directory.name]
        told = " ".join(reversed(next(iter(shown(score.adapter).items())))) if score else ""
        lines.append(
            [
                run.name,
                run.recipe.base_model,
                source_of(run),
                STATUS_WORDS[run.status()],
                told,
                date(run),
                f"{run.size() / 1e6:.1f} MB",
            ]
        )
    return pd.DataFrame(lines, columns=columns)


def recipe_differences(one: Run, other: Run) -> pd.DataFrame:
    """The fields in which two recipes differ, line by line."""
    left, right = one.recipe.model_dump(), other.recipe.model_dump()
    lines = [
        [Recipe.model_fields[name].title, plain(left[name]), plain(right[name])]
        for name in left
        if left[name] != right[name]
    ]
    return pd.DataFrame(
        lines or [["no difference", "", ""]],
        columns=["choice", one.name, other.name if other.name != one.name else f"{other.name} (2)"],
    )
