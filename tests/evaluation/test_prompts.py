"""Prompts are read verbatim from a text box, a file, or held-out rows."""

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
def test_prompts_are_read_from_a_file(write, name, content, prompts):
    assert read_prompts(write(name, content)) == prompts


@pytest.mark.parametrize(
    ("name", "content", "code", "values"),
    [
        ("a.csv", "one,two\n1,2\n", "evaluation.no_prompt_column", ["a.csv", "one, two"]),
        ("b.csv", "prompt,two\n,2\n", "evaluation.no_prompts", ["b.csv"]),
        ("c.txt", "Hi?\n" * 1001, "evaluation.too_many_prompts", ["c.txt", "1,001", "1,000"]),
    ],
)
def test_a_file_without_usable_prompts_is_rejected(write, name, content, code, values):
    with pytest.raises(UserError) as error:
        read_prompts(write(name, content))
    assert error.value.code == code
    assert all(value in str(error.value) for value in values)


def test_prompts_in_a_text_box_are_separated_by_hyphens():
    assert split_prompts("One?\n---\n\n --- \nTwo,\nlong?") == ["One?", "Two,\nlong?"]
    assert split_prompts(" \n") == []


def test_after_the_last_held_out_row_comes_the_first(short_run):
    rows = held_out_prompts(short_run, 5)
    assert all(row["prompt"] and row["expected"] for row in rows)
    assert held_out_prompts(short_run, 2, start=59)[1] == rows[0]
    assert len(held_out_prompts(short_run, 1000)) == 60
