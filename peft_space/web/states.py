"""The state of every tab, derived from the data, the recipe and the shown run."""

from dataclasses import dataclass
from typing import Any, Literal

from typing_extensions import TypedDict

from peft_space.formatting import duration
from peft_space.runs.run import Run, Status

TABS = ("Data", "Recipe", "Train", "Compare", "Publish")
Kind = Literal["blocked", "ready", "running", "done", "failed"]
ACTIVE: tuple[Status, ...] = ("queued", "on_job", "running")
RESUMABLE: tuple[Status, ...] = ("paused", "interrupted", "failed")
CAN_RESUME: tuple[Status, ...] = ("new", "stopped", *RESUMABLE)
UNFINISHED: tuple[Status, ...] = ("new", *ACTIVE, *RESUMABLE)
STATUS_WORDS: dict[Status, str] = {
    "new": "ready",
    "queued": "starting",
    "on_job": "training on Hugging Face Jobs",
    "running": "training",
    "paused": "paused",
    "stopped": "stopped",
    "interrupted": "interrupted",
    "finished": "finished",
    "failed": "failed",
}


class DataState(TypedDict):
    """What the last check of the page's data found."""

    kind: Literal["none", "reading", "question", "failed", "ready"]
    source: str
    rows: int
    """Rows to train on; 0 unless `kind` is "ready"."""
    message: str
    """The error of a check that failed. Data that can be read without the recipe are ready, and
    this is what is wrong with the recipe."""


class RecipeState(TypedDict):
    """What is changed and what is wrong in the form."""

    model: str
    """The base model; empty until one is chosen."""
    changed: dict[str, Any]
    """Field -> value, of the fields that are not at their default."""
    problems: dict[str, str]
    """Field -> what is wrong with it."""
    refused: str
    """Why the base model cannot be trained with these settings, as a look at it has shown."""
    seen: bool
    """True once the Recipe tab was opened."""


NO_DATA: DataState = {"kind": "none", "source": "", "rows": 0, "message": ""}
DEFAULT_RECIPE: RecipeState = {
    "model": "",
    "changed": {},
    "problems": {},
    "refused": "",
    "seen": False,
}


@dataclass(frozen=True)
class TabState:
    """The state of one tab."""

    kind: Kind
    reason: str = ""
    """Why it is blocked or failed, or what comes next."""
    share: float | None = None
    """Of a running tab, the part that is done, from 0 to 1."""

    @property
    def mark(self) -> str:
        """The sign after the tab's title."""
        if self.kind == "running":
            return "…" if self.share is None else f"{self.share:.0%}".replace("%", " %")
        return {"done": "✓", "failed": "!"}.get(self.kind, "")


def run_state_of(run: Run, status: Status) -> list[Any]:
    """Return [status, whether there is an adapter, whether it was scored] of a run."""
    has_adapter = run.path("adapter", "adapter_config.json").is_file()
    return [status, has_adapter, run.path("scores.json").is_file()]


def fingerprint(run: Run, num_events: int, status: str) -> list[Any]:
    """Return a value that changes whenever what the page shows of a run changes."""
    scored = run.path("scores.json").is_file()
    return [run.directory.name, run.name, num_events, status, run.requested_stop(), scored]


def tab_states(
    data: DataState,
    recipe: RecipeState,
    run: str,
    run_state: list[Any] | None,
    progress: list[Any] | None,
) -> dict[str, TabState]:
    """Return the state of each tab: of the shown run, or of the new fine-tune if there is none.

    Args:
        data: the page's data.
        recipe: the page's recipe.
        run: the id of the shown run; empty for the new fine-tune.
        run_state: [status, whether there is an adapter, whether it was scored] of the shown run.
        progress: [share, seconds left] of the shown run.
    """
    states = _run_states(run_state, progress) if run else _draft_states(data, recipe)
    return dict(zip(TABS, states, strict=True))


def _draft_states(data: DataState, recipe: RecipeState) -> list[TabState]:
    later = TabState("blocked", "Train an adapter first, or choose a run in the sidebar.")
    first, second = data_tab_state(data), recipe_tab_state(recipe, data)
    blocked = missing(data, recipe)
    return [first, second, TabState("blocked" if blocked else "ready", blocked), later, later]


def data_tab_state(data: DataState) -> TabState:
    """Return the state of the Data tab of a new fine-tune."""
    match data["kind"]:
        case "none":
            return TabState("ready", "Add data first.")
        case "reading":
            return TabState("running", "The data is being read.")
        case "question":
            return TabState("failed", "Choose which columns to use.")
        case "failed":
            return TabState("failed", "The data cannot be used yet.")
    return TabState("done")


def recipe_tab_state(recipe: RecipeState, data: DataState = NO_DATA) -> TabState:
    """Return the state of the Recipe tab of a new fine-tune."""
    if recipe["problems"]:
        count = len(recipe["problems"])
        noun = "setting is" if count == 1 else "settings are"
        return TabState("failed", f"{count} {noun} not valid.")
    if not recipe["model"]:
        return TabState("ready", "Choose a base model.")
    if recipe["refused"]:
        return TabState("failed", recipe["refused"])
    if data["kind"] == "ready" and data["message"]:
        return TabState("failed", "The base model or a setting does not work with your data.")
    return TabState("done" if recipe["seen"] else "ready")


def missing(data: DataState, recipe: RecipeState) -> str:
    """Return what has to be done before a training can start; empty if nothing is missing."""
    for title, state in (
        ("Data", data_tab_state(data)),
        ("Recipe", recipe_tab_state(recipe, data)),
    ):
        if state.reason:
            return f"{title}: {state.reason}"
    return ""


def _run_states(state: list[Any] | None, progress: list[Any] | None) -> list[TabState]:
    status, has_adapter, has_scores = state or ("new", False, False)
    share = progress[0] if progress else None
    if status in ACTIVE:
        train, wait = TabState("running", share=share), "Available when the training has finished."
    elif status == "failed":
        train, wait = TabState("failed", "The training failed."), "The training failed: see Train."
    elif status in ("finished", "stopped"):
        train, wait = TabState("done"), "This run has no adapter."
    else:
        train = TabState("ready", "Resume the training.")
        wait = "The training is not finished: resume it on Train."
    if not has_adapter:
        blocked = TabState("blocked", wait)
        return [TabState("done"), TabState("done"), train, blocked, blocked]
    compare = TabState("done" if has_scores else "ready")
    return [TabState("done"), TabState("done"), train, compare, TabState("ready")]


def status_line(status: Status, progress: list[Any] | None) -> str:
    """Return a run's status with its share and its time left, such as "Training 62 % · 14 s"."""
    words = STATUS_WORDS[status].capitalize()
    if status not in ACTIVE or not progress:
        return words
    share, seconds = progress
    left = f" · {duration(seconds)} left" if seconds else ""
    return f"{words} {100 * share:.0f} %{left}" if share is not None else words
