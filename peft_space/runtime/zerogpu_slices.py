"""How long a training's next slice of borrowed GPU time is to be, when it has to save, and what is used and left: from the run's events alone."""

import math
from dataclasses import dataclass
from itertools import pairwise

from peft_space.errors import UserError
from peft_space.runs import events
from peft_space.runs.status import steps_of

SHORTEST = 10
"""Seconds; of a slice that is shorter most goes on beginning and saving."""
_RESERVE, _MOST_RESERVE = 0.25, 10.0
"""What is kept for saving before a save has been measured: this share of a slice, at most so many seconds."""
_SPARE_SECONDS = 0.5
_MOST_IN_VAIN = 3
"""Slices in a row that ended before their first checkpoint."""


@dataclass(frozen=True)
class SliceAccount:
    """What of a training on borrowed time is used, and about what is left; None before the first steps were measured."""

    slices: int
    seconds: float
    slices_left: int | None
    seconds_left: float | None


def next_slice_seconds(happened: list[events.Event], limit: int) -> int:
    """How long the next slice has to be, at most `limit`. Raises UserError where too little can be done in it."""
    if _slices_without_checkpoint(happened) >= _MOST_IN_VAIN:
        raise _too_short(limit, "the last ones ended before anything could be saved")
    steps = steps_of(happened)
    if not steps:
        return limit
    loads, step, margin = _loads(happened), _longest_step(happened), margin_of(happened, limit)
    if (
        len(loads) > 1 and min(loads) + step + margin > limit
    ):  # the first slice also measures what is fastest
        raise _too_short(
            limit,
            f"loading takes {min(loads):.0f} s, a step {step:.1f} s, and {margin:.0f} s are kept for saving",
        )
    needed = max(loads) + _steps_left(happened) * _pace(happened) + margin
    return max(min(SHORTEST, limit), min(limit, math.ceil(1.2 * needed)))


def _too_short(limit: int, why: str) -> UserError:
    return UserError(
        "todo",
        f"Slices of {limit} s are too short for this training: {why}. Choose longer slices, then Resume.",
    )


def margin_of(happened: list[events.Event], seconds: float) -> float:
    """How long before the end of a slice training has to leave: a step, an evaluation and a save may still come."""
    saves = _saves(happened)
    measured = (
        _longest_step(happened) + _evaluation(happened) + 1.5 * max(saves[-5:])
        if saves
        else min(_RESERVE * seconds, _MOST_RESERVE)
    )
    return min((measured + _SPARE_SECONDS) * 2 ** _slices_without_checkpoint(happened), seconds / 2)


def slice_account(happened: list[events.Event], limit: int) -> SliceAccount:
    """What is used and what is left, in slices of at most `limit` seconds."""
    slices = _slices(happened)
    used = sum(_used(one) for one in slices)
    if not steps_of(happened):
        return SliceAccount(len(slices), used, None, None)
    working = _steps_left(happened) * _pace(happened)
    load = min(_loads(happened))
    count = math.ceil(working / max(limit - load - margin_of(happened, limit), 1.0))
    return SliceAccount(len(slices), used, count, working + count * load)


def count_for(seconds: float, limit: float) -> int:
    """How many slices of at most `limit` seconds a training takes whose whole time was measured: each also loads, and leaves before its end."""
    return math.ceil(seconds / max(0.85 * limit, 1.0))


def is_between_slices(happened: list[events.Event]) -> bool:
    """Whether training left because its slice was over, and nothing else came in between."""
    kinds = (
        events.Queued,
        events.Started,
        events.Paused,
        events.Stopped,
        events.Finished,
        events.Failed,
    )
    last = next((event for event in reversed(happened) if isinstance(event, kinds)), None)
    return (
        isinstance(last, events.Paused)
        and not last.asked
        and not last.why
        and any(isinstance(one, events.SliceStarted) for one in happened)
    )


def _slices(happened: list[events.Event]) -> list[list[events.Event]]:
    """The events of each slice."""
    starts = [
        place for place, event in enumerate(happened) if isinstance(event, events.SliceStarted)
    ]
    return [happened[start:end] for start, end in pairwise([*starts, len(happened)])]


def _used(one: list[events.Event]) -> float:
    """Seconds from the beginning of a slice to its end; of one that was cut short by others all that it had."""
    begun = one[0]
    assert isinstance(begun, events.SliceStarted)
    ends = [
        event
        for event in one
        if isinstance(event, events.Finished | events.Failed | events.Stopped | events.Paused)
    ]
    cut_short = not ends or (isinstance(ends[0], events.Paused) and ends[0].why)
    return begun.seconds if cut_short else ends[0].at - begun.at


def _slices_without_checkpoint(happened: list[events.Event]) -> int:
    """How many slices in a row, up to now, have left no checkpoint."""
    count = 0
    for event in reversed(happened):
        if isinstance(
            event, events.Checkpointed | events.Finished | events.Stopped | events.Failed
        ):
            break
        count += isinstance(event, events.SliceStarted)
    return count


def _steps_left(happened: list[events.Event]) -> int:
    total = max(
        (event.total_steps for event in happened if isinstance(event, events.Started)), default=0
    )
    saved = [event.step for event in happened if isinstance(event, events.Checkpointed)]
    return total - (saved[-1] if saved else 0)


def _longest_step(happened: list[events.Event]) -> float:
    return max((step.seconds for step in steps_of(happened)[-20:]), default=0.0)


def _loads(happened: list[events.Event]) -> list[float]:
    """Seconds from the beginning of each of the last slices to its training. A fresh process loads the base, one that is warm has it."""
    return [
        event.at - one[0].at
        for one in _slices(happened)
        for event in one
        if isinstance(event, events.Started)
    ][-3:] or [0.0]


def _pace(happened: list[events.Event]) -> float:
    """Seconds a step with all that comes between steps, as it was from the start of training to the last step of each slice."""
    steps, seconds = 0, 0.0
    for one in _slices(happened):
        started = [event for event in one if isinstance(event, events.Started)]
        trained = [event for event in one if isinstance(event, events.Step)]
        if started and trained:
            steps += len(trained)
            seconds += trained[-1].at - started[-1].at
    return seconds / steps if steps else 0.0


def _saves(happened: list[events.Event]) -> list[float]:
    """Seconds that each save took: it follows the step, or the evaluation after it."""
    between = [
        event
        for event in happened
        if isinstance(event, events.Step | events.Evaluated | events.Checkpointed)
    ]
    return [
        later.at - earlier.at
        for earlier, later in pairwise(between)
        if isinstance(later, events.Checkpointed)
        and earlier.step == later.step
        and not isinstance(earlier, events.Checkpointed)
    ]


def _evaluation(happened: list[events.Event]) -> float:
    between = [event for event in happened if isinstance(event, events.Step | events.Evaluated)]
    taken = [
        later.at - earlier.at
        for earlier, later in pairwise(between)
        if isinstance(later, events.Evaluated)
    ]
    return max(taken[-3:], default=0.0)
