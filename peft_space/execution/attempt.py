"""The process in which a run is trained: one attempt of it, on one device, or on several by way of `accelerate launch`.

Exit status: 0 it ended as the run's last event says, 2 with the user's mistake, 1 with ours.
"""

import os
import signal
import sys
import threading
import time
import traceback

import psutil

from peft_space import settings
from peft_space.errors import mendable
from peft_space.run import Run


def main(directory: str, *options: str) -> int:
    """Train the run in `directory`, whose lock the parent holds."""
    settings.prepare_libraries()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is asked too, and asks the training to leave
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    from peft_space.training.train import attempt

    tools = [option.partition("=")[2] for option in options if option.startswith("--report-to=")]
    try:
        attempt(Run(directory), anyway="--anyway" in options, report_to=tools, ended_for_memory="--ended-for-memory" in options)
    except Exception as error:  # noqa: BLE001 - the run's Failed event tells it in words
        if mendable(error) is None:
            traceback.print_exc()
        return 1 if mendable(error) is None else 2
    return 0


def _end_with(parent: int) -> None:
    """A training whose parent was killed must not go on unwatched."""
    while psutil.pid_exists(parent) and os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
