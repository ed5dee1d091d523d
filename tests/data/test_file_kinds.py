"""A file is read by its content under any name, and the reader says what it decided."""

import contextlib
import datetime
import gzip
import io
import json
import random
import zipfile

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peft_space.data.cells import listed, python_to_json
from peft_space.data.dataset import detect_mappings, load_dataset
from peft_space.data.table import read_table
from peft_space.errors import UserError

PAIRS = [{"prompt": f"Say {n}, please", "completion": f"It is {n}."} for n in range(6)]
LABELLED = [{"text": f"soup {n}", "label": "bad" if n % 2 else "good"} for n in range(12)]
TAGGED = [{"tokens": ["Anna", "lives"], "tags": ["B-PER", "O"]} for _ in range(3)]


def rows(path):
    return [row for _, row in read_table(path).rows()]


def delimited(mark, table=PAIRS):
    lines = [list(table[0]), *[list(row.values()) for row in table]]
    cells = [[f'"{cell}"' if mark in cell else cell for cell in line] for line in lines]
    return "".join(mark.join(line) + "\n" for line in cells)


def in_memory(write):
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def arrow(table, is_stream, **options):
    def write(file):
        new = pa.ipc.new_stream if is_stream else pa.ipc.new_file
        with new(file, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
            writer.write_table(table, max_chunksize=4)

    return in_memory(write)


def workbook(sheets, change=lambda book: None):
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, lines in sheets.items():
        sheet = book.create_sheet(title)
        for line in lines:
            sheet.append(line)
    change(book)
    return in_memory(book.save)


def zipped(files):
    def write(file):
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)

    return in_memory(write)


def lines_of(table):
    return [list(table[0]), *[list(row.values()) for row in table]]


TABLE = pa.Table.from_pylist(PAIRS)
JSON_LINES = "".join(json.dumps(row) + "\n" for row in PAIRS)
CONTENTS = {
    "JSON": json.dumps(PAIRS),
    "indented JSON": json.dumps(PAIRS, indent=2),
    "JSON Lines": JSON_LINES,
    "commas": delimited(","),
    "semicolons": delimited(";"),
    "tabs": delimited("\t"),
    "Parquet": in_memory(lambda file: pq.write_table(TABLE, file)),
    "Arrow file": arrow(TABLE, is_stream=False),
    "Arrow stream": arrow(TABLE, is_stream=True),
    "LZ4 in Arrow": arrow(TABLE, is_stream=False, compression="lz4"),
    "Excel": workbook({"Sheet": lines_of(PAIRS)}),
    "gzip": gzip.compress(JSON_LINES.encode()),
    "zip": zipped({"folder/rows.jsonl": JSON_LINES, "__MACOSX/._rows.jsonl": "x"}),
}
NAMES = [
    "rows.csv",
    "rows.tsv",
    "rows.json",
    "rows.jsonl",
    "rows.txt",
    "rows.xlsx",
    "rows",
    "r.dat",
]


@pytest.mark.sample(20)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", CONTENTS)
def test_rows_are_read_whatever_the_name_of_the_file_is(write, kind, name):
    assert rows(write(name, CONTENTS[kind])) == PAIRS


@pytest.mark.parametrize("name", ["ner.txt", "ner.tsv", "ner.json", "ner"])
@pytest.mark.parametrize("mark", ["\t", " "])
def test_tagged_tokens_are_recognized_under_other_names(write, name, mark):
    content = f"Anna{mark}B-PER\nlives{mark}O\n\n" * 3
    assert rows(write(name, content)) == TAGGED


@pytest.mark.parametrize(
    "content",
    [
        "The rose, red\nThe sky, blue\nThe text, label\n",
        "One, two, three.\nFour, five, six.\n",
        "[Music] hello, you\n[Applause]\n",
        "{ int x = 1; }\n{ int y = 2; }\n",
        "A B\nC O\nD O\n",
        "Tab\there\nTab\tthere\n",
        "01/02/2024, 10:00 - Anna: hello\n01/02/2024, 10:01 - Tom: hi\n",
    ],
)
def test_prose_with_commas_brackets_or_tabs_stays_text(write, content):
    expected = [{"text": line} for line in content.splitlines()]
    assert rows(write("prose.txt", content)) == expected


