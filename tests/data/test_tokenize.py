"""Child processes tokenize rows, the result is cached, and a hostile template is stopped."""

import copy
import os
import re
import time

import psutil
import pytest
from tokenizers.processors import TemplateProcessing

from peft_space.data.arrow_store import MASKED
from peft_space.data.dataset import load_dataset
from peft_space.data.tokenization.render import render
from peft_space.data.tokenization.tokenize import preview, tokenize
from peft_space.errors import UserError

NEVER_ENDS = (
    "{% for a in range(10**5) %}{% for b in range(10**5) %}{% endfor %}{% endfor %}"
    "{{ messages[0].content }}"
)
TAKES_ALL_MEMORY = "{{ 'a' * 10**11 }}"
TAKES_MEMORY_BIT_BY_BIT = (
    "{% set ns = namespace(all='aaaaaaaaaa') %}"
    "{% for i in range(60) %}{% set ns.all = ns.all ~ ns.all %}{% endfor %}{{ ns.all }}"
)


@pytest.fixture
def with_template(tokenizer):
    """The built-in model's tokenizer with another chat template."""

    def make(template):
        other = copy.deepcopy(tokenizer)
        other.chat_template = template
        return other

    return make


@pytest.fixture
def rows(write):
    lines = [{"prompt": f"Question {i}?", "completion": f"Answer {i}."} for i in range(3_000)]
    return load_dataset(write("rows.jsonl", lines), 0.1, 0).train


def children():
    return {
        child.pid
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE
    }


def test_several_processes_give_the_tokens_of_one(tokenizer, rows):
    tokens = tokenize(tokenizer, rows, 30)
    assert len(tokens) == len(rows) == 2_700
    assert list(tokens) == render(tokenizer, list(rows), 30, with_texts=False)


def test_rows_are_tokenized_once_for_each_template(tokenizer, rows, with_template):
    messages = []
    for one in (tokenizer, tokenizer, with_template(tokenizer.chat_template + " ")):
        tokenize(one, rows, 30, on_progress=lambda share, what: messages.append(what))
        messages.append("done")
    assert messages.count("Tokenized 3,000 of 3,000 rows") == 2
    first, second = messages.index("done"), messages.index("done", messages.index("done") + 1)
    assert second == first + 1, "the second call tokenizes nothing"


@pytest.mark.parametrize(
    "template",
    [NEVER_ENDS, TAKES_ALL_MEMORY, TAKES_MEMORY_BIT_BY_BIT],
    ids=["time", "memory", "memory by bits"],
)
@pytest.mark.slow
def test_a_template_that_exceeds_its_limits_is_stopped(with_template, rows, template):
    before = children()
    for work in (lambda one: tokenize(one, rows, 30), lambda one: preview(one, [rows[0]], 30)):
        began = time.monotonic()
        with pytest.raises(UserError) as error:
            work(with_template(template))
        assert error.value.code == "data.template_timeout"
        assert re.search(r"rows? \d+.*\d seconds", str(error.value))
        assert time.monotonic() - began < 30
    assert children() <= before, "a child process is left"


@pytest.mark.slow
def test_a_row_that_the_template_rejects_is_a_problem_and_others_are_trained(
    with_template, tokenizer, rows
):
    check = "{% if '17?' in messages[0].content %}{{ raise_exception('not 17') }}{% endif %}"
    rejecting = with_template(check + tokenizer.chat_template)
    tokens = tokenize(rejecting, rows.whole(), 100)
    problems = tokens.problems()
    assert [tokens[place].row for place in problems] == [
        number for number in range(1, 3_001) if str(number - 1).endswith("17")
    ]
    for position, problem in problems.items():
        assert f"Row {tokens[position].row}:" in problem
        assert "not 17" in problem
    assert sum(bool(example.num_trained) for example in tokens) == 3_000 - len(problems)
    [shown] = preview(rejecting, [rows.whole()[17]], 100)
    assert "not 17" in shown["problem"]


