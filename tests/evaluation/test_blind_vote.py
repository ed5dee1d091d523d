"""A blind vote tells nobody which column is which until it is cast, and its result is that of the votes."""

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


def test_pairs_are_in_random_order_and_on_random_sides_that_follow_from_the_seed(own_run):
    pairs = blind_vote.create_pairs(own_run, ANSWERS, seed=1)
    assert [pair["prompt"] for pair in pairs] != [given["prompt"] for given in ANSWERS]
    assert sorted(pair["prompt"] for pair in pairs) == sorted(given["prompt"] for given in ANSWERS)
    assert 10 < sum(pair["left"].startswith("adapter") for pair in pairs) < 30
    assert all(set(pair) == {"pair", "prompt", "left", "right"} for pair in pairs), (
        "what is which is not told"
    )
    assert blind_vote.create_pairs(own_run, ANSWERS, seed=1) == pairs
    assert blind_vote.create_pairs(own_run, ANSWERS, seed=2) != pairs


def test_a_vote_counts_for_the_column_that_was_on_its_side_and_is_kept(own_run):
    pairs = blind_vote.create_pairs(
        own_run, [*ANSWERS[:10], {"prompt": "Same?", "base": "yes ", "adapter": "yes"}], seed=0
    )
    assert len(pairs) == 10, "what is the same is not voted on"
    for number, pair in enumerate(pairs):
        side = "left" if pair["left"].startswith("adapter") else "right"
        other = "right" if side == "left" else "left"
        blind_vote.vote(
            own_run, pair["pair"], side if number < 6 else other if number < 8 else "same"
        )
        assert len(blind_vote.open_pairs(own_run)) == 9 - number
    found = operations.vote_results(str(own_run.directory))
    assert (
        found["adapter"],
        found["base"],
        found["neither"],
        found["same"],
        found["left_to_vote"],
    ) == (6, 2, 2, 1, 0)
    assert found["win_rate"] == 0.75
    assert found["interval"] == pytest.approx([0.409, 0.928], abs=1e-3)
    assert (
        "6 of 8 decided pairs: 75%, with 95 % confidence 41% to 93%. That can be chance."
        in found["words"]
    )
    assert [one["winner"] for one in found["votes"]].count("adapter") == 6
    rows = list(csv.DictReader(io.StringIO(blind_vote.as_csv(found["votes"]))))
    assert [row["prompt"] for row in rows] == [pair["prompt"] for pair in pairs]
    assert all(
        one["winner"]
        in (
            "neither",
            one["left"]
            if one["choice"] == "left"
            else {"base": "adapter", "adapter": "base"}[one["left"]],
        )
        for one in rows
    )


def test_a_vote_is_cast_once_on_a_pair_that_there_is(own_run):
    with pytest.raises(UserError, match="No vote was begun"):
        blind_vote.open_pairs(own_run)
    pairs = blind_vote.create_pairs(own_run, ANSWERS, seed=0)
    blind_vote.vote(own_run, pairs[0]["pair"], "left")
    for number, choice, said in [
        (pairs[0]["pair"], "left", "already"),
        ("99", "left", "no pair '99'"),
        (pairs[1]["pair"], "adapter", "left, right or same"),
    ]:
        with pytest.raises(UserError, match=said):
            blind_vote.vote(own_run, number, choice)


def test_a_table_of_votes_holds_no_formula(own_run):
    blind_vote.create_pairs(own_run, [{"prompt": "=1+1", "base": "@a", "adapter": "-b"}], seed=0)
    blind_vote.vote(own_run, "1", "left")
    [row] = csv.DictReader(io.StringIO(blind_vote.as_csv(blind_vote.result(own_run)["votes"])))
    assert (row["prompt"], row["base"], row["adapter"]) == ("'=1+1", "'@a", "'-b")


def test_held_out_rows_are_put_up_by_the_verbs_without_their_columns(
    own_run, run_command, tmp_path
):
    told = []
    found = operations.vote_pairs(
        str(own_run.directory), count=3, sampling={"max_new_tokens": 4}, report=told.append
    )["pairs"]
    assert 1 <= len(found) <= 3
    assert all(set(report) == {"share", "what"} for report in told), (
        "answers are not told while they grow: that would say whose they are"
    )
    assert operations.vote(str(own_run.directory), found[0]["pair"], "right") == {
        "left_to_vote": len(found) - 1
    }
    status, out, _ = run_command(
        "blind-vote", own_run.directory, "--csv", tmp_path / "votes.csv", "--json"
    )
    assert (status, len(json.loads(out)["votes"])) == (0, 1)
    assert (tmp_path / "votes.csv").read_text().count("\n") >= 2
