"""How commands tell what they do: progress and events on standard error, the result as text or JSON."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from peft_space.runs import events
from peft_space.runs.run import Run

Show = Callable[[Any, str], None]
"""Takes a result as JSON and as text, and prints the one that was asked for."""


def tell(report: dict[str, Any]) -> None:
    """What a verb is doing, on standard error."""
    print(f"{report['share']:4.0%} {report['what']}", file=sys.stderr)


@contextlib.contextmanager
def telling(run: Run) -> Iterator[None]:
    """Prints the run's events to standard error while they come."""
    ended = threading.Event()
    start = len(run.history())

    def follow() -> None:
        told = start
        while True:
            last_round = ended.wait(1.0)
            happened = run.history()
            for event in happened[told:]:
                print(_in_words(event), file=sys.stderr)
            told = len(happened)
            if last_round:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _in_words(event: events.Event) -> str:
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
            return f"the adapter of step {event.step} is kept: {event.why}"
        case events.Checkpointed():
            return f"step {event.step}: checkpoint written"
        case _:
            return event.event.lower()
