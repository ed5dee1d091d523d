"""What the app makes of the data files in a folder: `python -m benchmarks.real_files FOLDER [--steps N]`

For each file a line: rows, what it was recognised as, rows that cannot be used, findings, seconds, and, where its task exists, the loss of the
first and last of a few training steps of the built-in model. It is no benchmark in `make verify`, which has no such folder.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from peft_space.settings import prepare_libraries


def look(path: Path) -> dict[str, Any]:
    """What a check says of a file."""
    from peft_space import operations

    began = time.perf_counter()
    found = operations.check(str(path), recipe={"base_model": "demo"}, rows_shown=3)
    seconds = round(time.perf_counter() - began, 1)
    if "question" in found:
        return {"rows": found["rows"], "question": found["question"], "seconds": seconds}
    told = {
        key: found[key]
        for key in ("rows", "schema", "to_train", "held_out", "num_problems", "notes")
    }
    findings = {finding["kind"]: finding["count"] for finding in found["findings"]}
    return told | {
        "findings": findings,
        "previewed": len(found["examples"]),
        "seconds": seconds,
        "task": found["task"],
    }


def train_a_little(path: Path, steps: int, folder: str) -> list[float]:
    """The losses of a few steps."""
    from peft_space import operations
    from peft_space.runs.run import Run
    from peft_space.runs.status import steps_of

    run = operations.make_run(
        f"{folder}/{path.stem}", str(path), {"max_steps": steps, "batch_size": 2, "max_length": 256}
    )["run"]
    operations.train(run)
    losses = [step.loss for step in steps_of(Run(run).history())]
    return [round(losses[0], 2), round(losses[-1], 2)]


def main() -> None:
    from peft_space.data.readers.detect import SUFFIXES
    from peft_space.errors import UserError

    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=3)
    given = parser.parse_args()
    prepare_libraries()
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted(given.folder.rglob("*")):
            if path.suffix in SUFFIXES:
                try:
                    told = look(path)
                    if told["task"]:
                        told["losses"] = train_a_little(path, given.steps, folder)
                except UserError as error:
                    told = {"refused": str(error)}
                print(path.name, json.dumps(told, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
