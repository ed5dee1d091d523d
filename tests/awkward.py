"""Files as people really bring them: awkward, broken, hostile. Each case writes one and says what must come of it.

Everything that varies comes from a random.Random seeded by the case's name, so that a case is the same in every run.
"""

import bz2
import csv
import datetime
import decimal
import gzip
import io
import json
import lzma
import random
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq

Rows = list[dict[str, Any]]
Words = tuple[str, ...]
"""What the refusal says, beside the file's name."""


@dataclass(frozen=True)
class Case:
    """`make` writes the file and returns the rows that must be read from it, or the words of the sentence that refuses it."""

    name: str
    file_name: str
    make: Callable[[random.Random, Path], Rows | Words]
    issue: str | None = None
    """owner/repository#number: what went wrong there."""
    big: bool = False
    """Read in a process of its own, whose time and memory are measured."""

    def write(self, folder: Path) -> tuple[Path, Rows | Words]:
        path = folder / self.file_name
        return path, self.make(random.Random(f"peft-space {self.name}"), path)


CASES: list[Case] = []


def case(name: str, file_name: str, issue: str | None = None, big: bool = False):
    """Adds the function below as a case."""

    def add(make):
        CASES.append(Case(name, file_name, make, issue, big))
        return make

    return add


def refused(
    name: str, file_name: str, content: str | bytes | Callable[[random.Random], str | bytes], *words: str, issue: str | None = None
):
    """Adds a case of a small file that is refused."""

    def make(rng: random.Random, path: Path) -> Words:
        written = content(rng) if callable(content) else content
        path.write_bytes(written if isinstance(written, bytes) else written.encode())
        return words

    CASES.append(Case(name, file_name, make, issue))


def read(
    name: str,
    file_name: str,
    rows: Rows | Callable[[random.Random], Rows],
    content: Callable[[Rows], str | bytes],
    issue: str | None = None,
):
    """Adds a case of a small file that is read: from the rows to what stands in the file."""

    def make(rng: random.Random, path: Path) -> Rows:
        wanted = rows(rng) if callable(rows) else rows
        written = content(wanted)
        path.write_bytes(written if isinstance(written, bytes) else written.encode())
        return wanted

    CASES.append(Case(name, file_name, make, issue))


# What files are made of

SCRIPTS = (
    "abcdefghijklmnopqrstuvwxyz",
    "ABCDEFGHIJ",
    "áéíóúñçãõäöüß",
    "абвгдежзик",
    "一二三四五六七八九",
    "あいうえお",
    "😀🎉👩‍💻",
    "مرحبا",
)


def text(rng: random.Random, words: int = 6) -> str:
    """Words of several scripts, with a quotation mark, comma or line break here and there."""
    made = ["".join(rng.choice(script) for _ in range(rng.randint(1, 8))) for script in rng.choices(SCRIPTS, k=words)]
    joints = [rng.choice([" ", " ", " ", ", ", '" ', "; ", "\n", "\r\n"]) for _ in made]
    return "q" + "".join(word + joint for word, joint in zip(made, joints, strict=True)) + "z"


def plain(rng: random.Random, words: int = 5) -> str:
    return "w" + " ".join("".join(rng.choice(SCRIPTS[0]) for _ in range(rng.randint(1, 8))) for _ in range(words))


def pairs(rng: random.Random, most: int = 9, make: Callable[[random.Random], str] = text) -> Rows:
    return [{"prompt": make(rng), "answer": make(rng)} for _ in range(rng.randint(2, most))]


def plain_pairs(rng: random.Random) -> Rows:
    return pairs(rng, make=plain)


def one_pair(rng: random.Random) -> Rows:
    return pairs(rng)[:1]


def texts(rng: random.Random) -> Rows:
    return [{"text": f"{plain(rng)}, {plain(rng)}\tx"} for _ in range(9)]


def as_csv(rows: Iterable[Iterable[str]], delimiter: str = ",", end: str = "\r\n", quoting: int = csv.QUOTE_MINIMAL) -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows(rows)
    return file.getvalue()


def table_csv(rows: Rows, **how: Any) -> str:
    return as_csv([list(rows[0]), *[list(row.values()) for row in rows]], **how)


def lines(rows: Iterable[Any], **how: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, **how) + "\n" for row in rows)


# Values that a loader which guesses types changes

SHIFTY = {
    "zeros": ("007", "apache/arrow#46853: quoted digits with leading zeros become integers"),
    "zip-code": ("02116", "pandas-dev/pandas#54665: columns of digits lose their leading zeros"),
    "na": ("NA", "pandas-dev/pandas#10647: NA, a real word, becomes a missing value"),
    "na-round-trip": ("N/A", "pandas-dev/pandas#55032: a written NA does not come back"),
    "n-a": ("n/a", "pandas-dev/pandas#24681: the word n/a becomes a number that is none"),
    "null": ("null", "huggingface/datasets#4467: the transcript of the number zero, null, becomes None"),
    "null-word": ("NULL", "pandas-dev/pandas#32084: the word null becomes a float"),
    "none": ("None", "pandas-dev/pandas#35200: None among numerals mixes types in a column"),
    "nan": ("nan", None),
    "exponent": ("1e5", None),
    "identifier": ("0047583311587E59", "tilo/smarter_csv#345: an identifier with an E becomes infinity"),
    "half-exponent": ("2E", "pandas-dev/pandas#12237: 2E is taken for a float"),
    "thirty-digits": ("123456789012345678901234567890", None),
    "seventeen-places": ("0.12345678901234567890", None),
    "trailing-zero": ("1.50", None),
    "plus": ("+49", None),
    "minus-zero": ("-0", None),
    "infinity": ("Infinity", "pandas-dev/pandas#28181: the word Infinity becomes a float"),
    "true": ("True", "pandas-dev/pandas#48487: words for true and false become booleans unasked"),
    "underscore": ("18_19", "pandas-dev/pandas#41408: digits joined by an underscore become one integer"),
    "date": ("2024-01-05", "pandas-dev/pandas#15410: the names of columns decide which texts become dates"),
    "padded": ("  x ", None),
}
"""22 texts, each of which fills a column of its own file."""


