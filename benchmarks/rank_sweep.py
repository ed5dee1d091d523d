"""Runs the rank sweep on the sample data, and cuts a rank-64 adapter to the rank that it uses.

Prints one JSON line each.
"""

import json
import tempfile
from pathlib import Path


def main() -> None:
    from peft_space.settings import prepare_libraries

    prepare_libraries()
    from peft_space import operations

    sweep = operations.rank_sweep("demo", {"quantization": "none"})
    losses = {str(result["rank"]): round(result["loss"], 4) for result in sweep["results"]}
    print(
        json.dumps(
            {
                "steps": sweep["steps"],
                "held_out_loss_by_rank": losses,
                "enough": sweep["enough"],
            }
        ),
        flush=True,
    )
    with tempfile.TemporaryDirectory() as scratch:
        run = operations.make_run(
            str(Path(scratch, "run")),
            "demo",
            {"lora_rank": 64, "quantization": "none", "max_steps": 60},
        )["run"]
        operations.train(run)
        smaller = operations.reduce_rank(run, str(Path(scratch, "smaller")))
    change = round(100 * (smaller["loss_after"] / smaller["loss_before"] - 1), 2)
    print(
        json.dumps(
            {"rank": 64, "used": smaller["rank"], "change_of_held_out_loss_percent": change}
            | smaller
            | {"path": None}
        )
    )


if __name__ == "__main__":
    main()
