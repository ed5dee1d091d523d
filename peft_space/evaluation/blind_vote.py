"""A blind vote between base and adapter: pairs of answers in random order and on random sides.

A voter sees prompts and two answers, but never which side an answer comes from.
"""

import csv
import io
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from peft_space.errors import UserError
from peft_space.evaluation.metrics import wilson
from peft_space.runs.run import Run
from peft_space.storage import atomic_io

Vote = Literal["left", "right", "same"]
VOTES: tuple[Vote, ...] = ("left", "right", "same")
_FIELDS = ("pair", "prompt", "base", "adapter", "left", "choice", "winner", "time")


def create_pairs(run: Run, answers: Sequence[dict[str, Any]], seed: int) -> list[dict[str, str]]:
    """Create pairs to vote on. Discards earlier pairs and their votes.

    Args:
        run: the run that stores the pairs.
        answers: prompt, base and adapter. Equal answers make no pair.
        seed: decides the order and the sides.

    Returns:
        pair, prompt, left and right of each pair.
    """
    rng = random.Random(seed)
    different = [
        answer for answer in answers if answer["base"].strip() != answer["adapter"].strip()
    ]
    rng.shuffle(different)
    pairs = [
        {"pair": str(number)}
        | {field: answer[field] for field in ("prompt", "base", "adapter")}
        | {"pictures": answer.get("pictures", [])}
        | {"left": rng.choice(["base", "adapter"])}
        for number, answer in enumerate(different, 1)
    ]
    _write(run, {"same": len(answers) - len(pairs), "pairs": pairs})
    return open_pairs(run)


def open_pairs(run: Run) -> list[dict[str, Any]]:
    """The pairs without a vote: pair, prompt, left and right, and pictures as data URIs."""
    return [
        {
            "pair": pair["pair"],
            "prompt": pair["prompt"],
            "left": pair[pair["left"]],
            "right": pair[_other_side(pair["left"])],
            "pictures": pair.get("pictures", []),
        }
        for pair in _read(run)["pairs"]
        if "choice" not in pair
    ]


def vote(run: Run, number: str, choice: Vote) -> None:
    """Store a vote.

    Raises:
        UserError: the pair is unknown or has a vote already, or the choice is unknown.
    """
    if choice not in VOTES:
        raise UserError(
            "evaluation.invalid_vote", f"A vote cannot be {choice!r}. Choose left, right or same."
        )
    stored = _read(run)
    pair = next((pair for pair in stored["pairs"] if pair["pair"] == str(number)), None)
    if pair is None:
        raise UserError(
            "evaluation.unknown_pair",
            f"There is no pair {number!r} to vote on. Create new pairs first.",
        )
    if "choice" in pair:
        raise UserError(
            "evaluation.already_voted",
            f"The pair {number!r} has a vote already. Create new pairs to vote again.",
        )
    winners = {"left": pair["left"], "right": _other_side(pair["left"]), "same": "neither"}
    pair |= {"choice": choice, "winner": winners[choice], "time": time.time()}
    _write(run, stored)


def result(run: Run) -> dict[str, Any]:
    """The result of the vote so far.

    Returns:
        Wins of `adapter`, `base` and `neither`, a summary in `words`, and all `votes`. `same`
        counts the prompts with equal answers, and `left_to_vote` the open pairs. `win_rate` is the
        adapter's among the decided pairs, with its 95 % `interval` (Wilson).
    """
    stored = _read(run)
    votes = [
        {field: pair[field] for field in _FIELDS} for pair in stored["pairs"] if "choice" in pair
    ]
    winners = [vote["winner"] for vote in votes]
    wins = {side: winners.count(side) for side in ("adapter", "base", "neither")}
    decided = wins["adapter"] + wins["base"]
    summary = {
        **wins,
        "same": stored["same"],
        "left_to_vote": len(stored["pairs"]) - len(votes),
        "win_rate": wins["adapter"] / decided if decided else None,
        "interval": list(wilson(wins["adapter"], decided)) if decided else None,
        "votes": votes,
    }
    return summary | {"words": _in_words(summary)}


def _in_words(summary: dict[str, Any]) -> str:
    same = ""
    if summary["same"]:
        same = f" {summary['same']} prompts got equal answers and were not voted on."
    if summary["win_rate"] is None:
        return f"No pair is decided yet.{same}"
    low, high = summary["interval"]
    decided = summary["adapter"] + summary["base"]
    chance = "" if low > 0.5 or high < 0.5 else " That can be chance."
    return (
        f"The adapter's answer was chosen in {summary['adapter']} of {decided} decided pairs: "
        f"{summary['win_rate']:.0%}, with 95 % confidence {low:.0%} to {high:.0%}.{chance} "
        f"{summary['neither']} pairs were called the same.{same}"
    )


def as_csv(votes: Sequence[dict[str, Any]]) -> str:
    """The votes as a table.

    A text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, _FIELDS)
    writer.writeheader()
    writer.writerows({field: _escape(value) for field, value in vote.items()} for vote in votes)
    return out.getvalue()


def _escape(value: Any) -> Any:
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if is_formula else value


def _other_side(side: str) -> str:
    return "adapter" if side == "base" else "base"


def _path(run: Run) -> Path:
    return run.path("votes.json")


def _write(run: Run, stored: dict[str, Any]) -> None:
    atomic_io.write_text(_path(run), json.dumps(stored, ensure_ascii=False, indent=1) + "\n")


def _read(run: Run) -> dict[str, Any]:
    if not _path(run).is_file():
        raise UserError(
            "evaluation.no_vote", f"The run {run.name!r} has no vote yet. Create pairs first."
        )
    return json.loads(_path(run).read_text(encoding="utf-8"))
