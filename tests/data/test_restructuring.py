"""Exports in which a row is not one example are read as their examples."""

import json

import pytest

from peft_space import operations
from peft_space.data.cells import conversation_in
from peft_space.data.dataset import detect_mappings, load_dataset
from peft_space.errors import UserError


def tree(number, ranks=(1, 0)):
    """The rows of a tree: a question, and an answer and a later message for each rank."""
    start = {"message_id": f"q{number}", "parent_id": None, "role": "prompter", "text": "Price?"}
    rows = [start | {"rank": None}]
    for at, rank in enumerate(ranks):
        answer = {"message_id": f"a{number}{at}", "parent_id": f"q{number}", "role": "assistant"}
        rows.append(answer | {"text": f"rank {rank}", "rank": rank})
        later = {"message_id": f"l{number}{at}", "parent_id": f"a{number}{at}", "role": "prompter"}
        rows.append(later | {"text": "Thanks", "rank": None})
    return rows


def nested(rows):
    """The same tree as one object."""
    inside = {row["message_id"]: row | {"replies": []} for row in rows}
    for row in rows[1:]:
        inside[row["parent_id"]]["replies"].append(inside[row["message_id"]])
    return {"message_tree_id": "t", "prompt": inside[rows[0]["message_id"]]}


def node(parent, role=None, parts=(), kind="text", **content):
    content = {"content_type": kind, "parts": list(parts)} | content
    message = {"author": {"role": role}, "content": content} if role else None
    return {"parent": parent, "message": message, "children": []}


CHATGPT = {
    "title": "T",
    "current_node": "d",
    "mapping": {
        "a": node(None),
        "b": node("a", "user", ["Price?"]),
        "x": node("b", "assistant", ["An older answer"]),
        "c": node("b", "assistant", kind="thoughts", thoughts=[{"content": "I look."}]),
        "d": node("c", "assistant", ["40."]),
    },
}


def label_studio(**values):
    """A task with a result for each value."""
    results = [
        {"from_name": f"f{n}", "value": {key.rstrip("_"): value}}
        if key != "labels"
        else {"from_name": "f", "value": {"labels": value, "start": 3, "end": 7}}
        for n, (key, value) in enumerate(values.items())
    ]
    return {"id": 1, "data": {"text": "In Oslo"}, "annotations": [{"result": results}]}


WORDS = [
    {"Sentence #": "Sentence: 1", "Word": "In", "POS": "IN", "Tag": "O"},
    {"Sentence #": "", "Word": "Oslo", "POS": "NNP", "Tag": "B-geo"},
    {"Sentence #": "Sentence: 2", "Word": "Hi", "POS": "UH", "Tag": "O"},
]
SQUAD = {
    "title": "T",
    "paragraphs": [
        {
            "context": "It costs 40.",
            "qas": [
                {"id": str(n), "question": "Price?", "answers": [{"text": "40"}]} for n in "ab"
            ],
        }
    ],
}
CHAT = [("user", "Price?"), ("assistant", "rank 0")]
FORMS = {
    "rows of trees": ([*tree(1), *tree(2)], "messages", 2),
    "trees": ([nested(tree(1)), nested(tree(2))], "messages", 2),
    "trees without ranks": (tree(1, ranks=(None, None)), "messages", 2),
    "ChatGPT": ([CHATGPT], "messages", 1),
    "Label Studio: choices": ([label_studio(choices=["good"])], "text_classification", 1),
    "Label Studio: spans": ([label_studio(labels=["LOC"])], "token_classification", 1),
    "Label Studio: texts": ([label_studio(text=["A town"])], "prompt_completion", 1),
    "Label Studio: a rating": ([label_studio(rating=4)], "text_classification", 1),
    "Label Studio: a taxonomy": (
        [label_studio(taxonomy=[["Food", "Soup"]])], "text_classification", 1,
    ),
    "Dataturks: spans": (
        [{"content": "In Oslo", "annotation": [
            {"label": ["LOC"], "points": [{"start": 3, "end": 6, "text": "Oslo"}]},
        ]}], "token_classification", 1,
    ),
    "Dataturks: labels": (
        [{"content": "In Oslo", "annotation": {"labels": ["place"]}}], "text_classification", 1,
    ),
    "Argilla": (
        [{"text": "In Oslo", "label.responses": ["a", "place"], "label.suggestion": "b",
          "label.responses.status": ["draft", "submitted"]}], "text_classification", 1,
    ),
    "CoQA": (
        [{"story": "It costs 40.", "questions": [{"input_text": "Price?"}, {"input_text": "OK?"}],
          "answers": [{"input_text": "40."}, {"input_text": "Yes."}]}], "messages", 1,
    ),
    "lists about a text": (
        [{"context": "It costs 40.", "questions": ["Price?", "OK?"], "answers": ["40.", "Yes."]}],
        "messages", 1,
    ),
    "pairs about a text": (
        [{"passage": "It costs 40.", "qa_pairs": [
            {"question": "Price?", "answer": "40."}, {"question": "OK?", "answer": "Yes."},
        ]}], "question_answer", 2,
    ),
    "several rejected answers": (
        [{"prompt": "Price?", "chosen": ["40."], "rejected": ["No.", "4."]}], "preference", 2,
    ),
    "words": (WORDS, "token_classification", 2),
    "SQuAD": ([SQUAD], "question_answer", 2),
}  # fmt: skip


