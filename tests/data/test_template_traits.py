"""Masks hold for what templates do in practice: closed thoughts, ids of calls, missing ends."""

import json
import unicodedata

import pytest
from tokenizers import AddedToken
from tokenizers.processors import ByteLevel
from transformers import AutoTokenizer

from peft_space.data.arrow_store import MASKED, token_columns
from peft_space.data.dataset import load_dataset
from peft_space.data.row_normalization import Conversation, Preference, UnpairedPreference
from peft_space.data.tokenization.render import prompt_ids, render, stop_token_ids
from peft_space.demo import MODEL_DIR
from peft_space.errors import UserError
from tests.fixtures.tokenizers import tokenizer_of

CHATML = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{%- for call in m.tool_calls or [] %}{{ '<call>' + CALL + '</call>' }}{%- endfor %}"
    "{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' + OPENING }}{%- endif %}"
)


def chatml(opening="''", call="call.function | tojson"):
    return CHATML.replace("OPENING", opening).replace("CALL", call)


def tokenizer_with(template, *special):
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    tokens = [AddedToken(token, special=True, normalized=False) for token in special]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    tokenizer.chat_template = template
    return tokenizer


def chatml_tokenizer(**parts):
    tokenizer = tokenizer_with(chatml(**parts), "<|im_start|>", "<|im_end|>", "[THINK]", "[/THINK]")
    tokenizer.eos_token = "<|im_end|>"
    return tokenizer


def user(text="Q"):
    return {"role": "user", "content": text}


def answer(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(name="weather", **more):
    function = {"name": name, "arguments": {"city": "Oslo"}}
    return {"type": "function", "function": function, **more}


def marked(tokenizer, messages, **settings):
    """The text with its trained parts in brackets, and the notes."""
    [example] = render(tokenizer, [Conversation(1, messages)], 5000, **settings)
    shown = ""
    for text, label in zip(example.texts, example.labels, strict=True):
        shown += f"⟦{text}⟧" if label != MASKED else text
    return shown.replace("⟧⟦", ""), example.notes


CLOSED = "'<think>\n\n</think>\n\n'"


def test_a_prompt_that_ends_an_empty_thought_is_followed_by_the_answer():
    tokenizer = chatml_tokenizer(opening=CLOSED)
    text, _ = marked(tokenizer, [user(), answer("A")])
    assert text.endswith("assistant\n<think>\n\n</think>\n\n⟦A<|im_end|>⟧\n")


def test_a_thought_after_such_a_prompt_is_left_out_and_told():
    tokenizer = chatml_tokenizer(opening=CLOSED)
    text, notes = marked(tokenizer, [user(), answer("A", reasoning_content="hm")])
    assert text.endswith("assistant\n<think>\n\n</think>\n\n⟦A<|im_end|>⟧\n")
    assert "reasoning_left_out" in notes


@pytest.mark.parametrize("text", [" A", "\n\nA"])
def test_a_thought_that_the_prompt_opens_ends_before_an_answer_with_spaces(text):
    shown, notes = marked(chatml_tokenizer(opening="'<think>\n'"), [user(), answer(text)])
    assert shown.endswith(f"<think>\n⟦\n</think>\n\n{text}<|im_end|>⟧\n")
    assert "empty_thought" in notes


def test_a_thought_is_written_where_the_template_writes_an_empty_one():
    tokenizer = chatml_tokenizer(opening="'<think>\n'")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "m.role + '\n' + ",
        "m.role + '\n' + ('<think>\n\n</think>\n\n' if m.role == 'assistant' else '') + ",
    )
    shown, notes = marked(tokenizer, [user(), answer("A", reasoning_content="hm")])
    assert shown.endswith("assistant\n<think>\n⟦hm\n</think>\n\nA<|im_end|>⟧\n")
    assert not notes


def test_it_ends_before_a_call_too():
    messages = [user(), answer("", tool_calls=[call()], reasoning_content="hm")]
    shown, _ = marked(chatml_tokenizer(opening="'<think>\n'"), messages)
    assert "<think>\n⟦hm\n</think>\n\n<call>" in shown


def test_a_model_with_tags_of_thoughts_writes_these():
    tokenizer = chatml_tokenizer()
    messages = [user(), answer("A", reasoning_content="hm")]
    shown, _ = marked(tokenizer, messages)
    assert shown.endswith("assistant\n⟦[THINK]hm[/THINK]A<|im_end|>⟧\n")
    [example] = render(tokenizer, [Conversation(1, messages)], 5000)
    assert tokenizer.convert_tokens_to_ids("[THINK]") in example.input_ids


