"""Assembles the page from its tabs and serves it."""

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from peft_space import settings
from peft_space.compat.gradio import MAX_SESSIONS, hide_login_endpoint, lean_sessions
from peft_space.data.dataset import DEMO_DATA
from peft_space.errors import UserError
from peft_space.runs.quotas import start_pruner
from peft_space.runs.store import list_runs
from peft_space.runtime import slice_lengths, zerogpu
from peft_space.runtime.supervisor import resume_interrupted
from peft_space.web import api, shell, theme
from peft_space.web.auth import SecurityMiddleware, new_visitor
from peft_space.web.components import show_errors
from peft_space.web.context import EDIT, HIDDEN, PRIVATE, Inputs, PageContext, Updates, Values
from peft_space.web.draft import read_draft, write_draft
from peft_space.web.panels import runs as runs_panel
from peft_space.web.panels import snippets as snippets_panel
from peft_space.web.render.train import about_to_train_html
from peft_space.web.states import TABS, UNFINISHED, run_state_of
from peft_space.web.tabs import compare as compare_tab
from peft_space.web.tabs import data as data_tab
from peft_space.web.tabs import publish as publish_tab
from peft_space.web.tabs import recipe as recipe_tab
from peft_space.web.tabs import train as train_tab

DEMO_NAME = "Demo: support tickets"
DEMO_RECIPE: dict[str, Any] = {"base_model": "demo", "num_epochs": 1}
"""One pass suffices: four seeds of four end with an exact match of 100 %."""
DEFAULT_PORT = 7860
SECONDS_BETWEEN_CHECKS = 0.5
SCRIPT, ICON = (Path(__file__).with_name(name) for name in ("page.js", "icon.svg"))


@dataclass(frozen=True)
class _Layout:
    """The parts of the page that are wired to each other."""

    shell: shell.Shell
    tabs: gr.Tabs
    items: list[gr.Tab]
    views: tuple[gr.Column, gr.Column]
    data: data_tab.DataTab
    recipe: recipe_tab.RecipeTab
    training: train_tab.TrainTab
    comparison: compare_tab.CompareTab


def build() -> gr.Blocks:
    """Build the whole page."""
    with gr.Blocks(title="PEFT Space") as blocks:
        page = PageContext()
        api.build(page)  # before the tabs: a handler of the same name would take the endpoint's
        layout = _place(page)
        shell.wire(page, layout.shell, layout.tabs, layout.items, layout.views)
        _wire_steps(page, layout)
        _wire_duplicate(page, layout)
        _wire_demo(page, layout)
        _wire_draft(page, layout)
        page.wire_listeners(show_errors)
        _wire_load(page, blocks, layout)
    hide_login_endpoint(blocks)
    return blocks.queue(max_size=64, default_concurrency_limit=8)


def _place(page: PageContext) -> _Layout:
    sidebar, runs, search, machine = shell.place_sidebar(page)
    with gr.Column(elem_id="main") as main:
        if not settings.disk_is_kept():
            runs_panel.build_notice(page)
        header = shell.place_header()
        with gr.Tabs(elem_id="steps", overflow_behavior="wrap") as tabs:
            items = [gr.Tab(title, id=title, render=False) for title in TABS]
            for item in items:
                item.render()
            data_item, recipe_item, train_item, compare_item, publish_item = items
            with data_item:
                data = data_tab.build(page)
            with recipe_item:
                recipe = recipe_tab.build(page, recipe_item)
            with train_item:
                training = train_tab.build(page)
            with compare_item:
                comparison = compare_tab.build(page)
            with publish_item:
                publish_tab.build(page)
        snippets_panel.build(page)
    with gr.Column(visible=False, elem_id="all-runs") as all_runs:
        runs_panel.build(page)
    frame = shell.Shell(sidebar=sidebar, runs=runs, search=search, machine=machine, **header)
    views = (main, all_runs)
    return _Layout(frame, tabs, items, views, data, recipe, training, comparison)