def test_a_table_without_a_header_is_recognized_by_its_labels(write):
    lines = [f"{'ham' if n % 3 else 'spam'}\tGo there {n}, now.." for n in range(12)]
    path = write("SMSSpamCollection", "\n".join(lines) + "\n")
    table, mappings = detect_mappings(str(path))
    assert (table.num_rows, table.columns) == (12, ["column 1", "column 2"])
    assert mappings[0].columns == {"text": "column 2", "label": "column 1"}


# JSON and values as Python writes them

FORMS = {
    "concatenated": "".join(map(json.dumps, PAIRS)),
    "commas": "".join(json.dumps(row) + ",\n" for row in PAIRS),
    "indented": "\n".join(json.dumps(row, indent=2) for row in PAIRS),
    "first line alone, then indented": "\n".join(
        json.dumps(row, indent=2 if n else None) for n, row in enumerate(PAIRS)
    ),
    "two on a line": "".join(json.dumps(row) + " \n"[n % 2] for n, row in enumerate(PAIRS)),
    "Python": "\n".join(map(str, PAIRS)),
    "Python list": str(PAIRS),
    "record separators": "".join("\x1e" + json.dumps(row) + "\n" for row in PAIRS),
    "byte order mark": "\ufeff" + JSON_LINES,
}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize("form", FORMS)
def test_json_is_read_in_the_forms_that_people_write(write, form, name):
    table = read_table(write(name, FORMS[form]))
    numbers, read = zip(*table.rows(), strict=True)
    assert list(read) == PAIRS
    assert len(set(numbers)) == len(PAIRS)
    is_json = form in ("byte order mark", "record separators")
    assert bool(table.notes) is (not is_json)


@pytest.mark.parametrize(
    ("content", "code", "place"),
    [
        ("{'a': 'x'}\n{'a': open('x')}\n", "data.invalid_json", "line 2"),
        ("{'a': 'x'}\n{'a': __import__('os')}\n", "data.invalid_json", "line 2"),
        ('{"a": 1}\n{\n"a": 2\n}\n{\n"a": \n}\n', "data.invalid_json", "line 7"),
        ('{"a": 1}{"a": 2, "a": 3}\n', "data.invalid_json", "line 1"),
        ('{"a": 1} {"a": 2} x\n', "data.invalid_json", "line 1"),
        ("{'a': [1, 2}\n", "data.invalid_json", "line 1"),
    ],
)
def test_what_is_not_rows_is_rejected_with_its_line(write, content, code, place):
    with pytest.raises(UserError) as error:
        read_table(write("rows.jsonl", content))
    assert error.value.code == code
    assert place in str(error.value)


def test_values_of_python_rows_keep_what_is_written(write):
    path = write("rows.jsonl", "{'a': 1.50, 'b': None, 'c': (True, \"it's\"), 'd': {1: nan}}\n")
    assert rows(path) == [{"a": "1.50", "b": None, "c": [True, "it's"], "d": {"1": "NaN"}}]


def test_a_nan_is_reported_and_a_text_nan_is_not(write):
    assert not read_table(write("text.jsonl", '{"a": "x: NaN, ", "b": [1, 2]}\n')).notes
    table = read_table(write("nan.jsonl", '{"a": "x"}\n{"a": NaN}\n'))
    assert "line 2" in table.notes[0]


CELLS = {
    "['a' 'b'\n 'c']": ["a", "b", "c"],
    "[1 2 3]": [1, 2, 3],
    "[0. 1.5 -2e3]": [0.0, 1.5, -2000.0],
    "array(['a', 'b'], dtype=object)": ["a", "b"],
    "[array([1, 2]), array(['x'],\n      dtype='<U1')]": [[1, 2], ["x"]],
    "[list(['a']) list(['b', 'c'])]": [["a"], ["b", "c"]],
    "[{'from': 'human', 'value': \"it's\"}\n {'from': 'gpt', 'value': None}]": [
        {"from": "human", "value": "it's"},
        {"from": "gpt", "value": None},
    ],
    "[np.int64(3), np.str_('a'), np.True_]": [3, "a", True],
    "['', '\\'', \"\\n\", 'é']": ["", "'", "\n", "é"],
    "[(1, 'a'), [],]": [[1, "a"], []],
    "[]": [],
}


@pytest.mark.parametrize("cell", CELLS)
def test_lists_of_python_and_numpy_in_cells_are_read(cell):
    assert listed(cell) == CELLS[cell]


