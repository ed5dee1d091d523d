"""Rows inside of other objects, exports of services, and tables that begin with a title."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peft_space import operations
from peft_space.data.dataset import load_dataset

PAIRS = [{"question": f"Where is {n}?", "answer": f"Near {n}."} for n in range(6)]


def loaded(write, content, name="rows.json", mapping=None):
    text = content if isinstance(content, str) else json.dumps(content)
    return load_dataset(str(write(name, text)), 0.0, 0, column_mapping=mapping)


def pairs_of(data):
    return [[message["content"] for message in row.messages] for row in data.train]


RIGHT = [[row["question"], row["answer"]] for row in PAIRS]
WRAPPED = {
    "an answer of an API": {"status": "ok", "data": {"items": PAIRS}},
    "Firebase": {"faqs": {f"-N{n}": row for n, row in enumerate(PAIRS)}},
    "GraphQL": {"data": {"faqs": {"edges": [{"cursor": "x", "node": row} for row in PAIRS]}}},
    "Elasticsearch": {
        "took": 1, "hits": {"total": 6, "hits": [{"_id": "1", "_source": row} for row in PAIRS]},
    },
    "hits of Elasticsearch": [{"_index": "a", "_id": "1", "_source": row} for row in PAIRS],
    "Airtable": {
        "records": [{"id": "r", "createdTime": "2026", "fields": row} for row in PAIRS],
    },
    "questions as keys": {row["question"]: row["answer"] for row in PAIRS},
    "a FAQ page": {
        "@context": "https://schema.org", "@type": "FAQPage",
        "mainEntity": [
            {
                "@type": "Question", "name": row["question"],
                "acceptedAnswer": {"@type": "Answer", "text": row["answer"]},
            }
            for row in PAIRS
        ],
    },
    "stored completions": [
        {
            "id": "chatcmpl-1", "model": "m", "usage": {"total_tokens": 3},
            "input": {"messages": [{"role": "user", "content": row["question"]}]},
            "choices": [{"index": 0, "message": {"role": "assistant", "content": row["answer"]}}],
        }
        for row in PAIRS
    ],
    "requests with responses": [
        {
            "request": {"body": {"messages": [{"role": "user", "content": row["question"]}]}},
            "response": {
                "body": {"choices": [{"message": {"role": "assistant", "content": row["answer"]}}]},
            },
        }
        for row in PAIRS
    ],
    "several ways to ask": {
        "qnaDocuments": [{"id": 1, "answer": row["answer"], "questions": [row["question"]]}
                         for row in PAIRS],
    },
}  # fmt: skip


@pytest.mark.parametrize("what", WRAPPED)
def test_rows_inside_of_other_objects_are_read(write, what):
    assert pairs_of(loaded(write, WRAPPED[what])) == RIGHT


def test_the_keys_of_a_record_are_listed(write):
    data = loaded(write, WRAPPED["Airtable"])
    assert {one["name"] for one in data.unused} == {"id", "createdTime"}


def test_each_pattern_of_an_intent_is_a_row_and_its_response_makes_the_app_ask(write):
    intents = [
        {"tag": tag, "patterns": [f"{tag} {n}?" for n in range(4)], "context": [""],
         "responses": [f"We can do that: {tag} it", "Yes"]}
        for tag in ("greet", "pay", "leave")
    ]  # fmt: skip
    path = write("intents.json", json.dumps({"intents": intents}))
    ways = operations.check(str(path))["question"]
    assert {way["schema"] for way in ways} == {"text_classification", "prompt_completion"}
    data = load_dataset(str(path), 0.0, 0, column_mapping=ways[0])
    assert len(data.train) == 12
    assert (data.train[0].text, data.train[0].label) == ("greet 0?", "greet")


def test_splits_of_pairs_are_rows_with_their_split(write):
    splits = {
        "train": [[f"text {n} here", ("pay", "buy")[n % 2]] for n in range(12)],
        "oos_train": [["what is it", "oos"]],
    }
    data = loaded(write, splits)
    assert [vars(row)["label"] for row in data.train] == ["pay", "buy"] * 6 + ["oos"]


# Services


def test_code_that_chatgpt_ran_is_a_call(write):
    def node(parent, role, content, **more):
        message = {"author": {"role": role}, "content": content, **more}
        return {"parent": parent, "children": [], "message": message}

    code = {"content_type": "code", "text": "print(4)"}
    said = [{"content_type": "text", "parts": [text]} for text in ("2 + 2?", "Four")]
    nodes = {
        "a": node(None, "user", said[0]),
        "b": node("a", "assistant", code, recipient="python"),
        "c": node("b", "tool", {"content_type": "execution_output", "text": "4"}),
        "d": node("c", "assistant", said[1], recipient="all"),
    }
    [row] = loaded(write, [{"title": "t", "mapping": nodes, "current_node": "d"}]).train
    roles = [message["role"] for message in row.messages]
    assert roles == ["user", "assistant", "tool", "assistant"]
    [call] = row.messages[1]["tool_calls"]
    assert call["function"] == {"name": "python", "arguments": {"input": "print(4)"}}


def test_arena_conversations_of_several_turns_share_their_first_question(write):
    rows = [
        {
            "prompt": json.dumps([f"q{n}", "more?"]), "response_a": '["a1", "a2"]',
            "response_b": '["b1", "b2"]', "winner_model_a": n % 2, "winner_model_b": 1 - n % 2,
        }
        for n in range(6)
    ]  # fmt: skip
    first = loaded(write, rows).train[0]
    parts = (first.prompt, first.chosen, first.rejected)
    texts = [[message["content"] for message in part] for part in parts]
    assert texts == [["q0"], ["b1", "more?", "b2"], ["a1", "more?", "a2"]]


@pytest.mark.parametrize(
    ("key", "speakers", "text"),
    [("thread", ("customer", "agent"), "message"), ("transcript", ("user", "bot"), "text")],
)
def test_messages_under_other_names_are_chats(write, key, speakers, text):
    turns = [{"author": who, text: said} for who, said in zip(speakers, ("Hi", "Ho"), strict=True)]
    assert pairs_of(loaded(write, [{key: turns}] * 3)) == [["Hi", "Ho"]] * 3


def test_senders_of_a_messenger_are_offered_as_the_assistant(write):
    turns = [{"sender_name": who, "content": said} for who, said in (("Ann", "Hi"), ("Bob", "Ho"))]
    ways = operations.check(str(write("rows.json", json.dumps([{"messages": turns}] * 3))))
    assert [way["assistant"] for way in ways["question"]] == ["Bob", "Ann"]


# Tables


def table(header, *, sep=",", before="", pair="Where is {n}?{sep}Near {n}."):
    lines = [pair.format(n=n, sep=sep) for n in range(6)]
    return before + "\n".join([header.format(sep=sep), *lines]) + "\n"


TABLES = {
    "a title": (table("Question,Answer", before="FAQ export\n\n"), True),
    "a comment": (table("question,answer", before="# exported in 2026\n"), True),
    "a title with commas": (table("Question,Answer", before="FAQ export,\n,\n"), True),
    "spaces before quotation marks": (
        table("question, answer", pair='"Where is {n}?", "Near {n}."'), False,
    ),
    "carets": (table("question{sep}answer", sep="^"), True),
    "tildes": (table("question{sep}answer", sep="~"), True),
    "control characters": (table("question{sep}answer", sep="\x01"), True),
}  # fmt: skip


@pytest.mark.parametrize("what", TABLES)
def test_a_table_with_unusual_lines_is_read_and_told(write, what):
    content, is_told = TABLES[what]
    data = loaded(write, content, "rows.csv")
    assert pairs_of(data) == RIGHT
    assert bool(data.notes) == is_told


def test_a_first_line_with_one_name_is_a_header(write):
    data = loaded(write, "question,\nWhere is it?,Near.\nAnd this?,Far.\n", "rows.csv",
                  {"schema": "text", "columns": {"text": "question"}})  # fmt: skip
    assert [row.text for row in data.train] == ["Where is it?", "And this?"]


def test_a_comment_above_json_lines_is_left_out_and_told(write):
    lines = "\n".join(map(json.dumps, PAIRS))
    data = loaded(write, f"// FAQ rows\n{lines}\n", "rows.jsonl")
    assert pairs_of(data) == RIGHT
    assert len(data.notes) == 1


def test_bytes_of_a_parquet_file_that_are_text_are_read(tmp_path):
    columns = {name: [row[name].encode() for row in PAIRS] for name in ("question", "answer")}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    assert pairs_of(load_dataset(str(tmp_path / "rows.parquet"), 0.0, 0)) == RIGHT


@pytest.mark.parametrize(
    "labels", [["drama|action", "comedy", "drama|comedy"], ["#a #b", "#b", "#c"]], ids=str
)
def test_labels_of_several_parts_are_found_if_some_parts_are_rare(write, labels):
    rows = [{"text": f"Text {n} here", "label": labels[n % 3]} for n in range(12)]
    assert "combined" in {one.kind for one in loaded(write, rows).findings}


# Plain text


CHATML = "<|im_start|>user\nHi {n}\n\nand more<|im_end|>\n<|im_start|>assistant\nHo {n}<|im_end|>\n"
TEXTS = {
    "ChatML with system messages": "<|im_start|>system\nBe nice<|im_end|>\n" + CHATML,
    "ChatML with blank lines between": CHATML + "\n\n",
    "ChatML with blank lines in some answers": (
        "<|im_start|>user\nHi {n}<|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n\n"
        "Ho {n}<|im_end|>\n\n"
    ),
    "Alpaca": "### Instruction:\nHi {n}\n\nand more\n\n### Response:\nHo {n}\n\n",
    "Alpaca with its first sentence": (
        "Below is an instruction.\n\n### Instruction:\nHi {n}\n\nand more\n\n"
        "### Response:\nHo {n}\n\n"
    ),
    "HH": "Human: Hi {n}\n\nAssistant: Ho {n}\n\n\n",
    "Llama 2": "<s>[INST] Hi {n}\n\nand more [/INST] Ho {n}</s>\n",
}


@pytest.mark.parametrize("form", TEXTS)
def test_each_conversation_of_a_text_file_is_a_row(write, form):
    text = "".join(TEXTS[form].replace("{n}", str(n)) for n in range(4))
    mapping = {"schema": "messages", "columns": {"messages": "text"}}
    data = loaded(write, text, "rows.txt", mapping)
    answers = [row.messages[-1]["content"] for row in data.train]
    assert answers == ["Ho 0", "Ho 1", "Ho 2", "Ho 3"]
    assert all(row.messages[-2]["content"].startswith("Hi") for row in data.train)


def test_texts_with_a_mark_between_them_are_rows(write):
    text = "<|endoftext|>".join(f"Story {n} begins.\n\nIt ends.\n" for n in range(3))
    rows = loaded(write, text, "rows.txt").train
    assert [row.text for row in rows] == [f"Story {n} begins.\n\nIt ends." for n in range(3)]


@pytest.mark.parametrize("name", ["rows.md", "rows.csv", "rows.txt"])
@pytest.mark.parametrize("line", ["|---|---|", "| :--- | ---: |"])
def test_a_table_in_markdown_is_read(write, name, line):
    rows = [f"| {row['question']} | {row['answer']} |" for row in PAIRS]
    data = loaded(write, "\n".join(["| Question | Answer |", line, *rows]) + "\n", name)
    assert pairs_of(data) == RIGHT


@pytest.mark.parametrize("key", ["rejected", "deleted", "hallucinated", "skip"])
def test_answers_that_a_key_of_their_message_calls_bad_are_a_finding(write, key):
    rows = [
        [{"role": "user", "content": f"Hi {n}"},
         {"role": "assistant", "content": "Ho", key: n % 2 == 0}]
        for n in range(6)
    ]  # fmt: skip
    found = {
        one.kind: one.count
        for one in loaded(write, [{"messages": turns} for turns in rows]).findings
    }
    assert found["bad_verdict"] == 3


# What is around messages


def test_what_is_around_messages_is_used_or_listed(write):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    tools = [{"name": "f", "parameters": {}}]
    chat = {"system": "Be nice", "messages": turns, "tools": tools, "rating": 5}
    data = loaded(write, [{"chat": chat}] * 3)
    first = data.train[0]
    assert [message["content"] for message in first.messages] == ["Be nice", "Hi", "Ho"]
    assert first.tools[0]["function"]["name"] == "f"
    assert [one["name"] for one in data.unused] == ["chat: rating"]


TOOLS = {
    "Gemini": [{"functionDeclarations": [{"name": "f"}, {"name": "g"}]}],
    "names": {"f": {"description": "d"}, "g": {"parameters": {}}},
    "Bedrock": {"tools": [{"toolSpec": {"name": name, "inputSchema": {"json": {"type": "object"}}}}
                          for name in "fg"]},
    "OpenAI": [{"type": "function", "function": {"name": name}} for name in "fg"],
}  # fmt: skip


@pytest.mark.parametrize("form", TOOLS)
def test_tools_of_each_form_have_names(write, form):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    first = loaded(write, [{"messages": turns, "tools": TOOLS[form]}] * 3).train[0]
    assert [tool["function"]["name"] for tool in first.tools] == ["f", "g"]


def test_a_tool_without_a_name_is_refused(write):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    rows = [{"messages": turns, "tools": [{"parameters": {}}]}, {"messages": turns}]
    [problem] = loaded(write, rows).problems
    assert problem.problem == "a tool has no name"


@pytest.mark.parametrize("chosen", ["Ho", [{"role": "assistant", "content": "Ho"}]], ids=str)
def test_a_conversation_with_its_answer_is_the_prompt_of_a_preference_once(write, chosen):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    rows = [{"messages": turns, "chosen": chosen, "rejected": "No"}] * 3
    first = loaded(write, rows).train[0]
    parts = (first.prompt, first.chosen, first.rejected)
    assert [[m["content"] for m in part] for part in parts] == [["Hi"], ["Ho"], ["No"]]


@pytest.mark.parametrize(
    ("key", "times"),
    [("timestamp_ms", [3, 2, 1, 0]),
     ("timestamp", [f"2026-01-01T10:0{n}:00" for n in (3, 2, 1, 0)])],
)  # fmt: skip
def test_messages_that_are_stored_newest_first_are_turned_around(write, key, times):
    roles = ("assistant", "user") * 2
    turns = [
        {"role": role, "content": f"{time}", key: time}
        for role, time in zip(roles, times, strict=True)
    ]
    first = loaded(write, [{"messages": turns}] * 3).train[0]
    assert [message["content"] for message in first.messages] == [str(time) for time in times[::-1]]


@pytest.mark.parametrize("column", ["utterances", "training_phrases", "questions"])
def test_a_row_with_a_question_of_its_own_is_not_one_of_intents(write, column):
    rows = [{**row, column: [f"Another {n}?", "And so?"]} for n, row in enumerate(PAIRS)]
    data = loaded(write, rows, mapping={
        "schema": "question_answer", "columns": {"question": "question", "answer": "answer"},
    })  # fmt: skip
    assert pairs_of(data) == RIGHT


def test_a_table_with_examples_is_not_one_of_intents(write):
    rows = [{**row, "examples": []} for row in PAIRS]
    assert pairs_of(loaded(write, rows)) == RIGHT
    rows = [{**row, "examples": [f"An example {n}", "Another"]} for n, row in enumerate(PAIRS)]
    data = loaded(write, rows, mapping={
        "schema": "question_answer", "columns": {"question": "question", "answer": "answer"},
    })  # fmt: skip
    assert pairs_of(data) == RIGHT
    assert "examples" in [one["name"] for one in data.unused]


def test_intents_with_as_many_patterns_as_responses_are_read(write):
    intents = [{"tag": tag, "patterns": [f"{tag}?"], "responses": [tag]} for tag in "abc"]
    data = loaded(write, {"intents": intents}, mapping={
        "schema": "text_classification", "columns": {"text": "text", "label": "intent"},
    })  # fmt: skip
    assert [row.label for row in data.train] == ["a", "b", "c"]


@pytest.mark.parametrize("separator", ["\n", "\n\n"])
def test_pages_of_rows_one_after_the_other_are_rows(write, separator):
    text = separator.join([json.dumps(PAIRS[:4]), json.dumps(PAIRS[4:])])
    assert pairs_of(loaded(write, text)) == RIGHT


def test_texts_under_their_labels_are_rows(write):
    data = loaded(write, {"greet": ["Hi there", "Hello you"], "bye": ["So long now"]})
    assert [(row.text, row.label) for row in data.train] == [
        ("Hi there", "greet"), ("Hello you", "greet"), ("So long now", "bye"),
    ]  # fmt: skip


REFUSED = {
    "a key": {"role": "assistant", "content": None, "refusal": "I cannot."},
    "a part": {"role": "assistant", "content": [{"type": "refusal", "refusal": "I cannot."}]},
    "Assistants": {
        "role": "assistant", "content": [{"type": "text", "text": {"value": "I cannot."}}],
    },
    "LangChain": {"type": "ai", "data": {"content": "I cannot."}},
    "Vercel": {
        "role": "assistant",
        "parts": [{"type": "step-start"}, {"type": "text", "text": "I cannot."}],
    },
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED)
def test_answers_of_apis_are_read_in_each_form(write, form):
    question = {"role": "user", "content": "Hi"}
    if form == "LangChain":
        question = {"type": "human", "data": {"content": "Hi"}}
    assert (
        pairs_of(loaded(write, [{"messages": [question, REFUSED[form]]}] * 3))
        == [["Hi", "I cannot."]] * 3
    )


CALLED = {"id": "c", "function": {"name": "f", "arguments": "{}"}}
RESULTS = {
    "an object": ({"role": "assistant", "tool_calls": [CALLED]}, {"role": "tool", "content": {}}),
    "Vercel": (
        {"role": "assistant", "content": [
            {"type": "tool-call", "toolCallId": "c", "toolName": "f", "input": {}},
        ]},
        {"role": "tool", "content": [
            {"type": "tool-result", "toolCallId": "c", "output": {"type": "json", "value": {}}},
        ]},
    ),
    "Anthropic": (
        {"role": "assistant", "content": [
            {"type": "tool_use", "id": "c", "name": "f", "input": {}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "c", "content": {}},
        ]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", RESULTS)
def test_numbers_in_results_of_tools_stay_numbers(write, form):
    call, result = RESULTS[form]
    written = json.dumps(result).replace(": {}", ': {"r": 7, "x": 1.5, "ok": true}')
    turns = [{"role": "user", "content": "Hi"}, call, json.loads(written)]
    turns.append({"role": "assistant", "content": "Ho"})
    [first] = loaded(write, [{"messages": turns}]).train
    assert first.messages[1]["tool_calls"][0]["function"]["name"] == "f"
    assert first.messages[2]["role"] == "tool"
    assert first.messages[2]["content"] == '{"r": 7, "x": 1.5, "ok": true}'
