"""Tools of the Recipe tab: adapted layers, measured memory and time, and recipes as JSON files."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from peft_space.recipe import read_recipe
from peft_space.web.components import Operation, cancel_button, show_errors
from peft_space.web.context import EDIT, HIDDEN, PRIVATE, PageContext, Updates, Values
from peft_space.web.render import recipe as render_recipe

_SOURCES = (
    "10 % of memory is reserved. Sizes: Hub documentation, 2026. Times are lower bounds from the "
    "peak speeds in NVIDIA's data sheets; small models are far slower than that."
)


def build_layers() -> gr.Markdown:
    """Place the list of adapted layers, which the tab fills together with its summary."""
    with gr.Accordion("Adapted layers", open=False, elem_id="layers-panel"):
        return gr.Markdown(elem_id="layers")


def build_measurement(page: PageContext) -> None:
    """Place and wire the measurement of a few steps."""
    with gr.Accordion("Memory and time", open=False, elem_id="memory-and-time"):
        gr.Markdown(
            "*Estimate*: instant, rough. *Measure*: runs four real training steps, the last with "
            "your longest rows; nothing is saved."
        )
        with gr.Row():
            estimate = gr.Button("Estimate memory and time", size="md", elem_id="estimate")
            measure = gr.Button("Measure a few steps", size="md", elem_id="dry-run")
            cancel = cancel_button("cancel-estimates")
        progress = gr.Markdown(elem_id="estimates")
        with gr.Accordion("Would it fit on a Space?", open=False, visible=False) as on_spaces:
            spaces = gr.HTML(elem_id="on-spaces")
            gr.Markdown(_SOURCES)
    operation = Operation(page, progress, [estimate, measure], cancel)

    def show(result: dict[str, Any]) -> Updates:
        hardware = result.get("estimates", result)["spaces"]
        return {
            progress: render_recipe.words_markdown(result["words"]),
            page.measured_seconds: result.get("seconds"),
            spaces: render_recipe.spaces_html(hardware),
            on_spaces: gr.update(visible=bool(hardware)),
        }

    def handler(name: str) -> Any:
        def run(values: Values) -> Iterator[Updates]:
            arguments = page.data_arguments(values)
            yield operation.begin()
            yield from operation.stream(name, show, **arguments)

        return run

    outputs = [page.measured_seconds, spaces, on_spaces]
    events = [
        operation.on_click(button, handler(name), page.data_inputs, outputs)
        for button, name in ((estimate, "estimate"), (measure, "dry_run"))
    ]
    operation.cancel_events(events)
    cleared = {progress: "", page.measured_seconds: None, on_spaces: gr.update(visible=False)}
    page.data.change(lambda: cleared, None, list(cleared), **HIDDEN)


def build_file(page: PageContext) -> None:
    """Place and wire recipes as JSON files."""
    with gr.Accordion("Recipe as a file", open=False, elem_id="recipe-file"):
        with gr.Row():
            show = gr.Button("View as JSON", size="md", elem_id="show-json")
            upload = gr.UploadButton(
                "Load a recipe.json", file_types=[".json"], size="md", elem_id="load-recipe"
            )
        as_json = gr.Code(
            language="json",
            label="recipe.json",
            visible=False,
            max_lines=20,
            elem_id="recipe-json",
        )

    @show_errors
    def show_json(values: Values) -> Any:
        return gr.update(value=page.recipe(values).model_dump_json(indent=2), visible=True)

    @show_errors
    def load(values: Values) -> Updates:
        return page.edit_recipe(values, dict(read_recipe(values[upload])))

    show.click(show_json, {page.recipe_state}, as_json, **PRIVATE)
    upload.upload(load, {upload, page.recipe_state}, page.recipe_outputs, **EDIT)
