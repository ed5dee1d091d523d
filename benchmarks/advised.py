"""The advised recipe against eight around it: half, once and twice its rank and its learning rate, by held-out loss, on files of a folder.

`python -m benchmarks.advised FOLDER NAME...` prints one JSON line a file. Everything else, the steps too, is as advised, at most 60 steps.
"""

import json
import sys
import tempfile
from pathlib import Path

MOST_STEPS = 60


def main() -> None:
    from peft_space.settings import prepare_libraries

    prepare_libraries()
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    for name in names:
        print(json.dumps(measure(str(next(folder.rglob(name))))), flush=True)


def measure(path: str) -> dict:
    """Held-out loss of nine recipes, and how far that of the advised one is above the best, in percent."""
    from peft_space import advice, verbs
    from peft_space.models.base import find_base
    from peft_space.recipe import make_recipe

    advised = verbs.advise(path)
    recipe = make_recipe(advised["recipe"])
    width = find_base(recipe.base_model).config.hidden_size
    rate = recipe.learning_rate or advice.learning_rate(width, advised["task"], MOST_STEPS).value
    losses = {}
    for rank in (recipe.lora_rank // 2, recipe.lora_rank, 2 * recipe.lora_rank):
        for factor in (0.5, 1, 2):
            chosen = {"lora_rank": rank, "learning_rate": rate * factor, "max_steps": MOST_STEPS, "eval_steps": MOST_STEPS}
            reason = {"justification": "Twice the advised rank, to compare with it."}
            losses[f"rank {rank}, rate {rate * factor:g}"] = _held_out_loss(path, advised["recipe"] | chosen | reason)
    best = min(losses.values())
    own = losses[f"rank {recipe.lora_rank}, rate {rate:g}"]
    return {"file": Path(path).name, "task": advised["task"], "losses": losses, "above_best_percent": round(100 * (own / best - 1), 2)}


def _held_out_loss(path: str, recipe: dict) -> float:
    from peft_space import verbs
    from peft_space.run import Run, evaluations_of

    with tempfile.TemporaryDirectory() as scratch:
        run = verbs.make(str(Path(scratch, "run")), path, recipe)["run"]
        verbs.train(run)
        return evaluations_of(Run(run).history())[-1].loss


if __name__ == "__main__":
    main()
