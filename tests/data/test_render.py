"""Answers and the token that ends each are trained; prompts have the same tokens as in training."""

import random

import pytest

from peft_space.data.arrow_store import MASKED
from peft_space.data.dataset import load_dataset
from peft_space.data.row_normalization import Conversation
from peft_space.data.tokenization.chat_template import TEMPLATES
from peft_space.data.tokenization.render import prompt_ids, render, stop_token_ids
from peft_space.errors import UserError

TURNS = [
    {"role": "system", "content": "You are the support desk."},
    {"role": "user", "content": "Hi. The red lamp is broken."},
    {"role": "assistant", "content": "I am sorry. What is your name?"},
    {"role": "user", "content": "Mira."},
    {"role": "assistant", "content": "Thank you, Mira."},
]
CHATML = (
    "{% for message in messages %}{{ '<|user|>' + message.role + '\\n' + message.content"
    " + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|user|>assistant\\n' }}{% endif %}"
)


@pytest.fixture(params=["its own", "chatml-like", *TEMPLATES])
def any_tokenizer(request, tokenizer):
    own = tokenizer.chat_template
    tokenizer.chat_template = ({"its own": own, "chatml-like": CHATML} | TEMPLATES)[request.param]
    yield tokenizer
    tokenizer.chat_template = own


def trained_text(tokenizer, example):
    return tokenizer.decode([label for label in example.labels if label != MASKED])


def test_only_the_answers_and_their_ends_are_trained(any_tokenizer):
    [example] = render(any_tokenizer, [Conversation(1, TURNS)], 10_000)
    end = any_tokenizer.decode(stop_token_ids(any_tokenizer)[:1])
    answers = [part.strip() for part in trained_text(any_tokenizer, example).split(end)]
    assert answers == ["I am sorry. What is your name?", "Thank you, Mira.", ""]


def test_labels_are_the_ids_or_masked(any_tokenizer):
    [example] = render(any_tokenizer, [Conversation(1, TURNS)], 10_000)
    assert len(example.labels) == len(example.input_ids) == len(example.texts)
    assert all(
        label in (token, MASKED)
        for token, label in zip(example.input_ids, example.labels, strict=True)
    )


def test_the_prompt_has_the_tokens_before_the_trained_answer(any_tokenizer):
    [example] = render(any_tokenizer, [Conversation(1, TURNS)], 10_000)
    prompt = prompt_ids(any_tokenizer, TURNS[:-1])
    assert example.input_ids[: len(prompt)] == prompt
    first_of_last_answer = len(prompt)
    assert example.labels[first_of_last_answer] == example.input_ids[first_of_last_answer]
    assert example.labels[first_of_last_answer - 1] == MASKED


def test_the_mask_equals_the_templates_own_generation_markers(tokenizer):
    rows = load_dataset("demo", 0.1, 0).train
    for row, example in zip(rows, render(tokenizer, rows, 10_000), strict=True):
        reference = tokenizer.apply_chat_template(
            row.messages, return_dict=True, return_assistant_tokens_mask=True
        )
        assert reference["input_ids"] == example.input_ids
        assert [int(label != MASKED) for label in example.labels] == reference["assistant_masks"]


@pytest.mark.sample(3)
def test_generated_conversations_train_their_answers_and_nothing_else(any_tokenizer):
    rng = random.Random(7)
    words = [
        "Mira",
        "Tom",
        "lamp",
        "kettle",
        "red",
        "blue",
        "é",
        "ß",
        "猫",
        "42",
        "…",
        "'",
        '"',
        "<b>",
        "\n",
    ]
    end = any_tokenizer.decode(stop_token_ids(any_tokenizer)[:1])
    for number in range(100):
        turns = [
            {
                "role": role,
                "content": " ".join(rng.choices(words, k=rng.randint(1, 12))).strip() or "x",
            }
            for role in ("user", "assistant") * rng.randint(1, 3)
        ]
        [example] = render(any_tokenizer, [Conversation(number, turns)], 10_000)
        answers = [part.strip() for part in trained_text(any_tokenizer, example).split(end)]
        assert answers == [
            *(turn["content"].strip() for turn in turns if turn["role"] == "assistant"),
            "",
        ]


def test_a_long_row_is_cut_at_the_end_and_the_cut_is_counted(tokenizer):
    [whole] = render(tokenizer, [Conversation(1, TURNS)], 10_000)
    [cut] = render(tokenizer, [Conversation(1, TURNS)], 20)
    assert cut.input_ids == whole.input_ids[:20]
    assert cut.cut == len(whole.input_ids) - 20


def test_a_row_that_the_template_rejects_is_named(tokenizer):
    turns = [{"role": "tool", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(UserError) as error:
        render(tokenizer, [Conversation(5, turns)], 100)
    assert error.value.code == "data.template_rejects_row"
    assert "Row 5" in str(error.value)
