"""Stores a run in a private dataset repository, and restores it elsewhere.

Jobs use the same repository layout: `archive.json`, and the run's files under `run/`.
"""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, errors

from peft_space import settings
from peft_space.compat.huggingface_hub import FailureCode
from peft_space.errors import UserError
from peft_space.formatting import gigabytes
from peft_space.hub.client import open_client, translate_errors
from peft_space.runs import archive, checkpoints
from peft_space.runs.archive import FOLDER, MANIFEST, Archive, Content, Manifest
from peft_space.runs.events import OnProgress, no_progress
from peft_space.runs.run import Run
from peft_space.storage.atomic_io import atomic_directory
from peft_space.training import early_stopping

_CARD = """---
viewer: false
tags:
- peft_space
---

A fine-tuning run of peft_space, with its data. To resume it on another machine:
`peft-space restore {repo} --out RUN_DIR`
"""


@dataclass(frozen=True)
class RunRepository:
    """A run in a dataset repository on the Hub."""

    api: HfApi
    repo: str

    def upload(
        self,
        packed: Mapping[str, Content],
        known: Mapping[str, str],
        message: str,
        extra: Mapping[str, Content] | None = None,
    ) -> tuple[Manifest, str]:
        """Commit what changed in a run.

        Args:
            packed: the files of the run.
            known: files that the repository has -> their SHA-256, or "" if it is not known.
            message: of the commit.
            extra: further files, by their path in the repository.

        Returns:
            The new manifest, and the id of the commit. Nothing is committed, and the id is empty,
            if nothing changed.
        """
        manifest = archive.manifest_of(packed)
        if manifest.files == known:
            return manifest, ""
        removed = [name for name in sorted(known) if name not in packed]
        changed = [name for name in packed if known.get(name) != manifest.files[name]]
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationDelete(f"{FOLDER}{name}") for name in removed),
            *(CommitOperationAdd(f"{FOLDER}{name}", packed[name]) for name in changed),
            *(CommitOperationAdd(name, content) for name, content in (extra or {}).items()),
            CommitOperationAdd(MANIFEST, manifest.to_bytes()),
        ]
        commit = self.api.create_commit(
            self.repo, operations, commit_message=message, repo_type="dataset"
        )
        return manifest, commit.oid

    def run_files(self) -> dict[str, str]:
        """The files of the run that the repository has, as `upload` takes them."""
        names = self.api.list_repo_files(self.repo, repo_type="dataset")
        return {name.removeprefix(FOLDER): "" for name in names if name.startswith(FOLDER)}

    def snapshot(self, scratch: str | Path) -> "Snapshot":
        """Open the newest commit.

        Args:
            scratch: the directory that files are downloaded to.

        Raises:
            UserError: it is not an archived run, or its manifest is invalid.
        """
        info = self.api.dataset_info(self.repo, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        if MANIFEST not in sizes:
            raise UserError(
                "hub.not_a_backup",
                f"The dataset {self.repo} is not a stored run: it has no {MANIFEST}. Check the "
                "name.",
            )
        limit = settings.max_run_bytes()
        archive.check_sizes({MANIFEST: sizes[MANIFEST]}, limit, self.repo)

        def fetch(name: str) -> Path:
            downloaded = self.api.hf_hub_download(
                self.repo, name, repo_type="dataset", revision=info.sha, local_dir=scratch
            )
            return Path(downloaded)

        manifest = archive.read_manifest(fetch(MANIFEST).read_bytes(), self.repo)
        run_sizes = {
            name: sizes[f"{FOLDER}{name}"] for name in manifest.files if f"{FOLDER}{name}" in sizes
        }
        return Snapshot(self.repo, manifest, lambda name: fetch(f"{FOLDER}{name}"), run_sizes)


@dataclass(frozen=True)
class Snapshot(Archive):
    """A run in one commit of a repository."""

    sizes: Mapping[str, int]
    """File of the run -> bytes."""

    def check(self, names: list[str]) -> int:
        """Check that files exist and are not too large, before any is downloaded.

        Returns:
            The bytes of all of them.

        Raises:
            UserError: a file is missing, or the files exceed a limit.
        """
        if missing := [name for name in names if name not in self.sizes]:
            raise UserError(
                "runs.archive_damaged",
                f"{self.source}: {missing[0]} is missing. Nothing was imported. Save the run "
                "again where you trained it.",
            )
        sizes = {name: self.sizes[name] for name in names}
        archive.check_sizes(sizes, settings.max_run_bytes(), self.source)
        return sum(sizes.values())


def backup(run: Run, repo: str, token: str | None, on_progress: OnProgress = no_progress) -> str:
    """Store a run in a private dataset repository, in one commit.

    Of its checkpoints it stores the newest and the best, and none if the run is finished.

    Args:
        run: it is not being trained.
        repo: OWNER/NAME; it is created if it does not exist.
        token: with write access; None uses the one that this machine is signed in with.
        on_progress: called with the completed share and the current work.

    Returns:
        The URL of the repository.

    Raises:
        UserError: the run is being trained, `repo` is public or contains something else, or the
            Hub rejects the request.
    """
    repository = RunRepository(open_client(repo, token), repo)
    with tempfile.TemporaryDirectory() as scratch:
        packed = _copy_packed(run, Path(scratch))
        with translate_errors(repo, "The run was not saved", "It is unchanged on this machine."):
            on_progress(0.0, "Checking the token")
            repository.api.whoami()
            known = _create_or_open(repository)
            size = sum(path.stat().st_size for path in packed.values())
            on_progress(0.1, f"Uploading {gigabytes(size)} to {repo}")
            card = {"README.md": _CARD.format(repo=repo).encode()}
            repository.upload(packed, known, "Save the run", card)
    return f"{repository.api.endpoint}/datasets/{repo}"


def restore(
    repo: str, directory: str | Path, token: str | None, on_progress: OnProgress = no_progress
) -> Run:
    """Download a stored run, completely or not at all.

    Args:
        repo: the dataset repository, OWNER/NAME.
        directory: of the new run; it must not exist, or be empty.
        token: with read access; None uses the one that this machine is signed in with.
        on_progress: called with the completed share and the current work.

    Raises:
        UserError: `repo` is not a stored run, a file is missing or not what was stored, or the
            Hub rejects the request.
    """
    repository = RunRepository(open_client(repo, token), repo)
    with atomic_directory(directory) as aside, tempfile.TemporaryDirectory() as scratch:
        with translate_errors(repo, "The run was not restored", reasons=_reading(repo)):
            on_progress(0.0, f"Reading {repo}")
            snapshot = repository.snapshot(scratch)
            names = list(snapshot.manifest.files)
            _check_space(repo, snapshot.check(names), aside)
            done = 0

            def fetch(name: str) -> Path:
                nonlocal done
                on_progress(done / len(names), f"Downloading {name}")
                done += 1
                return snapshot.fetch(name)

            Archive(repo, snapshot.manifest, fetch).install(aside, names)
        _check_run(aside, repo)
    return Run(directory)


def _copy_packed(run: Run, target: Path) -> dict[str, Path]:
    """Copy the files of a backup, so that the run is not locked during the upload."""
    copies = {}
    with run.lock():
        run.truncate_partial_event()
        chosen = set() if run.status() == "finished" else _chosen_checkpoints(run)
        for name in archive.pack(run, chosen):
            copies[name] = target / name
            copies[name].parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run.path(name), copies[name])
    return copies


