"""Trainings that are killed, run out of disk, or find their checkpoints tampered with, each held against the same training left alone.

`python -m benchmarks.kills [--kills 200] [--seed 0]` prints one line of JSON; it takes about a quarter of an hour.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from peft_space.settings import prepare_libraries


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # a process whose threads have worked cannot be forked
    prepare_libraries()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PEFT_SPACE_HOME"] = str(Path(folder) / "home")
        record = measure(Path(folder), given.kills, given.seed)
    print(json.dumps(record))
    sys.exit(any(part["problems"] for part in record.values() if isinstance(part, dict)))


def measure(folder: Path, kills_wanted: int, seed: int) -> dict[str, object]:
    """The whole record."""
    from tests.fixtures import crash_harness

    crash_harness.load_libraries()
    began, rng, kit = time.perf_counter(), random.Random(seed), crash_harness.Kit(folder)
    killed = crash_harness.Tally()
    while killed.kills < kills_wanted or killed.runs < kills_wanted // 5:
        most = 6 if killed.kills < kills_wanted else 1
        crash_harness.kill_and_compare(
            kit, f"run-{killed.runs}", crash_harness.TASKS[killed.runs % 3], rng, most, killed
        )
        print(killed, file=sys.stderr, flush=True)
    tree = crash_harness.Tally()
    while tree.kills < 10:
        crash_harness.kill_process_tree(kit, f"tree-{tree.runs}", rng, 5, tree)
    tampered, full, told = [], [], Counter()
    for number, task in enumerate(crash_harness.TASKS):
        run, alone = crash_harness.cut_short(kit, f"tampered-{number}", task, rng)
        count = (14, 14, 12)[number]
        tampered += [
            crash_harness.tamper_and_compare(run, alone, crash_harness.WAYS[which % 4], rng)
            for which in range(count)
        ]
        for which in range(4):
            try:
                problem, message = crash_harness.fill_disk_and_compare(
                    kit, f"full-{number}-{which}", task, rng
                )
            except PermissionError as why:
                print(why, file=sys.stderr)  # and the record says that none was filled
                continue
            full.append(problem)
            told[message] += 1
    return {
        "seed": seed,
        "kills": {
            "kills": killed.kills,
            "inside_saves": killed.inside_saves,
            "runs": killed.runs,
            "problems": killed.problems,
        },
        "process_trees": {"kills": tree.kills, "runs": tree.runs, "problems": tree.problems},
        "tampered_checkpoints": {
            "tampered": len(tampered),
            "problems": [problem for problem in tampered if problem],
        },
        "full_disks": {
            "filled": len(full),
            "told": dict(told),
            "problems": [problem for problem in full if problem],
        },
        "seconds": round(time.perf_counter() - began),
    }


if __name__ == "__main__":
    main()
