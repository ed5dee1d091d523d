"""Estimates the time, cost and time limit of a run on the hardware of Hugging Face Jobs."""

from collections.abc import Sequence
from dataclasses import dataclass

from peft_space.data.dataset import load_run_data
from peft_space.data.tokenization.tokenize import tokenize
from peft_space.estimation.hub_hardware import HardwareOffer
from peft_space.formatting import duration, gigabytes
from peft_space.models.loading import task_spec_for
from peft_space.models.resolve import find_base, load_tokenizer
from peft_space.planning.estimates import EFFICIENCY, OnSpace, estimate_prepared
from peft_space.recipe import Recipe
from peft_space.runs.plan import processes_for
from peft_space.runs.run import Run
from peft_space.training.prepare import Prepared

_SETUP_SECONDS = 1_200.0
"""A generous time for the machine to start, install the libraries and download the base model."""
_DEFAULT_TIMEOUT = 6 * 3_600.0
"""Seconds, if the speed of the hardware is unknown."""


@dataclass(frozen=True)
class JobOption:
    """One kind of hardware.

    `seconds` and `dollars` are None if its speed is unknown; `fits` is None if the base model comes
    quantized.
    """

    name: str
    title: str
    dollars_an_hour: float
    fits: bool | None
    seconds: float | None
    dollars: float | None
    timeout: int
    """Seconds: twice the estimate, plus setup."""
    words: str


def job_options(run: Run, offers: Sequence[HardwareOffer]) -> list[JobOption]:
    """Return what the run costs on each of `offers`: those that fit first, then by price."""
    recipe, data, task_spec = run.recipe, load_run_data(run), task_spec_for(run)
    base = find_base(recipe.base_model, recipe.revision)
    tokenizer = load_tokenizer(base, recipe.chat_template, task_spec.task)
    train, held_out = (
        tokenize(tokenizer, part, recipe.max_length, recipe.train_on, task=task_spec.task)
        for part in (data.train, data.held_out)
    )
    prepared = Prepared(task_spec, data, train, held_out)
    spaces = estimate_prepared(prepared, recipe, [offer.kind for offer in offers]).spaces
    by_name = {space.name: space for space in spaces}
    options = [_option(recipe, offer, by_name.get(offer.kind.name)) for offer in offers]
    return sorted(options, key=_rank)


def _rank(option: JobOption) -> tuple[bool, bool, float]:
    price = option.dollars or option.dollars_an_hour
    return option.fits is False, option.dollars is None, price


def _option(recipe: Recipe, offer: HardwareOffer, space: OnSpace | None) -> JobOption:
    kind, seconds, dollars, timeout = offer.kind, None, None, _DEFAULT_TIMEOUT
    time = "time unknown"
    if space and space.least_seconds:
        processes = processes_for(recipe, offer.num_gpus)
        seconds = space.least_seconds / EFFICIENCY / processes
        dollars = (seconds + _SETUP_SECONDS) / 3_600 * offer.dollars_an_hour
        timeout = 2 * seconds + _SETUP_SECONDS
        rounded = "under a minute" if seconds < 60 else f"about {duration(seconds)}"
        time = f"{rounded}, ${dollars:.2f} including {duration(_SETUP_SECONDS)} of setup"
    memory = _describe_memory(space, kind.usable)
    words = f"{kind.name:16} {memory:42} ${offer.dollars_an_hour:.2f} per hour; {time}"
    fits = space.fits if space else None
    return JobOption(
        kind.name, kind.title, offer.dollars_an_hour, fits, seconds, dollars, round(timeout), words
    )


def _describe_memory(space: OnSpace | None, usable: int) -> str:
    if space is None:
        return f"memory not estimated, {gigabytes(usable)}"
    fits = "fits" if space.fits else "does not fit"
    return f"{fits}: {gigabytes(space.need)} of {gigabytes(usable)}"