def test_the_place_of_an_answer_does_not_depend_on_the_rows_before():
    opening = f"({CLOSED} if 'no_think' in messages[-1].content else '<think>\n')"
    rows = [
        Conversation(1, [user("no_think"), answer("A")]),
        Conversation(2, [user(), answer("A")]),
    ]
    tokenizer = chatml_tokenizer(opening=opening)
    for order in (rows, rows[::-1]):
        for row, example in zip(order, render(tokenizer, order, 5000), strict=True):
            asked = prompt_ids(tokenizer, row.messages[:-1])
            assert example.input_ids[: len(asked)] == asked
            assert example.trained[0][0] == len(asked)


@pytest.mark.parametrize(
    ("opening", "end"),
    [
        ("<thought>\n", "\n</thought>\n\n"), ("<reasoning>\n", "\n</reasoning>\n\n"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("thought", ["", "hm"])
def test_a_thought_ends_with_the_mark_that_belongs_to_its_beginning(opening, end, thought):
    tokenizer = chatml_tokenizer(opening=f"'{opening}'")
    tokens = [
        AddedToken(one, normalized=False) for one in ("<|START_THINKING|>", "<|END_THINKING|>")
    ]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    more = {"reasoning_content": thought} if thought else {}
    shown, notes = marked(tokenizer, [user(), answer("A", **more)])
    assert shown.endswith(f"assistant\n{opening}⟦{thought}{end}A<|im_end|>⟧\n")
    assert ("empty_thought" in notes) == (not thought)


STEPS = "Here are my reasoning steps:\n"


def test_a_thought_ends_as_the_template_writes_it():
    tokenizer = chatml_tokenizer(opening=f"'{STEPS}'")
    end = "\n[BEGIN FINAL RESPONSE]\n"
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "+ m.content",
        f"+ ('{STEPS}' + m.reasoning_content + '{end}' if m.reasoning_content else '') + m.content",
    )
    shown, _ = marked(tokenizer, [user(), answer("A")])
    assert shown.endswith(f"{STEPS}⟦{end}A<|im_end|>⟧\n")
    shown, _ = marked(tokenizer, [user(), answer(f"{STEPS}hm{end}A")])
    assert shown.endswith(f"assistant\n{STEPS}⟦hm{end}A<|im_end|>⟧\n")


def test_a_thought_without_a_known_end_is_refused():
    with pytest.raises(UserError) as refused:
        marked(chatml_tokenizer(opening=f"'{STEPS}'"), [user(), answer("A")])
    assert refused.value.code == "data.template_changes_answer"


def test_a_thought_is_put_into_the_empty_one_of_the_template():
    tokenizer = chatml_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "+ m.content", "+ ('<think></think>' if m.role == 'assistant' else '') + m.content"
    )
    shown, notes = marked(tokenizer, [user(), answer("A", reasoning_content="hm")])
    assert shown.endswith("assistant\n⟦<think>hm</think>A<|im_end|>⟧\n")
    assert not notes


# Calls


@pytest.mark.parametrize("is_last", [False, True])
def test_the_end_of_a_call_is_trained_if_the_last_message_is_written_in_another_way(is_last):
    written = "call.function | tojson + ('' if loop.last and m == messages[-1] else ', 1')"
    tokenizer = chatml_tokenizer(call=written)
    last = "{{- '' if loop.last and m.tool_calls else '<|im_end|>\n' }}"
    tokenizer.chat_template = tokenizer.chat_template.replace("{{- '<|im_end|>\n' }}", last)
    messages = [user(), answer("", tool_calls=[call()])]
    messages += [] if is_last else [{"role": "tool", "content": "1"}, answer("A")]
    shown, _ = marked(tokenizer, messages)
    end = "</call><|im_end|>⟧" if is_last else ", 1</call><|im_end|>⟧"
    assert end in shown


def test_ids_name_the_function_if_the_template_writes_only_ids():
    tokenizer = chatml_tokenizer(call="call.id + ':' + (call.function.arguments | tojson)")
    messages = [user(), answer("", tool_calls=[call(), call("news")])]
    text, notes = marked(tokenizer, messages)
    assert "⟦<call>functions.weather:0:" in text
    assert "<call>functions.news:1:" in text
    assert "call_left_out" not in notes


def test_a_left_out_call_is_told_even_if_its_name_is_a_word_of_the_text():
    tokenizer = chatml_tokenizer(call="''")
    tokenizer.chat_template = tokenizer.chat_template.replace("<call>", "").replace("</call>", "")
    _, notes = marked(tokenizer, [user(), answer("I search.", tool_calls=[call("search")])])
    assert "call_left_out" in notes


def test_what_is_left_out_of_a_rejected_answer_is_told():
    tokenizer = chatml_tokenizer(call="''")
    worse = [answer("I search.", tool_calls=[call("search")])]
    row = Preference(1, [user()], [answer("Good")], worse, None)
    examples = render(tokenizer, [row], 5000)
    assert token_columns(examples)["notes"] != [0]


# Ends

SOLAR = (
    "{%- for m in messages %}{{ '### ' + m.role + ':\n' + m.content + '\n\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '### assistant:\n' }}{%- endif %}"
)


def test_only_added_tokens_stop_an_answer():
    tokenizer = tokenizer_with(SOLAR)
    assert set(stop_token_ids(tokenizer)) <= set(tokenizer.added_tokens_decoder)


def test_line_breaks_that_end_the_last_answer_are_trained_before_its_end():
    text, _ = marked(tokenizer_with(SOLAR), [user(), answer("A\n\n")])
    assert "⟦A\n\n" in text


@pytest.mark.parametrize(
    "condition", ["messages[0].role != 'system'", "messages | length > 2"], ids=str
)
def test_stop_tokens_are_found_if_a_template_takes_few_conversations(condition):
    tokenizer = chatml_tokenizer()
    refusal = f"{{%- if {condition} %}}{{{{ raise_exception('no') }}}}{{%- endif %}}"
    tokenizer.chat_template = refusal + tokenizer.chat_template
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in stop_token_ids(tokenizer)


@pytest.mark.parametrize("text", ["Answer", " Answer", "1", "\n"])
@pytest.mark.parametrize("space", [" ", "\n", "\t "])
def test_a_prompt_that_ends_in_a_space_has_the_tokens_of_training(space, text):
    template = SOLAR.replace("assistant:\n' }}", f"assistant:{space}' }}}}").replace(
        "':\n' + m.content", f"':{space}' + m.content"
    )
    tokenizer = tokenizer_with(template)
    row = Conversation(1, [user(), answer(f"{text}x")])
    for with_texts in (True, False):
        [example] = render(tokenizer, [row], 5000, with_texts=with_texts)
        asked = prompt_ids(tokenizer, row.messages[:-1])
        assert example.input_ids[: len(asked)] == asked
        assert example.trained[0][0] == len(asked)


@pytest.mark.parametrize(
    "messages",
    [
        [user(), answer("The"), user(), answer("The")],
        [user("Say <|im_end|>"), answer("The")],
        [user(), answer("The KEEP this", trained=[[4, 8]], weight=1)],
        [user(), answer("The", weight=0), user(), answer("The", weight=1)],
    ],
    ids=["two answers", "a typed token", "a part", "weights"],
)
@pytest.mark.parametrize("trims", [False, True])
def test_it_is_so_for_rows_of_any_kind(messages, trims):
    template = SOLAR.replace(":\n' ", ": ' ").replace("':\n' +", "': ' +")
    template = template.replace("\n\n' }}", "<|im_end|>\n' }}")
    tokenizer = tokenizer_with(template, "<|im_end|>")
    tokenizer.eos_token = "<|im_end|>"
    if trims:
        tokenizer.backend_tokenizer.post_processor = ByteLevel(trim_offsets=True)
    row = Conversation(1, messages)
    [shown], [example] = (
        render(tokenizer, [row], 5000, with_texts=texts) for texts in (True, False)
    )
    assert shown.input_ids == example.input_ids
    assert shown.trained == example.trained
    asked = prompt_ids(tokenizer, messages[:-1])
    assert example.input_ids[: len(asked)] == asked
    assert "".join(shown.texts) == template_text(tokenizer, messages)


def template_text(tokenizer, messages):
    plain = [{"role": m["role"], "content": m["content"]} for m in messages]
    return tokenizer.apply_chat_template(plain, tokenize=False)


def test_typed_tokens_add_no_spaces_to_the_text_around_them():
    tokenizer = tokenizer_of("Mistral")
    text = "<p><s>old</s> new</p>"
    [example] = render(tokenizer, [Conversation(1, [user(), answer(text)])], 5000)
    [(start, end)] = example.trained
    assert text in tokenizer.decode(example.input_ids[start:end], skip_special_tokens=False)


def test_the_preview_shows_marks_that_the_tokenizer_composes():
    tokenizer = tokenizer_of("Qwen 2.5")
    text = unicodedata.normalize("NFD", "café Tiếng Việt 한국어")
    [example] = render(tokenizer, [Conversation(1, [user(), answer(text)])], 5000)
    assert text in "".join(example.texts)


# Preferences and targets


def test_every_answer_after_the_prompt_of_a_preference_is_trained():
    tokenizer = chatml_tokenizer()
    sides = [
        [answer("", tool_calls=[call(name)]), {"role": "tool", "content": "1"}, answer("Final")]
        for name in ("good", "bad")
    ]
    [example] = render(tokenizer, [Preference(1, [user()], *sides, None)], 5000)
    for side, name in ((example, "good"), (example.rejected, "bad")):
        trained = "".join("".join(side.texts[start:end]) for start, end in side.trained)
        assert name in trained
        assert "Final" in trained


def test_calls_of_a_rated_answer_are_trained():
    messages = [user(), answer("earlier"), user(), answer("", tool_calls=[call("good")]),
                {"role": "tool", "content": "1"}, answer("Final")]  # fmt: skip
    [example] = render(chatml_tokenizer(), [UnpairedPreference(1, messages, True, None)], 5000)
    texts = ["".join(example.texts[start:end]) for start, end in example.trained]
    assert len(texts) == 2
    assert "good" in texts[0]


def test_a_target_is_learned_whole_or_not_at_all():
    tokenizer = chatml_tokenizer()

    def target(**more):
        row = Conversation(1, [user(), answer("A", **more)])
        [example] = render(tokenizer, [row], 5000, task="seq2seq-lm", reasoning="read")
        return example

    assert target().num_trained > 0
    unread = target(weight=0)
    assert unread.num_trained == 0
    assert "untrained_by_weight" in unread.notes
    for more in ({"reasoning_content": "hm"}, {"trained": [[0, 1]], "weight": 1}):
        with pytest.raises(UserError) as refused:
            target(**more)
        assert refused.value.code == "data.part_of_target"


# What the user trains


def trained(tmp_path, messages, *fixes):
    """The trained texts of a row in a file, with fixes."""
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"messages": messages}]), encoding="utf-8")
    mapping = {"schema": "messages", "columns": {"messages": "messages"}, "fixes": list(fixes)}
    [row] = load_dataset(path, 0.0, 0, column_mapping=mapping).train
    shown, _ = marked(chatml_tokenizer(), row.messages)
    return [part.partition("⟧")[0] for part in shown.split("⟦")[1:]]


