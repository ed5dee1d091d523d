"""Every use of a part of Gradio that its documentation does not describe."""

import functools
import os
import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import Context, LocalContext
from gradio.exceptions import InvalidPathError
from gradio.utils import get_upload_folder

#: Sessions that Gradio remembers, the most recently active ones. An open page calls every few
#: seconds, so it stays among them.
MAX_SESSIONS = 1000


class _WithoutSettings:
    """The page as a new session sees it: Gradio copies the settings of `blocks`, which is empty.

    For each new session, Gradio copies the settings of all components of the page, for deep links,
    which this page does not offer. The copy took 30 ms per session, during which the server
    answered no other request. It also took nearly 1 MB, which slowed Python's garbage collector.
    Settings of components that a handler changes are still stored: Gradio adds missing ones.
    """

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


CLOSED_ROUTES = re.compile(
    r"/(file[=/]\s*[a-z][a-z0-9+.-]*:|proxy=|deep_link|custom_component/|stream/)", re.IGNORECASE
)
"""Paths that Gradio serves and the app never uses: proxies for other sites, and stored states."""


def current_blocks() -> gr.Blocks:
    """Return the outermost page under construction. Call it inside `with gr.Blocks()`."""
    blocks = Context.root_block
    assert blocks is not None, "call this inside gr.Blocks"
    return blocks


def uploaded_files(blocks: gr.Blocks) -> set[str]:
    """Return the paths of the files that Gradio received. The set is live: it grows."""
    return blocks.upload_file_set


def session_of_request() -> dict[str, Any]:
    """Return the signed cookie session of the event being handled, empty outside of one."""
    request = LocalContext.request.get(None)
    inner = request.request if isinstance(request, gr.Request) else None
    return inner.scope.get("session", {}) if inner else {}


def upload_folder() -> Path:
    """Return the folder from which Gradio serves files without copying them."""
    return Path(get_upload_folder())


def served_folder() -> str:
    """Create a folder with an unguessable name from which Gradio serves files in place."""
    os.makedirs(upload_folder(), exist_ok=True)
    return tempfile.mkdtemp(prefix="peft_space-", dir=upload_folder())


def explain_rejected_files(blocks: gr.Blocks, message: str) -> None:
    """Tell callers why Gradio rejected a file: it does so before any endpoint runs, silently.

    Args:
        blocks: the page. Its `preprocess_data` is replaced.
        message: the error that a caller gets for a path that was never uploaded.
    """
    preprocess = blocks.preprocess_data

    @functools.wraps(preprocess)
    async def preprocess_data(*args: Any, **named: Any) -> Any:
        try:
            return await preprocess(*args, **named)
        except InvalidPathError:
            raise gr.Error(message, print_exception=False) from None

    blocks.preprocess_data = preprocess_data  # type: ignore[method-assign]


def hide_login_endpoint(blocks: gr.Blocks) -> None:
    """Take the endpoint that Gradio's login button adds out of the public API."""
    for handler in blocks.fns.values():
        if handler.api_name == "_check_login_status":
            handler.api_visibility = "private"
