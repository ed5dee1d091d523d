"""Measures what a run costs compared with a bare transformers Trainer script.

`python -m benchmarks.overhead [REPETITIONS]`. The script has the same batches, dtype and threads.
The model has 33M parameters, a batch has 8 rows of 128 tokens, and LoRA of rank 8 is on all linear
layers. The benchmark runs ours, the script, and SFTTrainer in turn, each in a fresh process. Losses
must be the same in every step. CPU time is user and system time: of `Trainer.train` (loop) and of
the whole process. `start` is the time from the start of the process to the first step; ours
includes the choice of the dtype.
"""

import sys

from benchmarks.harness import (
    loss_difference,
    make_model,
    make_rows,
    medians,
    ratio,
    tell,
    time_training,
    working_folder,
)

REPETITIONS = 7
STEPS = 8
FIGURES = ("loop_cpu", "loop_seconds", "cpu", "seconds", "start_cpu", "start_seconds")


def main() -> None:
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else REPETITIONS
    with working_folder() as folder:
        settings = {
            "model": make_model(folder / "model", "33M"),
            "rows": make_rows(folder / "rows.jsonl", 200, 4), "rank": 8, "rate": 1e-3,
            "batch_size": 8, "length": 128, "steps": STEPS,
        }  # fmt: skip
        results = {"ours": [], "bare": [], "sft": []}
        for _ in range(repetitions):
            ours = time_training("ours", settings, folder)
            results["ours"].append(ours)
            chosen = {"dtype": ours["dtype"], "threads": ours["threads"]}
            for arm in ("bare", "sft"):
                results[arm].append(time_training(arm, settings | chosen, folder))
            differences = {arm: loss_difference(ours, results[arm][-1]) for arm in ("bare", "sft")}
            tell(
                chosen
                | {f"loss_difference_{arm}": f"{value:.1e}" for arm, value in differences.items()}
            )
            assert differences["bare"] <= 1e-5, "the losses differ"
    for arm, lines in results.items():
        tell({"arm": arm, "repetitions": repetitions, "steps": STEPS} | medians(lines, FIGURES))
    for arm in ("bare", "sft"):
        tell(
            {
                f"ours_over_{arm}": {
                    name: ratio(results["ours"], results[arm], name) for name in FIGURES
                }
            }
        )
    tell(
        {"sft_over_bare": {name: ratio(results["sft"], results["bare"], name) for name in FIGURES}}
    )


if __name__ == "__main__":
    main()
