"""The recommendation on the Recipe tab: a difference with reasons, to apply and to undo."""

import functools
from collections.abc import Iterator
from typing import Any

import gradio as gr

from peft_space.recipe import Recipe
from peft_space.web.components import Operation, cancel_button, cpu_notice, show_errors
from peft_space.web.context import EDIT, HIDDEN, PageContext, Updates, Values
from peft_space.web.render import recipe as render_recipe


def build(page: PageContext) -> None:
    """Place and wire the panel."""
    with gr.Row():
        recommend = gr.Button(
            "Recommend settings for my data", size="md", scale=0, min_width=320, elem_id="recommend"
        )
        small: dict[str, Any] = {"size": "md", "scale": 0, "min_width": 120, "visible": False}
        apply = gr.Button("Apply", elem_id="apply-recommendation", **small)
        undo = gr.Button("Undo", elem_id="undo-recommendation", **small)
        cancel = cancel_button("cancel-recommend")
    cpu_notice(
        "The recommendation is computed",
        "It takes seconds: models over 300 million parameters are not tried on your rows.",
    )
    progress = gr.Markdown(elem_id="recommend-progress")
    table = gr.HTML(visible=False, elem_id="recommendations")
    recommended, before = gr.State({}), gr.State({})
    operation = Operation(page, progress, [recommend], cancel)

    def run(values: Values) -> Iterator[Updates]:
        arguments = page.data_arguments(values)
        yield operation.begin("Analyzing your data and model…")
        show_result = functools.partial(show, asked=arguments["recipe"])
        yield from operation.stream("recommend", show_result, **arguments)

    def show(result: dict[str, Any], asked: dict[str, Any]) -> Updates:
        changes = sum(advice["changes"] for advice in result["advice"])
        count = f"{changes} recommended change{'s' * (changes != 1)}."
        summary = count if changes else "✓ Your settings match the recommendation."
        red_lines = render_recipe.red_lines_markdown(result["red_lines"])
        return {
            progress: "\n\n".join(filter(None, [summary, red_lines])),
            table: gr.update(value=render_recipe.advice_html(result), visible=True),
            apply: gr.update(visible=bool(changes)),
            undo: gr.update(visible=False),
            recommended: {
                name: [asked[name], value]
                for name, value in result["recipe"].items()
                if value != asked[name]
            },
        }

    @show_errors
    def use(values: Values) -> Updates:
        shown = {progress: "✓ Applied.", apply: gr.update(visible=False)}
        shown |= {undo: gr.update(visible=True), table: gr.update(visible=False)}
        shown |= {before: values[page.recipe_state]["changed"]}
        changed = dict(values[page.recipe_state]["changed"])
        for name, (was, value) in values[recommended].items():
            # what was changed since the recommendation stays
            if changed.get(name, Recipe.model_fields[name].default) == was:
                changed[name] = value
        return {**page.edit_recipe(values, changed), **shown}

    @show_errors
    def restore(values: Values) -> Updates:
        shown = {progress: "Your earlier settings are back.", undo: gr.update(visible=False)}
        return {**page.edit_recipe(values, values[before]), **shown}

    event = operation.on_click(recommend, run, page.data_inputs, [table, apply, undo, recommended])
    operation.cancel_events([event], "")
    outputs = [*page.recipe_outputs, progress, table, apply, undo, before]
    apply.click(use, {recommended, page.recipe_state}, outputs, **EDIT)
    undo.click(restore, {before, page.recipe_state}, outputs, **EDIT)
    hidden = gr.update(visible=False)
    cleared = {progress: "", table: hidden, apply: hidden, undo: hidden}
    page.data.change(lambda: cleared, None, list(cleared), **HIDDEN)
