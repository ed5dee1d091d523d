"""Logs of APIs, exports of other tools and forms of conversations are read as they are meant."""

import json

import pytest

from peft_space import operations
from peft_space.data.dataset import load_dataset

USER, TOLD = {"role": "user", "content": "Price?"}, {"role": "assistant", "content": "40."}
THINKING = "I look."


def loaded(write, content):
    text = content if isinstance(content, list) else json.dumps(content)
    return load_dataset(str(write("rows.json", text)), 0.0, 0)


def numbered(row, count=12):
    """Rows that differ in their question only."""
    text = json.dumps(row)
    return [json.loads(text.replace("Price?", f"Price {n}?")) for n in range(count)]


def brief(messages):
    return [
        f"{turn['role']}: "
        + (f"({turn['reasoning_content']})" if "reasoning_content" in turn else "")
        + turn["content"]
        for turn in messages
    ]


CHATS = {
    "LiteLLM": {"messages": [USER], "response": {"choices": [{"message": TOLD}]}},
    "LiteLLM as text": {
        "messages": [USER], "response": json.dumps({"choices": [{"message": TOLD}]}),
    },
    "Anthropic": {
        "messages": [USER],
        "response": {"role": "assistant", "content": [{"type": "text", "text": "40."}]},
    },
    "Langfuse": {"input": [USER], "output": TOLD},
    "LangSmith": {"inputs": {"question": "Price?"}, "outputs": {"answer": "40."}},
    "Responses": {
        "input": [USER | {"type": "message"}],
        "output": [
            {"type": "reasoning", "summary": []},
            {
                "type": "message", "role": "assistant",
                "content": [{"type": "output_text", "text": "40."}],
            },
        ],
    },
    "LangChain": {
        "messages": [{"type": "human", "content": "Price?"}, {"type": "ai", "content": "40."}]
    },
    "MultiWOZ": {
        "turns": [
            {"speaker": "USER", "utterance": "Price?"}, {"speaker": "SYSTEM", "utterance": "40."}
        ]
    },
    "pairs": {"conversation": [{"question": "Price?", "answer": "40."}]},
    "speakers in the texts": {"dialogue": ["Customer: Price?", "Agent: 40."]},
    "the dataset viewer": {"row_idx": 0, "row": {"question": "Price?", "answer": "40."}},
    "TriviaQA": {"question": "Price?", "answer": {"value": "40.", "aliases": ["forty"]}},
    "answers with the correct one": {
        "question": "Price?",
        "answers": [{"text": "No.", "correct": False}, {"text": "40.", "correct": True}],
    },
}  # fmt: skip


@pytest.mark.parametrize("form", CHATS)
def test_the_answer_is_learned_and_not_the_object_around_it(form, write):
    data = loaded(write, numbered(CHATS[form]))
    assert brief(data.train[0].messages) == ["user: Price 0?", "assistant: 40."]
    assert data.num_problems == 0


