"""What a run's events say: its steps, evaluations and warnings. Pure functions of the events."""

from typing import get_args

from peft_space.runs import events


def active_job(happened: list[events.Event]) -> events.SubmittedToJob | None:
    """The job that a run was handed over to, while its outcome has not come back."""
    ends = (events.SubmittedToJob, events.Queued, *get_args(events.Outcome))
    last = next((event for event in reversed(happened) if isinstance(event, ends)), None)
    return last if isinstance(last, events.SubmittedToJob) else None


def steps_of(happened: list[events.Event]) -> list[events.Step]:
    """The steps in order, each once: a resume that replays steps overwrites what was recorded before the kill."""
    return sorted(
        {event.step: event for event in happened if isinstance(event, events.Step)}.values(),
        key=lambda event: event.step,
    )


def evaluations_of(happened: list[events.Event]) -> list[events.Evaluated]:
    """The held-out losses in order, each step once."""
    return sorted(
        {event.step: event for event in happened if isinstance(event, events.Evaluated)}.values(),
        key=lambda event: event.step,
    )


def warnings_of(happened: list[events.Event]) -> list[events.Warned]:
    """What was wrong, each step once."""
    return list(
        {event.step: event for event in happened if isinstance(event, events.Warned)}.values()
    )


def selected_checkpoint(happened: list[events.Event]) -> events.CheckpointSelected | None:
    """Which step's adapter the run has; None where it has none yet, or one that was made elsewhere."""
    return next(
        (event for event in reversed(happened) if isinstance(event, events.CheckpointSelected)),
        None,
    )
