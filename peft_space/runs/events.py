"""What can happen to a run, one type an event; each is one line of events.jsonl. Knows nothing about files."""

import time
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from peft_space.errors import error_json

OnProgress = Callable[[float, str], None]
"""What a long step tells while it works, where that is no event of a run: the share that is done, 0 to 1, and what is being done."""


def no_progress(share: float, what: str) -> None:
    """The OnProgress of who does not listen."""


class _Event(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="ignore", ser_json_inf_nan="constants"
    )  # a loss can become NaN

    at: float = Field(default_factory=time.time)
    """Seconds since 1970."""


class Queued(_Event):
    """Somebody asked for training; a worker will take it up when the machine is free."""

    event: Literal["Queued"] = "Queued"


class Preparing(_Event):
    """What the worker is busy with before the first step, in words for the user."""

    event: Literal["Preparing"] = "Preparing"
    what: str


class Waiting(Preparing):
    """The machine is busy with others; `before` of them come first."""

    event: Literal["Waiting"] = "Waiting"  # type: ignore[assignment]
    before: int


class SliceStarted(_Event):
    """A slice of borrowed GPU time began: at most so many `seconds`, of which those up to its last event were used."""

    event: Literal["SliceStarted"] = "SliceStarted"
    seconds: int


class SubmittedToJob(_Event):
    """The run is trained elsewhere, as a job on Hugging Face; nobody here may train it until its outcome has come back."""

    event: Literal["SubmittedToJob"] = "SubmittedToJob"
    job: str
    owner: str
    """Whose job it is on the Hub."""
    repo: str
    """The private dataset that the run went to and comes back by."""
    address: str
    """Of the job's page."""
    flavor: str
    """The hardware."""
    timeout: float
    """Seconds after which the job is ended."""
    num_events: int
    """How many of the run's events went along; the job's own come after them."""


class Started(_Event):
    """A worker began an attempt, from step `from_step` of `total_steps`."""

    event: Literal["Started"] = "Started"
    attempt: int
    from_step: int
    total_steps: int


class Step(_Event):
    """One optimizer step. Where a resume replays steps, readers keep the last line of each step."""

    event: Literal["Step"] = "Step"
    attempt: int
    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    """Tokens trained on so far in the whole run, padding not counted."""
    seconds: float
    """Duration of this step alone."""
    memory: int = 0
    """Most bytes that the worker held so far: of the GPU where it computes on one, else of the machine."""
    metrics: dict[str, float] = {}
    """What else the task measures, by its name: `reward margin` and `better answer likelier`."""


class Evaluated(_Event):
    """Mean loss on the held-out rows: of a trained token, tag or label in nats; of preferences what DPO or KTO make of them."""

    event: Literal["Evaluated"] = "Evaluated"
    attempt: int
    step: int
    loss: float
    metrics: dict[str, float] = {}
    """As of a Step; of labels and tags `accuracy` and `macro-F1`."""


class Checkpointed(_Event):
    """From here training can go on."""

    event: Literal["Checkpointed"] = "Checkpointed"
    step: int


class Notice(_Event):
    """The worker did something other than asked, or chose something: what, and why, in words for the user."""

    event: Literal["Notice"] = "Notice"
    what: str
    why: str


class OutOfMemory(Notice):
    """Memory ran out, and training goes on from its last checkpoint with less: with what, and why."""

    event: Literal["OutOfMemory"] = "OutOfMemory"  # type: ignore[assignment]


class Warned(_Event):
    """Training goes on, but something is wrong: what, and what to do about it, in words for the user."""

    event: Literal["Warned"] = "Warned"
    step: int
    what: str
    advice: str


class CheckpointSelected(_Event):
    """The adapter of this step is kept as the run's, and why, in words for the user. The last line counts."""

    event: Literal["CheckpointSelected"] = "CheckpointSelected"
    step: int
    why: str


class Paused(_Event):
    """Training left at its deadline, or because the user asked, and goes on when it is called again."""

    event: Literal["Paused"] = "Paused"
    step: int
    asked: bool = False
    """Whether somebody asked for it; else its time was up."""
    why: str = ""
    """What came in between, in words for the user; nothing where all is as it should be."""


class Stopped(_Event):
    """Training ended early because the user asked; there is an adapter, and training can still be resumed."""

    event: Literal["Stopped"] = "Stopped"
    step: int


class Finished(_Event):
    """The adapter is complete."""

    event: Literal["Finished"] = "Finished"
    step: int
    seconds: float
    """Time spent in training over all attempts."""


class Failed(_Event):
    """Training ended with an error; `message` is for the user, the traceback is in the run's worker.log."""

    event: Literal["Failed"] = "Failed"
    message: str
    code: str = "bug"
    """Of the `UserError` that ended it."""
    fault: bool = False
    """Whether it is the app's fault and not the user's."""
    for_memory: bool = False
    """Whether memory ran out though all was done that could be done without asking: shorter rows may still do."""


Event = Annotated[
    Queued
    | Preparing
    | Waiting
    | SliceStarted
    | SubmittedToJob
    | Started
    | Step
    | Evaluated
    | Checkpointed
    | Notice
    | OutOfMemory
    | Warned
    | CheckpointSelected
    | Paused
    | Stopped
    | Finished
    | Failed,
    Field(discriminator="event"),
]
Outcome = Paused | Stopped | Finished | Failed
"""How a call of `train` can end."""

parse_event = TypeAdapter(Event).validate_json


def failed_event(error: BaseException) -> Failed:
    """The event that says how an exception ended a training."""
    told = error_json(error)
    return Failed(message=str(told["error"]), code=str(told["code"]), fault=not told["users"])
