"""Measures what a checkpoint costs, and what a pause and a resume cost.

`python -m benchmarks.resume [REPETITIONS]`. 33M parameters, LoRA of rank 16. One run is trained to
its end; the other pauses half-way and resumes in a new process. The adapters must be equal byte for
byte. `to_first_step_seconds` is the time from the start of the resuming process to its first step.
"""

import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness import (
    Json,
    make_model,
    make_rows,
    make_run,
    run_timed,
    tell,
    working_folder,
)

REPETITIONS = 3
STEPS = 12


def train(directory: str) -> Json:
    """Train a run in a separate process, from its current step."""
    return run_timed([sys.executable, "-W", "ignore", "-m", "peft_space", "resume", directory])


def pause_after(directory: str, step: int) -> Json:
    """Train a run to this step, then ask it to pause."""
    from peft_space.runs.events import steps_of
    from peft_space.runs.run import Run

    run = Run(directory)
    before, began = os.times(), time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "peft_space", "resume", directory],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while process.poll() is None and len(steps_of(run.history())) < step:
            time.sleep(0.05)
        run.request_stop("pause")
    after = os.times()
    cpu = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    return {"seconds": time.perf_counter() - began, "cpu": cpu}


def first_step_after(directory: str, moment: float) -> float:
    """Seconds from `moment` until the next step begins."""
    from peft_space.runs.events import steps_of
    from peft_space.runs.run import Run

    return (
        next(
            event.at - event.seconds
            for event in steps_of(Run(directory).history())
            if event.at - event.seconds > moment
        )
        - moment
    )


def checkpoint_cost(directory: str) -> Json:
    """Bytes of a checkpoint, and seconds from the step before it until it is on the disk."""
    from peft_space.runs import events
    from peft_space.runs.run import Run

    run, seconds, before = Run(directory), [], 0.0
    for event in run.history():
        if isinstance(event, events.Checkpointed):
            seconds.append(event.at - before)
        before = event.at
    folder = next(run.path("checkpoints").glob("checkpoint-*"))
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    return {
        "seconds": round(statistics.median(seconds), 3),
        "bytes": sum(sizes.values()),
        "largest": max(sizes, key=sizes.__getitem__),
    }


def digest(directory: str) -> str:
    return hashlib.sha256(
        (Path(directory) / "adapter" / "adapter_model.safetensors").read_bytes()
    ).hexdigest()


def main() -> None:
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else REPETITIONS
    with working_folder() as folder:
        settings = {
            "model": make_model(folder / "model", "33M"),
            "rows": make_rows(folder / "rows.jsonl", 200, 4), "rank": 16, "rate": 1e-3,
            "batch_size": 4, "length": 128, "steps": STEPS,
        }  # fmt: skip
        lines = []
        for number in range(repetitions):
            whole, halved = (
                make_run(folder / f"{name}-{number}", settings) for name in ("whole", "halved")
            )
            uninterrupted = train(whole)
            # the same plan, so that both compute the same numbers
            shutil.copyfile(Path(whole) / "plan.json", Path(halved) / "plan.json")
            first = pause_after(halved, STEPS // 2)
            resumed_at = time.time()
            second = train(halved)
            lines.append(
                {
                    "to_first_step_seconds": round(first_step_after(halved, resumed_at), 2),
                    "whole_seconds": round(uninterrupted["seconds"], 2),
                    "with_a_pause_seconds": round(first["seconds"] + second["seconds"], 2),
                    "whole_cpu": round(uninterrupted["cpu"], 2),
                    "with_a_pause_cpu": round(first["cpu"] + second["cpu"], 2),
                    "same_adapter": digest(whole) == digest(halved),
                }
                | {f"checkpoint_{name}": value for name, value in checkpoint_cost(whole).items()}
            )
            tell(lines[-1])
            assert lines[-1]["same_adapter"]
    names = (
        "checkpoint_seconds",
        "to_first_step_seconds",
        "whole_seconds",
        "with_a_pause_seconds",
        "whole_cpu",
        "with_a_pause_cpu",
    )
    tell({name: statistics.median(line[name] for line in lines) for name in names})


if __name__ == "__main__":
    main()
