"""Reads a run's steps, evaluations, warnings and job from its events; pure functions."""

from typing import TypeVar

from peft_space.runs import events

_StepEvent = TypeVar("_StepEvent", events.Step, events.Evaluated, events.Warned)


def active_job(history: list[events.Event]) -> events.SubmittedToJob | None:
    """The job that trains the run now; None if there is none, or its outcome has arrived."""
    decisive = (events.SubmittedToJob, events.Queued, *events.OUTCOMES)
    last = next((event for event in reversed(history) if isinstance(event, decisive)), None)
    return last if isinstance(last, events.SubmittedToJob) else None


def steps_of(history: list[events.Event]) -> list[events.Step]:
    """The steps in order, each once: a resume that repeats a step replaces its record."""
    return sorted(_last_of_each_step(history, events.Step), key=lambda event: event.step)


def evaluations_of(history: list[events.Event]) -> list[events.Evaluated]:
    """The evaluation losses in order, each step once."""
    return sorted(_last_of_each_step(history, events.Evaluated), key=lambda event: event.step)


def warnings_of(history: list[events.Event]) -> list[events.Warned]:
    """The warnings, each step once."""
    return _last_of_each_step(history, events.Warned)


def selected_checkpoint(history: list[events.Event]) -> events.CheckpointSelected | None:
    """The checkpoint whose adapter is the run's; None without one, or if it was imported."""
    selections = (e for e in reversed(history) if isinstance(e, events.CheckpointSelected))
    return next(selections, None)


def _last_of_each_step(
    history: list[events.Event], event_type: type[_StepEvent]
) -> list[_StepEvent]:
    by_step = {event.step: event for event in history if isinstance(event, event_type)}
    return list(by_step.values())
