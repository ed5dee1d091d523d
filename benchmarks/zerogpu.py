"""How much of the time of 60 s slices goes into steps that are in the final adapter, with the real `spaces` package and the built-in model.

The CPU stands in for the GPU, and the service that lends it is a stand-in: `tests/fixtures/fake_zerogpu.py`.
"""

import os
import tempfile
from itertools import pairwise
from pathlib import Path

from peft_space import settings
from peft_space.runs import events

SECONDS = int(os.environ.get("SLICE_SECONDS", "60"))
STEPS = int(os.environ.get("STEPS", "1250"))
BAR = 0.85


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    settings.prepare_libraries()
    from peft_space.recipe import Recipe
    from peft_space.runs.status import steps_of
    from peft_space.training.prepare import make_run
    from tests.fixtures.fake_zerogpu import Lender

    with tempfile.TemporaryDirectory() as home:
        os.environ["PEFT_SPACE_HOME"] = home
        run = make_run(Path(home, "run"), "demo", Recipe(max_steps=STEPS, num_epochs=20))
        with Lender() as lender, lender.trainer() as trainer:
            trainer.train(run.directory, SECONDS)
        happened, status = run.history(), run.status()
    starts = [
        place for place, event in enumerate(happened) if isinstance(event, events.SliceStarted)
    ]
    slices = [happened[start:end] for start, end in pairwise([*starts, len(happened)])]
    spent = spent_on(slices)
    used = sum(ended(one) - one[0].at for one in slices)
    useful = sum(step.seconds for step in steps_of(happened))
    print(f"{len(slices)} slices of at most {SECONDS} s, {STEPS} steps, run {status}")
    print(
        f"used {used:.1f} s, of which steps that are in the adapter {useful:.1f} s: {useful / used:.1%} (bar: {BAR:.0%})"
    )
    full = slices[:-1]
    asked = sum(one[0].seconds for one in full)
    in_full = sum(event.seconds for one in full for event in one if isinstance(event, events.Step))
    if full:
        print(
            f"of the {asked} s of all slices but the last one, unused ends included: {in_full / asked:.1%}"
        )
    for what, seconds in spent.items():
        print(f"  {what:<34} {seconds:6.1f} s  {seconds / used:6.1%}")


def ended(one: list[events.Event]) -> float:
    """When a slice was over."""
    return next(
        (event.at for event in one if isinstance(event, events.Paused | events.Finished)),
        one[-1].at,
    )


def spent_on(slices: list[list[events.Event]]) -> dict[str, float]:
    """Seconds by what they went into, over all slices."""
    spent = dict.fromkeys(
        ("steps", "fork, rows and base, first slice", "the same in warm slices", "checkpoint opened, first row", "between steps",
         "evaluations", "saves", "unused before the end"), 0.0,
    )  # fmt: skip
    for number, one in enumerate(slices):
        before = one[0].at
        for event in one[1:]:
            taken = event.at - before
            if isinstance(event, events.Step):
                spent["steps"] += event.seconds
                first = not any(
                    isinstance(other, events.Step) and other.step < event.step for other in one
                )
                spent["checkpoint opened, first row" if first else "between steps"] += (
                    taken - event.seconds
                )
            elif isinstance(event, events.Evaluated):
                spent["evaluations"] += taken
            elif isinstance(
                event,
                events.Checkpointed | events.CheckpointSelected | events.Paused | events.Finished,
            ):
                spent["saves"] += taken
            elif isinstance(event, events.Started | events.Preparing | events.Notice):
                spent[
                    "the same in warm slices" if number else "fork, rows and base, first slice"
                ] += taken
            if isinstance(event, events.Paused | events.Finished):
                break
            before = event.at
    first = [one for one in slices if any(isinstance(event, events.Paused) for event in one)]
    spent["unused before the end"] = sum(one[0].at + one[0].seconds - ended(one) for one in first)  # type: ignore[attr-defined]
    return spent


if __name__ == "__main__":
    main()
