"""Trained tokens are those of the assistant's messages, for every chat template that TRL has.

The oracle puts unique words into each message. All that is the assistant's has to be trained, and
nothing else, or a note says what the template leaves out.
"""

import functools
import random
import re
from pathlib import Path

import pytest
import trl
from tokenizers import AddedToken
from transformers import AutoTokenizer

from peft_space.data.arrow_store import MASKED
from peft_space.data.row_normalization import Conversation
from peft_space.data.tokenization.render import prompt_ids, render
from peft_space.errors import UserError
from peft_space.models.resolve import MODEL_DIR

FOLDER = Path(trl.__file__).parent / "chat_templates"
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja") if not path.stem.endswith("_training"))
SPECIAL = re.compile(
    r"<\|[^<>|\s'\"{}]{2,40}\|>|<｜[^<>\s'\"]+?｜>|\[/?INST\]|\[gMASK\]|<sop>|</?s>"
    r"|<(?:start|end)_of_turn>|<bos>|<eos>|<\|?turn\|?>|<\|?tool(?:_call|_response)?\|?>"
    r"|<\|?channel\|?>|<\|\"\|>|<end_of_utterance>|<(?:START|END)_OF_TURN_TOKEN>"
)
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
ENDS = (
    "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<turn|>", "<|return|>", "<｜end▁of▁sentence｜>",
    "<|end|>", "<|END_OF_TURN_TOKEN|>", "<end_of_utterance>", "</s>",
)  # fmt: skip
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Reports it",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "A city"}},
                "required": ["city"],
            },
        },
    }
]
FORMS = {
    "one answer": "ua",
    "a system message": "sua",
    "two answers": "uaua",
    "three answers": "suauaua",
    "a call": "uca",
    "a call, and an answer later": "ucaua",
    "an answer, and a call later": "uaucaua",
    "two calls at once": "upa",
    "text beside a call": "uda",
    "ends on a call": "ue",
    "a thought": "ur",
    "two thoughts": "urur",
    "a call, then thoughts": "ucrur",
}
ALLOWED = {
    "data.template_rejects_row", "data.template_omits_tool_calls", "data.template_rewrites_prompt",
}  # fmt: skip
SERVED = {"one answer", "two answers"}
"""Every template takes these."""
UNSERVED = {("gemma4_v5", "text beside a call"), ("diffusion_gemma", "text beside a call")}
"""The template joins this text and the answer after the result, so no mask would be certain."""


@functools.cache
def tokenizer_of(name):
    """The tokenizer of the built-in model with a family's chat template and special tokens."""
    template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    special = sorted(set(SPECIAL.findall(template)) - set(TAGS))
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tags = [tag for tag in TAGS if tag in template]
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    end = next((end for end in ENDS if end in special), None)
    if end:
        tokenizer.add_special_tokens({"eos_token": end})
    if "bos_token" in template:
        tokenizer.add_special_tokens({"bos_token": "<bos>" if "<bos>" in special else "<|begin|>"})
    tokenizer.chat_template = template
    return tokenizer


def conversation(form, seed):
    """Messages with words that occur nowhere else."""
    draw, messages, turn, tools = random.Random(seed), [], 0, None

    def words(who, number=0):
        text = draw.choice(["alpha", "beta gamma", "delta epsilon", "x", "(1) #2", "ünï"])
        return f"{who}{turn}n{number} {text} end{turn}n{number}{who}"

    def call(number):
        function = {"name": "weather", "arguments": {"city": words("CALL", number), "days": 3}}
        return {"id": f"abcdefg{turn}{number}", "type": "function", "function": function}

    def add(role, content="", **more):
        messages.append({"role": role, "content": content, **more})

    for kind in form:
        if kind == "s":
            add("system", words("SYSTEM"))
        elif kind == "u":
            turn += 1
            add("user", words("USER"))
        elif kind == "a":
            add("assistant", words("ANSWER"))
        elif kind == "r":
            add("assistant", words("ANSWER"), reasoning_content=words("THOUGHT"))
        else:
            tools = TOOLS
            calls = [call(number) for number in range(2 if kind == "p" else 1)]
            add("assistant", words("BESIDE") if kind == "d" else "", tool_calls=calls)
            for made in [] if kind == "e" and form.endswith("e") else calls:
                add("tool", words("RESULT"), tool_call_id=made["id"], name="weather")
    return Conversation(1, messages, tools)


NAMES_IN_A_CALL = {"muse_glimmer": 2}
"""Times that a template writes the name of the function for each call, if not once."""


def parts_of(message):
    calls = [made["function"]["arguments"]["city"] for made in message.get("tool_calls", [])]
    return [part for part in (message["content"], message.get("reasoning_content"), *calls) if part]


@pytest.mark.sample(150)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_exactly_what_is_the_assistants_is_trained(name, form):
    tokenizer = tokenizer_of(name)
    for seed in range(2):
        row = conversation(FORMS[form], seed)
        try:
            [example] = render(tokenizer, [row], 100_000)
        except UserError as error:
            may_refuse = error.code in ALLOWED and form not in SERVED
            is_known = error.code != "data.template_rewrites_prompt" or (name, form) in UNSERVED
            if may_refuse and is_known:
                continue
            raise
        tokens = list(zip(example.texts, example.labels, strict=True))
        trained = "".join(text for text, label in tokens if label != MASKED)
        left_out = {note for note in example.notes if note.endswith("_left_out")}
        assert not re.findall(r"(?:SYSTEM|USER|RESULT)\d", trained)
        text = "".join(example.texts)
        ends = {example.input_ids[end - 1] for _, end in example.trained}
        assert ends <= set(tokenizer.all_special_ids), "the model learns where each answer ends"
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


@pytest.mark.sample(150)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_asked_where_training_began(name, form):
    tokenizer, row = tokenizer_of(name), conversation(FORMS[form], 0)
    try:
        [example] = render(tokenizer, [row], 100_000)
    except UserError:
        return  # the test above decides if that is right
    if example.notes & {"text_left_out", "reasoning_left_out"}:
        return  # such a template writes earlier messages otherwise once they are answered
    asked = prompt_ids(tokenizer, row.messages[:-1], row.tools)
    assert example.input_ids[: len(asked)] == asked
    assert len(asked) in [start for start, _ in example.trained]
