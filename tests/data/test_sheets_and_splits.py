"""Sheets of a workbook and tables of an archive are listed, and each can be read."""

import io
import json
import zipfile

import openpyxl
import pytest

from peft_space.data.sheets_and_splits import find_parts, may_have_parts
from peft_space.data.table import read_table
from peft_space.errors import UserError


@pytest.fixture
def workbook(tmp_path):
    book = openpyxl.Workbook()
    book.active.title = "Read me"
    book.active.append(["By Anna"])
    for title, count in (("Train", 4), ("Old#1", 2)):
        sheet = book.create_sheet(title)
        sheet.append(["prompt", "completion"])
        for number in range(count):
            sheet.append([f"question {number}", f"answer {number}"])
    book.save(tmp_path / "book.xlsx")
    return tmp_path / "book.xlsx"


def archive(path, tables):
    with zipfile.ZipFile(path, "w") as file:
        for name, count in tables.items():
            rows = [{"prompt": f"q {n}", "completion": f"a {n}"} for n in range(count)]
            file.writestr(name, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_each_sheet_is_listed_and_read_by_its_own_name(workbook):
    assert may_have_parts(workbook)
    [menu] = find_parts(str(workbook))
    assert (menu.kind, menu.chosen, list(menu.data)) == (
        "sheet",
        "Train",
        ["Read me", "Train", "Old#1"],
    )
    assert read_table(menu.data["Train"]).num_rows == 4
    assert read_table(menu.data["Old#1"]).num_rows == 2
    [menu] = find_parts(menu.data["Old#1"])
    assert menu.chosen == "Old#1"


@pytest.mark.parametrize(
    ("tables", "chosen"),
    [
        ({"train.jsonl": 3, "test.jsonl": 2}, "train.jsonl"),
        ({"cats.jsonl": 3, "dogs.jsonl": 2}, None),
        ({"a/train.jsonl": 3, "b/train.jsonl": 2}, None),
    ],
)
def test_each_table_of_an_archive_is_listed_and_read(tmp_path, tables, chosen):
    path = archive(tmp_path / "rows.zip", tables)
    [menu] = find_parts(str(path))
    assert (menu.kind, menu.chosen) == ("table", chosen)
    assert {name: read_table(data).num_rows for name, data in menu.data.items()} == tables
    for name, data in menu.data.items():
        assert find_parts(data)[0].chosen == name


def test_files_of_one_table_are_no_menu(tmp_path):
    shards = {f"train-0000{n}-of-00002.jsonl": 2 for n in range(2)}
    assert find_parts(str(archive(tmp_path / "rows.zip", shards))) == []
    (tmp_path / "rows.csv").write_text("prompt,completion\na,b\n")
    assert find_parts(str(tmp_path / "rows.csv")) == []
    assert not may_have_parts(tmp_path / "rows.csv")


def test_a_document_that_is_no_table_is_refused(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("[Content_Types].xml", "<Types/>")
        file.writestr("word/document.xml", "<w/>")
    (tmp_path / "letter.docx").write_bytes(buffer.getvalue())
    with pytest.raises(UserError) as error:
        find_parts(str(tmp_path / "letter.docx"))
    assert error.value.code == "data.unsupported_file_type"
