"""Compares the memory estimate with the measured peak of trainings on rows with pictures.

`python -m benchmarks.pictures`. Three families with random weights and 30 to 60 million parameters
train four steps each by the operation `dry_run` in a fresh process, with and without activation
checkpointing. The median counts.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peft_space.settings import prepare_libraries

TEXT = {
    "hidden_size": 512, "intermediate_size": 1_408, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 4,
}  # fmt: skip
TOWER = {
    "hidden_size": 384, "intermediate_size": 1_536, "num_hidden_layers": 6,
    "num_attention_heads": 6,
}  # fmt: skip
QWEN_TOWER = {
    "hidden_size": 384, "intermediate_size": 1_536, "depth": 6, "num_heads": 6,
    "out_hidden_size": 512, "fullatt_block_indexes": [2, 5],
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 12, 12]}
ROWS = 16
REPEATS = 3
"""Of trainings with checkpointing, whose peak varies by up to 40 % (benchmarks/memory.py)."""


def make_base(family: str, folder: str) -> str:
    """Write a model with random weights and its processor."""
    from tests.fixtures import vision_models

    heads = {**TEXT, "head_dim": 64}
    match family:
        case "Gemma 3":
            return vision_models.gemma3(folder, 112, text=heads, tower=TOWER)
        case "Qwen2.5-VL":
            text = {**TEXT, "rope_parameters": ROPE}
            return vision_models.qwen2_5_vl(folder, 224, text=text, tower=QWEN_TOWER)
    return vision_models.idefics3(folder, text=heads, tower=TOWER)


def make_rows(folder: Path) -> str:
    """Write a folder with pictures of different sizes and a table that asks about them."""
    from tests.fixtures.pictures import picture

    folder.mkdir()
    rows = []
    for number in range(ROWS):
        name = f"{number}.png"
        (folder / name).write_bytes(picture("red", (160 + 8 * number, 200)))
        asked = {"role": "user", "content": f"<image>What is number {number}?"}
        answer = {"role": "assistant", "content": "The lamp is red. " * (1 + number % 4)}
        rows.append({"messages": [asked, answer], "images": [name]})
    (folder / "rows.json").write_text(json.dumps(rows))
    return str(folder)


def compare(family: str, checkpointing: str) -> dict[str, object]:
    """The estimate and the measured peak of one recipe, in this process."""
    from peft_space import operations

    with tempfile.TemporaryDirectory() as folder:
        os.environ["PEFT_SPACE_HOME"] = f"{folder}/home"
        recipe = {
            "base_model": make_base(family, f"{folder}/base"), "batch_size": 4,
            "quantization": "none", "gradient_checkpointing": checkpointing,
        }  # fmt: skip
        result = operations.dry_run(make_rows(Path(folder) / "data"), recipe)
    return {
        "family": family,
        "checkpointing": checkpointing,
        "estimated_mb": round(result["estimates"]["memory"]["total"] / 1e6),
        "measured_mb": round(result["memory"] / 1e6),
        "error": round(result["memory_error"], 3),
    }


def compare_in_child(family: str, checkpointing: str) -> dict[str, Any]:
    """`compare` in a fresh process."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.pictures", family, checkpointing]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    prepare_libraries()
    if sys.argv[1:]:
        print(json.dumps(compare(*sys.argv[1:])))
        return
    lines = []
    for family in ("Gemma 3", "Qwen2.5-VL", "Idefics3"):
        for checkpointing in ("off", "on"):
            count = REPEATS if checkpointing == "on" else 1
            runs = [compare_in_child(family, checkpointing) for _ in range(count)]
            runs.sort(key=lambda run: run["measured_mb"])
            measured = [run["measured_mb"] for run in runs]
            lines.append({**runs[count // 2], "measured_mb": measured})
            print(json.dumps(lines[-1]), flush=True)
    errors = [abs(line["error"]) for line in lines]
    summary = {
        "median_error_percent": round(100 * statistics.median(errors), 1),
        "worst_error_percent": round(100 * max(errors), 1),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
