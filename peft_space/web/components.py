"""How handlers report progress, errors and cancellation, the same way on every tab."""

import functools
import inspect
import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import gradio as gr

from peft_space import settings
from peft_space.errors import as_user_error, user_message
from peft_space.runs.run import Run
from peft_space.runtime.worker_pool import WorkerFault
from peft_space.web.context import HIDDEN, Inputs, PageContext, Updates, Values
from peft_space.web.render.overview import escape

Show = Callable[[dict[str, Any]], Updates]
"""Turns the result of an operation into updates."""
OnReport = Callable[[dict[str, Any]], Updates | None]
"""Turns a progress report into updates; None leaves it to the default."""

TOAST_SECONDS = 10
"""For errors that also stay on the page; other toasts stay until they are closed."""

logger = logging.getLogger(__name__)


_PICK = """
element.addEventListener('click', event => {
  const button = event.target.closest('[data-value]');
  if (button) trigger('click', {value: button.dataset.value});
});
"""


def choices_html(elem_id: str, **options: Any) -> gr.HTML:
    """Return HTML whose `<button data-value=…>` elements can be pressed.

    A handler of its `click` gets the value with `picked`.
    """
    return gr.HTML(elem_id=elem_id, js_on_load=_PICK, **options)


def picked(event: gr.EventData) -> str:
    """Return the `data-value` of the button that was pressed."""
    return str(event.value)


def cancel_button(elem_id: str, **options: Any) -> gr.Button:
    """Return the button that an `Operation` shows while it works."""
    return gr.Button("Cancel", visible=False, elem_id=elem_id, **options)


def cpu_notice(subject: str, needs: str) -> None:
    """On ZeroGPU, note that `subject` runs on the Space's CPU. Call it inside `gr.Blocks`."""
    if settings.on_zerogpu():
        gr.Markdown(
            f"{subject} on this Space's CPU: slower, but doesn't use your GPU quota. {needs}"
        )


class Operation:
    """One operation of a panel: its buttons rest while it works, and a line shows its progress.

    Args:
        page: the shared state.
        progress: shows progress and errors.
        buttons: disabled while the operation works.
        cancel: shown while the operation works.
    """

    def __init__(
        self,
        page: PageContext,
        progress: gr.components.Component,
        buttons: Sequence[gr.Button] = (),
        cancel: gr.Button | None = None,
    ):
        self.page, self.progress, self.cancel = page, progress, cancel
        self.buttons = list(buttons)
        self.components = [progress, *buttons, *([cancel] if cancel else [])]
        """Outputs that every handler of the operation needs."""

    @property
    def ready(self) -> Updates:
        """The buttons while nothing works."""
        return self._button_updates(busy=False)

    def _button_updates(self, busy: bool) -> Updates:
        updates = dict.fromkeys(self.buttons, gr.update(interactive=not busy))
        return updates | ({self.cancel: gr.update(visible=busy)} if self.cancel else {})

    def begin(self, message: str = "Starting…") -> Updates:
        """Return the first update of a handler."""
        return {self.progress: message, **self._button_updates(busy=True)}

    def stream(
        self, name: str, show: Show, on_report: OnReport | None = None, **arguments: Any
    ) -> Generator[Updates]:
        """Run an operation in a worker and yield its progress, then its result and ready buttons.

        Args:
            name: of the operation in `peft_space.operations`.
            show: turns the result into updates.
            on_report: handles special reports.
            arguments: of the operation.
        """
        for message in self.page.workers.stream(name, **arguments):
            if "result" in message:
                yield {**self.ready, **show(message["result"])}
            else:
                report = message.get("report") or {}
                yield self.report(report, on_report)

    def report(self, report: dict[str, Any], on_report: OnReport | None = None) -> Updates:
        """Return the changes of a progress report; an empty one says that the work continues."""
        if report and on_report and (updates := on_report(report)) is not None:
            return updates
        if "what" not in report:
            return {self.progress: gr.skip(), **self._button_updates(busy=True)}
        share = f" ({report['share']:.0%})" if report.get("share") else ""
        return {self.progress: f"{escape(report['what'])}…{share}"}

    def on_click(
        self,
        button: gr.Button,
        handler: Callable[..., Any],
        inputs: Inputs,
        outputs: Sequence[gr.components.Component] = (),
    ) -> Any:
        """Wire a button to a handler of this operation and return the event."""
        changed = list(dict.fromkeys([*self.components, *outputs]))
        event = button.click(show_errors(handler, self.progress), inputs, changed, **HIDDEN)
        if self.ready:
            reset_on_failure(event, self.ready)
        return event

    def cancel_events(self, events: Sequence[Any], message: str = "Canceled.") -> None:
        """Let the cancel button end these events."""
        assert self.cancel is not None
        updates = {self.progress: message, **self.ready}
        self.cancel.click(lambda: updates, None, self.components, cancels=list(events), **HIDDEN)


