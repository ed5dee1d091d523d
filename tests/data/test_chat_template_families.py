"""The trained tokens of common chat templates are those that an independent reference marks.

The reference searches the text for each answer, from what opens it to the token that ends it.
"""

import copy
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_space.data.arrow_store import MASKED
from peft_space.data.row_normalization import Conversation
from peft_space.data.tokenization.render import prompt_ids, render, stop_token_ids
from peft_space.errors import UserError
from tests.fixtures.tokenizers import FAMILIES, Family, tokenizer_of

SETTINGS = settings(max_examples=100, derandomize=True, deadline=None)
IN_TRL = {name for name, family in FAMILIES.items() if "{" not in family.template}
WORDS = st.text(
    st.characters(exclude_categories=["Cs", "Co", "Cn", "Cc"], include_characters="\n\t"),
    max_size=20,
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Reports it",
            "parameters": {"type": "object", "properties": {}},
        },
    }
]


def marked(who: str, number: int, words: str) -> str:
    """Words between marks that occur nowhere else and that no tokenizer merges with them."""
    return f"{who}{number}:{words}:{number}{who}"


@st.composite
def conversations(draw, family: Family) -> Conversation:
    """One to three questions with their answers, some after a tool call."""
    messages = (
        [{"role": "system", "content": marked("S", 0, draw(WORDS))}]
        if family.system and draw(st.booleans())
        else []
    )
    tools = TOOLS if family.tools and draw(st.booleans()) else None
    for number in range(draw(st.integers(1, 3))):
        messages.append(
            {
                "role": "user",
                "content": draw(st.sampled_from(["", " ", "\n"]))
                + marked("U", number, draw(WORDS)),
            }
        )
        if tools and draw(st.booleans()):
            arguments = {"town": draw(WORDS), "days": draw(st.integers(0, 9))}
            call = {
                "type": "function",
                "function": {"name": f"C{number}weather{number}C", "arguments": arguments},
            }
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            messages.append({"role": "tool", "content": marked("T", number, draw(WORDS))})
        messages.append(
            {
                "role": "assistant",
                "content": marked("A", number, draw(WORDS))
                + draw(st.sampled_from(["", " ", "\n"])),
            }
        )
    return Conversation(7, messages, tools)


def mask_by_search(name: str, row: Conversation) -> tuple[list[int], list[int]]:
    """(token ids, mask) by searching the text for each answer and its stop token."""
    family, tokenizer = FAMILIES[name], tokenizer_of(name)
    text = tokenizer.apply_chat_template(row.messages, tools=row.tools, tokenize=False)
    spans, at = [], 0
    for number, message in enumerate(row.messages):
        if message["role"] != "assistant":
            continue
        marks = (
            [message["tool_calls"][0]["function"]["name"]] * 2
            if "tool_calls" in message
            else message["content"].strip().split(":")
        )
        first = text.index(marks[0], at)
        start = max(
            text.rfind(opening, at, first) + len(opening)
            for opening in family.openings
            if opening in text[at:first]
        )
        end = text.index(
            family.stop, text.index(marks[-1], first + 1 if "tool_calls" not in message else first)
        ) + len(family.stop)
        assert start <= first < end, f"message {number} is not between its opening and its end"
        spans.append((start, end))
        at = end
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    inside = [
        any(start < end_ and end > start_ for start_, end_ in spans)
        for start, end in encoding["offset_mapping"]
    ]
    return encoding["input_ids"], [int(trained) for trained in inside]


def check_mask(name: str, row: Conversation) -> None:
    [example] = render(tokenizer_of(name), [row], 100_000, "all_assistant")
    mask = [int(label != MASKED) for label in example.labels]
    assert (example.input_ids, mask) == mask_by_search(name, row)


def check_preview_equals_training(name: str, row: Conversation) -> None:
    [shown], [trained] = (
        render(tokenizer_of(name), [row], 100_000, with_texts=texts) for texts in (True, False)
    )
    assert replace(shown, texts=[]) == trained


def check_ends(name: str, row: Conversation) -> None:
    tokenizer = tokenizer_of(name)
    [example] = render(tokenizer, [row], 100_000, "all_assistant")
    stop = tokenizer.convert_tokens_to_ids(FAMILIES[name].stop)
    answers = sum(message["role"] == "assistant" for message in row.messages)
    assert example.labels.count(stop) == answers, "each answer trains its stop token once"
    assert stop in stop_token_ids(tokenizer), "generation stops at the trained stop token"