@pytest.mark.parametrize(
    "cell", ["[1 2 ... 9]", "[f(1)]", "[Music] x", "['''a''']", "['a'", "[1]]", "[('a')]", "[a=1]"]
)
def test_anything_but_a_list_in_a_cell_stays_text(cell):
    assert listed(cell) is None


def test_any_value_that_python_writes_is_the_same_as_json():
    rng = random.Random(1)

    def value(depth):
        kinds = ["text", "number", "word", "list", "dict"]
        kind = rng.choice(kinds if depth < 4 else kinds[:3])
        if kind == "list":
            return [value(depth + 1) for _ in range(rng.randint(0, 4))]
        if kind == "dict":
            return {text(): value(depth + 1) for _ in range(rng.randint(0, 4))}
        if kind == "number":
            return rng.choice([0, -1, 2.5, 1e300, -1e-9])
        return text() if kind == "text" else rng.choice([None, True, False])

    def text():
        letters = rng.choices("ab'\"\\\n\t ,:[]{}()é\u20ac\U0001f600.#", k=rng.randint(0, 6))
        return "".join(letters)

    for _ in range(300):
        written = value(0)
        assert json.loads(python_to_json(repr(written))) == written


def test_a_list_that_numpy_shortened_is_rejected_with_its_row(write):
    cells = ["\"['a' 'b']\",[0 1]", "\"['c' ... 'd']\",[1 ... 0]"]
    with pytest.raises(UserError) as error:
        load_dataset(write("ner.csv", "\n".join(["tokens,ner_tags", *cells])), 0.1, 1)
    assert error.value.code == "data.shortened_list"
    assert "row 2" in str(error.value)


# Delimited text


@pytest.mark.parametrize("seed", range(20))
def test_every_line_of_a_tsv_with_stray_quotes_is_a_row(write, seed):
    rng = random.Random(seed)
    parts = ["said", '"', '""', "it", ",", "'", '6"', '"quoted"', " "]
    lines = [["text a", "text b", "label"]]
    for number in range(30):
        lines.append([f"{number}", "x".join(rng.choices(parts, k=5)), rng.choice(parts)])
    lines.append(["30", '"opened', "1"])
    content = "".join("\t".join(line) + "\n" for line in lines)
    for name in ("rows.tsv", "rows.csv"):
        table = read_table(write(name, content))
        assert [list(row.values()) for _, row in table.rows()] == lines[1:]
        assert any("Quotation marks" in note for note in table.notes)


def test_quoted_fields_of_a_tsv_with_line_breaks_and_tabs_are_read(write):
    content = 'text\tlabel\n"a\nb"\t1\n"c\t""d"""\tx\nplain\t2\n'
    assert rows(write("rows.tsv", content)) == [
        {"text": "a\nb", "label": "1"},
        {"text": 'c\t"d"', "label": "x"},
        {"text": "plain", "label": "2"},
    ]


def test_empty_columns_without_a_name_are_neither_offered_nor_reported(write):
    lines = "".join(f"soup {n},{n % 2},,{'see' if n == 3 else ''}\n" for n in range(12))
    data = load_dataset(write("rows.csv", f"comment,label,,\n{lines}"), 0.1, 1)
    assert data.column_mapping.columns == {"text": "comment", "label": "label"}
    assert [(one["name"], one["rows"]) for one in data.unused] == [("column 4", 1)]


def test_commas_at_the_end_of_rows_are_no_columns(write):
    assert rows(write("rows.csv", "a,b\n1,2,\n3,4,,\n")) == [
        {"a": "1", "b": "2"},
        {"a": "3", "b": "4"},
    ]


@pytest.mark.parametrize("name", ["polarity", "stars", "score", "Rating", "class_name"])
@pytest.mark.parametrize("text", ["text", "review", "Phrase"])
def test_a_text_with_what_may_be_its_label_is_asked_about(write, text, name):
    lines = "".join(f",{n},soup {n},{n % 3}\n" for n in range(12))
    path = write("rows.csv", f",Unnamed: 0,{text},{name}\n{lines}")
    first, second = detect_mappings(str(path))[1]
    assert (first.schema, second.schema) == ("text_classification", "text")
    assert first.columns == {"text": text, "label": name}


