"""A grid of recipes on the Train tab: one click queues a training per rank and learning rate."""

import itertools
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from peft_space import settings
from peft_space.errors import UserError, user_message
from peft_space.recipe import make_recipe
from peft_space.runs import quotas
from peft_space.runs.run import Run
from peft_space.runs.store import unique_name
from peft_space.runtime.supervisor import start_training
from peft_space.web.components import Operation, cancel_button
from peft_space.web.context import HIDDEN, Inputs, PageContext, Updates, Values
from peft_space.web.render.overview import escape

MAX_RUNS = 16


class Grid:
    """The panel's components and handlers."""

    def __init__(self, page: PageContext):
        self.page = page
        gr.Markdown(
            "Trains the recipe once for each rank and learning rate, one after the other. Then "
            "compare the runs in one chart."
        )
        with gr.Row():
            self.ranks = gr.Textbox("8, 32", label="LoRA ranks", elem_id="grid-ranks")
            self.rates = gr.Textbox(
                "",
                label="Learning rates",
                placeholder="1e-4, 2e-4",
                info="Empty: the recipe's.",
                elem_id="grid-rates",
            )
        with gr.Row():
            self.start = gr.Button("Queue these trainings", size="md", elem_id="queue-grid")
            self.cancel = cancel_button("cancel-grid")
            self.compare = gr.Button(
                "Compare these runs", size="md", visible=False, elem_id="compare-grid"
            )
        self.progress = gr.Markdown(elem_id="grid-progress")
        self.operation = Operation(page, self.progress, [self.start], self.cancel)
        self.made = gr.State([])
        """The ids of the runs that were queued last."""

    def queue(self, values: Values) -> Iterator[Updates]:
        """Make and start a run for each point. Those that were started stay if a later one fails.

        Raises:
            UserError: a value is wrong, or there are too many.
        """
        page, arguments = self.page, self.page.data_arguments(values, exclude_defaults=True)
        points = grid_points(values[self.ranks], values[self.rates])
        base = {"base_model": values[page.recipe_state]["model"], **arguments["recipe"]}
        recipes = [base | point for point in points]
        for recipe in recipes:
            make_recipe(recipe)
        yield self.operation.begin(f"Preparing {len(recipes)} trainings…")
        owner, made = page.owner(values), list[str]()
        for recipe, point in zip(recipes, points, strict=True):
            folder = quotas.new_run(owner)
            request = {**arguments, "recipe": recipe, "directory": str(folder)}
            try:
                for message in page.workers.stream("make_run", **request):
                    yield self.operation.report(message.get("report") or {})
                run = Run(folder)
                name = f"{_words(point)} · {run.name}" if point else run.name
                run.rename(unique_name(owner, name[:100], but=run))
                start_training(run)
            except UserError as error:
                yield self._done(made, len(recipes), user_message(error))
                return
            made.append(folder.name)
            yield {
                self.progress: f"{len(made)} of {len(recipes)} trainings are queued…",
                self.made: list(made),
                page.runs_changed: time.time(),
            }
        yield self._done(made, len(recipes))

    def _done(self, made: list[str], total: int, problem: str = "") -> Updates:
        words = f"{len(made)} of {total} trainings are queued."
        if problem:
            words = f"⚠ {escape(problem)} {words}"
        return {
            **self.operation.ready,
            self.progress: words,
            self.made: made,
            self.compare: gr.update(visible=len(made) > 1),
        }


def build(page: PageContext) -> None:
    """Place and wire the panel; on ZeroGPU, where a training needs an open page, there is none."""
    if settings.on_zerogpu():
        return
    with gr.Accordion("Try several recipes", open=False, elem_id="grid-panel"):
        grid = Grid(page)
    inputs: Inputs = {*page.training_inputs, grid.ranks, grid.rates}
    outputs = [grid.made, grid.compare, page.runs_changed]
    queueing = grid.operation.on_click(grid.start, grid.queue, inputs, outputs)
    words = "Canceled. The trainings that are queued stay queued."
    grid.operation.cancel_events([queueing], words)

    def compare(made: list[str]) -> list[Any]:
        return [made, time.time()]

    grid.compare.click(compare, grid.made, [page.to_compare, page.runs_opened], **HIDDEN)


def grid_points(ranks: str, rates: str) -> list[dict[str, Any]]:
    """Return the fields of the recipe at each point of the grid.

    Args:
        ranks: numbers with commas between them; empty for the recipe's own.
        rates: learning rates, likewise.

    Raises:
        UserError: something is not a number, or there are too many points.
    """
    axes = [
        [{"lora_rank": int(rank) if rank.is_integer() else rank} for rank in _numbers(ranks)],
        [{"learning_rate": rate} for rate in _numbers(rates)],
    ]
    points = [
        {name: value for one in point for name, value in one.items()}
        for point in itertools.product(*(axis or [{}] for axis in axes))
    ]
    if len(points) > MAX_RUNS:
        raise UserError(
            "web.grid_too_large",
            f"These are {len(points)} trainings, and the limit is {MAX_RUNS}. Remove values.",
        )
    return points


def _numbers(text: str) -> list[float]:
    """The different numbers in a text, in order."""
    parts = [part.strip() for part in (text or "").replace(";", ",").split(",") if part.strip()]
    try:
        return list(dict.fromkeys(map(float, parts)))
    except ValueError:
        raise UserError(
            "web.not_numbers", f"{text[:60]!r} are not numbers. Write them like 8, 16, 32."
        ) from None


def _words(point: dict[str, Any]) -> str:
    names = {"lora_rank": "rank", "learning_rate": "rate"}
    return ", ".join(f"{names[field]} {value:g}" for field, value in point.items())
