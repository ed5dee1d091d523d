"""Trains a run inside a Hugging Face Job, and sends events, checkpoints and adapter to the Hub.

`hub/jobs.py` starts it. The token is in the job's environment, where its secrets are.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
from huggingface_hub import HfApi

from peft_space import settings
from peft_space.formatting import duration
from peft_space.hub.backup import RunRepository
from peft_space.runs import archive, events
from peft_space.runs.events import failed_event, steps_of
from peft_space.runs.run import Run
from peft_space.runtime.supervisor import supervise_training
from peft_space.runtime.worker_pool import WorkerFault

logger = logging.getLogger(__name__)

_SEND_INTERVAL = 60.0  # the Hub accepts about a hundred commits an hour in a repository
#: Seconds before the end of the job at which training stops: the machine was set up before this
#: process began, and everything still has to be sent.
_MAX_RESERVE = 900.0
_MAX_ATTEMPTS = 6
_NETWORK_ERRORS = (httpx2.HTTPError, OSError, RuntimeError)


def main(folder: str, repo: str, timeout: float) -> None:
    """Train the run in a downloaded dataset, then exit.

    The exit status is 0 if the run's last event says how the training ended.

    Args:
        folder: the dataset: `archive.json`, the run's files, and this package.
        repo: the dataset's name, to which everything new is sent.
        timeout: seconds after which the Hub ends the job.
    """
    settings.prepare_libraries()
    os.environ["PYTHONPATH"] = folder  # for the processes that train
    run, manifest = _open(Path(folder), repo)
    sender = Sender(run, RunRepository(HfApi(), repo), manifest.files)
    ended = threading.Event()
    interval = float(os.environ.get("PEFT_SPACE_JOB_SECONDS", _SEND_INTERVAL))
    threads = [
        _start(lambda: sender.send_regularly(ended, interval)),
        _start(lambda: _stop_in_time(run, timeout, ended)),
    ]
    try:
        with run.lock() as descriptor:
            outcome: object = supervise_training(run, descriptor)
    except (WorkerFault, Exception) as error:  # noqa: BLE001 - becomes the run's last event
        outcome = error
        history = run.history()
        if not history or not isinstance(history[-1], events.Failed):
            run.append(failed_event(error))
    ended.set()
    for thread in threads:
        thread.join()
    sender.send_last()
    print(f"{outcome}", file=sys.stderr)
    sys.exit(isinstance(outcome, Exception))


def _start(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def _open(folder: Path, repo: str) -> tuple[Run, archive.Manifest]:
    """The run that was sent, after checking every file."""
    directory = folder / "received"
    directory.mkdir()
    manifest = archive.read_manifest((folder / archive.MANIFEST).read_bytes(), repo)
    sent = archive.Archive(repo, manifest, lambda name: folder / archive.FOLDER / name)
    sent.install(directory, list(manifest.files))
    return Run(directory), manifest


def _stop_in_time(run: Run, timeout: float, ended: threading.Event) -> None:
    """Ask the training to save and end before the Hub ends the job."""
    if not ended.wait(timeout - min(_MAX_RESERVE, timeout / 4)):
        why = f"the job's time limit of {duration(timeout)} is nearly reached."
        run.append(events.Notice(what="Paused:", why=why))
        run.request_stop("pause")


class Sender:
    """Sends the new files of a run to the dataset, each time as one commit."""

    def __init__(self, run: Run, repository: RunRepository, sent: dict[str, str]):
        """Args: `sent` is path in the run -> SHA-256, of what the dataset has already."""
        self._run, self._repository, self._sent = run, repository, sent

    def send_regularly(self, ended: threading.Event, interval: float) -> None:
        """Send until the training has ended. After an error, the next attempt sends everything."""
        while not ended.wait(interval):
            try:
                self.send()
            except _NETWORK_ERRORS as error:  # OSError: a checkpoint was removed meanwhile
                logger.warning("nothing was sent this time: %s", error)

    def send_last(self) -> None:
        """Send everything, with several attempts. The last error is raised."""
        for number in range(_MAX_ATTEMPTS):
            try:
                return self.send()
            except _NETWORK_ERRORS as error:
                if number == _MAX_ATTEMPTS - 1:
                    raise
                logger.warning("trying again: %s", error)
                time.sleep(2**number)

    def send(self) -> None:
        """Send what has changed since the last commit."""
        steps = steps_of(self._run.history())
        message = f"Step {steps[-1].step if steps else 0}"
        manifest, _ = self._repository.upload(archive.pack(self._run), self._sent, message)
        self._sent = manifest.files