MORE = {
    "a system message in a pair": (
        {"conversation": [{"system": "Be kind.", "input": "Price?", "output": "40."}]},
        ["system: Be kind.", "user: Price 0?", "assistant: 40."],
    ),
    "a thought in a pair": (
        {"conversation": [{"human": "Price?", "assistant": "40.", "thought": THINKING}]},
        ["user: Price 0?", "assistant: (I look.)40."],
    ),
    "channels": (
        {
            "messages": [
                USER, {"role": "assistant", "channel": "analysis", "content": THINKING},
                TOLD | {"channel": "final"},
            ]
        },
        ["user: Price 0?", "assistant: (I look.)40."],
    ),
    "a history as a text": (
        {"question": "Price?", "answer": "40.", "history": "User: Hi\nBot: Hello"},
        ["user: Hi", "assistant: Hello", "user: Price 0?", "assistant: 40."],
    ),
    "a history of roles and texts": (
        {"question": "Price?", "answer": "40.", "chatHistory": [["user", "Hi"], ["bot", "Hello"]]},
        ["user: Hi", "assistant: Hello", "user: Price 0?", "assistant: 40."],
    ),
    "a question after a tool's result": (
        {
            "messages": [
                USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]},
                {"role": "tool", "content": "4"}, {"role": "user", "content": "And?"}, TOLD,
            ]
        },
        ["user: Price 0?", "assistant: ", "tool: 4", "user: And?", "assistant: 40."],
    ),
    "names in camel case": (
        {"systemPrompt": "Be kind.", "Question?": "Price?", "Answer:": "40."},
        ["system: Be kind.", "user: Price 0?", "assistant: 40."],
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", MORE)
def test_nothing_of_a_conversation_is_lost(form, write):
    row, expected = MORE[form]
    assert brief(loaded(write, numbered(row)).train[0].messages) == expected


def test_a_key_of_a_pair_that_nothing_uses_is_listed(write):
    rows = numbered({"conversation": [{"input": "Price?", "output": "40.", "rating": -1}]})
    result = operations.check(str(write("rows.json", rows)))
    assert [one["name"] for one in result["unused"]] == ["conversation: rating"]


def test_rows_with_one_message_each_are_joined_by_their_conversation(write):
    rows = [
        {"conversation_id": n, "role": role, "content": text, "lang": "en"}
        for n in range(8)
        for role, text in (("user", f"Price {n}?"), ("assistant", "40."))
    ]
    data = loaded(write, rows)
    assert len(data.train) == 8
    assert brief(data.train[3].messages) == ["user: Price 3?", "assistant: 40."]
    assert [one["name"] for one in data.unused] == ["messages: lang"]


def test_messages_of_users_alone_stay_texts_with_labels(write):
    rows = [
        {"session_id": n // 2, "sender": "user", "text": f"Text {n}", "intent": "ab"[n % 2]}
        for n in range(12)
    ]
    data = loaded(write, rows)
    assert (data.column_mapping.schema, len(data.train)) == ("text_classification", 12)


def test_only_rows_that_were_accepted_in_prodigy_are_read(write):
    decisions = ("accept", "reject", "ignore", "accept")
    rows = [{"text": f"T {n}", "label": "ab"[n % 2], "answer": decisions[n % 4]} for n in range(16)]
    data = loaded(write, rows)
    assert [row.text for row in data.train[:3]] == ["T 0", "T 3", "T 4"]


def test_spans_of_prodigy_belong_to_the_text_and_not_to_its_tokens(write):
    span = {"start": 0, "end": 4, "label": "LOC"}
    rows = [
        {"text": f"Oslo {n}", "tokens": [{"text": "Oslo", "id": 0}], "spans": [span]}
        for n in range(8)
    ]
    assert loaded(write, rows).train[0].tags == ["B-LOC", "O"]


@pytest.mark.parametrize("span", [(14, 18, "LOC"), (30, 34, "LOC"), (5, 5, "LOC")])
def test_a_span_that_cannot_be_a_tag_is_a_problem(span, write):
    spans = [[0, 18, "ORG"], list(span)]
    rows = [{"text": "University of Oslo", "entities": spans}] * 4
    rows += [{"text": "In Oslo", "entities": [[3, 7, "LOC"]]}] * 4
    data = loaded(write, rows)
    assert (data.num_problems, len(data.train)) == (4, 4)


def test_sentences_that_are_numbered_anew_in_each_document_stay_apart(write):
    rows = [
        {"doc_id": n, "sentence_id": 1, "token": token, "label": label}
        for n in range(6)
        for token, label in (("In", "O"), ("Oslo", "B-LOC"))
    ]
    data = loaded(write, rows)
    assert [row.tokens for row in data.train] == [["In", "Oslo"]] * 6


def test_a_file_of_templated_texts_is_offered_as_chats_despite_one_other_text(write):
    rows = [{"text": f"### Instruction:\nPrice {n}?\n\n### Response:\n40."} for n in range(30)]
    path = str(write("rows.json", [*rows, {"text": "Anything else"}]))
    chats, texts = operations.check(path)["question"]
    assert (chats["schema"], texts["schema"]) == ("messages", "text")
    data = load_dataset(path, 0.0, 0, column_mapping=chats)
    assert (len(data.train), data.num_problems) == (30, 1)


TEMPLATED = {
    "DeepSeek": "<｜begin▁of▁sentence｜><｜User｜>Price?<｜Assistant｜>40.<｜end▁of▁sentence｜>",
    "Phi-4": "<|im_start|>user<|im_sep|>Price?<|im_end|>"
    "<|im_start|>assistant<|im_sep|>40.<|im_end|>",
    "Granite": "<|start_of_role|>user<|end_of_role|>Price?<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>40.<|end_of_text|>",
    "Llama 4": "<|begin_of_text|><|header_start|>user<|header_end|>\n\nPrice?<|eot|>"
    "<|header_start|>assistant<|header_end|>\n\n40.<|eot|>",
}


@pytest.mark.parametrize("family", TEMPLATED)
def test_texts_of_more_chat_templates_are_offered_as_chats(family, write):
    path = str(write("rows.json", numbered({"text": TEMPLATED[family]})))
    chats, _ = operations.check(path)["question"]
    data = load_dataset(path, 0.0, 0, column_mapping=chats)
    assert [turn.strip() for turn in brief(data.train[0].messages)] == [
        "user: Price 0?", "assistant: 40.",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("cells", "answers"),
    [
        ({"choices": ["1", "2", "3", "4"], "answer": [0, 1, 2, 3]}, "A. 1|B. 2|C. 3|D. 4"),
        ({"choices": ["red", "blue", "green"], "answer": [1, 2, 3]}, "A. red|B. blue|C. green"),
        ({"answers": ["a", "b", "c"], "correct_idx": [0, 2]}, "A. a|C. c"),
        ({"answers": ["a", "b", "c", "d"], "label": [0, 3, 1]}, "A. a|D. d|B. b"),
        ({"options": ["A)21", "B)22"], "correct": ["B", "A"]}, "B. 22|A. 21"),
        ({"choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": ["B"]}, "B. y"),
    ],
)
def test_the_key_of_a_list_of_choices_names_the_right_one(cells, answers, write):
    name, keys = list(cells.items())[-1]
    rows = [{"question": f"Price {n}?", **cells, name: keys[n % len(keys)]} for n in range(12)]
    found = [row.messages[-1]["content"] for row in loaded(write, rows).train]
    assert found[: len(keys)] == answers.split("|")


def test_keys_of_choices_begin_with_one_if_none_of_many_is_zero(write):
    cells = {f"option_{mark}": mark * 2 for mark in "abcd"}
    rows = [{"question": f"Q {n}?", **cells, "answer": 1 + n % 3} for n in range(24)]
    answers = [row.messages[-1]["content"] for row in loaded(write, rows).train[:3]]
    assert answers == ["A. aa", "B. bb", "C. cc"]


def test_keys_that_are_texts_of_choices_are_not_indices(write):
    rows = [
        {"question": f"{n} + 1?", "choices": [str(n), str(n + 1)], "answer": str(n + 1)}
        for n in range(12)
    ]
    answers = [row.messages[-1]["content"] for row in loaded(write, rows).train[:2]]
    assert answers == ["B. 1", "B. 2"]


FILES = {
    "rows and other lists": {"version": "1", "authors": ["Ann"], "text": "About", "data": None},
    "the dataset viewer": {"features": [{"name": "question"}], "rows": None},
}


@pytest.mark.parametrize("form", FILES)
def test_the_rows_of_a_file_are_found_and_the_rest_is_named(form, write):
    rows = numbered({"question": "Price?", "answer": "40."})
    content = {name: rows if part is None else part for name, part in FILES[form].items()}
    data = loaded(write, content)
    assert len(data.train) == 12
    unused = [name for name, part in FILES[form].items() if part is not None]
    assert all(any(repr(name) in note for note in data.notes) for name in unused)


def test_a_table_as_pandas_splits_it_is_read(write):
    cells = [[f"Price {n}?", "40."] for n in range(6)]
    content = {"columns": ["question", "answer"], "index": list(range(6)), "data": cells}
    assert len(loaded(write, content).train) == 6


ASKED = {
    "a verdict in camel case": ({"isCorrect": [True, False]}, "unpaired_preference"),
    "a verdict with a third value": (
        {"feedback": ["positive", "negative", "neutral"]}, "unpaired_preference",
    ),
    "stars": ({"rating": ["5 stars", "1 star"]}, "unpaired_preference"),
    "contexts": ({"contexts": [["The price is in the book."], ["It is in the list."]]}, None),
    "a corrected answer": ({"corrected_answer": ["No, it is {n} now."]}, None),
    "a trajectory": ({"trajectory": [[USER, TOLD]]}, None),
}  # fmt: skip


@pytest.mark.parametrize("part", ASKED)
def test_what_says_more_about_an_answer_makes_the_app_ask(part, write):
    cells, offered = ASKED[part]
    [(name, values)] = cells.items()
    rows = [
        {"question": f"Price {n}?", "answer": f"It is {n}.", name: value}
        for n in range(24)
        for value in [values[n % len(values)]]
    ]
    for n, row in enumerate(rows):
        row[name] = json.loads(json.dumps(row[name]).replace("{n}", str(n)))
    question = operations.check(str(write("rows.json", rows)))["question"]
    schemas = {option["schema"] for option in question}
    assert schemas == {"question_answer"} | ({offered} if offered else set())
    assert name in question[0]["left_out"]


def test_each_rejected_answer_makes_a_pair(write):
    rows = [{"prompt": f"Price {n}?", "chosen": ["40."], "rejected": ["a", "b"]} for n in range(4)]
    data = loaded(write, rows)
    assert [row.rejected[0]["content"] for row in data.train] == ["a", "b"] * 4
    assert [row.row for row in data.train] == list(range(1, 9))


@pytest.mark.parametrize("labels", [("-1", "0", "1"), (-1, 1), ("-1", "1")])
def test_minus_one_is_a_label_of_a_scale(write, labels):
    rows = [{"text": f"Soup {n}", "label": labels[n % len(labels)]} for n in range(12)]
    data = loaded(write, rows)
    assert set(data.labels) == set(map(str, labels))
    assert data.column_mapping.fixes == ("minus_one",)


def test_minus_one_marks_rows_without_a_label_next_to_others(write):
    rows = [{"text": f"Soup {n}", "label": (0, 1, 2, -1)[n % 4]} for n in range(12)]
    data = loaded(write, rows)
    assert set(data.labels) == {"0", "1", "2"}
    found = {one.kind: (one.count, one.fix) for one in data.findings}
    assert found["unlabeled"] == (3, "minus_one")


FAST_TEXT = "".join(f"__label__{'ab'[n % 2]} soup {n}\n" for n in range(8))
ANKI = "".join(f"Soup {n}?\tA soup, {n}.\n" for n in range(8))


def test_labels_of_fast_text_are_labels(write):
    data = load_dataset(str(write("rows.txt", FAST_TEXT)), 0.0, 0)
    assert (data.train[0].text, data.train[0].label) == ("soup 0", "a")
    assert data.labels == {"a": 4, "b": 4}


@pytest.mark.parametrize("head", ["#separator:tab\n#html:true\n#columns:Front\tBack\n", ""])
def test_flash_cards_are_questions_and_answers(write, head):
    mapping = None if head else {
        "schema": "question_answer", "columns": {"question": "column 1", "answer": "column 2"},
    }  # fmt: skip
    data = load_dataset(str(write("rows.txt", head + ANKI)), 0.0, 0, column_mapping=mapping)
    assert len(data.train) == 8
    assert brief(data.train[0].messages) == ["user: Soup 0?", "assistant: A soup, 0."]


@pytest.mark.parametrize(
    ("labels", "count"),
    [
        (["toxic;obscene", "obscene", "toxic;insult", "insult"], 6),
        (["toxic|insult", "insult|toxic"], 12),
        (["Paris, France", "Oslo, Norway"], 0),
        (["a", "b"], 0),
    ],
)
def test_labels_that_are_several_in_one_are_found(labels, count, write):
    rows = [{"text": f"Text {n}", "label": labels[n % len(labels)]} for n in range(12)]
    found = {one.kind: one.count for one in loaded(write, rows).findings}
    assert found.get("combined", 0) == count


def test_rows_that_a_column_marks_as_test_rows_are_found(write):
    rows = numbered({"question": "Price?", "answer": "40.", "split": "train"})
    rows += numbered({"question": "Cost?", "answer": "40.", "split": "test"}, 3)
    found = {one.kind: one.count for one in loaded(write, rows).findings}
    assert found["own_split"] == 3


def test_texts_without_a_speaker_are_a_finding(write):
    found = loaded(write, [{"turns": [f"Write {n}.", f"Rewrite {n}."]} for n in range(6)]).findings
    assert {one.kind: one.count for one in found}["alternating"] == 6


def test_bad_answers_after_the_rows_that_decide_are_found(write):
    rows = numbered({"question": "Price?", "answer": "40.", "is_correct": True}, 1_100)
    rows += numbered({"question": "Cost?", "answer": "No.", "is_correct": False}, 5)
    found = {one.kind: one.count for one in loaded(write, rows).findings}
    assert found["bad_verdict"] == 5


@pytest.mark.parametrize(("weights", "asks"), [((0, 1), True), ((0.5, 2), True), ((1, 1), False)])
def test_a_weight_for_each_row_is_asked_about(weights, asks, write):
    rows = [
        {"question": f"{n}?", "answer": "40.", "weight": weights[n % len(weights)]}
        for n in range(8)
    ]
    question = operations.check(str(write("rows.json", rows))).get("question") or []
    assert [option["left_out"] for option in question] == ([["weight"]] if asks else [])


def test_messages_that_are_called_bad_are_found(write):
    rows = [{"messages": [USER, TOLD | {"feedback": ("good", "bad")[n % 2]}]} for n in range(8)]
    found = {one.kind: one.count for one in loaded(write, rows).findings}
    assert found["bad_verdict"] == 4


CONVERSATION = [USER, TOLD]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.jsonl", "\n".join([json.dumps(CONVERSATION)] * 3)),
        ("rows.json", "\n".join([json.dumps(CONVERSATION)] * 3)),
        ("rows.json", json.dumps([CONVERSATION] * 3)),
        (
            "rows.json",
            json.dumps({"conversations": [{"title": "T", "messages": CONVERSATION}] * 3}),
        ),
    ],
)
def test_lists_of_messages_are_conversations(name, text, write):
    data = load_dataset(str(write(name, text)), 0.0, 0)
    assert [brief(row.messages) for row in data.train] == [["user: Price?", "assistant: 40."]] * 3


