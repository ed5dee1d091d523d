"""What goes into a verb and comes out of it, and how it tells what it is doing."""

from collections.abc import Callable
from typing import Any

from peft_space.events import OnProgress

Json = dict[str, Any]
Report = Callable[[Json], None]
"""Called with what there is to tell while a verb is working."""


def progress(report: Report | None) -> OnProgress:
    """What those who do the work call with a share and a word; it is told as `share` and `what`."""

    def on_progress(share: float, what: str) -> None:
        if report:
            report({"share": share, "what": what})

    return on_progress
