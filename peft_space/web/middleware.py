"""Stands before Gradio: refuses what it serves and this page does not need, and takes the cookies off what other sites' pages ask.

Gradio fetches addresses that a visitor names (`file=http…`, `proxy=`) and keeps states of a page on the disk (`deep_link`). Away from localhost it
lets every site's page read answers, with the visitor's cookies: a page elsewhere could do all that a signed-in visitor can.
"""

import re
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse

_CLOSED = re.compile(
    r"/(file[=/]\s*[a-z][a-z0-9+.-]*:|proxy=|deep_link|custom_component/|stream/)", re.IGNORECASE
)


class SecurityMiddleware:
    """ASGI middleware."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            if _CLOSED.search(scope["path"]):
                await PlainTextResponse("This page does not serve that.", status_code=403)(
                    scope, receive, send
                )
                return
            if _of_another_site(Headers(scope=scope)):
                scope = scope | {
                    "headers": [
                        (name, value)
                        for name, value in scope["headers"]
                        if name.lower() != b"cookie"
                    ]
                }
        await self.app(scope, receive, send)


def _of_another_site(headers: Headers) -> bool:
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
