"""Creates a Hugging Face Space from this clone, or updates one, with the files that git tracks."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import httpx
from gradio_client import Client
from gradio_client.exceptions import AppError
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, errors

from peft_space.errors import UserError
from peft_space.hub.client import open_client, translate_errors
from peft_space.redaction import has_secret, is_secret_file
from peft_space.runs.events import OnProgress, no_progress

ROOT = Path(__file__).parents[2]
#: Tracked files and folders that only development needs.
_FOR_DEVELOPMENT = {
    "tests",
    "benchmarks",
    "tools",
    ".ci",
    ".github",
    ".pre-commit-config.yaml",
    ".gitignore",
    "Makefile",
    "constraints.txt",
    "requirements-dev.txt",
    "pyproject.toml",
}
_CREATED_BY_THE_HUB = {".gitattributes", "README.md"}


def deploy_space(
    space: str,
    token: str | None = None,
    hardware: str | None = None,
    public: bool = False,
    on_progress: OnProgress = no_progress,
) -> str:
    """Create or update a Space from this clone, in one commit.

    Args:
        space: OWNER/NAME.
        token: with write access; None uses the one that this machine is signed in with.
        hardware: the Hub's name of the hardware. By default a new Space gets the Hub's default,
            and an existing one keeps its hardware.
        public: create a public Space.
        on_progress: called with the completed share and the current work.

    Returns:
        The URL of the Space.

    Raises:
        UserError: a file must not be uploaded, the Space is another app, or the Hub rejects the
            request.
    """
    api = open_client(space, token)
    files = files_to_upload(ROOT)
    with translate_errors(space, "The Space was not deployed"):
        on_progress(0.0, "Checking the token")
        api.whoami()
        existing = _existing_files(api, space)
        if existing is None:
            options: dict[str, Any] = {"space_hardware": hardware} if hardware else {}
            api.create_repo(
                space, repo_type="space", space_sdk="gradio", private=not public, **options
            )
        on_progress(0.1, f"Uploading {len(files)} files to {space}")
        removed = sorted((existing or set()) - set(files) - {".gitattributes"})
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(name, ROOT / name) for name in files),
            *(CommitOperationDelete(name) for name in removed),
        ]
        api.create_commit(space, operations, commit_message="Deploy", repo_type="space")
        if hardware and existing is not None:
            # the Hub may have hardware that this version of the client does not list
            api.request_space_hardware(space, hardware)  # type: ignore[arg-type]
    return f"{api.endpoint}/spaces/{space}"


def files_to_upload(root: Path) -> list[str]:
    """Return the tracked files of a clone that a Space needs.

    Raises:
        UserError: `root` is not a clone, or a file is missing, a link, or seems to hold a secret.
    """
    try:
        command = ["git", "ls-files", "-z"]
        listed = subprocess.run(command, cwd=root, capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        raise UserError(
            "hub.not_a_clone",
            f"{root} is not a git clone, so the app cannot tell which files to upload. Clone the "
            "repository and deploy from there.",
        ) from None
    names = [name for name in listed.stdout.split("\0") if name]
    names = [name for name in names if PurePosixPath(name).parts[0] not in _FOR_DEVELOPMENT]
    for name in names:
        _check_file(root / name, name)
    return names


def _check_file(path: Path, name: str) -> None:
    if path.is_symlink() or not path.is_file():
        raise UserError(
            "hub.tracked_file_missing",
            f"git tracks {name}, but it is not a regular file here. Commit the current state and "
            "deploy again.",
        )
    text = path.read_bytes().decode("utf-8", errors="ignore")
    if is_secret_file(path.name) or has_secret(text):
        raise UserError(
            "hub.secret_in_repository",
            f"{name} seems to contain a key or a token, so nothing was uploaded. Remove it from "
            "the repository.",
        )


def _existing_files(api: HfApi, space: str) -> set[str] | None:
    """The files of the Space; None if it does not exist. Raises UserError if it is another app."""
    try:
        names = set(api.list_repo_files(space, repo_type="space"))
    except errors.RepositoryNotFoundError:
        return None
    if "peft_space/__init__.py" not in names and not names <= _CREATED_BY_THE_HUB:
        raise UserError(
            "hub.repository_in_use",
            f"The Space {space!r} is another app. Nothing in it was changed. Choose another name.",
        )
    return names


_STEPS = 4
_TRAINING_TIMEOUT = 600  # on a Space the training may have to wait for its turn
_ENDPOINTS = {"/check", "/train", "/status", "/resume", "/compare"}


def smoke_test(
    url: str, token: str | None = None, on_progress: OnProgress = no_progress
) -> list[dict[str, Any]]:
    """Use a page as a program would.

    Args:
        url: of the page, or OWNER/SPACE.
        token: for a private Space; None uses HF_TOKEN or the one this machine is signed in with.
        on_progress: called with the completed share and the current check.

    Returns:
        For each check `what`, `seconds` and `found`, its result as text.

    Raises:
        UserError: a check failed.
    """
    results: list[dict[str, Any]] = []

    def check(what: str, do: Callable[[], tuple[Any, str]]) -> Any:
        on_progress(len(results) / 4, what)
        start = time.monotonic()
        try:
            value, text = do()
        except (AppError, httpx.HTTPError, OSError, ValueError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            message = f"{url}: {what} failed: {reason}. Check the log of the page."
            raise UserError("hub.smoke_test_failed", message) from None
        seconds = round(time.monotonic() - start, 1)
        results.append({"what": what, "seconds": seconds, "found": text})
        return value

    client = check("Opening the page", lambda: _open(url, token))
    check("Checking the sample data", lambda: _check_data(client))
    run = check("Training the demo for a few steps", lambda: _train(client))
    check("Comparing base model and adapter", lambda: _compare(client, run))
    return results


def _open(url: str, token: str | None) -> tuple[Client, str]:
    client = Client(url, token=token, verbose=False, download_files=False, analytics_enabled=False)
    endpoints = client.view_api(print_info=False, return_format="dict")["named_endpoints"]
    if missing := _ENDPOINTS - set(endpoints):
        raise ValueError(f"it is another app, without {', '.join(sorted(missing))}")
    return client, f"{len(endpoints)} endpoints"


def _check_data(client: Client) -> tuple[None, str]:
    report = client.predict("demo", api_name="/check")
    if not report["to_train"] or not report["examples"]:
        raise ValueError("the sample data has no row to train on")
    return None, f"{report['to_train']} rows to train on, {report['held_out']} held out"


def _train(client: Client) -> tuple[dict[str, str], str]:
    started = client.predict("demo", {"max_steps": _STEPS}, api_name="/train")
    run = {"run": started["run"], "owner": started["owner"]}
    deadline = time.monotonic() + _TRAINING_TIMEOUT
    while time.monotonic() < deadline:
        state = client.predict(**run, api_name="/status")
        if state["status"] == "finished":
            loss = state["losses"][-1]["loss"]
            return run, f"{state['step']} steps, the last with a loss of {loss:.2f}"
        if state["status"] == "failed":
            raise ValueError(state["message"])
        if state["status"] in ("paused", "interrupted"):
            client.predict(**run, api_name="/resume")
        time.sleep(1)
    raise TimeoutError(
        f"after {_TRAINING_TIMEOUT} s it was {state['status']} at step {state['step']}"
    )


def _compare(client: Client, run: dict[str, str]) -> tuple[None, str]:
    result = client.predict(
        **run,
        prompts=["My parcel has not arrived."],
        sampling={"max_new_tokens": 16},
        api_name="/compare",
    )
    if not result["fairness"]["fair"]:
        raise ValueError(result["fairness"]["words"])
    return None, result["fairness"]["words"]