@pytest.mark.slow
def test_an_error_of_the_progress_callback_stops_the_children(tokenizer, rows):
    class Cancelled(Exception):
        """The visitor pressed Cancel."""

    def on_progress(share, what):
        raise Cancelled

    before = children()
    with pytest.raises(Cancelled):
        tokenize(tokenizer, rows, 30, on_progress=on_progress)
    assert children() <= before
    home = os.environ["PEFT_SPACE_HOME"]
    assert os.listdir(f"{home}/cache/tokens") == [], "an incomplete entry is left"


def test_a_tokenizer_without_an_end_of_text_token_is_rejected(tokenizer, tmp_path):
    from peft_space.demo import MODEL_DIR
    from peft_space.models.resolve import find_base, load_tokenizer

    other = copy.deepcopy(tokenizer)
    other.eos_token = None
    other.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text((MODEL_DIR / "config.json").read_text())
    (tmp_path / "model" / "model.safetensors").write_bytes(
        (MODEL_DIR / "model.safetensors").read_bytes()
    )
    base = find_base(str(tmp_path / "model"))
    with pytest.raises(UserError) as error:
        load_tokenizer(base)
    assert "end-of-text" in str(error.value)


@pytest.mark.parametrize("max_length", [16, 40, 64, 300])
@pytest.mark.parametrize("has_bos", [False, True])
@pytest.mark.sample(2)
def test_a_long_text_is_trained_in_pieces_each_token_once(tokenizer, write, max_length, has_bos):
    tokenizer = copy.deepcopy(tokenizer)
    if has_bos:
        tokenizer.add_special_tokens({"bos_token": "<begin>"})
        begin = ("<begin>", tokenizer.bos_token_id)
        backend = tokenizer.backend_tokenizer
        backend.post_processor = TemplateProcessing(single="<begin> $A", special_tokens=[begin])
    texts = [" ".join(f"word{row}n{n}" for n in range(size)) for row, size in enumerate([3, 90, 7])]
    rows = load_dataset(write("texts.jsonl", [{"text": text} for text in texts]), 0.0, 0).train
    tokens = tokenize(tokenizer, rows, max_length)
    for one in render(tokenizer, list(rows), 100_000):
        pieces = [piece for piece in tokens if piece.row == one.row]
        assert all(len(piece.input_ids) <= max_length for piece in pieces)
        if has_bos:
            assert {piece.input_ids[0] for piece in pieces} == {tokenizer.bos_token_id}
        trained = [label for piece in pieces for label in piece.labels if label != MASKED]
        assert trained == [label for label in one.labels if label != MASKED]
    assert tokens.row_positions().tolist() == [0, 1, 2]


def test_a_part_of_the_rows_has_all_of_their_pieces(tokenizer, write):
    texts = [{"text": f"text {row} " * (1 + 40 * (row % 3))} for row in range(30)]
    data = load_dataset(write("texts.jsonl", texts), 0.3, 0)
    train, held_out = (tokenize(tokenizer, part, 32) for part in (data.train, data.held_out))
    assert not {one.row for one in train} & {one.row for one in held_out}
    assert train.row_positions().tolist() == data.train.positions.tolist()
    every = tokenize(tokenizer, data.train.whole(), 32)
    assert len(train) + len(held_out) == len(every) > 30


def test_a_row_that_is_taken_twice_has_its_pieces_twice(tokenizer, write):
    paths = [
        write(f"{name}.jsonl", [{"text": f"{name} {row} " * 40} for row in range(4)])
        for name in ("one", "two")
    ]
    data = load_dataset(paths, 0.0, 0, file_weights=[2, 1])
    train = tokenize(tokenizer, data.train, 32)
    assert train.row_positions().tolist() == data.train.positions.tolist()
    assert len(data.train) == 12
    once, first = (tokenize(tokenizer, part, 32) for part in (data.train.whole(), data.train[:4]))
    assert len(train) == len(once) + len(first)
