"""A dataset is split, checked and stored in a run."""

import json
from collections import Counter

import pytest

from peft_space.data.dataset import load_dataset, load_run_data
from peft_space.errors import UserError
from peft_space.recipe import Recipe
from peft_space.runs.run import Run


def rows(count, repeat=1):
    return [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(count) for _ in range(repeat)]


def test_no_held_out_row_is_a_training_row_and_duplicates_stay_together(write):
    data = load_dataset(write("rows.json", rows(50, repeat=3)), 0.2, seed=1)
    trained = {row.messages[0]["content"] for row in data.train}
    scored = [row.messages[0]["content"] for row in data.held_out]
    assert len(scored) == len(set(scored)) == 10
    assert len(data.train) == 120
    assert not trained & set(scored)


def test_the_split_follows_the_seed(write):
    path = write("rows.json", rows(50))
    assert load_dataset(path, 0.2, 1).held_out == load_dataset(path, 0.2, 1).held_out
    assert load_dataset(path, 0.2, 1).held_out != load_dataset(path, 0.2, 2).held_out


def test_a_single_row_is_a_training_row(write):
    data = load_dataset(write("rows.json", rows(1)), 0.5, 0)
    assert (len(data.train), len(data.held_out)) == (1, 0)


def test_a_held_out_file_replaces_the_split(write):
    data = load_dataset(
        write("train.json", rows(9)), 0.5, 0, held_out=write("test.json", rows(12)[9:])
    )
    assert (len(data.train), len(data.held_out)) == (9, 3)


def test_a_held_out_row_that_is_also_a_training_row_is_reported_and_left_out(write):
    data = load_dataset(write("train.json", rows(9)), 0.5, 0, held_out=write("test.json", rows(10)))
    assert [row.messages[0]["content"] for row in data.held_out] == ["p9"]
    assert len(data.problems) == 9
    assert kinds(data)["leaks"] == (9, list(range(1, 10)))
    assert all("test.json" in problem.problem for problem in data.problems)
    [note] = data.notes
    assert all(value in note for value in ("test.json", "10 rows", " 1 "))


def test_a_run_stores_the_whole_dataset(write, tmp_path):
    path = write(
        "rows.jsonl",
        [
            *rows(20),
            {"prompt": "a\u2028b\u0085c\r\nd", "completion": "é猫"},
            {"prompt": "no answer"},
        ],
    )
    data = load_dataset(path, 0.2, 0)
    run = Run.create(tmp_path / "run", Recipe(), data.files())
    assert load_run_data(run) == data
    assert [problem.row for problem in data.problems] == [22]


def test_the_histogram_counts_every_row_once_and_marks_rows_that_are_cut(tokenizer):
    from peft_space.data.lengths import histogram, lengths
    from peft_space.data.tokenization.tokenize import tokenize

    rows = load_dataset("demo", 0.1, 0).train
    tokens = tokenize(tokenizer, rows, 50)
    width, bars = histogram(tokens, 50)
    assert sum(bar["rows"] for bar in bars) == len(rows)
    assert (
        sum(bar["rows"] for bar in bars if bar["cut"])
        == sum(example.cut > 0 for example in tokens)
        > 0
    )
    assert all(bar["tokens"] % width == 0 for bar in bars)
    assert lengths(tokens).num_cut == sum(example.cut > 0 for example in tokens)


def kinds(data):
    return {finding.kind: (finding.count, finding.rows) for finding in data.findings}


def test_findings_have_their_row_numbers(write):
    texts = {
        2: "Write to {{name}}.",
        3: "My key is hf_" + "a" * 34,
        4: "Ask anna.b@example.org",
        5: "Das ist schÃ¶n",
        6: "zero\u200bwidth",
        7: "Same",
        8: "Same",
        9: " Spaces\n",
    }
    lines = [
        {"prompt": texts.get(number, f"Row {number}"), "completion": "Yes"}
        for number in range(1, 21)
    ]
    assert kinds(load_dataset(write("rows.json", lines), 0.1, 0)) == {
        "placeholders": (1, [2]), "secrets": (1, [3]), "emails": (1, [4]), "mojibake": (1, [5]),
        "odd": (1, [6]), "duplicates": (1, [8]), "padded": (1, [9]),
    }  # fmt: skip


