"""Prints progress and the events of a run to standard error."""

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

from peft_space.runs import events
from peft_space.runs.run import Run


def print_progress(report: dict[str, Any]) -> None:
    """Print what an operation is doing."""
    if "what" in report:
        share = f"{report['share']:4.0%} " if "share" in report else ""
        print(f"{share}{report['what']}", file=sys.stderr)


@contextlib.contextmanager
def print_events(run: Run) -> Iterator[None]:
    """Print the events of a run while they are written."""
    ended = threading.Event()
    start = len(run.history())

    def follow() -> None:
        num_printed = start
        while True:
            last_round = ended.wait(1.0)
            history = run.history()
            for event in history[num_printed:]:
                print(_describe(event), file=sys.stderr)
            num_printed = len(history)
            if last_round:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _describe(event: events.Event) -> str:
    match event:
        case events.Step():
            return f"step {event.step}: loss {event.loss:.4f}, {event.seconds:.2f} s"
        case events.Evaluated():
            return f"step {event.step}: loss on held-out rows {event.loss:.4f}"
        case events.Started():
            return f"started at step {event.from_step} of {event.total_steps}"
        case events.Preparing():
            return f"{event.what} …"
        case events.Notice():
            return f"{event.what} {event.why}"
        case events.Warned():
            return f"step {event.step}: {event.what} {event.advice}"
        case events.CheckpointSelected():
            return f"the adapter of step {event.step} is selected: {event.why}"
        case events.Checkpointed():
            return f"step {event.step}: checkpoint written"
        case events.SubmittedToJob():
            return f"submitted to the job {event.address}"
        case _:
            return event.event.lower()
