"""The events of a run: one type for each kind, one line of events.jsonl for each event."""

import time
from collections.abc import Callable
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from peft_space.errors import error_json
from peft_space.runs import events

OnProgress = Callable[[float, str], None]
"""Called by long operations with the completed share, 0 to 1, and a description of the work."""


def no_progress(share: float, what: str) -> None:
    """Ignore the progress."""


class _Event(BaseModel):
    # a loss can become NaN
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants")

    at: float = Field(default_factory=time.time)
    """Seconds since 1970."""


class Queued(_Event):
    """The user started training; it begins when the machine is free."""

    event: Literal["Queued"] = "Queued"


class Preparing(_Event):
    """The work before the first step; `what` is shown to the user."""

    event: Literal["Preparing"] = "Preparing"
    what: str


class Waiting(Preparing):
    """The machine is busy; `before` other operations come first."""

    event: Literal["Waiting"] = "Waiting"  # type: ignore[assignment]
    before: int


class SliceStarted(_Event):
    """A ZeroGPU slice of at most `seconds` began; it used the time up to its last event."""

    event: Literal["SliceStarted"] = "SliceStarted"
    seconds: int


class SubmittedToJob(_Event):
    """A job on Hugging Face trains the run; until its outcome arrives, nothing else may."""

    event: Literal["SubmittedToJob"] = "SubmittedToJob"
    job: str
    owner: str
    """The account on the Hub that runs the job."""
    repo: str
    """The private dataset through which the run is sent and received."""
    address: str
    """URL of the job's page."""
    flavor: str
    """The hardware."""
    timeout: float
    """Seconds after which the job is ended."""
    num_events: int
    """Number of events that were sent; those that the job adds come after them."""


class Started(_Event):
    """An attempt at training began at step `from_step` of `total_steps`."""

    event: Literal["Started"] = "Started"
    attempt: int
    from_step: int
    total_steps: int


class Step(_Event):
    """One optimizer step. A resume may repeat a step; then its last line counts."""

    event: Literal["Step"] = "Step"
    attempt: int
    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    """Tokens trained on so far in the whole run, without padding."""
    seconds: float
    """Duration of this step alone."""
    memory: int = 0
    """Peak memory of the process in bytes: of the GPU if it uses one, else of the machine."""
    metrics: dict[str, float] = {}
    """Further metrics of the task: `reward margin` and `better answer likelier`."""


class Evaluated(_Event):
    """Mean loss on the held-out rows: DPO or KTO loss, else nats per token, tag or label."""

    event: Literal["Evaluated"] = "Evaluated"
    attempt: int
    step: int
    loss: float
    metrics: dict[str, float] = {}
    """As in a Step; for labels and tags `accuracy` and `macro-F1`."""


class SampleAnswer(BaseModel):
    """What the model in training answered to one held-out row."""

    row: int
    prompt: str
    expected: str
    answer: str


class SampleAnswers(_Event):
    """Answers to the first held-out rows, always the same, at an evaluation."""

    event: Literal["SampleAnswers"] = "SampleAnswers"
    step: int
    answers: list[SampleAnswer]


class Checkpointed(_Event):
    """A complete checkpoint exists; training can resume from it."""

    event: Literal["Checkpointed"] = "Checkpointed"
    step: int


class Notice(_Event):
    """The trainer chose something, or deviated from the recipe: what and why, for the user."""

    event: Literal["Notice"] = "Notice"
    what: str
    why: str


class OutOfMemory(Notice):
    """Memory ran out; training resumes from its last checkpoint with a changed plan."""

    event: Literal["OutOfMemory"] = "OutOfMemory"  # type: ignore[assignment]


class Warned(_Event):
    """Training continues, but something is wrong. The event has the problem and the fix."""

    event: Literal["Warned"] = "Warned"
    step: int
    what: str
    advice: str


class CheckpointSelected(_Event):
    """The adapter of this step became the run's adapter, and why. The last line counts."""

    event: Literal["CheckpointSelected"] = "CheckpointSelected"
    step: int
    why: str


class Paused(_Event):
    """Training saved and ended at its deadline or on request; it can be resumed."""

    event: Literal["Paused"] = "Paused"
    step: int
    asked: bool = False
    """True if the user asked for it; False if the time was over."""
    why: str = ""
    """The interruption, as text for the user; empty if nothing went wrong."""


class Stopped(_Event):
    """Training ended early on request, with an adapter; it can still be resumed."""

    event: Literal["Stopped"] = "Stopped"
    step: int


class Finished(_Event):
    """The adapter is complete."""

    event: Literal["Finished"] = "Finished"
    step: int
    seconds: float
    """Time spent training, over all attempts."""


class Failed(_Event):
    """Training ended with an error. The traceback is in the run's worker.log."""

    event: Literal["Failed"] = "Failed"
    message: str
    code: str = "bug"
    """Code of the `UserError`, or "bug"."""
    fault: bool = False
    """True if it is a bug in the app."""
    for_memory: bool = False
    """True if memory ran out and only a shorter `max_length`, which users must allow, may help."""


Event = Annotated[
    Queued
    | Preparing
    | Waiting
    | SliceStarted
    | SubmittedToJob
    | Started
    | Step
    | Evaluated
    | SampleAnswers
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
"""The ways in which a training can end."""
Ended = Paused | Stopped | Finished
"""Those that are not an error."""
OUTCOMES = (Paused, Stopped, Finished, Failed)

_events: TypeAdapter[Event] = TypeAdapter(Event)
parse_event = _events.validate_json


def failed_event(error: BaseException) -> Failed:
    """The event for an exception that ended a training."""
    fields = error_json(error)
    return Failed(message=str(fields["error"]), code=str(fields["code"]), fault=not fields["users"])


_StepEvent = TypeVar(
    "_StepEvent", events.Step, events.Evaluated, events.SampleAnswers, events.Warned
)


def active_job(history: list[events.Event]) -> events.SubmittedToJob | None:
    """The job that trains the run now; None if there is none, or its outcome has arrived."""
    decisive = (events.SubmittedToJob, events.Queued, *events.OUTCOMES)
    last = next((event for event in reversed(history) if isinstance(event, decisive)), None)
    return last if isinstance(last, events.SubmittedToJob) else None


def steps_of(history: list[events.Event]) -> list[events.Step]:
    """The steps in order, each once: a resume that repeats a step replaces its record."""
    return sorted(_last_of_each_step(history, events.Step), key=lambda event: event.step)


def evaluations_of(history: list[events.Event]) -> list[events.Evaluated]:
    """The evaluation losses in order, each step once."""
    return sorted(_last_of_each_step(history, events.Evaluated), key=lambda event: event.step)


def sample_answers_of(history: list[events.Event]) -> list[events.SampleAnswers]:
    """The answers to held-out rows in order, each step once."""
    return sorted(_last_of_each_step(history, events.SampleAnswers), key=lambda event: event.step)


def warnings_of(history: list[events.Event]) -> list[events.Warned]:
    """The warnings, each step once."""
    return _last_of_each_step(history, events.Warned)


def selected_checkpoint(history: list[events.Event]) -> events.CheckpointSelected | None:
    """The checkpoint whose adapter is the run's; None without one, or if it was imported."""
    selections = (e for e in reversed(history) if isinstance(e, events.CheckpointSelected))
    return next(selections, None)


def _last_of_each_step(
    history: list[events.Event], event_type: type[_StepEvent]
) -> list[_StepEvent]:
    by_step = {event.step: event for event in history if isinstance(event, event_type)}
    return list(by_step.values())