def test_words_for_nothing_stay_labels_and_answers(write):
    words = ["NA", "None", "null", "nan", "007", "12345678901234567890"]
    lines = "".join(f"soup {n},{word}\n" for n, word in enumerate(words * 2))
    data = load_dataset(write("rows.csv", f"text,label\n{lines}"), 0.0, 1)
    assert set(data.labels) == set(words)
    answers = load_dataset(write("qa.csv", f"question,answer\n{lines}"), 0.0, 1)
    assert [row.messages[-1]["content"] for row in answers.train] == words * 2


WESTERN = [
    "How much?,It costs £5 – or £10.",
    "How much?,“Only” 5 € – it’s fine…",
    "Who?,Foo® and Bar™ © 2020",
    "What is crème brûlée?,It costs £7 at the café – that’s £3 more.",
    "Wie groß?,20 m² – für 5 € oder £4",
    "¿Dónde?,Aquí – son 5 €",
]


@pytest.mark.parametrize("line", WESTERN)
@pytest.mark.parametrize("before", [0, 500])
def test_western_text_is_read_as_cp1252(write, line, before):
    content = "question,answer\n" + "plain,text\n" * before + line + "\n"
    last = rows(write("rows.csv", content.encode("cp1252")))[-1]
    assert ",".join(last.values()) == line


@pytest.mark.parametrize(
    "line",
    [
        "Kde je kočka?,Na stole – česky řečeno",
        "Hol van a nő?,Később a boltban – hétkor",
        "Ile kosztuje książka?,Około 5 zł – może więcej",
    ],
)
def test_central_european_text_is_read_as_cp1250(write, line):
    assert ",".join(rows(write("rows.csv", f"a,b\n{line}\n".encode("cp1250")))[0].values()) == line


# Excel


def test_the_sheet_with_a_table_is_read_and_another_can_be_chosen(tmp_path):
    path = tmp_path / "book.xlsx"
    sheets = {"Read me": [["About this file"], ["By Anna"]], "Data": lines_of(PAIRS)}
    path.write_bytes(workbook(sheets | {"Old": lines_of(PAIRS[:2])}))
    table = read_table(path)
    assert [row for _, row in table.rows()] == PAIRS
    assert all(title in table.notes[0] for title in sheets)
    assert rows(f"{path}#Old") == PAIRS[:2]
    with pytest.raises(UserError) as error:
        read_table(f"{path}#New")
    assert error.value.code == "data.unknown_part"


@pytest.mark.parametrize("above", [[["Survey 2024"]], [["Survey"], [], ["by", None], ["Anna"]]])
def test_title_rows_above_the_header_are_skipped_and_reported(tmp_path, above):
    path = tmp_path / "book.xlsx"
    table = [row | {"more": "x", "even more": "y"} for row in PAIRS]
    path.write_bytes(workbook({"Data": [*above, *lines_of(table)]}))
    assert rows(path) == table
    assert above[0][0] in read_table(path).notes[0]


FORMATS = [
    (datetime.datetime(2024, 3, 1), "dd.mm.yyyy", "2024-03-01"),
    (datetime.datetime(2024, 3, 1, 9, 30), "yyyy-mm-dd hh:mm", "2024-03-01 09:30:00"),
    (0.5, "0%", "50%"),
    (0.125, "0.0%", "12.5%"),
    (1234.5, "#,##0.00", "1,234.50"),
    (1.5, '#,##0.00 "€"', "1.50 €"),
    (9.5, '"$"#,##0.00', "$9.50"),
    (-9.5, "[$€-407] 0.00", "-€ 9.50"),
    (2116, "00000", "02116"),
    (0.1 + 0.2, "General", "0.3"),
    (3.0, "General", "3"),
    (3.7, "0", "3.7"),
    (12345678901, "General", "12345678901"),
    ("007", "@", "007"),
]


def test_values_are_read_as_excel_shows_them(tmp_path):
    def change(book):
        for line, (_, number_format, _) in enumerate(FORMATS, 2):
            book["Data"].cell(line, 2).number_format = number_format

    lines = [["prompt", "completion"], *[["x", value] for value, _, _ in FORMATS]]
    path = tmp_path / "book.xlsx"
    path.write_bytes(workbook({"Data": lines}, change))
    assert [row["completion"] for row in rows(path)] == [shown for _, _, shown in FORMATS]