def test_counts_are_not_verdicts(write):
    rows = [{"question": f"{n}?", "answer": "40.", "votes": n % 4} for n in range(8)]
    mapping = {"schema": "question_answer", "columns": {"question": "question", "answer": "answer"}}
    data = load_dataset(str(write("rows.json", rows)), 0.0, 0, column_mapping=mapping)
    assert "bad_verdict" not in [one.kind for one in data.findings]


def test_lines_that_repeat_the_header_are_left_out_and_told(write):
    csv = "question,answer\n" + "".join(f"{n}?,{n}.\n" for n in range(6))
    data = load_dataset(str(write("rows.csv", csv + csv)), 0.0, 0)
    assert (len(data.train), [one.row for one in data.problems]) == (12, [7])


def test_a_greeting_is_left_out_on_request(write):
    chat = {"messages": [{"role": "system", "content": "Be kind."}, TOLD, USER, TOLD]}
    rows = [*numbered(chat, 3), *numbered({"messages": [USER, TOLD]}, 3)]
    found = {one.kind: (one.count, one.fix) for one in loaded(write, rows).findings}
    assert found["greeted"] == (3, "drop_greeting")
    mapping = {"schema": "messages", "columns": {"messages": "messages"}}
    mapping |= {"fixes": ["drop_greeting"]}
    data = load_dataset(str(write("kept.json", rows)), 0.0, 0, column_mapping=mapping)
    assert [len(row.messages) for row in data.train] == [3, 3, 3, 2, 2, 2]