def shifty_rows(rng: random.Random, value: str) -> Rows:
    return [{"prompt": plain(rng), "date": value} for _ in range(rng.randint(2, 6))]


for _name, (_value, _issue) in SHIFTY.items():
    read(f"csv-value-{_name}", f"{_name}.csv", partial(shifty_rows, value=_value), table_csv, _issue)

for _name, _value, _issue in (
    ("zeros", "01", "pandas-dev/pandas#42471: numeric strings become numbers"),
    ("identifier", "72057594038135102", "pandas-dev/pandas#33766: a long identifier comes back with another last digit"),
    ("eighteen-ones", "1" * 18, "pandas-dev/pandas#24249: digits in quotes are read as a float"),
    ("order-number", "202101010000000013", "pandas-dev/pandas#44684: two order numbers become the same"),
    ("padded-ten", "00010", "pandas-dev/pandas#20608: large integers in quotes are misread"),
    ("date-column", "2024-01-05T00:00", None),
    ("escaped-zero", "a\x00b", None),
    ("emoji", "👩‍💻 \U0010ffff", None),
):
    read(f"jsonl-value-{_name}", f"{_name}.jsonl", partial(shifty_rows, value=_value), lines, _issue)


@case("jsonl-long-digits-among-words", "ids.jsonl", "pandas-dev/pandas#30320: twenty digits beside a word overflow")
def _(rng, path):
    rows = [{"col": str(rng.randrange(10**19, 10**20))}, {"col": plain(rng)}]
    path.write_text(lines(rows))
    return rows


NUMBERS = ("1e5", "0.10", "-0", "1E400", "3.0", "1e-7", "NaN", "Infinity", "-Infinity")
for _value in NUMBERS:
    read(
        f"json-number-{_value}",
        "numbers.json",
        [{"a": _value, "b": [_value, None, True]}],
        lambda rows: '[{{"a": {0}, "b": [{0}, null, true]}}]'.format(rows[0]["a"]),
        "Arize-ai/phoenix#7965: a dataset with NaN can be brought but no longer shown" if _value == "NaN" else None,
    )


@case("json-thirty-digits", "time.json", "pandas-dev/pandas#63572: integers of 25 digits are too big to read")
def _(rng, path):
    digits = [str(rng.randrange(10**29, 10**30)) for _ in range(5)]
    path.write_text("[" + ", ".join(f'{{"time": {number}}}' for number in digits) + "]")
    return [{"time": number} for number in digits]


@case("json-numbers-beside-null", "ids.json", "pandas-dev/pandas#58306: a null in the column gives every integer a .0")
def _(rng, path):
    numbers = [str(rng.randrange(10**6)) for _ in range(3)]
    path.write_text('{"id": [' + ", ".join([*numbers, "null"]) + "]}")
    return [*[{"id": number} for number in numbers], {"id": None}]


# JSON that is read

SHAPES = {
    "mixed-scalars": (
        [{"id": "x", "name": True}, {"id": "y", "name": "Nan"}, {"id": "z", "name": None}],
        "huggingface/datasets#5827: a word among numbers ends the loading",
    ),
    "mixed-lists": ([{"ner": [[["0", "4", "Protein"]]]}, {"ner": ["O"]}, {"ner": {}}], "huggingface/datasets#6460: spans with a label in them do not load"),
    "object-or-list": ([{"out": {"a": "b"}}, {"out": ["a"]}, {"out": "a"}], "tloen/alpaca-lora#239: values that are not all text end the loading"),
    "unequal-messages": ([{"messages": [{"a": "x"}, {"b": "y"}]}], "huggingface/datasets#7617: messages are padded with keys they do not have"),
    "null-in-list": ([{"baselines": [None, ["a"], ["b"]]}, {"baselines": [["c"], None]}], "huggingface/datasets#7059: a null at the start of a list is lost"),
    "keys-that-differ": ([{"at": {f"-{n}": ["0", "10"]}} for n in range(40)], "huggingface/datasets#6699: each row gets the keys of all rows"),
    "missing-struct-field": ([{"image": {"url": "u", "alt": "a"}}, {"image": {"url": "u"}}], "huggingface/datasets#7159: a missing inner field ends the loading"),
    "missing-in-the-first-row": ([{"instruction": "a", "output": "b"}, {"instruction": "a", "input": "c", "output": "b"}], "huggingface/datasets#5726: a key that the first row lacks is not loaded"),
    "null-stays-null": ([{"section": [None, "Introduction"]}, {"section": [None]}], "huggingface/datasets#3181: null becomes the word None"),
    "empty-values": ([{"a": "", "b": [], "c": {}}, {"a": " ", "b": [""], "c": {"": ""}}], None),
}  # fmt: skip
for _name, (_rows, _issue) in SHAPES.items():
    read(f"jsonl-{_name}", f"{_name}.jsonl", _rows, lines, _issue)
    if _name in ("mixed-scalars", "null-in-list", "unequal-messages"):
        read(f"json-{_name}", f"{_name}.json", _rows, json.dumps)


def indented(rows: Rows) -> str:
    return json.dumps(rows, indent=4, ensure_ascii=False)


def separators(rng: random.Random, *marks: str) -> Rows:
    return [{"a": plain(rng) + mark + plain(rng)} for mark in marks]


