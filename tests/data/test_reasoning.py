"""Reasoning is trained, read or left out, and switched as the model's chat template does it."""

import copy
import shutil

import pytest
from transformers import AutoTokenizer

from peft_space.data.arrow_store import MASKED
from peft_space.data.row_normalization import Conversation
from peft_space.data.tokenization.chat_template import set_thinking
from peft_space.data.tokenization.render import prompt_ids, render, without_reasoning
from peft_space.demo import MODEL_DIR
from peft_space.errors import UserError
from peft_space.models.resolve import find_base, load_tokenizer
from peft_space.planning.recommendation_facts import data_facts
from peft_space.recipe import make_recipe
from peft_space.recommend.rules import MachineFacts, ModelFacts, recommend
from peft_space.training.prepare import prepare
from tests.fixtures.chat_templates import NAMES, conversation, tokenizer_of

SWITCHED = [name for name in NAMES if set_thinking(tokenizer_of(name).chat_template, True)]

LLAMA = ModelFacts(10**9, 2048, 10**6, 4096, 32_000, 16)
CPU = MachineFacts("cpu", None)


def with_thinking(name, value):
    tokenizer = copy.deepcopy(tokenizer_of(name))
    tokenizer.chat_template = set_thinking(tokenizer.chat_template, value)
    return tokenizer


def rendered(tokenizer, row, reasoning="train"):
    [example] = render(tokenizer, [row], 5000, reasoning=reasoning)
    trained = zip(example.texts, example.labels, strict=True)
    return example, "".join(text for text, label in trained if label != MASKED)


def test_the_families_that_reason_have_a_switch():
    assert {"qwen3", "qwen3_5_think", "qwen3_6", "glm4moe", "nemotron_3_nano"} <= set(SWITCHED)


@pytest.mark.parametrize("name", NAMES)
def test_reasoning_is_trained_or_read_or_left_out(name):
    tokenizer, row = tokenizer_of(name), conversation("ur", 7)
    thought = row.messages[-1]["reasoning_content"]
    answer = row.messages[-1]["content"]
    example, trained = rendered(tokenizer, row)
    if "reasoning_left_out" in example.notes:
        return  # tests/data/test_answer_spans.py holds such templates to this finding
    assert thought in trained
    assert answer in trained
    example, trained = rendered(tokenizer, row, "read")
    assert thought in "".join(example.texts)
    assert "THOUGHT" not in trained
    assert answer in trained
    example, trained = rendered(tokenizer, row, "leave_out")
    assert "THOUGHT" not in "".join(example.texts)
    assert answer in trained
    assert "reasoning_dropped" in example.notes


@pytest.mark.parametrize("name", SWITCHED)
@pytest.mark.sample(3)
def test_without_thinking_no_answer_begins_with_an_empty_thought(name):
    tokenizer, row = with_thinking(name, False), conversation("ua", 3)
    example, trained = rendered(tokenizer, row)
    assert "think>" not in trained
    assert "empty_thought" not in example.notes
    prompt = prompt_ids(tokenizer, row.messages[:-1])
    assert example.input_ids[: len(prompt)] == prompt


@pytest.mark.parametrize("form", ["ur", "urur"])
@pytest.mark.parametrize("name", SWITCHED)
@pytest.mark.sample(3)
def test_an_answer_with_a_thought_follows_the_prompt_with_thinking(name, form):
    tokenizer, row = with_thinking(name, True), conversation(form, 3)
    example, trained = rendered(tokenizer, row)
    assert row.messages[-1]["reasoning_content"] in trained
    assert "empty_thought" not in example.notes
    prompt = prompt_ids(tokenizer, row.messages[:-1], row.tools)
    assert example.input_ids[: len(prompt)] == prompt


@pytest.mark.parametrize("name", SWITCHED)
@pytest.mark.sample(3)
def test_a_server_can_still_choose_the_other_way(name):
    tokenizer = tokenizer_of(name)
    question = [{"role": "user", "content": "Why?"}]
    variable = set_thinking(tokenizer.chat_template, True).split()[2]
    for value in (True, False):
        switched, options = with_thinking(name, not value), {variable: value}
        expected, chosen = (
            one.apply_chat_template(question, tokenize=False, add_generation_prompt=True, **options)
            for one in (tokenizer, switched)
        )
        assert chosen == expected


def test_a_template_without_the_switch_is_refused():
    with pytest.raises(UserError) as refused:
        load_tokenizer(find_base("demo"), make_recipe({"thinking": "on"}))
    assert refused.value.code == "models.no_thinking_switch"


def test_thinking_off_leaves_out_the_thoughts_of_the_rows():
    assert make_recipe({"thinking": "off"}).reasoning_of_rows == "leave_out"
    row = Conversation(1, [{"role": "assistant", "content": "a", "reasoning_content": "b"}])
    assert without_reasoning(row).messages == [{"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(("thinking", "is_advised"), [("own", True), ("on", True), ("off", False)])
@pytest.mark.sample(1)
def test_thinking_off_is_advised_for_answers_without_reasoning(
    tmp_path, write, thinking, is_advised
):
    folder = shutil.copytree(MODEL_DIR, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = tokenizer_of("qwen3").chat_template
    tokenizer.save_pretrained(folder)
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(20)]
    recipe = make_recipe({"base_model": str(folder), "thinking": thinking})
    prepared = prepare(str(write("rows.jsonl", rows)), recipe)
    facts = data_facts(prepared, find_base(str(folder)), recipe, measured=False)
    advised = {item.field for item in recommend(facts, LLAMA, CPU)}
    assert ("thinking" in advised) == is_advised
