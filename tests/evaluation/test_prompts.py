"""Prompts are read from whatever they lie in, each as it is written."""

import json

import pytest

from peft_space.errors import UserError
from peft_space.evaluation.prompts import held_out_prompts, read_prompts, split_prompts


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("a.txt", "One?\nTwo?\n", ["One?", "Two?"]),
        ("b.txt", "One,\nlong?\n---\nTwo?\n", ["One,\nlong?", "Two?"]),
        ("c.csv", "id,Question\n1,One?\n2,\n3,Two?\n", ["One?", "Two?"]),
        ("d.jsonl", '{"anything": "One?"}\n{"anything": "Two?"}\n', ["One?", "Two?"]),
        ("e.json", json.dumps([{"text": "x", "prompt": "One?"}]), ["One?"]),
    ],
)
def test_prompts_of_a_file(write, name, content, prompts):
    assert read_prompts(write(name, content)) == prompts


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.csv",
            "one,two\n1,2\n",
            "a.csv has no column of prompts, only one, two. Name one of them prompt.",
        ),
        ("b.csv", "prompt,two\n,2\n", "There is no prompt in b.csv"),
        ("c.txt", "Hi?\n" * 1001, "c.txt has 1,001 prompts. Take 1,000 at most."),
    ],
)
def test_what_is_wrong_with_a_file_of_prompts_is_said(write, name, content, said):
    with pytest.raises(UserError) as told:
        read_prompts(write(name, content))
    assert str(told.value).startswith(said)


def test_prompts_of_a_box():
    assert split_prompts("One?\n---\n\n --- \nTwo,\nlong?") == ["One?", "Two,\nlong?"]
    assert split_prompts(" \n") == []


def test_held_out_rows_come_round_again(short_run):
    rows = held_out_prompts(short_run, 5)
    assert all(row["prompt"] and row["expected"] for row in rows)
    assert held_out_prompts(short_run, 2, start=59)[1] == rows[0]
    assert len(held_out_prompts(short_run, 1000)) == 60