def test_ordinary_rows_have_no_findings(write):
    lines = [
        {
            "prompt": f"What is <b>{i}</b> + [1]? café, naïve, Ünal, 100 €",
            "completion": f"user@home is {i}",
        }
        for i in range(20)
    ]
    assert kinds(load_dataset(write("rows.json", lines), 0.1, 0)) == {}


@pytest.mark.parametrize(
    ("fix", "num_rows"), [("deduplicate", 2), ("drop_secrets", 2), ("strip", 3)]
)
def test_a_fix_removes_its_rows_and_is_stored_in_the_run(write, tmp_path, fix, num_rows):
    lines = [{"prompt": "a", "completion": "b"}] * 2 + [
        {"prompt": "sk-" + "x" * 30, "completion": "b"}
    ]
    data = load_dataset(write("rows.json", lines), 0.0, 0, column_mapping={"fixes": [fix]})
    assert len(data.train) == num_rows
    assert load_run_data(
        Run.create(tmp_path / fix, Recipe(), data.files())
    ).column_mapping.fixes == (fix,)


def test_the_split_holds_out_the_same_share_of_each_label(write):
    lines = [
        {"text": f"text {i}", "label": "rare" if i % 10 == 0 else "common"} for i in range(200)
    ]
    data = load_dataset(write("rows.json", lines), 0.1, 3)
    labels = [row.label for row in data.held_out]
    assert (labels.count("rare"), labels.count("common")) == (2, 18)
    assert data.labels == {"common": 180, "rare": 20}


def test_problems_of_combined_files_name_the_file(write):
    data = load_dataset(
        [write("a.jsonl", rows(3)), write("b.jsonl", [*rows(6)[3:], {"prompt": "alone"}])], 0.0, 0
    )
    assert (data.source, data.num_rows, len(data.train)) == ("a.jsonl + b.jsonl", 7, 6)
    assert [problem.problem for problem in data.problems] == [
        "the answer is empty (row 4 of b.jsonl)"
    ]