def loaded(path, mapping=None):
    return load_dataset(str(path), 0.0, 0, column_mapping=mapping)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.sample(5)
def test_each_example_of_an_export_is_a_row(write, form):
    rows, schema, count = FORMS[form]
    data = loaded(write("rows.json", rows))
    assert (data.column_mapping.schema, len(data.train), data.num_problems) == (schema, count, 0)
    assert data.notes


READ_AS = {
    "Label Studio: a rating": {"label": "4"},
    "Label Studio: a taxonomy": {"label": "Food / Soup"},
    "Dataturks: spans": {"tags": ["O", "B-LOC"]},
    "Dataturks: labels": {"label": "place"},
    "Argilla": {"label": "place"},
}


@pytest.mark.parametrize("form", READ_AS)
def test_what_was_annotated_is_learned(write, form):
    row = vars(loaded(write("rows.json", FORMS[form][0])).train[0])
    assert {name: row[name] for name in READ_AS[form]} == READ_AS[form]


@pytest.mark.parametrize("form", ["CoQA", "lists about a text"])
def test_questions_about_a_text_are_one_conversation(write, form):
    [row] = loaded(write("rows.json", FORMS[form][0])).train
    contents = [message["content"] for message in row.messages]
    assert contents == ["It costs 40.\n\nPrice?", "40.", "OK?", "Yes."]


def test_the_ground_truth_of_several_annotations_is_read(write):
    task = label_studio(choices=["good"])
    other = label_studio(choices=["bad"])["annotations"][0] | {"ground_truth": True}
    task["annotations"].append(other)
    assert loaded(write("rows.json", [task])).train[0].label == "bad"


@pytest.mark.parametrize(
    "task",
    [
        label_studio(brush=[1, 2]),
        label_studio() | {"annotations": [], "predictions": [{"result": [{"value": {}}]}]},
    ],
)
def test_annotations_that_are_not_read_are_asked_about(write, task):
    with pytest.raises(UserError) as error:
        loaded(write("rows.json", [task, task]))
    assert error.value.code == "data.ambiguous_columns"