def test_merged_labels_are_filled_and_formulas_without_a_result_are_named(tmp_path):
    def change(book):
        book["Data"].merge_cells("B2:B4")
        book["Data"].merge_cells("B5:C6")

    lines = [["text", "label", "sum"]]
    lines += [[f"soup {n}", {0: "a", 3: "b"}.get(n), "=1+1" if n < 3 else None] for n in range(5)]
    path = tmp_path / "book.xlsx"
    path.write_bytes(workbook({"Data": lines}, change))
    table = read_table(path)
    assert [row["label"] for _, row in table.rows()] == ["a", "a", "a", "b", "b"]
    assert any("B2:B4" in note for note in table.notes)
    assert any("C2, C3, C4" in note for note in table.notes)


def test_hidden_rows_are_read_and_named(tmp_path):
    def change(book):
        for line in (3, 5):
            book["Data"].row_dimensions[line].hidden = True

    path = tmp_path / "book.xlsx"
    path.write_bytes(workbook({"Data": lines_of(PAIRS * 3)}, change))
    table = read_table(path)
    assert [row for _, row in table.rows()] == PAIRS * 3
    assert any("3, 5" in note for note in table.notes)


def test_a_stray_cell_is_named(tmp_path):
    path = tmp_path / "book.xlsx"
    path.write_bytes(workbook({"Data": [["text", "label"], ["a", "b"], ["a", "b", None, "c"]]}))
    with pytest.raises(UserError) as error:
        read_table(path)
    assert "D3" in str(error.value)


# Arrow and archives


def saved(folder):
    """The files of a dataset with names of labels, as `datasets` saves it."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["good", "bad"])}
    )
    columns = {"text": [row["text"] for row in LABELLED], "label": [0, 1] * 6}
    dataset = datasets.Dataset.from_dict(columns, features=features)
    splits = datasets.DatasetDict({"train": dataset, "test": dataset.select(range(4))})
    dataset.save_to_disk(folder / "one")
    dataset.save_to_disk(folder / "shards", num_shards=3)
    splits.save_to_disk(folder / "splits")


def test_saved_datasets_are_read_with_the_names_of_their_labels(tmp_path):
    saved(tmp_path)
    for name in ("one", "shards", "splits"):
        files = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
        content = zipped({str(path.relative_to(tmp_path)): path.read_bytes() for path in files})
        (tmp_path / f"{name}.zip").write_bytes(content)
        assert rows(tmp_path / f"{name}.zip") == LABELLED
    numbers = [number for number, _ in read_table(tmp_path / "shards.zip").rows()]
    assert numbers == list(range(1, 13))
    [note] = read_table(tmp_path / "splits.zip").notes
    assert "test" in note
    assert rows(f"{tmp_path}/splits.zip#test") == LABELLED[:4]


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"a.csv": delimited(","), "b.csv": delimited(",")}, "data.several_tables"),
        ({"README.md": "Hello"}, "data.no_rows"),
        ({"a.zip": CONTENTS["zip"]}, "data.wrong_file_type"),
        ({"[Content_Types].xml": "x", "word/document.xml": "x"}, "data.unsupported_file_type"),
        ({"a.csv": b"a,b\n" + b"x,y\n" * 500_000}, "data.file_too_large"),
    ],
)
def test_an_archive_without_one_table_is_rejected(write, monkeypatch, files, code):
    monkeypatch.setenv("PEFT_SPACE_MAX_FILE_MB", "0.5")

    def write_all(file):
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)

    with pytest.raises(UserError) as error:
        read_table(write("rows.zip", in_memory(write_all)))
    assert error.value.code == code


def test_an_arrow_file_that_unpacks_to_gigabytes_is_rejected(write):
    once = pa.table({"text": ["x" * 1_000_000] * 30})
    path = write("bomb.arrow", arrow(pa.concat_tables([once] * 5), True, compression="zstd"))
    assert path.stat().st_size < 1_000_000
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFT_SPACE_MAX_FILE_MB", "1")
        with pytest.raises(UserError) as error:
            read_table(path)
    assert error.value.code == "data.file_too_large"


def test_a_damaged_arrow_file_is_read_or_rejected_and_never_ends_the_process(write):
    content, rng = CONTENTS["Arrow file"], random.Random(1)
    for number in range(60):
        hurt = bytearray(content)
        for _ in range(3):
            hurt[rng.randrange(8, len(hurt))] = rng.choice([0, 255, rng.randrange(256)])
        with contextlib.suppress(UserError):
            assert read_table(write(f"{number}.arrow", bytes(hurt))).num_rows
