"""What a job on Hugging Face does: takes the run from the dataset, trains it, and sends events, checkpoints and adapter back while it goes on.

Run by `jobs.py`'s one line, with this package from the dataset. The token is the environment's, where the job's secrets are.
"""

import json
import logging
import os
import sys
import threading
import time
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from peft_space import settings
from peft_space.formatting import duration
from peft_space.hub.jobs import RUN
from peft_space.runs import archive as run_archive
from peft_space.runs import events
from peft_space.runs.events import failed_event
from peft_space.runs.run import Run
from peft_space.runtime.supervisor import supervise_training
from peft_space.runtime.worker_pool import WorkerFault

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN = 60.0
"""Between looks at what is new: the Hub takes about a hundred commits an hour into a repository."""
_MOST_TO_LEAVE = 900.0
"""Seconds before the job's end at which training leaves: the machine was made ready before this began, and all has to be sent."""
_LAST_TRIES = 6


def main(folder: str, repo: str, timeout: float) -> None:
    """Train what `folder` holds, and end the process with 0 where the run's last event says how that went."""
    settings.prepare_libraries()
    os.environ["PYTHONPATH"] = folder  # for the processes that train
    run = _take_up(Path(folder))
    sender = Sender(
        run, repo, HfApi(), json.loads(Path(folder, run_archive.ARCHIVE_MANIFEST).read_text())
    )
    over = threading.Event()
    between = float(os.environ.get("PEFT_SPACE_JOB_SECONDS", _SECONDS_BETWEEN))
    helpers = [
        threading.Thread(target=work, daemon=True)
        for work in (
            lambda: sender.keep_sending(over, between),
            lambda: _leave_in_time(run, timeout, over),
        )
    ]
    for helper in helpers:
        helper.start()
    try:
        with run.lock() as own:
            outcome: object = supervise_training(run, own)
    except (WorkerFault, Exception) as error:  # noqa: BLE001 - what comes back is the run's last event; the rest is in the job's log
        outcome = error
        if not run.history() or not isinstance(run.history()[-1], events.Failed):
            run.append(failed_event(error))
    over.set()
    for helper in helpers:
        helper.join()
    sender.send_last()
    print(f"{outcome}", file=sys.stderr)
    sys.exit(isinstance(outcome, Exception))


def _take_up(folder: Path) -> Run:
    """The run as it was packed, verified."""
    directory = folder / "taken"
    directory.mkdir()
    digests = run_archive.read_manifest((folder / run_archive.ARCHIVE_MANIFEST).read_text())
    run_archive.install(directory, digests, digests, lambda name: folder / RUN / name)
    return Run(directory)


def _leave_in_time(run: Run, timeout: float, over: threading.Event) -> None:
    """Ask the training to save and leave before the job is ended by force."""
    left = timeout - min(_MOST_TO_LEAVE, timeout / 4)
    if not over.wait(left):
        run.append(
            events.Notice(
                what="Paused:", why=f"the job's time of {duration(timeout)} is nearly over."
            )
        )
        run.request_stop("pause")


class Sender:
    """Sends what is new in a run to the dataset, each time as one commit."""

    def __init__(self, run: Run, repo: str, api: HfApi, sent: dict[str, str]):
        self._run, self._repo, self._api, self._sent = run, repo, api, sent

    def keep_sending(self, over: threading.Event, between: float) -> None:
        """Until it is over. What cannot be sent is sent with the next."""
        while not over.wait(between):
            try:
                self.send()
            except (
                httpx2.HTTPError,
                OSError,
                RuntimeError,
            ) as error:  # OSError: a checkpoint was removed meanwhile
                logger.warning("nothing was sent this time: %s", error)

    def send_last(self) -> None:
        """Send all that there is. Raises what stands against it in the end."""
        for number in range(_LAST_TRIES):
            try:
                return self.send()
            except (httpx2.HTTPError, OSError, RuntimeError) as error:
                if number == _LAST_TRIES - 1:
                    raise
                logger.warning("trying again: %s", error)
                time.sleep(2**number)

    def send(self) -> None:
        packed = run_archive.pack(self._run)
        digests = run_archive.digests_of(packed)
        if digests == self._sent:
            return
        changed = [
            CommitOperationAdd(f"{RUN}{name}", content)
            for name, content in packed.items()
            if self._sent.get(name) != digests[name]
        ]
        gone = [CommitOperationDelete(f"{RUN}{name}") for name in self._sent if name not in digests]
        manifest = CommitOperationAdd(
            run_archive.ARCHIVE_MANIFEST, json.dumps(digests, indent=1).encode()
        )
        step = max(
            (event.step for event in self._run.history() if isinstance(event, events.Step)),
            default=0,
        )
        self._api.create_commit(
            self._repo,
            [*gone, *changed, manifest],
            commit_message=f"Step {step}",
            repo_type="dataset",
        )
        self._sent = digests
