"""Text, HTML and tables of the Train tab, made from a run's events alone: without gradio."""

import math
import time
from collections.abc import Sequence
from typing import Any

import pandas as pd

from peft_space import settings
from peft_space.data.table import short_name
from peft_space.formatting import RESUME_ANYWAY, duration, gigabytes
from peft_space.recipe import Recipe
from peft_space.runs import events
from peft_space.runs.events import (
    active_job,
    evaluations_of,
    selected_checkpoint,
    steps_of,
    warnings_of,
)
from peft_space.runs.run import Run, Status
from peft_space.runtime import slice_lengths
from peft_space.training.early_stopping import overfits_from
from peft_space.web.render.overview import STATUS_WORDS, escape, plain

SECONDS_TO_CONNECT = 60.0
"""How long a job's watcher may take to start before the page reports that there is none."""
RECENT_STEPS = 20
"""Steps from which speed and remaining time are estimated."""

History = list[events.Event]


def names_of(data: str | list[str]) -> str:
    """Return the names of the files or the dataset."""
    return " + ".join(short_name(path) for path in ([data] if isinstance(data, str) else data))


def about_to_train(source: str, num_rows: int, recipe: Recipe) -> str:
    """Return what *Start training* would train: base, data, and every setting that was changed."""
    changed = recipe.model_dump(exclude_defaults=True, exclude={"base_model"})
    rows = f" ({num_rows:,} rows)" if num_rows else ""
    subject = f"{escape(recipe.base_model)} + **{escape(source)}**{rows}."
    if not changed:
        return f"{subject} Default settings."
    settings_changed = ", ".join(
        f"{Recipe.model_fields[name].title} **{escape(plain(value))}**"
        for name, value in changed.items()
    )
    return f"{subject} Changed: {settings_changed}."


def status_markdown(run: Run, history: History) -> str:
    """Return a run's status, its latest figures, its warnings and what to do next."""
    status = run.status(history)
    lines = [f"### {escape(run.name)}: {STATUS_WORDS[status]}", _next_action(run, history, status)]
    if steps := steps_of(history):
        lines.append(_figures(history, steps, status))
    if _is_sliced(history):
        lines.append(
            slices_sentence(slice_lengths.slice_account(history, settings.slice_seconds()))
        )
    lines += [
        f"⚠ {escape(event.why)} {escape(event.what)}"
        for event in history
        if isinstance(event, events.OutOfMemory)
    ]
    lines += [
        f"⚠ Step {warning.step}: {escape(warning.what)} {escape(warning.advice)}"
        for warning in warnings_of(history)
    ]
    if overfitting := overfitting_sentence(history):
        lines.append(f"⚠ {overfitting}")
    return "\n\n".join(lines)


def can_halve_max_length(history: History) -> bool:
    """Return True if only shorter rows would fit into memory, which the user has to agree to."""
    return bool(history) and isinstance(history[-1], events.Failed) and history[-1].for_memory


def can_go_on_anyway(history: History) -> bool:
    """Return True if training refused to resume a checkpoint that does not match, and may."""
    return any(
        isinstance(event, events.Failed) and RESUME_ANYWAY in event.message
        for event in history[-1:]
    )


def progress_html(history: History) -> str:
    """Return a progress bar of the steps."""
    total, steps = _total_steps(history), steps_of(history)
    if not total:
        return ""
    done = steps[-1].step if steps else 0
    label = f"Step {done} of {total}"
    return f'<progress class="steps" value="{done}" max="{total}" aria-label="{label}"></progress>'


def _total_steps(history: History) -> int:
    starts = (event for event in reversed(history) if isinstance(event, events.Started))
    return next((event.total_steps for event in starts), 0)


def adjustments_markdown(history: History) -> str:
    """Return the settings that were chosen for this machine, and why."""
    lines = [
        f"- {escape(event.what)} {escape(event.why)}"
        for event in history
        if isinstance(event, events.Notice)
    ]
    return "\n".join(lines) or "Nothing yet."


def _is_sliced(history: History) -> bool:
    return any(isinstance(event, events.SliceStarted) for event in history)


def _next_action(run: Run, history: History, status: Status) -> str:
    """Return the run's current activity, and the user's options."""
    if status in ("queued", "running"):
        return _active_sentence(run, history, status)
    if job := active_job(history):
        return _job_sentence(run, history, job)
    if status == "failed":
        failures = (event for event in reversed(history) if isinstance(event, events.Failed))
        return f"⚠ {escape(next(failures).message)}"
    if status == "paused":
        return _paused_sentence(history)
    sentences: dict[Status, str] = {
        "new": "*Resume* trains it here. *Train on other hardware* offers a job or a script.",
        "stopped": f"{checkpoint_sentence(history)} Compare it now, or resume training.",
        "interrupted": "Training was interrupted. Resume from the last checkpoint.",
        "finished": f"{checkpoint_sentence(history)} Next: *Compare*.",
    }
    return sentences.get(status, "").strip()


def _active_sentence(run: Run, history: History, status: Status) -> str:
    if request := run.requested_stop():
        return "Pausing after this step…" if request == "pause" else "Stopping after this step…"
    activity = _last_activity(history)
    if isinstance(activity, events.Preparing):
        return f"{escape(activity.what)}…"
    if status == "queued" or not isinstance(activity, events.Step):
        return "Starting…"
    if _is_sliced(history):
        return (
            "Keep this page open: it starts each slice. "
            "If you close it, training pauses after the current slice."
        )
    return "You can close this page. Training continues."


