"""From a file to TrainingData: what will be trained on, what is held out, and what is wrong with which row.

Knows no model; `lengths` takes a tokenizer. The kept form of the data (`TrainingData.files`) is what a run stores and reads back.
"""

import json
import random
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peft_space.data.read import Table, demo_tables, read_table
from peft_space.data.render import Example
from peft_space.data.shapes import Conversation, Problem, Reading, conversations, recognise
from peft_space.errors import UserError
from peft_space.run import Run

DEMO = "demo"
"""The name of the built-in sample data wherever a file can be named."""


@dataclass(frozen=True)
class TrainingData:
    """A file understood: `train` and `held_out` share no row and no repeated conversation; `problems` were left out."""

    source: str
    sha256: str
    num_rows: int
    reading: Reading
    columns: list[str]
    train: list[Conversation]
    held_out: list[Conversation]
    problems: list[Problem]

    def files(self) -> dict[str, str]:
        """The files that keep this data in a run: relative path -> text."""
        about = {"source": self.source, "sha256": self.sha256, "num_rows": self.num_rows, "columns": self.columns}
        about |= {"reading": asdict(self.reading), "problems": [asdict(problem) for problem in self.problems]}
        return {
            "data/about.json": json.dumps(about, ensure_ascii=False, indent=2) + "\n",
            "data/train.jsonl": _json_lines(self.train),
            "data/held_out.jsonl": _json_lines(self.held_out),
        }


def training_data(data: str | Path, held_out_share: float, seed: int, held_out: str | Path | None = None) -> TrainingData:
    """Read, recognise and split.

    Args:
        data: a file, or `demo`.
        held_out: a file of rows to score on; without one, `held_out_share` of the rows of `data` are kept from training.

    Raises UserError where nothing in the file can be trained on.
    """
    if str(data) == DEMO:
        table, held_out_table = demo_tables()
    else:
        table, held_out_table = read_table(data), read_table(held_out) if held_out else None
    reading = recognise(table)
    good, problems = conversations(table, reading)
    if not good:
        raise UserError(
            f"{table.source}: none of its {len(table.rows)} rows can be trained on; row {problems[0].row}: {problems[0].problem}. Mend the rows."
        )
    if held_out_table is None:
        train, kept = _split(good, held_out_share, seed)
    else:
        train, (kept, held_out_problems) = good, _held_out_rows(held_out_table, {json.dumps(row.messages) for row in good})
        problems = problems + held_out_problems
    return TrainingData(table.source, table.sha256, len(table.rows), reading, table.columns, train, kept, problems)


def data_of(run: Run) -> TrainingData:
    """The data that was kept in a run when it was made."""
    about = json.loads(run.path("data", "about.json").read_text(encoding="utf-8"))
    return TrainingData(
        source=about["source"],
        sha256=about["sha256"],
        num_rows=about["num_rows"],
        reading=Reading(**about["reading"]),
        columns=about["columns"],
        train=_read_back(run.path("data", "train.jsonl")),
        held_out=_read_back(run.path("data", "held_out.jsonl")),
        problems=[Problem(**problem) for problem in about["problems"]],
    )


@dataclass(frozen=True)
class Lengths:
    """Token counts of the rows: what the length limit does to them."""

    median: int
    longest: int
    num_cut: int
    """Rows with tokens beyond the limit."""
    num_untrained: int
    """Rows none of whose answer is left within the limit; they teach nothing and are left out."""
    num_trained_tokens: int
    """Tokens a loss is taken on, in one epoch."""


def lengths(examples: Sequence[Example]) -> Lengths:
    """Count the tokens of rendered rows."""
    full = [len(example.input_ids) + example.cut for example in examples]
    return Lengths(
        median=int(statistics.median(full)),
        longest=max(full),
        num_cut=sum(example.cut > 0 for example in examples),
        num_untrained=sum(example.num_trained == 0 for example in examples),
        num_trained_tokens=sum(example.num_trained for example in examples),
    )


def histogram(examples: Sequence[Example], max_length: int, most_bars: int = 30) -> tuple[int, list[dict[str, Any]]]:
    """How many rows have how many tokens: the width of a bar, and bars with `tokens` (where it begins), `rows`, and whether they are `cut` off."""
    full = [len(example.input_ids) + example.cut for example in examples]
    width = max(1, -(-max(full) // most_bars))
    counts = Counter((tokens // width * width, tokens > max_length) for tokens in full)
    return width, [{"tokens": start, "cut": cut, "rows": rows} for (start, cut), rows in sorted(counts.items())]


def _held_out_rows(table: Table, trained: set[str]) -> tuple[list[Conversation], list[Problem]]:
    good, problems = conversations(table, recognise(table))
    leaked = [row for row in good if json.dumps(row.messages) in trained]
    problems += [Problem(row.row, "the row is also trained on, so it proves nothing") for row in leaked]
    kept = [row for row in good if json.dumps(row.messages) not in trained]
    return kept, [Problem(problem.row, f"{problem.problem} (in {table.source})") for problem in problems]


def _split(rows: list[Conversation], share: float, seed: int) -> tuple[list[Conversation], list[Conversation]]:
    """Hold out `share` of the rows, equal conversations on one side, at least one row left to train on."""
    groups: dict[str, list[Conversation]] = {}
    for row in rows:
        groups.setdefault(json.dumps(row.messages), []).append(row)
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    num_held_out = min(round(len(order) * share), len(order) - 1)
    chosen = set(order[:num_held_out])
    train = [row for key, group in groups.items() if key not in chosen for row in group]
    kept = [groups[key][0] for key in groups if key in chosen]
    return sorted(train, key=lambda row: row.row), sorted(kept, key=lambda row: row.row)


def _json_lines(rows: Iterable[Conversation]) -> str:
    return "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)


def _read_back(path: Path) -> list[Conversation]:
    # not splitlines: a row's text may hold U+2028, which is a line break to that
    lines: list[dict[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return [Conversation(**line) for line in lines]
