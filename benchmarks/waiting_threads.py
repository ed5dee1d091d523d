"""What OpenMP threads do while they wait for each other: spin, sleep, or the one or the other as the app has them. `python -m benchmarks.waiting_threads`

Times a training step (4-bit, LoRA, 8 x 60 tokens) and a generated token of the built-in model on all cores in fresh processes, in turn; once with
nothing beside it, once beside another busy process.
"""

import json
import os
import statistics
import subprocess
import sys

ROUNDS = 3
WAITING = {
    "spins": {"OMP_WAIT_POLICY": "active"},
    "as OpenMP comes": {},
    "sleeps": {"OMP_WAIT_POLICY": "passive"},
    "spins a little, then sleeps": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"},
    "spins while alone (the app)": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "300000"},
}
CHILD = """
import contextlib, os, statistics, time, torch
from peft_space import spinning
from peft_space.models.base import find_base
from peft_space.models.load import load_base_model, new_adapter
from peft_space.recipe import Recipe
base = find_base("demo")
model = new_adapter(load_base_model(base, Recipe(), "float32"), Recipe(), base).train()
ids = torch.randint(5, 1000, (8, 60))
def seconds(of, times):
    took = []
    for _ in range(times):
        start = time.perf_counter()
        of()
        took.append(time.perf_counter() - start)
    return statistics.median(took)
told = dict(max_new_tokens=20, min_new_tokens=20, do_sample=False)
with spinning.while_alone() if os.environ.get("GOMP_SPINCOUNT") == "300000" else contextlib.nullcontext():
    step = seconds(lambda: model(input_ids=ids, labels=ids).loss.backward(), 15)
    model.eval()
    print(step, seconds(lambda: model.generate(input_ids=ids[:1], attention_mask=torch.ones_like(ids[:1]), **told), 5) / 20)
"""


def timed(waiting: dict[str, str]) -> list[float]:
    """Median seconds of a step and of a token, in a fresh process."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment = inherited | waiting | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", CHILD], env=environment, capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def in_turn() -> dict[str, list[float]]:
    """The medians of all rounds, by the way of waiting."""
    took: dict[str, list[list[float]]] = {name: [] for name in WAITING}
    for _ in range(ROUNDS):
        for name, waiting in WAITING.items():
            took[name].append(timed(waiting))
    return {name: [round(statistics.median(times), 4) for times in zip(*rounds, strict=True)] for name, rounds in took.items()}


def main() -> None:
    print(json.dumps({"beside": "nothing", "seconds of a step and of a token": in_turn()}), flush=True)
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        print(json.dumps({"beside": "a busy process", "seconds of a step and of a token": in_turn()}))
    finally:
        busy.kill()
        busy.wait()


if __name__ == "__main__":
    main()
