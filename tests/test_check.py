"""The split, and what a run keeps of its data."""

from peft_space.data.check import data_of, training_data
from peft_space.recipe import Recipe
from peft_space.run import Run


def rows(count, repeat=1):
    return [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(count) for _ in range(repeat)]


def test_held_out_rows_are_not_trained_on_and_repeated_rows_stay_on_one_side(write):
    data = training_data(write("rows.json", rows(50, repeat=3)), 0.2, seed=1)
    trained = {row.messages[0]["content"] for row in data.train}
    scored = [row.messages[0]["content"] for row in data.held_out]
    assert len(scored) == len(set(scored)) == 10
    assert len(data.train) == 120
    assert not trained & set(scored)


def test_the_split_follows_the_seed(write):
    path = write("rows.json", rows(50))
    assert training_data(path, 0.2, 1).held_out == training_data(path, 0.2, 1).held_out
    assert training_data(path, 0.2, 1).held_out != training_data(path, 0.2, 2).held_out


def test_one_row_is_trained_on_and_nothing_held_out(write):
    data = training_data(write("rows.json", rows(1)), 0.5, 0)
    assert (len(data.train), len(data.held_out)) == (1, 0)


def test_a_file_of_held_out_rows_replaces_the_split(write):
    data = training_data(write("train.json", rows(9)), 0.5, 0, held_out=write("test.json", rows(12)[9:]))
    assert (len(data.train), len(data.held_out)) == (9, 3)


def test_a_held_out_row_that_is_also_trained_on_is_reported_and_left_out(write):
    data = training_data(write("train.json", rows(9)), 0.5, 0, held_out=write("test.json", rows(10)))
    assert [row.messages[0]["content"] for row in data.held_out] == ["p9"]
    assert len(data.problems) == 9
    assert "also trained on" in data.problems[0].problem


def test_what_a_run_keeps_is_the_data_again(write, tmp_path):
    path = write("rows.jsonl", [*rows(20), {"prompt": "a\u2028b\u0085c\r\nd", "completion": "é猫"}, {"prompt": "no answer"}])
    data = training_data(path, 0.2, 0)
    run = Run.create(tmp_path / "run", Recipe(), data.files())
    assert data_of(run) == data
    assert [problem.row for problem in data.problems] == [22]


def test_the_histogram_counts_every_row_once_and_marks_what_is_cut_off(tokenizer):
    from peft_space.data.check import histogram
    from peft_space.data.render import render

    rows = training_data("demo", 0.1, 0).train
    examples = render(tokenizer, rows, 50)
    width, bars = histogram(examples, 50)
    assert sum(bar["rows"] for bar in bars) == len(rows)
    assert sum(bar["rows"] for bar in bars if bar["cut"]) == sum(example.cut > 0 for example in examples) > 0
    assert all(bar["tokens"] % width == 0 for bar in bars)
