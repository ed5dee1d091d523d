"""The process in which a run is trained: one attempt of it, on one device, or on several by way of `accelerate launch`.

Exit status: 0 it ended as the run's last event says, 1 it did not; what went wrong is the run's Failed event, where there was time to write it.
"""

import argparse
import gc
import os
import signal
import subprocess
import sys
import threading
import time

import psutil

from peft_space import settings
from peft_space.errors import as_user_error
from peft_space.redaction import print_traceback
from peft_space.runs import events
from peft_space.runs.run import Run


def main(arguments: list[str]) -> int:
    """Train the run in a directory, whose lock a parent holds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--parent", type=int, default=os.getppid())
    parser.add_argument("--anyway", action="store_true")
    parser.add_argument("--ended-for-memory", action="store_true")
    parser.add_argument("--report-to", action="append", default=[])
    given = parser.parse_args(arguments)
    settings.prepare_libraries()
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # the parent is asked too, and asks the training to leave
    threading.Thread(target=_end_with, args=(given.parent,), daemon=True).start()
    run = Run(given.directory)
    gc.disable()  # imports make a million objects that live to the end; looking through them again and again is a seventh of the start
    num_processes = _num_processes(run)
    return _together(num_processes, arguments) if num_processes > 1 else _attempt(run, given)


def _num_processes(run: Run) -> int:
    """How many processes are still to be started to share the training."""
    from peft_space import hardware
    from peft_space.runs.plan import processes_for

    if "WORLD_SIZE" in os.environ:  # this is one of them
        return 1
    return processes_for(run.recipe, settings.num_processes() or hardware.num_devices())


def _together(num_processes: int, arguments: list[str]) -> int:
    """Start as many processes with accelerate's own launcher, on this machine, and wait for them.

    `--multi_gpu` stands for torchrun, which several CPU processes need as well.
    """
    command = [
        *(
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--num_processes",
            str(num_processes),
            "--num_machines",
            "1",
            "--multi_gpu",
        ),
        *(
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            "--main_process_port",
            "0",
            "-m",
            "peft_space.runtime.train_process",
        ),
    ]
    return subprocess.run([*command, *arguments, "--parent", str(os.getpid())]).returncode


def _attempt(run: Run, given: argparse.Namespace) -> int:
    from peft_space.export.readiness import describe_adapter
    from peft_space.training.train import TrainOptions, attempt

    gc.freeze()
    gc.enable()
    try:
        options = TrainOptions(
            ignore_mismatch=given.anyway,
            report_to=given.report_to,
            on_adapter_saved=describe_adapter,
        )
        outcome = attempt(run, options, ended_for_memory=given.ended_for_memory)
    except Exception as error:  # noqa: BLE001 - the run's Failed event tells it in words
        if as_user_error(error) is None:
            print_traceback()
        return 1
    return int(
        isinstance(outcome, events.OutOfMemory)
    )  # so that what is trained together ends together


def _end_with(parent: int) -> None:
    """A training whose parent was killed must not go on unwatched."""
    while _lives(parent):
        time.sleep(0.5)
    os._exit(1)


def _lives(number: int) -> bool:
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
