"""Example data of five kinds, all from the sample data that come with the app."""

import json
import os
import shutil
from pathlib import Path

from peft_space.compat.gradio import served_folder
from peft_space.data.dataset import DEMO_DATA
from peft_space.data.table import demo_files
from peft_space.demo import PICTURES_FILE

EXAMPLES = {
    "tickets": ("Support tickets", "300 messages with the ticket for each"),
    "labels": ("Labels", "300 messages with what went wrong"),
    "preferences": ("Preferences", "300 messages with a better and a worse answer"),
    "chat": ("Chat", "300 conversations of two turns"),
    "pictures": ("Pictures", "60 pictures of shapes with captions"),
}
"""Kind -> title and description."""
_PREFIX = "example-"
_PICTURES = f"{_PREFIX}pictures.zip"


def example_data(kind: str) -> str:
    """Return the data of an example: the sample data, or a new file that is made from them."""
    if kind == "tickets":
        return DEMO_DATA
    if kind == "pictures":
        return shutil.copy(PICTURES_FILE, os.path.join(served_folder(), _PICTURES))
    rows = [json.loads(line) for line in demo_files()[0].read_text("utf-8").splitlines()]
    made = [_MAKERS[kind](row["instruction"], row["output"]) for row in rows]
    path = os.path.join(served_folder(), f"{_PREFIX}{kind}.jsonl")
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return path


def model_of_example(data: str | list[str]) -> str:
    """Return the built-in model that learns an example."""
    return "demo-pictures" if str(data).endswith(_PICTURES) else "demo"


def is_example(data: str | list[str]) -> bool:
    """Return True if the data are one of the examples, which the demo model can learn."""
    return isinstance(data, str) and (
        data == DEMO_DATA or os.path.basename(data).startswith(_PREFIX)
    )


def _fields(ticket: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in ticket.splitlines())


def _label(message: str, ticket: str) -> dict[str, object]:
    return {"text": message, "label": _fields(ticket)["Issue"]}


def _preference(message: str, ticket: str) -> dict[str, object]:
    worse = f"Dear {_fields(ticket)['Customer']}, we are sorry."
    return {"prompt": message, "chosen": ticket, "rejected": worse}


def _chat(message: str, ticket: str) -> dict[str, object]:
    action = _fields(ticket)["Action"]
    turns = [("user", message), ("assistant", ticket), ("user", "What comes next?")]
    turns.append(("assistant", f"Next: {action}."))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


_MAKERS = {"labels": _label, "preferences": _preference, "chat": _chat}
