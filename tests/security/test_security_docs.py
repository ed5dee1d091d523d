"""docs/security.md is true: the tests that it names exist, and its lower bounds hold."""

import importlib.metadata
import re
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text()
NAMED_TESTS = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", TEXT)
FLOORS = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \|", TEXT, re.M)


@pytest.mark.parametrize(("file", "name"), NAMED_TESTS)
def test_every_promise_names_tests_that_exist(file, name):
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.M)


def test_every_security_test_file_is_in_the_table():
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "tests/security").glob("test_*.py")}
    assert files <= {file for file, _ in NAMED_TESTS}
    rows = [
        line
        for line in TEXT.split("## Dependencies")[0].splitlines()
        if line.startswith("| ") and "| Promise |" not in line
    ]
    assert all("`tests/" in row for row in rows)


@pytest.mark.parametrize(("package", "floor"), FLOORS)
def test_requirements_pins_and_environment_respect_every_floor(package, floor):
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").open()]
    requirements = {Requirement(line).name.lower(): Requirement(line) for line in lines if line}
    bounds = requirements[package].specifier
    lowest = max(Version(bound.version) for bound in bounds if bound.operator == ">=")
    constraints = (ROOT / "constraints.txt").read_text().lower()
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)", constraints, re.M))
    assert lowest >= Version(floor)
    assert Version(pins[package]) >= lowest
    assert Version(importlib.metadata.version(package)) >= lowest


@pytest.mark.parametrize(
    ("findings", "pip_audit_exit", "options", "status", "text"),
    [
        ("", 1, [], 2, "NOT AUDITED"),
        ("", 0, [], 2, "NOT AUDITED"),  # pip-audit skipped every package
        ("", 1, ["UNASKED=true"], 0, "NOT AUDITED"),
        ("no faults", 0, [], 0, "no faults"),
        ("one fault", 1, ["UNASKED=true"], 2, "one fault"),
    ],
)
def test_an_audit_without_a_database_says_so_and_does_not_pass(
    tmp_path, findings, pip_audit_exit, options, status, text
):
    (tmp_path / "bin").mkdir()
    pip_audit = f"printf '{findings}' > {tmp_path}/found.json\nexit {pip_audit_exit}\n"
    for name, script in {"pip": "", "pip-audit": pip_audit}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}")
        (tmp_path / "bin" / name).chmod(0o755)
    done = subprocess.run(
        ["make", "-s", "audit", f"AUDIT={tmp_path}", "PYTHON=true", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    output = done.stdout + done.stderr
    assert done.returncode == status, output
    assert text in output
    assert ("NOT AUDITED" in output) == (text == "NOT AUDITED"), output


def test_the_audit_ignores_only_explained_vulnerabilities():
    command = subprocess.run(
        ["make", "-n", "audit"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    ignored = set(re.findall(r"--ignore-vuln (CVE-\d+-\d+)", command))
    explained = {
        f"CVE-2026-{number}"
        for row in re.findall(r"^\| (CVE-.*?) \|", TEXT, re.M)
        for number in re.findall(r"\b\d{5,6}\b", row)
    }
    assert len(ignored) > 10
    assert ignored <= explained
    rows_not_ignored = [
        row
        for row in re.findall(r"^\| CVE-.*$", TEXT, re.M)
        if not ignored & set(re.findall(r"CVE-\d+-\d+", row))
    ]
    assert all("PCRE2" in row for row in rows_not_ignored)


@pytest.mark.parametrize(
    "word", ["torch.load", "torch.export", "torch._inductor", "pydantic.v1", "pickle"]
)
@pytest.mark.sample(5)
def test_features_with_known_vulnerabilities_are_not_used(word):
    code = [path.read_text() for path in [ROOT / "app.py", *(ROOT / "peft_space").rglob("*.py")]]
    use = rf"^\s*(import|from) {re.escape(word)}\b|[^\"'`\w]{re.escape(word)}\("
    assert len(code) > 100
    assert not [text for text in code if re.search(use, text, re.M)]


def test_pictures_are_opened_only_where_formats_and_headers_are_checked():
    modules = [
        path.relative_to(ROOT / "peft_space").as_posix()
        for path in (ROOT / "peft_space").rglob("*.py")
        if re.search(r"^\s*(import|from) PIL\b", path.read_text(), re.M)
    ]
    assert sorted(modules) == ["data/pictures.py", "data/tokenization/picture_tokens.py"]
    opened = re.findall(r"Image\.open\(.*", (ROOT / "peft_space/data/pictures.py").read_text())
    assert all("formats=" in line for line in opened)


def test_no_model_accepts_fields_that_it_does_not_name():
    code = "".join(path.read_text() for path in (ROOT / "peft_space").rglob("*.py"))
    assert 'extra="forbid"' in code
    assert not re.search(r"extra\s*=\s*[\"']allow", code)
