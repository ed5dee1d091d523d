"""Batches of every task."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from peft_space.data.arrow_store import MASKED, TokenizedExample
from peft_space.data.batches import collate_packed, collator_of, first_rows
from peft_space.recipe import TaskSpec

PAD = 0
TOKENIZER = SimpleNamespace(pad_token_id=PAD)
SHORT, LONG = (TokenizedExample(1, ids, [(1, len(ids))]) for ids in ([5, 6], [7, 8, 9, 10]))
ROWS = [
    dataclasses.replace(
        row, label="a", tags=["a"] * len(row.input_ids), target=row, rejected=row, good=True
    )
    for row in (LONG, SHORT, LONG, SHORT)
]
COLLATORS = {
    task: collator_of(TaskSpec(task, ("a", "b") if "classification" in task else ()), TOKENIZER)
    for task in (
        "causal-lm",
        "seq2seq-lm",
        "sequence-classification",
        "token-classification",
        "dpo",
        "kto",
    )
} | {"packed": collate_packed}


@pytest.mark.parametrize("task", COLLATORS)
@pytest.mark.parametrize("count", [1, 3])
def test_the_first_rows_of_a_batch_are_the_batch_of_the_first_rows(task, count):
    collate = COLLATORS[task]
    options = {"previous": ROWS[:1] * count} if task == "kto" else {}
    whole = collate(ROWS, previous=ROWS[:1] * 4) if task == "kto" else collate(ROWS)
    expected, cut = collate(ROWS[:count], **options), first_rows(whole, count)
    assert cut.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(torch.as_tensor(cut[name]), torch.as_tensor(value)), name


@pytest.mark.parametrize("task", COLLATORS)
def test_no_row_is_one_without_labels(task):
    blank = first_rows(COLLATORS[task](ROWS), 0)
    assert len(blank["input_ids"]) in (1, 2)
    assert (blank.get("labels", torch.tensor(MASKED)) == MASKED).all()
