"""The advised recipe against eight around it: half, once and twice its rank and its learning rate, by held-out loss, on files of a folder.

`python -m benchmarks.advised FOLDER NAME...` prints one JSON line a file. Everything else, the steps too, is as advised, at
most 600. Taken is the lowest held-out loss, that of the adapter which is kept.
"""

import json
import sys
import tempfile
from pathlib import Path

MOST_STEPS = 600


def main() -> None:
    from peft_space.settings import prepare_libraries

    prepare_libraries()
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    for name in names:
        print(json.dumps(measure(str(next(folder.rglob(name))))), flush=True)


def measure(path: str) -> dict:
    """Held-out loss of nine recipes, and how far that of the advised one is above the best, in percent."""
    from peft_space import operations
    from peft_space.recipe import make_recipe

    advised = operations.recommend(path)
    rank = make_recipe(advised["recipe"]).lora_rank
    own, rate, steps = _trained(path, advised["recipe"] | {"max_steps": MOST_STEPS})
    losses = {f"rank {rank}, rate {rate:g}": own}
    for other in (rank // 2, rank, 2 * rank):
        for factor in (0.5, 1, 2):
            if (other, factor) != (rank, 1):
                chosen = {
                    "lora_rank": other,
                    "learning_rate": rate * factor,
                    "max_steps": MOST_STEPS,
                }
                reason = {"high_rank_reason": "Twice the advised rank, to compare with it."}
                losses[f"rank {other}, rate {rate * factor:g}"], _, _ = _trained(
                    path, advised["recipe"] | chosen | reason
                )
    above = round(100 * (own / min(losses.values()) - 1), 2)
    return {
        "file": Path(path).name,
        "task": advised["task"],
        "steps": steps,
        "losses": losses,
        "above_best_percent": above,
    }


def _trained(path: str, recipe: dict) -> tuple[float, float, int]:
    """(held-out loss of the adapter that is kept, learning rate, steps) of a training."""
    from peft_space import operations
    from peft_space.runs.plan import read_plan
    from peft_space.runs.run import Run
    from peft_space.runs.status import evaluations_of, steps_of

    with tempfile.TemporaryDirectory() as scratch:
        run = Run(operations.make_run(str(Path(scratch, "run")), path, recipe)["run"])
        operations.train(str(run.directory))
        plan = read_plan(run)
        assert plan is not None
        return (
            min(one.loss for one in evaluations_of(run.history())),
            plan.learning_rate,
            len(steps_of(run.history())),
        )


if __name__ == "__main__":
    main()
