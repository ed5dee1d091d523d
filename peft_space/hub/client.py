"""A client of the Hub for a token, and the one translation of the Hub's errors into sentences."""

import contextlib
from collections.abc import Iterator, Mapping

import httpx2
from huggingface_hub import HfApi, errors
from huggingface_hub.utils import validate_repo_id

from peft_space import settings
from peft_space.errors import UserError, as_user_error
from peft_space.redaction import has_secret

_NONE: Mapping[int, str] = {}


def open_client(repo: str, token: str | None) -> HfApi:
    """A client of the Hub for `token`, or on one's own machine for the token it is signed in with. Raises UserError for a wrong name or token."""
    if not _is_repository_name(repo):
        raise UserError(
            "todo",
            f"{repo!r} is no repository name. Write it as OWNER/NAME, for example maria/my-adapter.",
        )
    check_token(token)
    return HfApi(token=token or None)


def check_token(token: str | None) -> None:
    """Raise UserError where it can be seen that the Hub will not take a visitor's token."""
    if settings.on_space() and not token:  # the Space's own token is not a visitor's
        raise UserError(
            "todo",
            "There is no Hub token. Sign in at the top of the page, or paste one with write access.",
        )
    if token and not (token.isascii() and token.isprintable()):  # such as the dots of a hidden one
        raise UserError(
            "todo",
            "The token has characters that no Hub token has. Copy it whole from the Hub's settings page.",
        )


@contextlib.contextmanager
def translate_errors(
    repo: str, failed: str, kept: str, reasons: Mapping[int, str] = _NONE
) -> Iterator[None]:
    """Raise what the Hub or the network refuses as a UserError: what `failed`, why, and what is `kept`.

    Args:
        reasons: by HTTP status, where they are others than of a repository.
    """
    try:
        yield
    except errors.LocalTokenNotFoundError:
        raise UserError(
            "todo",
            "There is no Hub token. Paste one with write access, or sign in with `hf auth login`.",
        ) from None
    except errors.OfflineModeIsEnabled:
        raise UserError(
            "todo",
            "The Hub cannot be reached because HF_HUB_OFFLINE is set. Unset it and try again.",
        ) from None
    except (httpx2.HTTPError, OSError, RuntimeError) as error:
        raise (
            as_user_error(error) or UserError("todo", _why(repo, error, failed, kept, reasons))
        ) from None


def _is_repository_name(repo: str) -> bool:
    try:
        validate_repo_id(repo)
    except errors.HFValidationError:
        return False
    return "/" in repo and not has_secret(repo)


def _why(repo: str, error: Exception, failed: str, kept: str, others: Mapping[int, str]) -> str:
    while not isinstance(error, errors.HfHubHTTPError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # what befalls a large file, or a download, comes wrapped
    if not isinstance(error, errors.HfHubHTTPError):
        return f"The Hub cannot be reached ({type(error).__name__}). Check the network and try again. {kept}".strip()
    status = error.response.status_code
    reasons = {
        401: "the Hub does not accept the token. Make a new one with write access on the Hub's settings page and try again",
        402: f"the Hub asks for payment ({error.server_message or 'it does not say for what'}). See the Hub's settings for billing",
        403: f"the token may not write to {repo!r}. Use a token with write access to that owner, or another owner",
        404: f"the Hub does not find {repo!r}, or the token may not see it. Check the name and the token",
        429: "the Hub asks to slow down. Wait a few minutes and try again",
        **others,
    }
    if status >= 500:
        reason = f"the Hub answered with an error of its own ({status}). Try again in a few minutes"
    else:
        reason = reasons.get(
            status,
            f"the Hub refuses it ({status}: {error.server_message or 'it does not say why'})",
        )
    return f"{failed}: {reason}. {kept}".strip()
