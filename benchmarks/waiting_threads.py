"""What it costs when OpenMP threads spin while they wait, beside one other busy process. `python -m benchmarks.waiting_threads`

Times a training step of the built-in model (4-bit, LoRA, 8 x 60 tokens, all cores) in fresh processes, spinning and sleeping in turn.
"""

import json
import os
import statistics
import subprocess
import sys

ROUNDS = 3
CHILD = """
import time, torch
from peft_space.settings import prepare_libraries; prepare_libraries()
from peft_space.models.base import find_base
from peft_space.models.load import load_base_model, new_adapter
from peft_space.recipe import Recipe
base = find_base("demo")
model = new_adapter(load_base_model(base, Recipe(), "float32"), Recipe(), base).train()
ids = torch.randint(5, 1000, (8, 60))
seconds = []
for _ in range(5):
    start = time.perf_counter()
    model(input_ids=ids, labels=ids).loss.backward()
    seconds.append(time.perf_counter() - start)
print(sorted(seconds)[2])
"""


def step_seconds(policy: str) -> float:
    """The median step of a fresh process."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | {
        "OMP_WAIT_POLICY": policy,
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", CHILD], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        pairs = [(step_seconds("active"), step_seconds("passive")) for _ in range(ROUNDS)]
    finally:
        busy.kill()
        busy.wait()
    spinning, sleeping = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(active / passive for active, passive in pairs)
    print(json.dumps({"spinning_step_seconds": round(spinning, 3), "sleeping_step_seconds": round(sleeping, 3), "ratio": round(ratio, 1)}))


if __name__ == "__main__":
    main()
