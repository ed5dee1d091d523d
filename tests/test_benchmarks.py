"""The benchmarks can be imported, and their records and table are consistent."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import gpu
from benchmarks.claims import CLAIMS, RESULTS, records, table

ROOT = Path(__file__).parents[1]
MODULES = sorted(path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py"))


@pytest.mark.parametrize("name", MODULES)
def test_every_benchmark_can_be_imported(name):
    assert importlib.import_module(f"benchmarks.{name}").__doc__


def test_the_command_lists_its_options():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--record" in done.stdout


@pytest.mark.parametrize("script", command.SCRIPTS)
def test_every_script_of_the_command_exists_and_checks_a_claim(script):
    assert script in MODULES
    assert script in {claim.script for claim in CLAIMS.values()}


@pytest.mark.parametrize("record", records(), ids=lambda record: record["date"] + record["script"])
def test_a_record_says_what_was_measured_when_and_where(record):
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", record["date"])
    assert record["machine"]
    assert record["versions"]
    assert record["figures"]
    assert set(record["claims"]) <= set(CLAIMS)


def test_every_claim_was_measured_and_is_in_the_table():
    text = table()
    assert [claim for claim in CLAIMS.values() if claim.sentence not in text] == []


def test_a_result_is_stored_with_its_claims(tmp_path):
    output = json.dumps({"import_gradio_seconds": 2.0, "page_seconds": 3.0, "ratio": 1.5})
    first = command.record("startup_time", f"noise\n{output}", tmp_path)
    second = command.record("startup_time", output, tmp_path)
    assert first != second
    stored = json.loads(first.read_text())
    assert stored["claims"]["startup"]["measured"] == "1.5 times (3.0 s)"
    assert set(stored) <= set(records()[-1]) | {"code"}


def test_the_results_of_the_repository_are_json_files():
    assert len(list(RESULTS.glob("*.json"))) >= 30


@pytest.mark.slow
def test_the_gpu_script_measures_its_last_case_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    *_, last = gpu.cases(tmp_path, tiny=True)
    result = gpu.measure(last)
    assert "error" not in result
    assert result["tokens_a_second"] > 0
    assert len(result["losses"]) == gpu.STEPS


@pytest.mark.slow
def test_the_gpu_script_runs_every_case_on_a_cpu():
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", "--device", "cpu", "--tiny"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line for line in lines if "error" in line] == []
    assert len(lines) == len(gpu.KINDS) + 2 * len(gpu.MEASURED)
    assert lines[0]["comparison"]["both_seconds"] > 0
    assert sum(line.get("trainer") == "TRL" for line in lines) == len(gpu.MEASURED)
    assert done.returncode == 0
