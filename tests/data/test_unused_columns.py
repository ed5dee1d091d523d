"""A column that looks like a part of the task is used, or the app asks; others are listed."""

import json
import re
import sys

import pytest

from peft_space import operations
from peft_space.__main__ import main
from peft_space.data.dataset import load_dataset, load_run_data
from peft_space.data.schema_detection import detect_schema
from peft_space.errors import UserError
from peft_space.recipe import Recipe
from peft_space.runs.run import Run
from tests.fixtures import tiny_models

ASKED = {"question": "What is it, {}?", "answer": "It is number {}."}
PROMPTED = {"prompt": "What is it, {}?", "completion": "It is number {}."}
CHAT = {
    "messages": [
        {"role": "user", "content": "What is it, {}?"},
        {"role": "assistant", "content": "It is number {}."},
    ]
}
LABELLED = {"text": "The soup {} was cold.", "label": "{%}"}


def filled(cell, number):
    if isinstance(cell, str):
        return cell.replace("{}", str(number)).replace("{%}", "ab"[number % 2])
    if isinstance(cell, list):
        return [filled(one, number) for one in cell]
    return (
        {key: filled(one, number) for key, one in cell.items()} if isinstance(cell, dict) else cell
    )


def rows_of(cells, count=20):
    return [filled(cells, number) for number in range(count)]


def offered(path, capfd):
    """The column mappings that the command line names."""
    main(["check", path])
    sys.__stdout__.flush()
    return list(map(json.loads, re.findall("--column-mapping '(.*)'", capfd.readouterr().out)))


def mappings_of(cells):
    rows = rows_of(cells)
    return detect_schema("rows", list(rows[0]), rows)