PAIRS = [
    ({"response_0": "40.", "response_1": "No."}, {"better_response_id": 0}),
    ({"response_0": "No.", "response_1": "40."}, {"better_response_id": 1, "is_safe": True}),
    ({"response_1": "40.", "response_2": "No."}, {"preference_strength": -2}),
    ({"output_1": "No.", "output_2": "40."}, {"preference": "2"}),
    ({"answer_0": "No.", "answer_1": "40."}, {"score_0": "-0.5", "score_1": "0.5"}),
    ({"human_ref_A": "40.", "human_ref_B": "No."}, {"labels": 1}),
    ({"response_a": "No.", "response_b": "40."}, {"winner": "model_b"}),
    ({"response_a": "40.", "response_b": "No."}, {"winner_model_a": 1, "winner_model_b": 0}),
]


@pytest.mark.parametrize(("answers", "choice"), PAIRS)
@pytest.mark.sample(6)
def test_the_better_of_two_answers_is_the_chosen_one(write, answers, choice):
    rows = [{"prompt": f"Price {n}?"} | answers | choice for n in range(4)]
    data = loaded(write("rows.json", rows))
    assert data.column_mapping.schema == "preference"
    first = data.train[0]
    contents = [first.prompt[0], first.chosen[0], first.rejected[0]]
    assert [message["content"] for message in contents] == ["Price 0?", "40.", "No."]


def test_a_tie_of_two_answers_is_left_out(write):
    rows = [
        {"prompt": f"Price {n}?", "response_a": "40.", "response_b": "No.", "winner": winner}
        for n, winner in enumerate(("model_a", "tie"))
    ]
    data = loaded(write("rows.json", rows))
    assert [row.row for row in data.train] == [1]
    assert [problem.row for problem in data.problems] == [2]


def turns(row):
    return [(message["role"], message["content"]) for message in row.messages]


def test_the_best_ranked_thread_of_a_tree_is_read_up_to_its_last_answer(write):
    for rows in (tree(1), [nested(tree(1))]):
        [row] = loaded(write("rows.json", rows)).train
        assert turns(row) == CHAT


def test_a_deleted_message_is_not_read(write):
    rows = tree(1)
    rows[3]["deleted"] = True
    [row] = loaded(write("rows.json", rows)).train
    assert turns(row) == [CHAT[0], ("assistant", "rank 1")]


def test_the_open_branch_of_a_chatgpt_conversation_is_read_with_its_thoughts(write):
    [row] = loaded(write("rows.json", [CHATGPT])).train
    assert turns(row) == [("user", "Price?"), ("assistant", "40.")]
    assert row.messages[-1]["reasoning_content"] == "I look."


def test_annotations_of_label_studio_are_labels_tags_and_answers(write):
    [row] = loaded(write("a.json", [label_studio(choices=["good"])])).train
    assert (row.text, row.label) == ("In Oslo", "good")
    [row] = loaded(write("b.json", [label_studio(labels=["LOC"])])).train
    assert row.tags == ["O", "B-LOC"]
    [row] = loaded(write("c.json", [label_studio(text=["A town"])])).train
    assert turns(row)[-1] == ("assistant", "A town")
    with pytest.raises(UserError) as error:
        loaded(write("d.json", [label_studio(choices=["good", "old"])]))
    assert error.value.code == "data.multi_label"


def test_words_in_rows_are_sentences_with_the_number_of_their_first_word(write):
    first, second = loaded(write("rows.json", WORDS)).train
    assert (first.row, first.tokens, first.tags) == (1, ["In", "Oslo"], ["O", "B-geo"])
    assert (second.row, second.tokens) == (3, ["Hi"])


def test_each_direction_of_a_translation_is_a_choice(write):
    rows = [{"translation": {"de": f"Guten Tag {n}", "en": f"Good day {n}"}} for n in range(5)]
    for rows_of_form in (rows, [row["translation"] for row in rows]):
        _, mappings = detect_mappings(str(write("rows.json", rows_of_form)))
        pairs = [(one.columns["source"], one.columns["target"]) for one in mappings]
        assert {one.schema for one in mappings} == {"source_target"}
        assert pairs == [("de", "en"), ("en", "de")]
    [first, *_] = loaded(write("rows.json", rows), mappings[1].as_choice()).train
    assert turns(first) == [("user", "Good day 0"), ("assistant", "Guten Tag 0")]