def _chosen_checkpoints(run: Run) -> set[str]:
    """The newest intact checkpoint, and the best one that it refers to."""
    folders = checkpoints.in_order(run)
    intact = {checkpoints.step_of(path): path for path in folders if not checkpoints.damage(path)}
    if not intact:
        return set()
    newest, best = max(intact), None
    if run.recipe.load_best_model_at_end:
        best = early_stopping.best_at(early_stopping.state_of(intact[newest]), newest)
    return {intact[step].name for step in (newest, best) if step in intact}


def _create_or_open(repository: RunRepository) -> dict[str, str]:
    """Create the repository if necessary. Returns the files of the run in it.

    Raises:
        UserError: it contains something else, or is public.
    """
    api, repo = repository.api, repository.repo
    try:
        api.create_repo(repo, repo_type="dataset", private=True)
        return {}
    except errors.HfHubHTTPError as error:
        if error.response.status_code != 409:
            raise
    names = set(api.list_repo_files(repo, repo_type="dataset"))
    if MANIFEST not in names and not names <= {".gitattributes", "README.md"}:
        raise UserError(
            "hub.repository_in_use",
            f"The dataset {repo!r} exists and contains something else. Nothing in it was "
            "changed. Choose another name.",
        )
    if not api.dataset_info(repo).private:
        raise UserError(
            "hub.repository_public",
            f"The dataset {repo!r} is public, and a run contains its data. Make it private on "
            "the Hub, or choose another name.",
        )
    return repository.run_files()


def _reading(repo: str) -> dict[FailureCode, str]:
    """Why a stored run cannot be read."""
    advice = (
        "Use a token of its owner with read access: signing in on a Space gives access only to "
        "backups made from there"
    )
    return {
        "hub.unauthorized": f"the Hub does not accept the token for the dataset {repo!r}. {advice}",
        "hub.forbidden": f"the token has no access to the dataset {repo!r}. {advice}",
        "hub.not_found": f"the Hub has no dataset {repo!r}, or the token has no access to it. "
        f"Check the name. {advice}",
    }


def _check_space(repo: str, size: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if size > free / 2:  # the download and the run may be on different disks, or on the same
        raise UserError(
            "machine.disk_too_small",
            f"The run in {repo} needs {gigabytes(2 * size)} on the disk while it is restored, "
            f"and {gigabytes(free)} are free. Free some space and try again.",
        )


def _check_run(directory: Path, repo: str) -> None:
    """Raise UserError if a restored run cannot be opened."""
    try:
        Run(directory).history()
    except UserError as error:
        raise UserError(error.code, str(error).replace(str(directory), repo)) from None
    except (ValueError, OSError) as error:
        raise UserError(
            "hub.not_a_backup",
            f"The run in {repo} cannot be opened ({type(error).__name__}): its recipe or its "
            "events are not valid. Save it again where you trained it.",
        ) from None
