"""The process that trains a run, on one device, or on several with torchrun.

Exit status 0: the run's last event says how the training ended. Exit status 1: it failed, and the
run's Failed event gives the reason, if there was time to write it.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import psutil

from peft_space import settings
from peft_space.errors import as_user_error, error_json
from peft_space.redaction import print_traceback
from peft_space.runs import events
from peft_space.runs.run import Run

_MAX_LOCKS = 8


def main(arguments: Sequence[str]) -> int:
    """Train a run while its parent lives. Returns the exit status.

    With `--prepare FD` it first creates or opens the run, as the parent says over that socket.
    With `--import` it imports what the training needs before it reads what the parent says.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", nargs="?")
    parser.add_argument("--prepare", type=int)
    parser.add_argument("--import", action="store_true", dest="imports")
    parser.add_argument("--parent", type=int, default=os.getppid())
    parser.add_argument("--ignore-mismatch", action="store_true")
    parser.add_argument("--killed-for-memory", action="store_true")
    parser.add_argument("--report-to", action="append", default=[])
    options = parser.parse_args(arguments)
    settings.prepare_libraries()
    threading.Thread(target=_end_with, args=(options.parent,), daemon=True).start()
    if options.imports:
        import peft_space.export.readiness
        import peft_space.training.train  # noqa: F401
    if options.prepare is not None:
        received = _prepare(options.prepare)
        return main(received) if received else 1
    # Ctrl-C reaches the parent too, which asks the training to stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run = Run(options.directory)
    num_processes = _num_processes(run)
    if num_processes == 1:
        return _attempt(run, options)
    return 0 if _download(run) and _launch(num_processes, arguments) == 0 else 1


def _prepare(descriptor: int) -> list[str] | None:
    """Create or open a run, report it to the parent, and receive its locks, open to the end.

    Returns:
        The arguments of the training; None if there will be none.
    """
    with socket.socket(fileno=descriptor) as connection:
        with connection.makefile("rb") as requests:
            line = requests.readline()
        if not line:  # the parent has no training for it
            return None
        arguments = json.loads(line)
        try:
            directory = arguments["run"] if "run" in arguments else _make_run(arguments)
        except KeyboardInterrupt:
            return None
        except Exception as error:  # noqa: BLE001 - the parent raises it again
            if as_user_error(error) is None:
                print_traceback()
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # this process ends anyway
            connection.sendall(json.dumps(error_json(error)).encode() + b"\n")
            return None
        if "run" in arguments:
            _log_to(Run(directory))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        connection.sendall(json.dumps({"run": directory}).encode() + b"\n")
        message, _, _, _ = socket.recv_fds(connection, 65_536, _MAX_LOCKS)
    return [directory, *json.loads(message)] if message else None


def _log_to(run: Run) -> None:
    with open(run.path("worker.log"), "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


def _make_run(arguments: dict[str, object]) -> str:
    from peft_space.recipe import make_recipe
    from peft_space.training.prepare import make_run

    recipe = make_recipe(arguments.pop("recipe"))  # type: ignore[arg-type]
    return str(make_run(recipe=recipe, **arguments).directory)  # type: ignore[arg-type]


def _num_processes(run: Run) -> int:
    """How many processes to start for the training."""
    from peft_space import hardware
    from peft_space.runs.plan import processes_for

    if "WORLD_SIZE" in os.environ:  # this is one of them
        return 1
    return processes_for(run.recipe, settings.num_processes() or hardware.num_devices())


def _download(run: Run) -> bool:
    """Tokenize the rows and download the base model, while no other process waits.

    Returns:
        False if that failed. The run's Failed event says why.
    """
    from peft_space.training.prepare import prefetch

    run.append(events.Preparing(what=f"Downloading {run.recipe.base_model}"))
    try:
        prefetch(run)
    except Exception as error:  # noqa: BLE001 - recorded in the run
        run.append(events.failed_event(error))
        if as_user_error(error) is None:
            print_traceback()
        return False
    return True


def _launch(num_processes: int, arguments: Sequence[str]) -> int:
    """Train in several processes on this machine. Returns their exit status.

    torchrun starts them: `accelerate launch` would also read the user's own configuration, which
    may choose other GPUs, or another way to share the work.
    """
    options = f"--standalone --nproc-per-node={num_processes} -m peft_space.runtime.train_process"
    command = [sys.executable, "-m", "torch.distributed.run", *options.split()]
    return subprocess.run([*command, *arguments, "--parent", str(os.getpid())]).returncode


def _attempt(run: Run, options: argparse.Namespace) -> int:
    from peft_space.export.readiness import describe_adapter
    from peft_space.training.train import TrainOptions, attempt

    try:
        training = TrainOptions(
            ignore_mismatch=options.ignore_mismatch,
            report_to=options.report_to,
            on_adapter_saved=describe_adapter,
        )
        outcome = attempt(run, training, ended_for_memory=options.killed_for_memory)
    except Exception as error:  # noqa: BLE001 - the run's Failed event says what happened
        if as_user_error(error) is None:
            print_traceback()
        return 1
    # not 0, so that all processes of a shared training end
    return int(isinstance(outcome, events.OutOfMemory))


def _end_with(parent: int) -> None:
    """End this process when its parent is killed: nobody would supervise it."""
    while _is_alive(parent):
        time.sleep(0.5)
    os._exit(1)


def _is_alive(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
