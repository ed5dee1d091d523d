"""Runs the app on a GPU: short trainings of every kind, then speed and memory of real shapes.

Each real shape is trained by the app and by TRL's defaults on the same rows. The first training is
also compared: the time of both columns, over that of one.

`python -m benchmarks.gpu [--device cpu] [--tiny]`. It prints a JSON line for each training, and
never stops at the first error. Weights are random. `--tiny` replaces the real shapes by small ones,
so that the same code runs in the tests. Each training has a separate process, because memory that
one leaves behind would count for the next.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks import compare
from benchmarks.harness import Json, make_rows, tell, working_folder

SHAPES: dict[str, Json] = {
    "tiny": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 8_192,
    },
    "Qwen3-0.6B": {
        "hidden_size": 1_024, "intermediate_size": 3_072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 151_936, "tie_word_embeddings": True,
    },
    "Llama 3.1 8B": {
        "hidden_size": 4_096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256,
    },
}  # fmt: skip
"""As Llamas, whatever their names: the sizes decide speed and memory."""
MEASURED: dict[str, Json] = {
    "Qwen3-0.6B, bf16, 8 x 512": {
        "shape": "Qwen3-0.6B", "quantization": "none", "batch_size": 8, "max_length": 512,
    },
    "Llama 3.1 8B, bf16, 4 x 2,048": {
        "shape": "Llama 3.1 8B", "quantization": "none", "batch_size": 4, "max_length": 2_048,
    },
    "Llama 3.1 8B, nf4, 1 x 2,048": {
        "shape": "Llama 3.1 8B", "quantization": "nf4", "batch_size": 1, "max_length": 2_048,
        "gradient_checkpointing": "on",
    },
}  # fmt: skip
KINDS: dict[str, Json] = {
    "sft none": {"quantization": "none"},
    "sft nf4": {"quantization": "nf4"},
    "sft int8": {"quantization": "int8"},
    "sft checkpointing": {"gradient_checkpointing": "on"},
    "labels nf4": {"rows": "labels"},
    "dpo nf4": {"rows": "preferences"},
    "kto none": {"rows": "ratings", "quantization": "none"},
}
"""Short trainings of the demo model that show whether a kind of training works at all."""
STEPS = 6


def make_model(folder: Path, shape: str) -> str:
    """Write a Llama of a shape with random weights in bfloat16, and the demo's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from peft_space.demo import MODEL_DIR

    if not folder.is_dir():
        tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
        config = LlamaConfig(
            **SHAPES[shape], max_position_embeddings=4_096, pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id, bos_token_id=None, dtype=torch.bfloat16,
        )  # fmt: skip
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            torch.set_default_dtype(torch.bfloat16)
            model = LlamaForCausalLM(config)
            torch.set_default_dtype(torch.float32)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


def rows_of(folder: Path, kind: str) -> str:
    """Write small rows of a kind."""
    path = folder / f"{kind}.json"
    colors, things = ("red", "green", "blue", "white"), ("lamp", "kettle", "chair", "mug")
    pairs = [(color, thing) for color in colors for thing in things] * 3
    rows: list[Json] = [
        {
            "labels": {"text": f"I bought a {color} {thing}", "label": color},
            "preferences": {
                "prompt": f"Which {thing}?", "chosen": f"The {color} one.", "rejected": "None.",
            },
            "ratings": {
                "prompt": f"Which {thing}?", "completion": f"The {color} one.",
                "label": color != "red",
            },
        }[kind]
        for color, thing in pairs
    ]  # fmt: skip
    path.write_text(json.dumps(rows))
    return str(path)


def train(case: Json) -> Json:
    """Train and score a case in this process.

    Returns:
        The measured figures, or the error.
    """
    import torch

    from peft_space import hardware, operations
    from peft_space.models.resolve import find_base
    from peft_space.planning.training_estimate import memory_here
    from peft_space.recipe import make_recipe
    from peft_space.runs.events import steps_of
    from peft_space.runs.plan import read_plan
    from peft_space.runs.run import Run

    recipe: Json = {"max_steps": STEPS, "eval_steps": STEPS, "save_steps": STEPS} | case["recipe"]
    result: Json = {"case": case["name"], "device": hardware.device_name()}
    try:
        run = Run(operations.make_run(case["out"], case["data"], recipe)["run"])
        base = find_base(make_recipe(recipe).base_model)
        estimate = memory_here(make_recipe(recipe), base.config, "causal-lm", case["longest"])
        free = hardware.free_memory()
        began = time.perf_counter()
        operations.train(str(run.directory))
        seconds = time.perf_counter() - began
        plan, steps = read_plan(run), steps_of(run.history())
        # the first steps warm up
        tokens = steps[-1].tokens - steps[1].tokens
        result |= {
            "tokens_a_second": round(tokens / sum(step.seconds for step in steps[2:])),
            "seconds": round(seconds, 1),
            "peak_gb": round(max(step.memory for step in steps) / 1e9, 2),
            "estimated_gb": round(estimate.total / 1e9, 2) if estimate else None,
            "free_gb": round(free / 1e9, 1),
            "losses": [round(step.loss, 4) for step in steps],
            "plan": plan.model_dump(include=_PLAN_FIELDS) if plan else None,
        }
        if case.get("compares"):
            result["comparison"] = compare.times(run, rounds=2, num_prompts=4)
        if case["scores"]:
            scores = operations.evaluate(str(run.directory))
            result["scores"] = {side: scores[side]["loss"] for side in ("base", "adapter")}
            kept = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
            operations.evaluation.release_model()
            left = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
            result["gb_given_back"] = round((kept - left) / 1e9, 2)
    except Exception as error:  # noqa: BLE001 - recorded
        traceback.print_exc()
        result["error"] = f"{type(error).__name__}: {error}"[:500]
    return result


