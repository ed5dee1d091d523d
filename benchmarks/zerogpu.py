"""Measures how the time of 60 s slices is used: the share of steps in the final adapter.

Uses the real `spaces` package and the built-in model. A CPU replaces the GPU, and
`tests/fixtures/fake_zerogpu.py` the service that lends it.
"""

import json
import os
import tempfile
from itertools import pairwise
from pathlib import Path

from peft_space import settings
from peft_space.runs import events
from peft_space.runs.run import Run

SECONDS = int(os.environ.get("SLICE_SECONDS", "60"))
STEPS = int(os.environ.get("STEPS", "1250"))
Slice = list[events.Event]
_FIRST_LOAD, _WARM_LOAD = "fork, rows and base, first slice", "the same in warm slices"
_UNUSED = "unused before the end"


def main() -> None:
    """Train in slices and print one JSON line."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    settings.prepare_libraries()
    from peft_space.recipe import Recipe
    from peft_space.training.prepare import make_run
    from tests.fixtures.fake_zerogpu import Lender

    with tempfile.TemporaryDirectory() as home:
        os.environ["PEFT_SPACE_HOME"] = home
        run = make_run(Path(home, "run"), "demo", Recipe(max_steps=STEPS, num_epochs=20))
        with Lender() as lender, lender.trainer() as trainer:
            trainer.train(run.directory, SECONDS)
        print(json.dumps(summarize(run)))


def summarize(run: Run) -> dict[str, object]:
    """How the time of a run's slices was used."""
    from peft_space.runs.events import steps_of

    history = run.history()
    starts = [
        position for position, event in enumerate(history) if isinstance(event, events.SliceStarted)
    ]
    slices = [history[start:end] for start, end in pairwise([*starts, len(history)])]
    used = sum(end_of(events_of_slice) - events_of_slice[0].at for events_of_slice in slices)
    useful = sum(step.seconds for step in steps_of(history))
    seconds = seconds_by_activity(slices)
    full = slices[:-1]
    granted = sum(getattr(part[0], "seconds", 0) for part in full)
    steps_in_full = sum(
        event.seconds for part in full for event in part if isinstance(event, events.Step)
    )
    return {
        "slices": len(slices),
        "slice_seconds": SECONDS,
        "steps": STEPS,
        "status": run.status(),
        "used_seconds": round(used, 1),
        "useful_seconds": round(useful, 1),
        "useful_share_percent": round(100 * useful / used, 1),
        "seconds_of_full_slices": granted,
        "full_slices_percent": round(100 * steps_in_full / granted, 1) if granted else None,
        "seconds": {activity: round(value, 1) for activity, value in seconds.items()},
        "percent": {activity: round(100 * value / used, 1) for activity, value in seconds.items()},
    }


def end_of(part: Slice) -> float:
    """The time at which a slice was over."""
    ends = (event.at for event in part if isinstance(event, events.Paused | events.Finished))
    return next(ends, part[-1].at)


def seconds_by_activity(slices: list[Slice]) -> dict[str, float]:
    """Seconds of each activity, over all slices."""
    activities = ("steps", _FIRST_LOAD, _WARM_LOAD, "checkpoint opened, first row")
    activities += ("between steps", "evaluations", "saves", _UNUSED)
    seconds = dict.fromkeys(activities, 0.0)
    for number, part in enumerate(slices):
        _add_slice(seconds, part, is_first=number == 0)
        if any(isinstance(event, events.Paused) for event in part):
            seconds[_UNUSED] += part[0].at + getattr(part[0], "seconds", 0) - end_of(part)
    return seconds


def _add_slice(seconds: dict[str, float], part: Slice, is_first: bool) -> None:
    before, first_step = part[0].at, True
    for event in part[1:]:
        elapsed = event.at - before
        if isinstance(event, events.Step):
            seconds["steps"] += event.seconds
            wait = "checkpoint opened, first row" if first_step else "between steps"
            seconds[wait] += elapsed - event.seconds
            first_step = False
        elif isinstance(event, events.Evaluated):
            seconds["evaluations"] += elapsed
        elif isinstance(event, events.Started | events.Preparing | events.Notice):
            seconds[_FIRST_LOAD if is_first else _WARM_LOAD] += elapsed
        elif isinstance(
            event,
            events.Checkpointed | events.CheckpointSelected | events.Paused | events.Finished,
        ):
            seconds["saves"] += elapsed
        if isinstance(event, events.Paused | events.Finished):
            break
        before = event.at


if __name__ == "__main__":
    main()
