"""The runs of one owner: where they are stored, how one is opened, listed and named."""

import logging
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from peft_space import settings
from peft_space.errors import UserError
from peft_space.runs.run import Run

logger = logging.getLogger(__name__)

_OWNER = re.compile(r"[A-Za-z0-9_-]{1,64}")


def owner_directory(owner: str) -> Path:
    """Where the runs of `owner` are; no name leads anywhere else."""
    assert _OWNER.fullmatch(owner), "owners are made by us, never typed"
    return settings.home() / "runs" / owner


def new_run_directory(owner: str) -> Path:
    """A folder that nobody can guess, for a run that is about to be made."""
    return owner_directory(owner) / secrets.token_hex(12)


def open_run(owner: str | Sequence[str], run_id: str) -> Run:
    """The run of `owner`, or of one of several, with this id. Raises UserError where there is none, or it is another's."""
    owners = [owner] if isinstance(owner, str) else owner
    for folder in (
        [owner_directory(one) / run_id for one in owners]
        if re.fullmatch(r"[0-9a-f]{24}", run_id)
        else []
    ):
        if (folder / "run.json").is_file():
            return Run(folder)
    raise UserError("todo", f"You have no run {run_id!r}. Choose one from the list of your runs.")


def list_runs(*owners: str) -> list[Run]:
    """The runs of `owners`, newest first. One that another version wrote and this one cannot read is left out, and logged."""
    runs = []
    for path in (
        path for owner in owners for path in owner_directory(owner).glob("[!.]*/run.json")
    ):
        try:
            runs.append(Run(path.parent))
        except (ValidationError, ValueError, OSError):
            logger.exception("the run %s cannot be read", path.parent)
    return sorted(runs, key=lambda run: run.about["created"], reverse=True)


def list_sibling_runs(run: Run) -> list[Run]:
    """The runs of the same owner."""
    return list_runs(run.directory.parent.name)


def unique_name(owner: str, name: str, but: Run) -> str:
    """`name`, with a number where another run of `owner` than `but` has it already."""
    taken = {run.name for run in list_runs(owner) if run.directory != but.directory}
    number = 2
    wanted = name
    while wanted in taken:
        wanted = f"{name} ({number})"
        number += 1
    return wanted
