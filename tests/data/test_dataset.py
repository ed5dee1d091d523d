"""The split, and what a run keeps of its data."""

import json

import pytest

from peft_space.data.dataset import load_dataset, load_run_data
from peft_space.errors import UserError
from peft_space.recipe import Recipe
from peft_space.runs.run import Run


def rows(count, repeat=1):
    return [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(count) for _ in range(repeat)]


def test_held_out_rows_are_not_trained_on_and_repeated_rows_stay_on_one_side(write):
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


def test_one_row_is_trained_on_and_nothing_held_out(write):
    data = load_dataset(write("rows.json", rows(1)), 0.5, 0)
    assert (len(data.train), len(data.held_out)) == (1, 0)


def test_a_file_of_held_out_rows_replaces_the_split(write):
    data = load_dataset(
        write("train.json", rows(9)), 0.5, 0, held_out=write("test.json", rows(12)[9:])
    )
    assert (len(data.train), len(data.held_out)) == (9, 3)


def test_a_held_out_row_that_is_also_trained_on_is_reported_and_left_out(write):
    data = load_dataset(write("train.json", rows(9)), 0.5, 0, held_out=write("test.json", rows(10)))
    assert [row.messages[0]["content"] for row in data.held_out] == ["p9"]
    assert len(data.problems) == 9
    assert "also trained on" in data.problems[0].problem
    assert data.notes == ["To score on: test.json, 10 rows, 1 of which can be used."]


def test_what_a_run_keeps_is_the_data_again(write, tmp_path):
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


def test_the_histogram_counts_every_row_once_and_marks_what_is_cut_off(tokenizer):
    from peft_space.data.dataset import histogram, lengths
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


def test_what_is_worth_telling_is_found_with_its_rows(write):
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
    found = kinds(load_dataset(write("rows.json", lines), 0.1, 0))
    assert found == {
        "placeholders": (1, [2]), "secrets": (1, [3]), "emails": (1, [4]), "mojibake": (1, [5]), "odd": (1, [6]), "duplicates": (1, [8]),
        "padded": (1, [9]),
    }  # fmt: skip


def test_plain_rows_have_nothing_to_tell(write):
    lines = [
        {
            "prompt": f"What is <b>{i}</b> + [1]? café, naïve, Ünal, 100 €",
            "completion": f"user@home is {i}",
        }
        for i in range(20)
    ]
    assert kinds(load_dataset(write("rows.json", lines), 0.1, 0)) == {}


@pytest.mark.parametrize(("fix", "left"), [("deduplicate", 2), ("drop_secrets", 2), ("strip", 3)])
def test_a_fix_leaves_out_what_it_names_and_is_kept_in_the_run(write, tmp_path, fix, left):
    lines = [{"prompt": "a", "completion": "b"}] * 2 + [
        {"prompt": "sk-" + "x" * 30, "completion": "b"}
    ]
    data = load_dataset(write("rows.json", lines), 0.0, 0, column_mapping={"fixes": [fix]})
    assert len(data.train) == left
    assert load_run_data(
        Run.create(tmp_path / fix, Recipe(), data.files())
    ).column_mapping.fixes == (fix,)


def test_the_split_keeps_the_shares_of_the_labels(write):
    lines = [
        {"text": f"text {i}", "label": "rare" if i % 10 == 0 else "common"} for i in range(200)
    ]
    data = load_dataset(write("rows.json", lines), 0.1, 3)
    labels = [row.label for row in data.held_out]
    assert (labels.count("rare"), labels.count("common")) == (2, 18)
    assert data.labels == {"common": 180, "rare": 20}


def test_files_that_are_joined_keep_their_names_in_what_is_said(write):
    data = load_dataset(
        [write("a.jsonl", rows(3)), write("b.jsonl", [*rows(6)[3:], {"prompt": "alone"}])], 0.0, 0
    )
    assert (data.source, data.num_rows, len(data.train)) == ("a.jsonl + b.jsonl", 7, 6)
    assert [problem.problem for problem in data.problems] == [
        "the answer is empty (row 4 of b.jsonl)"
    ]


def test_files_of_different_shapes_are_not_joined_so_that_no_row_is_lost(write):
    chat = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    with pytest.raises(
        UserError,
        match=r"a\.jsonl holds prompt/completion and b\.jsonl holds messages: files of different schemas cannot be joined",
    ):
        load_dataset([write("a.jsonl", rows(3)), write("b.jsonl", chat)], 0.0, 0)


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


def test_data_that_could_be_read_in_two_ways_is_not_guessed_at(write):
    path = write("rows.csv", "Frage,Antwort\nWie geht es?,Gut.\n")
    with pytest.raises(UserError, match="can be read in several ways") as refusal:
        load_dataset(path, 0.1, 0)
    said = str(refusal.value)
    column_mapping = json.loads(said[said.index("{") : said.rindex("}") + 1])
    assert len(load_dataset(path, 0.0, 0, column_mapping=column_mapping).train) == 1


def test_rows_are_drawn_from_the_disk_each_exactly_once(write):
    data = load_dataset(write("rows.jsonl", rows(5_000)), 0.1, 0)
    assert (len(data.train), len(data.held_out)) == (4_500, 500)
    assert data.train[17] == data.train[17:18][0]
    assert len({row.row for row in data.train} | {row.row for row in data.held_out}) == 5_000