class SlicedOperation(Operation):
    """An operation on the selected run that may take several slices of GPU time on ZeroGPU.

    The page starts each slice in a new event, so that it carries the visitor's fresh claim to a
    GPU. The next slice starts only while the run stays selected.

    Args:
        page: the shared state.
        name: of the operation.
        progress: shows progress and errors.
        show: turns the run and the result into updates.
    """

    def __init__(
        self,
        page: PageContext,
        name: str,
        progress: gr.components.Component,
        show: Callable[[Run, dict[str, Any]], Updates],
    ):
        super().__init__(page, progress)
        self.name, self._show = name, show
        self.next_slice = gr.State([])
        """[time, run id, arguments] of the next slice; a new value starts it."""

    def work(self, run: Run, **arguments: Any) -> Iterator[Updates]:
        """Run one slice. `next_slice` must be among the handler's outputs."""

        def show(result: dict[str, Any]) -> Updates:
            if not result.get("more"):
                return self._show(run, result)
            return {
                self.progress: f"{result['share']:.0%} done. Starting the next slice…",
                self.next_slice: [time.time(), run.directory.name, arguments],
            }

        yield from self.stream(self.name, show, run=str(run.directory), **arguments)

    def wire_slices(self, outputs: Sequence[gr.components.Component]) -> Any:
        """Wire the slices after the first, with the same outputs; return the event."""
        inputs: Inputs = {*self.page.selection, self.next_slice}
        handler = show_errors(self._continue, self.progress)
        return self.next_slice.change(handler, inputs, list(outputs), **HIDDEN)

    def _continue(self, values: Values) -> Iterator[Updates]:
        _, run_id, arguments = values[self.next_slice] or (0, None, {})
        if run_id and run_id == values[self.page.run]:
            yield from self.work(self.page.selected_run(values), **arguments)
        else:
            yield {self.progress: gr.skip()}


def reset_on_failure(event: Any, updates: Updates) -> None:
    """Apply updates when an event fails.

    This is a separate event: what a generator yields just before it raises can be lost.
    """
    event.failure(lambda: updates, None, list(updates), **HIDDEN)


def show_errors(
    handler: Callable[..., Any], where: gr.components.Component | None = None
) -> Callable[..., Any]:
    """Turn exceptions of a handler into errors on the page. This is the only place that does.

    A `UserError` is shown in its own words with its code. Anything else is reported as a bug, and
    its traceback is logged.

    Args:
        handler: a function or a generator.
        where: of a generator: a component in which the message stays, besides the toast.
    """
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def generator(*args: Any) -> Any:
            try:
                yield from handler(*args)
            except Exception as error:  # noqa: BLE001 - see the docstring
                toast = _toast(error)
                if where is not None:
                    toast.duration = TOAST_SECONDS
                    yield {where: f"⚠ {escape(toast.message)}"}
                raise toast from None

        return generator

    @functools.wraps(handler)
    def function(*args: Any) -> Any:
        try:
            return handler(*args)
        except Exception as error:  # noqa: BLE001 - see the docstring
            raise _toast(error) from None

    return function


def _toast(error: Exception) -> gr.Error:
    fault_in_worker = isinstance(error, WorkerFault)  # the worker has logged its traceback
    if not fault_in_worker and as_user_error(error) is None:
        logger.exception("a handler of the page failed", exc_info=error)
    message = str(error) if fault_in_worker else user_message(error)
    return gr.Error(message, duration=None, print_exception=False)
