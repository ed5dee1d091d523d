"""Objects and lists in cells, and columns with telling names, are read or asked about."""

import json

import pytest

from peft_space import operations
from peft_space.data.dataset import load_dataset
from peft_space.errors import UserError

LONG = "Because of {n} the answer is long enough."
TEXT = "The soup number {n} was rather good and warm."
ROWS = 12


def rows_of(row, **varied):
    """Twelve rows, with the number of each in the place of {n}, and values in turn."""
    made = [json.loads(json.dumps(row).replace("{n}", str(n))) for n in range(ROWS)]
    for name, values in varied.items():
        made = [row | {name: values[n % len(values)]} for n, row in enumerate(made)]
    return made


def loaded(write, rows):
    return load_dataset(str(write("rows.json", rows)), 0.0, 0)


def contents(row):
    """The contents of the first row, whose kinds have them in several places."""
    values = vars(row)
    if "chosen" in values:
        messages = [*row.prompt, *row.chosen, *row.rejected]
        return [message["content"] for message in messages]
    if "messages" in values:
        return [message["content"] for message in row.messages]
    return [row.text, row.label]


QUIZ = '{"question": "Capital {n}?", "choices": [{"text": "Paris"}, {"text": "Rome"}]}'
SAID = {"role": "assistant", "content": "Hello {n}"}
CALLED = {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"}
READ = {
    "an object with the key message": (
        {"prompt": "Q", "completion": {"message": "Hello", "priority": "high"}},
        ["Q", '{"message": "Hello", "priority": "high"}'],
    ),
    "a prompt with the key message": (
        {"prompt": {"message": "Q", "plan": "gold"}, "completion": "A"},
        ['{"message": "Q", "plan": "gold"}', "A"],
    ),
    "JSON with choices": (
        {"prompt": "A quiz", "completion": QUIZ}, ["A quiz", QUIZ.replace("{n}", "0")],
    ),
    "JSON with spaces": ({"prompt": "Q", "completion": '{"a":  1.50}'}, ["Q", '{"a":  1.50}']),
    "an object with texts": (
        {"prompt": "Q", "completion": {"text": ["a", "b"], "date": "x"}},
        ["Q", '{"text": ["a", "b"], "date": "x"}'],
    ),
    "people in JSON": (
        {"prompt": "Q", "completion": [{"role": "engineer", "name": "Ann"}]},
        ["Q", '[{"role": "engineer", "name": "Ann"}]'],
    ),
    "an answer of an API": (
        {"prompt": "Q", "completion": {"choices": [{"index": 0, "message": SAID}]}},
        ["Q", "Hello 0"],
    ),
    "an answer of an API by pandas": (
        {"prompt": "Q", "completion": str({"choices": [{"index": 0, "message": SAID}]})},
        ["Q", "Hello 0"],
    ),
    "a message by pandas": ({"prompt": "Q", "response": str(SAID)}, ["Q", "Hello 0"]),
    "messages by pandas": (
        {"messages": "{'role': ['user', 'assistant'], 'content': ['Q', 'A']}"}, ["Q", "A"],
    ),
    "SQuAD by pandas": (
        {"question": "Q", "answers": "{'text': ['A', 'B'], 'answer_start': [4, 5]}"}, ["Q", "A"],
    ),
    "a list by pandas": ({"question": "Q", "answers": "['A', 'B']"}, ["Q", "A"]),
    "solutions in JSON": ({"question": "Q", "solutions": '["A", "B"]'}, ["Q", "A"]),
    "contexts by pandas": (
        {"question": "Q", "context": "['p1', 'p2']", "answer": "A"}, ["Q\n\np1\n\np2", "A"],
    ),
    "the stem of a question": (
        {
            "question": {"stem": "Q", "choices": [
                {"text": "x", "label": "A"}, {"text": "y", "label": "B"},
            ]},
            "answerKey": "B",
        },
        ["Q\n\nA. x\nB. y", "B. y"],
    ),
    "choices with spaces in their names": (
        {"Question": "Q", "Option A": "x", "Option B": "y", "Correct Answer": "B"},
        ["Q\n\nA. x\nB. y", "B. y"],
    ),
    "a user's name": ({"user": "u12{n}", "message": "Hello?", "response": "A"}, ["Hello?", "A"]),
    "a call of the Responses API": (
        {"messages": [
            {"role": "user", "content": "Q"}, CALLED,
            {"type": "function_call_output", "call_id": "c", "output": "1"},
            {"role": "assistant", "content": "One."},
        ]},
        ["Q", "", "1", "One."],
    ),
    "an object and a list of it": (
        {"input": "Q", "output": [{"item": "x", "qty": "1"}]},
        ["Q", '[{"item": "x", "qty": "1"}]'],
    ),
    "accepted and rejected": ({"prompt": "Q", "accepted": "A", "rejected": "B"}, ["Q", "A", "B"]),
    "winner and loser": ({"prompt": "Q", "winner": "A", "loser": "B"}, ["Q", "A", "B"]),
    "lists of one text": (
        {"prompt": '["Q"]', "response_a": '["A"]', "response_b": '["B"]', "winner_model_a": 1,
         "winner_model_b": 0},
        ["Q", "A", "B"],
    ),
    "a system prompt": ({"sys_prompt": "Be", "question": "Q", "answer": "A"}, ["Be", "Q", "A"]),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
@pytest.mark.sample(12)
def test_a_cell_is_read_for_what_it_is(name, write):
    row, expected = READ[name]
    assert contents(loaded(write, rows_of(row)).train[0]) == expected


def test_what_a_list_by_pandas_has_besides_the_first_answer_is_listed(write):
    data = loaded(write, rows_of({"question": "Q {n}", "answers": "['A', 'B']"}))
    assert [one["name"] for one in data.unused] == ["answers: other answers"]


def test_all_of_an_object_that_is_learned_is_used(write):
    data = loaded(write, rows_of({"input": "Q {n}", "output": [{"item": "x", "qty": "1"}]}))
    assert (data.unused, [one.kind for one in data.findings]) == ([], ["structured"])


def test_several_thoughts_are_one(write):
    parts = [{"text": "First.", "thought": True}, {"text": "Second.", "thought": True}]
    answer = {"role": "model", "parts": [*parts, {"text": "A"}]}
    rows = rows_of({"contents": [{"role": "user", "parts": [{"text": "Q {n}"}]}, answer]})
    assert loaded(write, rows).train[0].messages[1]["reasoning_content"] == "First.\n\nSecond."


@pytest.mark.parametrize(
    "span",
    [{"entity": "Anna", "type": "PER"}, {"type": "span", "labels": ["PER"]}, {"entity": "PER"}],
)
def test_the_tag_of_a_span_is_not_its_text(span, write):
    rows = rows_of({"text": "Anna {n}", "entities": [span | {"start": 0, "end": 4}]})
    assert loaded(write, rows).train[0].tags == ["B-PER", "O"]


@pytest.mark.parametrize("texts", [list("abcdefghijkl"), ["x", "x", "y", "z"]])
def test_numbers_of_choices_begin_with_one_if_one_is_their_number(texts, write):
    rows = [
        {"question": f"Q {n}?", "options": texts, "answer": 1 + n % len(texts)} for n in range(24)
    ]
    answers = [contents(row)[1] for row in loaded(write, rows).train]
    assert answers[0] == f"A. {texts[0]}"
    assert answers[len(texts) - 1].endswith(texts[-1])


@pytest.mark.parametrize(
    ("name", "values"),
    [("turn", (2, 3, 0, 1)), ("created_at", [f"2026-01-0{day}T10:00:00" for day in (4, 5, 2, 3)])],
)
def test_messages_in_rows_come_in_their_order(name, values, write):
    rows = [
        {"conversation_id": c, name: value, "role": ("user", "assistant")[place % 2],
         "content": f"message {place}"}
        for c in range(3)
        for value, place in zip(values, (2, 3, 0, 1), strict=True)
    ]  # fmt: skip
    assert contents(loaded(write, rows).train[0]) == [f"message {place}" for place in range(4)]


def test_an_export_of_ai_studio_is_a_chat(write):
    chunks = [
        {"role": "user", "text": "Q"}, {"role": "model", "text": "Hm.", "isThought": True},
        {"role": "model", "text": "A"},
    ]  # fmt: skip
    export = {"runSettings": {}, "systemInstruction": {"text": "Be"}}
    [row] = loaded(write, json.dumps(export | {"chunkedPrompt": {"chunks": chunks}})).train
    assert contents(row) == ["Be", "Q", "A"]
    assert row.messages[2]["reasoning_content"] == "Hm."


ANSWERED = {"question": "Q {n}?", "answer": LONG}
CHAT = {"messages": [{"role": "user", "content": "Q {n}"}, {"role": "assistant", "content": LONG}]}
ASKED = {
    "an object next to a text": ({"text": TEXT, "output": {"total": "{n}"}}, "output"),
    "corrections of a sentence": ({"sentence": TEXT, "corrections": ["x {n}", "y"]}, "corrections"),
    "flags of a text": ({"text": TEXT, "cats": {"A": 1, "B": 0}}, "cats"),
    "an unknown label": ({"id": "{n}", "text": TEXT}, "department"),
    "a definition": ({"definition": "Do it {n} times.", "inputs": "x", "targets": LONG},
                     "definition"),
    "a query next to a document": (
        {"document": TEXT, "query": "What about {n} soup?", "summary": LONG}, "query",
    ),
    "a context next to a chat": (CHAT | {"context": TEXT}, "context"),
    "flagged answers": (ANSWERED, "flagged"),
    "hallucinated answers": (ANSWERED, "is_hallucination"),
    "words that rate": (ANSWERED, "human_label"),
    "a scale": (ANSWERED, "csat"),
    "a bad answer": (ANSWERED | {"negative_answer": "Negative text {n}."}, "negative_answer"),
    "a better answer": (ANSWERED | {"human_edit": "Better text number {n}."}, "human_edit"),
    "a chain of reasoning": (
        ANSWERED | {"reasoning_chain": ["First I do {n}.", "Then I do that."]}, "reasoning_chain",
    ),
    "tools of a preference": (
        {"prompt": "Q {n}", "chosen": LONG, "rejected": "B", "tools": '[{"name": "f"}]'}, "tools",
    ),
    "contexts in lists": (ANSWERED | {"contexts": [TEXT, "And more."]}, "contexts"),
    "a mask for each row": (CHAT | {"loss_mask": [0, 1]}, "loss_mask"),
}  # fmt: skip
IN_TURN = {
    "department": ("IT", "HR"), "flagged": (True, False), "is_hallucination": ("true", "false"),
    "human_label": ("good", "bad"), "csat": (1, 2, 3, 4, 5),
}  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.sample(10)
def test_a_column_that_is_a_part_of_the_task_is_asked_about(name, write):
    row, column = ASKED[name]
    varied = {column: IN_TURN[column]} if column in IN_TURN else {}
    question = operations.check(str(write("rows.json", rows_of(row, **varied))))["question"]
    assert any(column in option["left_out"] for option in question)


@pytest.mark.parametrize(
    ("column", "role"), [("contexts", "input"), ("reasoning_chain", "reasoning")]
)
def test_lists_are_offered_as_what_they_are(column, role, write):
    row = next(row for row, name in ASKED.values() if name == column)
    question = operations.check(str(write("rows.json", rows_of(row))))["question"]
    [offered] = [option for option in question if role in option["columns"]]
    assert offered["columns"][role] == column


def test_people_who_write_in_rows_are_asked_about(write):
    rows = [
        {"session_id": n // 2, "speaker": ("end_user", "virtual_agent")[n % 2], "text": f"Hi {n}"}
        for n in range(12)
    ]
    question = operations.check(str(write("rows.json", rows)))["question"]
    assert {option["assistant"] for option in question} == {"end_user", "virtual_agent"}


def test_other_columns_of_words_and_questions_are_listed(write):
    words = [
        {"sentence_id": n // 3, "word": f"w{n}", "tag": "O" if n % 3 else "B-X", "lemma": "l"}
        for n in range(12)
    ]
    assert [one["name"] for one in loaded(write, words).unused] == ["lemma"]
    question = {"question": "Q?", "category": "c", "answers": [{"text": "40"}]}
    article = {"paragraphs": [{"context": "It costs 40.", "source_url": "u", "qas": [question]}]}
    unused = [one["name"] for one in loaded(write, [article]).unused]
    assert unused == ["source_url", "category"]


def test_a_file_of_webanno_is_refused_with_what_to_do(write):
    text = "#FORMAT=WebAnno TSV 3.3\n\n#Text=Anna lives\n1-1\t0-4\tAnna\tPER\n"
    with pytest.raises(UserError) as error:
        load_dataset(str(write("rows.tsv", text)), 0.0, 0)
    assert error.value.code == "data.wrong_file_type"
