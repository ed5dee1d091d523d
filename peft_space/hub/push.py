"""Pushes an adapter to the Hub: private by default, and never over somebody's files."""

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

_UNCHANGED = "The adapter is still in the run."


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
    """Push a run's adapter, or an export of it, to the Hub.

    A new repository is created for it. For an existing one a pull request is opened, so nothing
    in it is overwritten.

    Args:
        run: it has an adapter.
        repo: OWNER/NAME.
        token: a Hub token with write access; None uses the one this machine is signed in with.
        public: create a public repository.
        on_progress: called with the completed share and the current work.
        card: replaces the README that is generated from the run.
        what: the name of what is pushed, for messages.
        write: writes it into a folder that does not exist yet.

    Returns:
        The URL of the repository or the pull request.

    Raises:
        UserError: the name or the token is invalid, or the Hub rejects the request.
    """
    api = open_client(repo, token)
    _ = run.adapter  # raises before the Hub is asked
    with tempfile.TemporaryDirectory() as scratch:
        folder, failed = Path(scratch, "files"), f"The {what} was not pushed"
        with translate_errors(repo, failed, _UNCHANGED):
            on_progress(0.0, "Checking the token")
            api.whoami()  # before the export, which may take long
        write(run, folder)
        if card:
            put_card(folder, card)
        with translate_errors(repo, failed, _UNCHANGED):
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
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    on_progress(0.9, f"Uploading {megabytes:.1f} MB to {repo}")
    # not upload_folder: with Xet it opens a draft pull request before it commits, and leaves the
    # draft empty if the commit fails
    added = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
    commit = api.create_commit(repo, added, commit_message=f"Add the {what}", create_pr=existed)
    return commit.pr_url or url
