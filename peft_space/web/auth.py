"""Decides whose runs a request may open: by a browser's secret, by sign-in, or by a Hub token."""

import hashlib
import secrets
import threading
import time
from contextvars import ContextVar
from urllib.parse import urlsplit

import gradio as gr
from huggingface_hub import HfApi
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from peft_space import settings
from peft_space.compat.gradio import CLOSED_ROUTES, session_of_request
from peft_space.compat.huggingface_hub import FailureCode
from peft_space.errors import UserError
from peft_space.hub.client import check_token, translate_errors

TOKEN_SECONDS = 600.0
"""How long the Hub's answer about a token is cached: a revoked token opens nothing after that."""
MAX_CACHED_TOKENS = 1_000
MIN_SECRET_LENGTH = 16
"""Shorter secrets could be guessed, and the empty one would belong to everybody."""
_REASONS: dict[FailureCode, str] = dict.fromkeys(
    ("hub.unauthorized", "hub.forbidden"),
    "the Hub does not accept the `oauth_token`. Use another, or none",
)

request_token: ContextVar[str | None] = ContextVar("request_token", default=None)
"""The `oauth_token` of the program whose call is being handled."""

_accounts: dict[str, tuple[str, float]] = {}
"""Digest of a token -> (account id, valid until). The token itself is not stored."""
_lock = threading.Lock()


def owner_of(secret: str) -> str:
    """Return the owner whose runs a secret opens; on one's own machine it is always "local".

    Raises:
        UserError: on a Space, if the secret is missing or too short.
    """
    if not settings.on_space():
        return "local"
    if len(secret) < MIN_SECRET_LENGTH:
        raise UserError(
            "web.unknown_owner",
            "We couldn't tell whose runs these are. Reload the page; "
            "a program passes the `owner` that it got when it started the run.",
        )
    return _digest(secret)


def owners_of(secret: str) -> list[str]:
    """Return the owners whose runs a program sees. New runs belong to the first.

    Raises:
        UserError: the program has neither a secret nor a token of an account.
    """
    account = account_owner()
    if not secret and account:
        return [account]
    return [owner_of(secret), *([account] if account else [])]


def account_owner() -> str | None:
    """Return the owner of the runs of the Hub account behind this request, if there is one."""
    account = signed_in_account()
    return f"hub-{_digest(account)}" if account else None


def signed_in_account() -> str | None:
    """Return the id of the Hub account that is signed in, or whose token a program sent.

    The id stays the same when the account is renamed.
    """
    if not settings.signs_in():
        return None
    info = session_of_request().get("oauth_info") or {}
    if info.get("expires_at", 0) > time.time():
        return info["userinfo"]["sub"]
    token = request_token.get()
    return account_of(token) if token else None


def account_of(token: str) -> str:
    """Return the id of the Hub user that a token belongs to, as signing in reports it.

    Raises:
        UserError: the Hub rejects the token, cannot be reached, or the token is not a user's.
    """
    digest = hashlib.sha256(token.encode()).hexdigest()
    with _lock:
        account, until = _accounts.get(digest, ("", 0.0))
    if time.monotonic() < until:
        return account
    check_token(token)
    with translate_errors("", "The runs of your account were not looked up", "", _REASONS):
        identity = HfApi(token=token).whoami()
    if identity.get("type") != "user":
        raise UserError(
            "web.not_a_user_token",
            "This token does not belong to a user, so it has no runs. "
            "Use a user's token, or the `owner` that you got when you started the run.",
        )
    with _lock:
        if len(_accounts) >= MAX_CACHED_TOKENS:
            _accounts.clear()
        _accounts[digest] = (identity["id"], time.monotonic() + TOKEN_SECONDS)
    return identity["id"]


def token_of(typed: str | None, signed_in: gr.OAuthToken | None) -> str | None:
    """Return the Hub token to use: the one that was typed, or the one from signing in."""
    return (typed or "").strip() or (signed_in.token if signed_in else None)


def new_visitor(secret: str) -> str:
    """Return the visitor's secret; create one on the first visit."""
    return secret or secrets.token_hex(24)


def new_owner(secret: str) -> str:
    """Return the secret for a program's new run; on a Space without an account, create one."""
    return new_visitor(secret) if settings.on_space() and not signed_in_account() else secret


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()[:32]


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
