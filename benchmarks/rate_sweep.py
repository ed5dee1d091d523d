"""Sweeps rank x alpha x learning rate on your files, by held-out loss.

`python -m benchmarks.rate_sweep FOLDER NAME... [--model MODEL] [--set FIELD=JSON]` prints one JSON
line per training. It answers two questions. Which alpha suits all ranks: 32, or 2 x rank? And how
far is the recommended learning rate from the best? Everything else is as recommended.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

ARMS = ["16:32", "8:16", "8:32", "64:32", "64:128"]
"""rank:alpha. At rank 16 both rules agree, so it has one arm."""


def main() -> None:
    from peft_space.settings import prepare_libraries

    prepare_libraries()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--arms", nargs="+", default=ARMS, metavar="RANK:ALPHA")
    parser.add_argument("--factors", nargs="+", type=float, default=[1, 0.25, 0.5, 2, 4])
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=JSON")
    arguments = parser.parse_args()
    fixed: dict[str, Any] = {"base_model": arguments.model}
    for setting in arguments.set:
        field, _, value = setting.partition("=")
        fixed[field] = json.loads(value)
    for name in arguments.names:
        path = next(arguments.folder.rglob(name))
        sweep(path, fixed, arguments.arms, arguments.factors)


def sweep(path: Path, fixed: dict[str, Any], arms: list[str], factors: list[float]) -> None:
    """Train every arm at every factor of the recommended rate; the first factor is 1."""
    from peft_space import operations

    recipe = operations.recommend(str(path), fixed)["recipe"] | fixed | {"method": "lora"}
    recommended = None
    for rank, alpha in (map(int, arm.split(":")) for arm in arms):
        for factor in factors:
            rate = factor * recommended if recommended else None
            own = {"lora_rank": rank, "lora_alpha": alpha, "learning_rate": rate}
            started = time.monotonic()
            line = _train(path, recipe | own)
            recommended = recommended or line["rate"]
            line |= {"file": path.name, "model": Path(fixed["base_model"]).name}
            line |= {"rank": rank, "alpha": alpha, "factor": factor}
            print(json.dumps(line | {"seconds": round(time.monotonic() - started, 1)}), flush=True)


def _train(path: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """The held-out loss of the base and of the best adapter, the rate and the steps."""
    from peft_space import operations
    from peft_space.runs.events import evaluations_of, steps_of
    from peft_space.runs.plan import read_plan
    from peft_space.runs.run import Run

    with tempfile.TemporaryDirectory() as scratch:
        run = Run(operations.make_run(str(Path(scratch, "run")), str(path), recipe)["run"])
        operations.train(str(run.directory))
        plan = read_plan(run)
        assert plan is not None
        losses = [round(each.loss, 4) for each in evaluations_of(run.history())]
        return {
            "loss": min(losses),
            "losses": losses,
            "rate": plan.learning_rate,
            "steps": len(steps_of(run.history())),
            "task": plan.task,
        }


if __name__ == "__main__":
    main()
