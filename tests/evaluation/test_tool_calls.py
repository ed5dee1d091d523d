"""Calls are compared by the names of their functions and their arguments."""

import shutil

import pytest
from transformers import AutoTokenizer

from peft_space.data.messages import split_thought
from peft_space.data.row_normalization import Conversation
from peft_space.data.tokenization.render import render
from peft_space.demo import MODEL_DIR
from peft_space.errors import UserError
from peft_space.evaluation.evaluate import evaluate
from peft_space.evaluation.tool_calls import are_equal_calls, call_the_same, function_names
from peft_space.models.loading import load_adapted
from peft_space.recipe import make_recipe
from peft_space.training.prepare import make_run
from peft_space.training.train import train
from tests.fixtures.chat_templates import NAMES, TOOLS, tokenizer_of


def asked_for(arguments, name="weather"):
    call = {"id": "abcdefgh1", "type": "function", "function": {"name": name}}
    call["function"]["arguments"] = arguments
    return Conversation(
        1,
        [
            {"role": "user", "content": "How is it?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ],
        TOOLS,
    )


def written(template, row):
    tokenizer = tokenizer_of(template)
    [example] = render(tokenizer, [row], 100_000)
    return split_thought(
        "".join(tokenizer.decode(example.input_ids[start:end]) for start, end in example.trained)
    )[1]


@pytest.mark.parametrize("template", NAMES)
@pytest.mark.sample(13)
def test_calls_are_equal_if_their_arguments_are(template):
    row = asked_for({"city": "Oslo", "days": 3, "units": "metric"})
    try:
        target = written(template, row)
    except UserError:
        return  # the template writes no calls, or not as the last message
    names = function_names(row)
    turned = written(template, asked_for({"units": "metric", "days": 3, "city": "Oslo"}))
    assert are_equal_calls(turned, target)
    wrong = written(template, asked_for({"city": "Rome", "days": 3, "units": "metric"}))
    assert not are_equal_calls(wrong, target)
    assert call_the_same(wrong, target, names)
    fewer = written(template, asked_for({"city": "Oslo", "days": 3}))
    assert not are_equal_calls(fewer, target)
    other = written(template, asked_for({"city": "Oslo"}, name="weather_now"))
    assert not call_the_same(other, target, names)


def test_arguments_as_a_text_are_equal_in_any_order():
    answer = '{"name": "f", "arguments": "{\\"b\\": 1, \\"a\\": [1, 2]}"}'
    target = '{"arguments": {"a": [1, 2], "b": 1}, "name": "f"}'
    assert are_equal_calls(answer, target)
    assert not are_equal_calls(answer, target.replace("2", "3"))


@pytest.mark.slow
def test_a_run_on_calls_is_scored_by_them(tmp_path, write):
    base = shutil.copytree(MODEL_DIR, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = tokenizer_of("qwen2_5").chat_template
    tokenizer.save_pretrained(base)
    messages = asked_for({"city": "Oslo"}).messages
    rows = [
        {"messages": [messages[0] | {"content": f"How is it at {hour}?"}, messages[1]]}
        for hour in range(24)
    ]
    recipe = make_recipe(
        {
            "base_model": str(base),
            "quantization": "none",
            "num_epochs": 8,
            "batch_size": 2,
            "eval_split": 0.2,
        }
    )
    run = make_run(tmp_path / "run", str(write("calls.jsonl", rows)), recipe)
    train(run)
    scores = evaluate(run, load_adapted(run))
    assert scores.base.tool_call == scores.base.tool_name == 0
    assert scores.adapter.tool_call == scores.adapter.tool_name == 1
    assert scores.adapter.exact_match is None
    assert "weather" in scores.samples[0]["expected"]
