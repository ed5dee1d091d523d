"""The Recipe tab: the form, which layers it wraps and what that trains, and recipes in and out as JSON."""

from typing import Any

import gradio as gr

from peft_space.recipe import read_recipe
from peft_space.ui import view
from peft_space.ui.form import GROUPS
from peft_space.ui.page import PRIVATE, Page, tells_errors


def build(page: Page) -> None:
    """Place and wire the tab."""
    gr.Markdown("The defaults are a good start for most tasks; change what you have a reason to change.")
    for group, title in GROUPS.items():
        with gr.Accordion(title, open=group == "model"), gr.Row(equal_height=True):
            page.form.place(group)
    show_layers = gr.Button("Show which layers get an adapter", elem_id="show-layers")
    layers = gr.Markdown(elem_id="layers")
    with gr.Accordion("The recipe as a file", open=False):
        with gr.Row():
            show_json = gr.Button("Show it as JSON, to copy or download", elem_id="show-json")
            upload = gr.UploadButton("Load a recipe.json", file_types=[".json"], elem_id="load-recipe")
        as_json = gr.Code(language="json", label="recipe.json", visible=False, elem_id="recipe-json")

    @tells_errors
    def look(values: dict[Any, Any]) -> str:
        return view.layers_markdown(page.workers.call("layers", recipe=page.form.recipe(values).model_dump()))

    @tells_errors
    def write(values: dict[Any, Any]) -> Any:
        return gr.update(value=page.form.recipe(values).model_dump_json(indent=2), visible=True)

    @tells_errors
    def load(path: str) -> dict[Any, Any]:
        return page.form.values(read_recipe(path))

    show_layers.click(look, page.form.inputs, layers, **PRIVATE)
    show_json.click(write, page.form.inputs, as_json, **PRIVATE)
    upload.upload(load, upload, list(page.form.widgets.values()), **PRIVATE)
