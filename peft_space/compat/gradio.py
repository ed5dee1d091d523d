"""Gradio's session state, without the copy of every component's settings that the app never uses.

For each new session, Gradio writes out the settings of all components of the page, for deep links.
This page does not offer those. The copy took 30 ms per session, during which the server answered
nobody else, and nearly 1 MB, which slowed Python's garbage collector. Settings of components that
a handler changes are still kept: Gradio adds them when they are missing.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

#: Sessions that Gradio remembers, the most recently active ones. An open page calls every few
#: seconds, so it stays among them.
MAX_SESSIONS = 1000


class _WithoutSettings:
    """The page as a new session sees it: Gradio copies the settings of `blocks`, which is empty."""

    blocks = ()

    def __init__(self, page: Any):
        self._page = page

    def __getattr__(self, name: str) -> Any:
        return getattr(self._page, name)


@asynccontextmanager
async def lean_sessions(app: Any) -> AsyncIterator[None]:
    """Lifespan of the app: from the start of the server, sessions do not copy the settings."""
    app.state_holder.blocks = _WithoutSettings(app.state_holder.blocks)
    yield
