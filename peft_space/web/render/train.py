"""Text, HTML and tables of the Train tab, made from a run's events alone: without gradio."""

import html
import time
from typing import Any

from peft_space import settings
from peft_space.formatting import RESUME_ANYWAY
from peft_space.recipe import Recipe
from peft_space.runs import events
from peft_space.runs.events import (
    active_job,
    selected_checkpoint,
    warnings_of,
)
from peft_space.runs.run import Run, Status
from peft_space.runtime import slice_lengths
from peft_space.web.render.overview import escape, plain, tiles_of
from peft_space.web.render.progress import overfitting_sentence
from peft_space.web.states import STATUS_WORDS

SECONDS_TO_CONNECT = 60.0
"""How long a job's watcher may take to start before the page reports that there is none."""

History = list[events.Event]


def about_to_train_html(source: str, num_rows: int, model: str, changed: dict[str, Any]) -> str:
    """Return what *Start training* would train: base model, data, and every changed setting."""
    chips = "".join(
        f'<span class="chip">{html.escape(Recipe.model_fields[name].title or "")} '
        f"<b>{html.escape(plain(value))}</b></span>"
        for name, value in changed.items()
        if name != "base_model"
    )
    rows = f"{num_rows:,} rows" if num_rows else ""
    facts = [("Base model", model or "not chosen", ""), ("Data", source or "none", rows)]
    tiles = tiles_of([(title, figure, note, "text") for title, figure, note in facts])
    settings_changed = f"<span>Changed:</span>{chips}" if chips else "<span>Default settings</span>"
    return f'{tiles}<div class="chips">{settings_changed}</div>'


def status_markdown(run: Run, history: History) -> str:
    """Return a run's status, what to do next, and its warnings."""
    status = run.status(history)
    lines = [f"### {escape(run.name)}: {STATUS_WORDS[status]}", _next_action(run, history, status)]
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