@pytest.mark.sample(5)
@pytest.mark.parametrize("form", ["rows of trees", "ChatGPT", "Label Studio: choices", "SQuAD"])
@pytest.mark.parametrize("broken", [None, [], {}, "x", [None], {"a": 1}])
def test_a_broken_row_in_an_export_is_a_problem_and_no_crash(write, form, broken):
    rows = json.loads(json.dumps(FORMS[form][0] * 20))
    last = rows[-1]
    for key in last:
        rows.append(last | {key: broken})
    data = loaded(write("rows.json", rows))
    assert len(data.train) > 0


def test_a_held_out_export_is_read_too(write):
    data = load_dataset(
        str(write("a.json", tree(1))), 0.0, 0, held_out=str(write("b.json", [CHATGPT]))
    )
    assert (len(data.train), len(data.held_out)) == (1, 1)


TEMPLATED = {
    "ChatML": "<|im_start|>user\nPrice?<|im_end|>\n<|im_start|>assistant\n40.<|im_end|>\n",
    "Llama 3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nPrice?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n40.<|eot_id|>",
    "Gemma": "<bos><start_of_turn>user\nPrice?<end_of_turn>\n<start_of_turn>model\n40."
    "<end_of_turn>\n<eos>",
    "Llama 2": "<s>[INST] Price? [/INST] 40. </s>",
    "Phi": "<|user|>\nPrice?<|end|>\n<|assistant|>\n40.<|end|>",
    "Guanaco": "### Human: Price?### Assistant: 40.",
    "HH": "\n\nHuman: Price?\n\nAssistant: 40.",
    "HH at the start": "Human: Price?\n\nAssistant: 40.",
    "Glaive": "USER: Price?\n\n\nASSISTANT: 40. <|endoftext|>\n\n\n",
    "Alpaca": "### Instruction:\nPrice?\n\n### Response:\n40.",
    "Alpaca with an empty input": "### Instruction:\nPrice?\n\n### Input:\n\n\n### Response:\n40.",
    "Dolly": "### Instruction:\nPrice?\n\n### Response:\n40.\n\n### End",
    "headings on one line": "### Question: Price?\n### Answer: 40.</s>",
    "smaller headings": "## Input\nPrice?\n## Output\n40.",
    "transcript": "User: Price?\nAssistant: 40.",
    "Q and A": "Q: Price?\nA: 40.",
    "question and answer": "Question: Price?\n\nAnswer: 40.",
}


@pytest.mark.parametrize("form", TEMPLATED)
@pytest.mark.sample(3)
def test_a_templated_text_is_offered_as_a_conversation(write, form):
    rows = [{"text": TEMPLATED[form].replace("40", f"4{n}")} for n in range(4)]
    path = write("rows.json", rows)
    as_chat, as_text = operations.check(str(path))["question"]
    assert (as_chat["schema"], as_text["schema"]) == ("messages", "text")
    [first, *_] = loaded(path, as_chat).train
    assert turns(first) == [("user", "Price?"), ("assistant", "40.")]
    assert loaded(path, as_text).train[0].text == rows[0]["text"]


@pytest.mark.parametrize(
    "text",
    [
        "I like <|im_start|>user\nPrice?<|im_end|>\n<|im_start|>assistant\n40.<|im_end|>",
        "<|im_start|>user\nPrice? and <|im_start|>assistant\n40.<|im_end|>",
        "Human: Price?",
        "The Human: a story\n\nAssistant: no",
        "### A title\n\nText",
        "[INST] Price?",
        "## Question\nWhy?\n\n## Background\nIt rains.",
        "### Response:\n40.",
        "An answer\n\nQ: Price?\nA: 40.",
    ],
)
def test_a_text_that_only_contains_signs_of_a_template_is_a_text(text):
    assert conversation_in(text) is None


