"""Pushes an adapter to the Hugging Face Hub: private unless asked otherwise, never over somebody's files. Tokens are used and forgotten."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi, errors
from huggingface_hub.utils import validate_repo_id

from peft_space import settings
from peft_space.errors import UserError, mendable
from peft_space.events import OnProgress, quietly
from peft_space.export.adapter import copy_adapter
from peft_space.export.card import put_card
from peft_space.masking import has_secret
from peft_space.run import Run

_NONE: Mapping[int, str] = {}
_KEPT = "The adapter is kept in the run."


def push(
    run: Run,
    repo: str,
    token: str | None,
    public: bool = False,
    on_progress: OnProgress = quietly,
    card: str | None = None,
    what: str = "adapter",
    write: Callable[[Run, Path], Any] = copy_adapter,
) -> str:
    """Push the run's adapter, or what else is made of it, to `repo` and return the address of what was made.

    A new repository is made, private unless `public`; to one that exists a pull request is opened, so nothing in it is overwritten.

    Args:
        token: a Hub token with write access; None takes the one this machine is signed in with.
        card: the README in place of the one that is written from the run.
        what: is pushed, in words.
        write: writes it into a folder that is not there yet, once the Hub knows the token.

    Raises UserError where the name, the token or the Hub refuses.
    """
    api = client(repo, token)
    _ = run.adapter  # where there is none, that is told before the Hub is asked
    with tempfile.TemporaryDirectory() as scratch:
        folder, failed = Path(scratch, "files"), f"The {what} was not pushed"
        with in_words(repo, failed, _KEPT):
            on_progress(0.0, "Asking the Hub whose token this is")
            api.whoami()  # a wrong token is told before anything is made
        write(run, folder)
        if card:
            put_card(folder, card)
        with in_words(repo, failed, _KEPT):
            return _upload(api, repo, folder, public, what, on_progress)


def client(repo: str, token: str | None) -> HfApi:
    """A client of the Hub for `token`, or on one's own machine for the token it is signed in with. Raises UserError for a wrong name or token."""
    if not _is_repository_name(repo):
        raise UserError(f"{repo!r} is no repository name. Write it as OWNER/NAME, for example maria/my-adapter.")
    refuse_token(token)
    return HfApi(token=token or None)


def refuse_token(token: str | None) -> None:
    """Raise UserError where it can be seen that the Hub will not take a visitor's token."""
    if settings.on_space() and not token:  # the Space's own token is not a visitor's
        raise UserError("There is no Hub token. Sign in at the top of the page, or paste one with write access.")
    if token and not (token.isascii() and token.isprintable()):  # such as the dots of a hidden one
        raise UserError("The token has characters that no Hub token has. Copy it whole from the Hub's settings page.")


@contextlib.contextmanager
def in_words(repo: str, failed: str, kept: str, reasons: Mapping[int, str] = _NONE) -> Iterator[None]:
    """Raise what the Hub or the network refuses as a UserError: what `failed`, why, and what is `kept`.

    Args:
        reasons: by HTTP status, where they are others than of a repository.
    """
    try:
        yield
    except errors.LocalTokenNotFoundError:
        raise UserError("There is no Hub token. Paste one with write access, or sign in with `hf auth login`.") from None
    except errors.OfflineModeIsEnabled:
        raise UserError("The Hub cannot be reached because HF_HUB_OFFLINE is set. Unset it and try again.") from None
    except (httpx2.HTTPError, OSError, RuntimeError) as error:
        raise (mendable(error) or UserError(_why(repo, error, failed, kept, reasons))) from None


def _is_repository_name(repo: str) -> bool:
    try:
        validate_repo_id(repo)
    except errors.HFValidationError:
        return False
    return "/" in repo and not has_secret(repo)


def _upload(api: HfApi, repo: str, folder: Path, public: bool, what: str, on_progress: OnProgress) -> str:
    try:
        url = str(api.create_repo(repo, private=not public, repo_type="model"))
        existed = False
    except errors.HfHubHTTPError as error:
        if error.response.status_code != 409:
            raise
        existed, url = True, f"{api.endpoint}/{repo}"
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    on_progress(0.9, f"Uploading {sum(path.stat().st_size for path in files) / 1e6:.1f} MB to {repo}")
    # not upload_folder: with Xet it opens a draft before it commits, and leaves it empty where that fails
    added = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
    commit = api.create_commit(repo, added, commit_message=f"Add the {what}", create_pr=existed)
    return commit.pr_url or url


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
        reason = reasons.get(status, f"the Hub refuses it ({status}: {error.server_message or 'it does not say why'})")
    return f"{failed}: {reason}. {kept}".strip()
