"""Assembles the page from its tabs and serves it."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from peft_space import settings
from peft_space.compat.gradio import MAX_SESSIONS, hide_login_endpoint, lean_sessions
from peft_space.data.dataset import DEMO_DATA, source_of
from peft_space.errors import UserError
from peft_space.runs.quotas import start_pruner
from peft_space.runs.store import list_runs
from peft_space.runtime import slice_lengths, zerogpu
from peft_space.runtime.supervisor import resume_interrupted
from peft_space.web import api, theme
from peft_space.web.auth import SecurityMiddleware, new_visitor
from peft_space.web.components import reset_on_failure, show_errors
from peft_space.web.context import HIDDEN, PRIVATE, Inputs, PageContext, Updates, Values
from peft_space.web.render import overview as render_overview
from peft_space.web.tabs import compare as compare_tab
from peft_space.web.tabs import data as data_tab
from peft_space.web.tabs import publish as publish_tab
from peft_space.web.tabs import recipe as recipe_tab
from peft_space.web.tabs import runs as runs_tab
from peft_space.web.tabs import train as train_tab

STEPS = ("Data", "Recipe", "Train", "Compare", "Publish")
DEMO_NAME = "The demo"
DEFAULT_PORT = 7860
SECONDS_BETWEEN_CHECKS = 0.5
_PITCH = (
    "# peft_space\nFine-tune a model on your own examples, see what changed, and take it with you."
)
_DEMO_PITCH = (
    "Trains a tiny model to turn support messages into tickets. One to three minutes on a laptop."
)


@dataclass(frozen=True)
class _Layout:
    """The parts of the page that the demo and the guide need."""

    demo: gr.Button
    next_step: gr.Markdown
    tabs: gr.Tabs
    tab_items: list[gr.Tab]
    next_buttons: list[gr.Button]
    training: train_tab.TrainTab
    comparison: compare_tab.CompareTab


def build() -> gr.Blocks:
    """Build the whole page."""
    with gr.Blocks(title="peft_space") as blocks:
        page = PageContext()
        api.build(page)  # before the tabs: a handler of the same name would take the endpoint's
        layout = _place(page)
        _build_snippets(page)
        _wire_guide(page, layout)
        _wire_demo(page, layout)
        _wire_load(page, blocks)
    hide_login_endpoint(blocks)
    return blocks.queue(max_size=64, default_concurrency_limit=8)


def _place(page: PageContext) -> _Layout:
    demo = _place_header()
    page.run.render()
    if not settings.disk_is_kept():
        runs_tab.build_notice(page)
    next_step = gr.Markdown(elem_id="next-step")
    items: list[gr.Tab] = []
    buttons: list[gr.Button] = []
    built: dict[str, Any] = {}
    builders: dict[str, Callable[[gr.Tab], Any]] = {
        "Data": lambda _: data_tab.build(page),
        "Recipe": lambda _: recipe_tab.build(page),
        "Train": lambda item: train_tab.build(page, item),
        "Compare": lambda _: compare_tab.build(page),
        "Publish": lambda _: publish_tab.build(page),
    }
    with gr.Tabs(elem_id="steps") as tabs:
        for number, title in enumerate(STEPS, 1):
            with gr.Tab(f"{number} · {title}", id=title) as item:
                items.append(item)
                built[title] = builders[title](item)
                if number < len(STEPS):
                    buttons.append(_next_button(tabs, STEPS[number]))
        with gr.Tab("Runs", id="Runs") as runs:
            runs_tab.build(page, runs)
    return _Layout(demo, next_step, tabs, items, buttons, built["Train"], built["Compare"])


def _place_header() -> gr.Button:
    with gr.Row(equal_height=True):
        with gr.Column(min_width=320):
            gr.Markdown(_PITCH)
        with gr.Column(min_width=320):
            demo = gr.Button("Run the demo", elem_id="try-demo")
            gr.Markdown(_DEMO_PITCH)
            if settings.signs_in():
                gr.LoginButton(elem_id="sign-in")
    return demo


def _next_button(tabs: gr.Tabs, title: str) -> gr.Button:
    button = gr.Button(f"Next: {title} →", elem_id=f"next-{title.lower()}")
    button.click(lambda: gr.update(selected=title), None, tabs, **HIDDEN)
    return button


def _wire_guide(page: PageContext, layout: _Layout) -> None:
    """Keep the marks on the tabs and the sentence above them up to date."""

    @show_errors
    def guide(values: Values) -> Updates:
        status, has_adapter = values[page.run_state] or (None, False)
        data = values[page.data]
        is_new = bool(data) and data != values[page.trained_data]
        marks, sentence = render_overview.guide(is_new, values[page.num_rows], status, has_adapter)
        updates: Updates = {layout.next_step: sentence}
        for number, (title, mark, item) in enumerate(
            zip(STEPS, marks, layout.tab_items, strict=True)
        ):
            updates[item] = gr.update(label=f"{number + 1} · {title} {mark}")
        for mark, button in zip(marks, layout.next_buttons, strict=False):
            updates[button] = gr.update(variant="primary" if mark == "✓" else "secondary")
        return updates

    states: list[Any] = [page.data, page.trained_data, page.num_rows, page.run_state]
    outputs = [layout.next_step, *layout.next_buttons, *layout.tab_items]
    gr.on([state.change for state in states], guide, set(states), outputs, **HIDDEN)


def _build_snippets(page: PageContext) -> None:
    """Offer the page's workflow as commands and as Python."""
    with gr.Accordion(
        "Use from the command line or Python", open=False, elem_id="snippets"
    ) as accordion:
        shell = gr.Code(
            language="shell", label="Command line", interactive=False, elem_id="as-commands"
        )
        python = gr.Code(language="python", label="Python", interactive=False, elem_id="as-python")

    @show_errors
    def write(values: Values) -> list[str]:
        data, held_out, mapping = (
            values[state] for state in (page.data, page.held_out, page.column_mapping)
        )
        if not data and values[page.run]:  # after a reload only the run is left
            run = page.selected_run(values)
            return list(render_overview.commands(source_of(run), "", {}, run.recipe))
        return list(render_overview.commands(data, held_out, mapping, page.form.read(values)))

    accordion.expand(write, page.training_inputs, [shell, python], **HIDDEN)


