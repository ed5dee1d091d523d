"""Pushes an adapter to the Hugging Face Hub: private unless asked otherwise, never over somebody's files. Tokens are used and forgotten."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, errors

from peft_space.export.export import copy_adapter
from peft_space.export.model_card import put_card
from peft_space.hub.client import open_client, translate_errors
from peft_space.runs.events import OnProgress, no_progress
from peft_space.runs.run import Run

_KEPT = "The adapter is kept in the run."


def push(
    run: Run,
    repo: str,
    token: str | None,
    public: bool = False,
    on_progress: OnProgress = no_progress,
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
    api = open_client(repo, token)
    _ = run.adapter  # where there is none, that is told before the Hub is asked
    with tempfile.TemporaryDirectory() as scratch:
        folder, failed = Path(scratch, "files"), f"The {what} was not pushed"
        with translate_errors(repo, failed, _KEPT):
            on_progress(0.0, "Asking the Hub whose token this is")
            api.whoami()  # a wrong token is told before anything is made
        write(run, folder)
        if card:
            put_card(folder, card)
        with translate_errors(repo, failed, _KEPT):
            return _upload(api, repo, folder, public, what, on_progress)


def _upload(
    api: HfApi, repo: str, folder: Path, public: bool, what: str, on_progress: OnProgress
) -> str:
    try:
        url = str(api.create_repo(repo, private=not public, repo_type="model"))
        existed = False
    except errors.HfHubHTTPError as error:
        if error.response.status_code != 409:
            raise
        existed, url = True, f"{api.endpoint}/{repo}"
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    on_progress(
        0.9, f"Uploading {sum(path.stat().st_size for path in files) / 1e6:.1f} MB to {repo}"
    )
    # not upload_folder: with Xet it opens a draft before it commits, and leaves it empty where that fails
    added = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
    commit = api.create_commit(repo, added, commit_message=f"Add the {what}", create_pr=existed)
    return commit.pr_url or url
