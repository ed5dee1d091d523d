"""What a run would take on each kind of hardware that jobs can have now: whether it fits, how long, what it costs, and a timeout with margin."""

from collections.abc import Sequence
from dataclasses import dataclass

from peft_space.data.dataset import load_run_data
from peft_space.data.tokenization.tokenize import tokenize
from peft_space.estimation.hub_hardware import HardwareOffer
from peft_space.formatting import duration, gigabytes
from peft_space.models.loading import task_spec_for
from peft_space.models.resolve import find_base, load_tokenizer
from peft_space.planning.time import REACHED, estimates_of
from peft_space.runs.plan import processes_for
from peft_space.runs.run import Run
from peft_space.training.prepare import Prepared

_TO_MAKE_READY = 1_200.0
"""Seconds for the machine, the libraries and the base's weights, generously."""
_WHERE_NOTHING_IS_KNOWN = 6 * 3_600.0


@dataclass(frozen=True)
class JobOption:
    """One kind. `seconds` and `dollars` are None where its speed is not known; `fits` is None for a base that comes quantized."""

    name: str
    title: str
    dollars_an_hour: float
    fits: bool | None
    seconds: float | None
    dollars: float | None
    timeout: int
    """Seconds: twice the estimate, and what making ready takes."""
    words: str


def job_options(run: Run, offers: Sequence[HardwareOffer]) -> list[JobOption]:
    """What the run costs on each of `offers`: first those that it fits on, the cheapest first."""
    recipe, data, goal = run.recipe, load_run_data(run), task_spec_for(run)
    base = find_base(recipe.base_model, recipe.revision)
    tokenizer = load_tokenizer(base, recipe.chat_template, goal.task)
    parts = [
        tokenize(tokenizer, part, recipe.max_length, recipe.train_on, task=goal.task)
        for part in (data.train, data.held_out)
    ]
    found = estimates_of(
        Prepared(goal, data, *parts), recipe, [offer.kind for offer in offers]
    ).spaces
    on = {one.name: one for one in found}
    made = []
    for offer in offers:
        one = on.get(offer.kind.name)
        processes = processes_for(recipe, offer.num_gpus)
        seconds = one.least_seconds / REACHED / processes if one and one.least_seconds else None
        dollars = (seconds + _TO_MAKE_READY) / 3_600 * offer.dollars_an_hour if seconds else None
        timeout = round(2 * seconds + _TO_MAKE_READY if seconds else _WHERE_NOTHING_IS_KNOWN)
        fits = one.fits if one else None
        words = f"{offer.kind.name:16} {_memory_words(one.need if one else None, offer.kind.usable, fits):42} ${offer.dollars_an_hour:.2f} an hour; "
        words += (
            f"{'under a minute' if seconds < 60 else 'about ' + duration(seconds)}, ${dollars:.2f} with {duration(_TO_MAKE_READY)} to make ready"
            if seconds
            else "time not known"
        )
        made.append(
            JobOption(
                offer.kind.name,
                offer.kind.title,
                offer.dollars_an_hour,
                fits,
                seconds,
                dollars,
                timeout,
                words,
            )
        )
    return sorted(
        made,
        key=lambda one: (
            one.fits is False,
            one.dollars is None,
            one.dollars or one.dollars_an_hour,
        ),
    )


def _memory_words(need: int | None, usable: int, fits: bool | None) -> str:
    if need is None:
        return f"memory not estimated, {gigabytes(usable)}"
    return f"{'fits' if fits else 'does not fit'}: {gigabytes(need)} of {gigabytes(usable)}"
