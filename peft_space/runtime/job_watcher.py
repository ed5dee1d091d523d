"""A process that follows a run's job until it ends. It outlives the page and holds the run's lock.

It reads the token from standard input, so that no environment or command line contains it.
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
#: Failures in a row, about one hour of them, after which it gives up. The page then offers to
#: follow the job again.
_MAX_FAILURES = 720


def start_watching(run: Run, token: str | None) -> None:
    """Follow the run's job from a new process, unless a process does already."""
    if run.is_locked():
        return
    with open(run.path("worker.log"), "a") as log:
        command = [sys.executable, "-m", "peft_space.runtime.job_watcher", str(run.directory)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
            text=True,
        )  # fmt: skip
    assert process.stdin is not None
    with process.stdin as pipe:
        pipe.write(f"{token or ''}\n")


def watch_job(
    run: Run,
    token: str | None,
    between: float = SECONDS_BETWEEN,
    on_failure: Callable[[str], None] = print,
) -> None:
    """Import what the job sends until it ends. Needs the run's lock.

    Args:
        run: it has a job.
        token: of the job's owner; None uses the one this machine is signed in with.
        between: seconds between two requests.
        on_failure: called with the message of each failure.

    Raises:
        UserError: the job could not be checked for about an hour.
    """
    failures = 0
    while True:
        try:
            if jobs.poll(run, token):
                return
            failures = 0
        except UserError as error:
            failures += 1
            if failures > _MAX_FAILURES:
                raise
            on_failure(str(error))
        time.sleep(between)


def main(directory: str) -> None:
    """Follow the job of the run in a directory."""
    settings.prepare_libraries()
    token = sys.stdin.readline().strip() or None
    run = Run(directory)
    with run.lock():
        watch_job(run, token, on_failure=lambda text: print(text, file=sys.stderr, flush=True))


if __name__ == "__main__":
    main(sys.argv[1])
