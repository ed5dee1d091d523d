"""Explains the Hub's errors, and uses the private parts of its client that the app needs."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import httpx2
from huggingface_hub import constants, errors, get_session
from huggingface_hub._jobs_api import TERMINAL_JOB_STAGES, JobHardwareInfo

__all__ = [
    "TERMINAL_JOB_STAGES",
    "FailureCode",
    "HubFailure",
    "JobHardwareInfo",
    "explain_hub_error",
    "ignore_hub_if_unreachable",
    "unreachable",
]

FailureCode = Literal[
    "hub.no_token",
    "hub.offline",
    "hub.gated",
    "hub.no_revision",
    "hub.not_found",
    "hub.unauthorized",
    "hub.payment_required",
    "hub.forbidden",
    "hub.rate_limited",
    "hub.server_error",
    "hub.refused",
    "hub.unreachable",
]
_BY_STATUS: dict[int, FailureCode] = {
    401: "hub.unauthorized",
    402: "hub.payment_required",
    403: "hub.forbidden",
    404: "hub.not_found",
    429: "hub.rate_limited",
}
_NO_REASONS: Mapping[FailureCode, str] = {}


class HubFailure(NamedTuple):
    """The reason why a request to the Hub failed."""

    code: FailureCode
    reason: str
    """Completes the sentence "X failed: …"; it gives the fix and has no period at its end."""


def explain_hub_error(
    error: BaseException,
    repo: str,
    repo_type: Literal["model", "dataset"] = "model",
    revision: str | None = None,
    reasons: Mapping[FailureCode, str] = _NO_REASONS,
) -> HubFailure | None:
    """Return the meaning of an exception of the Hub's client.

    Args:
        error: the exception, or one that was raised from it.
        repo: the repository that was asked for.
        revision: the branch, tag or commit that was asked for.
        reasons: replace the reasons of these failures.

    Returns:
        None if the exception has nothing to do with the Hub or the network.
    """
    causes = _causes(error)
    code, response = _classify(causes)
    if code is None:
        return None
    status = response.response.status_code if response else None
    message = response.server_message if response else None
    all_reasons: dict[FailureCode, str] = {
        "hub.no_token": "there is no Hub token. Paste one with write access, or sign in with "
        "`hf auth login`",
        "hub.offline": "HF_HUB_OFFLINE is set, and the file is not in the cache. Unset it and "
        "try again",
        "hub.gated": f"its authors require an agreement first. Accept it on the {repo_type}'s page "
        "on the Hub and sign in, then try again",
        "hub.no_revision": f"it has no revision {revision!r}. Check the branch, tag or commit",
        "hub.not_found": f"the Hub has no {repo_type} {repo!r}, or the token has no access to it. "
        "Check the name and the token, or sign in",
        "hub.unauthorized": "the Hub does not accept the token. Create one with write access "
        "on the Hub's settings page and try again",
        "hub.payment_required": f"the Hub requires a payment ({message or 'it gives no reason'}). "
        "Check the billing page of the Hub's settings",
        "hub.forbidden": f"the token has no write access to {repo!r}. Use a token with write "
        "access to that owner, or choose another owner",
        "hub.rate_limited": "the Hub received too many requests. Wait a few minutes and try again",
        "hub.server_error": f"the Hub reported an internal error ({status}). Try again in a few "
        "minutes",
        "hub.refused": f"the Hub rejected the request "
        f"({status}: {message or 'it gives no reason'})",
        "hub.unreachable": unreachable(causes[-1]).reason,
    }
    return HubFailure(code, (all_reasons | dict(reasons))[code])


def unreachable(error: BaseException) -> HubFailure:
    """The failure of a request that the Hub never answered."""
    reason = f"the Hub cannot be reached ({type(error).__name__}). Check the network and try again"
    return HubFailure("hub.unreachable", reason)


_CONNECT_SECONDS = 5.0
_OFFLINE = constants.HF_HUB_OFFLINE


def ignore_hub_if_unreachable() -> HubFailure | None:
    """Let the client read only its cache while the Hub cannot be reached.

    Otherwise it tries to connect six times for every file, which takes half a minute each. Sets
    `constants.HF_HUB_OFFLINE`, which the client reads at every request.

    Returns:
        The failure if the Hub cannot be reached. None if it can, or if the user set HF_HUB_OFFLINE.
    """
    constants.HF_HUB_OFFLINE = _OFFLINE
    if _OFFLINE:
        return None
    try:
        get_session().head(constants.ENDPOINT, timeout=_CONNECT_SECONDS)
    except httpx2.HTTPError as error:
        constants.HF_HUB_OFFLINE = True
        return unreachable(_causes(error)[-1])
    return None


def _causes(error: BaseException) -> list[BaseException]:
    """The exception, and everything that it was raised from."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    return causes


def _classify(
    causes: list[BaseException],
) -> tuple[FailureCode | None, errors.HfHubHTTPError | None]:
    """The code of the failure, and the answer of the Hub if there was one."""
    by_class: tuple[tuple[type[BaseException], FailureCode], ...] = (
        (errors.LocalTokenNotFoundError, "hub.no_token"),
        (errors.OfflineModeIsEnabled, "hub.offline"),
        (errors.GatedRepoError, "hub.gated"),
        (errors.RevisionNotFoundError, "hub.no_revision"),
    )
    for cls, code in by_class:
        if any(isinstance(cause, cls) for cause in causes):
            return code, None
    response = next((cause for cause in causes if isinstance(cause, errors.HfHubHTTPError)), None)
    if isinstance(response, errors.RepositoryNotFoundError):
        return "hub.not_found", response  # also with status 401: the Hub hides private repositories
    if response is not None:
        status = response.response.status_code
        return _BY_STATUS.get(
            status, "hub.server_error" if status >= 500 else "hub.refused"
        ), response
    if any(
        isinstance(cause, errors.LocalEntryNotFoundError | httpx2.HTTPError | ConnectionError)
        for cause in causes
    ):
        return "hub.unreachable", None
    return None, None
