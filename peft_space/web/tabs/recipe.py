"""The Recipe tab: the base model, a preset, a recommendation, and all settings."""

import functools
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from peft_space.errors import UserError, user_message
from peft_space.web.components import (
    Operation,
    choices_html,
    picked,
    reset_on_failure,
    show_errors,
)
from peft_space.web.context import (
    EDIT,
    HIDDEN,
    NO_MODEL,
    PRIVATE,
    Inputs,
    PageContext,
    Updates,
    Values,
)
from peft_space.web.panels import models as models_panel
from peft_space.web.panels import planning as planning_panel
from peft_space.web.panels import ranks as ranks_panel
from peft_space.web.panels import recommendation as recommendation_panel
from peft_space.web.panels.examples import is_example
from peft_space.web.recipe_form import GROUPS
from peft_space.web.render import recipe as render_recipe
from peft_space.web.render.overview import escape
from peft_space.web.states import (
    DEFAULT_RECIPE,
    NO_DATA,
    RecipeState,
    data_tab_state,
    missing,
    recipe_tab_state,
)

PRESETS: dict[str, dict[str, Any]] = {
    "Quick look": {"max_steps": 30},
    "Balanced": {},
    "Thorough": {"num_epochs": 8.0, "early_stopping_patience": 2},
}
"""The presets: the fields of `PRESET_FIELDS` that differ from their defaults."""
PRESET_FIELDS = ("max_steps", "num_epochs", "early_stopping_patience")


class RecipeTab:
    """The tab's components and handlers."""

    def __init__(self, page: PageContext):
        self.page = page
        with gr.Column(elem_id="recipe-draft") as self.draft:
            with gr.Row():
                with gr.Column(scale=3, min_width=320):
                    self.picker = models_panel.build(page)
                    status, cancel = self.picker.status, self.picker.cancel
                    self.looking = Operation(page, status, cancel=cancel)
                with gr.Column(scale=1, min_width=260, elem_id="recipe-side"):
                    self._place_side()
            recommendation_panel.build(page)
            self._place_settings()
            with gr.Accordion("Tools", open=False, elem_id="recipe-tools"):
                self.layers = planning_panel.build_layers()
                planning_panel.build_measurement(page)
                ranks_panel.build_rank_sweep(page)
                planning_panel.build_file(page)
            with gr.Row(elem_classes=["footer"]):
                self.hint = gr.Markdown(missing(NO_DATA, DEFAULT_RECIPE), elem_id="recipe-missing")
                self.next = gr.Button(
                    "Continue to Train", variant="primary", size="md", scale=0, min_width=200,
                    interactive=False, elem_id="next-train",
                )  # fmt: skip
        self.refusal = gr.State([0, None, ""])
        """[time, recipe state, reason] of the last look that found that it cannot be trained."""
        with gr.Column(visible=False, elem_id="recipe-run") as self.of_run:
            self.settings = gr.HTML(elem_id="run-settings")
            self.duplicate = gr.Button(
                "Use these settings in a new fine-tune", size="md", elem_id="duplicate-recipe"
            )

    def _place_side(self) -> None:
        self.preset = gr.Radio(
            list(PRESETS),
            value="Balanced",
            label="How thorough?",
            info="30 steps, 4 passes, or up to 8 passes over the data.",
            elem_id="preset",
        )
        self.summary = gr.HTML(
            render_recipe.summary_html(None, None, "Choose a base model."),
            elem_id="recipe-summary",
            min_height=190,
        )

    def _place_settings(self) -> None:
        self.changed = choices_html("changed-settings", value=render_recipe.changed_html({}))
        with gr.Accordion("All settings", open=False, elem_id="settings"):
            self.search = gr.Textbox(
                placeholder="Search settings, for example rank",
                label="Search settings",
                show_label=False,
                container=False,
                elem_id="search-settings",
            )
            for group, title in GROUPS.items():
                gr.Markdown(f"### {'Model options' if group == 'model' else title}")
                with gr.Row():
                    self.page.form.place(group, but=["base_model"])

    def edit(self, values: Values, name: str) -> Updates:
        """Take over one field that the visitor changed."""
        page = self.page
        value = page.form.parse(name, values[page.form.widgets[name]])
        if name == "base_model":
            value = (value or NO_MODEL).strip()
        updates = page.edit_recipe(values, values[page.recipe_state]["changed"] | {name: value})
        updates.get(page.form.widgets[name], {}).pop("value", None)  # it shows what was typed
        return updates

    def apply_preset(self, values: Values) -> Updates:
        """Set the fields of the chosen preset."""
        changed = values[self.page.recipe_state]["changed"]
        kept = {name: value for name, value in changed.items() if name not in PRESET_FIELDS}
        return self.page.edit_recipe(values, kept | PRESETS.get(values[self.preset] or "", {}))

    def reset(self, values: Values, event: gr.EventData) -> Updates:
        """Set the pressed field back to its default."""
        changed = dict(values[self.page.recipe_state]["changed"])
        changed.pop(picked(event), None)
        return self.page.edit_recipe(values, changed)

    def describe(self, values: Values) -> Updates:
        """List the changed settings, mark the preset that they are, and say what is missing."""
        recipe = values[self.page.recipe_state]
        words = missing(values[self.page.data_state], recipe)
        return {
            self.changed: render_recipe.changed_html(recipe["changed"]),
            self.preset: preset_of(recipe["changed"]),
            self.hint: words,
            self.next: gr.update(interactive=not words),
        }

    def summarize(self, values: Values) -> Iterator[Updates]:
        """Show memory, time, trainable share and layers of what the form says."""
        page, state = self.page, values[self.page.recipe_state]
        looking = self.looking
        if not state["model"] or state["problems"] or state["refused"]:
            reason = recipe_tab_state(state).reason
            if state["refused"]:  # the message of the look that refused it stays
                yield looking.ready
                return
            empty = render_recipe.summary_html(None, None, reason)
            nothing: Updates = {self.summary: empty, self.picker.status: "", self.layers: reason}
            yield nothing | looking.ready
            return
        recipe = page.recipe(values).model_dump()
        yield {self.picker.status: "Looking at the model…"}
        note = _TOY if state["model"] == "demo" and not is_example(values[page.data]) else ""
        is_ready = values[page.data_state]["kind"] == "ready"
        reason = "Estimating…" if is_ready else data_tab_state(values[page.data_state]).reason
        layers: dict[str, Any] | None = None

        def show_layers(found: dict[str, Any]) -> Updates:
            nonlocal layers
            layers = found
            adapted = render_recipe.layers_markdown(found)
            summary = render_recipe.summary_html(found, None, reason)
            return {self.summary: summary, self.picker.status: note, self.layers: adapted}

        def show_estimate(estimate: dict[str, Any]) -> Updates:
            summary = render_recipe.summary_html(layers, estimate)
            return {self.summary: summary, self.picker.status: note}

        try:
            yield from looking.stream("layers", show_layers, recipe=self._with_task(recipe, values))
            if is_ready:
                yield from looking.stream("estimate", show_estimate, **page.data_arguments(values))
        except UserError as error:
            failed: Updates = {
                self.summary: render_recipe.summary_html(layers, None),
                self.picker.status: f"⚠ {escape(user_message(error))}",
            }
            if not layers:
                failed |= {self.layers: "", self.refusal: [time.time(), state, str(error)]}
            yield failed | looking.ready

    def _with_task(self, recipe: dict[str, Any], values: Values) -> dict[str, Any]:
        implied = values[self.page.task] or "automatic"
        return recipe | ({"task": implied} if recipe["task"] == "automatic" else {})


