"""Trains the same recipe in LLaMA-Factory on this CPU.

`python -m benchmarks.vs_llamafactory PYTHON [REPETITIONS]`. PYTHON belongs to a separate
environment with LLaMA-Factory, which needs older libraries:

    python -m venv lf
    lf/bin/pip install torch==2.13.0
    lf/bin/pip install llamafactory torch==2.13.0

If its builds of torchvision and torchaudio do not fit a torch for CPUs, remove them; text needs
neither:

    lf/bin/pip uninstall -y torchvision torchaudio
    touch lf/lib/python3.*/site-packages/torchaudio.py

The model has 3.5M parameters, and LoRA has rank 8. First come 20 steps of 4 rows of 128 tokens,
with equal settings and with the defaults of each. Then comes one epoch of 240 rows of lognormal
length (median 88 tokens, sigma 0.8), 8 per step, with the defaults of each. `seconds` and `cpu` are
of the whole command, from data to adapter.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import (
    Json,
    make_model,
    make_rows,
    medians,
    ratio,
    tell,
    time_training,
    working_folder,
)

REPETITIONS = 5
FIGURES = ("loop_seconds", "loop_cpu", "seconds", "cpu")
EQUAL = {"disable_gradient_checkpointing": True, "flash_attn": "sdpa", "use_cpu": True}


def write_config(folder: Path, settings: Json, more: Json) -> str:
    """Write LLaMA-Factory's configuration of the same training, as JSON, which is valid YAML."""
    (folder / "dataset_info.json").write_text(
        json.dumps({"rows": {"file_name": settings["rows"], "columns": {"prompt": "text"}}})
    )
    config = {
        "model_name_or_path": settings["model"], "stage": "pt", "do_train": True,
        "finetuning_type": "lora", "lora_target": "all",
        "lora_rank": settings["rank"], "dataset": "rows", "dataset_dir": str(folder),
        "cutoff_len": settings["length"], "packing": False,
        "output_dir": tempfile.mkdtemp(dir=folder),
        "per_device_train_batch_size": settings["batch_size"], "max_steps": settings["steps"],
        "learning_rate": settings["rate"], "warmup_steps": 0.05, "logging_steps": 1,
        "report_to": "none", "overwrite_cache": True, "seed": 0,
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(json.dumps(config | more))
    return str(path)


def compare(
    name: str, settings: Json, more: Json, folder: Path, python: str, repetitions: int
) -> None:
    ours, theirs = [], []
    for _ in range(repetitions):
        ours.append(
            time_training(
                "ours", settings | {"run": str(Path(tempfile.mkdtemp(dir=folder)) / "run")}, folder
            )
        )
        config = write_config(
            folder, settings, more | ({"bf16": ours[-1]["dtype"] != "float32"} if more else {})
        )
        environment = {"OMP_NUM_THREADS": str(ours[-1]["threads"])} if more else None
        theirs.append(
            time_training(
                "llamafactory", settings | {"config": config}, folder, environment, python
            )
        )
    tell(
        {
            "rows": name,
            "ours": medians(ours, FIGURES),
            "dtype": ours[-1]["dtype"],
            "threads": [result["threads"] for result in ours],
        }
    )
    tell({"rows": name, "llamafactory": medians(theirs, FIGURES)})
    tell(
        {
            "rows": name,
            "times_as_fast": {figure: ratio(theirs, ours, figure) for figure in FIGURES},
            "mean_loss": [
                round(statistics.fmean(results[-1]["losses"]), 4) for results in (ours, theirs)
            ],
        }
    )
    if "mixed" not in name:
        whole = settings["length"] / (
            settings["length"] - 1
        )  # LLaMA-Factory divides by all tokens of a row, of which the first is not predicted
        apart = max(
            abs(a - b * whole)
            for a, b in zip(ours[-1]["losses"], theirs[-1]["losses"], strict=True)
        )
        tell({"rows": name, "losses_apart": f"{apart:.1e}"})


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    python, repetitions = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else REPETITIONS
    with working_folder() as folder:
        settings = {
            "model": make_model(folder / "model", "3.6M"),
            "rows": make_rows(folder / "rows.jsonl", 200, 4), "rank": 8, "rate": 1e-3,
            "batch_size": 4, "length": 128, "steps": 20,
        }  # fmt: skip
        compare("128 tokens, equal settings", settings, EQUAL, folder, python, repetitions)
        compare("128 tokens, defaults", settings, {}, folder, python, repetitions)
        mixed = settings | {
            "rows": make_rows(folder / "mixed.jsonl", 240, 2, 0.8),
            "length": 1_024,
            "batch_size": 8,
            "steps": 30,
        }
        compare("mixed lengths, defaults", mixed, {}, folder, python, repetitions)


if __name__ == "__main__":
    main()
