"""train and adopt."""

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import Any

from peft_space import operations, settings
from peft_space.cli.given import column_mapping_of, data_of
from peft_space.cli.output import Show, telling
from peft_space.errors import UserError
from peft_space.recipe import read_recipe
from peft_space.runs.run import Run, ensure_not_on_job
from peft_space.runtime.supervisor import (
    halve_max_length_of,
    make_and_train,
    supervise_training,
)


def train(given: argparse.Namespace, show: Show) -> None:
    """Train an adapter, or go on with a run."""
    extras = given.out or given.held_out or given.column_mapping != "{}" or given.recipe != "{}"
    mixed = (given.resume and (extras or given.later)) or (
        (given.anyway or given.shorter) and not given.resume
    )
    if bool(given.resume) == bool(given.data) or (given.data and not given.out) or mixed:
        raise UserError(
            "todo", "Say what to train: `train DATA --out RUN_DIR`, or `train --resume RUN_DIR`."
        )
    if given.data:
        arguments = {
            "directory": given.out,
            "data": data_of(given),
            "recipe": read_recipe(given.recipe).model_dump(exclude_defaults=True),
            "held_out": given.held_out,
            "column_mapping": column_mapping_of(given),
        }
        if given.later:
            directory = operations.make_run(**arguments)["run"]
            show(
                {"run": directory, "outcome": None},
                f"The run is in {directory}. Next: python -m peft_space job {directory}",
            )
            return
        run, outcome = make_and_train(arguments, _watching, given.report_to or settings.report_to())
    else:
        run = Run(given.resume)
        ensure_not_on_job(run)
        with run.lock() as own:
            if run.status() == "finished":
                show({"run": str(run.directory), "outcome": "Finished"}, "This run is finished.")
                return
            if run.status() != "queued":
                run.clear_stop_request()  # left by a process that was killed
            run.truncate_partial_event()
            if given.shorter:
                halve_max_length_of(run)
            with _watching(run):
                outcome = supervise_training(
                    run, own, given.anyway, given.report_to or settings.report_to()
                )
    show(
        {"run": str(run.directory), "outcome": outcome.event, "step": outcome.step},
        f"{outcome.event} at step {outcome.step}. Next: python -m peft_space evaluate {run.directory}",
    )


@contextlib.contextmanager
def _watching(run: Run) -> Iterator[None]:
    with _stopping_on_interrupt(run), telling(run):
        yield


def adopt(given: argparse.Namespace, show: Show) -> None:
    """Make a run of an adapter that was made elsewhere, to compare, score or export it, or to train it further."""
    recipe = read_recipe(given.recipe).model_dump(exclude_defaults=True)
    found = operations.import_adapter(
        given.out, given.adapter, data_of(given), recipe, given.held_out, column_mapping_of(given)
    )
    more = f"evaluate {found['run']}, or python -m peft_space train --resume {found['run']}"
    show(found, f"The adapter is in the run {found['run']}. Next: python -m peft_space {more}")


@contextlib.contextmanager
def _stopping_on_interrupt(run: Run) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) asks the training to save and leave; a second one ends it at once."""

    def ask(number: int, frame: Any) -> None:
        print("Saving and stopping after this step; once more to stop at once.", file=sys.stderr)
        run.request_stop("stop")
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