def train_with_trl(case: Json) -> Json:
    """Train the rows of a case with TRL's defaults in this process.

    Only the size of the work, the adapter and the quantization are set.

    Returns:
        The measured figures, or the error.
    """
    result: Json = {"case": case["name"], "trainer": "TRL"}
    try:
        return result | _trl_figures(case)
    except Exception as error:  # noqa: BLE001 - recorded
        traceback.print_exc()
        return result | {"error": f"{type(error).__name__}: {error}"[:500]}


def _trl_figures(case: Json) -> Json:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from peft_space import hardware

    recipe, on_gpu, ends = case["recipe"], hardware.device() == "cuda", list[float]()

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    options: Json = {}
    if recipe["quantization"] == "nf4":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="bfloat16"
        )
        options = {"model_init_kwargs": {"quantization_config": quantization}}
    arguments = SFTConfig(
        case["out"], max_steps=STEPS, per_device_train_batch_size=recipe["batch_size"],
        max_length=recipe["max_length"], logging_steps=1, report_to="none", use_cpu=not on_gpu,
        **options,
    )  # fmt: skip
    texts = [json.loads(line)["text"] for line in Path(case["data"]).read_text().splitlines()]
    trainer = SFTTrainer(
        recipe["base_model"], arguments, train_dataset=Dataset.from_dict({"text": texts}),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
        callbacks=[Clock()],
    )  # fmt: skip
    tokens = sum(min(len(row["input_ids"]), recipe["max_length"]) for row in trainer.train_dataset)
    trainer.train()
    return {
        "device": hardware.device_name(),
        # the first steps warm up; every row is used once
        "tokens_a_second": round(tokens * (STEPS - 2) / STEPS / (ends[-1] - ends[1])),
        "peak_gb": round(hardware.peak_memory() / 1e9, 2),
        "losses": [
            round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry
        ],
    }


_PLAN_FIELDS = {
    "compute_dtype", "packing", "packing_why", "gradient_checkpointing", "batch_size",
    "gradient_accumulation_steps", "quantization",
}  # fmt: skip


def measure(case: Json) -> Json:
    """Train a case in a separate process."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", "--case", json.dumps(case)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    ended = {"case": case["name"], "error": f"it ended with status {done.returncode}"}
    return json.loads(lines[-1]) if lines else ended


def cases(folder: Path, tiny: bool) -> list[Json]:
    """All trainings, the short ones first."""
    found = []
    for name, recipe in KINDS.items():
        own = dict(recipe)
        kind = own.pop("rows", None)
        data = rows_of(folder, kind) if kind else "demo"
        found.append({"name": name, "data": data, "recipe": own, "scores": True, "longest": 128})
    for name, settings in MEASURED.items():
        own = dict(settings)
        shape = "tiny" if tiny else own.pop("shape")
        own.pop("shape", None)
        own |= {"max_length": 128} if tiny else {}
        model = make_model(folder / shape.replace(" ", "-"), shape)
        rows = make_rows(folder / f"{len(found)}.jsonl", own["batch_size"] * STEPS, 20, 0.5)
        own |= {"base_model": model, "eval_split": 0.0}
        longest = own["max_length"]
        name = f"tiny in place of {name}" if tiny else name
        case = {"name": name, "data": rows, "recipe": own, "scores": False, "longest": longest}
        found += [case | {"trainer": "trl"}, case]
    found[0]["compares"] = True
    return [case | {"out": str(folder / f"run-{number}")} for number, case in enumerate(found)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes in place of real ones")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        case = json.loads(options.case)
        tell(train_with_trl(case) if case.get("trainer") == "trl" else train(case))
        return 0
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    failed = 0
    with working_folder() as folder:
        for case in cases(folder, options.tiny):
            result: Any = measure(case)
            failed += "error" in result
            tell(result)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
