"""Trained tokens are those of the assistant's messages, for every chat template that TRL has.

The oracle puts unique words into each message. All that is the assistant's has to be trained, and
nothing else, or a note says what the template leaves out.
"""

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peft_space.data.arrow_store import MASKED
from peft_space.data.tokenization.render import prompt_ids, render
from peft_space.errors import UserError
from tests.fixtures.chat_templates import FORMS, NAMES, conversation, tokenizer_of

ALLOWED = {
    "data.template_rejects_row", "data.template_omits_tool_calls", "data.template_rewrites_prompt",
}  # fmt: skip
JOINS_TEXTS = {"gemma4_v5", "diffusion_gemma"}
"""These templates join a text beside a call and the answer after the result, so no mask would be
certain."""
ONE_ROUND_OF_TOOLS = {"deepseek_r1_distill", "deepseekv3"}
"""These templates never write the prompt after a second round of results as they write the text."""
NAMES_IN_A_CALL = {"muse_glimmer": 2}
"""Times that a template writes the name of the function for each call, if not once."""


def parts_of(message):
    calls = [made["function"]["arguments"]["city"] for made in message.get("tool_calls", [])]
    texts = (message["content"].strip(), message.get("reasoning_content"), *calls)
    return [part for part in texts if part]


@pytest.mark.sample(39)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_exactly_what_is_the_assistants_is_trained(name, form):
    check_trained_tokens(name, FORMS[form], 0)


def turns():
    """A question, and what the assistant answers, with or without calls and thoughts."""
    return st.sampled_from(["ua", "ur", "uca", "upa", "uda", "ucr", "ucca", "uta", "utr", "uw"])


@settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(
    st.sampled_from(NAMES),
    st.sampled_from(["", "s"]),
    st.lists(turns(), min_size=1, max_size=4).map("".join),
    st.integers(0, 1000),
)
@pytest.mark.slow
def test_it_is_so_in_conversations_of_any_form(name, system, form, seed):
    check_trained_tokens(name, system + form, seed)
    check_asking(name, system + form, seed)


def check_trained_tokens(name, form, seed):
    tokenizer, row = tokenizer_of(name), conversation(form, seed)
    try:
        [example] = render(tokenizer, [row], 100_000)
    except UserError as error:
        is_plain = set(form) <= {"u", "a"}
        joins_texts = name in JOINS_TEXTS and "d" in form
        has_rounds = name in ONE_ROUND_OF_TOOLS and sum(map(form.count, "cpdt")) > 1
        rewrites = error.code == "data.template_rewrites_prompt"
        if error.code not in ALLOWED or is_plain or (rewrites and not joins_texts | has_rounds):
            raise
        return
    tokens = list(zip(example.texts, example.labels, strict=True))
    trained = "".join(text for text, label in tokens if label != MASKED)
    left_out = {note for note in example.notes if note.endswith("_left_out")}
    assert not re.findall(r"(?:SYSTEM|USER|RESULT)\d", trained)
    text = "".join(example.texts)
    ends = {example.input_ids[end - 1] for _, end in example.trained}
    assert ends <= set(tokenizer.all_special_ids), "the model learns where each answer ends"
    opened, _, thought = text.rpartition("<think>")
    assert not opened or thought.count("</think>") == 1, "what opens a thought ends it once"
    num_calls = sum(len(message.get("tool_calls", [])) for message in row.messages)
    num_calls *= NAMES_IN_A_CALL.get(name, 1)
    # a template can name the function once more with its result, which is not trained
    assert trained.count("weather") == num_calls or "call_left_out" in left_out
    for message in row.messages:
        for part in parts_of(message):
            if message["role"] == "assistant" and part in text:
                assert part in trained
            elif message["role"] == "assistant" or part not in text:
                assert part in text or left_out, f"{part} is lost"


@pytest.mark.sample(32)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_asked_where_training_began(name, form):
    check_asking(name, FORMS[form], 0)


def check_asking(name, form, seed):
    tokenizer, row = tokenizer_of(name), conversation(form, seed)
    try:
        [example] = render(tokenizer, [row], 100_000)
    except UserError:
        return  # the test above decides if that is right
    if example.notes & {"text_left_out", "reasoning_left_out"}:
        return  # such a template writes earlier messages otherwise once they are answered
    asked = prompt_ids(tokenizer, row.messages[:-1], row.tools)
    assert example.input_ids[: len(asked)] == asked
    assert len(asked) in [start for start, _ in example.trained]
