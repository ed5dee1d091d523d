"""The Recipe tab: the form, which layers it wraps, and the recipe as JSON."""

from typing import Any

import gradio as gr

from peft_space.ui import view
from peft_space.ui.form import GROUPS
from peft_space.ui.page import Page, tells_errors


def build(page: Page) -> None:
    """Place and wire the tab."""
    gr.Markdown("The defaults are a good start for most tasks; go on to **Train**, or change what you have a reason to change.")
    for group, title in GROUPS.items():
        with gr.Accordion(title, open=group in ("model", "adapter")):
            page.form.place(group)
    with gr.Row():
        show_layers = gr.Button("Show which layers get an adapter", elem_id="show-layers")
        show_json = gr.Button("Show the recipe as JSON", elem_id="show-json")
    layers = gr.Markdown(elem_id="layers")
    as_json = gr.Code(language="json", label="recipe.json", visible=False, elem_id="recipe-json")

    @tells_errors
    def look(values: dict[Any, Any]) -> str:
        return view.layers_markdown(page.workers.call("layers", recipe=page.form.recipe(values).model_dump()))

    @tells_errors
    def write(values: dict[Any, Any]) -> Any:
        return gr.update(value=page.form.recipe(values).model_dump_json(indent=2), visible=True)

    show_layers.click(look, page.form.inputs, layers, api_visibility="private")
    show_json.click(write, page.form.inputs, as_json, api_visibility="private")
