"""Coordinates the processes that train one run together, started by torchrun."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from peft_space import hardware
from peft_space.runs import events
from peft_space.runs.run import Run

if TYPE_CHECKING:
    from accelerate import PartialState

Value = TypeVar("Value")


def num_processes() -> int:
    """Return the number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Return True in the process that writes the run."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def main_first() -> Iterator[None]:
    """Let the main process run the block first, so that the others find its results."""
    if num_processes() == 1:
        yield
        return
    with _state().main_process_first():
        yield


def wait() -> None:
    """Wait until all processes have reached this point."""
    if num_processes() > 1:
        _state().wait_for_everyone()


def broadcast_from_main(value: Value) -> Value:
    """Return the main process's value in all processes."""
    if num_processes() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def view_for_rank(run: Run) -> Run:
    """Return the run itself on the main process, and a read-only view on the others."""
    return run if is_main() else _ReadOnlyRun(run.directory)


class _ReadOnlyRun(Run):
    """A run that another process writes. Each process may report what ends all of them."""

    def append(self, event: events.Event) -> None:
        ends_all = isinstance(event, events.Failed | events.OutOfMemory)
        if ends_all and not isinstance(self.history()[-1], type(event)):
            super().append(event)

    def truncate_partial_event(self) -> None:
        pass

    def clear_stop_request(self) -> None:
        pass


TIMEOUT = timedelta(hours=12)
"""How long processes wait for each other. The main process may quantize a large base, or measure,
while the others wait; torch would end them after ten minutes. All have one parent, so a process
that ends stops the others at once."""


def _state() -> PartialState:
    """Accelerate's state. The first call makes the process group, for the Trainer as well."""
    from accelerate import PartialState

    return PartialState(cpu=hardware.device() == "cpu", timeout=TIMEOUT)
