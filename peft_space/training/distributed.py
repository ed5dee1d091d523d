"""Coordinates the processes that train one run together, started by torchrun."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from peft_space import hardware
from peft_space.compat.torch import ignore_in_ddp
from peft_space.models.architecture import blocks_of
from peft_space.runs import events
from peft_space.runs.run import Run

if TYPE_CHECKING:
    from accelerate import PartialState
    from peft import PeftModel

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


def shard_base(model: PeftModel, device: hardware.Device) -> None:
    """Let each process hold only its part of the frozen weights of every block (FSDP2).

    A block's weights are gathered while it computes. What is trained stays whole in all processes,
    as in data-parallel training, so checkpoints and adapters are the same. Embeddings and output
    layer stay whole too.

    Args:
        model: the model with its adapter, in the memory of the machine.
        device: where the parts are held.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    _state()
    mesh = init_device_mesh(device, (num_processes(),))
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    target = torch.device(device, torch.cuda.current_device()) if device == "cuda" else device
    for block in blocks_of(model):
        fully_shard(block.to(target), mesh=mesh, ignored_params=trained)
    model.to(target)
    frozen = [name for name, value in model.named_parameters() if not value.requires_grad]
    # DistributedDataParallel would broadcast parts as if they were the same everywhere
    ignore_in_ddp(model, frozen)


TIMEOUT = timedelta(hours=12)
"""How long processes wait for each other. The main process may quantize a large base, or measure,
while the others wait; torch would end them after ten minutes. All have one parent, so a process
that ends stops the others at once."""


def _state() -> PartialState:
    """Accelerate's state. The first call makes the process group, for the Trainer as well."""
    from accelerate import PartialState

    return PartialState(cpu=hardware.device() == "cpu", timeout=TIMEOUT)
