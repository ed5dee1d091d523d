"""Whose a program's Hub token is. The Hub is asked, and its answer holds for some minutes; of the token only a digest is kept."""

import hashlib
import threading
import time

from huggingface_hub import HfApi

from peft_space.errors import UserError
from peft_space.hub.client import check_token, translate_errors

SECONDS = 600.0
"""For which an answer holds: a token that is taken back opens nothing after it."""
_MOST = 1_000
_REASONS = dict.fromkeys(
    (401, 403), "the Hub does not accept the `oauth_token`. Bring another, or none"
)

_known: dict[str, tuple[str, float]] = {}
_lock = threading.Lock()


def account_of(token: str) -> str:
    """The id of the user whose token this is, as signing in tells it. Raises UserError where the Hub does not accept it, or cannot be asked."""
    digest = hashlib.sha256(token.encode()).hexdigest()
    with _lock:
        account, until = _known.get(digest, ("", 0.0))
    if time.monotonic() < until:
        return account
    check_token(token)
    with translate_errors("", "The runs of your account were not looked up", "", _REASONS):
        who = HfApi(token=token).whoami()
    if who.get("type") != "user":
        raise UserError(
            "todo",
            "The token belongs to no user, so there are no runs of an account. Bring a user's token, or the `owner` that /train returned.",
        )
    with _lock:
        if len(_known) >= _MOST:
            _known.clear()
        _known[digest] = (who["id"], time.monotonic() + SECONDS)
    return who["id"]
