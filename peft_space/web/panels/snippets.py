"""The page's workflow as commands and as Python."""

from typing import Any

import gradio as gr

from peft_space.data.dataset import DEMO_DATA, source_of
from peft_space.runs.run import Run
from peft_space.web.components import show_errors
from peft_space.web.context import HIDDEN, PageContext, Values
from peft_space.web.render import data as render_data
from peft_space.web.render import overview as render_overview


def build(page: PageContext) -> None:
    """Place and wire the panel."""
    with gr.Accordion(
        "Use from the command line or Python", open=False, elem_id="snippets"
    ) as accordion:
        shell = gr.Code(
            language="shell", label="Command line", interactive=False, elem_id="as-commands"
        )
        python = gr.Code(language="python", label="Python", interactive=False, elem_id="as-python")

    @show_errors
    def write(values: Values) -> list[str]:
        if values[page.run]:
            run = page.selected_run(values)
            return list(render_overview.commands(_data_of(run), "", {}, run.recipe))
        data, held_out, mapping = (
            values[state] for state in (page.data, page.held_out, page.column_mapping)
        )
        recipe = page.recipe(values, no_model="demo")
        return list(render_overview.commands(data, held_out, mapping, recipe))

    @show_errors
    def rewrite(values: Values) -> list[Any]:
        if values[page.recipe_state]["problems"]:
            return [gr.skip(), gr.skip()]
        return write(values)

    accordion.expand(write, page.training_inputs, [shell, python], **HIDDEN)
    changes = [page.recipe_state.change, page.data.change, page.column_mapping.change]
    gr.on(changes, rewrite, page.training_inputs, [shell, python], **HIDDEN)
    page.run.change(lambda: gr.update(open=False), None, accordion, **HIDDEN)


def _data_of(run: Run) -> str:
    is_demo = source_of(run) == "train.jsonl" and render_data.run_rows(run) == (300, 60)
    return DEMO_DATA if is_demo else source_of(run)
