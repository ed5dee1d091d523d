"""Tables of second answers, verdicts, masks and prompts that a template wrote: read, or asked."""

import pytest

from peft_space import operations
from peft_space.data.column_mapping import is_question
from peft_space.data.dataset import load_dataset
from peft_space.data.schema_detection import detect_schema

ROWS = 24
ASKED = {"question": "Where is number {n}?", "answer": "Near the river, {n} steps on."}
CHAT = {
    "messages": [
        {"role": "user", "content": "Where is number {n}?"},
        {"role": "assistant", "content": "Near the river, {n} steps on."},
    ]
}
PROSE = "It was built long ago by {n} makers."


def filled(cell, number):
    """A cell of one row. A tuple has the values that rows have in turn."""
    if isinstance(cell, tuple):
        return cell[number % len(cell)]
    if isinstance(cell, str):
        return cell.replace("{n}", str(number))
    if isinstance(cell, list):
        return [filled(one, number) for one in cell]
    if isinstance(cell, dict):
        return {key: filled(one, number) for key, one in cell.items()}
    return cell


def rows_of(row):
    return [filled(row, number) for number in range(ROWS)]


def mappings_of(row):
    return detect_schema("rows", list(row), rows_of(row))


def read(write, row):
    return load_dataset(str(write("rows.json", rows_of(row))), 0.0, 0)


def texts_of(example):
    return [message["content"] for message in example.messages]


@pytest.mark.parametrize(
    "column",
    [
        "original_answer", "ai_answer", "gpt4_answer", "student_answer", "weak_answer", "draft",
        "base_model_output", "model_prediction", "corrected", "revision", "final", "negative",
        "internal_monologue", "deliberation", "working", "cot_content", "Begründung",
    ],
)  # fmt: skip
def test_another_text_next_to_an_answer_makes_the_app_ask(column):
    mappings = mappings_of({**ASKED, column: PROSE})
    assert is_question(mappings)
    assert mappings[0].left_out == (column,)


@pytest.mark.parametrize("column", ["generated_solution", "r1_answer", "model_response"])
def test_another_answer_is_offered_as_the_one_to_learn(column):
    row = {"problem": ASKED["question"], "expected_answer": ("4", "5", "6"), column: PROSE}
    answers = [one.columns["answer"] for one in mappings_of(row)]
    assert answers == ["expected_answer", column]


@pytest.mark.parametrize(
    "column",
    [
        "original_question",
        "formatted_query",
        "seed",
        "title",
        "topic",
        "file_name",
        "author",
        "url",
    ],
)
def test_a_detail_next_to_an_answer_does_not(column):
    assert not is_question(mappings_of({**ASKED, column: PROSE}))


VERDICTS = {
    "thumbs_down": (True, False), "harmful": (True, False), "toxicity": (0, 1),
    "refused": (True, False), "response_harm_label": ("harmful", "unharmful"),
    "keep": (True, False), "use": ("yes", "no"), "qa_result": ("ok", "wrong"),
    "review_status": ("accepted", "needs fix"), "score": ("64%", "20%", "90%"),
    "rating": ("★★★", "★", "★★★★★"), "CSAT Score": (1, 3, 5), "nps": (0, 5, 9),
    "Bewertung": (1, 3, 5), "note sur 5": (1, 3, 5), "评分": (1, 3, 5), "puntuación": (1, 3, 5),
}  # fmt: skip


@pytest.mark.parametrize("column", VERDICTS)
def test_a_verdict_on_the_answer_makes_the_app_ask(column):
    mappings = mappings_of({**ASKED, column: VERDICTS[column]})
    assert is_question(mappings)
    assert column in mappings[0].left_out


@pytest.mark.parametrize(
    ("question", "answer"),
    [("Frage", "Antwort"), ("pregunta", "respuesta"), ("问题", "答案"), ("вопрос", "ответ")],
)
def test_columns_in_other_languages_are_read_with_their_verdicts(question, answer):
    row = {question: ASKED["question"], answer: ASKED["answer"]}
    [mapping] = mappings_of(row)
    assert mapping.columns == {"question": question, "answer": answer}
    schemas = [one.schema for one in mappings_of({**row, "Bewertung": ("gut", "schlecht")})]
    assert "unpaired_preference" in schemas


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("train_on_turn", [False, True]), ("turn_mask", [0, 1]), ("assistant_masks", [0, 0, 1]),
        ("labels", [-100, -100, 5]), ("trainable", (True, False)), ("is_train", (True, False)),
        ("train_on_last_only", True),
    ],
)  # fmt: skip
def test_a_mask_next_to_a_chat_makes_the_app_ask(column, cell):
    assert mappings_of({**CHAT, column: cell})[0].left_out == (column,)