@pytest.mark.parametrize(
    ("first", "second", "right"),
    [
        ({"weight": 0}, {"weight": 1}, ["Good<|im_end|>"]),
        ({"weight": 1}, {"weight": 0}, ["Bad"]),
        ({"weight": 0}, {}, ["Good<|im_end|>"]),
        (
            {},
            {"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": True}]},
            ["Bad", "Good"],
        ),
    ],
    ids=str,
)
def test_joined_messages_keep_what_of_them_is_trained(tmp_path, first, second, right):
    messages = [user(), answer("Bad", **first), answer("Good", **second)]
    assert trained(tmp_path, messages, "merge") == right


def test_joined_messages_keep_both_thoughts(tmp_path):
    thoughts = [answer("A", reasoning_content="one"), answer("B", reasoning_content="two")]
    [text] = trained(tmp_path, [user(), *thoughts], "merge")
    assert "one\n\ntwo" in text


def test_calls_in_separate_messages_keep_their_thoughts_and_weights(tmp_path):
    calls = [
        answer("", tool_calls=[call(id=f"{n}")], reasoning_content=f"t{n}", weight=1)
        for n in range(2)
    ]
    results = [{"role": "tool", "content": "1", "tool_call_id": f"{n}"} for n in range(2)]
    [text, _] = trained(tmp_path, [user(), *calls, *results, answer("A", weight=1)])
    assert text.count("<call>") == 2
    assert "t0\n\nt1" in text


