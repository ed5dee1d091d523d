"""Compares the recommended recipe with eight around it, by held-out loss, on your files.

Half, once and twice its rank and its learning rate. `python -m benchmarks.recommendation_quality
FOLDER NAME...` prints one JSON line per file. Everything else, also the number of steps, is as
recommended, with at most 600 steps. The lowest held-out loss counts, the one of the kept adapter.
"""

import json
import sys
import tempfile
from pathlib import Path

MAX_STEPS = 600


def main() -> None:
    from peft_space.settings import prepare_libraries

    prepare_libraries()
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    for name in names:
        print(json.dumps(measure(str(next(folder.rglob(name))))), flush=True)


def measure(path: str) -> dict:
    """Held-out losses of nine recipes, and how far the recommended one is above the best (%)."""
    from peft_space import operations
    from peft_space.recipe import make_recipe

    recommended = operations.recommend(path)
    rank = make_recipe(recommended["recipe"]).lora_rank
    own, rate, steps = _trained(path, recommended["recipe"] | {"max_steps": MAX_STEPS})
    losses = {f"rank {rank}, rate {rate:g}": own}
    for other in (rank // 2, rank, 2 * rank):
        for factor in (0.5, 1, 2):
            if (other, factor) != (rank, 1):
                chosen = {
                    "lora_rank": other,
                    "learning_rate": rate * factor,
                    "max_steps": MAX_STEPS,
                }
                reason = {"high_rank_reason": "Twice the recommended rank, for a comparison."}
                losses[f"rank {other}, rate {rate * factor:g}"], _, _ = _trained(
                    path, recommended["recipe"] | chosen | reason
                )
    above = round(100 * (own / min(losses.values()) - 1), 2)
    return {
        "file": Path(path).name,
        "task": recommended["task"],
        "steps": steps,
        "losses": losses,
        "above_best_percent": above,
    }


def _trained(path: str, recipe: dict) -> tuple[float, float, int]:
    """(held-out loss of the kept adapter, learning rate, steps) of a training."""
    from peft_space import operations
    from peft_space.runs.events import evaluations_of, steps_of
    from peft_space.runs.plan import read_plan
    from peft_space.runs.run import Run

    with tempfile.TemporaryDirectory() as scratch:
        run = Run(operations.make_run(str(Path(scratch, "run")), path, recipe)["run"])
        operations.train(str(run.directory))
        plan = read_plan(run)
        assert plan is not None
        return (
            min(evaluation.loss for evaluation in evaluations_of(run.history())),
            plan.learning_rate,
            len(steps_of(run.history())),
        )


if __name__ == "__main__":
    main()
