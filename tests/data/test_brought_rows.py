"""Rows in the forms in which people store them are read as what they are."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peft_space import operations
from peft_space.data.column_mapping import ColumnMapping
from peft_space.data.messages import BadRow, parse_messages
from peft_space.data.row_normalization import normalize_record
from peft_space.data.schema_detection import detect_schema
from peft_space.errors import UserError
from tests.fixtures import tiny_models

USER = {"role": "user", "content": "Price?"}
ANSWER = {"role": "assistant", "content": "40."}
FUNCTION = {"name": "price", "arguments": {"room": "1"}}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function"}]}


def read(row):
    """The first row of twelve such rows, as it is read."""
    [mapping] = detect_schema("rows", list(row), [row] * 12)
    return mapping.schema, normalize_record(1, row, mapping)


def brief(messages):
    """role: content, or the thoughts and calls of a message in brackets."""
    return [
        f"{message['role']}: "
        + "".join(f"({message[key]})" for key in ("reasoning_content",) if key in message)
        + "".join(
            f"[{call['function']['name']} {json.dumps(call['function']['arguments'])}]"
            for call in message.get("tool_calls", [])
        )
        + message["content"]
        for message in messages
    ]


CALLED = 'assistant: [price {"room": "1"}]'
CHATS = {
    "the call is the answer": (
        [USER, {"role": "assistant", "tool_calls": [{"id": "call_1", "function": FUNCTION}]}],
        ["user: Price?", CALLED],
    ),
    "an older function_call": (
        [
            USER,
            {"role": "assistant", "content": None, "function_call": FUNCTION},
            {"role": "function", "name": "price", "content": "40"},
            ANSWER,
        ],
        ["user: Price?", CALLED, "tool: 40", "assistant: 40."],
    ),
    "parts as Anthropic writes them": (
        [
            USER,
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "price", "input": {"room": "1"}},
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "40"}],
            },
            ANSWER,
        ],
        [
            "user: Price?",
            'assistant: (I look.)[price {"room": "1"}]',
            "tool: 40",
            "assistant: 40.",
        ],
    ),
    "parts as Gemini writes them": (
        [
            {"role": "user", "parts": [{"text": "Price?"}]},
            {
                "role": "model",
                "parts": [
                    {"text": "I look.", "thought": True},
                    {"functionCall": {"name": "price", "args": {"room": "1"}}},
                ],
            },
            {
                "role": "function",
                "parts": [{"functionResponse": {"name": "price", "response": {"euros": "40"}}}],
            },
            {"role": "model", "parts": [{"text": "40."}]},
        ],
        [
            "user: Price?",
            'assistant: (I look.)[price {"room": "1"}]',
            'tool: {"euros": "40"}',
            "assistant: 40.",
        ],
    ),
    "parts as Bedrock writes them": (
        [
            {"role": "user", "content": [{"text": "Price?"}]},
            {
                "role": "assistant",
                "content": [
                    {"toolUse": {"toolUseId": "t", "name": "price", "input": {"room": "1"}}}
                ],
            },
            {
                "role": "user",
                "content": [{"toolResult": {"toolUseId": "t", "content": [{"json": {"a": "b"}}]}}],
            },
            {"role": "assistant", "content": [{"text": "40."}]},
        ],
        ["user: Price?", CALLED, 'tool: {"a": "b"}', "assistant: 40."],
    ),
    "roles as Cohere names them": (
        [{"role": "User", "message": "Price?"}, {"role": "Chatbot", "message": "40."}],
        ["user: Price?", "assistant: 40."],
    ),
    "a sender with text and parts": (
        [
            {"sender": "human", "text": "Price?", "content": [{"type": "text", "text": "Price?"}]},
            {"sender": "assistant", "text": "40.", "content": [{"type": "text", "text": "40."}]},
        ],
        ["user: Price?", "assistant: 40."],
    ),
    "pairs of a question and an answer": (
        [{"input": "Price?", "output": "40."}],
        ["user: Price?", "assistant: 40."],
    ),
    "calls in two messages": (
        [
            {"from": "human", "value": "Price?"},
            {"from": "function_call", "value": json.dumps(FUNCTION)},
            {"from": "function_call", "value": str(FUNCTION)},
            {"from": "observation", "value": "40"},
            {"from": "observation", "value": "40"},
            {"from": "gpt", "value": "40."},
        ],
        [
            "user: Price?",
            CALLED + '[price {"room": "1"}]',
            "tool: 40",
            "tool: 40",
            "assistant: 40.",
        ],
    ),
    "a call in the text": (
        [
            USER,
            {"role": "assistant", "content": "<tool_call>{}</tool_call>"},
            {"role": "tool", "content": "40"},
            ANSWER,
        ],
        ["user: Price?", "assistant: <tool_call>{}</tool_call>", "tool: 40", "assistant: 40."],
    ),
    "thoughts under a name": (
        [USER, ANSWER | {"reasoning_content": "I look."}],
        ["user: Price?", "assistant: (I look.)40."],
    ),
    "thoughts in the text": (
        [USER, ANSWER | {"content": "<think>\nI look.\n</think>\n\n40."}],
        ["user: Price?", "assistant: (I look.)40."],
    ),
    "thoughts without an opening": (
        [USER, ANSWER | {"content": "I look.\n</think>\n\n40."}],
        ["user: Price?", "assistant: (I look.)40."],
    ),
    "texts that take turns": (["Price?", "40."], ["user: Price?", "assistant: 40."]),
    "an object of lists": (
        {"role": ["user", "assistant"], "content": ["Price?", "40."]},
        ["user: Price?", "assistant: 40."],
    ),
    "a list as Python writes it": (
        str([USER, ANSWER]),
        ["user: Price?", "assistant: 40."],
    ),
    "an environment": (
        [
            USER,
            {"role": "assistant", "content": None, "function_calls": "price(1)"},
            {"role": "environment", "content": "40"},
            ANSWER,
        ],
        ["user: Price?", "assistant: price(1)", "tool: 40", "assistant: 40."],
    ),
}


@pytest.mark.parametrize("form", CHATS)
def test_messages_are_read_in_every_form(form):
    cell, expected = CHATS[form]
    _, row = read({"messages": cell})
    assert brief(row.messages) == expected


def test_ids_and_names_of_calls_reach_the_chat_template():
    calls = [
        {"id": name, "function": {"name": name, "arguments": "{}"}} for name in ("price", "view")
    ]
    results = [
        {"role": "tool", "tool_call_id": name, "content": name} for name in ("view", "price")
    ]
    messages = [USER, {"role": "assistant", "tool_calls": calls}, *results, ANSWER]
    _, row = read({"messages": messages})
    assert [call["id"] for call in row.messages[1]["tool_calls"]] == ["price", "view"]
    assert [message["name"] for message in row.messages[2:4]] == ["view", "price"]


def test_numbers_in_the_arguments_of_a_call_stay_numbers(tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": {"n": 3, "x": 0.5}}}
    rows = [{"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]}] * 4
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    from peft_space.data.dataset import load_dataset

    for name in ("rows.jsonl", "rows.parquet"):
        [row, *_] = load_dataset(str(tmp_path / name), 0.0, 0).train
        assert row.messages[1]["tool_calls"][0]["function"]["arguments"] == {"n": 3, "x": 0.5}


PREFERENCES = {
    "as OpenAI writes it": {
        "input": {"messages": [USER]},
        "preferred_output": [ANSWER],
        "non_preferred_output": [ANSWER | {"content": "No."}],
    },
    "the prompt in both": {
        "prompt": "Price?",
        "chosen": [USER, ANSWER],
        "rejected": [USER, ANSWER | {"content": "No."}],
    },
    "the prompt's last question": {
        "prompt": "Price? ",
        "chosen": [USER, ANSWER],
        "rejected": [USER, ANSWER | {"content": "No."}],
    },
    "the prompt in the text": {
        "prompt": "Price?",
        "chosen": "Price? 40.",
        "rejected": "Price? No.",
    },
    "a dialogue": {
        "chosen": "Human: Price?\n\nAssistant: 40.",
        "rejected": "\n\nHuman: Price?\n\nAssistant: No.",
    },
    "a dialogue as the prompt": {
        "prompt": "\n\nHuman: Price?\n\nAssistant:",
        "chosen": "40.",
        "rejected": "No.",
    },
    "another last answer": {"messages": [USER, ANSWER], "rejected_response": "No."},
    "names of Argilla": {
        "instruction": "Price?",
        "chosen_response": "40.",
        "rejected_response": "No.",
    },
    "names of Stack Exchange": {"question": "Price?", "response_j": "40.", "response_k": "No."},
}


@pytest.mark.parametrize("form", PREFERENCES)
def test_a_preference_has_its_prompt_once(form):
    schema, row = read(PREFERENCES[form])
    assert schema == "preference"
    assert brief(row.prompt) == ["user: Price?"]
    assert (brief(row.chosen), brief(row.rejected)) == (["assistant: 40."], ["assistant: No."])


@pytest.mark.parametrize(
    ("label", "good"),
    [("desirable", True), ("undesirable", False), (1, True), ("-1", False), ("thumbs up", True)],
)
def test_a_rating_in_words_or_numbers_is_good_or_not(label, good):
    schema, row = read({"prompt": "Price?", "completion": "40.", "label": label})
    assert (schema, row.good) == ("unpaired_preference", good)


def test_stars_are_a_question_and_its_answer_decides_which_are_good():
    rows = [{"prompt": "Price?", "response": "40.", "rating": n % 5 + 1} for n in range(12)]
    plain, rated = detect_schema("rows", list(rows[0]), rows)
    assert (plain.schema, rated.schema) == ("prompt_completion", "unpaired_preference")
    assert [normalize_record(1, row, rated).good for row in rows[:5]] == [False] * 3 + [True] * 2


QUESTIONS = {
    "SQuAD": (
        {"context": "It costs 40.", "question": "Price?", "answers": {"text": ["40."]}},
        ["user: Price?\n\nIt costs 40.", "assistant: 40."],
    ),
    "several right answers": (
        {"question": "Price?", "answers": ["40.", "forty"]},
        ["user: Price?", "assistant: 40."],
    ),
    "choices": (
        {"question": "Price?", "choices": ["30.", "40."], "answer": 1},
        ["user: Price?\n\nA. 30.\nB. 40.", "assistant: B. 40."],
    ),
    "choices with letters": (
        {"question": "Price?", "choices": {"text": ["30.", "40."], "label": ["A", "B"]}}
        | {"answerKey": "B"},
        ["user: Price?\n\nA. 30.\nB. 40.", "assistant: B. 40."],
    ),
    "a column of thoughts": (
        {"Question": "Price?", "Complex_CoT": "I look.", "Response": "40."},
        ["user: Price?", "assistant: (I look.)40."],
    ),
    "thoughts in the answer": (
        {"prompt": "Price?", "completion": "<think>\nI look.\n</think>\n\n40."},
        ["user: Price?", "assistant: (I look.)40."],
    ),
    "earlier messages": (
        {"instruction": "Price?", "output": "40.", "history": [USER, ANSWER]},
        ["user: Price?", "assistant: 40.", "user: Price?", "assistant: 40."],
    ),
    "a dialogue as the prompt": (
        {"prompt": "Human: Price?\n\nAssistant:", "completion": "40."},
        ["user: Price?", "assistant: 40."],
    ),
    "a system message in parts": (
        {"prompt": "Price?", "completion": "40.", "systemInstruction": {"parts": [{"text": "Hi"}]}},
        ["system: Hi", "user: Price?", "assistant: 40."],
    ),
    "earlier turns": (
        {"instruction": "Price?", "output": "40.", "history": [["Hi", "Hello"]]},
        ["user: Hi", "assistant: Hello", "user: Price?", "assistant: 40."],
    ),
    "calls for a query": (
        {"query": "Price?", "answers": json.dumps([FUNCTION]), "tools": json.dumps([FUNCTION])},
        ["user: Price?", CALLED],
    ),
    "a truth value": (
        {"question": "Price?", "answer": True},
        ["user: Price?", "assistant: true"],
    ),
}


@pytest.mark.parametrize("form", QUESTIONS)
@pytest.mark.sample(6)
def test_a_question_is_read_with_all_that_belongs_to_it(form):
    cells, expected = QUESTIONS[form]
    _, row = read(cells)
    assert brief(row.messages) == expected


@pytest.mark.parametrize(
    ("cells", "tags"),
    [
        (
            {"text": "In Oslo.", "entities": [{"start": 3, "end": 7, "label": "LOC"}]},
            ["O", "B-LOC", "O"],
        ),
        ({"text": "New York!", "label": [[0, 8, "LOC"]]}, ["B-LOC", "I-LOC", "O"]),
        ({"tokens": "['In', 'Oslo']", "ner_tags": "['O', 'B-LOC']"}, ["O", "B-LOC"]),
    ],
)
def test_spans_and_lists_are_tags_of_words(cells, tags):
    schema, row = read(cells)
    assert (schema, row.tags) == ("token_classification", tags)


@pytest.mark.parametrize(
    ("label", "read_as"), [(True, "true"), (["food"], "food"), ('["food"]', "food")]
)
def test_a_label_is_a_word(label, read_as):
    _, row = read({"text": "It is good", "label": label})
    assert row.label == read_as


@pytest.mark.parametrize("label", ["-1", ["food", "service"]])
def test_a_row_without_one_label_is_left_out(label):
    row = {"text": "It is good", "label": label}
    mapping = ColumnMapping("text_classification", {"text": "text", "label": "label"})
    with pytest.raises(BadRow):
        normalize_record(1, row, mapping)


def test_many_different_numbers_as_labels_are_refused(write):
    rows = [{"text": f"Text {n}", "label": n / 7} for n in range(1, 12)]
    with pytest.raises(UserError) as error:
        operations.check(str(write("rows.json", rows)), {"base_model": "demo"})
    assert error.value.code == "training.regression"


def test_what_is_not_used_is_listed(write):
    rows = [
        {"messages": [USER | {"name": "Ada"}, ANSWER], "source": f"s{n}", "note": None}
        for n in range(4)
    ]
    result = operations.check(str(write("rows.json", rows)))
    unused = {one["name"]: (one["rows"], one["example"]) for one in result["unused"]}
    assert unused == {"source": (4, "s0"), "messages: name": (4, "Ada")}


@pytest.mark.slow
def test_rows_whose_weights_train_nothing_are_counted(write):
    rows = [{"messages": [USER | {"content": str(n)}, ANSWER | {"loss": n > 1}]} for n in range(6)]
    result = operations.check(str(write("rows.json", rows)), {"base_model": "demo"})
    [finding] = [one for one in result["findings"] if one["kind"] == "untrained_by_weight"]
    assert finding["count"] == 2
    for row in rows:
        row["messages"][1]["loss"] = False
    with pytest.raises(UserError) as error:
        operations.check(str(write("rows.json", rows)), {"base_model": "demo"})
    assert error.value.code == "training.all_weights_zero"


def test_messages_of_one_role_are_joined_on_request(write):
    rows = [{"messages": [USER | {"content": str(n)}, USER, ANSWER]} for n in range(4)]
    path = str(write("rows.json", rows))
    with pytest.raises(UserError) as error:
        operations.check(path)
    assert error.value.code == "data.no_usable_rows"
    mapping = {"schema": "messages", "columns": {"messages": "messages"}, "fixes": ["merge"]}
    assert operations.check(path, column_mapping=mapping)["num_problems"] == 0


def test_nulls_that_arrow_pads_are_no_arguments(tmp_path):
    def row(arguments):
        call = {"function": {"name": "f", "arguments": arguments}}
        return {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]}

    table = pa.Table.from_pylist([row({"room": "1"}), row({"city": "Oslo"})])
    pq.write_table(table, tmp_path / "rows.parquet")
    from peft_space.data.dataset import load_dataset

    rows = load_dataset(str(tmp_path / "rows.parquet"), 0.0, 0).train
    arguments = [one.messages[1]["tool_calls"][0]["function"]["arguments"] for one in rows]
    assert arguments == [{"room": "1"}, {"city": "Oslo"}]


def test_the_names_of_labels_in_a_parquet_file_are_used(tmp_path):
    features = {"text": {"_type": "Value"}, "label": {"names": ["bad", "good"]}}
    features["label"]["_type"] = "ClassLabel"
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"text": ["a b", "c d", "e f"], "label": [0, 1, -1]})
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "rows.parquet")
    result = operations.check(str(tmp_path / "rows.parquet"))
    assert result["labels"] == {"bad": 1, "good": 1}
    assert result["num_problems"] == 1


def test_conll_u_has_words_and_parts_of_speech(write):
    lines = ["1-2\tvámonos" + "\t_" * 8, "1\tvamos\tir\tVERB" + "\t_" * 6]
    path = write("rows.conll", "\n".join(lines) + "\n\n")
    result = operations.check(str(path))
    assert result["labels"] == {"VERB": 1}


def test_only_the_marked_characters_of_an_answer_are_trained(write):
    details = [{"begin_offset": 3, "end_offset": 6, "train": True}]
    details.append({"begin_offset": 0, "end_offset": 2, "train": False})
    message = ANSWER | {"content": "It costs 40.", "train_detail": details}
    result = operations.check(
        str(write("rows.json", [{"messages": [USER, message]}] * 4)), {"base_model": "demo"}
    )
    [shown, *_] = result["examples"]
    assert "".join(text for text, trained in shown["tokens"] if trained).strip() == "cost"


@pytest.mark.parametrize("answer", ["[1, 2, 3]", '[{"name": "Ada"}]', '{"a": [1]}', "[]", "[x]"])
def test_an_answer_that_is_json_or_code_is_learned_as_it_is_written(answer):
    _, row = read({"prompt": "List them", "completion": answer})
    assert row.messages[-1]["content"] == answer
    _, row = read({"prompt": answer, "completion": "ok"})
    assert row.messages[0]["content"] == answer
    _, row = read({"prompt": "a", "chosen": answer, "rejected": "no"})
    assert row.chosen[0]["content"] == answer


@pytest.mark.slow
def test_a_thought_is_a_part_of_the_target_of_t5(write, tmp_path):
    base = tiny_models.t5(tmp_path / "base", ["<think>", "</think>", "I", "look", "40"])
    rows = [{"source": "I look", "target": "<think> I look </think> 40"}] * 4
    result = operations.check(str(write("rows.json", rows)), {"base_model": base})
    [shown, *_] = result["examples"]
    written = " ".join(text for text, trained in shown["target"] if trained).split()
    assert [word for word in written if word in ("I", "look", "40")] == ["I", "look", "40"]


def test_of_segments_those_with_a_true_label_are_trained(write):
    segments = [
        {"label": False, "text": "<|user|>\nPrice {}?<|end|>\n<|assistant|>\n"},
        {"label": True, "text": "40."},
        {"label": False, "text": " I guess"},
        {"label": True, "text": " or 50.<|end|>"},
    ]
    rows = [
        {"segments": [part | {"text": part["text"].replace("{}", str(n))} for part in segments]}
        for n in range(4)
    ]
    rows.append({"segments": [segments[0]]})
    found = operations.check(str(write("rows.jsonl", rows)), {"base_model": "demo"})
    assert (found["schema"], found["num_problems"], found["examples"][0]["cut"]) == ("text", 1, 0)
    tokens = found["examples"][0]["tokens"]
    trained = "".join(text for text, is_trained in tokens if is_trained)
    assert trained == "40. or 50.<|end|>"
    assert "".join(text for text, _ in tokens).endswith(" I guess or 50.<|end|>")
    assert ["<|user|>", False] in tokens, "special tokens of the segments stay special tokens"


@pytest.mark.parametrize(
    "text",
    [
        "<think>So.</think>Red.", "So.\n</think>\n\nRed.", "<thinking>\nSo.\n</thinking>\n\nRed.",
        "<thought>So.</thought> Red.", "[THINK]So.[/THINK]Red.", "◁think▷So.◁/think▷Red.",
        "<seed:think>So.</seed:think>Red.",
        "<|begin_of_thought|>\n\nSo.\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\nRed.\n\n"
        "<|end_of_solution|>",
    ],
)  # fmt: skip
def test_a_thought_in_the_text_is_read_as_reasoning(text):
    turns = [{"role": "user", "content": "Color?"}, {"role": "assistant", "content": text}]
    [_, answer] = parse_messages(turns, str) or []
    assert (answer["reasoning_content"], answer["content"]) == ("So.", "Red.")


@pytest.mark.parametrize("begin", ["", "So.</think>"])
def test_the_mark_of_a_thought_inside_an_answer_is_text(begin):
    text = f"{begin}First write <think>, and </think> after it."
    turns = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": text}]
    [_, answer] = parse_messages(turns, str) or []
    assert (answer["content"], answer.get("reasoning_content")) == (text, None)
