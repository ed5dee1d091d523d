"""What a visitor may have at once, and what becomes of what they leave. Limits are for Spaces; one's own machine has none unless they are set."""

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

_SECONDS_BETWEEN = 3600.0
"""Between two looks for what nobody comes back to."""

logger = logging.getLogger(__name__)


def new_run(owner: str) -> Path:
    """A folder that nobody can guess, for a run of `owner` that is about to be made. Raises UserError where they have enough."""
    check_open_runs(owner)
    most = settings.most_stored_bytes()
    if most is not None and (stored := sum(run.size() for run in list_runs(owner))) >= most:
        raise UserError(
            "todo",
            f"Your runs take {gigabytes(stored)}, and {gigabytes(most)} are yours here. Take with you what you need, and delete a run on Runs.",
        )
    return new_run_directory(owner)


def check_open_runs(owner: str) -> None:
    """Raise UserError where `owner` has as many trainings queued or running as they may have."""
    most = settings.most_open_runs()
    if most is None:
        return
    opened = [run.name for run in list_runs(owner) if run.status() in ("queued", "running")]
    if len(opened) >= most:
        raise UserError(
            "todo",
            f"You have {len(opened)} trainings queued or running, and may have {most}. Wait for one, or stop it.",
        )


def prune_idle_runs() -> list[str]:
    """Remove the runs, and the kept work on data, that nothing has happened to for `settings.keep_days`; the names of these runs."""
    days = settings.keep_days()
    if days is None:
        return []
    since, removed = time.time() - days * 86400, []
    for told in (settings.home() / "runs").glob("*/[!.]*/run.json"):
        try:
            run = Run(told.parent)
            if _changed(run.directory) < since and run.status() not in ("queued", "running"):
                run.delete()
                removed.append(run.directory.name)
        except (
            ValueError,
            OSError,
            UserError,
        ):  # it has just been taken up again, or cannot be read
            logger.exception("the run %s was not removed", told.parent)
    for kept in (settings.home() / "cache").glob("*/*"):
        if max(kept.stat().st_mtime, kept.stat().st_atime) < since:
            shutil.rmtree(kept, ignore_errors=True) if kept.is_dir() else kept.unlink(
                missing_ok=True
            )
    for folder in (settings.home() / "runs").glob("*"):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return removed


def start_pruner() -> None:
    """Look for what is idle now and every hour, beside whatever else is done."""

    def look() -> None:
        while True:
            if removed := prune_idle_runs():
                logger.info(
                    "removed %d runs that were idle for %s days", len(removed), settings.keep_days()
                )
            time.sleep(_SECONDS_BETWEEN)

    if settings.keep_days() is not None:
        threading.Thread(target=look, daemon=True).start()


def _changed(folder: Path) -> float:
    """When something in a run was last written."""
    return max(
        (
            path.stat().st_mtime
            for path in (folder, folder / "events.jsonl", folder / "run.json")
            if path.exists()
        ),
        default=0.0,
    )
