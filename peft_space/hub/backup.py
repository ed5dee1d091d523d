"""A run as a private dataset repository on the Hub: saved there with all that it takes to go on, and taken up again elsewhere.

`saved.json` lists each file with its SHA-256; only what matches it is taken up.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile, errors
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from peft_space import settings
from peft_space.errors import UserError
from peft_space.export.folder import atomic_directory
from peft_space.formatting import gigabytes
from peft_space.hub.client import open_client, translate_errors
from peft_space.runs import checkpoints
from peft_space.runs.archive import is_allowed_path, sha256
from peft_space.runs.events import OnProgress, no_progress
from peft_space.runs.run import Run
from peft_space.training import early_stopping

BACKUP_MANIFEST = "saved.json"
_CARD = """---
viewer: false
tags:
- peft_space
---

A fine-tuning of peft_space, with its data. To go on with it elsewhere: `peft-space restore {repo} --out RUN_DIR`
"""


class Manifest(BaseModel):
    """What `saved.json` says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(1, ge=1, le=1)
    name: str
    files: dict[str, str] = Field(max_length=10_000)
    """Path -> SHA-256."""


def backup(run: Run, repo: str, token: str | None, on_progress: OnProgress = no_progress) -> str:
    """Save the run to the dataset repository `repo`, which is made private, in one commit; return its address.

    Raises UserError while the run is being trained, where `repo` is public or holds something else, or where the Hub refuses.
    """
    api = open_client(repo, token)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with run.lock():  # not during the upload, which may take minutes
            run.truncate_partial_event()
            for name in _files_of(run):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(run.path(name), folder / name)
        names = sorted(
            str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
        )
        manifest = Manifest(name=run.name, files={name: sha256(folder / name) for name in names})
        (folder / BACKUP_MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        (folder / "README.md").write_text(_CARD.format(repo=repo), encoding="utf-8")
        with translate_errors(repo, "The run was not saved", "It is here as it was."):
            on_progress(0.0, "Asking the Hub whose token this is")
            api.whoami()
            gone = _files_there(api, repo) - {
                *names,
                BACKUP_MANIFEST,
                "README.md",
                ".gitattributes",
            }
            on_progress(
                0.1,
                f"Uploading {gigabytes(sum((folder / name).stat().st_size for name in names))} to {repo}",
            )
            changes = [
                CommitOperationAdd(name, folder / name)
                for name in (*names, BACKUP_MANIFEST, "README.md")
            ]
            removed = [CommitOperationDelete(name) for name in sorted(gone)]
            api.create_commit(
                repo, [*changes, *removed], commit_message="Save the run", repo_type="dataset"
            )
    return f"{api.endpoint}/datasets/{repo}"


def restore(
    repo: str, directory: str | Path, token: str | None, on_progress: OnProgress = no_progress
) -> Run:
    """Make a run in `directory` of what was saved in `repo`: whole and as it was saved, or not at all.

    Raises UserError where it is no saved run, where a file is missing or is not what was saved, or where the Hub refuses.
    """
    api = open_client(repo, token)
    with atomic_directory(directory) as aside, tempfile.TemporaryDirectory() as scratch:
        with translate_errors(repo, "The run was not taken up", "", _not_read(repo)):
            on_progress(0.0, f"Looking at {repo}")
            revision = api.dataset_info(repo).sha
            tree = api.list_repo_tree(repo, recursive=True, revision=revision, repo_type="dataset")
            sizes = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
            where: dict[str, Any] = {
                "repo_type": "dataset",
                "revision": revision,
                "local_dir": scratch,
            }
            if BACKUP_MANIFEST not in sizes:
                raise UserError(
                    "todo", f"{repo} on the Hub is no saved run: it has no {BACKUP_MANIFEST}."
                )
            manifest = _read(Path(api.hf_hub_download(repo, BACKUP_MANIFEST, **where)), repo)
            _refuse_without_room(repo, [sizes.get(name, 0) for name in manifest.files], aside)
            for done, (name, digest) in enumerate(manifest.files.items()):
                on_progress(done / len(manifest.files), f"Downloading {name}")
                if name not in sizes:
                    raise _corrupt(repo, f"{name} is missing")
                file = Path(api.hf_hub_download(repo, name, **where))
                if file.is_symlink() or sha256(file) != digest:
                    raise _corrupt(repo, f"{name} is not what was saved")
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(file, aside / name)
        try:
            Run(aside).history()
        except (UserError, ValidationError, ValueError, OSError):
            raise UserError(
                "todo",
                f"The run that is saved in {repo} was written by another version and cannot be read here.",
            ) from None
    return Run(directory)


def _not_read(repo: str) -> dict[int, str]:
    """Why the Hub does not let a saved run be read, by HTTP status."""
    other = "Give a token that may read it, of its owner's account"
    return {
        401: f"the Hub does not let the dataset {repo!r} be read with this token, or without one. {other}",
        403: f"the token may not read the dataset {repo!r}. {other}: signing in on a Space opens only what was saved from there",
        404: f"the Hub does not find the dataset {repo!r}, or the token may not read it. Check the name. If it is right, "
        f"{other[0].lower()}{other[1:]}: signing in on a Space opens only what was saved from there",
    }


def _files_of(run: Run) -> list[str]:
    """What is saved of a run: of its checkpoints those that it goes on from, and none where it is finished."""
    kept = set() if run.status() == "finished" else _checkpoints_of(run)
    names = [
        path.relative_to(run.directory)
        for path in sorted(run.directory.rglob("*"))
        if path.is_file() and not path.is_symlink()
    ]
    return [
        str(name)
        for name in names
        if is_allowed_path(str(name)) and (name.parts[0] != "checkpoints" or name.parts[1] in kept)
    ]


def _checkpoints_of(run: Run) -> set[str]:
    """The newest checkpoint that is whole, and the best one that it knows of."""
    whole = {
        checkpoints.step_of(folder): folder
        for folder in checkpoints.in_order(run)
        if checkpoints.damage(folder) is None
    }
    if not whole:
        return set()
    newest = max(whole)
    best = (
        early_stopping.best_at(early_stopping.state_of(whole[newest]), newest)
        if run.recipe.load_best_model_at_end
        else None
    )
    return {whole[step].name for step in (newest, best) if step in whole}


def _files_there(api: HfApi, repo: str) -> set[str]:
    """The files of a repository that was saved to before; it is made where there is none. Raises UserError where it is another's, or public."""
    try:
        api.create_repo(repo, repo_type="dataset", private=True)
        return set()
    except errors.HfHubHTTPError as error:
        if error.response.status_code != 409:
            raise
    there = set(api.list_repo_files(repo, repo_type="dataset"))
    if BACKUP_MANIFEST not in there and not there <= {".gitattributes", "README.md"}:
        raise UserError(
            "todo",
            f"The dataset {repo!r} exists and holds something else. Nothing of it was changed: choose another name.",
        )
    if not api.dataset_info(repo).private:
        raise UserError(
            "todo",
            f"The dataset {repo!r} is public, and a run has its data in it. Make it private on the Hub, or choose another name.",
        )
    return there


def _read(path: Path, repo: str) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError:
        raise UserError(
            "todo",
            f"{repo} on the Hub is no run that this version can take up: its {BACKUP_MANIFEST} cannot be read.",
        ) from None
    for name in manifest.files:
        if not is_allowed_path(name):
            raise UserError(
                "todo",
                f"{repo} on the Hub was not taken up: {json.dumps(name)} does not belong in a run.",
            )
    if not {"run.json", "recipe.json"} <= manifest.files.keys():
        raise UserError(
            "todo", f"{repo} on the Hub is no saved run: it has no run.json or no recipe.json."
        )
    return manifest


def _refuse_without_room(repo: str, sizes: list[int], folder: Path) -> None:
    needed, free, most = sum(sizes), shutil.disk_usage(folder).free, settings.largest_run_bytes()
    if needed > most:
        raise UserError(
            "todo",
            f"The run in {repo} takes {gigabytes(needed)}, and at most {gigabytes(most)} are taken up here (PEFT_SPACE_MAX_RUN_MB).",
        )
    if needed > free / 2:  # it lies on the disk twice for a moment
        raise UserError(
            "todo",
            f"The run in {repo} takes {gigabytes(needed)}, and there is no room for it here ({gigabytes(free)} are free).",
        )


def _corrupt(repo: str, why: str) -> UserError:
    return UserError(
        "todo",
        f"The run that is saved in {repo} is not whole: {why}. Nothing was taken up. Save it again from where it was trained.",
    )
