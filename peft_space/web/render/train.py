"""What the Train tab shows, from results alone: without gradio."""

import math
import time
from typing import Any

import pandas as pd

from peft_space import settings
from peft_space.data.table import short_name
from peft_space.formatting import RESUME_ANYWAY, duration, gigabytes
from peft_space.recipe import Recipe
from peft_space.runs import events
from peft_space.runs.run import Run, Status
from peft_space.runs.status import (
    active_job,
    evaluations_of,
    selected_checkpoint,
    steps_of,
    warnings_of,
)
from peft_space.runtime import zerogpu_slices
from peft_space.training.loss_analysis import overfits_from
from peft_space.web.render.overview import STATUS_WORDS, escape, plain

_SECONDS_TO_BEGIN = 60.0
"""For who follows a job to begin with it."""


def names_of(data: Any) -> str:
    """The names of the files or the dataset that were brought."""
    return " + ".join(short_name(path) for path in ([data] if isinstance(data, str) else data))


def about_to_train(source: str, num_rows: int, recipe: Recipe) -> str:
    """What *Start training* is about to train: the data, the base, and every choice that is not the default."""
    chosen = recipe.model_dump(exclude_defaults=True)
    chosen.pop("base_model", None)
    own = [
        f"{Recipe.model_fields[name].title} **{escape(plain(value))}**"
        for name, value in chosen.items()
    ]
    rows = f", {num_rows:,} rows" if num_rows else ""
    return (
        f"*Start training* trains {escape(recipe.base_model)} on **{escape(source)}**{rows}. "
        + (
            f"Your choices: {', '.join(own)}; all else by default."
            if own
            else "All choices are the defaults."
        )
    )


def status_markdown(run: Run, happened: list[events.Event]) -> str:
    """How far a run is and what to do next, as it is now."""
    status = run.status(happened)
    steps = steps_of(happened)
    lines = [f"### {escape(run.name)}: {STATUS_WORDS[status]}", _now(run, happened, status)]
    if steps:
        lines.append(_figures(happened, steps, status))
    if any(isinstance(event, events.SliceStarted) for event in happened):
        lines.append(
            slices_in_words(zerogpu_slices.slice_account(happened, settings.slice_seconds()))
        )
    lines += [
        f"⚠ {escape(event.why)} {escape(event.what)}"
        for event in happened
        if isinstance(event, events.OutOfMemory)
    ]
    lines += [
        f"⚠ Step {warned.step}: {escape(warned.what)} {escape(warned.advice)}"
        for warned in warnings_of(happened)
    ]
    if overfitting := overfitting_in_words(happened):
        lines.append(f"⚠ {overfitting}")
    return "\n\n".join(lines)


def wants_shorter_rows(happened: list[events.Event]) -> bool:
    """Whether nothing but shorter rows is left to try, which the user has to agree to."""
    return bool(happened) and isinstance(happened[-1], events.Failed) and happened[-1].for_memory


def progress_html(happened: list[events.Event]) -> str:
    """A bar: how many steps of how many."""
    total = next(
        (event.total_steps for event in reversed(happened) if isinstance(event, events.Started)), 0
    )
    steps = steps_of(happened)
    if not total:
        return ""
    done = steps[-1].step if steps else 0
    return f'<progress class="steps" value="{done}" max="{total}" aria-label="Step {done} of {total}"></progress>'


def adjustments_markdown(happened: list[events.Event]) -> str:
    """What was chosen for this machine, and why."""
    lines = [
        f"- {escape(event.what)} {escape(event.why)}"
        for event in happened
        if isinstance(event, events.Notice)
    ]
    return "\n".join(lines) or "Nothing has been chosen yet."


def can_go_on_anyway(happened: list[events.Event]) -> bool:
    """Whether training was refused because something differs from the last checkpoint, and may be gone on with all the same."""
    return any(
        isinstance(event, events.Failed) and RESUME_ANYWAY in event.message
        for event in happened[-1:]
    )


def _now(run: Run, happened: list[events.Event], status: Status) -> str:
    leave = run.requested_stop()
    if leave and status in ("queued", "running"):
        return "Saving after this step, then it " + ("pauses." if leave == "pause" else "stops.")
    if status == "failed":
        return f"⚠ {escape(next(event.message for event in reversed(happened) if isinstance(event, events.Failed)))}"
    working = next(
        (
            event
            for event in reversed(happened)
            if isinstance(event, events.Preparing | events.Step | events.Queued | events.Started)
        ),
        None,
    )
    if handed := active_job(happened):
        doing = (
            escape(working.what) if isinstance(working, events.Preparing) else "It is trained there"
        )
        return f"{doing}, on {escape(handed.flavor)}: [the job's page]({handed.address}). You can close this page. {_unfollowed(run, handed)}"
    if status == "paused" and (why := _last_pause(happened).why):
        return f"⚠ {escape(why)}"
    if status == "paused" and zerogpu_slices.is_between_slices(happened):
        return "A slice is over; this page begins the next one. If it was closed, *Resume* goes on exactly from here."
    if status in ("queued", "running") and not isinstance(working, events.Step):
        return f"{escape(working.what)}…" if isinstance(working, events.Preparing) else "Starting…"
    sliced = any(isinstance(event, events.SliceStarted) for event in happened)
    return {
        "new": "*Resume* trains it here; *Train it elsewhere* hands it over to a job, or writes it as a script.",
        "running": "Keep this page open: it begins each slice. If it is closed, the training pauses after this one."
        if sliced
        else "You can close this page; the training goes on, and the run is here when you come back.",
        "paused": "*Resume* goes on exactly from here.",
        "stopped": f"{kept_in_words(happened)} Compare it, or *Resume* to go on.".strip(),
        "interrupted": "Its process ended. *Resume* goes on from the last checkpoint, and nothing before it is lost.",
        "finished": f"{kept_in_words(happened)} Next: *Compare*.".strip(),
    }.get(status, "")


