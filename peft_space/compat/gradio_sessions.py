"""What Gradio keeps of a session, without what it never asks for here.

For each new session, which every call that comes without gradio_client is, it writes out the settings of all components of the page: for deep links,
which this page does not offer. That was 30 ms in which nobody else was served, and nearly a megabyte, through which Python's collector of garbage went
for a second at a time. The settings of a component that a handler changes are still kept: Gradio adds them where they are missing.
"""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

MOST = 1000
"""Sessions that are remembered: those that asked last. An open page asks every few seconds."""


class _WithoutSettings:
    """The page as a new session sees it: of the components listed here it writes out the settings, so none is."""

    blocks = ()

    def __init__(self, page: Any):
        self._page = page

    def __getattr__(self, name: str) -> Any:
        return getattr(self._page, name)


@asynccontextmanager
async def lean(app: Any) -> AsyncIterator[None]:
    """From when Gradio's app starts to its end."""
    app.state_holder.blocks = _WithoutSettings(app.state_holder.blocks)
    gc.collect()
    gc.freeze()  # the page and the libraries stay: no need to look through them again
    yield