def _last_activity(history: History) -> events.Event | None:
    kinds = events.Preparing | events.Step | events.Queued | events.Started
    return next((event for event in reversed(history) if isinstance(event, kinds)), None)


def _job_sentence(run: Run, history: History, job: events.SubmittedToJob) -> str:
    activity = _last_activity(history)
    doing = escape(activity.what) if isinstance(activity, events.Preparing) else "Training"
    connecting = run.is_locked() or time.time() - job.at < SECONDS_TO_CONNECT
    warning = (
        "⚠ This page is not connected to it: press *Reconnect* under *Train on other hardware*."
    )
    return (
        f"{doing} on {escape(job.flavor)}: [the job's page]({job.address}). "
        f"You can close this page. {'' if connecting else warning}"
    )


def _paused_sentence(history: History) -> str:
    pauses = (event for event in reversed(history) if isinstance(event, events.Paused))
    if reason := next(pauses).why:
        return f"⚠ {escape(reason)}"
    if slice_lengths.is_between_slices(history):
        return (
            "A slice has ended, and this page starts the next one. "
            "If the page was closed, press *Resume*: nothing is lost."
        )
    return "Paused. Resume any time; nothing is lost."


def slices_sentence(account: slice_lengths.SliceAccount) -> str:
    """Return how much GPU quota a training in slices has used and still needs."""
    used = f"{_slices(account.slices)} and {account.seconds:.0f} s of GPU quota used"
    if account.slices_left is None or account.seconds_left is None:
        return f"{used}. The rest is known after the first steps."
    if not account.slices_left:
        return f"{used}."
    return f"{used}; about {_slices(account.slices_left)} and {account.seconds_left:.0f} s left."


def slices_preview(limit: float, measured: float | None) -> str:
    """Return how many slices a training takes, before it starts.

    Args:
        limit: seconds per slice.
        measured: seconds of the whole training, from a dry run; None without one.
    """
    if measured is None:
        return (
            f"Trains in slices of up to {limit:.0f} s of GPU quota. "
            "*Measure a few steps* on the Recipe tab shows how many."
        )
    count = _slices(slice_lengths.count_for(measured, limit))
    return (
        f"Trains in about {count} of up to {limit:.0f} s: "
        f"{measured:.0f} s of GPU quota in total, as measured."
    )


def _slices(count: int) -> str:
    return f"{count} slice{'s' * (count != 1)}"


def checkpoint_sentence(history: History) -> str:
    """Return which step's adapter the run has, and why."""
    checkpoint = selected_checkpoint(history)
    if not checkpoint:
        return ""
    return f"Kept the adapter of step {checkpoint.step}: {escape(checkpoint.why)}"


def overfitting_sentence(history: History) -> str:
    """Return from which step on the model memorizes the rows, if it does, and what to do."""
    best = overfits_from(history)
    if best is None:
        return ""
    loss = {event.step: event.loss for event in evaluations_of(history)}
    return (
        f"**Overfitting since step {best}** (red line): held-out loss rose from {loss[best]:.3g} "
        f"to {loss[max(loss)]:.3g} while training loss fell. Use fewer epochs or more data."
    )


def _figures(history: History, steps: list[events.Step], status: Status) -> str:
    total = _total_steps(history)
    last, recent = steps[-1], steps[-RECENT_STEPS:]
    before = steps[-len(recent) - 1].tokens if len(steps) > len(recent) else 0
    seconds = sum(step.seconds for step in recent)
    is_active = status in ("running", "on_job")
    remaining = (total - last.step) * seconds / len(recent)
    elapsed = duration(sum(step.seconds for step in steps))
    figures = [
        f"Step {last.step} of {total}",
        f"loss {last.loss:.3f}",
        f"{(last.tokens - before) / seconds:,.0f} tokens/s",
        f"{gigabytes(last.memory)} peak memory" if last.memory else "",
        f"{elapsed} so far" if is_active else elapsed,
        f"about {duration(remaining)} left" if is_active and last.step < total else "",
    ]
    return " · ".join(figure for figure in figures if figure)


def losses(history: History) -> pd.DataFrame:
    """Return the loss curves in long form: step, loss, and which rows they are of.

    `rows` is "training", "held out" or "overfitting", a vertical line where that starts. All three
    are always present: Gradio does not draw a curve that is missing at first.
    """
    points = [(step.step, step.loss, "training") for step in steps_of(history)]
    points += [(event.step, event.loss, "held out") for event in evaluations_of(history)]
    if points and points[-1][2] == "training":
        points.append((points[0][0], math.nan, "held out"))
    if points:
        finite = [loss for _, loss, _ in points if math.isfinite(loss)]
        points += _overfitting_line(overfits_from(history), finite)
    return pd.DataFrame(points, columns=["step", "loss", "rows"])


def _overfitting_line(step: int | None, values: Sequence[float]) -> list[tuple[int, float, str]]:
    ends = (min(values, default=0.0), max(values, default=0.0)) if step else (math.nan, math.nan)
    return [(step or 1, end, "overfitting") for end in ends]


def step_details(history: History) -> pd.DataFrame:
    """Return learning rate, gradient norm and tokens per second of each step."""
    steps = steps_of(history)
    tokens_before = [0, *(step.tokens for step in steps)]
    rows: list[tuple[Any, ...]] = []
    for step, before in zip(steps, tokens_before, strict=False):
        speed = (step.tokens - before) / step.seconds if step.seconds else 0.0
        rows.append((step.step, step.learning_rate, step.grad_norm, speed))
    return pd.DataFrame(rows, columns=["step", "learning rate", "gradient norm", "tokens a second"])
