"""Runs every benchmark, or those that are named, and, with `--record FILE`, puts the results at the end of FILE:
`python -m benchmarks overhead --record docs/benchmarks.md`.
"""

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

SCRIPTS = (
    "page_start",
    "demo",
    "compare",
    "million_rows",
    "memory",
    "ranks",
    "kills",
    "overhead",
    "defaults",
    "resume",
)
LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "gradio")


def machine() -> str:
    """What the figures were measured on."""
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    versions = ", ".join(
        f"{library} {importlib.metadata.version(library)}" for library in LIBRARIES
    )
    return f"{model}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}; {versions}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("scripts", nargs="*", default=SCRIPTS)
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    parts = [f"## {time.strftime('%Y-%m-%d')}\n\n{machine()}\n"]
    for script in given.scripts:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", f"benchmarks.{script}"],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        parts.append(f"`python -m benchmarks.{script}`\n\n```\n{done.stdout.strip()}\n```\n")
        print(parts[-1], flush=True)
    if given.record:
        with open(given.record, "a") as file:
            file.write("\n" + "\n".join(parts))


if __name__ == "__main__":
    main()
