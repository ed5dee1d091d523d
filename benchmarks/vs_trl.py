"""Tokens a second against TRL's defaults and against the best plain loop. `python -m benchmarks.defaults [REPETITIONS]`

33 million parameters, LoRA of rank 8 on all linear layers. TRL's defaults (bfloat16, gradient checkpointing) are timed as the CPU is and, where it
computes in bfloat16 natively, also with the instructions for that switched off in both arms; a CPU that never had them is slower still. The loop
by hand is the fastest of every dtype and number of threads, tried here first, once with each. Ours chooses by itself.
"""

import itertools
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
"""Environment in which a CPU that computes in bfloat16 natively does so no longer."""


def with_speed(result: Json, settings: Json) -> Json:
    """A result with `speed`, tokens a second, and `cpu_speed`, tokens a second of CPU time."""
    tokens = settings["steps"] * settings["batch_size"] * settings["length"]
    return result | {
        "speed": tokens / result["loop_seconds"],
        "cpu_speed": tokens / result["loop_cpu"],
    }


def in_turn(
    arms: dict[str, Json], settings: Json, folder, repetitions: int, environment: Json | None = None
) -> dict[str, list[Json]]:
    """The results of each arm, which is named and has settings of its own."""
    results: dict[str, list[Json]] = {arm: [] for arm in arms}
    for _ in range(repetitions):
        for arm, own in arms.items():
            results[arm].append(
                with_speed(time_training(arm, settings | own, folder, environment), settings)
            )
    return results


def told(results: dict[str, list[Json]], other: str, name: str) -> Json:
    ours, theirs = results["ours"], results[other]
    return {
        "against": name,
        "repetitions": len(ours),
        "ours": [f"{one['dtype']}, {one['threads']} threads" for one in ours],
        "ours_tokens_a_second": round(sorted(one["speed"] for one in ours)[len(ours) // 2]),
        "theirs_tokens_a_second": round(
            sorted(one["speed"] for one in theirs)[len(theirs) // 2], 1
        ),
        "times_theirs": ratio(ours, theirs, "speed"),
        "times_theirs_in_cpu_time": ratio(ours, theirs, "cpu_speed"),
        "loss_difference": f"{max(map(loss_difference, ours, theirs)):.1e}",
    }


def best_by_hand(settings: Json, folder) -> Json:
    """The dtype and number of threads with which a plain loop is fastest."""
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
            "model": make_model(folder / "model", "33M"), "rows": make_rows(folder / "rows.jsonl", 400, 4), "rank": 8, "rate": 1e-3,
            "batch_size": 8, "length": 128, "steps": 24,
        }  # fmt: skip
        best = best_by_hand(settings, folder)
        results = in_turn(
            {"ours": {}, "by_hand": best}, settings, folder, repetitions or REPETITIONS
        )
        tell(
            told(
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
            tell(told(results, "trl_defaults", f"TRL's defaults{name}"))


if __name__ == "__main__":
    main()
