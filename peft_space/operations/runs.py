"""Runs made and trained, here or by a job, and saved to go on elsewhere."""

from dataclasses import asdict

from peft_space import settings
from peft_space.data.table import Data
from peft_space.operations.progress import Json, Report, progress
from peft_space.recipe import make_recipe
from peft_space.runs.run import Run


def make_run(
    directory: str,
    data: Data,
    recipe: Json,
    held_out: Data | None = None,
    column_mapping: Json | None = None,
    report: Report | None = None,
) -> Json:
    """A new run, checked and ready to be trained. Nothing is made where something is wrong."""
    from peft_space.training.prepare import make_run

    return {
        "run": str(
            make_run(
                directory, data, make_recipe(recipe), held_out, column_mapping, progress(report)
            ).directory
        )
    }


def import_adapter(
    directory: str,
    adapter: str,
    data: Data,
    recipe: Json | None = None,
    held_out: Data | None = None,
    column_mapping: Json | None = None,
    report: Report | None = None,
) -> Json:
    """A new run of an adapter that was made elsewhere, with rows to score on and to go on with."""
    from peft_space.training.import_adapter import import_adapter as adopt_adapter

    return {
        "run": str(
            adopt_adapter(
                directory, adapter, data, recipe, held_out, column_mapping, progress(report)
            ).directory
        )
    }


def prefetch(run: str) -> Json:
    """Have on this machine what training a run needs and a slice of GPU time should not go on: rendered rows, and the base model's files."""
    from peft_space.training.prepare import prefetch as fetch_for

    return {"rows": fetch_for(Run(run))}


def train(run: str) -> Json:
    """Train a run to its end, or until it is asked to leave."""
    from peft_space.export.readiness import describe_adapter
    from peft_space.training.train import TrainOptions
    from peft_space.training.train import train as train_run

    opened = Run(run)
    with opened.lock():
        options = TrainOptions(report_to=settings.report_to(), on_adapter_saved=describe_adapter)
        return train_run(opened, options).model_dump()


def script(run: str, out: str) -> Json:
    """The run as one script that trains it anywhere: its `path`."""
    from peft_space.export.standalone_script import write_script

    return {"path": str(write_script(Run(run), out))}


def backup(run: str, repo: str, token: str | None = None, report: Report | None = None) -> Json:
    """Save the run to a private dataset repository on the Hub, with all that it takes to go on elsewhere: `url`."""
    from peft_space.hub.backup import backup as save_run

    return {"url": save_run(Run(run), repo, token, progress(report))}


def restore(
    directory: str, repo: str, token: str | None = None, report: Report | None = None
) -> Json:
    """A run that was saved, as a new run here, ready to go on."""
    from peft_space.hub.backup import restore as take_up_run

    return {"run": str(take_up_run(repo, directory, token, progress(report)).directory)}


def job_hardware(run: str, token: str | None = None) -> Json:
    """The `hardware` that a job of the run could have now, each with what it would take: memory, time, cost, and a timeout with margin."""
    from peft_space.hub import jobs
    from peft_space.planning.job_costs import job_options

    return {"hardware": [asdict(choice) for choice in job_options(Run(run), jobs.offers(token))]}


def submit_job(
    run: str, flavor: str, timeout: str, token: str | None = None, report: Report | None = None
) -> Json:
    """Let a job on Hugging Face train the run: its `job`, its `address`, and the private dataset that it went to, `repo`."""
    from peft_space.hub import jobs

    handed = jobs.submit(Run(run), flavor, jobs.seconds_of(timeout), token, progress(report))
    return handed.model_dump(exclude={"event", "at", "num_events"})


def cancel_job(run: str, token: str | None = None) -> Json:
    """End the run's job; what it has sent comes back to who follows it."""
    from peft_space.hub import jobs

    jobs.cancel(Run(run), token)
    return {"status": Run(run).status()}
