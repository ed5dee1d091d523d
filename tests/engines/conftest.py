"""Prints the results of the engines, and stores them in PEFT_SPACE_RECORD_ENGINES if it is set."""

import os
import platform
from collections import defaultdict
from datetime import date
from pathlib import Path

import pytest

_MARK = "<!-- recorded by make verify -->\n"


@pytest.fixture(scope="session")
def record():
    """A function that records (engine, comparison, result)."""
    results = defaultdict(list)
    yield lambda engine, what, result: results[engine].append((what, result))
    lines = [
        f"{date.today()}, {_processor()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}.",
        "",
    ]
    for engine, rows in results.items():
        lines += [
            f"### {engine}",
            "",
            "| compared | result |",
            "|---|---|",
            *(f"| {what} | {result} |" for what, result in rows),
            "",
        ]
    text = "\n".join(lines).rstrip() + "\n"
    print(f"\n{text}")
    if results and (path := os.environ.get("PEFT_SPACE_RECORD_ENGINES")):
        before = Path(path).read_text(encoding="utf-8").partition(_MARK)[0]
        Path(path).write_text(f"{before}{_MARK}\n{text}", encoding="utf-8")


def _processor():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next(
            (line.partition(":")[2].strip() for line in file if line.startswith("model name")),
            platform.machine(),
        )
