"""Blocks routes of Gradio that the page does not need, and cookies on requests from other sites.

Gradio fetches addresses that a visitor names (`file=http…`, `proxy=`) and stores page states on
disk (`deep_link`). Outside localhost it also lets pages of any site read answers with the
visitor's cookies, so another site could do everything that a signed-in visitor can.
"""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from peft_space.compat.gradio import CLOSED_ROUTES


class SecurityMiddleware:
    """ASGI middleware in front of Gradio."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if CLOSED_ROUTES.search(scope["path"]):
                denied = PlainTextResponse("This page does not serve that.", status_code=403)
                await denied(scope, receive, send)
                return
            if _is_cross_site(Headers(scope=scope)):
                headers = [header for header in scope["headers"] if header[0].lower() != b"cookie"]
                scope = {**scope, "headers": headers}
        await self.app(scope, receive, send)


def _is_cross_site(headers: Headers) -> bool:
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
