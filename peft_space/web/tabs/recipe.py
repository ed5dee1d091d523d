"""The Recipe tab: a recommendation, the form, the adapted layers, and recipes as JSON files."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from peft_space.recipe import make_recipe, read_recipe
from peft_space.web.components import Operation, cancel_button, cpu_notice, show_errors
from peft_space.web.context import HIDDEN, PRIVATE, PageContext, Updates, Values
from peft_space.web.panels import estimates as estimates_panel
from peft_space.web.panels import ranks as ranks_panel
from peft_space.web.recipe_form import GROUPS
from peft_space.web.render import recipe as render_recipe


def build(page: PageContext) -> None:
    """Place and wire the tab."""
    gr.Markdown(
        "The defaults work for most tasks. "
        "Get a recommendation for your data, or adjust settings yourself."
    )
    _build_recommendation(page)
    for group, title in GROUPS.items():
        is_open = group == "model"
        with gr.Accordion(title, open=is_open, elem_id=f"group-{group}"), gr.Row(equal_height=True):
            page.form.place(group)
    _build_layers(page)
    estimates_panel.build(page)
    ranks_panel.build_rank_sweep(page)
    _build_file(page)


def _build_recommendation(page: PageContext) -> None:
    with gr.Row():
        recommend = gr.Button("Recommend settings", variant="primary", elem_id="recommend")
        apply = gr.Button("Apply recommendation", visible=False, elem_id="apply-recommendation")
        cancel = cancel_button("cancel-recommend")
    cpu_notice(
        "The recommendation is computed",
        "It takes seconds: models over 300 million parameters are not tried on your rows.",
    )
    progress = gr.Markdown(elem_id="recommend-progress")
    table = gr.HTML(visible=False, elem_id="recommendations")
    recommended = gr.State({})
    operation = Operation(page, progress, [recommend], cancel)

    def run(values: Values) -> Iterator[Updates]:
        arguments = page.data_arguments(values)
        yield operation.begin("Analyzing your data and model…")
        yield from operation.stream("recommend", show, **arguments)

    def show(result: dict[str, Any]) -> Updates:
        changes = sum(advice["changes"] for advice in result["advice"])
        count = f"{changes} recommended change{'s' * (changes != 1)}."
        summary = count if changes else "✓ Your settings match the recommendation."
        red_lines = render_recipe.red_lines_markdown(result["red_lines"])
        return {
            progress: "\n\n".join(filter(None, [summary, red_lines])),
            table: gr.update(value=render_recipe.advice_html(result), visible=True),
            apply: gr.update(visible=bool(changes), variant="primary"),
            recommended: result["recipe"],
        }

    @show_errors
    def use(recipe: dict[str, Any]) -> Updates:
        shown = {progress: "✓ Applied.", apply: gr.update(visible=False)}
        return {**page.form.show(make_recipe(recipe)), **shown}

    event = operation.on_click(recommend, run, page.data_inputs, [table, apply, recommended])
    operation.cancel_events([event], "")
    apply.click(use, recommended, [*page.form.widgets.values(), progress, apply], **HIDDEN)
    hidden = gr.update(visible=False)
    cleared = {progress: "", table: hidden, apply: hidden}
    page.data.change(lambda: cleared, None, list(cleared), **HIDDEN)


def _build_layers(page: PageContext) -> None:
    button = gr.Button("Show adapted layers", elem_id="show-layers")
    layers = gr.Markdown(elem_id="layers")

    @show_errors
    def show_layers(values: Values) -> str:
        recipe = page.form.read(values).model_dump()
        if recipe["task"] == "automatic":
            recipe["task"] = values[page.task]
        return render_recipe.layers_markdown(page.workers.call("layers", recipe=recipe))

    button.click(show_layers, {page.task, *page.form.inputs}, layers, **PRIVATE)


def _build_file(page: PageContext) -> None:
    with gr.Accordion("Recipe as a file", open=False, elem_id="recipe-file"):
        with gr.Row():
            show = gr.Button("View as JSON", elem_id="show-json")
            upload = gr.UploadButton(
                "Load a recipe.json", file_types=[".json"], elem_id="load-recipe"
            )
        as_json = gr.Code(
            language="json", label="recipe.json", visible=False, elem_id="recipe-json"
        )

    @show_errors
    def show_json(values: Values) -> Any:
        return gr.update(value=page.form.read(values).model_dump_json(indent=2), visible=True)

    @show_errors
    def load(path: str) -> Updates:
        return page.form.show(read_recipe(path))

    show.click(show_json, page.form.inputs, as_json, **PRIVATE)
    upload.upload(load, upload, list(page.form.widgets.values()), **PRIVATE)
