"""Joins the selected run's adapter with others on its base, in All runs."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from peft_space.errors import UserError
from peft_space.evaluation.extra_adapters import comparable_adapters
from peft_space.runs import quotas
from peft_space.runs.run import Run
from peft_space.runs.store import list_runs, open_run
from peft_space.web.components import Operation, show_errors
from peft_space.web.context import HIDDEN, Inputs, PageContext, Updates, Values
from peft_space.web.render.overview import run_choices

_METHODS = [
    ("Add the updates (linear)", "linear"),
    ("TIES", "ties"),
    ("DARE", "dare"),
    ("DARE with TIES", "dare_ties"),
]


def build_merge_adapters(page: PageContext) -> None:
    """Place and wire the panel; the new run becomes the selected one."""
    with gr.Accordion("Join adapters", open=False, elem_id="join-panel"):
        gr.Markdown("Joins the selected run's adapter with others on its base, as a new run.")
        with gr.Row():
            others = gr.Dropdown([], multiselect=True, label="With", elem_id="join-with")
            method = gr.Dropdown(_METHODS, value="linear", label="Method", elem_id="join-method")
            weights = gr.Textbox(
                label="Weights",
                placeholder="0.5, 0.5",
                info="One for each, the selected run's first. Empty: equal",
                elem_id="join-weights",
            )
            density = gr.Slider(0.05, 1, 0.5, label="Density (TIES, DARE)", elem_id="join-density")
        button = gr.Button("Join", elem_id="join-adapters")
        progress = gr.Markdown(elem_id="join-progress")
    operation = Operation(page, progress)

    @show_errors
    def offer(values: Values) -> Any:
        run = page.selected_run(values) if values[page.run] else None
        if run is None or not run.path("adapter", "adapter_config.json").is_file():
            return gr.update(choices=[], value=[])
        found = comparable_adapters(run, list_runs(*page.owners(values)))
        choices = [(name, name) for name in found if isinstance(name, str)]
        choices += run_choices([one for one in found if isinstance(one, Run)])
        return gr.update(choices=choices, value=[])

    def join(values: Values) -> Iterator[Updates]:
        run, owners = page.selected_run(values), page.owners(values)
        chosen = [
            name if name.startswith("checkpoint-") else str(open_run(owners, name).directory)
            for name in values[others] or []
        ]
        folder = quotas.new_run(page.owner(values))

        def show(result: dict[str, Any]) -> Updates:
            return {
                progress: f"✓ {result['notes'][0]}",
                page.run: folder.name,
            }

        yield operation.begin("Joining…")
        yield from operation.stream(
            "merge_adapters",
            show,
            run=str(run.directory),
            directory=str(folder),
            adapters=chosen,
            weights=_numbers(values[weights]),
            method=values[method],
            density=values[density],
        )

    changes = [page.runs_opened.change, page.run.change, page.run_state.change]
    gr.on(changes, offer, page.selection, others, **HIDDEN)
    inputs: Inputs = {*page.selection, others, method, weights, density}
    operation.on_click(button, join, inputs, [page.run])


def _numbers(text: str | None) -> list[float] | None:
    """The numbers in a text, separated by commas."""
    try:
        return [float(part) for part in (text or "").replace(";", ",").split(",") if part.strip()]
    except ValueError:
        raise UserError(
            "training.adapters_not_joined",
            f"The weights {str(text)[:60]!r} are not numbers. Write them like 0.5, 0.5.",
        ) from None
