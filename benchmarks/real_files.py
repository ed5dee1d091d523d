"""Checks the data files of a folder: `python -m benchmarks.real_files FOLDER [--steps N]`.

Prints one line per file: rows, detected schema, unusable rows, findings and seconds. If it knows
the task, it also prints the first and last loss of a few training steps of the built-in model.
`make verify` does not run it, because it has no such folder.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from peft_space.settings import prepare_libraries


def check_file(path: Path) -> dict[str, Any]:
    """Result of checking a file."""
    from peft_space import operations

    began = time.perf_counter()
    checked = operations.check(str(path), recipe={"base_model": "demo"}, show=3)
    seconds = round(time.perf_counter() - began, 1)
    if "question" in checked:
        return {"rows": checked["rows"], "question": checked["question"], "seconds": seconds}
    result = {
        key: checked[key]
        for key in ("rows", "schema", "to_train", "held_out", "num_problems", "notes")
    }
    findings = {finding["kind"]: finding["count"] for finding in checked["findings"]}
    return result | {
        "findings": findings,
        "previewed": len(checked["examples"]),
        "seconds": seconds,
        "task": checked["task"],
    }


def train_a_little(path: Path, steps: int, folder: str) -> list[float]:
    """The losses of a few steps."""
    from peft_space import operations
    from peft_space.runs.events import steps_of
    from peft_space.runs.run import Run

    run = operations.make_run(
        f"{folder}/{path.stem}", str(path), {"max_steps": steps, "batch_size": 2, "max_length": 256}
    )["run"]
    operations.train(run)
    losses = [step.loss for step in steps_of(Run(run).history())]
    return [round(losses[0], 2), round(losses[-1], 2)]


def main() -> None:
    from peft_space.data.readers.file_type_and_encoding import SUFFIXES
    from peft_space.errors import UserError

    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    prepare_libraries()
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted(arguments.folder.rglob("*")):
            if path.suffix in SUFFIXES:
                try:
                    result = check_file(path)
                    if result["task"]:
                        result["losses"] = train_a_little(path, arguments.steps, folder)
                except UserError as error:
                    result = {"rejected": str(error), "code": error.code}
                print(path.name, json.dumps(result, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
