"""script, job, save, take-up, deploy, smoke."""

import argparse
import sys

from peft_space import operations
from peft_space.cli.output import Show, tell, telling
from peft_space.hub import jobs
from peft_space.runs import events
from peft_space.runs.run import Run
from peft_space.runs.status import active_job, steps_of
from peft_space.runtime.job_watcher import SECONDS_BETWEEN, watch_job


def script(given: argparse.Namespace, show: Show) -> None:
    """Write a run as one script that trains it on any machine or cluster: `uv run train.py`."""
    found = operations.script(given.run, given.out)
    show(found, f"{found['path']} trains the run on any machine: uv run {found['path']}")


def job(given: argparse.Namespace, show: Show) -> None:
    """Train a run on Hugging Face Jobs: without more it says what hardware there is, or how the job goes. The token is HF_TOKEN."""
    run = Run(given.run)
    if given.cancel:
        operations.cancel_job(given.run)
        if run.is_locked():  # who follows it brings the rest back
            show(
                {"run": str(run.directory), "status": run.status(), "message": ""},
                "The job is cancelled.",
            )
            return
    elif given.flavor:
        handed = operations.submit_job(
            given.run, given.flavor, given.timeout or _timeout(given), report=tell
        )
        show(
            handed,
            f"The job is {handed['address']}. Next: python -m peft_space job {given.run} --follow",
        ) if not given.follow else None
    elif active_job(run.history()) is None:
        found = operations.job_hardware(given.run)
        show(found, "\n".join(choice["words"] for choice in found["hardware"]))
        return
    if given.flavor and not given.follow:
        return
    if given.follow or given.cancel:
        with run.lock(), telling(run):
            watch_job(
                run,
                None,
                2.0 if given.cancel else SECONDS_BETWEEN,
                lambda words: print(words, file=sys.stderr),
            )
    elif not run.is_locked():
        with run.lock():
            jobs.poll(run, None)
    happened = run.history()
    failed = happened[-1].message if isinstance(happened[-1], events.Failed) else ""
    step = max((event.step for event in steps_of(happened)), default=0)
    words = f"The run is {run.status()}, at step {step}. {failed}".strip()
    show(
        {"run": str(run.directory), "status": run.status(), "step": step, "message": failed}, words
    )


def _timeout(given: argparse.Namespace) -> str:
    """What the estimate asks for on that hardware, with its margin."""
    choices = {choice["name"]: choice for choice in operations.job_hardware(given.run)["hardware"]}
    return str(choices[given.flavor]["timeout"]) if given.flavor in choices else "6h"


def save(given: argparse.Namespace, show: Show) -> None:
    """Save a run to a private dataset repository on the Hub, to go on elsewhere. The token is as for push."""
    found = operations.backup(given.run, given.repo, report=tell)
    show(
        found,
        f"Saved to {found['url']}. To go on elsewhere: python -m peft_space take-up {given.repo} --out RUN_DIR",
    )


def take_up(given: argparse.Namespace, show: Show) -> None:
    """Make a run of one that was saved on the Hub. The token is as for push."""
    found = operations.restore(given.out, given.repo, report=tell)
    show(
        found,
        f"The run is in {found['run']}. Next: python -m peft_space train --resume {found['run']}",
    )


def deploy(given: argparse.Namespace, show: Show) -> None:
    """Make a Space of this clone, or update one. The token is HF_TOKEN, or this machine's."""
    found = operations.deploy_space(
        given.space, hardware=given.hardware, public=given.public, report=tell
    )
    show(
        found,
        f"The Space is at {found['url']}; the Hub builds it now. When it runs: python -m peft_space smoke {given.space}",
    )


def smoke(given: argparse.Namespace, show: Show) -> None:
    """Check a running Space or page from outside: it trains the demo for a few steps and compares."""
    found = operations.smoke_test(given.url, report=tell)
    show(
        found,
        "\n".join(
            f"✓ {check['what']}: {check['found']} ({check['seconds']} s)"
            for check in found["checks"]
        ),
    )
