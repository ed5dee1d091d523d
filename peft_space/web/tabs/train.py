"""The Train tab: start, watch, pause, stop and resume a training.

Training runs in another process. The tab reads its events, so a reload loses nothing.
"""

import functools
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from peft_space import settings
from peft_space.errors import UserError, user_message
from peft_space.runs import quotas
from peft_space.runs.run import Run
from peft_space.runs.store import open_run, unique_name
from peft_space.runtime import zerogpu
from peft_space.runtime.supervisor import start_training
from peft_space.web import states
from peft_space.web.components import Operation, cancel_button, reset_on_failure, show_errors
from peft_space.web.context import HIDDEN, PRIVATE, Inputs, PageContext, Updates, Values
from peft_space.web.panels import curves as curves_panel
from peft_space.web.panels import grid as grid_panel
from peft_space.web.panels import remote_training as remote_training_panel
from peft_space.web.render import progress as render_progress
from peft_space.web.render import train as render_train


class TrainTab:
    """The tab's components, and the handlers that the demo uses too."""

    def __init__(self, page: PageContext):
        self.page = page
        with gr.Column(elem_id="train-draft") as self.draft:
            self._place_start()
            self.preparing = gr.Markdown(elem_id="preparing")
            grid_panel.build(page)
        with gr.Column(visible=False, elem_id="train-run") as self.of_run:
            self._place_run()
        self.next_slice = gr.State([])
        """On ZeroGPU [run id, time, whether to resume anyway]; a new value starts a slice."""
        self.shown = gr.State(None)
        """What the tab shows of the run: nothing is drawn while this stays the same."""
        self.preparation = Operation(page, self.preparing, [self.start], self.cancel)
        buttons = [self.pause, self.stop, self.resume, self.shorten, self.anyway, self.see]
        self.run_outputs: list[Any] = [
            *(self.status, self.bar, self.tiles, *self.curves.outputs, self.adjustments, self.log),
            *(*buttons, self.shown, page.timer, page.run_state, page.run_progress),
        ]
        """Outputs of `show`."""
        self.start_outputs = [
            *(*self.preparation.components, page.run, page.runs_changed, self.next_slice),
            *self.run_outputs,
        ]
        """Outputs of `make_run`."""
        self.announced = [self.about_to_train, self.summary, self.slices]
        self.announced += [self.hint, self.start, self.to_data]
        """Outputs of `announce`."""
        self.restored = [*self.preparation.components, *self.announced]
        """Outputs of `restore`."""
        draft = (page.data_state, page.recipe_state, page.measured_seconds)
        self.draft_inputs: Inputs = {*draft, self.slice_seconds}
        """Inputs of both."""

    def _place_start(self) -> None:
        nothing = render_train.about_to_train_html("", 0, "", {})
        self.about_to_train = gr.HTML(nothing, elem_id="about-to-train", min_height=130)
        self.summary = gr.HTML(elem_id="train-summary")
        self.slice_seconds = gr.Number(
            settings.slice_seconds(), precision=0, minimum=5, maximum=3600,
            label="GPU time per slice (s)", info="Keep this page open while training.",
            visible=settings.on_zerogpu(), elem_id="slice-seconds",
        )  # fmt: skip
        self.slices = gr.Markdown(elem_id="slices", visible=settings.on_zerogpu())
        with gr.Row(elem_classes=["footer"]):
            self.start = gr.Button(
                "Start training", variant="primary", size="lg", scale=0, min_width=220,
                interactive=False, elem_id="start",
            )  # fmt: skip
            self.cancel = cancel_button("cancel-start")
            missing = states.missing(states.NO_DATA, states.DEFAULT_RECIPE)
            self.hint = gr.Markdown(missing, elem_id="train-missing")
            self.to_data = gr.Button("Go to Data", size="md", scale=0, elem_id="to-data")

    def _place_run(self) -> None:
        self.status = gr.Markdown(elem_id="status")
        with gr.Row(elem_id="train-buttons"):
            small: dict[str, Any] = {"size": "md", "scale": 0, "min_width": 210}
            hidden: dict[str, Any] = {"visible": False, **small}
            self.see = gr.Button(
                "See before and after", variant="primary", elem_id="see-comparison", **hidden
            )
            self.pause = gr.Button("Pause", elem_id="pause", **hidden)
            self.stop = gr.Button("Stop and keep", variant="stop", elem_id="stop", **hidden)
            self.resume = gr.Button("Resume", variant="primary", elem_id="resume", **hidden)
            self.shorten = gr.Button("Resume with shorter rows", elem_id="resume-shorter", **hidden)
            self.anyway = gr.Button("Resume anyway", elem_id="resume-anyway", **hidden)
        self.bar = gr.HTML(elem_id="progress")
        self.tiles = gr.HTML(elem_id="tiles")
        with gr.Column(elem_id="curves"):
            self.curves = curves_panel.build(self.page)
        with gr.Accordion("Automatic settings", open=False, elem_id="automatic-settings"):
            self.adjustments = gr.Markdown(elem_id="adjustments")
        with gr.Accordion("Log", open=False, elem_id="log-panel"):
            self.log = gr.HTML(elem_id="log")
        notify = gr.Button("Notify me when a training ends", size="sm", scale=0, elem_id="notify")
        notify.click(None, js="() => window.peftSpace.notify()", **PRIVATE)

    def show(self, run: Run, log: bool = False, smooth: bool = False) -> Updates:
        """Show a run as it is now; `log` and `smooth` are of its curves."""
        history = run.history()
        status = run.status(history)
        leave = gr.update(
            visible=status in ("queued", "running"), interactive=run.requested_stop() is None
        )
        too_long = status == "failed" and render_train.can_halve_max_length(history)
        state = states.run_state_of(run, status)
        return {
            self.status: render_train.status_markdown(run, history),
            self.bar: render_progress.progress_html(history) if status in states.ACTIVE else "",
            self.tiles: render_progress.tiles_html(history, status),
            **self.curves.show(history, log, smooth),
            self.adjustments: render_train.adjustments_markdown(history),
            self.log: render_progress.log_html(history),
            self.pause: leave,
            self.stop: leave,
            self.resume: gr.update(
                visible=status in states.CAN_RESUME,
                variant="secondary" if status == "stopped" else "primary",
            ),
            self.shorten: gr.update(visible=too_long),
            self.anyway: gr.update(visible=render_train.can_go_on_anyway(history)),
            self.see: gr.update(visible=state[1] and status in ("finished", "stopped")),
            self.shown: states.fingerprint(run, len(history), status),
            self.page.timer: self.page.timer_for(live=status in states.ACTIVE),
            self.page.run_state: state,
            self.page.run_progress: render_progress.coarse_progress(history, status),
        }

    def start_run(self, values: Values, start: bool = True) -> Iterator[Updates]:
        """Make a run of the page's data and recipe; start it here if `start`."""
        arguments = self.page.data_arguments(values, exclude_defaults=True)
        arguments["recipe"] |= {"base_model": values[self.page.recipe_state]["model"]}
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
            shown = {page.run: folder.name, page.runs_changed: time.time(), self.preparing: ""}
            return {**shown, **started, **self.show(run)}

        yield self.preparation.begin("Preparing: reading the rows and the base model…")
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

    def resume_run(self, values: Values, how: str) -> Updates:
        """Resume the selected run; `how` is empty or an option of `train`."""
        run = self.page.selected_run(values)
        quotas.check_open_runs(self.page.owner(values))
        started = self.train(run, shorter=how == "shorter", anyway=how == "anyway")
        return {self.preparing: "", **started, **self.show(run)}

    def announce(self, values: Values) -> Updates:
        """Say what *Start training* would train, and what is missing before it can start."""
        page = self.page
        data, recipe = values[page.data_state], values[page.recipe_state]
        words = states.missing(data, recipe)
        source, model = data["source"], recipe["model"]
        limit, measured = values[self.slice_seconds], values[page.measured_seconds]
        about = render_train.about_to_train_html(source, data["rows"], model, recipe["changed"])
        return {
            self.about_to_train: about,
            self.summary: gr.update(visible=True),
            self.slices: render_train.slices_preview(limit or 0, measured),
            self.hint: words,
            self.start: gr.update(interactive=not words),
            self.to_data: gr.update(visible=data["kind"] == "none"),
        }

    def restore(self, values: Values) -> Updates:
        """End a preparation, so that the tab is about the new fine-tune again."""
        return {self.preparing: "", **self.preparation.ready, **self.announce(values)}

    def follow(self, values: Values) -> Updates:
        """Show what has changed since the last check."""
        if not values[self.page.run]:
            return {self.shown: None, self.page.run_state: None, self.page.run_progress: None}
        try:
            run = self.page.selected_run(values)
        except UserError as error:  # else every check would report the error again
            gone = "This run was deleted, perhaps in another window."
            gr.Info(gone if error.code == "runs.unknown" else user_message(error), duration=5)
            return {self.page.run: ""}
        history = run.history()
        if values[self.shown] == states.fingerprint(run, len(history), run.status(history)):
            return {self.shown: values[self.shown]}
        return self.show(run, values[self.curves.log], values[self.curves.smooth])