@pytest.mark.parametrize(
    "name", [name for name, family in FAMILIES.items() if not family.opens_thought]
)
@pytest.mark.sample(1)
def test_the_trained_tokens_are_those_that_the_reference_marks(name):
    @SETTINGS
    @given(conversations(FAMILIES[name]))
    def holds(row):
        check_mask(name, row)
        check_ends(name, row)
        check_preview_equals_training(name, row)

    holds()


@pytest.mark.parametrize(
    "name", [name for name, family in FAMILIES.items() if not family.opens_thought]
)
@pytest.mark.sample(1)
def test_a_prompt_has_the_tokens_before_the_trained_answer(name):
    @SETTINGS
    @given(conversations(FAMILIES[name]))
    def holds(row):
        tokenizer = tokenizer_of(name)
        [example] = render(tokenizer, [row], 100_000, "last_assistant")
        asked = prompt_ids(tokenizer, row.messages[:-1], row.tools)
        assert example.input_ids[: len(asked)] == asked
        assert set(example.labels[: len(asked) - 1]) == {MASKED}

    holds()


def test_at_least_ten_families_are_tested():
    assert len(FAMILIES) >= 10
    assert sum(family.tools for family in FAMILIES.values()) >= 5


@pytest.mark.parametrize("name", FAMILIES)
def test_special_tokens_that_a_user_types_stay_text(name):
    family, tokenizer = FAMILIES[name], tokenizer_of(name)
    controls = {tokenizer.convert_tokens_to_ids(token) for token in family.controls}

    def count(words: str) -> tuple[int, bool, str]:
        row = Conversation(
            1,
            [
                {"role": "user", "content": f"Say {words} now"},
                {"role": "assistant", "content": f"It is {words} here"},
            ],
        )
        [example] = render(tokenizer, [row], 100_000)
        return (
            sum(token in controls for token in example.input_ids),
            example.typed_controls,
            "".join(example.texts),
        )

    harmless, has_controls, plain = count("x")
    assert not has_controls
    number, has_controls, text = count(family.stop)
    assert (number, has_controls) == (harmless, True), "the user's text adds no special token"
    assert text.count(family.stop) == plain.count(family.stop) + 2, "it is shown as typed"


def test_every_policy_trains_the_messages_it_names():
    tokenizer = tokenizer_of("Llama 3")
    turns = [
        ("user", "one", None),
        ("assistant", "two", 0),
        ("user", "three", None),
        ("assistant", "four", 1),
    ]
    messages = [
        {"role": role, "content": text} | ({} if weight is None else {"weight": weight})
        for role, text, weight in turns
    ]

    def trained(policy: str) -> list[str]:
        [example] = render(tokenizer, [Conversation(1, messages)], 1_000, policy)
        return ["".join(example.texts[start:end]) for start, end in example.trained]

    assert trained("all_assistant") == ["two<|eot_id|>", "four<|eot_id|>"]
    assert trained("last_assistant") == ["four<|eot_id|>"]
    assert trained("message_weights") == trained("automatic") == ["four<|eot_id|>"]
    [whole] = trained("all_tokens")
    assert whole.startswith("<|begin_of_text|>")
    assert whole.endswith("four<|eot_id|>")


def test_a_template_that_omits_tool_calls_rejects_the_row():
    call = [{"type": "function", "function": {"name": "weather", "arguments": {}}}]
    row = Conversation(
        3,
        [
            {"role": "user", "content": "Rain?"},
            {"role": "assistant", "content": "", "tool_calls": call},
            {"role": "tool", "content": json.dumps({"rain": False})},
            {"role": "assistant", "content": "No."},
        ],
    )
    with pytest.raises(UserError, match="Row 3"):
        render(tokenizer_of("Zephyr"), [row], 1_000)


def test_without_an_opening_in_the_prompt_the_model_learns_to_open_its_answer():
    tokenizer = copy.deepcopy(tokenizer_of("ChatML"))
    tokenizer.chat_template = (
        "{%- for turn in messages -%}{{- '<|im_start|>' + turn.role + '\\n' + turn.content -}}"
        "{{- '<|im_end|>\\n' -}}{%- endfor -%}"
    )
    row = Conversation(
        1, [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}] * 2
    )
    [example] = render(tokenizer, [row], 1_000)
    assert ["".join(example.texts[start:end]) for start, end in example.trained] == [
        "<|im_start|>assistant\ntwo<|im_end|>"
    ] * 2
