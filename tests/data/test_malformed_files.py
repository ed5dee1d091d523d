"""Whatever file is brought: every value comes out as it is written, or a sentence says what is wrong and where."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

from peft_space.data.table import read_table
from peft_space.errors import UserError
from tests.fixtures.malformed_files import CASES, SHIFTY, Case

ROOT = Path(__file__).parents[2]
MOST_SECONDS, MOST_MEGABYTES = 10, 1000

MEASURE = """
import json, re, sys, time
from peft_space.data.read import read_table
from peft_space.errors import UserError
began = time.monotonic()
try:
    said = f"{read_table(sys.argv[1]).num_rows} rows"
except UserError as error:
    said = str(error)
megabytes = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024  # getrusage begins with the parent's
print(json.dumps({"said": said, "seconds": time.monotonic() - began, "megabytes": megabytes}))
"""


def chosen(big: bool) -> list[object]:
    return [pytest.param(case, id=case.name) for case in CASES if case.big is big]


def check_refusal(said: str, name: str, words: tuple[str, ...]) -> None:
    for word in (name, *words):
        assert word in said
    assert re.search(r"\. [A-Z].*\.$", said), f"no remedy: {said}"
    assert "\n" not in said
    assert "Traceback" not in said
    assert len(said) < 400


@pytest.mark.parametrize("case", chosen(big=False))
def test_a_file_is_read_as_it_is_written_or_refused_in_a_sentence(case: Case, tmp_path):
    path, wanted = case.write(tmp_path)
    if isinstance(wanted, list):
        table = read_table(path)
        assert [row for _, row in table.rows()] == wanted
        assert table.num_rows == len(wanted)
        assert table.columns == list(dict.fromkeys(column for row in wanted for column in row))
    else:
        with pytest.raises(UserError) as refusal:
            read_table(path)
        check_refusal(str(refusal.value), path.name, wanted)
        assert not list(tmp_path.glob("home/cache/rows/.*")), "something half read was left behind"


@pytest.mark.parametrize("case", chosen(big=True))
def test_a_file_that_unpacks_to_gigabytes_costs_neither_time_nor_memory(case: Case, tmp_path):
    path, wanted = case.write(tmp_path)
    try:
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(path)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=60,
            check=False,
        )
    finally:
        path.unlink()
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert isinstance(wanted, tuple)
    check_refusal(measured["said"], path.name, wanted)
    assert measured["seconds"] < MOST_SECONDS
    assert measured["megabytes"] < MOST_MEGABYTES


def test_there_are_120_cases_and_30_of_them_reproduce_a_public_issue():
    names = [case.name for case in CASES]
    issues = [case.issue for case in CASES if case.issue]
    assert len(set(names)) == len(names) >= 120
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+#\d+: \S.+", issue) for issue in issues)
    assert len({issue.split(":")[0] for issue in issues}) == len(issues) >= 30


def test_a_case_writes_the_same_file_every_time(tmp_path):
    for name in ("csv-comma", "jsonl-cut-off", "parquet-bad-data"):
        case = next(case for case in CASES if case.name == name)
        first, second = tmp_path / "first", tmp_path / "second"
        for folder in (first, second):
            folder.mkdir(exist_ok=True)
            case.write(folder)
        assert (first / case.file_name).read_bytes() == (second / case.file_name).read_bytes()


def test_a_loader_that_guesses_types_changes_most_of_the_22_texts(tmp_path):
    changed = []
    for name, (value, _) in SHIFTY.items():
        path, _ = next(case for case in CASES if case.name == f"csv-value-{name}").write(tmp_path)
        if any(read is not value and read != value for read in pandas.read_csv(path)["date"]):
            changed.append(name)
    assert len(SHIFTY) == 22
    assert len(changed) >= 15, changed