def _wire_steps(page: PageContext, layout: _Layout) -> None:
    """Wire the buttons that lead from one tab to another."""
    steps = {
        layout.data.next: "Recipe",
        layout.recipe.next: "Train",
        layout.training.to_data: "Data",
    }
    for button, title in steps.items():
        button.click(lambda title=title: gr.update(selected=title), None, layout.tabs, **HIDDEN)

    summary = layout.recipe.summary
    summary.change(None, summary, layout.training.summary, js="card => card", **PRIVATE)

    evaluate = show_errors(layout.comparison.evaluate, layout.comparison.scoring)
    see = layout.training.see
    opened = see.click(lambda: gr.update(selected="Compare"), None, layout.tabs, **HIDDEN)

    @show_errors
    def evaluate_once(values: Values) -> Iterator[Updates]:
        if page.selected_run(values).path("scores.json").is_file():
            yield {layout.comparison.scoring: gr.skip()}
        else:
            yield from evaluate(values)

    opened.success(evaluate_once, page.selection, layout.comparison.score_outputs, **HIDDEN)


def _wire_duplicate(page: PageContext, layout: _Layout) -> None:
    """Wire the buttons that make the shown run's settings those of the new fine-tune."""
    buttons = [layout.shell.duplicate, layout.recipe.duplicate, layout.data.duplicate]
    outputs = [*page.recipe_outputs, page.run, layout.tabs]
    inputs: Inputs = {page.recipe_state, *page.selection}

    @show_errors
    def duplicate(values: Values) -> Updates:
        run = page.selected_run(values)
        gr.Info(f"The settings of {run.name} are those of the new fine-tune now.", duration=5)
        return {
            **page.edit_recipe(values, dict(run.recipe)),
            page.run: "",
            layout.tabs: gr.update(selected="Recipe"),
        }

    for button in buttons:
        button.click(duplicate, inputs, outputs, **EDIT)


def _wire_demo(page: PageContext, layout: _Layout) -> None:
    """Wire the demo: a run on the sample data, which ends in its scores on Compare.

    It leaves the visitor's data and recipe as they are.
    """
    training, comparison = layout.training, layout.comparison

    @show_errors
    def start(values: Values) -> Iterator[Updates]:
        arguments = {"data": DEMO_DATA, "recipe": DEMO_RECIPE}
        yield from training.make_run(values, arguments, name=DEMO_NAME)

    @show_errors
    def wait(values: Values) -> Iterator[Any]:
        run = page.selected_run(values)
        while (status := run.status()) in ("queued", "running") or (
            status == "paused" and slice_lengths.is_between_slices(run.history())
        ):
            yield gr.skip()
            time.sleep(SECONDS_BETWEEN_CHECKS)
        if status != "finished":  # the visitor paused or stopped it: leave them where they are
            raise UserError(
                "web.demo_not_finished",
                "The demo stopped before it finished. Press Resume on the Train tab.",
            )
        yield gr.update(selected="Compare")

    shown = {
        layout.tabs: gr.update(selected="Train"),
        training.about_to_train: about_to_train_html(
            DEMO_NAME, 0, DEMO_RECIPE["base_model"], DEMO_RECIPE
        ),
        training.summary: gr.update(visible=False),  # it is that of the new fine-tune
        training.hint: "",
        training.to_data: gr.update(visible=False),
    }
    # A separate event: what a generator shows is lost if its next yield comes at once.
    announced = layout.data.demo.click(lambda: shown, None, list(shown), **HIDDEN)
    selection = page.selection
    starting = announced.success(start, selection, training.start_outputs, **HIDDEN)
    # Then the tab is about the new fine-tune again, which may lack data.
    restore = show_errors(training.restore)
    starting.then(restore, training.draft_inputs, training.restored, **HIDDEN)
    training.cancel.click(None, None, None, cancels=starting, **PRIVATE)
    waiting = starting.success(wait, selection, layout.tabs, concurrency_limit=None, **HIDDEN)
    evaluate = show_errors(comparison.evaluate, comparison.scoring)
    waiting.success(evaluate, selection, comparison.score_outputs, **HIDDEN)


