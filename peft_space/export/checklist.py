"""The list of what makes an adapter ready for production, as a run keeps it. What is on it is worked out in `export/readiness.py`."""

import json
from dataclasses import asdict, dataclass

from peft_space.runs.run import Run
from peft_space.storage import atomic_io


@dataclass(frozen=True)
class Check:
    """One line of the list. `done` is None where it does not apply."""

    title: str
    done: bool | None
    words: str


def write_checklist(run: Run, checks: list[Check]) -> None:
    """Keep the list in the run."""
    atomic_io.write_text(
        run.path("ready.json"),
        json.dumps([asdict(check) for check in checks], ensure_ascii=False, indent=1) + "\n",
    )


def read_checklist(run: Run) -> list[Check]:
    """The list that was worked out last; empty where there is none."""
    path = run.path("ready.json")
    return (
        [Check(**values) for values in json.loads(path.read_text(encoding="utf-8"))]
        if path.is_file()
        else []
    )


def checklist_markdown(checks: list[Check]) -> str:
    """The list as it stands on the page and on the card."""
    signs = {True: "✓", False: "○", None: "–"}
    return "\n".join(f"- {signs[check.done]} **{check.title}.** {check.words}" for check in checks)
