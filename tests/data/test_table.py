"""Files become rows with every value verbatim, or are rejected with the place."""

import pytest

from peft_space.data.table import demo_files, peek, read_table
from peft_space.errors import UserError


def numbered(path):
    """Return [(number, row)] of a file."""
    return list(read_table(path).rows())


def rows(path):
    return [row for _, row in numbered(path)]


ROW = {"instruction": "Say hi.", "output": "Hi."}


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_json_and_json_lines_give_their_rows(write, name):
    table = read_table(write(name, [ROW, ROW]))
    assert (list(table.rows()), table.num_rows, table.columns) == (
        [(1, ROW), (2, ROW)],
        2,
        ["instruction", "output"],
    )


def test_json_lines_under_the_name_json_are_read(write):
    assert rows(write("rows.json", '{"a": 1}\n{"a": 2}\n')) == [{"a": "1"}, {"a": "2"}]


def test_a_list_inside_an_object_is_the_rows(write):
    assert rows(write("rows.json", '{"data": [{"a": 1}, {"a": 2}]}')) == [{"a": "1"}, {"a": "2"}]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_is_read_with_its_delimiter_and_values_stay_text(write, delimiter):
    text = f'prompt{delimiter}answer\n007{delimiter}"two\r\nlines"\nNA{delimiter}1e5\n'
    assert rows(write("rows.csv", text)) == [
        {"prompt": "007", "answer": "two\r\nlines"},
        {"prompt": "NA", "answer": "1e5"},
    ]


def test_a_byte_order_mark_is_not_part_of_the_first_column(write):
    assert read_table(write("rows.csv", b"\xef\xbb\xbfprompt,answer\na,b\n")).columns == [
        "prompt",
        "answer",
    ]


def test_blank_lines_do_not_shift_the_line_numbers(write):
    assert [number for number, _ in numbered(write("rows.jsonl", '{"a": 1}\n\n{"a": 2}\n'))] == [
        1,
        3,
    ]


@pytest.mark.parametrize(
    ("name", "content", "code", "place"),
    [
        ("empty.json", "", "data.empty_file", ""),
        ("spaces.csv", "  \n", "data.empty_file", ""),
        ("none.json", "[]", "data.no_rows", ""),
        ("header.csv", "prompt,answer\n", "data.no_rows", ""),
        ("broken.json", "[{", "data.invalid_json", "line 1, row 1"),
        ("broken.jsonl", '{"a": 1}\n{"a": \n', "data.invalid_json", "line 2"),
        ("list.jsonl", '{"a": 1}\n[1]\n', "data.row_not_object", "row 2"),
        ("word.json", '"hello"', "data.not_rows", ""),
        ("deep.json", "[" * 100_000, "data.invalid_json", "row 1"),
        (
            "mixed.csv",
            "é,ü\n".encode() * 9 + "é,ü\n".encode("latin-1"),
            "data.unknown_encoding",
            "line 10",
        ),
        ("ragged.csv", "a,b\n1,2\n1,2,3\n", "data.ragged_row", "row 2 (line 3) has 3 fields"),
        ("twice.csv", "a,a\n1,2\n", "data.duplicate_column", "'a'"),
        ("quote.csv", 'a,b\n1,"2\n', "data.invalid_csv", "line 2"),
        ("rows.xml", "<a/>", "data.unsupported_file_type", ".jsonl"),
    ],
)
def test_a_bad_file_is_rejected_with_its_name_and_the_place(write, name, content, code, place):
    with pytest.raises(UserError) as error:
        read_table(write(name, content))
    assert error.value.code == code
    assert name in str(error.value)
    assert place in str(error.value)
    assert "\n" not in str(error.value)


def test_the_error_of_one_of_several_files_names_it_and_says_how_to_continue(write):
    with pytest.raises(UserError) as error:
        read_table([write("good.jsonl", [ROW]), write("bad.jsonl", "[1")])
    assert error.value.code == "data.invalid_json"
    assert str(error.value).count("bad.jsonl") == 2


def test_a_file_over_the_limit_is_rejected_before_it_is_read(write, monkeypatch):
    monkeypatch.setenv("PEFT_SPACE_MAX_FILE_MB", "0.001")
    with pytest.raises(UserError) as error:
        read_table(write("rows.json", [ROW] * 100))
    assert error.value.code == "data.file_too_large"
    assert "rows.json" in str(error.value)
    assert "0.001 MB" in str(error.value)


