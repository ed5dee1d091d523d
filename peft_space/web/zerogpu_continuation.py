"""What on ZeroGPU may take several slices: the page begins each in an event of its own, so that it comes with the visitor's fresh claim to a GPU."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from peft_space.runs.run import Run
from peft_space.web.context import PRIVATE, PageContext, show_errors


class SliceContinuation:
    """A verb about a run that goes on, slice after slice, while its run stays chosen."""

    def __init__(
        self,
        page: PageContext,
        verb: str,
        where: gr.components.Component,
        show: Callable[[Run, dict[str, Any]], dict[Any, Any]],
    ):
        """`where` says what is being done, `show` what came out."""
        self._page, self._verb, self._where, self._show = page, verb, where, show
        self.next = gr.State([])
        """[when, run, arguments] of the slice that is to come; another value begins it."""

    def work(self, run: Run, **arguments: Any) -> Iterator[dict[Any, Any]]:
        """Do it, for one slice at most; the next one begins by itself where this handler's outputs have `next`."""

        def shown(found: dict[str, Any]) -> dict[Any, Any]:
            if not found.get("more"):
                return self._show(run, found)
            return {
                self._where: f"{found['share']:.0%} is done. The next slice begins…",
                self.next: [time.time(), run.directory.name, arguments],
            }

        yield from self._page.working(
            self._where, shown, self._verb, run=str(run.directory), **arguments
        )

    def build(self, outputs: list[Any]) -> Any:
        """Wire what follows the first slice, with the same outputs; the event, to be cancelled."""
        page = self._page
        handler = show_errors(self._go_on, where=self._where)
        return self.next.change(
            handler, {page.visitor, page.run, self.next}, outputs, show_progress="hidden", **PRIVATE
        )

    def _go_on(self, values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        _, run_id, arguments = values[self.next] or (0, None, {})
        if run_id and run_id == values[self._page.run]:
            yield from self.work(self._page.chosen_run(values), **arguments)
        else:
            yield {self._where: gr.skip()}