OBJECTS = "hiyouga/LlamaFactory#412: a list where an object per line was expected does not load"
read("json-list-of-objects", "train.json", pairs, json.dumps, OBJECTS)
read("json-indented", "indent.json", pairs, indented, "apache/arrow#40912: indented JSON does not load")
LAST = "apache/arrow#45394: a single line without a line break loads as missing values"
read("jsonl-one-line-without-an-end", "one.jsonl", one_pair, lambda rows: lines(rows).rstrip("\n"), LAST)
EXTRA = "longzw1997/Open-GroundingDino#96: objects on lines are extra data to a reader of one value"
read("json-lines-under-the-name-json", "train.json", pairs, lines, EXTRA)
SEPARATOR = "datalad/datalad#3523: U+2028 inside a text is taken for the end of the line"
read("jsonl-line-separator", "talks.jsonl", lambda rng: separators(rng, "\u2028", "\u2029"), lines, SEPARATOR)
NEXT = "wbolster/jsonlines#53: U+0085 inside a text is taken for the end of the line"
read("jsonl-next-line", "nel.jsonl", lambda rng: separators(rng, "\x85", "\x7f"), lines, NEXT)
MARK = "WangRongsheng/MedQA-ChatGLM#2: a byte order mark before the list ends the loading"
read("json-byte-order-mark", "self.json", pairs, lambda rows: json.dumps(rows).encode("utf-8-sig"), MARK)
read("jsonl-byte-order-mark-in-the-middle", "joined.jsonl", pairs, lambda rows: "\ufeff".join(lines([row]) for row in rows))
BLOCK = "huggingface/datasets#3227: a text larger than the reader's block ends the loading"
read("json-text-larger-than-a-block", "mydata.json", lambda rng: [{"text": plain(rng, 300_000)}], json.dumps, BLOCK)
STRADDLE = "huggingface/datasets#369: a long row straddles two blocks"
read("jsonl-row-across-blocks", "squad.jsonl", lambda rng: [{"text": plain(rng, 100_000)}, *pairs(rng)], lines, STRADDLE)
read("jsonl-windows-lines", "crlf.jsonl", pairs, lambda rows: lines(rows).replace("\n", "\r\n"))
read("jsonl-blank-lines", "blank.jsonl", pairs, lambda rows: "\n \n".join(lines([row]) for row in rows))
read("jsonl-escaped-emoji", "escaped.jsonl", pairs, lambda rows: "".join(json.dumps(row) + "\n" for row in rows))
read("jsonl-that-is-one-list", "list.jsonl", pairs, json.dumps)
read("ndjson", "train.ndjson", pairs, lines)
read("json-one-object", "one.json", one_pair, lambda rows: json.dumps(rows[0]))
read("json-list-of-texts", "texts.json", texts, lambda rows: json.dumps([row["text"] for row in rows]))
read("json-lists-by-column", "columns.json", pairs, lambda rows: json.dumps({key: [row[key] for row in rows] for key in rows[0]}))
read(
    "json-columns-by-number",
    "frame.json",
    pairs,
    lambda rows: json.dumps({key: {n: row[key] for n, row in enumerate(rows)} for key in rows[0]}),
)
read("json-rows-under-a-key", "data.json", pairs, lambda rows: json.dumps({"data": rows}))
read("jsonl-nested-ninety", "deep.jsonl", [{"a": json.loads("[" * 90 + "]" * 90)}], lines)

# JSON that is refused

refused("json-empty", "empty.json", b"", "the file is empty")
refused("json-empty-list", "none.json", "[]", "no rows")
refused(
    "json-trailing-comma",
    "comma.json",
    lambda rng: json.dumps(pairs(rng)[:2], indent=1)[:-2] + ",\n]",
    "line 10",
    "row 3",
    "comma after the last row",
)
refused("json-trailing-comma-in-a-row", "comma.json", '[{"a": 1},\n{"a": 2,}]', "line 2", "row 2", "character 9", "key in double quotes")
refused("json-missing-comma", "data.json", '[{"a": "x"\n "b": "y"}]', "line 2", "row 1", "a comma is missing", issue="shibing624/MedicalGPT#38: a comma that is missing in one row")  # fmt: skip
refused("json-missing-comma-between-rows", "data.json", '[{"a": "x"}\n{"a": "y"}]', "row 1", "no comma between two rows")
refused("json-cut-off-in-a-row", "cut.json", lambda rng: json.dumps(pairs(rng, make=plain))[:-9], "row", "never closed")
refused("json-cut-off-after-a-row", "cut.json", '[{"a": 1}', "after row 1", "ends inside the list")
refused("jsonl-cut-off", "train.ensembles.s10.jsonl", lambda rng: lines([{"a": "b"}] * 7) + '{"id": 105959, "claim": "Julie', "line 8", "character 25", "never closed", issue="thunlp/GEAR#2: a download that ends inside its last line")  # fmt: skip
refused("jsonl-cut-off-after-a-comma", "cut.jsonl", '{"a": 1}\n{"a": 2,', "line 2", "character 9")
refused("jsonl-two-objects-on-a-line", "two.jsonl", '{"a": 1}{"a": 2}\n', "line 1", "character 9", "something follows")
refused("jsonl-pretty-printed", "pretty.jsonl", '{\n "a": 1\n}\n', "line 1", "Every line must be one object")
refused("jsonl-python-dicts", "py.jsonl", "{'a': 'x'}\n", "line 1", "double quotes")
refused("jsonl-comment", "comment.jsonl", '{"a": 1}\n// more\n', "line 2")
refused("jsonl-raw-line-break", "tab.jsonl", '{"a": "x\ty"}\n', "line 1", "control character")
refused("jsonl-key-twice", "twice.jsonl", lambda rng: lines(pairs(rng)[:1]) + '{"a": 1, "a": 99}\n', "line 2", "'a' twice", issue="ajschumacher/mergic#38: the last of two equal keys silently wins")  # fmt: skip
refused("json-key-twice-deep-inside", "twice.json", '[{"a": 1},\n{"a": [{"b": 1, "b": 2}]}]', "line 2", "row 2", "'b' twice")
refused("json-nested-thousand", "deep.json", "[" + "[" * 1000 + "]" * 1000 + "]", "row 1", "nested too deeply", issue="simplejson/simplejson#334: a thousand nested lists end in a RecursionError")  # fmt: skip
refused("jsonl-nested-thousand", "deep.jsonl", lambda rng: lines(pairs(rng)[:1]) + '{"a":' * 1000 + "1" + "}" * 1000 + "\n", "line 2", "nested too deeply", issue="simplejson/simplejson#28: nested objects end in a recursion error")  # fmt: skip
refused("jsonl-nested-five-hundred", "deep.jsonl", '{"a":' + "[" * 500 + "]" * 500 + "}\n", "line 1", "nested too deeply")
refused("json-object-nested-six-hundred", "deep.json", '{"a":' * 600 + "1" + "}" * 600, "row 1", "nested too deeply")
refused("jsonl-half-a-character", "half.jsonl", '{"a": "fine"}\n{"a": "\\ud800"}\n', "line 2", "half a character", issue="hartwork/jawanndenn#44: a lone surrogate makes the server fail")  # fmt: skip
refused("json-half-a-character-in-columns", "half.json", '{"a": ["\\udc00"], "b": ["x"]}', "row 1", "half a character")
refused("jsonl-a-list-among-objects", "mixed.jsonl", '{"a": 1}\n["x"]\n', "row 2 is a list")
refused("json-null-row", "null.json", '[{"a": 1}, null]', "row 2", "null")
refused("json-a-word", "word.json", '"hello"', "single text")
refused("json-columns-of-unequal-length", "columns.json", '{"a": [1, 2], "b": [1]}', "'a' has 2", "'b' has 1")
refused("json-several-lists", "splits.json", '{"train": [{"a": 1}], "test": [{"a": 1}]}', "train, test", "a file for each")
refused("json-something-after-the-list", "after.json", '[{"a": 1}]\n[{"a": 2}]', "line 2", "after the end of the list")
refused("json-that-is-csv", "table.json", "prompt,answer\na,b\n", "line 1", "not JSON")
refused("jsonl-that-is-a-message", "train.jsonl", "Entry not found", "line 1", "not JSON")

