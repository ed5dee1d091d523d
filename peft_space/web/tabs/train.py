"""The Train tab: start, watch, pause, stop and resume a training.

Training runs in another process. The tab reads its events, so a reload loses nothing.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from peft_space import settings
from peft_space.runs import quotas
from peft_space.runs.run import Run
from peft_space.runs.store import open_run, unique_name
from peft_space.runtime import zerogpu
from peft_space.runtime.supervisor import start_training
from peft_space.web import theme
from peft_space.web.components import Operation, cancel_button, reset_on_failure, show_errors
from peft_space.web.context import (
    HIDDEN,
    PRIVATE,
    SECONDS_IDLE,
    SECONDS_LIVE,
    Inputs,
    PageContext,
    Updates,
    Values,
)
from peft_space.web.panels import remote_training as remote_training_panel
from peft_space.web.render import train as render_train
from peft_space.web.render.overview import RESUMABLE

_LIVE = ("queued", "on_job", "running")
_CAN_RESUME = ("new", "stopped", *RESUMABLE)
_COLORS = {"training": theme.TEAL, "held out": theme.AMBER, "overfitting": theme.RED}
_DETAILS = ("learning rate", "gradient norm", "tokens a second")


class TrainTab:
    """The tab's components, and the handlers that the demo uses too."""

    def __init__(self, page: PageContext):
        self.page = page
        self.about_to_train = gr.Markdown(elem_id="about-to-train")
        self._place_buttons()
        with gr.Row(visible=settings.on_zerogpu()):
            self.slice_seconds = gr.Number(
                settings.slice_seconds(),
                precision=0,
                minimum=5,
                maximum=3600,
                elem_id="slice-seconds",
                label="GPU time per slice (s)",
                info="Keep this page open while training.",
            )
        self.next_slice = gr.State([])
        """On ZeroGPU [run id, time, whether to resume anyway]; a new value starts a slice."""
        self.preparing = gr.Markdown(elem_id="preparing")
        self.status = gr.Markdown(elem_id="status")
        self.bar = gr.HTML(elem_id="progress")
        self._place_plots()
        with gr.Accordion("Automatic settings", open=False, elem_id="automatic-settings"):
            self.adjustments = gr.Markdown(elem_id="adjustments")
        self.shown = gr.State(None)
        """What the tab shows of the run: nothing is drawn while this stays the same."""
        self.preparation = Operation(page, self.preparing, [self.start], self.cancel)
        buttons = [self.pause, self.stop, self.resume, self.shorten, self.anyway]
        self.run_outputs: list[Any] = [
            *(self.status, self.bar, self.plot, *self.details, self.adjustments),
            *(*buttons, self.shown, page.timer, page.run_state),
        ]
        """Outputs of `show`."""
        started = [page.run, page.trained_data, self.next_slice]
        self.start_outputs = [*self.preparation.components, *started, *self.run_outputs]
        """Outputs of `make_run`."""

    def _place_buttons(self) -> None:
        with gr.Row():
            self.start = gr.Button("Start training", variant="primary", elem_id="start")
            self.cancel = cancel_button("cancel-start")
            self.pause = gr.Button("Pause", interactive=False, elem_id="pause")
            self.stop = gr.Button("Stop", interactive=False, elem_id="stop")
            self.resume = gr.Button("Resume", interactive=False, elem_id="resume")
            self.shorten = gr.Button(
                "Resume with shorter rows", visible=False, elem_id="resume-shorter"
            )
            self.anyway = gr.Button("Resume anyway", visible=False, elem_id="resume-anyway")

    def _place_plots(self) -> None:
        self.plot = gr.LinePlot(
            x="step",
            y="loss",
            color="rows",
            color_title=" ",
            color_map=_COLORS,
            colors_in_legend=["training", "held out"],
            title="Loss",
            height=300,
            visible=False,
            elem_id="loss",
        )
        with gr.Accordion("Learning rate, gradient norm and speed", open=False), gr.Row():
            self.details = [self._detail_plot(figure) for figure in _DETAILS]

    def _detail_plot(self, figure: str) -> gr.LinePlot:
        elem_id = f"plot-{figure.replace(' ', '-')}"
        return gr.LinePlot(
            x="step", y=figure, title=figure.capitalize(), height=200, elem_id=elem_id
        )

    def show(self, run: Run) -> Updates:
        """Show a run as it is now."""
        history = run.history()
        status = run.status(history)
        curves, details = render_train.losses(history), render_train.step_details(history)
        can_leave = status in ("queued", "running") and run.requested_stop() is None
        leave = gr.update(interactive=can_leave)
        variant = "primary" if status in RESUMABLE else "secondary"
        too_long = status == "failed" and render_train.can_halve_max_length(history)
        has_adapter = run.path("adapter", "adapter_config.json").is_file()
        return {
            self.status: render_train.status_markdown(run, history),
            self.bar: render_train.progress_html(history),
            self.plot: gr.update(value=curves, visible=not curves.empty),
            **dict.fromkeys(self.details, details),
            self.adjustments: render_train.adjustments_markdown(history),
            self.pause: leave,
            self.stop: leave,
            self.resume: gr.update(interactive=status in _CAN_RESUME, variant=variant),
            self.shorten: gr.update(visible=too_long),
            self.anyway: gr.update(visible=render_train.can_go_on_anyway(history)),
            self.shown: _fingerprint(run, len(history), status),
            self.page.timer: gr.Timer(SECONDS_LIVE if status in _LIVE else SECONDS_IDLE),
            self.page.run_state: [status, has_adapter],
        }

    def start_run(self, values: Values, start: bool = True) -> Iterator[Updates]:
        """Make a run of the page's data and recipe; start it here if `start`."""
        arguments = self.page.data_arguments(values, exclude_defaults=True)
        yield from self.make_run(values, arguments, start=start)

    def make_run(
        self, values: Values, arguments: dict[str, Any], name: str = "", start: bool = True
    ) -> Iterator[Updates]:
        """Make a run, with progress. A run that fails or is canceled leaves nothing behind.

        Args:
            values: of `PageContext.selection`.
            arguments: of the operation `make_run`: data, recipe and so on.
            name: of the run; by default it is made of data and base model.
            start: train it here.
        """
        page, owner = self.page, self.page.owner(values)
        folder = quotas.new_run(owner)

        def show(result: dict[str, Any]) -> Updates:
            run = Run(folder)
            run.rename(unique_name(owner, name or run.name, but=run))
            started = self.train(run) if start else {}
            runs = page.run_list(values, folder.name)
            shown = {page.run: runs, page.trained_data: arguments["data"], self.preparing: ""}
            return {**shown, **started, **self.show(run)}

        yield self.preparation.begin("Preparing…")
        directory = str(folder)
        yield from self.preparation.stream("make_run", show, directory=directory, **arguments)

    def train(self, run: Run, shorter: bool = False, anyway: bool = False) -> Updates:
        """Start or resume a training, in a process or in slices.

        Args:
            run: to train.
            shorter: halve the length limit, because memory did not suffice.
            anyway: resume although data, recipe or libraries have changed.
        """
        if not settings.on_zerogpu():
            start_training(run, shorter, anyway)
            return {}
        zerogpu.start(run, shorter)
        return {self.next_slice: [run.directory.name, time.time(), anyway]}

    def train_slice(self, values: Values) -> Updates:
        """Train one slice, in an event with the visitor's fresh claim to a GPU; plan the next."""
        if not values[self.next_slice]:
            return {self.next_slice: []}
        run_id, _, anyway = values[self.next_slice]
        run = open_run(self.page.owners(values), run_id)
        limit = int(values[self.slice_seconds] or settings.slice_seconds())
        more = zerogpu.run_slice(run, self.page.workers, limit, anyway)
        return {self.next_slice: [run_id, time.time(), anyway] if more else []}

    def request(self, values: Values, how: Any) -> Updates:
        """Ask the selected run's training to pause or stop."""
        run = self.page.selected_run(values)
        run.request_stop(how)
        return self.show(run)

    def resume_run(self, values: Values, shorter: bool = False, anyway: bool = False) -> Updates:
        """Resume the selected run; see `train`."""
        run = self.page.selected_run(values)
        quotas.check_open_runs(self.page.owner(values))
        return {self.preparing: "", **self.train(run, shorter, anyway), **self.show(run)}

    def announce(self, values: Values) -> str:
        """Say what *Start training* would train, from the same widgets at the same time."""
        page = self.page
        data, num_rows = values[page.data], values[page.num_rows]
        if not data:
            return "Add data first."
        if not num_rows:
            return "⚠ Your data is not ready yet: see the Data tab."
        recipe = page.form.read(values)
        words = render_train.about_to_train(render_train.names_of(data), num_rows, recipe)
        if not settings.on_zerogpu():
            return words
        limit, measured = values[self.slice_seconds], values[page.measured_seconds]
        return f"{words}\n\n{render_train.slices_preview(limit, measured)}"

    def follow(self, values: Values) -> Updates:
        """Show what has changed since the last check."""
        if not values[self.page.run]:
            nothing = {self.shown: None, self.page.run_state: None}
            return {**nothing, self.status: "No training yet."}
        run = self.page.selected_run(values)
        history = run.history()
        if values[self.shown] == _fingerprint(run, len(history), run.status(history)):
            return {self.shown: values[self.shown]}
        return self.show(run)