def _unfollowed(run: Run, handed: events.SubmittedToJob) -> str:
    """What to do where nobody brings back what the job does, as when this machine was started again."""
    return (
        ""
        if run.is_locked() or time.time() - handed.at < _SECONDS_TO_BEGIN
        else "⚠ Nobody here follows it: press *Follow it again* under *Train it elsewhere*."
    )


def _last_pause(happened: list[events.Event]) -> events.Paused:
    return next(event for event in reversed(happened) if isinstance(event, events.Paused))


def slices_in_words(account: zerogpu_slices.SliceAccount) -> str:
    """What of the GPU quota a training in slices has taken, and what it will take."""
    used = f"{account.slices} slice{'s' * (account.slices != 1)} and {account.seconds:.0f} s of GPU quota used"
    if account.slices_left is None or account.seconds_left is None:
        return f"{used}; what is left is known after the first steps."
    left = account.slices_left
    return (
        f"{used}; about {left} more slice{'s' * (left != 1)} and {account.seconds_left:.0f} s to go."
        if left
        else f"{used}."
    )


def before_slices(limit: float, measured: float | None) -> str:
    """What is known of a training's slices before it begins."""
    if measured is None:
        return f"It goes in slices of at most {limit:.0f} s of your GPU quota. *Measure a few steps* on the Recipe tab tells how many, or the first slice."
    count = zerogpu_slices.count_for(measured, limit)
    return f"It will take about {count} slice{'s' * (count != 1)} of at most {limit:.0f} s, {measured:.0f} s of your GPU quota in all, as measured."


def kept_in_words(happened: list[events.Event]) -> str:
    """Which step's adapter the run has, and why."""
    kept = selected_checkpoint(happened)
    return f"The adapter of step {kept.step} is kept: {escape(kept.why)}" if kept else ""


def overfitting_in_words(happened: list[events.Event]) -> str:
    """From which step on the rows are learnt by heart, if they are, and what to do."""
    best = overfits_from(happened)
    if best is None:
        return ""
    evaluations = {event.step: event.loss for event in evaluations_of(happened)}
    rise = f"from {evaluations[best]:.3g} to {evaluations[max(evaluations)]:.3g}"
    return (
        f"**Over-fitting from step {best} on**, where the red line stands: the held-out loss rises, {rise}, while the training loss falls. "
        "The rows are being learnt by heart, and more steps make it worse. Next time fewer epochs or more rows will do."
    )


def _figures(happened: list[events.Event], steps: list[events.Step], status: Status) -> str:
    total = next(
        event.total_steps for event in reversed(happened) if isinstance(event, events.Started)
    )
    last, recent = steps[-1], steps[-20:]
    seconds = sum(step.seconds for step in recent)
    goes_on = status in ("running", "on_job")
    tokens = last.tokens - (steps[-len(recent) - 1].tokens if len(steps) > len(recent) else 0)
    words = [
        f"Step {last.step} of {total}",
        f"loss {last.loss:.3f}",
        f"{tokens / seconds:,.0f} tokens a second",
        f"{gigabytes(last.memory)} at most" if last.memory else "",
        duration(sum(step.seconds for step in steps)) + (" so far" if goes_on else ""),
        f"about {duration((total - last.step) * seconds / len(recent))} left"
        if goes_on and last.step < total
        else "",
    ]
    return " · ".join(word for word in words if word)


def losses(happened: list[events.Event]) -> pd.DataFrame:
    """Both loss curves, long form: step, loss, rows (training or held out); and `over-fitting`, an upright line where it begins."""
    points = [(step.step, step.loss, "training") for step in steps_of(happened)]
    points += [
        (evaluation.step, evaluation.loss, "held out") for evaluation in evaluations_of(happened)
    ]
    if (
        points and points[-1][2] == "training"
    ):  # a curve that is not there from the start is not drawn when it comes
        points.append((points[0][0], math.nan, "held out"))
    if points:
        points += _mark(
            overfits_from(happened), [loss for _, loss, _ in points if math.isfinite(loss)]
        )
    return pd.DataFrame(points, columns=["step", "loss", "rows"])


def _mark(step: int | None, losses: list[float]) -> list[tuple[int, float, str]]:
    heights = (min(losses, default=0.0), max(losses, default=0.0)) if step else (math.nan, math.nan)
    return [(step or 1, height, "over-fitting") for height in heights]


def step_details(happened: list[events.Event]) -> pd.DataFrame:
    """Learning rate, gradient norm and speed of each step."""
    steps = steps_of(happened)
    before = [0, *(step.tokens for step in steps)]
    rows = [
        (
            step.step,
            step.learning_rate,
            step.grad_norm,
            (step.tokens - seen) / step.seconds if step.seconds else 0.0,
        )
        for step, seen in zip(steps, before, strict=False)
    ]
    return pd.DataFrame(rows, columns=["step", "learning rate", "gradient norm", "tokens a second"])
