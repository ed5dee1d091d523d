"""Limits of a visitor: open trainings and stored bytes, and the removal of unused runs."""

import logging
import shutil
import threading
import time
from pathlib import Path

from peft_space import settings
from peft_space.errors import UserError
from peft_space.formatting import gigabytes
from peft_space.runs.run import Run
from peft_space.runs.store import list_runs, new_run_directory

logger = logging.getLogger(__name__)

_PRUNE_INTERVAL = 3600.0


def new_run(owner: str) -> Path:
    """Return an unguessable directory for a new run of `owner`.

    Raises:
        UserError: the owner has reached a limit.
    """
    check_open_runs(owner)
    limit = settings.max_stored_bytes()
    if limit is not None and (stored := sum(run.size() for run in list_runs(owner))) >= limit:
        raise UserError(
            "runs.storage_quota",
            f"Your runs use {gigabytes(stored)} of your {gigabytes(limit)} quota. Download the "
            "files that you need, then delete a run.",
        )
    return new_run_directory(owner)


def check_open_runs(owner: str) -> None:
    """Raise UserError if `owner` has reached the limit of queued and running trainings."""
    limit = settings.max_open_runs()
    if limit is None:
        return
    num_open = sum(run.status() in ("queued", "running") for run in list_runs(owner))
    if num_open >= limit:
        raise UserError(
            "runs.too_many_open",
            f"You have {num_open} queued or running trainings, and the limit is {limit}. Wait "
            "for one to finish, or stop it.",
        )


def prune_idle_runs() -> list[str]:
    """Remove runs and cached data that did not change for `settings.keep_days()`.

    Returns:
        The ids of the removed runs.
    """
    days = settings.keep_days()
    if days is None:
        return []
    limit, removed = time.time() - days * 86400, []
    for path in (settings.home() / "runs").glob("*/[!.]*/run.json"):
        try:
            run = Run(path.parent)
            if _last_change(run.directory) < limit and run.status() not in ("queued", "running"):
                run.delete()
                removed.append(run.directory.name)
        except (ValueError, OSError, UserError):  # it has just been resumed, or is unreadable
            logger.exception("the run %s was not removed", path.parent)
    for cached in (settings.home() / "cache").glob("*/*"):
        if max(cached.stat().st_mtime, cached.stat().st_atime) < limit:
            _remove(cached)
    for folder in (settings.home() / "runs").glob("*"):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return removed


def start_pruner() -> None:
    """Prune idle runs now and every hour, in a background thread."""

    def prune_forever() -> None:
        while True:
            if removed := prune_idle_runs():
                logger.info("removed %d runs, idle for %s days", len(removed), settings.keep_days())
            time.sleep(_PRUNE_INTERVAL)

    if settings.keep_days() is not None:
        threading.Thread(target=prune_forever, daemon=True).start()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _last_change(folder: Path) -> float:
    """The time at which a run was last written to."""
    paths = (folder, folder / "events.jsonl", folder / "run.json")
    return max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)
