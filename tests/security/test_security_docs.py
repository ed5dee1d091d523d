"""docs/security.md tells the truth: its tests exist, and its floors are held."""

import importlib.metadata
import re
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text()
NAMED = re.findall(r"`((?:browser/)?test_\w+\.py)::(test_\w+)`", TEXT)
FLOORS = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \|", TEXT, re.M)


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_every_promise_is_held_by_a_test_that_exists(file, name):
    assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(), re.M)


def test_every_security_test_is_in_the_table():
    files = {path.name for path in (ROOT / "tests").glob("test_security_*.py")}
    assert files <= {file for file, _ in NAMED}
    rows = [
        line
        for line in TEXT.split("## Dependencies")[0].splitlines()
        if line.startswith("| ") and "What is promised" not in line
    ]
    assert all(re.search("`(browser/)?test_", row) for row in rows)


@pytest.mark.parametrize(("package", "floor"), FLOORS)
def test_every_floor_is_held_by_requirements_pins_and_what_is_installed(package, floor):
    lines = [
        line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()
    ]
    [asked] = [
        made for line in lines if line and (made := Requirement(line)).name.lower() == package
    ]
    lowest = max(Version(one.version) for one in asked.specifier if one.operator == ">=")
    pins = dict(
        re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text().lower(), re.M)
    )
    assert lowest >= Version(floor)
    assert Version(pins[package]) >= lowest
    assert Version(importlib.metadata.version(package)) >= lowest


@pytest.mark.parametrize(
    ("answers", "ended", "more", "status", "words"),
    [
        ("", 1, [], 2, "NOT AUDITED"),
        ("", 0, [], 2, "NOT AUDITED"),  # as where all was passed over
        ("", 1, ["UNASKED=true"], 0, "NOT AUDITED"),
        ("no faults", 0, [], 0, "no faults"),
        ("one fault", 1, ["UNASKED=true"], 2, "one fault"),
    ],
)
def test_an_audit_that_cannot_be_made_says_so_and_does_not_pass(
    tmp_path, answers, ended, more, status, words
):
    (tmp_path / "bin").mkdir()
    for name, script in {
        "pip": "",
        "pip-audit": f"printf '{answers}' > {tmp_path}/found.json\nexit {ended}\n",
    }.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}")
        (tmp_path / "bin" / name).chmod(0o755)
    done = subprocess.run(
        ["make", "-s", "audit", f"AUDIT={tmp_path}", "PYTHON=true", *more],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    assert done.returncode == status, said
    assert ("NOT AUDITED" in said, words in said) == (words == "NOT AUDITED", True), said


def test_what_the_audit_passes_over_is_explained_and_nothing_else():
    asked = subprocess.run(
        ["make", "-n", "audit"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    passed_over = set(re.findall(r"--ignore-vuln (CVE-\d+-\d+)", asked))
    explained = {
        f"CVE-2026-{number}"
        for row in re.findall(r"^\| (CVE-.*?) \|", TEXT, re.M)
        for number in re.findall(r"\b\d{5,6}\b", row)
    }
    assert len(passed_over) > 10
    assert passed_over <= explained
    assert all(
        "PCRE2" in row
        for row in re.findall(r"^\| CVE-.*$", TEXT, re.M)
        if not passed_over & set(re.findall(r"CVE-\d+-\d+", row))
    )


@pytest.mark.parametrize(
    "word", ["PIL", "torch.load", "torch.export", "torch._inductor", "pydantic.v1", "pickle"]
)
def test_what_known_faults_of_the_pins_take_is_not_used(word):
    code = [path.read_text() for path in [ROOT / "app.py", *(ROOT / "peft_space").rglob("*.py")]]
    assert len(code) > 100
    assert not [
        text
        for text in code
        if re.search(
            rf"^\s*(import|from) {re.escape(word)}\b|[^\"'`\w]{re.escape(word)}\(", text, re.M
        )
    ]


def test_no_model_of_ours_takes_fields_that_it_does_not_name():
    code = "".join(path.read_text() for path in (ROOT / "peft_space").rglob("*.py"))
    assert 'extra="forbid"' in code
    assert not re.search(r"extra\s*=\s*[\"']allow", code)
