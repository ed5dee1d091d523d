"""The scores of base and adapter on held-out rows, as a run keeps them. How they are measured is `evaluate.py`'s business."""

import json
from dataclasses import asdict, dataclass

from peft_space.run import Run


@dataclass(frozen=True)
class Scores:
    """One column on the held-out rows."""

    exact_match: float | None
    """Share of rows, 0 to 1, whose greedy answer is the row's answer, white space at the ends aside; None where rows have no answers."""
    loss: float
    """Mean over the rows' trained tokens, in nats."""
    perplexity: float
    """e to the loss."""


@dataclass(frozen=True)
class Evaluation:
    """Both columns on the same rows."""

    num_rows: int
    base: Scores
    adapter: Scores


def percent(share: float | None) -> str:
    """A share as it is shown; a dash where there is none."""
    return "–" if share is None else f"{share:.1%}"


def write_scores(run: Run, scores: Evaluation) -> None:
    """Keep what was measured last."""
    run.path("scores.json").write_text(json.dumps(asdict(scores), indent=2) + "\n")


def read_scores(run: Run) -> Evaluation | None:
    """What `evaluate` measured last on this run."""
    path = run.path("scores.json")
    if not path.is_file():
        return None
    values = json.loads(path.read_text())
    return Evaluation(values["num_rows"], Scores(**values["base"]), Scores(**values["adapter"]))
