"""Figures, curves and tiles of a training, made from a run's events alone: without gradio."""

import html
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from peft_space.formatting import duration, gigabytes
from peft_space.runs import events
from peft_space.runs.events import evaluations_of, sample_answers_of, steps_of
from peft_space.runs.run import Status
from peft_space.training.early_stopping import overfits_from
from peft_space.web.render.compare import cell_html, pre_html
from peft_space.web.render.overview import tiles_of
from peft_space.web.states import ACTIVE

SHOWN_SAMPLES = 3
"""The page shows the answers of this many evaluations."""
SMOOTHED_STEPS = 10
RECENT_STEPS = 20
"""Steps from which speed and remaining time are estimated."""

_WHOLE = "of the whole process, with its libraries"

History = list[events.Event]


@dataclass(frozen=True)
class Figures:
    """The latest figures of a training."""

    step: int
    total: int
    loss: float
    test_loss: float | None
    speed: float
    """Tokens per second."""
    memory: int
    elapsed: float
    seconds_left: float

    @property
    def share(self) -> float:
        """The part of the steps that is done, from 0 to 1."""
        return self.step / self.total if self.total else 0.0


def figures_of(history: History) -> Figures | None:
    """Return the latest figures; None before the first step."""
    steps = steps_of(history)
    if not steps:
        return None
    total, last, recent = _total_steps(history), steps[-1], steps[-RECENT_STEPS:]
    before = steps[-len(recent) - 1].tokens if len(steps) > len(recent) else 0
    seconds = sum(step.seconds for step in recent) or 1e-9
    evaluations = evaluations_of(history)
    return Figures(
        step=last.step,
        total=total,
        loss=last.loss,
        test_loss=min((event.loss for event in evaluations), default=None),
        speed=(last.tokens - before) / seconds,
        memory=last.memory,
        elapsed=sum(step.seconds for step in steps),
        seconds_left=max(0, total - last.step) * seconds / len(recent),
    )


def coarse_progress(history: History, status: Status) -> list[Any] | None:
    """Return [share, seconds left], rounded, so that the page is not drawn at every step.

    It is None before the first step, and after the last one.
    """
    figures = figures_of(history)
    if figures is None or status not in ACTIVE:
        return None
    left = figures.seconds_left
    return [round(figures.share, 2), 5 * round(left / 5) if left > 10 else round(left)]


def tiles_html(history: History, status: Status) -> str:
    """Return the latest figures as tiles; before the first step, the preparation as a list."""
    figures = figures_of(history)
    if figures is None:
        return checklist_html(history) if status in ACTIVE else ""
    tested = figures.test_loss is not None
    tiles = [
        ("Step", f"{figures.step} of {figures.total}", "", ""),
        _time_tile(figures, status),
        ("Training loss", f"{figures.loss:.3f}", "", ""),
        ("Test loss", _loss(figures.test_loss), "the lowest" if tested else "not yet", "test"),
        ("Tokens/s", f"{figures.speed:,.0f}", "", ""),
        ("Peak memory", gigabytes(figures.memory) if figures.memory else "–", _WHOLE, ""),
    ]
    return tiles_of(tiles)


def _time_tile(figures: Figures, status: Status) -> tuple[str, str, str, str]:
    """Return the time left; once nobody trains, the time that the training took."""
    taken = duration(figures.elapsed)
    if status in ("running", "on_job") and figures.seconds_left:
        return ("Time left", duration(figures.seconds_left), f"{taken} so far", "")
    return ("Training time", taken, "", "")


def _loss(loss: float | None) -> str:
    return "–" if loss is None else f"{loss:.4f}"


def checklist_html(history: History) -> str:
    """Return the preparation of a training as a list: what is done and what it does now."""
    started = _last_start(history)
    done = [event.what for event in history[started:] if isinstance(event, events.Preparing)]
    lines = ["Rows read", *dict.fromkeys(done)]
    items = "".join(f"<li>✓ {html.escape(line)}</li>" for line in lines[:-1])
    now = lines[-1] if done else "Starting"
    if not done:
        items = "<li>✓ Rows read</li>"
    return f'<ul class="checklist">{items}<li class="now">{html.escape(now)}…</li></ul>'


def _last_start(history: History) -> int:
    starts = [place for place, event in enumerate(history) if isinstance(event, events.Queued)]
    return starts[-1] if starts else 0


