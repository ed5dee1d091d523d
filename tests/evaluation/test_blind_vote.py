"""A blind vote hides the sides until a vote is cast, and its result counts the votes."""

import csv
import io
import json

import pytest

from peft_space import operations
from peft_space.errors import UserError
from peft_space.evaluation import blind_vote

ANSWERS = [
    {"prompt": f"Question {number}?", "base": f"base {number}", "adapter": f"adapter {number}"}
    for number in range(40)
]


def test_the_seed_decides_the_order_and_the_sides_of_pairs(own_run):
    pairs = blind_vote.create_pairs(own_run, ANSWERS, seed=1)
    prompts = [answer["prompt"] for answer in ANSWERS]
    assert [pair["prompt"] for pair in pairs] != prompts
    assert sorted(pair["prompt"] for pair in pairs) == sorted(prompts)
    assert 10 < sum(pair["left"].startswith("adapter") for pair in pairs) < 30
    shown = {"pair", "prompt", "left", "right", "pictures"}
    assert all(set(pair) == shown for pair in pairs), "sides show"
    assert blind_vote.create_pairs(own_run, ANSWERS, seed=1) == pairs
    assert blind_vote.create_pairs(own_run, ANSWERS, seed=2) != pairs


def test_a_vote_counts_for_the_side_of_the_chosen_answer(own_run):
    equal = {"prompt": "Same?", "base": "yes ", "adapter": "yes"}
    pairs = blind_vote.create_pairs(own_run, [*ANSWERS[:10], equal], seed=0)
    assert len(pairs) == 10, "equal answers are not voted on"
    for number, pair in enumerate(pairs):
        adapter, base = ("left", "right") if "adapter" in pair["left"] else ("right", "left")
        choice = adapter if number < 6 else base if number < 8 else "same"
        blind_vote.vote(own_run, pair["pair"], choice)
        assert len(blind_vote.open_pairs(own_run)) == 9 - number
    result = operations.vote_results(str(own_run.directory))
    counts = {"adapter": 6, "base": 2, "neither": 2, "same": 1, "left_to_vote": 0}
    assert {name: result[name] for name in counts} == counts
    assert result["win_rate"] == 0.75
    assert result["interval"] == pytest.approx([0.409, 0.928], abs=1e-3)
    for figure in ("6 of 8", "75%", "41% to 93%"):
        assert figure in result["words"]
    assert [vote["winner"] for vote in result["votes"]].count("adapter") == 6
    rows = list(csv.DictReader(io.StringIO(blind_vote.as_csv(result["votes"]))))
    assert [row["prompt"] for row in rows] == [pair["prompt"] for pair in pairs]
    right = {"adapter": "base", "base": "adapter"}
    for row in rows:
        chosen = row["left"] if row["choice"] == "left" else right[row["left"]]
        assert row["winner"] in ("neither", chosen)


def test_a_vote_is_cast_once_on_an_existing_pair(own_run):
    with pytest.raises(UserError) as error:
        blind_vote.open_pairs(own_run)
    assert error.value.code == "evaluation.no_vote"
    pairs = blind_vote.create_pairs(own_run, ANSWERS, seed=0)
    blind_vote.vote(own_run, pairs[0]["pair"], "left")
    for number, choice, code in [
        (pairs[0]["pair"], "left", "evaluation.already_voted"),
        ("99", "left", "evaluation.unknown_pair"),
        (pairs[1]["pair"], "adapter", "evaluation.invalid_vote"),
    ]:
        with pytest.raises(UserError) as error:
            blind_vote.vote(own_run, number, choice)
        assert error.value.code == code


def test_a_table_of_votes_contains_no_formula(own_run):
    blind_vote.create_pairs(own_run, [{"prompt": "=1+1", "base": "@a", "adapter": "-b"}], seed=0)
    blind_vote.vote(own_run, "1", "left")
    [row] = csv.DictReader(io.StringIO(blind_vote.as_csv(blind_vote.result(own_run)["votes"])))
    assert (row["prompt"], row["base"], row["adapter"]) == ("'=1+1", "'@a", "'-b")


def test_votes_on_held_out_rows_hide_the_sides(own_run, run_command, tmp_path):
    run, reports = str(own_run.directory), []
    pairs = operations.vote_pairs(
        run, count=3, sampling={"max_new_tokens": 4}, report=reports.append
    )["pairs"]
    assert 1 <= len(pairs) <= 3
    assert all(set(report) == {"share", "what"} for report in reports), (
        "growing answers would show their sides"
    )
    left_to_vote = operations.vote(run, pairs[0]["pair"], "right")["left_to_vote"]
    assert left_to_vote == len(pairs) - 1
    table = tmp_path / "votes.csv"
    status, out, _ = run_command("blind-vote", own_run.directory, "--csv", table, "--json")
    assert (status, len(json.loads(out)["votes"])) == (0, 1)
    assert table.read_text().count("\n") >= 2