def test_text_before_sections_is_a_system_message(write):
    text = "Below is a task.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n3"
    path = write("rows.json", [{"text": text}])
    as_chat, _ = operations.check(str(path))["question"]
    expected = [("system", "Below is a task."), ("user", "Add.\n\n1 2"), ("assistant", "3")]
    assert turns(loaded(path, as_chat).train[0]) == expected


def _chat(*speakers):
    return {"chat": [{"speaker": name, "text": f"I am {name}."} for name in speakers]}


def test_it_is_asked_who_of_the_people_in_a_conversation_is_the_assistant(write):
    path = write("rows.json", [_chat("Anna", "Ben"), _chat("Anna", "Ben", "Anna", "Ben")])
    first, second = operations.check(str(path))["question"]
    assert (first["assistant"], second["assistant"]) == ("Ben", "Anna")
    _, row = loaded(path, first).train
    assert [role for role, _ in turns(row)] == ["user", "assistant", "user", "assistant"]


def test_the_only_speaker_without_a_known_role_is_the_assistant(write):
    data = loaded(write("rows.json", [_chat("Customer", "Support Agent")]), None)
    assert turns(data.train[0]) == [
        ("user", "I am Customer."), ("assistant", "I am Support Agent."),
    ]  # fmt: skip
    assert data.column_mapping.assistant == "Support Agent"


def test_an_unknown_role_beside_an_assistant_leaves_the_row_out(write):
    data = loaded(
        write("rows.json", [_chat("user", "assistant"), _chat("narrator", "assistant")]), None
    )
    assert (len(data.train), data.num_problems) == (1, 1)


_TEXTS = ["Oslo", "Rome", "Lima", "Kyiv"]


def _columns(names, texts=_TEXTS):
    return dict(zip(names, texts, strict=False))


CHOICE_COLUMNS = {
    "letters": ({"question": "Where?"} | _columns("ABCD"), "answer", ["B", "C", "b)", " C. "]),
    "letters and numbers": ({"question": "Where?"} | _columns("ABCD"), "answer", [1, 2, 0, 3]),
    "letters and texts": ({"question": "Where?"} | _columns("abcd"), "answer", ["Rome", "Lima"]),
    "medical": (
        {"question": "Where?"} | _columns(["opa", "opb", "opc", "opd"]), "cop", [1, 2, 0],
    ),
    "numbers from 1": (
        {"sentence": "In _."} | _columns(["option1", "option2"], _TEXTS[1:]), "answer", ["1", "2"],
    ),
    "numbers from 0": ({"goal": "Go"} | _columns(["sol1", "sol2"], _TEXTS[1:]), "label", [0, 1]),
    "endings": (
        {"ctx": "In"} | _columns([f"ending{n}" for n in range(4)]), "label", ["1", "2", "0"],
    ),
    "names of columns": (
        {"prompt": "Where?"} | _columns(["choice_a", "choice_b", "choice_c"]), "correct_answer",
        ["choice_b", "choice_c"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", CHOICE_COLUMNS)
def test_choices_in_columns_are_listed_and_the_right_one_is_the_answer(write, form):
    cells, key, keys = CHOICE_COLUMNS[form]
    rows = [{name: f"{cell}" for name, cell in cells.items()} | {key: one} for one in keys]
    examples = loaded(write("rows.json", rows)).train
    asked, answers = zip(*(row.messages for row in examples), strict=True)
    assert all("A. " in question["content"] and "B. " in question["content"] for question in asked)
    first = [answer["content"].partition(". ")[2] for answer in answers][:2]
    assert first == ["Rome", "Lima"]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "What is a to b?", "a": "1", "b": "2", "answer": "It is the half."},
        {"question": "Where?", "choice": "Oslo", "answer": "Oslo"},
        {"text": "Where?", "x1": "Oslo", "x2": "Rome", "label": "x1"},
    ],
)
def test_columns_that_are_no_choices_stay_columns(write, row):
    path = write("rows.json", [row, row])
    assert {*row} == {*operations.check(str(path))["columns"]}