def samples_html(history: History) -> str:
    """Return what the model in training answered to held-out rows, newest first."""
    samples = sample_answers_of(history)[::-1][:SHOWN_SAMPLES]
    if not samples:
        return ""
    cards = []
    for place, first in enumerate(samples[0].answers):
        answers = [(sample.step, sample.answers[place].answer) for sample in samples]
        expected = cell_html("expected", "Expected", pre_html(first.expected))
        given = "".join(cell_html("tuned", f"Step {n}", pre_html(text)) for n, text in answers)
        prompt = f"<h4>Test row {first.row}</h4>{pre_html(first.prompt)}"
        cards.append(
            f'<article class="comparison"><div class="prompt">{prompt}</div>{expected}{given}'
            "</article>"
        )
    return f'<h3>Answers during training</h3><div class="rows">{"".join(cards)}</div>'


def log_html(history: History) -> str:
    """Return the run's events with their times, without the single steps."""
    lines = [
        f"{time.strftime('%H:%M:%S', time.localtime(event.at))}  {event.event}  {_detail(event)}"
        for event in history
        if not isinstance(event, events.Step)
    ]
    return f'<pre class="log" tabindex="0">{html.escape(chr(10).join(lines))}</pre>'


def _detail(event: events.Event) -> str:
    fields = event.model_dump(exclude={"at", "event", "attempt", "answers"})
    return ", ".join(f"{name} {value}" for name, value in fields.items() if value not in ("", {}))


def progress_html(history: History) -> str:
    """Return a progress bar of the steps."""
    total, steps = _total_steps(history), steps_of(history)
    if not total:
        return ""
    done = steps[-1].step if steps else 0
    label = f"Step {done} of {total}"
    return f'<progress class="steps" value="{done}" max="{total}" aria-label="{label}"></progress>'


def _total_steps(history: History) -> int:
    starts = (event for event in reversed(history) if isinstance(event, events.Started))
    return next((event.total_steps for event in starts), 0)


def overfitting_sentence(history: History) -> str:
    """Return from which step on the model memorizes the rows, if it does, and what to do."""
    best = overfits_from(history)
    if best is None:
        return ""
    loss = {event.step: event.loss for event in evaluations_of(history)}
    return (
        f"**Overfitting since step {best}** (red line): test loss rose from {loss[best]:.3g} "
        f"to {loss[max(loss)]:.3g} while training loss fell. Use fewer epochs or more data."
    )


def losses(history: History, log: bool = False, smooth: bool = False) -> pd.DataFrame:
    """Return the loss curves in long form: step, loss, and which rows they are of.

    Args:
        history: of the run.
        log: return the base-10 logarithm of the losses.
        smooth: average the training loss over the recent steps.

    `rows` is "training", "test" or "overfitting", a vertical line where that starts. All three
    are always present: Gradio does not draw a curve that is missing at first.
    """
    steps = steps_of(history)
    values = [step.loss for step in steps]
    if smooth:
        values = pd.Series(values, dtype=float).ewm(span=SMOOTHED_STEPS).mean().tolist()
    points = [(step.step, loss, "training") for step, loss in zip(steps, values, strict=True)]
    points += [(event.step, event.loss, "test") for event in evaluations_of(history)]
    if points and points[-1][2] == "training":
        points.append((points[0][0], math.nan, "test"))
    if points:
        finite = [loss for _, loss, _ in points if math.isfinite(loss)]
        points += _overfitting_line(overfits_from(history), finite)
    if log:
        points = [(step, _log10(loss), rows) for step, loss, rows in points]
    return pd.DataFrame(points, columns=["step", "loss", "rows"])


def _log10(loss: float) -> float:
    return math.log10(loss) if loss > 0 else math.nan


def _overfitting_line(step: int | None, values: Sequence[float]) -> list[tuple[int, float, str]]:
    ends = (min(values, default=0.0), max(values, default=0.0)) if step else (math.nan, math.nan)
    return [(step or 1, end, "overfitting") for end in ends]


def step_details(history: History) -> pd.DataFrame:
    """Return learning rate, gradient norm and tokens per second of each step."""
    steps = steps_of(history)
    tokens_before = [0, *(step.tokens for step in steps)]
    rows: list[tuple[Any, ...]] = []
    for step, before in zip(steps, tokens_before, strict=False):
        speed = (step.tokens - before) / step.seconds if step.seconds else 0.0
        rows.append((step.step, step.learning_rate, step.grad_norm, speed))
    return pd.DataFrame(rows, columns=["step", "learning rate", "gradient norm", "tokens a second"])
