"""Puts the page together and serves it."""

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from peft_space import settings
from peft_space.compat import gradio as gradio_compat
from peft_space.data.dataset import DEMO_DATA, source_of
from peft_space.runs.quotas import start_pruner
from peft_space.runs.store import list_runs
from peft_space.runtime import zerogpu, zerogpu_slices
from peft_space.runtime.supervisor import resume_interrupted
from peft_space.web import api, theme
from peft_space.web.context import PRIVATE, PageContext, new_visitor, reset_on_failure, show_errors
from peft_space.web.middleware import SecurityMiddleware
from peft_space.web.panels import backup as backup_panel
from peft_space.web.render import overview as render_overview
from peft_space.web.tabs import compare as compare_tab
from peft_space.web.tabs import data as data_tab
from peft_space.web.tabs import publish as publish_tab
from peft_space.web.tabs import recipe as recipe_tab
from peft_space.web.tabs import runs as runs_tab
from peft_space.web.tabs import train as train_tab

STEPS = ("Data", "Recipe", "Train", "Compare", "Publish")


def build() -> gr.Blocks:
    """The whole page."""
    with gr.Blocks(title="peft_space") as blocks:
        page = PageContext()
        api.build(page)  # before the tabs: a handler of the same name would take the endpoint's
        with gr.Row(equal_height=True):
            with gr.Column(min_width=320):
                gr.Markdown(
                    "# peft_space\nBring data, train a LoRA adapter, compare it with its base, publish it."
                )
            with gr.Column(min_width=320):
                demo = gr.Button(
                    "Try the demo: train and compare, in one click", elem_id="try-demo"
                )
                gr.Markdown(
                    "A small model learns to turn support messages into tickets. It takes one to three minutes on a laptop."
                )
                if settings.signs_in():
                    gr.LoginButton(elem_id="sign-in")
        page.run.render()
        if not settings.disk_is_kept():
            backup_panel.build_notice(page)
        next_step = gr.Markdown(elem_id="next-step")
        labels: list[gr.Tab] = []
        go_on: list[gr.Button] = []
        with gr.Tabs(elem_id="steps") as tabs:
            for number, title in enumerate(STEPS, 1):
                with gr.Tab(f"{number} · {title}", id=title) as label:
                    labels.append(label)
                    match title:
                        case "Data":
                            data_tab.build(page)
                        case "Recipe":
                            recipe_tab.build(page)
                        case "Train":
                            training = train_tab.build(page, label)
                        case "Compare":
                            comparing = compare_tab.build(page)
                        case "Publish":
                            publish_tab.build(page)
                    if number < len(STEPS):
                        following = STEPS[number]
                        go = gr.Button(f"Next: {following} →", elem_id=f"next-{following.lower()}")
                        go.click(
                            lambda following=following: gr.update(selected=following),
                            None,
                            tabs,
                            show_progress="hidden",
                            **PRIVATE,
                        )
                        go_on.append(go)
            with gr.Tab("Runs", id="Runs") as runs:
                runs_tab.build(page, runs)
        _code_snippets(page)
        _guide(page, labels, go_on, next_step)
        _demo(page, demo, tabs, training, comparing)
        _on_load(page, blocks)
    for handler in blocks.fns.values():
        if handler.api_name == "_check_login_status":  # Gradio's own, of the button to sign in
            handler.api_visibility = "private"
    return blocks.queue(max_size=64, default_concurrency_limit=8)


def _guide(
    page: PageContext, labels: list[gr.Tab], go_on: list[gr.Button], next_step: gr.Markdown
) -> None:
    """Keep the marks on the tabs and the sentence above them true."""

    @show_errors
    def guide(values: dict[Any, Any]) -> dict[Any, Any]:
        status, has_adapter = values[page.state] or (None, False)
        fresh = bool(values[page.data]) and values[page.data] != values[page.trained]
        marks, sentence = render_overview.guide(fresh, values[page.num_rows], status, has_adapter)
        titles = [
            f"{number} · {title} {mark}"
            for number, (title, mark) in enumerate(zip(STEPS, marks, strict=True), 1)
        ]
        done = {
            button: gr.update(variant="primary" if mark == "✓" else "secondary")
            for button, mark in zip(go_on, marks, strict=False)
        }
        return {
            next_step: sentence,
            **done,
            **{label: gr.update(label=title) for label, title in zip(labels, titles, strict=True)},
        }

    told = [page.data, page.trained, page.num_rows, page.state]
    gr.on(
        [one.change for one in told],
        guide,
        set(told),
        [next_step, *go_on, *labels],
        show_progress="hidden",
        **PRIVATE,
    )