_TOY = "⚠ `demo` is a toy for the sample data. Choose a real model for your own data."


def preset_of(changed: dict[str, Any]) -> str | None:
    """Return the preset that the changed fields are; None if they are none of them."""
    chosen = {name: changed[name] for name in PRESET_FIELDS if name in changed}
    return next((name for name, preset in PRESETS.items() if preset == chosen), None)


def build(page: PageContext, tab_item: gr.Tab) -> RecipeTab:
    """Place and wire the tab."""
    tab = RecipeTab(page)
    _wire_form(page, tab)
    tab.search.change(None, tab.search, js="text => window.peftSpace.search(text)", **PRIVATE)

    def see(state: RecipeState) -> RecipeState:
        return {**state, "seen": True}

    tab_item.select(see, page.recipe_state, page.recipe_state, **EDIT)
    inputs: Inputs = {page.data_state, page.task, *page.training_inputs}
    looking = gr.on(
        [page.recipe_state.change, page.data_state.change],
        show_errors(tab.summarize),
        inputs,
        [tab.summary, tab.layers, tab.refusal, *tab.looking.components],
        trigger_mode="always_last",
        **HIDDEN,
    )
    reset_on_failure(looking, tab.looking.ready)
    tab.looking.cancel_events([looking], "Canceled. Choose a base model.")

    def refuse(refusal: list[Any], state: RecipeState) -> Any:
        _, asked, reason = refusal
        return {**state, "refused": reason} if asked == state else gr.skip()

    refused = [tab.refusal, page.recipe_state]
    tab.refusal.change(refuse, refused, page.recipe_state, **HIDDEN)
    page.listen("draft", tab.describe, set(), [tab.changed, tab.preset, tab.hint, tab.next])

    def show_run(values: Values) -> Updates:
        if not values[page.run]:
            return {tab.draft: gr.update(visible=True), tab.of_run: gr.update(visible=False)}
        return {
            tab.draft: gr.update(visible=False),
            tab.of_run: gr.update(visible=True),
            tab.settings: render_recipe.settings_html(page.selected_run(values).recipe),
        }

    page.listen("run", show_run, set(), [tab.draft, tab.of_run, tab.settings])
    return tab


def _wire_form(page: PageContext, tab: RecipeTab) -> None:
    """Take over a field that was changed; a text is complete when it loses focus.

    Each field has its own event: Gradio updates every input of every event that ever happened.
    """
    for name, widget in page.form.widgets.items():
        typed = isinstance(widget, gr.Textbox | gr.Number)
        events: list[Any] = [widget.blur, widget.submit] if typed else [widget.input]  # type: ignore[attr-defined]
        if name == "base_model":
            events.append(page.base_model.blur)
        edit = show_errors(functools.partial(tab.edit, name=name))
        inputs: Inputs = {page.recipe_state, widget}
        outputs = [widget, page.recipe_state, page.data_recipe]
        gr.on(events, edit, inputs, outputs, trigger_mode="always_last", **EDIT)
    preset: Inputs = {page.recipe_state, tab.preset}
    tab.preset.input(show_errors(tab.apply_preset), preset, page.recipe_outputs, **EDIT)
    reset = show_errors(tab.reset)
    tab.changed.click(reset, {page.recipe_state}, page.recipe_outputs, **EDIT)
