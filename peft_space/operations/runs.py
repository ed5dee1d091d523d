"""Makes, trains, follows and manages runs."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Literal

from pydantic import Field

from peft_space import settings
from peft_space.operations.registry import (
    Adapter,
    AnyRun,
    ColumnMapping,
    DataSource,
    HeldOut,
    Json,
    Kind,
    NewRun,
    OtherAdapters,
    Owners,
    Progress,
    RecipeChoices,
    TrainedRun,
    operation,
    progress,
)
from peft_space.recipe import make_recipe
from peft_space.runs import events
from peft_space.runs.events import evaluations_of, selected_checkpoint, steps_of, warnings_of
from peft_space.runs.run import Run, ensure_not_on_job
from peft_space.runs.store import list_runs as runs_of

CLI_ONLY, API_ONLY = Kind("", only="cli"), Kind("", only="api")
Tool = Literal["tensorboard", "trackio", "wandb"]
_LOSS_FIELDS = ("step", "loss", "learning_rate", "grad_norm", "tokens", "seconds")


def _trained_text(result: Json, arguments: Json) -> str:
    notes = result.get("notes", []) if "step" not in result else []  # the command has shown them
    return "\n".join([*notes, _next_text(result)])


def _next_text(result: Json) -> str:
    run = result["run"]
    if "step" in result:
        following = f"Next: peft-space evaluate {run}"
        return f"{result['outcome']} at step {result['step']}. {following}"
    if result.get("outcome"):
        return "This run is finished."
    return f"The run is in {run}. Next: peft-space job {run}, or peft-space resume {run}"


@operation(group="runs", name="train", trains=True, text=_trained_text)
def make_run(
    directory: NewRun,
    data: DataSource,
    recipe: RecipeChoices = None,
    held_out: HeldOut = None,
    column_mapping: ColumnMapping = None,
    no_train: bool = False,
    report_to: Annotated[list[Tool] | None, CLI_ONLY] = None,
    report: Progress = None,
) -> Json:
    """Train a LoRA adapter on your data.

    A mistake in the data or recipe leaves no run. The command line trains in the foreground, the
    API in the background, and ZeroGPU in slices, one for each call of `resume`.

    Args:
        no_train: only make the run, to train it later or elsewhere
        report_to: also report the losses to this tool; may be repeated

    Returns:
        The folder of the `run`, and `notes` on rows that are left out, cut or suspicious. The
        surface trains the run afterwards.
    """
    from peft_space.data.dataset import notes_on_data
    from peft_space.training.prepare import make_run as make

    chosen = make_recipe(recipe or {})
    run = make(directory, data, chosen, held_out, column_mapping, progress(report))
    return {"run": str(run.directory), "notes": notes_on_data(run)}


def train(run: str) -> Json:
    """Train a run in this process, until it ends or is asked to stop."""
    from peft_space.export.readiness import describe_adapter
    from peft_space.training.train import TrainOptions
    from peft_space.training.train import train as train_run

    opened = Run(run)
    with opened.lock():
        options = TrainOptions(report_to=settings.report_to(), on_adapter_saved=describe_adapter)
        return train_run(opened, options).model_dump()


@operation(group="runs", trains=True, in_process=True, text=_trained_text)
def resume(
    run: AnyRun,
    halve_max_length: bool = False,
    ignore_mismatch: bool = False,
    slice_seconds: Annotated[int, Field(ge=0), API_ONLY] = 0,
    report_to: Annotated[list[Tool] | None, CLI_ONLY] = None,
) -> Json:
    """Resume the training of a run from its last checkpoint.

    Args:
        halve_max_length: after a training that ran out of memory, cut rows at half their length
        ignore_mismatch: resume even if rows, recipe or libraries have changed since
        slice_seconds: on ZeroGPU, the limit of this slice; 0 is the app's own, mostly 60
        report_to: also report the losses to this tool; may be repeated
    """
    opened = Run(run)
    ensure_not_on_job(opened)
    return {"run": str(opened.directory)}


@operation(
    group="runs",
    text=lambda result, _: "\n".join(
        [
            *result["notes"],
            f"The adapter is in the run {result['run']}. Next: peft-space evaluate "
            f"{result['run']}, or peft-space resume {result['run']}",
        ]
    ),
)
def import_adapter(
    directory: NewRun,
    adapter: Adapter,
    data: DataSource,
    recipe: RecipeChoices = None,
    held_out: HeldOut = None,
    column_mapping: ColumnMapping = None,
    report: Progress = None,
) -> Json:
    """Make a run of an existing adapter, to compare, score, export or train it further.

    A base model in the recipe wins over the one that the adapter names.

    Returns:
        The folder of the `run`, and `notes` on what was taken from the adapter and on the rows.
    """
    from peft_space.data.dataset import notes_on_data
    from peft_space.training.import_adapter import import_adapter as import_into_run

    run = import_into_run(
        directory, adapter, data, recipe, held_out, column_mapping, progress(report)
    )
    taken = [f"{one.what} {one.why}" for one in run.history() if isinstance(one, events.Notice)]
    return {"run": str(run.directory), "notes": [*taken, *notes_on_data(run)]}


@operation(
    group="runs",
    text=lambda result, _: (
        f"{result['notes'][0]}\nThe run is {result['run']}. "
        f"Next: peft-space evaluate {result['run']}"
    ),
)
def merge_adapters(
    run: TrainedRun,
    directory: NewRun,
    adapters: OtherAdapters = None,
    weights: list[float] | None = None,
    method: Literal["linear", "ties", "dare", "dare_ties"] = "linear",
    density: Annotated[float, Field(gt=0, le=1)] = 0.5,
    report: Progress = None,
) -> Json:
    """Join the adapter of a run with others on its base model, as a new run.

    Args:
        weights: one for each adapter, the run's first; without them, equal ones that add up to 1
        method: linear adds the updates exactly; ties and dare drop a part of each
        density: the share of each update that ties and dare keep

    Returns:
        The folder of the new `run`, with the rows of the first one, and `notes`.
    """
    from peft_space.training.merge_adapters import merge_adapters as join

    new = join(
        directory, Run(run), adapters or [], weights or [], method, density, progress(report)
    )
    notices = [one for one in new.history() if isinstance(one, events.Notice)]
    return {"run": str(new.directory), "notes": [f"{one.what} {one.why}" for one in notices]}


# What a run is doing


def _summary(run: Run, history: list[events.Event]) -> Json:
    steps = steps_of(history)
    return {
        "run": str(run.directory),
        "name": run.name,
        "status": run.status(history),
        "step": steps[-1].step if steps else 0,
    }


def _list_text(result: list[Json], arguments: Json) -> str:
    lines = [
        f"{line['run']}  {line['status']:11} step {line['step']:6}  {line['name']}"
        for line in result
    ]
    return "\n".join(lines) or "There are no runs."


@operation(group="runs", name="list", in_process=True, text=_list_text)
def list_runs(owners: Owners) -> list[Json]:
    """List your runs, the newest first."""
    return [
        _summary(run, run.history())
        | {"created": run.about["created"], "base_model": run.recipe.base_model}
        for run in runs_of(*owners)
    ]


def _status_text(result: Json, arguments: Json) -> str:
    total = f" of {result['total_steps']}" if result["total_steps"] else ""
    words = f"The run is {result['status']}, at step {result['step']}{total}."
    return f"{words} {result['message'] or ''}".strip()


@operation(group="runs", in_process=True, text=_status_text)
def status(run: AnyRun, since_step: int = 0) -> Json:
    """Show the progress and the measurements of a run's training.

    Args:
        since_step: leave out the losses up to this step

    Returns:
        `status`, `step`, `total_steps`, `losses`, `evaluations`, `message` and more; see
        docs/api.md.
    """
    from peft_space.training.early_stopping import overfits_from

    opened = Run(run)
    history, plan = opened.history(), opened.path("plan.json")
    started = [event for event in history if isinstance(event, events.Started)]
    losses = [event for event in steps_of(history) if event.step > since_step]
    notices = [event for event in history if isinstance(event, events.Notice)]
    selected = selected_checkpoint(history)
    return _summary(opened, history) | {
        "total_steps": started[-1].total_steps if started else None,
        "recipe": opened.recipe.model_dump(),
        "plan": json.loads(plan.read_text()) if plan.is_file() else None,
        "losses": _fields(losses, *_LOSS_FIELDS),
        "evaluations": _fields(evaluations_of(history), "step", "loss"),
        "overfits_from": overfits_from(history),
        "adjustments": _fields(notices, "what", "why"),
        "warnings": _fields(warnings_of(history), "step", "what", "advice"),
        "kept": _fields([selected], "step", "why")[0] if selected else None,
        **slices_of(opened),
    }


def _fields(happened: Sequence[events.Event], *names: str) -> list[Json]:
    return [event.model_dump(include=set(names)) for event in happened]


def slices_of(run: Run) -> Json:
    """The GPU quota used on ZeroGPU (`slices`), and why the run failed or paused (`message`)."""
    from peft_space.runtime.slice_lengths import slice_account

    history = run.history()
    state = run.status(history)
    failures = [event.message for event in history if isinstance(event, events.Failed)]
    pauses = [event.why for event in history if isinstance(event, events.Paused)]
    reasons = {"failed": failures, "paused": pauses}.get(state, [])
    on_zerogpu = settings.on_zerogpu()
    used = asdict(slice_account(history, settings.slice_seconds())) if on_zerogpu else None
    return {"message": (reasons and reasons[-1]) or None, "slices": used}


def _state_text(result: Json, arguments: Json) -> str:
    return f"The run is {result['status']}."


def _request(run: str, kind: Literal["pause", "stop"]) -> Json:
    opened = Run(run)
    if opened.status() in ("queued", "running"):
        opened.request_stop(kind)
    return {"run": str(opened.directory), "status": opened.status()}


@operation(group="runs", in_process=True, text=_state_text)
def pause(run: AnyRun) -> Json:
    """Pause a training after its current step, with a checkpoint."""
    return _request(run, "pause")


@operation(group="runs", in_process=True, text=_state_text)
def stop(run: AnyRun) -> Json:
    """Stop a training after its current step, with a checkpoint and an adapter."""
    return _request(run, "stop")


@operation(group="runs", in_process=True, text=lambda result, _: f"Renamed to {result['name']}.")
def rename(run: AnyRun, name: str) -> Json:
    """Give a run another name.

    Args:
        name: the new name, at most 100 characters
    """
    opened = Run(run)
    opened.rename(name)
    return {"run": str(opened.directory), "name": opened.name}


@operation(group="runs", in_process=True, text=lambda result, _: "The run is deleted.")
def delete(run: AnyRun) -> Json:
    """Delete a run and everything in it."""
    opened = Run(run)
    opened.delete()
    return {"run": str(opened.directory), "deleted": True}


@operation(
    group="runs", internal="Each ZeroGPU slice runs it first, so that no GPU time is spent on it."
)
def prefetch(run: AnyRun) -> Json:
    """Render the rows of a run and download the files of its base model."""
    from peft_space.training.prepare import prefetch as prefetch_run

    return {"rows": prefetch_run(Run(run))}