ABOUT_TEXTS = {
    "annotated tokens": {"document": "Anna {n}", "tokens": [{"text": "Anna", "label": "PER"}]},
    "paraphrases with a category": {
        "text": PROSE, "paraphrases": ["It is {n}", "So {n}"], "category": ("question", "sentence"),
    },
    "a rewriting with a category": {
        "text": PROSE, "rewrite": "So {n} it is for all", "category": ("a", "b"),
    },
    "an intent next to tags": {
        "tokens": ["fly", "to", "Oslo"], "tags": ["O", "O", "B-LOC"], "intent": ("flight", "fare"),
    },
    "an expected answer next to a chat": {**CHAT, "expected_answer": PROSE},
}  # fmt: skip


@pytest.mark.parametrize("what", ABOUT_TEXTS)
def test_what_a_text_is_annotated_with_makes_the_app_ask(what):
    assert is_question(mappings_of(ABOUT_TEXTS[what]))


HELD = {
    "answers of a long table": (
        {
            "question_title": "A title {n}", "question_body": PROSE,
            "answer_body": "So {n}, " + PROSE, "answer_score": (1, 2, 3),
        },
        {"answer_body"},
    ),
    "a resolution": (
        {
            "Ticket Subject": "Lamp {n}", "Ticket Description": PROSE,
            "Resolution": "We sent number {n} again.",
        },
        {"Resolution"},
    ),
    "several answers": (
        {"input": PROSE, "answer_icliniq": "So {n} it is", "answer_chatgpt": "Or {n} it is"},
        {"answer_icliniq", "answer_chatgpt"},
    ),
    "a query": ({"sql_prompt": PROSE, "sql_context": "CREATE TABLE t{n} (a INT)",
                 "sql": "SELECT a FROM t{n}"}, {"sql"}),
}  # fmt: skip


@pytest.mark.parametrize("what", HELD)
def test_each_text_that_is_called_an_answer_is_offered_and_no_other_is_forgotten(what):
    row, answers = HELD[what]
    mappings = mappings_of(row)
    offered = [one for one in mappings if "answer" in one.columns]
    assert answers <= {one.columns["answer"] for one in offered}
    assert offered[0].columns["answer"] in answers
    texts = {name for name, cell in row.items() if isinstance(cell, str) and "title" not in name}
    forgotten = texts - {"Ticket Subject"} - {*offered[0].columns.values(), *offered[0].left_out}
    assert not forgotten


def test_ids_are_not_offered_as_texts():
    row = {"id": "chat-{n}", "created": "2026-01-0{n}", "note_de": PROSE, "note_en": "So {n} it is"}
    used = {name for one in mappings_of(row) for name in one.columns.values()}
    assert used == {"note_de", "note_en"}


def test_numbers_without_a_header_are_offered_as_labels(write):
    lines = [
        f'"{n % 4 + 1}","Title {n} here","Body {n} has several words in it."' for n in range(24)
    ]
    path = write("news.csv", "\n".join(lines) + "\n")
    [first, *_] = operations.check(str(path))["question"]
    assert first["schema"] == "text_classification"
    assert first["columns"]["label"] == "column 1"


# Preferences and ratings with a second input


