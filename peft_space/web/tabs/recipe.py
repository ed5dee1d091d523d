"""The Recipe tab: the form, which layers it wraps and what that trains, and recipes in and out as JSON."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from peft_space.errors import UserError
from peft_space.recipe import make_recipe, read_recipe
from peft_space.web.context import PRIVATE, PageContext, cpu_notice, reset_on_failure, show_errors
from peft_space.web.panels import estimates as estimates_panel
from peft_space.web.panels import ranks as ranks_panel
from peft_space.web.recipe_form import GROUPS
from peft_space.web.render import recipe as render_recipe


def build(page: PageContext) -> None:
    """Place and wire the tab."""
    gr.Markdown(
        "The defaults are a good start for most tasks. Let your data say what suits them better, or change what you have a reason to change."
    )
    _build_advice(page)
    for group, title in GROUPS.items():
        with gr.Accordion(title, open=group == "model"), gr.Row(equal_height=True):
            page.form.place(group)
    show_layers = gr.Button("Show which layers get an adapter", elem_id="show-layers")
    layers = gr.Markdown(elem_id="layers")
    estimates_panel.build(page)
    ranks_panel.build_study(page)
    with gr.Accordion("The recipe as a file", open=False):
        with gr.Row():
            show_json = gr.Button("Show it as JSON, to copy or download", elem_id="show-json")
            upload = gr.UploadButton(
                "Load a recipe.json", file_types=[".json"], elem_id="load-recipe"
            )
        as_json = gr.Code(
            language="json", label="recipe.json", visible=False, elem_id="recipe-json"
        )

    @show_errors
    def look(values: dict[Any, Any]) -> str:
        recipe = page.form.recipe(values).model_dump()
        task = values[page.task] if recipe["task"] == "automatic" else recipe["task"]
        return render_recipe.layers_markdown(
            page.workers.call("layers", recipe=recipe | {"task": task})
        )

    @show_errors
    def write(values: dict[Any, Any]) -> Any:
        return gr.update(value=page.form.recipe(values).model_dump_json(indent=2), visible=True)

    @show_errors
    def load(path: str) -> dict[Any, Any]:
        return page.form.values(read_recipe(path))

    show_layers.click(look, {page.task, *page.form.inputs}, layers, **PRIVATE)
    show_json.click(write, page.form.inputs, as_json, **PRIVATE)
    upload.upload(load, upload, list(page.form.widgets.values()), **PRIVATE)


def _build_advice(page: PageContext) -> None:
    """Place and wire what suits the data, the model and this machine."""
    with gr.Row():
        recommend = gr.Button(
            "Recommend a recipe for my data", variant="primary", elem_id="recommend"
        )
        take = gr.Button("Use what is recommended", visible=False, elem_id="take-advice")
        cancel = gr.Button("Cancel", visible=False, elem_id="cancel-advice")
    cpu_notice(
        "A recommendation is worked out",
        "seconds: a base model is asked about your rows only up to 300 million parameters",
    )
    advising = gr.Markdown(elem_id="advising")
    table = gr.HTML(visible=False, elem_id="advice")
    advised = gr.State({})
    ready = {recommend: gr.update(interactive=True), cancel: gr.update(visible=False)}

    def advise(values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        if not values[page.data]:
            raise UserError(
                "todo",
                "There is no data yet. Bring a file, or use the sample data, on the Data tab.",
            )
        yield {
            advising: "Looking at data and model…",
            recommend: gr.update(interactive=False),
            cancel: gr.update(visible=True),
        }
        recipe = page.form.recipe(values).model_dump()
        yield from page.working(
            advising,
            lambda found: show(found) | ready,
            "recommend",
            recipe=recipe,
            **page.data_arguments(values),
        )

    def show(found: dict[str, Any]) -> dict[Any, Any]:
        changes = sum(one["changes"] for one in found["advice"])
        said = (
            f"{changes} of your choices would be others."
            if changes
            else "✓ Your recipe is what is recommended."
        )
        return {
            advising: "\n\n".join(
                filter(None, [said, render_recipe.red_lines_markdown(found["red_lines"])])
            ),
            table: gr.update(value=render_recipe.advice_html(found), visible=True),
            take: gr.update(visible=bool(changes), variant="primary"),
            advised: found["recipe"],
        }

    @show_errors
    def use(recipe: dict[str, Any]) -> dict[Any, Any]:
        shown = page.form.values(make_recipe(recipe))
        return {
            **shown,
            advising: "✓ The form below shows what is recommended.",
            take: gr.update(visible=False),
        }

    hidden: dict[str, Any] = {"show_progress": "hidden", **PRIVATE}
    told = [advising, table, take, advised, recommend, cancel]
    working = recommend.click(
        show_errors(advise, where=advising),
        {page.data, page.held_out, page.column_mapping, *page.form.inputs},
        told,
        **hidden,
    )
    reset_on_failure(working, ready)
    cancel.click(
        lambda: {advising: "", **ready},
        None,
        [advising, recommend, cancel],
        cancels=working,
        **hidden,
    )
    take.click(use, advised, [*page.form.widgets.values(), advising, take], **hidden)
    page.data.change(
        lambda: {advising: "", table: gr.update(visible=False), take: gr.update(visible=False)},
        None,
        [advising, table, take],
        **hidden,
    )
