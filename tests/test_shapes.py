"""Rows of the shapes people bring become conversations; rows that cannot be trained on become problems with their number."""

import pytest

from peft_space.data.read import read_table
from peft_space.data.shapes import conversations, recognise
from peft_space.errors import UserError

HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def understood(path):
    table = read_table(path)
    reading = recognise(table)
    good, bad = conversations(table, reading)
    return reading, [row.messages for row in good], [(problem.row, problem.problem) for problem in bad]


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"instruction": "Hi", "output": "Hello"}, "alpaca"),
        ({"instruction": "Hi", "input": "", "output": "Hello"}, "alpaca"),
        ({"Instruction": "Hi", "Response": "Hello"}, "alpaca"),
        ({"prompt": "Hi", "completion": "Hello"}, "prompt/completion"),
        ({"question": "Hi", "answer": "Hello"}, "question/answer"),
        ({"messages": HI}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, HI[1]]}, "messages"),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, "sharegpt"),
    ],
)
def test_a_shape_is_recognised_and_becomes_messages(write, row, shape):
    reading, rows, problems = understood(write("rows.json", [row]))
    assert (reading.shape, rows, problems) == (shape, [HI], [])


def test_the_input_follows_the_instruction_and_the_system_prompt_leads(write):
    row = {"system": "Be kind.", "instruction": "Translate.", "input": "Hallo", "output": "Hello"}
    [messages] = understood(write("rows.json", [row]))[1]
    assert [message["content"] for message in messages] == ["Be kind.", "Translate.\n\nHallo", "Hello"]


def test_messages_in_a_csv_are_json(write):
    assert understood(
        write("rows.csv", 'messages\n"[{""role"": ""user"", ""content"": ""Hi""}, {""role"": ""assistant"", ""content"": ""Hello""}]"\n')
    )[1] == [HI]


def test_text_stays_as_written(write):
    [messages] = understood(write("rows.json", [{"prompt": "  007 ", "completion": "1e5\n"}]))[1]
    assert [message["content"] for message in messages] == ["  007 ", "1e5\n"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": [HI[0], {"role": "assistant", "content": " "}]}, "the answer is empty"),
        ({"messages": [{"role": "user", "content": ""}, HI[1]]}, "the prompt is empty"),
        ({"messages": [HI[0]]}, "there is no answer"),
        ({"messages": [*HI, HI[0]]}, "the last message is not an answer"),
        ({"messages": [HI[0], HI[0], HI[1]]}, "user and assistant do not take turns"),
        ({"messages": [HI[0], {"role": "poet", "content": "O"}]}, "the role 'poet' is not known (system, user, assistant)"),
        ({"messages": [HI[0], {"role": "assistant", "content": None}]}, "a message has no text"),
        ({"messages": [HI[0], {"role": "assistant", "content": "\ud800"}]}, "the text has half a character in it (a lone surrogate)"),
        ({"messages": "Hi"}, "'messages' is not a list of messages"),
        ({"messages": [*HI, {"role": "system", "content": "late"}, *HI]}, "a system message is not the first"),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_reported_with_its_number(write, row, problem):
    _, rows, problems = understood(write("rows.json", [{"messages": HI}, row]))
    assert (rows, problems) == ([HI], [(2, problem)])


def test_a_row_without_an_answer_is_reported_with_its_line(write):
    _, rows, problems = understood(write("rows.jsonl", '{"prompt": "a", "completion": "b"}\n\n{"prompt": "a"}\n'))
    assert (len(rows), problems) == (1, [(3, "the answer is empty")])


def test_a_cell_that_is_not_text_is_reported(write):
    _, _, problems = understood(write("rows.json", [{"prompt": "a", "completion": {"b": 1}}]))
    assert problems == [(1, "'completion' is a dict, not text")]


def test_columns_that_fit_nothing_are_named_with_what_would(write):
    with pytest.raises(UserError, match="the columns 'context', 'txt' fit no known shape") as refusal:
        understood(write("rows.json", [{"context": "a", "txt": "b"}]))
    assert "instruction and output" in str(refusal.value)