def build(page: PageContext) -> TrainTab:
    """Place and wire the tab."""
    tab = TrainTab(page)
    _wire_start(page, tab)
    page.listen("draft", tab.announce, tab.draft_inputs, tab.announced)
    if settings.on_zerogpu():
        changes = [page.measured_seconds.change, tab.slice_seconds.change]
        announce = show_errors(tab.announce)
        gr.on(changes, announce, tab.draft_inputs, tab.announced, **HIDDEN)

    def show_view(values: Values) -> Updates:
        is_run = bool(values[page.run])
        return {tab.draft: gr.update(visible=not is_run), tab.of_run: gr.update(visible=is_run)}

    page.listen("run", show_view, set(), [tab.draft, tab.of_run])
    _wire_follow(page, tab)
    _wire_control(page, tab)
    return tab


def _wire_start(page: PageContext, tab: TrainTab) -> None:
    inputs, outputs = page.training_inputs, tab.start_outputs
    starting = tab.preparation.on_click(tab.start, tab.start_run, inputs, outputs)

    def prepare_only(values: Values) -> Iterator[Updates]:
        yield from tab.start_run(values, start=False)

    prepare = show_errors(prepare_only, tab.preparing)
    preparing = remote_training_panel.build(page, prepare, inputs, outputs)
    reset_on_failure(preparing, tab.preparation.ready)
    canceled: dict[str, Any] = {"cancels": [starting, preparing], **HIDDEN}
    tab.cancel.click(show_errors(tab.restore), tab.draft_inputs, tab.restored, **canceled)
    slice_inputs: Inputs = {page.visitor, tab.next_slice, tab.slice_seconds}
    unlimited: dict[str, Any] = {"concurrency_limit": None, **HIDDEN}
    tab.next_slice.change(show_errors(tab.train_slice), slice_inputs, tab.next_slice, **unlimited)


def _wire_follow(page: PageContext, tab: TrainTab) -> None:
    curves, follow = {tab.curves.log, tab.curves.smooth}, show_errors(tab.follow)
    inputs: Inputs = {*page.selection, tab.shown, *curves}
    outputs = [*tab.run_outputs, page.run]
    gr.on([page.timer.tick, page.run.change], follow, inputs, outputs, **HIDDEN)
    page.fallback_timer.tick(follow, inputs, outputs, **HIDDEN)
    page.reset_with_run({tab.preparing: ""})  # it was about another run


def _wire_control(page: PageContext, tab: TrainTab) -> None:
    for button, how in ((tab.pause, "pause"), (tab.stop, "stop")):
        request = show_errors(functools.partial(tab.request, how=how))
        button.click(request, page.selection, tab.run_outputs, **PRIVATE)

    outputs = [tab.preparing, tab.next_slice, *tab.run_outputs]
    for button, how in ((tab.resume, ""), (tab.shorten, "shorter"), (tab.anyway, "anyway")):
        resume = show_errors(functools.partial(tab.resume_run, how=how))
        button.click(resume, page.selection, outputs, **PRIVATE)
