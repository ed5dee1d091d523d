"""Rows of every schema are normalized; bad rows are reported with their number."""

import json

import pytest

from peft_space.data.column_mapping import make_column_mapping
from peft_space.data.row_normalization import (
    BadRow,
    Conversation,
    Preference,
    Text,
    TextClassification,
    TokenClassification,
    UnpairedPreference,
    from_json,
    normalize_record,
    to_json,
)
from peft_space.data.schema_detection import detect_schema
from peft_space.data.table import read_table
from peft_space.errors import UserError

HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def detect(path):
    table = read_table(path)
    return table, detect_schema(table.source, table.columns, [row for _, row in table.rows()])


def rows_of(path, column_mapping=None):
    """The column mapping, the good rows, and (number, problem) of the bad rows."""
    table, mappings = detect(path)
    [chosen] = [make_column_mapping(column_mapping, table.columns)] if column_mapping else mappings
    good, bad = [], []
    for number, row in table.rows():
        try:
            good.append(normalize_record(number, row, chosen))
            assert from_json(number, to_json(good[-1])) == good[-1]
        except BadRow as problem:
            bad.append((number, str(problem)))
    return chosen, good, bad


def messages_of(path):
    column_mapping, good, bad = rows_of(path)
    return column_mapping, [row.messages for row in good], bad


@pytest.mark.parametrize(
    ("row", "schema"),
    [
        ({"instruction": "Hi", "output": "Hello"}, "alpaca"),
        ({"instruction": "Hi", "input": "", "output": "Hello"}, "alpaca"),
        ({"Instruction": "Hi", "Response": "Hello"}, "alpaca"),
        ({"prompt": "Hi", "completion": "Hello"}, "prompt_completion"),
        ({"question": "Hi", "answer": "Hello"}, "question_answer"),
        ({"messages": HI}, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, HI[1]]},
            "messages",
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Hello"},
                ]
            },
            "sharegpt",
        ),
    ],
)
def test_a_schema_is_detected_and_normalized_to_messages(write, row, schema):
    column_mapping, rows, problems = messages_of(write("rows.json", [row]))
    assert (column_mapping.schema, rows, problems) == (schema, [HI], [])


def test_the_input_follows_the_instruction_and_the_system_prompt_leads(write):
    row = {"system": "Be kind.", "instruction": "Translate.", "input": "Hallo", "output": "Hello"}
    [messages] = messages_of(write("rows.json", [row]))[1]
    assert [message["content"] for message in messages] == [
        "Be kind.",
        "Translate.\n\nHallo",
        "Hello",
    ]


def test_messages_in_a_csv_are_json(write):
    turns = json.dumps(HI).replace('"', '""')
    assert messages_of(write("rows.csv", f'messages\n"{turns}"\n'))[1] == [HI]


def test_text_stays_as_written(write):
    [messages] = messages_of(write("rows.json", [{"prompt": "  007 ", "completion": "1e5\n"}]))[1]
    assert [message["content"] for message in messages] == ["  007 ", "1e5\n"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": [HI[0], {"role": "assistant", "content": " "}]}, "the answer is empty"),
        ({"messages": [{"role": "user", "content": ""}, HI[1]]}, "the prompt is empty"),
        ({"messages": [HI[0]]}, "the row has no answer"),
        ({"messages": [*HI, HI[0]]}, "the last message is not an answer"),
        ({"messages": [HI[0], HI[0], HI[1]]}, "user and assistant do not take turns (message 2)"),
        (
            {"messages": [HI[0], {"role": "poet", "content": "O"}]},
            "the role 'poet' is unknown (use system, user, assistant or tool)",
        ),
        ({"messages": [HI[0], {"role": "assistant", "content": None}]}, "a message has no text"),
        ({"messages": "Hi"}, "'messages' is not a list of messages"),
        (
            {"messages": [*HI, {"role": "system", "content": "late"}, *HI]},
            "message 3 is a system message, and not the first message",
        ),
    ],
)
def test_a_bad_row_is_reported_with_its_number(write, row, problem):
    _, rows, problems = messages_of(write("rows.json", [{"messages": HI}, row]))
    assert (rows, problems) == ([HI], [(2, problem)])


def test_half_a_character_in_json_inside_a_cell_is_reported_with_its_row(write):
    turns = json.dumps([HI[0], {"role": "assistant", "content": "\ud800"}]).replace('"', '""')
    _, rows, problems = messages_of(write("rows.csv", f'messages\n"{turns}"\n'))
    assert (rows, problems) == ([], [(1, "the text contains half a character (a lone surrogate)")])


