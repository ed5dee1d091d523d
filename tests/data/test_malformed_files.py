"""A file of any kind is read verbatim, or rejected with an error that names the place."""

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
MAX_MEGABYTES = 1000

MEASURE = """
import json, re, sys
from peft_space.data.table import read_table
from peft_space.errors import UserError
try:
    code, message = "", f"{read_table(sys.argv[1]).num_rows} rows"
except UserError as error:
    code, message = error.code, str(error)
# getrusage would begin with the memory of the parent
megabytes = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024
result = {"code": code, "message": message, "megabytes": megabytes}
print(json.dumps(result))
"""


def cases(big: bool) -> list[object]:
    return [pytest.param(case, id=case.name) for case in CASES if case.big is big]


def check_refusal(code: str, message: str, name: str, refusal: tuple[str, ...]) -> None:
    expected_code, *values = refusal
    assert code == expected_code, message
    for value in (name, *values):
        assert value in message
    assert re.search(r"\. [A-Z].*\.$", message), f"no remedy: {message}"
    assert "\n" not in message
    assert "Traceback" not in message
    assert len(message) < 400


@pytest.mark.parametrize("case", cases(big=False))
@pytest.mark.sample(28)
def test_a_file_is_read_verbatim_or_rejected_with_the_place(case: Case, tmp_path):
    path, expected = case.write(tmp_path)
    if isinstance(expected, list):
        table = read_table(path)
        assert [row for _, row in table.rows()] == expected
        assert table.num_rows == len(expected)
        assert table.columns == list(dict.fromkeys(column for row in expected for column in row))
    else:
        with pytest.raises(UserError) as error:
            read_table(path)
        check_refusal(error.value.code, str(error.value), path.name, expected)
        assert not list(tmp_path.glob("home/cache/rows/.*")), "an incomplete entry is left"


@pytest.mark.parametrize("case", cases(big=True))
@pytest.mark.slow
def test_a_file_that_unpacks_to_gigabytes_is_rejected_in_little_memory(case: Case, tmp_path):
    path, expected = case.write(tmp_path)
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
    assert isinstance(expected, tuple)
    check_refusal(measured["code"], measured["message"], path.name, expected)
    assert measured["megabytes"] < MAX_MEGABYTES


def test_at_least_30_of_at_least_120_cases_reproduce_a_public_issue():
    names = [case.name for case in CASES]
    issues = [case.issue for case in CASES if case.issue]
    assert len(set(names)) == len(names) >= 120
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+#\d+: \S.+", issue) for issue in issues)
    assert len({issue.split(":")[0] for issue in issues}) == len(issues) >= 30


def test_a_case_always_writes_the_same_file(tmp_path):
    for name in ("csv-comma", "jsonl-cut-off", "parquet-bad-data"):
        case = next(case for case in CASES if case.name == name)
        first, second = tmp_path / "first", tmp_path / "second"
        for folder in (first, second):
            folder.mkdir(exist_ok=True)
            case.write(folder)
        assert (first / case.file_name).read_bytes() == (second / case.file_name).read_bytes()


def test_a_reader_that_guesses_types_changes_most_of_the_22_texts(tmp_path):
    changed = []
    for name, (value, _) in SHIFTY.items():
        path, _ = next(case for case in CASES if case.name == f"csv-value-{name}").write(tmp_path)
        if any(read is not value and read != value for read in pandas.read_csv(path)["date"]):
            changed.append(name)
    assert len(SHIFTY) == 22
    assert len(changed) >= 15, changed
