"""The new fine-tune of an owner, stored so that a reload or another window finds it again."""

import json
from pathlib import Path
from typing import Any

from peft_space.data.dataset import DEMO_DATA
from peft_space.data.readers.hub import is_address
from peft_space.runs.store import owner_directory
from peft_space.storage import atomic_io

_FILE = "draft.json"
_EMPTY: dict[str, Any] = {"data": "", "held_out": "", "column_mapping": {}, "recipe": {}}


def write_draft(owner: str, draft: dict[str, Any]) -> None:
    """Store the data and the recipe of the owner's new fine-tune.

    The server writes this file and nobody else, so it opens no file that was not uploaded.

    Args:
        owner: whose it is.
        draft: `data`, `held_out`, `column_mapping` and `recipe`, which has only changed settings.
    """
    if draft == read_draft(owner):
        return
    folder = owner_directory(owner)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_io.write_text(folder / _FILE, json.dumps(draft, ensure_ascii=False) + "\n")


def read_draft(owner: str) -> dict[str, Any]:
    """Return the owner's new fine-tune, without files that are gone."""
    try:
        stored = _EMPTY | json.loads((owner_directory(owner) / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return dict(_EMPTY)
    if not _exists(stored["data"]):
        stored |= {"data": "", "held_out": "", "column_mapping": {}}
    if not _exists(stored["held_out"]):
        stored["held_out"] = ""
    return stored


def _exists(data: str | list[str]) -> bool:
    sources = [data] if isinstance(data, str) else data
    return all(one == DEMO_DATA or is_address(one) or Path(one).is_file() for one in sources)