def test_a_row_without_an_answer_is_reported_with_its_line(write):
    _, rows, problems = messages_of(
        write("rows.jsonl", '{"prompt": "a", "completion": "b"}\n\n{"prompt": "a"}\n')
    )
    assert (len(rows), problems) == (1, [(3, "the answer is empty")])


def test_a_cell_that_is_not_text_is_reported(write):
    _, _, problems = messages_of(write("rows.json", [{"prompt": "a", "completion": [["b"]]}]))
    assert problems == [(1, "'completion' is a list, not text")]


def test_columns_that_fit_no_schema_are_named(write):
    with pytest.raises(UserError) as error:
        messages_of(write("rows.json", [{"a": [1], "b": {"c": "d"}}]))
    assert error.value.code == "data.unknown_columns"
    assert "'a', 'b'" in str(error.value)
    assert "instruction and output" in str(error.value)


def test_a_known_name_inside_another_name_does_not_match(write):
    path = write("rows.csv", "context,textual\nsome words,more words\nother words,and more\n")
    _, found = detect(path)
    assert all(column_mapping.columns.get("input") is None for column_mapping in found)
    assert len(found) > 1, "the user chooses between two texts of unknown names"


PREFERRED = Preference(1, [HI[0]], [HI[1]], [{"role": "assistant", "content": "Go away"}])


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"},
        {
            "question": "Hi",
            "chosen": HI[1],
            "rejected": {"role": "assistant", "content": "Go away"},
        },
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello"},
            "rejected": {"from": "gpt", "value": "Go away"},
        },
        {
            "prompt": "Hi",
            "chosen": HI,
            "rejected": [HI[0], {"role": "assistant", "content": "Go away"}],
        },
        {"chosen": HI, "rejected": [HI[0], {"role": "assistant", "content": "Go away"}]},
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Go away",
        },
    ],
)
def test_a_preference_is_read_in_every_form(write, row):
    column_mapping, good, bad = rows_of(write("rows.json", [row]))
    assert (column_mapping.schema, good, bad) == ("preference", [PREFERRED], [])


@pytest.mark.parametrize(
    ("row", "schema", "expected"),
    [
        ({"messages": HI, "label": True}, "unpaired_preference", UnpairedPreference(1, HI, True)),
        (
            {"prompt": "Hi", "completion": "Hello", "label": "false"},
            "unpaired_preference",
            UnpairedPreference(1, HI, False),
        ),
        (
            {"text": "I like it", "label": "1"},
            "text_classification",
            TextClassification(1, "I like it", "1"),
        ),
        (
            {"sentence1": "a", "sentence2": "b", "label": "same"},
            "text_pair_classification",
            TextClassification(1, "a", "same", "b"),
        ),
        (
            {"tokens": ["New", "York"], "ner_tags": ["B-LOC", "I-LOC"]},
            "token_classification",
            TokenClassification(1, ["New", "York"], ["B-LOC", "I-LOC"]),
        ),
        (
            {"article": "Long.", "summary": "Short."},
            "source_target",
            Conversation(
                1,
                [{"role": "user", "content": "Long."}, {"role": "assistant", "content": "Short."}],
            ),
        ),
        ({"text": "Once upon a time"}, "text", Text(1, "Once upon a time")),
    ],
)
def test_every_other_schema_is_detected(write, row, schema, expected):
    column_mapping, good, bad = rows_of(write("rows.json", [row]))
    assert (column_mapping.schema, good, bad) == (schema, [expected], [])


def test_tool_calls_and_results_are_read_in_every_form(write):
    call = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Oslo"}}}
    tool = {"name": "weather", "parameters": {}}
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "Rain?"},
            {
                "from": "function_call",
                "value": '{"name": "weather", "arguments": {"town": "Oslo"}}',
            },
            {"from": "observation", "value": '{"rain": false}'},
            {"from": "gpt", "value": "No."},
        ],
        "tools": '[{"name": "weather", "parameters": {}}]',
    }
    openai = {
        "messages": [
            {"role": "user", "content": "Rain?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"town": "Oslo"}'},
                    }
                ],
            },
            {"role": "tool", "content": '{"rain": false}'},
            {"role": "assistant", "content": "No."},
        ],
        "tools": [{"type": "function", "function": tool}],
    }
    for row in (sharegpt, openai):
        _, [conversation], bad = rows_of(write("rows.json", [row]))
        assert bad == []
        assert conversation.tools == [{"type": "function", "function": tool}]
        assert [message["role"] for message in conversation.messages] == [
            "user",
            "assistant",
            "tool",
            "assistant",
        ]
        assert conversation.messages[1]["tool_calls"] == [call]
        assert conversation.messages[2]["content"] == '{"rain": false}'


