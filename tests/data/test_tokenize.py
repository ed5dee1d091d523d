"""Rows are rendered in child processes: the same tokens as in this one, kept by content, and no template holds anything up."""

import copy
import os
import time

import psutil
import pytest

from peft_space.data.dataset import load_dataset
from peft_space.data.tokenization.render import render
from peft_space.data.tokenization.tokenize import preview, tokenize
from peft_space.errors import UserError

NEVER_ENDS = "{% for a in range(10**5) %}{% for b in range(10**5) %}{% endfor %}{% endfor %}{{ messages[0].content }}"
TAKES_ALL_MEMORY = "{{ 'a' * 10**11 }}"
TAKES_MEMORY_BIT_BY_BIT = "{% set ns = namespace(all='aaaaaaaaaa') %}{% for i in range(60) %}{% set ns.all = ns.all ~ ns.all %}{% endfor %}{{ ns.all }}"


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


def test_the_same_rows_are_rendered_once_and_another_template_anew(tokenizer, rows, with_template):
    told = []
    for one in (tokenizer, tokenizer, with_template(tokenizer.chat_template + " ")):
        tokenize(one, rows, 30, on_progress=lambda share, what: told.append(what))
        told.append("done")
    assert told.count("Tokenized 3,000 of 3,000 rows") == 2
    first, second = told.index("done"), told.index("done", told.index("done") + 1)
    assert second == first + 1, "the second time nothing was to do"


@pytest.mark.parametrize(
    "template",
    [NEVER_ENDS, TAKES_ALL_MEMORY, TAKES_MEMORY_BIT_BY_BIT],
    ids=["time", "memory", "memory by bits"],
)
def test_a_template_that_takes_all_it_can_is_ended_and_named(with_template, rows, template):
    before = children()
    for work in (lambda one: tokenize(one, rows, 30), lambda one: preview(one, [rows[0]], 30)):
        began = time.monotonic()
        with pytest.raises(
            UserError,
            match=r"chat template did not finish row\w* \d+.*within \d seconds, or took too much memory\. Choose",
        ):
            work(with_template(template))
        assert time.monotonic() - began < 30
    assert children() <= before, "no process is left behind"


def test_a_row_that_the_template_refuses_is_a_problem_and_the_others_are_trained(
    with_template, tokenizer, rows
):
    refusing = (
        "{% if '17?' in messages[0].content %}{{ raise_exception('I do not like 17') }}{% endif %}"
        + tokenizer.chat_template
    )
    tokens = tokenize(with_template(refusing), rows.whole(), 100)
    problems = tokens.problems()
    assert [tokens[place].row for place in problems] == [
        number for number in range(1, 3_001) if str(number - 1).endswith("17")
    ]
    assert set(problems.values()) <= {
        f"Row {tokens[place].row}: the model's chat template refuses it (I do not like 17). Remove the row, or choose another base model."
        for place in problems
    }
    assert sum(bool(one.num_trained) for one in tokens) == 3_000 - len(problems)
    [drawn] = preview(with_template(refusing), [rows.whole()[17]], 100)
    assert "I do not like 17" in drawn["problem"]


def test_whoever_stops_listening_ends_the_work(tokenizer, rows):
    class Cancelled(Exception):
        """The visitor pressed Cancel."""

    def on_progress(share, what):
        raise Cancelled

    before = children()
    with pytest.raises(Cancelled):
        tokenize(tokenizer, rows, 30, on_progress=on_progress)
    assert children() <= before
    home = os.environ["PEFT_SPACE_HOME"]
    assert os.listdir(f"{home}/cache/tokens") == [], "nothing half made is left"


def test_a_tokenizer_without_an_end_of_text_is_refused_with_a_remedy(tokenizer, tmp_path):
    from peft_space.demo import MODEL_DIR
    from peft_space.models.resolve import find_base, load_tokenizer

    other = copy.deepcopy(tokenizer)
    other.eos_token = None
    other.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text((MODEL_DIR / "config.json").read_text())
    (tmp_path / "model" / "model.safetensors").write_bytes(
        (MODEL_DIR / "model.safetensors").read_bytes()
    )
    with pytest.raises(
        UserError, match=r"no end-of-text token, which is needed\. Choose another base model\."
    ):
        load_tokenizer(find_base(str(tmp_path / "model")))