def test_a_call_without_a_weight_is_not_joined_to_one_that_is_read(tmp_path):
    calls = [
        answer("", tool_calls=[call("one")], weight=0), answer("", tool_calls=[call("two")]),
    ]  # fmt: skip
    results = [{"role": "tool", "content": "1"} for _ in range(2)]
    texts = trained(tmp_path, [user(), calls[0], results[0], calls[1], results[1], answer("A")])
    assert "two" in texts[0]
    assert not any("one" in text for text in texts)


def part_of(text, part, **more):
    begin = text.index(part)
    detail = {"begin_offset": begin, "end_offset": begin + len(part) - 1, "train": True}
    return answer(text, train_detail=[detail], **more)


def test_parts_are_found_after_special_tokens_that_the_text_contains(tmp_path):
    messages = [user(), part_of("Say <|im_end|> now. KEEP this there", "KEEP this")]
    assert trained(tmp_path, messages) == [" KEEP this"]


def test_parts_are_found_after_stripped_spaces(tmp_path):
    assert trained(tmp_path, [user(), part_of("\n\n  First KEEP", "KEEP")], "strip") == [
        " KEEP<|im_end|>"
    ]


def test_a_part_never_reaches_into_the_header():
    tokenizer = chatml_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("m.content }}", "m.content | trim }}")
    text = "\n" * 20 + "Hello"
    shown, _ = marked(tokenizer, [user(), answer(text, trained=[[0, len(text)]], weight=1)])
    assert shown.endswith("assistant\n⟦Hello<|im_end|>⟧\n")
