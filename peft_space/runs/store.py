"""The runs of an owner: where they are stored, and how they are opened, listed and named."""

import logging
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from peft_space import settings
from peft_space.errors import UserError
from peft_space.runs.run import Run

logger = logging.getLogger(__name__)

_OWNER = re.compile(r"[A-Za-z0-9_-]{1,64}")


def owner_directory(owner: str) -> Path:
    """Return the directory of an owner's runs; no name leads to another place."""
    assert _OWNER.fullmatch(owner), "the app creates owners; nobody types them"
    return settings.home() / "runs" / owner


def new_run_directory(owner: str) -> Path:
    """Return an unguessable directory for a new run, which does not exist yet."""
    return owner_directory(owner) / secrets.token_hex(12)


def open_run(owner: str | Sequence[str], run_id: str) -> Run:
    """Open the run with this id that belongs to `owner`, or to one of several owners.

    Raises:
        UserError: there is no such run, or it belongs to somebody else.
    """
    if re.fullmatch(r"[0-9a-f]{24}", run_id):
        for name in [owner] if isinstance(owner, str) else owner:
            folder = owner_directory(name) / run_id
            if (folder / "run.json").is_file():
                return Run(folder)
    message = f"You have no run {run_id!r}. Choose one from the list of your runs."
    raise UserError("runs.unknown", message)


def list_runs(*owners: str) -> list[Run]:
    """Return the runs of `owners`, newest first. Unreadable ones are logged and left out."""
    runs = []
    for owner in owners:
        for path in owner_directory(owner).glob("[!.]*/run.json"):
            try:
                runs.append(Run(path.parent))
            except (UserError, ValueError, OSError) as error:
                logger.warning("the run %s cannot be opened: %s", path.parent, error)
    return sorted(runs, key=lambda run: run.about["created"], reverse=True)


def list_sibling_runs(run: Run) -> list[Run]:
    """Return all runs of the same owner, this one included."""
    return list_runs(run.directory.parent.name)


def unique_name(owner: str, name: str, but: Run) -> str:
    """Return `name`, with a number if another run of `owner` than `but` has it already."""
    taken = {run.name for run in list_runs(owner) if run.directory != but.directory}
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name} ({number})", number + 1
    return candidate
