"""Kills trainings, fills their disks and tampers with their checkpoints, and compares each run.

Each is compared with the same training left alone. `python -m benchmarks.crash_recovery [--kills
200] [--seed 0]` prints one JSON line; it takes about a quarter of an hour.
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
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # the harness forks this process
    prepare_libraries()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PEFT_SPACE_HOME"] = str(Path(folder) / "home")
        record = measure(Path(folder), arguments.kills, arguments.seed)
    print(json.dumps(record))
    sys.exit(any(part["problems"] for part in record.values() if isinstance(part, dict)))


def measure(folder: Path, num_kills: int, seed: int) -> dict[str, object]:
    """The whole record."""
    from tests.fixtures import crash_harness

    crash_harness.load_libraries()
    began, rng, kit = time.perf_counter(), random.Random(seed), crash_harness.Kit(folder)
    killed = crash_harness.Tally()
    while killed.kills < num_kills or killed.runs < num_kills // 5:
        max_kills = 6 if killed.kills < num_kills else 1
        task = crash_harness.TASKS[killed.runs % len(crash_harness.TASKS)]
        crash_harness.kill_and_compare(kit, f"run-{killed.runs}", task, rng, max_kills, killed)
        print(killed, file=sys.stderr, flush=True)
    tree = crash_harness.Tally()
    while tree.kills < 10:
        crash_harness.kill_process_tree(kit, f"tree-{tree.runs}", rng, 5, tree)
    tampered, full, messages = [], [], Counter()
    for number, task in enumerate(crash_harness.TASKS):
        run, alone = crash_harness.cut_short(kit, f"tampered-{number}", task, rng)
        count = (14, 14, 12, 10)[number]
        tampered += [
            crash_harness.tamper_and_compare(run, alone, crash_harness.WAYS[which % 4], rng)
            for which in range(count)
        ]
        for which in range(4):
            try:
                problem, message = crash_harness.fill_disk_and_compare(
                    kit, f"full-{number}-{which}", task, rng
                )
            except PermissionError as error:
                print(error, file=sys.stderr)  # the record then counts fewer full disks
                continue
            full.append(problem)
            messages[message] += 1
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
            "messages": dict(messages),
            "problems": [problem for problem in full if problem],
        },
        "seconds": round(time.perf_counter() - began),
    }


if __name__ == "__main__":
    main()
