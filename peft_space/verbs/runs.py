"""Runs made and trained, here or by a job, and saved to go on elsewhere."""

from dataclasses import asdict

from peft_space import settings
from peft_space.data.read import Data
from peft_space.recipe import make_recipe
from peft_space.run import Run
from peft_space.verbs.telling import Json, Report, progress


def make(
    directory: str,
    data: Data,
    recipe: Json,
    held_out: Data | None = None,
    reading: Json | None = None,
    report: Report | None = None,
) -> Json:
    """A new run, checked and ready to be trained. Nothing is made where something is wrong."""
    from peft_space.training.prepare import make_run

    return {"run": str(make_run(directory, data, make_recipe(recipe), held_out, reading, progress(report)).directory)}


def adopt(
    directory: str,
    adapter: str,
    data: Data,
    recipe: Json | None = None,
    held_out: Data | None = None,
    reading: Json | None = None,
    report: Report | None = None,
) -> Json:
    """A new run of an adapter that was made elsewhere, with rows to score on and to go on with."""
    from peft_space.training.adopt import adopt as adopt_adapter

    return {"run": str(adopt_adapter(directory, adapter, data, recipe, held_out, reading, progress(report)).directory)}


def fetch(run: str) -> Json:
    """Have on this machine what training a run needs and a slice of GPU time should not go on: rendered rows, and the base model's files."""
    from peft_space.training.prepare import fetch as fetch_for

    return {"rows": fetch_for(Run(run))}


def train(run: str) -> Json:
    """Train a run to its end, or until it is asked to leave."""
    from peft_space.training.train import train as train_run

    opened = Run(run)
    with opened.lock():
        return train_run(opened, report_to=settings.report_to()).model_dump()


def script(run: str, out: str) -> Json:
    """The run as one script that trains it anywhere: its `path`."""
    from peft_space.script import write_script

    return {"path": str(write_script(Run(run), out))}


def save(run: str, repo: str, token: str | None = None, report: Report | None = None) -> Json:
    """Save the run to a private dataset repository on the Hub, with all that it takes to go on elsewhere: `url`."""
    from peft_space.saved import save as save_run

    return {"url": save_run(Run(run), repo, token, progress(report))}


def take_up(directory: str, repo: str, token: str | None = None, report: Report | None = None) -> Json:
    """A run that was saved, as a new run here, ready to go on."""
    from peft_space.saved import take_up as take_up_run

    return {"run": str(take_up_run(repo, directory, token, progress(report)).directory)}


def job_hardware(run: str, token: str | None = None) -> Json:
    """The `hardware` that a job of the run could have now, each with what it would take: memory, time, cost, and a timeout with margin."""
    from peft_space.training.job_estimates import choices

    return {"hardware": [asdict(choice) for choice in choices(Run(run), token)]}


def hand_over(run: str, flavor: str, timeout: str, token: str | None = None, report: Report | None = None) -> Json:
    """Let a job on Hugging Face train the run: its `job`, its `address`, and the private dataset that it went to, `repo`."""
    from peft_space import jobs

    handed = jobs.hand_over(Run(run), flavor, jobs.seconds_of(timeout), token, progress(report))
    return handed.model_dump(exclude={"event", "at", "num_events"})


def cancel_job(run: str, token: str | None = None) -> Json:
    """End the run's job; what it has sent comes back to who follows it."""
    from peft_space import jobs

    jobs.cancel(Run(run), token)
    return {"status": Run(run).status()}
