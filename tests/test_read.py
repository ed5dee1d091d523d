"""Files become rows with every value as written, or are refused with a sentence that says where."""

import pytest

from peft_space.data.read import demo_tables, read_table
from peft_space.errors import UserError

ROW = {"instruction": "Say hi.", "output": "Hi."}


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_json_and_json_lines_give_their_rows(write, name):
    table = read_table(write(name, [ROW, ROW]))
    assert (table.rows, table.numbers, table.columns) == ([ROW, ROW], [1, 2], ["instruction", "output"])


def test_json_lines_under_the_name_json_are_read(write):
    assert read_table(write("rows.json", '{"a": 1}\n{"a": 2}\n')).rows == [{"a": 1}, {"a": 2}]


def test_a_list_inside_an_object_is_the_rows(write):
    assert read_table(write("rows.json", '{"data": [{"a": 1}, {"a": 2}]}')).rows == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_is_read_with_its_delimiter_and_values_stay_text(write, delimiter):
    text = f'prompt{delimiter}answer\n007{delimiter}"two\r\nlines"\nNA{delimiter}1e5\n'
    assert read_table(write("rows.csv", text)).rows == [{"prompt": "007", "answer": "two\r\nlines"}, {"prompt": "NA", "answer": "1e5"}]


def test_a_byte_order_mark_is_no_part_of_the_first_column(write):
    assert read_table(write("rows.csv", b"\xef\xbb\xbfprompt,answer\na,b\n")).columns == ["prompt", "answer"]


def test_blank_lines_do_not_shift_the_line_numbers(write):
    assert read_table(write("rows.jsonl", '{"a": 1}\n\n{"a": 2}\n')).numbers == [1, 3]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.json", "", "the file is empty"),
        ("spaces.csv", "  \n", "the file is empty"),
        ("none.json", "[]", "no rows"),
        ("header.csv", "prompt,answer\n", "no rows"),
        ("broken.json", "[{", "not JSON (line 1"),
        ("broken.jsonl", '{"a": 1}\n{"a": \n', "line 2 is not JSON"),
        ("list.jsonl", "[1]\n", "row 1 is a list"),
        ("word.json", '"hello"', "a single str"),
        ("deep.json", "[" * 100_000, "not JSON"),
        ("latin.csv", "prompt,answer\ncaf\xe9,b\n".encode("latin-1"), "not UTF-8"),
        ("ragged.csv", "a,b\n1,2\n1,2,3\n", "row 2 has 3 fields"),
        ("twice.csv", "a,a\n1,2\n", "occurs twice"),
        ("quote.csv", 'a,b\n1,"2\n', "is not CSV"),
        ("rows.xml", "<a/>", "files of this kind"),
    ],
)
def test_a_bad_file_is_refused_by_name_in_one_sentence_with_a_remedy(write, name, content, said):
    with pytest.raises(UserError) as refusal:
        read_table(write(name, content))
    assert said in str(refusal.value)
    assert name in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_file_over_the_limit_is_refused_before_it_is_read(write, monkeypatch):
    monkeypatch.setenv("PEFT_SPACE_MAX_FILE_MB", "0.001")
    with pytest.raises(UserError, match=r"rows.json: the file has 0\.0 MB, the limit is 0\.001 MB|limit is 0.001 MB"):
        read_table(write("rows.json", [ROW] * 100))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_table(tmp_path / "gone.csv")


def test_the_sample_data_are_read():
    train, held_out = demo_tables()
    assert (len(train.rows), len(held_out.rows)) == (300, 60)
