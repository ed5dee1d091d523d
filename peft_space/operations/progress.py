"""What goes into a verb and comes out of it, and how it tells what it is doing."""

import time
from collections.abc import Callable
from typing import Any

from peft_space.runs.events import OnProgress

Json = dict[str, Any]
Report = Callable[[Json], None]
"""Called with what there is to tell while a verb is working."""
_SECONDS_BETWEEN = 0.5
"""Until the same is told again."""


def progress(report: Report | None) -> OnProgress:
    """What those who do the work call with a share and a word; it is told as `share` and `what`."""

    last, at = None, 0.0

    def on_progress(share: float, what: str) -> None:
        nonlocal last, at
        told = {"share": share, "what": what}
        if report and (told != last or time.monotonic() > at + _SECONDS_BETWEEN):
            last, at = told, time.monotonic()
            report(told)

    return on_progress
