"""Makes a Hugging Face Space of this clone, or brings one up to date: what git tracks and the app needs, and nothing that looks like a secret."""

import re
import subprocess
from pathlib import Path, PurePosixPath

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, errors

from peft_space.data.quality import holds_secret
from peft_space.errors import UserError
from peft_space.hub.client import open_client, translate_errors
from peft_space.runs.events import OnProgress, no_progress

ROOT = Path(__file__).parents[2]
_NOT_RUN = {
    "tests",
    "benchmarks",
    "tools",
    ".ci",
    ".gitignore",
    "Makefile",
    "constraints.txt",
    "requirements-dev.txt",
    "pyproject.toml",
}
"""Tracked, and needed only to develop."""
_KEYS = re.compile(
    r"\.env(\..+)?|.*\.(pem|key|p12|pfx)|id_(rsa|dsa|ecdsa|ed25519)|\.netrc|\.pypirc|credentials|token"
)
"""Names of files that hold secrets, whatever is in them."""
_MADE_BY_THE_HUB = {".gitattributes", "README.md"}


def deploy_space(
    space: str,
    token: str | None = None,
    hardware: str | None = None,
    public: bool = False,
    on_progress: OnProgress = no_progress,
) -> str:
    """Make or update the Space `space` from this clone, in one commit, and return its address. A new one is private unless `public`.

    Args:
        hardware: the Hub's name of what it is to run on; without it a new Space gets what the Hub gives, and another keeps what it has.

    Raises UserError where something does not belong, or the Hub refuses.
    """
    api = open_client(space, token)
    files = files_to_upload(ROOT)
    with translate_errors(space, "The Space was not deployed", ""):
        on_progress(0.0, "Asking the Hub whose token this is")
        api.whoami()
        there = _files_there(api, space)
        if there is None:
            wanted = {"space_hardware": hardware} if hardware else {}
            api.create_repo(
                space, repo_type="space", space_sdk="gradio", private=not public, **wanted
            )
        on_progress(0.1, f"Uploading {len(files)} files to {space}")
        gone = sorted(there - set(files) - {".gitattributes"}) if there else []
        changes = [
            *(CommitOperationAdd(name, ROOT / name) for name in files),
            *(CommitOperationDelete(name) for name in gone),
        ]
        api.create_commit(space, changes, commit_message="Deploy", repo_type="space")
        if hardware and there is not None:
            api.request_space_hardware(space, hardware)  # type: ignore[arg-type] - the Hub may know more than this client
    return f"{api.endpoint}/spaces/{space}"


def files_to_upload(root: Path) -> list[str]:
    """What of the clone `root` a Space needs. Raises UserError where that is no clone, or where a file must not be uploaded."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        raise UserError(
            "todo",
            f"{root} is not a git clone, so it is not known which files belong to it. Clone the repository and deploy from there.",
        ) from None
    files = [
        name for name in listed.split("\0") if name and PurePosixPath(name).parts[0] not in _NOT_RUN
    ]
    for name in files:
        path = root / name
        if path.is_symlink() or not path.is_file():
            raise UserError(
                "todo",
                f"git tracks {name}, but it is no file here. Commit what is there, and deploy again.",
            )
        if _KEYS.fullmatch(path.name) or holds_secret(
            path.read_bytes().decode("utf-8", errors="ignore")
        ):
            raise UserError(
                "todo",
                f"{name} looks as if it held a key or a token, so nothing was uploaded. Take it out of the repository.",
            )
    return files


def _files_there(api: HfApi, space: str) -> set[str] | None:
    """The files of the Space; None where there is none yet. Raises UserError where it is another app."""
    try:
        there = set(api.list_repo_files(space, repo_type="space"))
    except errors.RepositoryNotFoundError:
        return None
    if "peft_space/__init__.py" not in there and not there <= _MADE_BY_THE_HUB:
        raise UserError(
            "todo",
            f"The Space {space!r} is another app. Nothing of it was changed: choose another name.",
        )
    return there