def test_a_missing_file_or_a_folder_is_rejected(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    for path in (tmp_path / "gone.csv", tmp_path / "folder.csv"):
        with pytest.raises(UserError) as error:
            read_table(path)
        assert error.value.code == "data.file_not_readable"
        assert str(path) in str(error.value)


def test_the_encoding_of_text_that_is_not_utf_8_is_reported(write):
    path = write("latin.csv", "prompt,answer\ncafé,größer\n".encode("latin-1"))
    assert rows(path) == [{"prompt": "café", "answer": "größer"}]
    assert "cp1252" in read_table(path).notes[0]


LEGACY = [
    (
        "cp1252",
        "Frage;Antwort\nWie viel kostet das für 1 Gäste?;ungefähr 5 €\n"
        "Wo ist die Küche?;Im Erdgeschoß\n",
    ),
    (
        "cp1252",
        "question;réponse\nQuel est le n° de la pièce ?;C\u2019est le n° 5, « à côté »\n",
    ),
    ("cp1252", "pregunta;respuesta\n¿Dónde está el niño?;En la habitación\n"),
    ("latin-1", "spørgsmål;svar\nHvor er køkkenet på øen?;Ved siden af æblerne\n"),
    (
        "cp1250",
        "pytanie;odpowiedź\nKto to mówi?;Żółta żaba i gęś, którą znał każdy mąż\n"
        "Czy już są wszyscy?;Nie, brakuje jeszcze trzech osób\n",
    ),
    (
        "cp1251",
        "вопрос;ответ\nГде находится библиотека?;На втором этаже, рядом с лестницей\n"
        "Кто это сказал?;Никто не знает этого\n",
    ),
    (
        "cp1253",
        "ερώτηση;απάντηση\nΠού είναι η βιβλιοθήκη;Στον δεύτερο όροφο, δίπλα στη σκάλα\n",
    ),
    (
        "shift_jis",
        "質問;答え\n図書館はどこですか。;二階の階段の隣にあります。\n"
        "誰がこれを言いましたか。;誰も知りません。\n",
    ),
    ("koi8_r", "вопрос;ответ\nГде находится библиотека?;На втором этаже, рядом с лестницей\n"),
    ("cp866", "вопрос;ответ\nГде находится библиотека?;На втором этаже, рядом с лестницей\n"),
    ("cp850", "Frage;Antwort\nWo ist die Küche?;Im Erdgeschoß, schöne Grüße\n"),
    ("mac_roman", "question;réponse\nOù est la clé ?;Derrière la fenêtre, à l’étage\n"),
    ("cp1254", "soru;cevap\nŞifremi unuttum, ne yapmalıyım?;Giriş sayfasındaki bağlantıya tıkla\n"),
    ("cp1257", "klausimas;atsakymas\nKur yra mano užsakymas?;Jūsų siunta atvyks rytoj ryte\n"),
    ("cp1257", "jautājums;atbilde\nKur ir mans pasūtījums?;Jūsu sūtījums pienāks rīt, gaidiet\n"),
    ("cp1252", "spurning;svar\nHvar er pöntunin mín?;Pakkinn þinn kemur á morgun, það er víst\n"),
    ("iso8859_2", "pytanie;odpowiedź\nGdzie jest moje zamówienie?;Państwa paczka dotrze w środę\n"),
    ("cp874", "คำถาม;คำตอบ\nคำสั่งซื้อของฉันอยู่ที่ไหน;พัสดุของคุณจะถึงพรุ่งนี้\n"),
    ("iso2022_jp", "質問;答え\n図書館はどこですか。;二階の階段の隣にあります。\n"),
]  # fmt: skip


@pytest.mark.parametrize(("encoding", "text"), LEGACY)
def test_short_files_in_legacy_encodings_are_read_letter_for_letter(write, encoding, text):
    path = write("rows.csv", text.encode(encoding))
    assert [list(row.values()) for row in rows(path)] == [
        line.split(";") for line in text.splitlines()[1:]
    ]


def test_several_files_are_combined_and_a_row_is_named_with_its_file(write):
    table = read_table([write("one.jsonl", [ROW]), write("two.jsonl", [ROW, ROW])])
    assert (table.source, table.num_rows) == ("one.jsonl + two.jsonl", 3)
    assert [table.where(number, index) for index, (number, _) in enumerate(table.rows())] == [
        "row 1 of one.jsonl",
        "row 1 of two.jsonl",
        "row 2 of two.jsonl",
    ]


def test_a_part_of_the_rows_is_read_in_order(write):
    table = read_table(write("rows.jsonl", [{"a": str(number)} for number in range(9)]))
    assert [row["a"] for _, row in table.rows(3, 6)] == ["3", "4", "5"]
    table = read_table(write("more.jsonl", [{"a": str(number)} for number in range(9_000)]))
    assert [row["a"] for _, row in table.rows(3_998, 4_003)] == [
        "3998",
        "3999",
        "4000",
        "4001",
        "4002",
    ]
    batches = [numbers for numbers, _ in table.texts(1_000, 8_500, batch=1_500)]
    assert [number for numbers in batches for number in numbers] == list(range(1_001, 8_501))
    assert max(map(len, batches)) == 1_500


def test_peek_reads_only_the_first_rows(write):
    path = write("rows.jsonl", '{"a": "1"}\n{"b": "2"}\nnot JSON\n')
    assert peek(path, 2) == (["a", "b"], [(1, {"a": "1"}), (2, {"b": "2"})])


def test_a_file_is_read_again_when_it_has_changed(write):
    path = write("rows.jsonl", [ROW])
    before = read_table(path)
    write("rows.jsonl", [ROW, ROW])
    assert (before.num_rows, read_table(path).num_rows) == (1, 2)


def test_the_sample_data_can_be_read():
    assert [read_table(path).num_rows for path in demo_files()] == [300, 60]
