"""Runs the benchmarks: `python -m benchmarks [NAME …] [--record]`.

With `--record` each result is stored in benchmarks/results/; `make docs` then updates the table in
docs/benchmarks.md.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.claims import RESULTS, Json, claims_of

SCRIPTS = (
    *("startup_time", "demo", "compare", "million_rows", "memory", "pictures"),
    *("rank_sweep", "crash_recovery", "overhead", "vs_trl", "resume"),
)
"""The benchmarks that need no other environment, no other files and no quiet half hour."""
LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "gradio")


def main() -> None:
    """Run the benchmarks of the command line, or SCRIPTS."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("scripts", nargs="*", default=SCRIPTS, metavar="NAME")
    parser.add_argument("--record", action="store_true", help="store the results")
    arguments = parser.parse_args()
    for script in arguments.scripts:
        output = run(script)
        print(output, flush=True)
        if arguments.record:
            print(f"recorded in {record(script, output)}", flush=True)


def run(script: str) -> str:
    """The output of a benchmark, which runs in a separate process."""
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{script}"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def record(script: str, output: str, folder: Path = RESULTS) -> Path:
    """Store a result: the printed JSON lines, the machine, the versions and the claims.

    Returns:
        The new file, named by date and script.
    """
    figures = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    claims = {
        name: {
            "measured": claim.summarize(figures),
            "met": claim.met(figures) if claim.met else None,
        }
        for name, claim in claims_of(script).items()
    }
    date = time.strftime("%Y-%m-%d")
    result: Json = {
        "script": script,
        "command": f"python -m benchmarks.{script}",
        "date": date,
        "machine": machine(),
        "versions": versions(),
        "figures": figures,
        "notes": [],
        "claims": claims,
    }
    number = 1
    while (path := _path(folder, date, script, number)).exists():
        number += 1
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _path(folder: Path, date: str, script: str, number: int) -> Path:
    suffix = f"-{number}" if number > 1 else ""
    return folder / f"{date}-{script}{suffix}.json"


def machine() -> str:
    """The CPU and the number of cores that this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def versions() -> dict[str, str]:
    """The versions of Python and the libraries."""
    libraries = {library: importlib.metadata.version(library) for library in LIBRARIES}
    return {"Python": platform.python_version()} | libraries


if __name__ == "__main__":
    main()
