"""Derives the length of the next ZeroGPU slice, and the time used and left, from a run's events."""

import math
from dataclasses import dataclass
from itertools import pairwise

from peft_space.errors import UserError
from peft_space.runs import events
from peft_space.runs.events import steps_of

#: Seconds. A shorter slice would mostly load and save.
SHORTEST = 10
#: Before the first save was measured, this share of a slice is reserved for it, up to a limit.
_SAVE_SHARE, _MAX_SAVE_SECONDS = 0.25, 10.0
_SPARE_SECONDS = 0.5
#: Slices in a row that may end before their first checkpoint.
_MAX_WITHOUT_CHECKPOINT = 3


@dataclass(frozen=True)
class SliceAccount:
    """What a training in slices has used and still needs; None before the first steps."""

    slices: int
    seconds: float
    slices_left: int | None
    seconds_left: float | None


def next_slice_seconds(history: list[events.Event], limit: int) -> int:
    """Return the length of the next slice.

    Args:
        history: of the run.
        limit: seconds, at most.

    Raises:
        UserError: slices of `limit` seconds are too short for this training.
    """
    if _slices_without_checkpoint(history) >= _MAX_WITHOUT_CHECKPOINT:
        raise _too_short(limit, "the last ones ended before anything was saved")
    if not steps_of(history):
        return limit
    loads, step, margin = _load_seconds(history), _longest_step(history), margin_of(history, limit)
    # the first slice also measures which settings are fastest, so it does not count
    if len(loads) > 1 and min(loads) + step + margin > limit:
        reason = (
            f"loading takes {min(loads):.0f} s, a step {step:.1f} s, and {margin:.0f} s are "
            "reserved for saving"
        )
        raise _too_short(limit, reason)
    needed = max(loads) + _steps_left(history) * _seconds_per_step(history) + margin
    return max(min(SHORTEST, limit), min(limit, math.ceil(1.2 * needed)))


def _too_short(limit: int, why: str) -> UserError:
    return UserError(
        "runtime.slice_too_short",
        f"Slices of {limit} s are too short for this training: {why}. Choose longer slices, then "
        "resume.",
    )


def margin_of(history: list[events.Event], seconds: float) -> float:
    """Return how many seconds before the end of a slice training has to stop.

    A step, an evaluation and a save may follow. After slices without a checkpoint, the margin
    doubles each time. It never exceeds half of the slice.
    """
    if saves := _save_seconds(history):
        needed = _longest_step(history) + _evaluation_seconds(history) + 1.5 * max(saves[-5:])
    else:
        needed = min(_SAVE_SHARE * seconds, _MAX_SAVE_SECONDS)
    doubled = (needed + _SPARE_SECONDS) * 2 ** _slices_without_checkpoint(history)
    return min(doubled, seconds / 2)


def slice_account(history: list[events.Event], limit: int) -> SliceAccount:
    """Return the time used and left, in slices of at most `limit` seconds."""
    slices = _slices(history)
    used = sum(_used_seconds(one) for one in slices)
    if not steps_of(history):
        return SliceAccount(len(slices), used, None, None)
    training = _steps_left(history) * _seconds_per_step(history)
    load = min(_load_seconds(history))
    count = math.ceil(training / max(limit - load - margin_of(history, limit), 1.0))
    return SliceAccount(len(slices), used, count, training + count * load)


def count_for(seconds: float, limit: float) -> int:
    """Return how many slices a training takes whose duration was measured.

    Each slice of `limit` seconds also loads the model, and stops before its end.
    """
    return math.ceil(seconds / max(0.85 * limit, 1.0))


def is_between_slices(history: list[events.Event]) -> bool:
    """Return True if training paused only because its slice was over."""
    decisive = (events.Queued, events.Started, *events.OUTCOMES)
    last = next((event for event in reversed(history) if isinstance(event, decisive)), None)
    if not isinstance(last, events.Paused) or last.asked or last.why:
        return False
    return any(isinstance(event, events.SliceStarted) for event in history)


def _slices(history: list[events.Event]) -> list[list[events.Event]]:
    """The events of each slice."""
    starts = [i for i, event in enumerate(history) if isinstance(event, events.SliceStarted)]
    return [history[start:end] for start, end in pairwise([*starts, len(history)])]


def _used_seconds(slice_events: list[events.Event]) -> float:
    """The duration of a slice; its full length if it was interrupted."""
    start = slice_events[0]
    assert isinstance(start, events.SliceStarted)
    end = next((event for event in slice_events if isinstance(event, events.OUTCOMES)), None)
    if end is None or (isinstance(end, events.Paused) and end.why):
        return start.seconds
    return end.at - start.at


def _slices_without_checkpoint(history: list[events.Event]) -> int:
    """How many of the last slices in a row have saved no checkpoint."""
    saving = (events.Checkpointed, events.Finished, events.Stopped, events.Failed)
    count = 0
    for event in reversed(history):
        if isinstance(event, saving):
            break
        count += isinstance(event, events.SliceStarted)
    return count


def _steps_left(history: list[events.Event]) -> int:
    totals = [event.total_steps for event in history if isinstance(event, events.Started)]
    saved = [event.step for event in history if isinstance(event, events.Checkpointed)]
    return max(totals, default=0) - (saved[-1] if saved else 0)


def _longest_step(history: list[events.Event]) -> float:
    return max((step.seconds for step in steps_of(history)[-20:]), default=0.0)


def _load_seconds(history: list[events.Event]) -> list[float]:
    """Seconds until training began in each of the last slices.

    A new process loads the base model; one that has had a slice before still holds it.
    """
    loads = [
        event.at - slice_events[0].at
        for slice_events in _slices(history)
        for event in slice_events
        if isinstance(event, events.Started)
    ]
    return loads[-3:] or [0.0]


def _seconds_per_step(history: list[events.Event]) -> float:
    """Mean seconds for a step and everything between steps, without loading."""
    num_steps, seconds = 0, 0.0
    for slice_events in _slices(history):
        started = [event for event in slice_events if isinstance(event, events.Started)]
        trained = [event for event in slice_events if isinstance(event, events.Step)]
        if started and trained:
            num_steps += len(trained)
            seconds += trained[-1].at - started[-1].at
    return seconds / num_steps if num_steps else 0.0


def _save_seconds(history: list[events.Event]) -> list[float]:
    """The duration of each save, which follows a step, or the evaluation after it."""
    kinds = (events.Step, events.Evaluated, events.Checkpointed)
    relevant = [event for event in history if isinstance(event, kinds)]
    return [
        later.at - earlier.at
        for earlier, later in pairwise(relevant)
        if isinstance(later, events.Checkpointed)
        and earlier.step == later.step
        and not isinstance(earlier, events.Checkpointed)
    ]


def _evaluation_seconds(history: list[events.Event]) -> float:
    """The longest of the last evaluations, each of which follows a step."""
    kinds = (events.Step, events.Evaluated)
    relevant = [event for event in history if isinstance(event, kinds)]
    durations = [
        later.at - earlier.at
        for earlier, later in pairwise(relevant)
        if isinstance(later, events.Evaluated)
    ]
    return max(durations[-3:], default=0.0)