CHAT = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
MIXTURES = {
    "chats and instructions": (
        CHAT,
        [{"instruction": "c", "input": "d", "output": "e"}],
        [("a", "b"), ("c\n\nd", "e")],
    ),
    "ShareGPT and chats": (
        [{"conversations": [{"from": "human", "value": "c"}, {"from": "gpt", "value": "d"}]}],
        CHAT,
        [("c", "d"), ("a", "b")],
    ),
    "other names of the same columns": (
        [{"prompt": "c", "completion": "d"}],
        [{"prompt": "a", "response": "b"}],
        [("c", "d"), ("a", "b")],
    ),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_files_of_questions_and_answers_are_combined(write, name, tmp_path):
    first, second, expected = MIXTURES[name]
    data = load_dataset([write("a.jsonl", first), write("b.jsonl", second)], 0.0, 0)
    messages = [[message["content"] for message in row.messages] for row in data.train]
    assert messages == [list(pair) for pair in expected]
    assert data.unused == []
    run = Run.create(tmp_path / "run", Recipe(), data.files())
    assert load_run_data(run).column_mapping == data.column_mapping
    given = data.column_mapping.as_choice()
    paths = [write("a.jsonl", first), write("b.jsonl", second)]
    assert list(load_dataset(paths, 0.0, 0, column_mapping=given).train) == list(data.train)


def test_a_system_message_that_only_one_file_has_is_used(write):
    first = [{"prompt": "a", "completion": "b"}]
    second = [{"prompt": "c", "completion": "d", "system": "e"}]
    data = load_dataset([write("a.jsonl", first), write("b.jsonl", second)], 0.0, 0)
    assert [len(row.messages) for row in data.train] == [2, 3]


def test_columns_that_no_file_uses_are_named(write):
    chat = [CHAT[0] | {"mood": "good"}]
    data = load_dataset([write("a.jsonl", rows(3)), write("b.jsonl", chat)], 0.0, 0)
    assert [column["name"] for column in data.unused] == ["mood"]


def test_files_of_different_tasks_are_not_combined(write):
    labels = [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(4)]
    with pytest.raises(UserError) as error:
        load_dataset([write("a.jsonl", rows(3)), write("b.jsonl", labels)], 0.0, 0)
    assert error.value.code == "data.mixed_schemas"
    for value in ("a.jsonl", "prompt_completion", "b.jsonl", "text_classification"):
        assert value in str(error.value)


def test_a_dataset_without_a_usable_row_is_rejected(write):
    path = write("rows.json", [{"prompt": "a", "completion": ""}] * 2)
    with pytest.raises(UserError) as error:
        load_dataset(path, 0.1, 0)
    assert error.value.code == "data.no_usable_rows"
    assert "rows.json" in str(error.value)
    assert "row 1" in str(error.value)


@pytest.mark.parametrize("fixes", [[], ["deduplicate"]])
def test_every_row_is_accounted_for(write, fixes):
    lines = [*rows(20, repeat=2), {"prompt": "alone"}]
    data = load_dataset(write("rows.json", lines), 0.2, 0, column_mapping={"fixes": fixes})
    assert (
        len(data.train) + len(data.held_out) + data.num_problems + data.num_repeated
        == data.num_rows
        == 41
    )
    assert data.num_repeated == (20 if fixes else 4), "held-out rows are scored once"


def test_ambiguous_columns_are_not_guessed(write):
    path = write("rows.csv", "Anfrage,Reaktion\nWie geht es?,Gut.\n")
    with pytest.raises(UserError) as error:
        load_dataset(path, 0.1, 0)
    assert error.value.code == "data.ambiguous_columns"
    message = str(error.value)
    column_mapping = json.loads(message[message.index("{") : message.rindex("}") + 1])
    assert len(load_dataset(path, 0.0, 0, column_mapping=column_mapping).train) == 1


def test_rows_are_read_from_the_disk_each_exactly_once(write):
    data = load_dataset(write("rows.jsonl", rows(5_000)), 0.1, 0)
    assert (len(data.train), len(data.held_out)) == (4_500, 500)
    assert data.train[17] == data.train[17:18][0]
    assert len({row.row for row in data.train} | {row.row for row in data.held_out}) == 5_000


@pytest.mark.parametrize("weights", [[1, 1], [2, 1], [0.5, 3], [0, 1.25]])
@pytest.mark.sample(2)
def test_an_epoch_takes_the_rows_of_each_file_as_often_as_its_weight_says(write, weights):
    names = ["one", "two"]
    paths = [
        write(f"{name}.jsonl", [{"prompt": f"{name} {n}", "completion": "x"} for n in range(100)])
        for name in names
    ]
    data = load_dataset(paths, 0.2, 0, file_weights=weights)
    counts = Counter(row.messages[0]["content"] for row in data.train)
    held_out = {row.messages[0]["content"] for row in data.held_out}
    assert len(held_out) == 40
    assert not held_out & set(counts)
    for name, weight in zip(names, weights, strict=True):
        of_file = {text: count for text, count in counts.items() if text.startswith(name)}
        left = 100 - sum(text.startswith(name) for text in held_out)
        assert sum(of_file.values()) == round(weight * left)
        assert all(count in (int(weight), int(weight) + 1) for count in of_file.values())


def test_weights_count_the_rows_that_can_be_used(write):
    bad = [{"prompt": "a bad row", "completion": ""}] * 10
    good = [{"prompt": f"one {n}", "completion": "x"} for n in range(10)]
    other = [{"prompt": f"two {n}", "completion": "x"} for n in range(10)]
    paths = [write("one.jsonl", bad + good), write("two.jsonl", other)]
    data = load_dataset(paths, 0.0, 0, file_weights=[0, 2])
    assert len(data.train) == 20
    assert all(row.messages[0]["content"].startswith("two") for row in data.train)


@pytest.mark.parametrize("weights", [[1], [1, 1, 1], [0, 0]])
def test_weights_that_do_not_fit_the_files_are_refused(write, weights):
    paths = [write("one.jsonl", rows(5)), write("two.jsonl", rows(5))]
    with pytest.raises(UserError) as refused:
        load_dataset(paths, 0.0, 0, file_weights=weights)
    assert refused.value.code == "data.wrong_file_weights"
