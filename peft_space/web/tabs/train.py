"""The Train tab: start, watch, pause, stop and resume. The training runs elsewhere; this reads its events, so a reload loses nothing."""

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from peft_space import settings
from peft_space.errors import UserError
from peft_space.runs import quotas
from peft_space.runs.run import Run
from peft_space.runs.store import open_run, unique_name
from peft_space.runtime import zerogpu
from peft_space.runtime.supervisor import start_training
from peft_space.web import theme
from peft_space.web.context import (
    PRIVATE,
    SECONDS_IDLE,
    SECONDS_LIVE,
    PageContext,
    reset_on_failure,
    show_errors,
)
from peft_space.web.panels import remote_training as remote_training_panel
from peft_space.web.render import train as render_train

_UNFINISHED = ("paused", "interrupted", "failed")
_RESUMABLE = ("new", "paused", "stopped", "interrupted", "failed")


class TrainTab:
    """The tab's components, and the handlers that other tabs use too."""

    def __init__(self, page: PageContext):
        self.page = page
        self.about_to_train = gr.Markdown(elem_id="about-to-train")
        with gr.Row():
            self.start = gr.Button("Start training", variant="primary", elem_id="start")
            self.cancel = gr.Button("Cancel", visible=False, elem_id="cancel-start")
            self.pause = gr.Button("Pause", interactive=False, elem_id="pause")
            self.stop = gr.Button("Stop", interactive=False, elem_id="stop")
            self.resume = gr.Button("Resume", interactive=False, elem_id="resume")
            self.shorten = gr.Button(
                "Resume with shorter rows", visible=False, elem_id="resume-shorter"
            )
            self.anyway = gr.Button("Resume anyway", visible=False, elem_id="resume-anyway")
        with gr.Row(visible=settings.on_zerogpu()):
            self.slice_seconds = gr.Number(
                settings.slice_seconds(), precision=0, minimum=5, maximum=3600, elem_id="slice-seconds",
                label="Longest slice, in seconds of your GPU quota", info="Each slice is begun by this page, so keep it open.",
            )  # fmt: skip
        self.slice = gr.State([])
        """On ZeroGPU [run, number, whether to go on anyway] of the slice that is to be trained next; another value begins it."""
        self.preparing = gr.Markdown(elem_id="preparing")
        self.status = gr.Markdown(elem_id="status")
        self.bar = gr.HTML(elem_id="progress")
        colours = {"training": theme.TEAL, "held out": theme.AMBER, "over-fitting": theme.RED}
        self.plot = gr.LinePlot(
            x="step", y="loss", color="rows", color_title=" ", color_map=colours, colors_in_legend=["training", "held out"],
            title="Loss", height=300, visible=False, elem_id="loss",
        )  # fmt: skip
        with gr.Accordion("Learning rate, gradient norm and speed", open=False), gr.Row():
            self.details = [
                gr.LinePlot(
                    x="step",
                    y=figure,
                    title=figure.capitalize(),
                    height=200,
                    elem_id=f"plot-{figure.replace(' ', '-')}",
                )
                for figure in ("learning rate", "gradient norm", "tokens a second")
            ]
        with gr.Accordion("What was chosen for this machine, and why", open=False):
            self.adjustments = gr.Markdown(elem_id="adjustments")
        self.seen = gr.State(None)
        self.begins = [page.run, page.trained, self.preparing, self.start, self.cancel, self.slice]
        self.outputs = [
            self.status, self.bar, self.plot, *self.details, self.adjustments, self.pause, self.stop, self.resume,
            self.shorten, self.anyway, self.seen, page.timer, page.state,
        ]  # fmt: skip

    def show(self, run: Run) -> dict[Any, Any]:
        """Everything the tab says about a run, as it is now."""
        happened = run.history()
        state = run.status(happened)
        curves, details = render_train.losses(happened), render_train.step_details(happened)
        can_leave = state in ("queued", "running") and run.requested_stop() is None
        return {
            self.status: render_train.status_markdown(run, happened),
            self.bar: render_train.progress_html(happened),
            self.plot: gr.update(value=curves, visible=not curves.empty),
            **dict.fromkeys(self.details, details),
            self.adjustments: render_train.adjustments_markdown(happened),
            self.pause: gr.update(interactive=can_leave),
            self.stop: gr.update(interactive=can_leave),
            self.resume: gr.update(
                interactive=state in _RESUMABLE,
                variant="primary" if state in _UNFINISHED else "secondary",
            ),
            self.shorten: gr.update(
                visible=state == "failed" and render_train.wants_shorter_rows(happened)
            ),
            self.anyway: gr.update(visible=render_train.can_go_on_anyway(happened)),
            self.seen: _mark(run, len(happened), state),
            self.page.timer: gr.Timer(
                SECONDS_LIVE if state in ("queued", "on_job", "running") else SECONDS_IDLE
            ),
            self.page.state: [state, run.path("adapter", "adapter_config.json").is_file()],
        }

    def begin(self, values: dict[Any, Any], start: bool = True) -> Iterator[dict[Any, Any]]:
        """Make a run of the page's data and recipe, telling what is being done, and start it, unless it is for elsewhere."""
        page = self.page
        if not values[page.data]:
            raise UserError(
                "todo",
                "There is no data yet. Bring a file, or use the sample data, on the Data tab.",
            )
        recipe = page.form.recipe(values).model_dump(exclude_defaults=True)
        yield from self.make(values, page.data_arguments(values), recipe, start=start)

    def make(
        self,
        values: dict[Any, Any],
        data: dict[str, Any],
        recipe: dict[str, Any],
        name: str = "",
        start: bool = True,
    ) -> Iterator[dict[Any, Any]]:
        """A new run of what is given, checked, and started unless it is for elsewhere. What fails or is cancelled leaves nothing behind."""
        page = self.page
        folder = quotas.new_run(page.owner(values))
        yield {
            self.preparing: "Preparing…",
            self.start: gr.update(interactive=False),
            self.cancel: gr.update(visible=True),
        }
        for message in page.workers.stream(
            "make_run", directory=str(folder), recipe=recipe, **data
        ):
            if report := message.get("report"):
                yield {self.preparing: f"{report['what']}…"}
            elif "result" not in message:
                yield {self.preparing: gr.skip()}
        run = Run(folder)
        run.rename(unique_name(page.owner(values), name or run.name, but=run))
        began = self.train(run) if start else {}
        ready = {self.preparing: "", **self.ready()}
        yield {
            page.run: page.runs(values, folder.name),
            page.trained: data["data"],
            **ready,
            **began,
            **self.show(run),
        }

    def train(self, run: Run, shorter: bool = False, anyway: bool = False) -> dict[Any, Any]:
        """Begin or go on with a training, here or in slices."""
        if not settings.on_zerogpu():
            start_training(run, shorter, anyway)
            return {}
        zerogpu.start(run, shorter)
        return {self.slice: [run.directory.name, time.time(), anyway]}

    def train_slice(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """One slice, in an event of its own, so that it comes with the visitor's own and fresh claim to a GPU; and which is the next."""
        if not values[self.slice]:
            return {self.slice: []}
        run_id, _, anyway = values[self.slice]
        run = open_run(self.page.owners(values), run_id)
        limit = int(values[self.slice_seconds] or settings.slice_seconds())
        more = zerogpu.run_slice(run, self.page.workers, limit, anyway)
        return {self.slice: [run_id, time.time(), anyway] if more else []}

    def ready(self) -> dict[Any, Any]:
        """What the buttons are when nothing is being prepared."""
        return {self.start: gr.update(interactive=True), self.cancel: gr.update(visible=False)}

    def announce(self, values: dict[Any, Any]) -> str:
        """What *Start training* would train, read from the same widgets at the same time."""
        page = self.page
        if not values[page.data]:
            return "Bring data on the first tab, then press *Start training*."
        if not values[page.num_rows]:
            return "⚠ Your data are not ready yet: the Data tab says what they need."
        words = render_train.about_to_train(
            render_train.names_of(values[page.data]),
            values[page.num_rows],
            page.form.recipe(values),
        )
        if not settings.on_zerogpu():
            return words
        return f"{words}\n\n{render_train.before_slices(values[self.slice_seconds], values[page.measured])}"

    def follow(self, values: dict[Any, Any]) -> Any:
        """What has changed since the page last looked."""
        if not values[self.page.run]:
            return {self.seen: None, self.page.state: None, self.status: "No training yet."}
        run = self.page.chosen_run(values)
        happened = run.history()
        if values[self.seen] == _mark(run, len(happened), run.status(happened)):
            return {self.seen: values[self.seen]}
        return self.show(run)


def build(page: PageContext, opened: gr.Tab) -> TrainTab:
    """Place and wire the tab."""
    tab = TrainTab(page)
    chosen = {page.visitor, page.run}

    @show_errors
    def leave_with(values: dict[Any, Any], how: Any) -> dict[Any, Any]:
        run = page.chosen_run(values)
        run.request_stop(how)
        return tab.show(run)

    @show_errors
    def go_on(
        values: dict[Any, Any], shorter: bool = False, anyway: bool = False
    ) -> dict[Any, Any]:
        run = page.chosen_run(values)
        quotas.check_open_runs(page.owner(values))
        return {tab.preparing: "", **tab.train(run, shorter, anyway), **tab.show(run)}

    hidden: dict[str, Any] = {"show_progress": "hidden", **PRIVATE}
    starting = tab.start.click(
        show_errors(tab.begin, where=tab.preparing),
        page.for_training,
        [*tab.begins, *tab.outputs],
        **hidden,
    )
    reset_on_failure(starting, tab.ready())
    tab.slice.change(
        show_errors(tab.train_slice),
        {page.visitor, tab.slice, tab.slice_seconds},
        tab.slice,
        concurrency_limit=None,
        **hidden,
    )

    def make_only(values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        yield from tab.begin(values, start=False)

    making = remote_training_panel.build(
        page,
        (
            show_errors(make_only, where=tab.preparing),
            page.for_training,
            [*tab.begins, *tab.outputs],
        ),
    )
    reset_on_failure(making, tab.ready())
    tab.cancel.click(
        lambda: {tab.preparing: "", **tab.ready()},
        None,
        tab.begins,
        cancels=[starting, making],
        **hidden,
    )
    asked = {page.num_rows, page.measured, tab.slice_seconds, *page.for_training}
    told_anew = [
        opened.select,
        page.data.change,
        page.num_rows.change,
        page.measured.change,
        tab.slice_seconds.change,
    ]
    gr.on(told_anew, show_errors(tab.announce), asked, tab.about_to_train, **hidden)
    gr.on(
        [page.timer.tick, page.shown.change],
        show_errors(tab.follow),
        {*chosen, tab.seen},
        tab.outputs,
        **hidden,
    )
    page.lookout.tick(show_errors(tab.follow), {*chosen, tab.seen}, tab.outputs, **hidden)
    page.run.input(
        lambda: "", None, tab.preparing, **hidden
    )  # what was said of another start is no longer so
    tab.pause.click(lambda values: leave_with(values, "pause"), chosen, tab.outputs, **PRIVATE)
    tab.stop.click(lambda values: leave_with(values, "stop"), chosen, tab.outputs, **PRIVATE)
    going = [tab.preparing, tab.slice, *tab.outputs]
    tab.resume.click(lambda values: go_on(values), chosen, going, **PRIVATE)
    tab.shorten.click(lambda values: go_on(values, True), chosen, going, **PRIVATE)
    tab.anyway.click(lambda values: go_on(values, False, True), chosen, going, **PRIVATE)
    return tab


def _mark(run: Run, num_events: int, status: str) -> list[Any]:
    """What has been shown; while it stays the same there is nothing to draw."""
    return [run.directory.name, run.name, num_events, status, run.requested_stop()]
