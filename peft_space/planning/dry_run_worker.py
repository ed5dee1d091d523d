"""The process of a dry run: trains a scratch run as any run is trained, and prints the most memory that it took.

It ends with its parent, and removes what it wrote where the parent can no longer do so.
"""

import os
import shutil
import sys
import threading
from pathlib import Path

from peft_space.errors import as_user_error
from peft_space.settings import prepare_libraries


def main(directory: str) -> None:
    """Train the run in `directory`. Exit status 2: the user's mistake, which the run's Failed event tells."""
    threading.Thread(target=_end_with_parent, args=(Path(directory).parent,), daemon=True).start()
    prepare_libraries()
    try:
        most = measure(directory)
    except Exception as error:
        if as_user_error(error) is None:
            raise
        sys.exit(2)
    print(most)


def measure(directory: str) -> int:
    """Bytes of the GPU's tensors at most; on a CPU those that this process grows by, without the libraries that are imported before."""
    import bitsandbytes  # noqa: F401 - or its code would count as memory that training takes
    import peft  # noqa: F401
    import torch

    from peft_space import hardware
    from peft_space.models.loading import task_spec_for
    from peft_space.runs.run import Run
    from peft_space.training.train import train

    if hardware.device() == "cuda":
        torch.cuda.reset_peak_memory_stats()  # a slice of GPU time may have computed something else before
    run = Run(directory)
    if task_spec_for(run).task in ("dpo", "kto"):
        import trl  # noqa: F401
    before = hardware.resident_memory()
    with run.lock():
        train(run, shuffled=False)
    return (
        hardware.peak_memory()
        if hardware.device() == "cuda"
        else hardware.resident_memory(at_most=True) - before
    )


def _end_with_parent(folder: Path) -> None:
    """Where the parent is killed, which is how a visitor cancels, nobody else would end this process and remove what it wrote."""
    os.read(0, 1)  # returns when the other end of the pipe is closed
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
