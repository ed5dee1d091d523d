"""Compares tokens per second with TRL's defaults and with the fastest plain loop.

`python -m benchmarks.vs_trl [REPETITIONS]`. The model has 33M parameters, and LoRA of rank 8 is on
all linear layers. The script times TRL's defaults (bfloat16, gradient checkpointing) on the CPU as
it is. If the CPU computes in bfloat16 natively, the script also switches these instructions off in
both arms. A CPU without them is slower still. The loop by hand uses the fastest dtype and number of
threads, each tried once here.
"""

import itertools
import statistics
import sys

from benchmarks.harness import (
    Json,
    loss_difference,
    make_model,
    make_rows,
    ratio,
    tell,
    time_training,
    working_folder,
)
from peft_space import hardware

REPETITIONS = 5
SLOW_REPETITIONS = 2
WITHOUT_BF16 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
"""Environment that switches native bfloat16 off."""


def with_speed(result: Json, settings: Json) -> Json:
    """A result with `speed`, tokens per second, and `cpu_speed`, tokens per CPU second."""
    tokens = settings["steps"] * settings["batch_size"] * settings["length"]
    return result | {
        "speed": tokens / result["loop_seconds"],
        "cpu_speed": tokens / result["loop_cpu"],
    }


def in_turn(
    arms: dict[str, Json], settings: Json, folder, repetitions: int, environment: Json | None = None
) -> dict[str, list[Json]]:
    """The results of each arm; `arms` has its name and additional settings."""
    results: dict[str, list[Json]] = {arm: [] for arm in arms}
    for _ in range(repetitions):
        for arm, own in arms.items():
            results[arm].append(
                with_speed(time_training(arm, settings | own, folder, environment), settings)
            )
    return results


def summarize(results: dict[str, list[Json]], other: str, name: str) -> Json:
    ours, theirs = results["ours"], results[other]

    def speeds(lines: list[Json]) -> list[float]:
        return [line["speed"] for line in lines]

    return {
        "against": name,
        "repetitions": len(ours),
        "ours": [f"{result['dtype']}, {result['threads']} threads" for result in ours],
        "ours_tokens_a_second": round(statistics.median_high(speeds(ours))),
        "theirs_tokens_a_second": round(statistics.median_high(speeds(theirs)), 1),
        "times_theirs": ratio(ours, theirs, "speed"),
        "times_theirs_in_cpu_time": ratio(ours, theirs, "cpu_speed"),
        "loss_difference": f"{max(map(loss_difference, ours, theirs)):.1e}",
    }


def best_by_hand(settings: Json, folder) -> Json:
    """The dtype and number of threads of the fastest plain loop."""
    threads = sorted({1, hardware.num_cores()})
    tried = {}
    for dtype, number in itertools.product(("float32", "bfloat16", "bfloat16 weights"), threads):
        tried[dtype, number] = time_training(
            "by_hand", settings | {"dtype": dtype, "threads": number, "steps": 4}, folder
        )["loop_seconds"]
        tell(
            {
                "by_hand": dtype,
                "threads": number,
                "seconds_a_step": round(tried[dtype, number] / 4, 3),
            }
        )
    dtype, number = min(tried, key=tried.__getitem__)
    return {"dtype": dtype, "threads": number}


def main() -> None:
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else None
    with working_folder() as folder:
        settings = {
            "model": make_model(folder / "model", "33M"),
            "rows": make_rows(folder / "rows.jsonl", 400, 4), "rank": 8, "rate": 1e-3,
            "batch_size": 8, "length": 128, "steps": 24,
        }  # fmt: skip
        best = best_by_hand(settings, folder)
        results = in_turn(
            {"ours": {}, "by_hand": best}, settings, folder, repetitions or REPETITIONS
        )
        tell(
            summarize(
                results,
                "by_hand",
                f"the best loop by hand ({best['dtype']}, {best['threads']} threads)",
            )
        )
        few = settings | {"steps": 2}
        for name, environment in (("", {}), (", no native bfloat16", WITHOUT_BF16)):
            results = in_turn(
                {"ours": {}, "trl_defaults": {}},
                few,
                folder,
                repetitions or SLOW_REPETITIONS,
                environment,
            )
            tell(summarize(results, "trl_defaults", f"TRL's defaults{name}"))


if __name__ == "__main__":
    main()
