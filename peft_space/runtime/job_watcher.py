"""A process that follows a run's job until it is over, and brings back what comes. It outlives the page, holds the run's lock, and knows no torch.

It is told the token on its standard input, so that it stands in no environment and on no command line.
"""

import subprocess
import sys
import time
from collections.abc import Callable

from peft_space import settings
from peft_space.errors import UserError
from peft_space.hub import jobs
from peft_space.runs.run import Run

SECONDS_BETWEEN = 5.0
_MOST_FAILURES = 720
"""Looks in a row that may fail, an hour of them, before it is given up; the page then offers to follow again."""


def start_watching(run: Run, token: str | None) -> None:
    """Follow the run's job from a process of its own, unless one does already."""
    if run.is_locked():
        return
    with open(run.path("worker.log"), "a") as log:
        command = [sys.executable, "-m", "peft_space.runtime.job_watcher", str(run.directory)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
            text=True,
        )
    assert process.stdin is not None
    with process.stdin as pipe:
        pipe.write(f"{token or ''}\n")


def watch_job(
    run: Run,
    token: str | None,
    between: float = SECONDS_BETWEEN,
    told: Callable[[str], None] = print,
) -> None:
    """Look again and again until the job is over. Only for who holds the lock. Raises UserError where that fails for too long."""
    failures = 0
    while True:
        try:
            if jobs.poll(run, token):
                return
            failures = 0
        except UserError as error:
            failures += 1
            if failures > _MOST_FAILURES:
                raise
            told(str(error))
        time.sleep(between)


def main(directory: str) -> None:
    """Follow the job of a run in a directory."""
    settings.prepare_libraries()
    token = sys.stdin.readline().strip() or None
    run = Run(directory)
    with run.lock():
        watch_job(run, token, told=lambda words: print(words, file=sys.stderr, flush=True))


if __name__ == "__main__":
    main(sys.argv[1])
