"""Trains the built-in model on the sample data: training time and exact match of both columns.

`python -m benchmarks.demo [SEED ...]` prints one JSON line per seed.
"""

import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peft_space.settings import prepare_libraries

SEEDS = (0, 1, 2)


def measure(seed: int, folder: Path) -> dict[str, Any]:
    """Train the default recipe with this seed and score both columns on the 60 held-out rows."""
    from peft_space.evaluation.evaluate import evaluate
    from peft_space.models.loading import load_adapted
    from peft_space.recipe import Recipe
    from peft_space.runs.plan import read_plan
    from peft_space.training.prepare import make_run
    from peft_space.training.train import train

    began = time.perf_counter()
    run = make_run(folder / f"seed-{seed}", "demo", Recipe(seed=seed))
    with run.lock():
        outcome = train(run)
    trained = time.perf_counter()
    scores = evaluate(run, load_adapted(run))
    plan = read_plan(run)
    assert plan is not None
    return {
        "seed": seed,
        "steps": outcome.step,
        "training_seconds": round(trained - began, 1),
        "evaluation_seconds": round(time.perf_counter() - trained, 1),
        "compute_dtype": plan.compute_dtype,
        "threads": plan.threads,
        "base_exact_match": asdict(scores.base)["exact_match"],
        "adapter_exact_match": asdict(scores.adapter)["exact_match"],
        "base_loss": round(scores.base.loss, 4),
        "adapter_loss": round(scores.adapter.loss, 4),
    }


def main() -> None:
    prepare_libraries()
    seeds = [int(argument) for argument in sys.argv[1:]] or SEEDS
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            print(json.dumps(measure(seed, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
