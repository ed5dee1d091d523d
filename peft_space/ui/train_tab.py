"""The Train tab: start, watch, stop and resume. The training runs elsewhere; this reads its events, so a reload loses nothing."""

from typing import Any

import gradio as gr

from peft_space.errors import UserError
from peft_space.execution.local import start_training
from peft_space.run import Run, new_run_folder
from peft_space.ui import view
from peft_space.ui.page import Page, tells_errors


def build(page: Page) -> None:
    """Place and wire the tab."""
    with gr.Row():
        start = gr.Button("Start training", variant="primary", elem_id="start")
        stop = gr.Button("Stop", interactive=False, elem_id="stop")
        resume = gr.Button("Resume", interactive=False, elem_id="resume")
    status = gr.Markdown("No training yet. Bring data on the first tab, then press *Start training*.", elem_id="status")
    plot = gr.LinePlot(x="step", y="loss", color="rows", title="Loss", height=320, visible=False, elem_id="loss")
    seen = gr.State(None)
    timer = gr.Timer(1.0)
    outputs = [status, plot, stop, resume, seen]

    def show(run: Run) -> dict[Any, Any]:
        happened = run.history()
        state = run.status(happened)
        curves = view.losses(happened)
        return {
            status: view.status_markdown(run, happened),
            plot: gr.update(value=curves, visible=not curves.empty),
            stop: gr.update(interactive=state in ("queued", "running") and not run.asked_to_stop()),
            resume: gr.update(interactive=state in ("new", "paused", "stopped", "interrupted", "failed")),
            seen: _mark(run, len(happened), state),
        }

    @tells_errors
    def begin(values: dict[Any, Any]) -> dict[Any, Any]:
        if not values[page.data]:
            raise UserError("There is no data yet. Bring a file, or use the sample data, on the Data tab.")
        folder = new_run_folder(page.owner(values))
        recipe = page.form.recipe(values).model_dump(exclude_defaults=True)
        page.workers.call("make", directory=str(folder), data=values[page.data], recipe=recipe, held_out=values[page.held_out] or None)
        run = Run(folder)
        start_training(run)
        return {page.run: page.runs(values, folder.name), **show(run)}

    @tells_errors
    def follow(values: dict[Any, Any]) -> Any:
        if not values[page.run]:
            return {seen: None}
        run = page.chosen_run(values)
        happened = run.history()
        if values[seen] == _mark(run, len(happened), run.status(happened)):
            return {seen: values[seen]}
        return show(run)

    @tells_errors
    def ask_to_stop(values: dict[Any, Any]) -> Any:
        page.chosen_run(values).ask_to_stop()
        return gr.update(interactive=False)

    @tells_errors
    def go_on(values: dict[Any, Any]) -> dict[Any, Any]:
        run = page.chosen_run(values)
        run.forget_stop()
        start_training(run)
        return show(run)

    chosen = {page.visitor, page.run}
    private: Any = {"api_visibility": "private"}
    start.click(begin, {page.visitor, page.run, page.data, page.held_out, *page.form.inputs}, [page.run, *outputs], **private)
    timer.tick(follow, {*chosen, seen}, outputs, show_progress="hidden", **private)
    page.run.change(lambda: None, None, seen, **private)
    stop.click(ask_to_stop, chosen, stop, **private)
    resume.click(go_on, chosen, outputs, **private)


def _mark(run: Run, num_events: int, status: str) -> list[Any]:
    """What has been shown; while it stays the same there is nothing to draw."""
    return [run.directory.name, num_events, status, run.asked_to_stop()]