def test_a_message_can_have_a_weight_in_the_loss(write):
    turns = [HI[0] | {"loss_weight": 0.0}, HI[1] | {"train": False}, HI[0], HI[1] | {"weight": 1}]
    _, [conversation], _ = rows_of(write("rows.json", [{"messages": turns}]))
    assert [message.get("weight") for message in conversation.messages] == [0, 0, None, 1]
    assert rows_of(write("half.json", [{"messages": [HI[0], HI[1] | {"weight": 0.5}]}]))[2] == [
        (1, "the weight 0.5 of a message is neither 0 (read) nor 1 (trained)")
    ]


@pytest.mark.parametrize(
    ("content", "ways"),
    [
        (
            "Anfrage,Reaktion\nWie geht es?,Gut.\nUnd dir?,Auch gut.\n",
            [
                {"question": "Anfrage", "answer": "Reaktion"},
                {"question": "Reaktion", "answer": "Anfrage"},
            ],
        ),
        (
            "question,answer,response\na b,c d,e f\n",
            [
                {"question": "question", "answer": "answer"},
                {"question": "question", "answer": "response"},
            ],
        ),
        (
            "text,target\nLong story,Short\n",
            [{"source": "text", "target": "target"}, {"text": "text", "label": "target"}],
        ),
    ],
)
def test_all_plausible_column_mappings_are_returned(write, content, ways):
    _, found = detect(write("rows.csv", content))
    assert len(found) > 1
    assert all(way in [column_mapping.columns for column_mapping in found] for way in ways)


def test_a_column_with_few_distinct_values_may_be_a_label(write):
    lines = "".join(f"words number {i},{'yes' if i % 2 else 'no'}\n" for i in range(20))
    first = detect(write("rows.csv", "satz,urteil\n" + lines))[1][0]
    assert (first.schema, first.columns) == (
        "text_classification",
        {"text": "satz", "label": "urteil"},
    )


def test_question_and_answer_are_likelier_than_a_label_next_to_two_texts(write):
    lines = "".join(
        f"What about number {i}?,It is number {i}.,{'a' if i % 2 else 'b'}\n" for i in range(20)
    )
    first = detect(write("rows.csv", "frage,antwort,kategorie\n" + lines))[1][0]
    assert (first.schema, first.columns) == (
        "question_answer",
        {"question": "frage", "answer": "antwort"},
    )


def test_the_users_column_mapping_replaces_the_detected_one(write):
    path = write("rows.csv", "prompt,answer,note\nHi,Hello,Greeting\n")
    _, [row], _ = rows_of(
        path, {"schema": "question_answer", "columns": {"question": "note", "answer": "prompt"}}
    )
    assert [message["content"] for message in row.messages] == ["Greeting", "Hi"]


@pytest.mark.parametrize(
    ("column_mapping", "code", "value"),
    [
        ({"schema": "poem"}, "data.unknown_schema", "'poem'"),
        ({"schema": "text", "columns": {"text": "b"}}, "data.unknown_column", "'b'"),
        ({"schema": "text", "columns": {"verse": "a"}}, "data.unknown_role", "'verse'"),
        (
            {"schema": "text_classification", "columns": {"text": "a"}},
            "data.missing_column",
            "label",
        ),
        (
            {"schema": "unpaired_preference", "columns": {"label": "a"}},
            "data.missing_column",
            "messages",
        ),
        (
            {"schema": "text", "columns": {"text": "a"}, "fixes": ["pray"]},
            "data.unknown_fix",
            "'pray'",
        ),
    ],
)
def test_an_impossible_column_mapping_is_rejected(column_mapping, code, value):
    with pytest.raises(UserError) as error:
        make_column_mapping(column_mapping, ["a"])
    assert error.value.code == code
    assert value in str(error.value)


def test_a_fix_changes_nothing_else(write):
    path = write(
        "rows.json",
        [
            {
                "messages": [
                    {"role": "user", "content": " Hi\u200b"},
                    HI[1],
                    {"role": "user", "content": "Bye"},
                ]
            }
        ],
    )
    column_mapping = {"schema": "messages", "columns": {"messages": "messages"}}
    assert rows_of(path, column_mapping)[2] == [(1, "the last message is not an answer")]
    _, [row], _ = rows_of(path, column_mapping | {"fixes": ["trim"]})
    assert [message["content"] for message in row.messages] == [" Hi\u200b", "Hello"]
    _, [row], _ = rows_of(path, column_mapping | {"fixes": ["trim", "strip"]})
    assert [message["content"] for message in row.messages] == ["Hi", "Hello"]
