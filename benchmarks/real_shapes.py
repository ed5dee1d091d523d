"""Compares the estimates of memory and time with trainings of models in sizes that people use.

`python -m benchmarks.real_shapes [SHAPE…]`. Random weights, stored in bfloat16 and computed in
float32, at two lengths, with and without gradient checkpointing, with and without nf4. The method
is that of `benchmarks.memory`. Constants of the memory estimate were fitted on these shapes too,
as `estimation/memory.py` says. Time is that of the second step.
"""

import json
import statistics
import sys
from typing import Any

from benchmarks.memory import EXACT, SHAPES, Case, compared

BATCHES = ((4, 128), (2, 384))
REPEATS = 2
"""Of trainings with checkpointing, whose peak varies more."""


def cases_of(shape: str) -> list[Case]:
    return [
        Case(shape, rows, length, recipe, checkpointing, "bfloat16")
        for rows, length in BATCHES
        for recipe in (EXACT, {})
        for checkpointing in (False, True)
    ]


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and worst error of memory and of time, in percent."""
    result: dict[str, Any] = {"trainings": len(lines)}
    for figure, key in (("memory", "error"), ("time", "time_error")):
        errors = [100 * abs(line[key]) for line in lines]
        result[f"median_{figure}_error_percent"] = round(statistics.median(errors), 1)
        result[f"worst_{figure}_error_percent"] = round(max(errors), 1)
    return result


def main() -> None:
    from peft_space.settings import prepare_libraries

    prepare_libraries()
    lines = []
    for shape in sys.argv[1:] or SHAPES:
        for case in cases_of(shape):
            lines.append(compared(case, REPEATS if case.checkpointing else 1))
            print(json.dumps(lines[-1]), flush=True)
    print(json.dumps(summary(lines)))


if __name__ == "__main__":
    main()