def _code_snippets(page: PageContext) -> None:
    """The journey as commands and as Python, with what the page shows filled in."""
    with gr.Accordion("The same without the page", open=False) as accordion:
        shell = gr.Code(
            language="shell", label="Command line", interactive=False, elem_id="as-commands"
        )
        python = gr.Code(language="python", label="Python", interactive=False, elem_id="as-python")

    @show_errors
    def write(values: dict[Any, Any]) -> list[str]:
        if (
            not values[page.data] and values[page.run]
        ):  # the page was loaded anew: what is left is the run
            run = page.chosen_run(values)
            return list(render_overview.commands(source_of(run), "", {}, run.recipe))
        return list(
            render_overview.commands(
                values[page.data],
                values[page.held_out],
                values[page.column_mapping],
                page.form.recipe(values),
            )
        )

    accordion.expand(write, page.for_training, [shell, python], show_progress="hidden", **PRIVATE)


def _demo(
    page: PageContext,
    button: gr.Button,
    tabs: gr.Tabs,
    training: train_tab.TrainTab,
    comparing: compare_tab.CompareTab,
) -> None:
    """One click from the sample data to the comparison: a real training, then three held-out rows and the scores."""

    @show_errors
    def begin(values: dict[Any, Any]) -> Iterator[Any]:
        yield from training.make(values, {"data": DEMO_DATA}, {}, name="The demo")

    @show_errors
    def wait(values: dict[Any, Any]) -> Iterator[Any]:
        run = page.chosen_run(values)
        while (status := run.status()) in ("queued", "running") or (
            status == "paused" and zerogpu_slices.is_between_slices(run.history())
        ):
            yield gr.skip()
            time.sleep(0.5)
        if status != "finished":  # whoever paused or stopped it wants to stay where they are
            raise gr.Error(
                "The demo's training did not finish, so there is nothing to compare. Press Resume on Train.",
                print_exception=False,
            )
        yield gr.update(selected="Compare")

    chosen = {page.visitor, page.run}
    hidden: dict[str, Any] = {"show_progress": "hidden", **PRIVATE}
    # a step of its own: what a generator shows is lost where its next yield comes at once
    shown = button.click(
        lambda: (DEMO_DATA, {}, gr.update(selected="Train")),
        None,
        [page.data, page.column_mapping, tabs],
        **hidden,
    )
    starting = shown.success(begin, chosen, [*training.begins, *training.outputs], **hidden)
    reset_on_failure(starting, training.ready())
    training.cancel.click(None, None, None, cancels=starting, **PRIVATE)
    starting.success(wait, chosen, tabs, concurrency_limit=None, **hidden).success(
        show_errors(comparing.take_rows),
        {*chosen, comparing.taken, comparing.how_many},
        comparing.taken_outputs,
        **hidden,
    ).success(
        show_errors(comparing.answer, where=comparing.progress),
        comparing.asked,
        comparing.answered_outputs,
        **hidden,
    ).success(
        show_errors(comparing.evaluate, where=comparing.scoring),
        chosen,
        comparing.scored_outputs,
        **hidden,
    )


def _on_load(page: PageContext, blocks: gr.Blocks) -> None:
    """Know the visitor again, and list their runs, newest first."""

    @show_errors
    def arrive(values: dict[Any, Any]) -> dict[Any, Any]:
        threading.Thread(target=page.workers.warm, daemon=True).start()
        known = values | {page.visitor: new_visitor(values[page.visitor])}
        newest = next(iter(list_runs(*page.owners(known))), None)
        shown = (
            page.form.values(newest.recipe)
            if newest and newest.status() in render_overview.UNFINISHED
            else {}
        )
        return {
            page.visitor: known[page.visitor],
            page.run: page.runs(known),
            page.state: ["", False],
            **shown,
        }

    page.run.change(lambda run: run or "", page.run, page.shown, show_progress="hidden", **PRIVATE)
    told = [page.visitor, page.run, page.state, *page.form.widgets.values()]
    blocks.load(arrive, {page.visitor, page.run}, told, show_progress="hidden", **PRIVATE)


def launch(**options: Any) -> Any:
    """Serve the page: on a Space as the Space wants it, elsewhere on 127.0.0.1. Trainings that the machine took down with it go on."""
    if settings.on_zerogpu():
        zerogpu.import_libraries()
    else:
        resume_interrupted()
    start_pruner()
    return build().launch(
        server_port=None
        if settings.on_space()
        else int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
        max_file_size=int(
            settings.max_file_megabytes() * 2e6
        ),  # so that our own sentence about the limit is the one that is read
        theme=theme.theme(),
        css_paths=[theme.CSS],
        run_history=False,
        state_session_capacity=gradio_compat.MAX_SESSIONS,
        app_kwargs={
            "middleware": [Middleware(SecurityMiddleware)],
            "lifespan": gradio_compat.lean_sessions,
        },
        mcp_server=True,  # the endpoints of api/ as an agent's tools
        ssr_mode=False,
        footer_links=[],
        **options,
    )