# Tables of text

for _name, _delimiter, _end in (("comma", ",", "\n"), ("semicolon", ";", "\r\n"), ("bar", "|", "\n"), ("tab", "\t", "\r\n")):
    read(f"csv-{_name}", f"{_name}.csv", pairs, partial(table_csv, delimiter=_delimiter, end=_end, quoting=csv.QUOTE_ALL))


def prices(rng: random.Random) -> Rows:
    return [{"Preis": f"{rng.random():.2f}".replace(".", ","), "Text": plain(rng)} for _ in range(9)]


read("csv-decimal-commas", "preise.csv", prices, partial(table_csv, delimiter=";"))
BOM = "jdunck/python-unicodecsv#75: the byte order mark becomes part of the first column's name"
read("csv-byte-order-mark", "excel.csv", pairs, lambda rows: table_csv(rows).encode("utf-8-sig"), BOM)
read("csv-byte-order-mark-before-a-quote", "excel.csv", pairs, lambda rows: table_csv(rows, quoting=csv.QUOTE_ALL).encode("utf-8-sig"))
RETURNS = "wireservice/csvkit#606: carriage returns inside a field are replaced"
read("csv-carriage-returns-in-a-field", "cut_test.csv", [{"a": "x\ry", "b": "x\r\ny"}, {"a": "\r", "b": "\n"}], table_csv, RETURNS)
BLANK = "minimaxir/gpt-2-simple#162: an empty line ends the loading"
read("csv-empty-lines", "tabs.csv", plain_pairs, partial(table_csv, end="\n\n"), BLANK)
LAST_LINE = "jazzband/tablib#334: an empty last line makes the whole table empty"
read("csv-empty-line-at-the-end", "mycsv.csv", pairs, lambda rows: table_csv(rows) + "\r\n\r\n", LAST_LINE)
CTRL_Z = "pandas-dev/pandas#5500: the character Ctrl-Z inside a text ends the reading"
read("csv-end-of-file-character", "ctrl-z.csv", lambda rng: [{"a": plain(rng) + "\x1a" + plain(rng), "b": "y"}], table_csv, CTRL_Z)
LIMIT = "simonw/datasette-lite#84: a field over 131072 characters is an error"
read("csv-field-over-131072", "long.csv", lambda rng: [{"a": plain(rng, 50_000), "b": "y"}], table_csv, LIMIT)
CAPTIONS = [{"url": "u1", "caption": '"Zdanevich'}, {"url": "u2", "caption": '6" disk'}, {"url": "u3", "caption": 'x"'}]
JOINED = "rom1504/img2dataset#321: a quotation mark in a TSV joins the rows after it"
read("tsv-quotation-mark-that-is-text", "urls.tsv", CAPTIONS, lambda rows: "url\tcaption\n" + "".join("\t".join(row.values()) + "\n" for row in rows), JOINED)  # fmt: skip
read("csv-one-row", "one.csv", one_pair, table_csv)
read("csv-one-column", "one.csv", lambda rng: [{"text": plain(rng)} for _ in range(5)], table_csv)
read("csv-one-column-with-commas", "one.csv", texts, partial(table_csv, quoting=csv.QUOTE_ALL))
read(
    "csv-unnamed-index",
    "frame.csv",
    [{"column 1": "0", "a": "x"}, {"column 1": "1", "a": "y"}],
    lambda rows: table_csv(rows).replace("column 1", ""),
)
read("csv-without-header", "raw.csv", [{"column 1": "1", "column 2": "2.5"}, {"column 1": "3", "column 2": "4"}], lambda rows: as_csv(row.values() for row in rows))  # fmt: skip
read("csv-spaces-around", "spaces.csv", [{"a": " 1 ", "b": " 2 "}], lambda rows: table_csv(rows).replace("a,b", "a , b"))
read("csv-old-mac-lines", "mac.csv", plain_pairs, partial(table_csv, end="\r"))
read("csv-line-separators-are-text", "ls.csv", [{"a": "x\u2028y\x85", "b": "\x0b\x0c\x1c"}], partial(table_csv, end="\n"))
read("csv-separator-named-by-excel", "sep.csv", plain_pairs, lambda rows: "sep=;\r\n" + table_csv(rows, delimiter=";"))
read("csv-quotes-inside-plain-fields", "say.csv", [{"a": "1", "b": 'say "hi" now'}], lambda rows: 'a,b\n1,say "hi" now\n')
read("csv-a-thousand-columns", "wide.csv", lambda rng: [{f"c{n}": plain(rng, 1) for n in range(1000)}], table_csv)
read("csv-name-in-capitals", "TRAIN.CSV", pairs, table_csv)
read("csv-name-with-spaces-and-dots", "my data (1).v2.csv", pairs, table_csv)