def build(page: PageContext, tab_item: gr.Tab) -> TrainTab:
    """Place and wire the tab."""
    tab = TrainTab(page)
    _wire_start(page, tab)
    inputs: Inputs = {
        tab.slice_seconds,
        page.num_rows,
        page.measured_seconds,
        *page.training_inputs,
    }
    states: list[Any] = [page.data, page.num_rows, page.measured_seconds, tab.slice_seconds]
    changes = [tab_item.select, *(state.change for state in states)]
    gr.on(changes, show_errors(tab.announce), inputs, tab.about_to_train, **HIDDEN)
    _wire_follow(page, tab)
    _wire_control(page, tab)
    return tab


def _wire_start(page: PageContext, tab: TrainTab) -> None:
    outputs = tab.start_outputs
    starting = tab.preparation.on_click(tab.start, tab.start_run, page.training_inputs, outputs)

    def prepare_only(values: Values) -> Iterator[Updates]:
        yield from tab.start_run(values, start=False)

    prepare = show_errors(prepare_only, tab.preparing)
    preparing = remote_training_panel.build(page, prepare, outputs)
    reset_on_failure(preparing, tab.preparation.ready)
    tab.preparation.cancel_events([starting, preparing], "")
    slice_inputs: Inputs = {page.visitor, tab.next_slice, tab.slice_seconds}
    unlimited: dict[str, Any] = {"concurrency_limit": None, **HIDDEN}
    tab.next_slice.change(show_errors(tab.train_slice), slice_inputs, tab.next_slice, **unlimited)


