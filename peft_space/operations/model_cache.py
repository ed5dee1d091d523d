"""The model that a worker keeps between verbs."""

from typing import Any

from peft_space.runs.run import Run

_kept: dict[tuple[str, float], Any] = {}
"""The model of the last run that was asked for, by run and time of its adapter."""


def load_cached(run: str) -> Any:
    """The base and adapter of a run; kept in memory until another run, or a newer adapter of this one, is asked for."""
    from peft_space.models.loading import load_adapted

    opened = Run(run)
    key = (run, (opened.adapter / "adapter_config.json").stat().st_mtime)
    if key not in _kept:
        _kept.clear()  # before the next is loaded, so that there are never two
        _kept[key] = load_adapted(opened)
    return _kept[key]


def forget() -> None:
    """Give the memory back, for work that loads models of its own."""
    _kept.clear()
