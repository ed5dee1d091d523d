"""A blind vote between base and adapter, as a run keeps it: pairs of answers in random order and on random sides, and what was chosen.

Whoever votes is told prompts and two answers, never which column is which.
"""

import csv
import io
import json
import random
import time
from collections.abc import Sequence
from typing import Any, Literal

from peft_space.errors import UserError
from peft_space.evaluation.bootstrap import wilson
from peft_space.runs.run import Run
from peft_space.storage import atomic_io

Vote = Literal["left", "right", "same"]
VOTES: tuple[Vote, ...] = ("left", "right", "same")
_FIELDS = ("pair", "prompt", "base", "adapter", "left", "choice", "winner", "time")


def create_pairs(run: Run, answers: Sequence[dict[str, Any]], seed: int) -> list[dict[str, str]]:
    """Pairs to vote on: {pair, prompt, left, right}, from `answers` of prompt, base and adapter. Those before, and their votes, are forgotten.

    Answers that are the same are no pair. Which side is which follows from the seed, and is kept in the run alone.
    """
    drawn = random.Random(seed)
    different = [given for given in answers if given["base"].strip() != given["adapter"].strip()]
    drawn.shuffle(different)
    pairs = [
        {
            "pair": str(number),
            "prompt": given["prompt"],
            "base": given["base"],
            "adapter": given["adapter"],
            "left": drawn.choice(["base", "adapter"]),
        }
        for number, given in enumerate(different, 1)
    ]
    atomic_io.write_text(
        _path(run),
        json.dumps(
            {"same": len(answers) - len(pairs), "pairs": pairs}, ensure_ascii=False, indent=1
        )
        + "\n",
    )
    return open_pairs(run)


def open_pairs(run: Run) -> list[dict[str, str]]:
    """What is left to be voted on, blind."""
    return [
        {
            "pair": pair["pair"],
            "prompt": pair["prompt"],
            "left": pair[pair["left"]],
            "right": pair[_other(pair["left"])],
        }
        for pair in _kept(run)["pairs"]
        if "choice" not in pair
    ]


def vote(run: Run, number: str, choice: Vote) -> None:
    """Keep a vote. Raises UserError where the pair is unknown or was voted on already, or the choice is none."""
    if choice not in VOTES:
        raise UserError("todo", f"A vote cannot be {choice!r}. Choose left, right or same.")
    kept = _kept(run)
    pair = next((pair for pair in kept["pairs"] if pair["pair"] == str(number)), None)
    if pair is None:
        raise UserError("todo", f"There is no pair {number!r} to vote on. Ask for pairs first.")
    if "choice" in pair:
        raise UserError(
            "todo", f"The pair {number!r} was voted on already. Ask for new pairs to vote again."
        )
    winners = {"left": pair["left"], "right": _other(pair["left"]), "same": "neither"}
    pair |= {"choice": choice, "winner": winners[choice], "time": time.time()}
    atomic_io.write_text(_path(run), json.dumps(kept, ensure_ascii=False, indent=1) + "\n")


def result(run: Run) -> dict[str, Any]:
    """How the vote stands: wins of each, `win_rate` of the adapter among the decided with its 95 % `interval` (Wilson), and the `votes` one by one."""
    kept = _kept(run)
    votes = [
        {field: pair[field] for field in _FIELDS} for pair in kept["pairs"] if "choice" in pair
    ]
    wins = {
        column: sum(one["winner"] == column for one in votes)
        for column in ("adapter", "base", "neither")
    }
    decided = wins["adapter"] + wins["base"]
    found = {
        "adapter": wins["adapter"],
        "base": wins["base"],
        "neither": wins["neither"],
        "same": kept["same"],
        "left_to_vote": len(kept["pairs"]) - len(votes),
        "win_rate": wins["adapter"] / decided if decided else None,
        "interval": list(wilson(wins["adapter"], decided)) if decided else None,
        "votes": votes,
    }
    return found | {"words": _in_words(found)}


def _in_words(found: dict[str, Any]) -> str:
    more = (
        f" {found['same']} prompts got the same answer from both and were not voted on."
        if found["same"]
        else ""
    )
    if found["win_rate"] is None:
        return f"Nothing is decided yet.{more}"
    low, high = found["interval"]
    decided = found["adapter"] + found["base"]
    sure = "" if low > 0.5 or high < 0.5 else " That can be chance."
    return (
        f"The adapter's answer was chosen in {found['adapter']} of {decided} decided pairs: {found['win_rate']:.0%}, "
        f"with 95 % confidence {low:.0%} to {high:.0%}.{sure} {found['neither']} were called the same.{more}"
    )


def as_csv(votes: Sequence[dict[str, Any]]) -> str:
    """The votes as a table; a text that a spreadsheet would take for a formula begins with an apostrophe."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _FIELDS)
    writer.writeheader()
    writer.writerows({field: _harmless(value) for field, value in one.items()} for one in votes)
    return out.getvalue()


def _harmless(value: Any) -> Any:
    return (
        f"'{value}"
        if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
        else value
    )


def _other(column: str) -> str:
    return "adapter" if column == "base" else "base"


def _path(run: Run) -> Any:
    return run.path("votes.json")


def _kept(run: Run) -> dict[str, Any]:
    if not _path(run).is_file():
        raise UserError("todo", f"No vote was begun on the run {run.name!r}. Ask for pairs first.")
    return json.loads(_path(run).read_text(encoding="utf-8"))