def _wire_demo(page: PageContext, layout: _Layout) -> None:
    """Wire the demo: a real training on the sample data, three test examples, and the scores."""
    training, comparison = layout.training, layout.comparison

    @show_errors
    def start(values: Values) -> Iterator[Updates]:
        arguments = {"data": DEMO_DATA, "recipe": {}}
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

    # A separate event: what a generator shows is lost if its next yield comes at once.
    announced = layout.demo.click(
        lambda: (DEMO_DATA, {}, gr.update(selected="Train")),
        None,
        [page.data, page.column_mapping, layout.tabs],
        **HIDDEN,
    )
    selection = page.selection
    starting = announced.success(start, selection, training.start_outputs, **HIDDEN)
    reset_on_failure(starting, training.preparation.ready)
    training.cancel.click(None, None, None, cancels=starting, **PRIVATE)
    waiting = starting.success(wait, selection, layout.tabs, concurrency_limit=None, **HIDDEN)
    use_rows = show_errors(comparison.use_test_rows)
    row_inputs: Inputs = {*selection, comparison.num_used, comparison.how_many}
    rows = waiting.success(use_rows, row_inputs, comparison.row_outputs, **HIDDEN)
    answer = show_errors(comparison.answer, comparison.progress)
    answered = rows.success(answer, comparison.answer_inputs, comparison.answer_outputs, **HIDDEN)
    evaluate = show_errors(comparison.evaluate, comparison.scoring)
    answered.success(evaluate, selection, comparison.score_outputs, **HIDDEN)


def _wire_load(page: PageContext, blocks: gr.Blocks) -> None:
    """Recognize the visitor on load, and list their runs, newest first."""

    @show_errors
    def load(values: Values) -> Updates:
        threading.Thread(target=page.workers.warm, daemon=True).start()
        visitor = new_visitor(values[page.visitor])
        known = values | {page.visitor: visitor}
        newest = next(iter(list_runs(*page.owners(known))), None)
        updates = {
            page.visitor: visitor,
            page.run: page.run_list(known),
            page.run_state: ["", False],
        }
        if newest and newest.status() in render_overview.UNFINISHED:
            updates |= page.form.show(newest.recipe)
        return updates

    page.run.change(lambda run: run or "", page.run, page.run_id, **HIDDEN)
    outputs = [page.visitor, page.run, page.run_state, *page.form.widgets.values()]
    blocks.load(load, page.selection, outputs, **HIDDEN)


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
        run_history=False,
        state_session_capacity=MAX_SESSIONS,
        app_kwargs={
            "middleware": [Middleware(SecurityMiddleware)],
            "lifespan": lean_sessions,
        },
        mcp_server=True,  # the API's endpoints as an agent's tools
        ssr_mode=False,
        footer_links=[],
        **options,
    )