INPUTS = {
    "a rated answer": ({"prompt": "Go", "completion": "So {n}", "label": (True, False)}, "input"),
    "a rated answer with a passage": (
        {"prompt": "Go", "completion": "So {n}", "label": (True, False)}, "passage",
    ),
    "a preference": ({"instruction": "Go", "chosen": "So {n}", "rejected": "No {n}"}, "input"),
    "a preference with a context": (
        {"prompt": "Go", "chosen": "So {n}", "rejected": "No {n}"}, "context",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", INPUTS)
def test_the_second_input_of_a_rated_answer_is_part_of_its_prompt(write, what):
    row, column = INPUTS[what]
    first = read(write, {**row, column: PROSE}).train[0]
    prompt = first.prompt if hasattr(first, "prompt") else first.messages
    assert prompt[0]["content"] == "Go\n\n" + PROSE.replace("{n}", "0")


def test_the_history_of_a_preference_precedes_its_prompt(write):
    row = {"instruction": "Go", "history": [["Hi", "Ho"]], "chosen": "So {n}", "rejected": "No {n}"}
    prompt = read(write, row).train[0].prompt
    assert [message["content"] for message in prompt] == ["Hi", "Ho", "Go"]


# Prompts that a chat template has written


RENDERED = {
    "ChatML": ("<|im_start|>user\nHi {n}<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
    "Llama 3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi {n}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>",
    ),
    "Llama 2": ("<s>[INST] Hi {n} [/INST]", "</s>"),
    "Gemma": ("<bos><start_of_turn>user\nHi {n}<end_of_turn>\n<start_of_turn>model\n",
              "<end_of_turn>"),
    "Zephyr": ("<|user|>\nHi {n}</s>\n<|assistant|>\n", "</s>"),
    "Alpaca": ("### Instruction:\nHi {n}\n\n### Response:\n", ""),
}  # fmt: skip


@pytest.mark.parametrize("family", RENDERED)
def test_a_prompt_that_a_template_wrote_is_read_as_its_messages(write, family):
    prompt, end = RENDERED[family]
    first = read(write, {"prompt": prompt, "completion": f"Ho {{n}}.{end}"}).train[0]
    assert texts_of(first) == ["Hi 0", "Ho 0."]
    row = {"prompt": prompt, "chosen": f"Ho {{n}}{end}", "rejected": f"No {{n}}{end}"}
    first = read(write, row).train[0]
    answers = [message["content"] for message in (*first.prompt, *first.chosen, *first.rejected)]
    assert answers == ["Hi 0", "Ho 0", "No 0"]


@pytest.mark.parametrize(
    "text", ["<|im_start|>user\nHi<|im_end|>", "[INST] Hi [/INST]", "<start_of_turn>user\nHi"]
)
def test_markers_of_a_template_inside_of_a_message_are_a_finding(write, text):
    turns = [
        {"role": "user", "content": f"Read {{n}}: {text}"},
        {"role": "assistant", "content": "A"},
    ]
    assert "markers" in [one.kind for one in read(write, {"messages": turns}).findings]
    assert "markers" not in [one.kind for one in read(write, ASKED).findings]


SPOKEN = {
    "capitals": "CUSTOMER: Hi {n}\nAGENT: Ho",
    "bold names": "**User:** Hi {n}\n\n**Assistant:** Ho",
    "times": "10:01 Customer: Hi {n}\n10:02 Agent: Ho",
    "times in brackets": "[00:00:03] Customer: Hi {n}\n[00:00:09] Agent: Ho",
    "names in brackets": "[User] Hi {n}\n[Assistant] Ho",
    "tags": "<user>Hi {n}</user>\n<assistant>Ho</assistant>",
    "Harmony": (
        "<|start|>user<|message|>Hi {n}<|end|><|start|>assistant<|channel|>final<|message|>Ho"
        "<|return|>"
    ),
    "Command R": (
        "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi {n}<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Ho<|END_OF_TURN_TOKEN|>"
    ),
    "Kimi": (
        "<|im_user|>user<|im_middle|>Hi {n}<|im_end|><|im_assistant|>assistant<|im_middle|>Ho"
        "<|im_end|>"
    ),
    "GLM": "[gMASK]<sop><|user|>\nHi {n}<|assistant|>\nHo",
}


@pytest.mark.parametrize("form", SPOKEN)
def test_a_text_of_a_conversation_is_offered_as_one(write, form):
    row = {"text": SPOKEN[form]}
    assert mappings_of(row)[0].schema == "messages"
    path = write("rows.json", rows_of(row))
    mapping = {"schema": "messages", "columns": {"messages": "text"}}
    first = load_dataset(str(path), 0.0, 0, column_mapping=mapping).train[0]
    assert texts_of(first) == ["Hi 0", "Ho"]


def test_the_analysis_in_a_text_of_harmony_is_a_thought(write):
    text = (
        "<|start|>user<|message|>Hi<|end|><|start|>assistant<|channel|>analysis<|message|>hm<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Ho<|return|>"
    )
    path = write("rows.json", [{"text": text}])
    mapping = {"schema": "messages", "columns": {"messages": "text"}}
    [first] = load_dataset(str(path), 0.0, 0, column_mapping=mapping).train
    assert first.messages[-1]["reasoning_content"] == "hm"


def test_results_of_functions_in_a_text_of_glaive_are_read(write):
    chat = (
        'USER: Price {n}?\n\n\nASSISTANT: <functioncall> {"name": "price", '
        '"arguments": \'{"room": 1}\'} <|endoftext|>\n\n\nFUNCTION RESPONSE: {"price": 9}\n\n\n'
        "ASSISTANT: It is 9. <|endoftext|>"
    )
    first = read(write, {"system": "SYSTEM: You are helpful", "chat": chat}).train[0]
    roles = [message["role"] for message in first.messages]
    assert roles == ["system", "user", "assistant", "tool", "assistant"]


# Several answers and choices


@pytest.mark.parametrize(
    "answers",
    [
        [{"text": "mill", "answer_start": 4}],
        [{"text": "mill", "answer_start": 4}, {"text": "the mill", "answer_start": 0}],
        "[{'text': 'mill', 'answer_start': 4}]",
        {"a_id": ["x", "y"], "text": ["mill", "no"], "score": [9, 1]},
    ],
    ids=str,
)
def test_the_first_of_the_answers_of_a_question_is_learned(write, answers):
    first = read(write, {"question": "Where {n}?", "context": PROSE, "answers": answers}).train[0]
    assert texts_of(first)[-1] == "mill"


@pytest.mark.parametrize("column", ["answer", "answers", "ideal"])
def test_the_first_accepted_answer_is_learned_and_the_others_are_listed(write, column):
    data = read(write, {"question": "Where {n}?", column: ["mill", "the mill"]})
    assert texts_of(data.train[0])[-1] == "mill"
    assert [one["name"] for one in data.unused] == [f"{column}: other answers"]


def test_a_question_without_an_accepted_answer_says_so(write):
    data = read(write, {"question": "Where {n}?", "answers": ([], ["mill"])})
    assert data.problems[0].problem == "the question has no answer"


def test_a_list_that_is_learned_as_json_is_a_finding(write):
    data = read(write, {"question": "Colors {n}?", "answer": '["red", "blue"]'})
    assert texts_of(data.train[0])[-1] == '["red", "blue"]'
    assert "structured" in [one.kind for one in data.findings]


@pytest.mark.parametrize(
    "key", ["correct", "Correct Answer", "Ans", "right", "correct_letter", "key"]
)
def test_one_odd_key_does_not_make_a_choice_the_answer(write, key):
    marks = [*"ABCD", "AC", *"BCD", *"ABCD" * 4]
    rows = [
        {"question": f"Q{n}?", "A": f"w{n}", "B": "x", "C": "y", "D": "z", key: mark}
        for n, mark in enumerate(marks)
    ]
    data = load_dataset(str(write("quiz.json", rows)), 0.0, 0)
    assert [texts_of(row)[-1] for row in data.train[:4]] == ["A. w0", "B. x", "C. y", "D. z"]
    assert [problem.row for problem in data.problems] == [5]


def test_choices_without_a_key_are_not_answers():
    row = {"question": "Q{n}?", "A": "w{n}", "B": "x", "C": "y", "D": "z", "topic": "map"}
    assert is_question(mappings_of(row))


@pytest.mark.parametrize(
    ("question", "choice"), [("citing_prompt", "holding_"), ("question", "ans")]
)
def test_choices_of_other_names_are_read(write, question, choice):
    cells = {f"{choice}{n}": f"choice {n} of {{n}}" for n in range(3)}
    first = read(write, {question: "Which {n}?", **cells, "label": (0, 1, 2)}).train[0]
    assert texts_of(first)[-1] == "A. choice 0 of 0"


def test_a_row_on_which_annotators_of_snli_did_not_agree_is_left_out(write):
    row = {
        "gold_label": ("neutral", "entailment", "-"),
        "sentence1": PROSE,
        "sentence2": "So {n} it is",
    }
    data = read(write, row)
    assert data.num_problems == 8
    assert set(data.labels) == {"neutral", "entailment"}


@pytest.mark.parametrize(("value", "is_listed"), [(True, True), (1, True), (False, False)])
def test_a_question_that_is_marked_as_trained_is_listed(write, value, is_listed):
    turns = [
        {"role": "user", "content": "Hi {n}", "train": value},
        {"role": "assistant", "content": "Ho", "train": True},
    ]
    names = [one["name"] for one in read(write, {"messages": turns}).unused]
    assert ("messages: train" in names) == is_listed


DETAILS = {
    "last modified": "2026-01-01 10:{n}", "Erstellt am": "01.01.2026 10:{n}", "phone": "+49 30 {n}",
    "Duration": "{n} min 3 s", "Assignee": "Bob Miller {n}", "session": "a8f3b2c1d4e5f6a7b8c9d0{n}",
    "pdf": "Handbook {n}.pdf", "sku": "AB-{n}-CD-0123456789-XYZ", "page": "page {n}",
    "city": "New York {n}",
}  # fmt: skip


@pytest.mark.parametrize("column", DETAILS)
@pytest.mark.parametrize("used", [ASKED, {"text": PROSE, "label": ("a", "b")}], ids=["qa", "text"])
def test_dates_names_and_files_are_no_second_text(used, column):
    assert not is_question(mappings_of({**used, column: DETAILS[column]}))


GRADES = {
    "Bewertung": ("hilfreich", "nicht hilfreich"), "avis": ("utile", "pas utile"),
    "评价": ("满意", "不满意"), "evaluation": ("good", "acceptable"), "quality": ("high", "low"),
    "verdict": ("supported", "refuted"), "Freigabe": ("ja", "nein"), "ok?": ("✓", "✗"),
}  # fmt: skip


@pytest.mark.parametrize("column", GRADES)
def test_a_verdict_in_other_words_makes_the_app_ask(column):
    mappings = mappings_of({**ASKED, column: GRADES[column]})
    assert is_question(mappings)
    assert column in mappings[0].left_out


def test_a_verdict_on_answers_of_unknown_names_is_offered():
    row = {"client_note": ASKED["question"], "agent_note": ASKED["answer"],
           "rating": ("good", "bad")}  # fmt: skip
    mappings = mappings_of(row)
    assert mappings[0].schema == "question_answer"
    assert mappings[0].left_out == ("rating",)
    assert "unpaired_preference" in [one.schema for one in mappings]


BESIDE = {
    "docs": [PROSE, "And so it was for {n} years."],
    "sources": [{"title": "A", "text": PROSE}],
    "facts": [PROSE],
}


@pytest.mark.parametrize("column", BESIDE)
def test_lists_of_sentences_next_to_an_answer_make_the_app_ask(column):
    assert mappings_of({**ASKED, column: BESIDE[column]})[0].left_out == (column,)


@pytest.mark.parametrize("column", ["character", "scenario", "role_prompt"])
def test_a_role_that_is_told_next_to_a_chat_makes_the_app_ask(column):
    assert mappings_of({**CHAT, column: "You are a pirate on a ship."})[0].left_out == (column,)


def test_what_was_extracted_from_a_text_makes_the_app_ask():
    text = "The mill stands near the river of town {n}, and it was built long ago by makers."
    assert is_question(mappings_of({"text": text, "place": "the river of town {n}"}))


@pytest.mark.parametrize(
    ("question", "answer"),
    [("Frage", "Antwort"), ("Pregunta", "Respuesta"), ("问", "答"), ("Kunde", "Berater"),
     ("Input", "Output")],
)  # fmt: skip
def test_a_conversation_with_speakers_in_other_words_is_offered(question, answer):
    [first, *_] = mappings_of({"text": f"{question}: Hi {{n}}\n{answer}: Ho"})
    assert first.schema == "messages"


@pytest.mark.parametrize(
    "prompt",
    ["A chat. USER: Hi {n} ASSISTANT:",
     "<|im_start|>user\nHi {n}<|im_end|>\n<|im_start|>assistant\n<think>\n"],
)  # fmt: skip
def test_prompts_that_open_an_answer_or_a_thought_are_read(write, prompt):
    first = read(write, {"prompt": prompt, "completion": "Ho"}).train[0]
    assert texts_of(first)[-2:] == ["Hi 0", "Ho"]


QUIZZES = {
    "Kahoot": ("Question", "Answer ", "1234", "Correct answer(s)"),
    "German": ("Frage", "Antwort ", "ABC", "Richtig"),
    "Spanish": ("pregunta", "opcion_", "abc", "correcta"),
}


@pytest.mark.parametrize("form", QUIZZES)
def test_choices_in_other_words_are_read(write, form):
    question, word, marks, key = QUIZZES[form]
    cells = {f"{word}{mark}": f"choice {mark} {{n}}" for mark in marks}
    data = read(write, {question: "Which {n}?", **cells, key: tuple(marks)})
    assert texts_of(data.train[0])[-1] == f"A. choice {marks[0]} 0"
    assert texts_of(data.train[1])[-1] == f"B. choice {marks[1]} 1"


def test_choices_in_one_text_are_read(write):
    row = {
        "question": "Which {n}?",
        "options": "A) red\nB) blue\nC) green",
        "answer": ("A", "B", "C"),
    }
    assert texts_of(read(write, row).train[1])[-1] == "B. blue"


def test_the_other_answers_of_a_list_are_listed(write):
    answers = [{"text": "no", "is_correct": False}, {"text": "yes", "is_correct": True}]
    data = read(write, {"prompt": "Is it {n}?", "responses": answers})
    assert texts_of(data.train[0])[-1] == "yes"
    assert [one["name"] for one in data.unused] == ["responses: other answers"]


def test_a_reference_answer_ends_a_chat_without_one(write):
    turns = [{"role": "user", "content": "Hi {n}"}]
    data = read(write, {"messages": turns, "reference_answer": "Ho {n}"})
    assert texts_of(data.train[0]) == ["Hi 0", "Ho 0"]


@pytest.mark.parametrize(
    ("good", "bad"),
    [("good_answer", "bad_answer"), ("y_w", "y_l"), ("Gute Antwort", "Schlechte Antwort")],
)
def test_good_and_bad_answers_of_other_names_are_preferences(write, good, bad):
    row = {"prompt": "Is it {n}?", good: "Yes {n}, it is.", bad: "No {n}, it is not."}
    first = read(write, row).train[0]
    assert first.chosen[0]["content"] == "Yes 0, it is."


@pytest.mark.parametrize("label", ["star_rating", "Issue Type", "class_id"])
def test_an_id_does_not_hide_what_may_be_a_label(label):
    row = {"id": "x{n}", "text": PROSE, label: ("a", "b", "c")}
    assert "text_classification" in [one.schema for one in mappings_of(row)]


@pytest.mark.parametrize("column", ["Joke", "Quote", "headline_text"])
@pytest.mark.parametrize("other", [{"ID": "{n}"}, {"publish_date": "2026010{n}"}])
def test_one_text_of_any_name_next_to_ids_and_dates_is_a_text(column, other):
    [mapping] = mappings_of({**other, column: PROSE})
    assert mapping.columns == {"text": column}


def test_one_text_with_its_type_is_offered_with_its_label():
    [first, *_] = mappings_of({"Email Text": PROSE, "Email Type": ("safe", "phishing")})
    assert first.columns == {"text": "Email Text", "label": "Email Type"}


@pytest.mark.parametrize("column", ["problem", "q", "user", "query", "text", "Frage"])
def test_the_prompt_of_a_preference_has_any_name_of_a_question(write, column):
    row = {column: "Is it number {n} here?", "chosen": "Yes {n}", "rejected": "No {n}"}
    first = read(write, row).train[0]
    assert first.prompt[-1]["content"] == "Is it number 0 here?"


@pytest.mark.parametrize(
    ("expected", "given", "verdict", "values"),
    [
        ("Expected answer", "Bot answer", "Pass?", ("yes", "no")),
        ("reference_answer", "model_answer", "correct", (True, False)),
        ("expected", "actual", "score", (1, 2, 3)),
        ("gold", "prediction", "is_correct", (True, False)),
    ],
)
def test_a_verdict_is_on_the_answer_that_was_given(expected, given, verdict, values):
    row = {"question": ASKED["question"], expected: "Near {n} it was.", given: PROSE}
    mappings = mappings_of({**row, verdict: values})
    [rated] = [one for one in mappings if one.schema == "unpaired_preference"]
    assert rated.columns["answer"] == given