def _wire_draft(page: PageContext, layout: _Layout) -> None:
    """Store the new fine-tune whenever its data or its recipe changes."""

    def store(values: Values) -> Updates:
        draft = {
            "data": values[page.data],
            "held_out": values[page.held_out],
            "column_mapping": values[page.column_mapping],
            "recipe": values[page.recipe_state]["changed"],
        }
        owner = page.owner(values)
        if draft != read_draft(owner):
            write_draft(owner, draft)
        return {}

    page.listen("draft", store, {page.data, page.held_out, page.column_mapping}, [])


def _wire_load(page: PageContext, blocks: gr.Blocks, layout: _Layout) -> None:
    """Recognize the visitor on load, and show what they saw before: draft, run and tab."""
    place = gr.Textbox(visible="hidden", elem_id="place", label="Place")

    @show_errors
    def load(values: Values) -> Updates:
        threading.Thread(target=page.warm, daemon=True).start()
        visitor = new_visitor(values[page.visitor])
        known = values | {page.visitor: visitor}
        owners = page.owners(known)
        asked_run, tab, is_wide, remembered = json.loads(values[place] or '["", "", true, false]')
        runs = {run.directory.name: run for run in list_runs(*owners)}
        newest = next(iter(runs.values()), None)
        shown = asked_run if asked_run in runs else ""
        if newest and (not remembered or newest.status() in UNFINISHED) and not shown:
            shown, tab = newest.directory.name, tab or shell.first_tab(newest)
        draft = read_draft(owners[0])
        updates: Updates = {
            page.visitor: visitor,
            page.run: shown,
            page.run_state: run_state_of(runs[shown], runs[shown].status()) if shown else None,
            page.runs_changed: time.time(),
            page.data: draft["data"],
            page.held_out: draft["held_out"],
            page.column_mapping: draft["column_mapping"],
            layout.tabs: gr.update(selected=tab) if tab in TABS else gr.skip(),
            layout.shell.sidebar: gr.update(open=bool(is_wide)),
        }
        return updates | page.edit_recipe(values, draft["recipe"])

    @show_errors
    def describe_machine() -> Updates:
        found = page.workers.call("machine")
        return {page.machine: found, layout.shell.machine: shell.machine_card(found)}

    outputs: list[Any] = [
        page.visitor,
        page.run,
        page.run_state,
        page.runs_changed,
        *page.recipe_outputs,
    ]
    outputs += [page.data, page.held_out, page.column_mapping, layout.tabs, layout.shell.sidebar]
    placed = blocks.load(None, None, place, js="() => window.peftSpace.start()", **HIDDEN)
    inputs: Inputs = {*page.selection, page.recipe_state, place}
    loaded = placed.then(load, inputs, outputs, **EDIT)
    loaded.then(describe_machine, None, [page.machine, layout.shell.machine], **HIDDEN)


def launch(**options: Any) -> Any:
    """Serve the page, and resume trainings that ended with the machine.

    Args:
        options: further arguments of Gradio's `launch`.
    """
    if settings.on_zerogpu():
        zerogpu.import_libraries()
    else:
        resume_interrupted()
    start_pruner()
    port = None if settings.on_space() else int(os.environ.get("GRADIO_SERVER_PORT", DEFAULT_PORT))
    # Gradio's limit is twice ours, so that visitors read our own sentence about the limit.
    max_bytes = int(settings.max_file_megabytes() * 2e6)
    return build().launch(
        server_port=port,
        max_file_size=max_bytes,
        theme=theme.theme(),
        css_paths=[theme.CSS],
        head=f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>",
        run_history=False,
        state_session_capacity=MAX_SESSIONS,
        app_kwargs={
            "middleware": [Middleware(SecurityMiddleware)],
            "lifespan": lean_sessions,
        },
        mcp_server=True,  # the API's endpoints as an agent's tools
        ssr_mode=False,
        footer_links=[],
        favicon_path=ICON,
        **options,
    )