refused("csv-empty", "empty.csv", b"", "the file is empty", issue="gkunter/coquery#84: an empty table ends in an exception")
refused("csv-only-white-space", "spaces.csv", " \r\n\t\n", "the file is empty")
refused("csv-only-a-byte-order-mark", "mark.csv", b"\xef\xbb\xbf", "the file is empty")
refused("csv-header-only", "header.csv", lambda rng: f"{plain(rng, 1)},b\n", "no rows")
refused("csv-quote-never-closed", "cats.csv", lambda rng: 'a,b\n1,2\n1,"x\n' + "2,y\n" * rng.randint(9, 99), "line 3", "never closed", issue="tilo/smarter_csv#283: a quotation mark that is never closed swallows the rest")  # fmt: skip
refused("csv-text-after-a-quote", "after.csv", 'a,b\n1,"a"b\n', "line 2", "not doubled", issue="pandas-dev/pandas#15910: text after a closing quotation mark is joined or fails")  # fmt: skip
refused("csv-backslash-before-a-quote", "escaped.csv", 'a,b\n1,"say \\"hi\\" now"\n', "line 2", "quotation mark")
refused("csv-row-too-short", "short.csv", lambda rng: "a,b,c\n" + "1,2,3\n" * 40 + "1,2\n", "row 41", "line 42", "2 fields", issue="ray-project/ray#28891: a row with fewer columns than the header")  # fmt: skip
refused("csv-row-too-long", "long.csv", "a\nb\nc,ragged\n", "row 2", "line 3", "2 fields", issue="pola-rs/polars#10585: what does not fit the header is silently cut off")  # fmt: skip
refused("csv-lone-carriage-return", "busted.csv", "a,b\n1,one\n2,two\rowt\n3,three\n", "row 3", "line 4", "1 field,", issue="pandas-dev/pandas#10018: a carriage return inside a plain field splits the row")  # fmt: skip
refused("csv-columns-of-one-name", "same.csv", "a,a,b\n1,2,3\n", "'a'", "twice", issue="pandas-dev/pandas#19383: columns of one name are renamed without a word")  # fmt: skip
refused("csv-columns-of-one-name-but-for-spaces", "same.csv", "a, a\n1,2\n", "'a'", "twice")
refused(
    "csv-zero-byte", "test.csv", b"a,b,c\n1,2\0,3\n", "line 2", "zero byte", issue="codeinthehole/csvfilter#8: a zero byte ends the reading"
)
refused("csv-zero-byte-far-down", "torn.csv", lambda rng: b"a,b\n" + b"hello,world\n" * 10_000 + b"x,\0\0\0\0", "line 10002", "zero byte")
refused("csv-that-is-json-lines", "rows.csv", '{"a": 1, "b": 2}\n', "this is JSON", ".jsonl")
refused("csv-that-is-an-error-message", "train.csv", '<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML", "Download")
refused("csv-comment-first", "comment.csv", "# made by hand\na,b\n1,2\n", "line 2", "2 fields")

# Encodings

QUOTED_16 = "adaltas/node-csv-parse#318: quoted fields in UTF-16 come out as other letters"


def encoded(rows: Rows, encoding: str) -> bytes:
    return table_csv(rows, quoting=csv.QUOTE_ALL).encode(encoding)


def legacy(rng: random.Random, words: list[str]) -> Rows:
    return [{"prompt": " ".join(rng.choices(words, k=9)), "answer": rng.choice(words)} for _ in range(30)]


for _encoding in ("utf-16-le", "utf-16-be", "utf-16", "utf-32"):
    read(f"csv-{_encoding}", f"{_encoding}.csv", pairs, partial(encoded, encoding=_encoding), QUOTED_16 if _encoding == "utf-16" else None)
read("jsonl-utf-16-le", "le.jsonl", pairs, lambda rows: lines(rows).encode("utf-16-le"))
read("json-utf-16", "mark.json", pairs, lambda rows: json.dumps(rows, ensure_ascii=False).encode("utf-16"))
CHINESE = "".join(chr(0x4E00 + number) for number in range(1, 90))
read(
    "csv-utf-16-le-all-chinese", "zh.csv", [{"问题": CHINESE, "答案": CHINESE[::-1]}] * 9, lambda rows: table_csv(rows).encode("utf-16-le")
)
LEGACY = {
    "cp1252": ("naïve café Größe über élève – “crème” señor", "ludwig-ai/ludwig#113: a table that is not UTF-8 ends in a decode error"),
    "cp1251": ("привет как тебя зовут мир вопрос ответ", None),
    "gb18030": ("请问 今天 天气 怎么样 世界 和平 问题 答案", None),
    "big5": ("你好 請問 今天 天氣 怎麼樣 世界 問題", None),
    "euc_kr": ("안녕하세요 세계 질문 대답 감사합니다", None),
}
for _encoding, (_words, _issue) in LEGACY.items():
    read(f"csv-{_encoding}", f"{_encoding}.csv", partial(legacy, words=_words.split()), partial(encoded, encoding=_encoding), _issue)
refused(
    "csv-one-row-not-utf-8",
    "mixed.csv",
    lambda rng: b"a,b\n" + "é,ü\n".encode() * 50 + "é,ü\n".encode("latin-1"),
    "line 52",
    "not UTF-8",
)
refused("csv-utf-16-cut-in-a-letter", "odd.csv", lambda rng: table_csv(pairs(rng)).encode("utf-16")[:-1], "is not utf-16")

# Something else under a name of ours

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{:064x}\nsize {}\n"
for _kind in (".csv", ".jsonl", ".parquet", ".json.gz"):
    refused(
        f"git-lfs-pointer{_kind}", f"train{_kind}", lambda rng: POINTER.format(rng.getrandbits(256), rng.randrange(10**9)),
        *(("cannot be unpacked",) if _kind == ".json.gz" else ("pointer", "git lfs pull") if _kind != ".parquet" else ("git lfs pull",)),
        issue="benedekrozemberczki/datasets#10: tables in the archive are pointers of Git LFS" if _kind == ".csv" else None,
    )  # fmt: skip
for _kind, _name, _start, _said in (
    (".csv", "png", b"\x89PNG\r\n\x1a\n", "image"),
    (".jsonl", "jpeg", b"\xff\xd8\xff\xe0", "image"),
    (".txt", "pdf", b"%PDF-1.7\n", "PDF"),
    (".csv", "xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "old Office file"),
    (".json", "sqlite", b"SQLite format 3\0", "database"),
    (".csv", "parquet", b"PAR1\x15\x04", ".parquet"),
):
    refused(f"{_name}-renamed{_kind}", f"renamed{_kind}", lambda rng, start=_start: start + rng.randbytes(500), _said)
refused("random-bytes.csv", "random.csv", lambda rng: rng.randbytes(4000), "no text", "zero byte")
refused("random-bytes.parquet", "random.parquet", lambda rng: b"x" + rng.randbytes(4000), "no .parquet file")
refused("bzip2-renamed.csv", "packed.csv", lambda rng: bz2.compress(text(rng).encode()), "bzip2")
refused("xz-renamed.jsonl", "packed.jsonl", lambda rng: lzma.compress(text(rng).encode()), "packed with xz")
refused("web-page.json", "page.json", "\n<!DOCTYPE html><html><body>404</body></html>", "web page", "Download")
refused("kind-that-is-not-read", "train.docx", b"PK\x03\x04", "files of this kind", ".jsonl")
refused("zip-renamed.csv", "packed.csv", lambda rng: zipped({"train.csv": b"a,b\n1,2\n"}), "zip archive", "Unpack")
refused("gzip-under-another-name", "train.csv", lambda rng: gzip.compress(table_csv(pairs(rng)).encode()), "packed with gzip", ".gz", issue="huggingface/datasets#6851: byte 0x8b at position 1, gzip's mark, is no UTF-8")  # fmt: skip


def zipped(parts: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return file.getvalue()


# gzip

read("gzip-csv", "train.csv.gz", pairs, lambda rows: gzip.compress(table_csv(rows).encode()))
read("gzip-jsonl-in-two-members", "train.jsonl.gz", pairs, lambda rows: b"".join(gzip.compress(lines([row]).encode()) for row in rows))
read("gzip-json-in-utf-16", "train.json.gz", pairs, lambda rows: gzip.compress(json.dumps(rows).encode("utf-16-le")))
read("gzip-name-in-capitals", "TRAIN.TSV.GZ", plain_pairs, lambda rows: gzip.compress(table_csv(rows, delimiter="\t").encode()))
refused("gzip-cut-off", "cut.csv.gz", lambda rng: gzip.compress(rng.randbytes(999))[:-20], "cannot be unpacked", "too early")
refused(
    "gzip-damaged",
    "hurt.csv.gz",
    lambda rng: gzip.compress(table_csv(pairs(rng)).encode())[:-8] + b"\0" * 8,
    "cannot be unpacked",
    "damaged",
)
refused("gzip-that-is-plain", "plain.csv.gz", lambda rng: table_csv(pairs(rng)), "not packed with gzip")
refused("gzip-twice", "twice.csv.gz", lambda rng: gzip.compress(gzip.compress(b"a,b\n1,2\n")), "gzip twice", "Unpack it once")
refused("gzip-of-nothing", "empty.jsonl.gz", gzip.compress(b""), "the file is empty")

# Parquet


@case("parquet-typed-values", "typed.parquet")
def _(rng, path):
    number, price = rng.randrange(2**62), decimal.Decimal("1.50")
    row = {
        "n": number,
        "f": 0.1,
        "d": datetime.date(2024, 1, 5),
        "p": price,
        "t": text(rng),
        "b": True,
        "z": None,
        "l": [{"x": 1, "y": None}],
    }
    pq.write_table(pa.Table.from_pylist([row]), path)
    return [{**row, "n": str(number), "f": "0.1", "d": "2024-01-05", "p": "1.50", "l": [{"x": "1", "y": None}]}]


@case("parquet-messages", "chat.parquet")
def _(rng, path):
    rows = [{"messages": [{"role": rng.choice(["user", "assistant"]), "content": text(rng)} for _ in range(5)]} for _ in range(200)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=33)
    return rows


@case("parquet-shifty-texts", "texts.parquet")
def _(rng, path):
    rows = [{"a": value, "b": rng.choice([None, ""])} for value, _ in SHIFTY.values()]
    columns = {"a": pa.array([row["a"] for row in rows]).dictionary_encode(), "b": pa.array([row["b"] for row in rows], pa.large_string())}
    pq.write_table(pa.table(columns), path)
    return rows


def parquet_bytes(table: pa.Table, **how: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **how)
    return file.getvalue()


def some_parquet(rng: random.Random) -> bytes:
    return parquet_bytes(pa.table({"a": [text(rng, 40) for _ in range(300)]}), use_dictionary=False)


def changed_letter(rng: random.Random) -> bytes:
    letters = rng.randbytes(5000).hex()
    data = parquet_bytes(
        pa.table({"a": [letters]}), use_dictionary=False, compression="none", write_statistics=False, write_page_checksum=True
    )
    return data.replace(letters[5000:5010].encode(), b"y" * 10)


def hurt(data: bytes, at: int, rng: random.Random) -> bytes:
    return data[:at] + rng.randbytes(200) + data[at + 200 :]


refused("parquet-empty", "empty.parquet", b"", "the file is empty")
refused("parquet-cut-off", "cut.parquet", lambda rng: some_parquet(rng)[:-200], "no whole Parquet file", "again", issue="huggingface/datasets#4077: magic bytes are missing at the end of a download")  # fmt: skip
refused("parquet-bad-footer", "footer.parquet", lambda rng: hurt(data := some_parquet(rng), len(data) - 250, rng), "no whole Parquet file", issue="huggingface/lerobot#2529: a file whose footer was never written whole")  # fmt: skip
refused("parquet-bad-data", "shard_001.parquet", lambda rng: hurt(data := some_parquet(rng), len(data) // 2, rng), "no whole Parquet file", issue="mlfoundations/MINT-1T#12: packed data inside the file are corrupt")  # fmt: skip
refused("parquet-changed-letters", "rotten.parquet", changed_letter, "no whole Parquet file")
refused("parquet-only-magic", "magic.parquet", b"PAR1PAR1", "no whole Parquet file")
refused("parquet-no-rows", "none.parquet", lambda rng: parquet_bytes(pa.table({"a": pa.array([], pa.string())})), "no rows")
refused("parquet-images", "images.parquet", lambda rng: parquet_bytes(pa.table({"text": ["x"], "image": [{"bytes": rng.randbytes(90), "path": "a.png"}]})), "'image'", "bytes", "Leave it out")  # fmt: skip
refused("parquet-bytes", "bytes.parquet", lambda rng: parquet_bytes(pa.table({"raw": [rng.randbytes(9)]})), "'raw'", "bytes")
refused(
    "parquet-columns-of-one-name",
    "twice.parquet",
    lambda rng: parquet_bytes(pa.Table.from_arrays([pa.array(["x"])] * 2, ["a", "a"])),
    "'a'",
    "twice",
)
refused("parquet-half-a-letter", "half.parquet", lambda rng: parquet_bytes(pa.table({"a": pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xc3"]).buffers())})), "Parquet")  # fmt: skip

# Excel


def book(path: Path, *sheets: list[list[Any]]) -> None:
    made = openpyxl.Workbook(write_only=True)
    for number, rows in enumerate(sheets):
        sheet = made.create_sheet(f"Sheet {number}")
        for row in rows:
            sheet.append(row)
    made.save(path)


@case("excel-text-of-digits", "string.xlsx", "pandas-dev/pandas#12186: text such as 02 in a text cell becomes a number")
def _(rng, path):
    rows = [{"a": value, "b": plain(rng)} for value, _ in SHIFTY.values()]
    book(path, [["a", "b"], *[list(row.values()) for row in rows]])
    return rows


@case("excel-whole-number", "three.xlsx", "python-excel/xlrd#232: 3 is read as 3.0")
def _(rng, path):
    number = rng.randrange(10**6)
    book(path, [["n", "d", "b"], [number, datetime.date(2024, 1, 5), True], [0.5, None, False]])
    return [{"n": str(number), "d": "2024-01-05T00:00:00", "b": "True"}, {"n": "0.5", "d": None, "b": "False"}]


@case("excel-second-sheet", "sheets.xlsx")
def _(rng, path):
    rows = pairs(rng, make=plain)
    book(path, [], [list(rows[0]), [None, None], *[list(row.values()) for row in rows]])
    return rows


def excel_refused(name: str, *words: str, rows: list[list[Any]]) -> None:
    CASES.append(Case(name, "book.xlsx", lambda rng, path: book(path, rows) or words))


excel_refused("excel-no-rows", "no rows", rows=[[None]])
excel_refused("excel-header-only", "no rows", rows=[["prompt", "answer"]])
excel_refused("excel-columns-of-one-name", "'a'", "twice", rows=[["a", "a"], ["1", "2"]])
excel_refused("excel-row-too-long", "row 2", "more cells", rows=[["a", "b"], ["1", "2"], ["1", "2", "3"]])
refused("excel-that-is-csv", "Lookups.xlsx", lambda rng: table_csv(pairs(rng)), "no .xlsx file", "again", issue="python-excel/xlrd#344: a workbook that is no zip file")  # fmt: skip
refused("excel-that-is-another-zip", "other.xlsx", lambda rng: zipped({"a.txt": b"x"}), "no whole .xlsx file", issue="python-excel/xlrd#228: a zip file without the parts of a workbook")  # fmt: skip
refused("excel-cut-off", "cut.xlsx", lambda rng: zipped({"xl/workbook.xml": rng.randbytes(999)})[:-50], "no whole .xlsx file")

# Plain text and tagged tokens

COMMAS = "huggingface/datasets#622: lines of text are split at separators that are none"
read("txt-lines-with-commas", "corpus.txt", texts, lambda rows: "\n".join(row["text"] for row in rows), COMMAS)


def paragraphs(rng: random.Random) -> Rows:
    return [{"text": f"{plain(rng)}\n {plain(rng)}"} for _ in range(9)]


read("txt-paragraphs", "book.txt", paragraphs, lambda rows: "\n\n\n".join(row["text"] for row in rows) + "\n\n")
read("txt-empty-lines-around", "around.txt", [{"text": "one"}, {"text": "two"}], lambda rows: "\n\none\ntwo\n\n")
SHIFTY_TEXTS = [{"text": value} for value, _ in SHIFTY.values()]
read("txt-shifty-lines", "shifty.txt", SHIFTY_TEXTS, lambda rows: "\r\n".join(row["text"] for row in rows))
read("txt-byte-order-mark", "mark.txt", [{"text": "one"}, {"text": "two"}], lambda rows: "\ufeffone\ntwo\n")


def sentence(rng: random.Random) -> Rows:
    tokens = [value.strip() for value, _ in SHIFTY.values()]
    return [{"tokens": tokens, "tags": [rng.choice(["O", "B-PER"]) for _ in tokens]}]


def conll(rows: Rows) -> str:
    return "-DOCSTART- -X- O\n\n" + "\n".join(
        "".join(f"{token}\t{tag}\n" for token, tag in zip(row["tokens"], row["tags"], strict=True)) for row in rows
    )


read("conll-shifty-tokens", "ner.conll", sentence, conll)
refused("txt-empty", "empty.txt", "\n\n", "the file is empty")
refused("conll-without-a-tag", "bad.conll", "EU B-ORG\nrejects\n", "line 2", "no tag")

# Big ones: at most 1 GB and 10 s, whatever they unpack to

FIELD = 100_000_000


def fill(path: Path, before: str, after: str) -> None:
    with open(path, "w") as file:
        file.write(before)
        for _ in range(100):
            file.write("x" * (FIELD // 100))
        file.write(after)


for _kind, _before, _after, _words in (
    (".csv", "a,b\n1,", "\n", ("line 2", "field")),
    (".jsonl", '{"a": "fine"}\n{"a": "', '"}\n', ("line 2",)),
    (".json", '[{"a": "', '"}]', ("row 1",)),
    (".txt", "", "\n", ("line 1",)),
    (".conll", "", "\tO\n", ("line 1",)),
):
    CASES.append(
        Case(
            f"hundred-megabytes-in-one-field{_kind}",
            f"field{_kind}",
            lambda rng, path, before=_before, after=_after, words=_words: fill(path, before, after) or (*words, "20 million characters"),
            big=True,
        )
    )


@case("gzip-bomb", "bomb.csv.gz", "alphagov/backdrop#360: a small gzip file unpacks to more than memory holds", big=True)
def _(rng, path):
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"a,b\n")
        for _ in range(500):
            file.write(b"x,y\n" * 250_000)
    return ("unpacks to more than 400 MB",)


@case("zip-bomb", "bomb.xlsx", "ogx-ai/ogx#6100: a workbook unpacks to gigabytes", big=True)
def _(rng, path):
    part(path, (b" " * 1_000_000 for _ in range(1000)))
    return ("unpacks to 1", "400 MB")


@case("excel-one-endless-cell", "cell.xlsx", big=True)
def _(rng, path):
    sheet = b'<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData><row r="1"><c r="A1" t="inlineStr"><is><t>'
    part(path, [sheet, *[b"x" * 1_000_000] * 390, b"</t></is></c></row></sheetData></worksheet>"])
    return ("cell", "20 million characters")


def part(path: Path, blocks: Iterable[bytes]) -> None:
    """A workbook whose only sheet holds these bytes."""
    file = io.BytesIO()
    book(file, [["a"], ["x"]])  # type: ignore[arg-type]
    with zipfile.ZipFile(file) as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in whole.namelist():
            if name != "xl/worksheets/sheet1.xml":
                archive.writestr(name, whole.read(name))
        with archive.open("xl/worksheets/sheet1.xml", "w") as sheet:
            for block in blocks:
                sheet.write(block)


@case("excel-a-cell-in-the-last-corner", "corner.xlsx", big=True)
def _(rng, path):
    made = openpyxl.Workbook()
    made.active["A1"], made.active["A2"], made.active["XFD1048576"] = "a", "x", "stray"
    made.save(path)
    return ("row 2", "more cells")


@case("parquet-two-gigabytes-of-one-text", "bomb.parquet", "pola-rs/polars#15342: 44 kB of Parquet unpack to petabytes", big=True)
def _(rng, path):
    once = pa.array([plain(rng, 1) * 200_000])
    pq.write_table(pa.table({"text": pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), once)}), path, compression="zstd")
    assert path.stat().st_size < 200_000
    return ("unpacks to more than 400 MB",)


@case("parquet-two-gigabytes-of-zeros", "zeros.parquet", big=True)
def _(rng, path):
    zeros = pa.array([0] * 5_000_000, pa.int64())
    with pq.ParquetWriter(path, pa.schema([("n", pa.int64())]), compression="zstd") as writer:
        for _ in range(50):
            writer.write_table(pa.table({"n": zeros}), row_group_size=len(zeros))
    return ("unpacks to more than 400 MB",)


@case("parquet-a-hundred-megabytes-in-each-of-twenty-rows", "rows.parquet", big=True)
def _(rng, path):
    once = pa.array(["x" * FIELD])
    pq.write_table(pa.table({"text": pa.DictionaryArray.from_arrays(pa.array([0] * 20, pa.int32()), once)}), path, compression="zstd")
    return ("row 1", "20 million characters")


NAMES = [f"c{number}" for number in range(10_000)]


@case("ten-thousand-columns.csv", "wide.csv", big=True)
def _(rng, path):
    path.write_text(as_csv([NAMES, [plain(rng, 1) for _ in NAMES]]))
    return ("10,000 columns", "1,000")


@case("ten-thousand-columns.jsonl", "wide.jsonl", big=True)
def _(rng, path):
    path.write_text(lines({name: plain(rng, 1)} for name in NAMES))
    return ("1,000 different columns",)


@case("ten-thousand-columns.parquet", "wide.parquet", big=True)
def _(rng, path):
    pq.write_table(pa.table({name: [plain(rng, 1)] for name in NAMES}), path)
    return ("10,000 columns", "1,000")


@case("ten-thousand-columns.xlsx", "wide.xlsx", big=True)
def _(rng, path):
    book(path, [NAMES, [plain(rng, 1) for _ in NAMES]])
    return ("10,000 columns", "1,000")
