"""Tables with the columns of public datasets are read as they are meant, or the app asks."""

import json

import pytest

from peft_space import operations
from peft_space.data.column_mapping import ColumnMapping
from peft_space.data.dataset import load_dataset
from peft_space.data.restructuring import form_of
from peft_space.data.row_normalization import normalize_record
from peft_space.data.schema_detection import detect_schema
from peft_space.errors import UserError

WORDS = ("mill", "boat", "egg", "river", "lamp", "tower", "king", "hill")


def asked(n):
    return f"Where is the {WORDS[n % 8]} number {n} in town {n * 5}?"


def told(n):
    return f"Near the {WORDS[(n + 2) % 8]}, {n * 3} steps on."


def prose(n):
    return f"The {WORDS[n % 8]} number {n} stands near the river of town {n * 7}."


def read(make_row):
    """Return the column mappings of 24 rows, likeliest first, and the rows as they are read."""
    rows = [make_row(n) for n in range(24)]
    if form := form_of(rows):
        rows = [row for _, row in form.convert(iter(enumerate(rows, 1)))]
    mappings = detect_schema("rows", list(rows[0]), rows)
    return mappings, rows


USER, ANSWERED = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}
ANSWER = {"question": "question", "answer": "answer"}
READ = {
    "a FAQ with categories": (
        lambda n: {"question": asked(n), "answer": told(n), "category": WORDS[n % 3]},
        "question_answer", ANSWER,
    ),
    "a FAQ with topics first": (
        lambda n: {"Topic": WORDS[n % 3], "Question": asked(n), "Answer": told(n)},
        "question_answer", {"question": "Question", "answer": "Answer"},
    ),
    "summaries with the name of their source": (
        lambda n: {"source": "the web", "text": prose(n), "summary": told(n)},
        "source_target", {"source": "text", "target": "summary"},
    ),
    "summaries called tldr": (
        lambda n: {"documents": prose(n), "tldr": told(n), "title": asked(n), "score": 1.0},
        "source_target", {"source": "documents", "target": "tldr"},
    ),
    "problems with solutions": (
        lambda n: {"lang": "python", "seed": prose(n), "problem": asked(n), "solution": told(n)},
        "question_answer", {"question": "problem", "answer": "solution"},
    ),
    "code to complete": (
        lambda n: {"task_id": f"T/{n}", "prompt": asked(n), "canonical_solution": told(n)},
        "prompt_completion", {"prompt": "prompt", "answer": "canonical_solution"},
    ),
    "endings": (
        lambda n: {
            "ind": n, "ctx": prose(n), "endings": [told(n + i) for i in range(4)], "split": "train",
            "label": str(n % 4),
        },
        "question_answer", {"question": "question", "answer": "answer", "choices": "choices"},
    ),
    "options by letter": (
        lambda n: {
            "question": asked(n), "answer": told(n), "options": {"A": told(n), "B": told(n + 1)},
        },
        "question_answer", {"question": "question", "answer": "answer", "choices": "choices"},
    ),
    "completions with scores": (
        lambda n: {
            "source": "s", "instruction": asked(n), "completions": [
                {"model": "a", "response": told(n), "overall_score": 7.5},
                {"model": "b", "response": told(n + 1), "overall_score": 2.0},
            ],
        },
        "preference", {"rejected": "rejected", "chosen": "chosen", "prompt": "prompt"},
    ),
    "answers with ranks": (
        lambda n: {
            "prompt": asked(n),
            "answers": [{"answer": told(n + i), "rank": i + 1.0} for i in range(3)],
        },
        "preference", {"rejected": "rejected", "chosen": "chosen", "prompt": "prompt"},
    ),
    "a claim with its evidence": (
        lambda n: {"claim": told(n), "evidence": prose(n), "label": "ab"[n % 2]},
        "text_pair_classification", {"first": "claim", "second": "evidence", "label": "label"},
    ),
    "texts with a tag for each word": (
        lambda n: {"sentence": "Ann lives here", "tags": ["B-PER", "O", "O"]},
        "token_classification", {"tokens": "tokens", "tags": "tags"},
    ),
    "texts with tags in a text": (
        lambda n: {"id": n, "text": "Ann lives here", "word_labels": "B-PER,O,O"},
        "token_classification", {"tokens": "tokens", "tags": "tags"},
    ),
    "chats without the last answer": (
        lambda n: {"messages": [USER | {"content": asked(n)}], "response": told(n)},
        "prompt_completion", {"prompt": "messages", "answer": "response"},
    ),
    "a dialogue in its own object": (
        lambda n: {"id": n, "conversation": {"messages": [USER | {"content": asked(n)}, ANSWERED]}},
        "messages", {"messages": "conversation"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("table", READ)
def test_a_table_is_read_as_it_is_meant(table):
    make_row, schema, columns = READ[table]
    [mapping], _ = read(make_row)
    assert (mapping.schema, dict(mapping.columns)) == (schema, columns)
    assert mapping.left_out == ()


def test_the_best_and_the_worst_of_several_answers_are_a_pair():
    make_row = READ["answers with ranks"][0]
    _, rows = read(make_row)
    assert (rows[5]["chosen"], rows[5]["rejected"]) == (told(5), told(7))
    tied = form_of([make_row(0)]).convert(
        iter([(1, {"prompt": "Hi", "answers": [{"text": t, "score": 1} for t in "ab"]})])
    )
    assert [row["chosen"] for _, row in tied] == [None]


ASKED = {
    "questions and answers with a label": (
        lambda n: {"question": asked(n), "answer": told(n), "label": "ab"[n % 2]},
        ["question_answer", "text_pair_classification"], None,
    ),
    "a text with code": (
        lambda n: {"task_id": n, "text": asked(n), "code": f"def f{n}(): return {n}"},
        ["prompt_completion", "text"], "code",
    ),
    "an email with its reply": (
        lambda n: {"subject": asked(n), "body": prose(n), "reply": told(n)},
        ["prompt_completion", "text"], "reply",
    ),
    "a support for the right answer": (
        lambda n: {"question": asked(n), "correct_answer": told(n), "support": prose(n)},
        ["question_answer", "question_answer"], "correct_answer",
    ),
    "a context that is an object": (
        lambda n: {"question": asked(n), "answer": told(n), "context": {"title": [prose(n)]}},
        ["question_answer"], "answer",
    ),
    "keywords beside a text": (
        lambda n: {"text": prose(n), "tags": [WORDS[n % 8], "town"]}, ["text"], None,
    ),
    "answers with feedback in words": (
        lambda n: {
            "question": asked(n), "answer": told(n), "feedback": ("positive", "negative")[n % 2],
        },
        ["question_answer", "unpaired_preference"], "answer",
    ),
    "answers that are safe or not": (
        lambda n: {"prompt": asked(n), "response": told(n), "label": ("safe", "unsafe")[n % 2]},
        ["prompt_completion", "unpaired_preference"], "response",
    ),
    "answers with a verdict": (
        lambda n: {"prompt": asked(n), "response": told(n), "liked": bool(n % 2)},
        ["prompt_completion", "unpaired_preference"], "response",
    ),
    "answers that were accepted or not": (
        lambda n: {"prompt": asked(n), "response": told(n), "accepted": ("yes", "no")[n % 2]},
        ["prompt_completion", "unpaired_preference"], "response",
    ),
    "a transcript of a person and an AI": (
        lambda n: {"text": f"Human: {asked(n)}\nAI: {told(n)}"}, ["messages", "text"], None,
    ),
    "a transcript of an agent": (
        lambda n: {"text": f"Customer: {asked(n)}\nAgent: {told(n)}"}, ["messages", "text"], None,
    ),
    "the form of Vicuna": (
        lambda n: {"text": f"A chat about towns. USER: {asked(n)} ASSISTANT: {told(n)}</s>"},
        ["messages", "text"], None,
    ),
    "an empty text beside answers": (
        lambda n: {
            "title": asked(n), "selftext": prose(n), "document": "",
            "answers": {"text": [told(n)], "score": [3]},
        },
        ["question_answer", "question_answer", "text"], "answers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("table", ASKED)
def test_the_app_asks_how_a_table_is_meant_and_offers_its_answer_first(table):
    make_row, schemas, answer = ASKED[table]
    mappings, _ = read(make_row)
    assert [mapping.schema for mapping in mappings] == schemas
    assert len(mappings) > 1 or mappings[0].left_out
    assert answer is None or mappings[0].columns["answer"] == answer


def test_steps_with_a_label_each_are_refused_and_not_read_as_text(write):
    rows = [
        {"prompt": asked(n), "completions": ["a", "b"], "labels": [True, False]} for n in range(4)
    ]
    with pytest.raises(UserError) as error:
        operations.check(str(write("rows.json", rows)))
    assert error.value.code == "data.no_usable_rows"


@pytest.mark.parametrize(
    ("prompt", "answer", "written"),
    [
        ("Tom is 4", {"name": "Tom", "age": 4}, '{"name": "Tom", "age": 4}'),
        ("Tom is 4", [{"name": "Tom"}, {"age": 4.5}], '[{"name": "Tom"}, {"age": 4.5}]'),
        ({"name": "Zoë", "age": 4}, "Zoë is 4", "Zoë is 4"),
    ],
)
def test_objects_are_read_and_learned_as_json(prompt, answer, written, write):
    rows = [{"prompt": prompt, "completion": answer, "n": n} for n in range(6)]
    data = load_dataset(str(write("rows.json", rows)), 0.0, 0)
    question, learned = data.train[0].messages
    assert learned["content"] == written
    assert question["content"] == (
        prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
    )
    assert ("structured", 6) in [(one.kind, one.count) for one in data.findings]


def test_a_system_prompt_before_the_first_speaker_stays():
    text = f"A chat about towns. USER: {asked(1)} ASSISTANT: {told(1)}</s>"
    row = normalize_record(1, {"text": text}, ColumnMapping("messages", {"messages": "text"}))
    assert [(turn["role"], turn["content"]) for turn in row.messages] == [
        ("system", "A chat about towns."), ("user", asked(1)), ("assistant", told(1)),
    ]  # fmt: skip
