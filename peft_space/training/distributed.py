"""Several processes that train one run together, started by `accelerate launch`: who writes, and how they agree.

With one process all of it is as if it were not there.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft_space import hardware
from peft_space.runs import events
from peft_space.runs.run import Run


def num_processes() -> int:
    """How many train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this one writes."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def main_first() -> Iterator[None]:
    """What is done in here, the main process does first, and the others find it done."""
    if num_processes() == 1:
        yield
        return
    with _state().main_process_first():
        yield


def wait() -> None:
    """Go on when all have come as far."""
    if num_processes() > 1:
        _state().wait_for_everyone()


def broadcast_from_main(value: Any) -> Any:
    """What the main process says, in all of them."""
    if num_processes() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def view_for_rank(run: Run) -> Run:
    """The run; to another than the main process one that it only follows."""
    return run if is_main() else _ReadOnlyRun(run.directory)


class _ReadOnlyRun(Run):
    """A run that another process writes to. What ends them all, each may be the first to tell."""

    def append(self, event: events.Event) -> None:
        if isinstance(event, events.Failed | events.OutOfMemory) and not isinstance(
            self.history()[-1], type(event)
        ):
            super().append(event)

    def truncate_partial_event(self) -> None:
        pass

    def clear_stop_request(self) -> None:
        pass


def _state() -> Any:
    from accelerate import PartialState

    return PartialState(cpu=hardware.device() == "cpu")
