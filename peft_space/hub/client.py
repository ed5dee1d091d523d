"""Clients for a token, and the translation of the Hub's errors into UserErrors."""

import contextlib
from collections.abc import Iterator, Mapping

import httpx2
from huggingface_hub import HfApi, errors
from huggingface_hub.utils import validate_repo_id

from peft_space import settings
from peft_space.compat.huggingface_hub import FailureCode, explain_hub_error, unreachable
from peft_space.errors import UserError, as_user_error
from peft_space.redaction import has_secret

_NO_REASONS: Mapping[FailureCode, str] = {}


def open_client(repo: str, token: str | None) -> HfApi:
    """Return a client for `repo`.

    Args:
        repo: OWNER/NAME.
        token: None uses the token that this machine is signed in with, except on a Space.

    Raises:
        UserError: the name or the token is malformed, or there is no token.
    """
    if not _is_repository_name(repo):
        raise UserError(
            "hub.invalid_name",
            f"Invalid repository name {repo!r}. Write it as OWNER/NAME, for example "
            "maria/my-adapter.",
        )
    check_token(token)
    return HfApi(token=token or None)


def check_token(token: str | None) -> None:
    """Raise UserError if a token is missing on a Space, or cannot be one."""
    if settings.on_space() and not token:  # the Space's own token is not the visitor's
        raise UserError(
            "hub.no_token",
            "There is no Hub token. Sign in at the top of the page, or paste a token with write "
            "access.",
        )
    if token and not (token.isascii() and token.isprintable()):  # such as the dots of a hidden one
        raise UserError(
            "hub.invalid_token",
            "The token contains characters that no Hub token has. Copy all of it from the Hub's "
            "settings page.",
        )


@contextlib.contextmanager
def translate_errors(
    repo: str, failed: str, unchanged: str = "", reasons: Mapping[FailureCode, str] = _NO_REASONS
) -> Iterator[None]:
    """Turn the errors of the Hub's client and of the network into a UserError.

    Args:
        repo: the repository, for the message.
        failed: what failed; the first clause of the message.
        unchanged: what is as it was before; the last sentence of the message.
        reasons: replace the reasons for these failures.
    """
    try:
        yield
    except (httpx2.HTTPError, OSError, RuntimeError) as error:
        if user_error := as_user_error(error):
            raise user_error from None
        failure = explain_hub_error(error, repo, reasons=reasons) or unreachable(error)
        message = f"{failed}: {failure.reason}. {unchanged}".strip()
        raise UserError(failure.code, message) from None


def _is_repository_name(repo: str) -> bool:
    try:
        validate_repo_id(repo)
    except errors.HFValidationError:
        return False
    return "/" in repo and not has_secret(repo)