def _wire_follow(page: PageContext, tab: TrainTab) -> None:
    inputs, follow = {*page.selection, tab.shown}, show_errors(tab.follow)
    gr.on([page.timer.tick, page.run_id.change], follow, inputs, tab.run_outputs, **HIDDEN)
    page.fallback_timer.tick(follow, inputs, tab.run_outputs, **HIDDEN)
    page.run.input(lambda: "", None, tab.preparing, **HIDDEN)  # it was about another run


def _wire_control(page: PageContext, tab: TrainTab) -> None:
    @show_errors
    def pause(values: Values) -> Updates:
        return tab.request(values, "pause")

    @show_errors
    def stop(values: Values) -> Updates:
        return tab.request(values, "stop")

    for button, request in ((tab.pause, pause), (tab.stop, stop)):
        button.click(request, page.selection, tab.run_outputs, **PRIVATE)

    def resumer(**options: bool) -> Callable[[Values], Updates]:
        return show_errors(lambda values: tab.resume_run(values, **options))

    outputs = [tab.preparing, tab.next_slice, *tab.run_outputs]
    tab.resume.click(resumer(), page.selection, outputs, **PRIVATE)
    tab.shorten.click(resumer(shorter=True), page.selection, outputs, **PRIVATE)
    tab.anyway.click(resumer(anyway=True), page.selection, outputs, **PRIVATE)


def _fingerprint(run: Run, num_events: int, status: str) -> list[Any]:
    return [run.directory.name, run.name, num_events, status, run.requested_stop()]