PARTS = {
    "a rejected answer": (ASKED, {"rejected_answers": "No {} it is not."}, "preference"),
    "a rejected answer in a chat": (CHAT, {"wrong_answer": "No {} it is not."}, "preference"),
    "choices in columns": (ASKED, {"option_a": "red {}", "option_b": "blue"}, None),
    "a history": (ASKED, {"prior_turns": [["Hi", "Hello {}"]]}, "question_answer"),
    "reasoning": (ASKED, {"explanation": "Because {} follows."}, "question_answer"),
    "reasoning for a label": (LABELLED, {"explanation": "Because {} is cold."}, None),
    "tools": (ASKED, {"available_tools": "[{}]"}, "question_answer"),
    "a label of an answer": (PROMPTED, {"label": "{%}"}, None),
    "a second label": (LABELLED, {"sentiment": "good"}, "text_classification"),
    "a second text with a label": (LABELLED, {"title": "A title {}"}, "text_pair_classification"),
    "a second answer": (ASKED, {"solution": "So {} it is."}, "question_answer"),
    "a context": (ASKED, {"article": "A long text {}"}, "question_answer"),
    "an answer next to a text": (
        {"text": "A long text {}"}, {"answer": "It is {} now."}, "prompt_completion",
    ),
    "entities next to a text": ({"text": "A long text {}"}, {"entities": ["a", "b"]}, None),
}  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_a_column_that_looks_like_a_part_of_the_task_makes_the_app_ask(part):
    used, more, alternative = PARTS[part]
    if part == "a second label":
        rows = rows_of(used | more)
        for row, value in zip(rows, ["good", "bad", "bad"] * 7, strict=False):
            row["sentiment"] = value
        mappings = detect_schema("rows", list(rows[0]), rows)
    else:
        mappings = mappings_of(used | more)
    [without] = [mapping for mapping in mappings if set(mapping.left_out) == set(more)]
    assert without.columns == mappings_of(used)[0].columns
    column = next(iter(more))
    uses = {other.schema for other in mappings if column in other.columns.values()}
    assert uses == ({alternative} if alternative else set())
    is_last = without.schema == "text" and len(mappings) > 1
    assert mappings[-1 if is_last else 0] is without


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("id", "a{}"), ("source", "the web {}"), ("url", "https://example.org/{}"),
        ("timestamp", "2024-01-01 12:{}"), ("metadata", {"a": "b {}"}), ("split", "{%}"),
        ("language", "{%}"), ("num_tokens", "{}"), ("category", "{%}"), ("title", "A title {}"),
        ("copy_of_it", "What is it, {}?"), ("text", "What is it, {}? It is number {}."),
        ("history", None), ("tools", ""), ("is_verified", "true"), ("score", "0.{}"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("used", [ASKED, CHAT], ids=["answers", "chats"])
def test_an_ordinary_column_is_listed_and_the_app_does_not_ask(used, name, cell):
    [mapping] = mappings_of(used | {name: cell})
    assert mapping.left_out == ()


def test_a_label_in_other_words_is_not_a_second_label():
    rows = rows_of(LABELLED)
    rows = [row | {"label_text": {"a": "good", "b": "bad"}[row["label"]]} for row in rows]
    [mapping] = detect_schema("rows", list(rows[0]), rows)
    assert (mapping.columns["label"], mapping.left_out) == ("label", ())


def test_the_answer_to_leave_a_column_out_is_remembered(write, tmp_path, capfd):
    path = str(write("rows.json", rows_of(PROMPTED | {"label": "{%}"})))
    [option] = operations.check(path)["question"]
    assert option["left_out"] == ["label"]
    with pytest.raises(UserError) as error:
        load_dataset(path, 0.1, 0)
    assert error.value.code == "data.ambiguous_columns"
    data = load_dataset(path, 0.1, 0, column_mapping=offered(path, capfd)[0])
    assert data.column_mapping.left_out == ("label",)
    assert [one["name"] for one in data.unused] == ["label"]
    run = Run.create(tmp_path / "run", Recipe(), data.files())
    assert load_run_data(run) == data


def test_a_rating_that_is_chosen_keeps_the_lowest_good_one(write, capfd):
    rows = [row | {"helpfulness": n % 5} for n, row in enumerate(rows_of(ASKED))]
    path = str(write("rows.json", rows))
    data = load_dataset(path, 0.0, 0, column_mapping=offered(path, capfd)[1])
    assert [row.good for row in data.train[:5]] == [False, False, False, True, True]


LABELS = ["toxic", "obscene", "insult"]


@pytest.mark.parametrize(
    "row",
    [
        {"text": "The soup {} was cold."} | dict.fromkeys(LABELS, 1),
        {"comment_text": "The soup {} was cold.", "id": "a{}"} | dict.fromkeys(LABELS, True),
        {"text": "The soup {} was cold.", "labels": LABELS},
        {"text": "The soup {} was cold.", "label": json.dumps(LABELS)},
    ],
)
def test_several_labels_of_a_text_are_refused_and_named(row):
    with pytest.raises(UserError) as error:
        mappings_of(row)
    assert error.value.code == "data.multi_label"
    named = LABELS if "toxic" in row else [name for name in row if name.startswith("label")]
    assert all(name in str(error.value) for name in named)


SPELLINGS = ["spam", "spam", "spam", " Spam ", "SPAM.", "ham", "ham", "c++", "c"]


def test_other_spellings_of_a_label_are_found_and_unified_on_request(write, capfd):
    rows = [{"text": f"Text {n} here", "label": one} for n, one in enumerate(SPELLINGS, 1)]
    path = str(write("rows.json", rows))
    [mapping] = offered(path, capfd)
    [finding] = [one for one in operations.check(path)["findings"] if one["kind"] == "spellings"]
    assert (finding["count"], finding["rows"], finding["fix"]) == (2, [4, 5], "unify")
    fixed = operations.check(path, column_mapping=mapping)
    assert fixed["labels"] == {"spam": 5, "ham": 2, "c++": 1, "c": 1}
    assert "spellings" not in [one["kind"] for one in fixed["findings"]]


def test_held_out_labels_are_unified_with_those_of_training(write):
    def path(name, labels):
        return str(
            write(name, [{"text": f"{name} {n}", "label": one} for n, one in enumerate(labels)])
        )

    train, test = path("train.json", ["spam", "ham"]), path("test.json", ["SPAM", "Ham"])
    data = load_dataset(train, 0.0, 0, held_out=test, column_mapping={"fixes": ["unify"]})
    assert {row.label for row in data.held_out} == {"spam", "ham"}


def test_characters_without_a_token_are_shown_and_counted(write, tmp_path):
    base = tiny_models.t5(tmp_path / "base", ["make", "apples", "one"])
    targets = ["{ apples }", "one", "apples ; one", "one"]
    rows = [{"source": f"make one {n}", "target": one} for n, one in enumerate(targets)]
    recipe = {"base_model": base, "eval_split": 0.0}
    result = operations.check(str(write("rows.json", rows)), recipe)
    [finding] = [one for one in result["findings"] if one["kind"] == "unknown"]
    assert (finding["count"], finding["rows"]) == (2, [1, 3])
    assert all(repr(one) in finding["words"] for one in "{};")
    shown = result["examples"][0]
    assert [shown["target"][place][0] for place in shown["target_unknown"]] == ["{", "}"]
    assert not next(one for one in result["examples"] if one["row"] == 2).get("target_unknown")


def test_a_tokenizer_with_bytes_has_no_unknown_characters(write):
    rows = [{"prompt": f"Say {n}", "completion": "{猫}\n🙂"} for n in range(4)]
    result = operations.check(str(write("rows.json", rows)), {"base_model": "demo"})
    assert "unknown" not in [one["kind"] for one in result["findings"]]


def test_special_tokens_in_a_plain_text_are_letters_or_kept_on_request(write):
    text = "<|user|> Price {}?<|end|><|assistant|> 40.<|end|>"
    rows = [{"text": "# " + filled(text, n)} for n in range(4)]
    path = str(write("rows.json", rows))
    result = operations.check(path, {"base_model": "demo"})
    [finding] = [one for one in result["findings"] if one["kind"] == "text_controls"]
    assert (finding["count"], finding["fix"]) == (4, "keep_control_tokens")
    tokens = [piece for piece, _ in result["examples"][0]["tokens"]]
    assert (tokens.count("<|end|>"), tokens[-1]) == (1, "<|end|>")
    mapping = {"fixes": ["keep_control_tokens"]}
    kept = operations.check(path, {"base_model": "demo"}, column_mapping=mapping)
    tokens = [piece for piece, _ in kept["examples"][0]["tokens"]]
    assert (tokens.count("<|end|>"), tokens.count("<|user|>"), tokens[-1]) == (2, 1, "<|end|>")
    assert "text_controls" not in [one["kind"] for one in kept["findings"]]


def test_a_fix_that_makes_rows_usable_is_named(write):
    chat = CHAT["messages"]
    greeted = [{"role": "assistant", "content": "Welcome!"}, *chat]
    broken = {"trim": [*chat, chat[0]], "merge": [chat[0], *chat], "drop_greeting": greeted}
    for fix, messages in broken.items():
        path = str(write(f"{fix}.json", rows_of({"messages": messages})))
        with pytest.raises(UserError) as error:
            load_dataset(path, 0.0, 0)
        argument = str(error.value).split("column mapping ")[1].rstrip(".")
        assert json.loads(argument)["fixes"] == [fix]
        assert len(load_dataset(path, 0.0, 0, column_mapping=json.loads(argument)).train) == 20


ANSWERED = {"role": "assistant", "content": "It is {} now."}
UNUSED_PARTS = {
    "a second content": ([ANSWERED | {"text": "Other words"}], "messages: text"),
    "a second thought": (
        [ANSWERED | {"reasoning_content": "So.", "thinking": "Or so."}], "messages: thinking",
    ),
    "a thought of the user": (
        [{"role": "user", "content": "Hi", "reasoning": "Hm."}], "messages: reasoning",
    ),
    "a key of a call": (
        [ANSWERED | {"tool_calls": [{"function": {"name": "f", "arguments": {}, "why": "x"}}]}],
        "messages: why",
    ),
    "a key of a part": (
        [ANSWERED | {"content": [{"type": "text", "text": "It is.", "citations": ["a"]}]}],
        "messages: content: citations",
    ),
}  # fmt: skip


@pytest.mark.parametrize("part", UNUSED_PARTS)
def test_a_part_of_a_message_that_nothing_uses_is_listed(part, write):
    turns, name = UNUSED_PARTS[part]
    end = [] if turns[-1]["role"] == "assistant" else [ANSWERED]
    messages = [{"role": "user", "content": "What is it, {}?"}] * (not end) + turns + end
    result = operations.check(str(write("rows.json", rows_of({"messages": messages}))))
    assert [(one["name"], one["rows"]) for one in result["unused"]] == [(name, 20)]


@pytest.mark.parametrize(
    "cells",
    [
        {"conversation": [{"input": "What is it, {}?", "output": "It is {}."}]},
        {"messages": [{"from": "human", "value": "Hi {}"}, {"from": "gpt", "value": "Hello."}]},
        {"messages": [ANSWERED | {"role": "user"}, ANSWERED | {"from": "gpt", "name": ""}]},
        {
            "query": "What is it, {}?", "tools": [{"name": "f"}],
            "answers": [{"name": "f", "arguments": {"n": "{}"}}],
        },
    ],
    ids=["pairs", "ShareGPT", "two names of one role", "calls"],
)  # fmt: skip
def test_what_is_used_is_not_listed(cells, write):
    assert operations.check(str(write("rows.json", rows_of(cells))))["unused"] == []


def test_accepted_answers_after_the_first_are_listed(write):
    texts, more = ["red", "dark red"], "other answers"
    cells = ((texts, [more]), ({"text": texts, "answer_start": [3, 8]}, ["answer_start", more]))
    for cell, names in cells:
        rows = rows_of({"question": "What is it, {}?", "answers": cell})
        unused = operations.check(str(write("rows.json", rows)))["unused"]
        assert sorted(one["name"] for one in unused) == [f"answers: {name}" for name in names]


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("url", "https://example.org/page/{}"), ("domain", "a-long-domain-{}.example.org"),
        ("file_path", "folder/of/the/file/number-{}.txt"), ("title", "The title of text {}"),
        ("author", "Ann number {}"), ("warc_record_id", "<urn:uuid:a-long-id-of-a-page-{}>"),
    ],
)  # fmt: skip
def test_what_a_crawl_says_about_a_text_is_no_question(name, cell):
    [mapping] = mappings_of({"text": "A long text about thing {}", name: cell})
    assert (mapping.schema, mapping.left_out) == ("text", ())