def test_analysis_without_an_answer_after_it_is_not_lost(write):
    analysis = {"role": "assistant", "channel": "analysis", "content": THINKING}
    rows = numbered({"messages": [USER, analysis, analysis | {"content": "More."}, TOLD]})
    assert brief(loaded(write, rows).train[0].messages)[1] == "assistant: (I look.\n\nMore.)40."
    alone = loaded(write, numbered({"messages": [USER, analysis]}))
    assert brief(alone.train[0].messages)[1] == "assistant: I look."


def test_a_channel_of_a_chat_room_is_listed(write):
    rows = numbered({"messages": [USER | {"channel": "#help"}, TOLD]})
    assert [one["name"] for one in loaded(write, rows).unused] == ["messages: channel"]


def test_accepted_answers_next_to_the_answer_are_not_choices(write):
    rows = numbered({"question": "Price?", "answers": ["40.", "forty"], "answer": "40."})
    question = operations.check(str(write("rows.json", rows)))["question"]
    assert [option["columns"]["answer"] for option in question] == ["answer", "answers"]
    assert all("choices" not in option["columns"] for option in question)


def test_cells_that_the_dataset_viewer_cut_are_listed(write):
    row = {"question": "Price?", "answer": "40."}
    data = loaded(write, numbered({"row_idx": 0, "row": row, "truncated_cells": ["answer"]}))
    assert [one["name"] for one in data.unused] == ["truncated_cells"]
