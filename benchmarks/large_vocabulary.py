"""Compares peak memory and CPU time with TRL's on a model with a real vocabulary.

`python -m benchmarks.large_vocabulary [REPETITIONS [STEPS [DTYPE]]]`. The model has the shape of
Qwen3-0.6B, random weights in bfloat16 and a vocabulary of 151,936. Both arms train the same tokens,
half of which have a label, with LoRA of rank 16, by default four steps in bfloat16. The arms run in
turn, each as a command in a new process. `trl` gets the model in the same dtype; `trl_defaults`
only gets its folder. On a CPU without instructions for bfloat16, choose float32.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import Json, tell, working_folder

SHAPES = {"4 x 256": (4, 256), "2 x 1,024": (2, 1_024)}
ARMS = ("ours", "trl")
RANK = 16
_VOCABULARY = 151_936


def make_model(folder: Path) -> str:
    """Write a model of the shape of Qwen3-0.6B with random weights, and a small tokenizer."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from peft_space.demo import MODEL_DIR

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=_VOCABULARY, hidden_size=1_024, intermediate_size=3_072, num_hidden_layers=28,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
        max_position_embeddings=40_960, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, dtype=torch.bfloat16,
    )  # fmt: skip
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_rows(path: Path, count: int, length: int) -> str:
    """Write rows whose questions and answers have half of `length` tokens each, or a few more."""
    from transformers import AutoTokenizer

    from peft_space.demo import MODEL_DIR, TRAIN_FILE

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    lines = [json.loads(line) for line in TRAIN_FILE.read_text().splitlines()]
    text = " ".join(f"{line['instruction']} {line['output']}" for line in lines)
    words, rows = text.split(), []
    for row in range(count):
        halves, place = [], row * 37
        for size in (length // 2 - 10, length // 2 + 40):  # the template adds some
            end = place + size // 2
            while len(tokenizer(" ".join(words[place:end]))["input_ids"]) < size:
                end += 1
            halves.append(" ".join(words[place:end]))
            place = end
        rows.append({"prompt": halves[0], "completion": halves[1]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def recipe_of(settings: Json) -> Json:
    return {
        "base_model": settings["model"], "quantization": "none", "lora_rank": RANK,
        "lora_dropout": 0.0, "learning_rate": 1e-4, "batch_size": settings["batch_size"],
        "max_length": settings["length"], "max_steps": settings["steps"], "eval_split": 0.0,
        "compute_dtype": settings["dtype"],
        "gradient_checkpointing": "on" if settings["checkpointing"] else "off",
    }  # fmt: skip


def tokens_of(settings: Json) -> list[Json]:
    """The rows as the app renders them, for TRL."""
    from peft_space.data.dataset import load_dataset
    from peft_space.data.tokenization.render import render
    from peft_space.models.resolve import find_base, load_tokenizer

    tokenizer = load_tokenizer(find_base(settings["model"]))
    rows = load_dataset(settings["rows"], 0.0, 0).train
    return [
        {
            "input_ids": example.input_ids,
            "completion_mask": [int(label != -100) for label in example.labels],
        }
        for example in render(tokenizer, rows, settings["length"])
    ]


def trl(settings: Json) -> None:
    """Train with TRL's SFTTrainer; with `defaults` only what is required is set."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    defaults = settings["arm"] == "trl_defaults"
    own = {} if defaults else {
        "bf16": settings["dtype"] == "bfloat16",
        "gradient_checkpointing": settings["checkpointing"],
    }  # fmt: skip
    arguments = SFTConfig(
        settings["out"], max_steps=settings["steps"],
        per_device_train_batch_size=settings["batch_size"],
        max_length=settings["length"], logging_steps=1, report_to="none", use_cpu=True,
        save_strategy="no", **own,
    )  # fmt: skip
    model: Any = settings["model"]
    if not defaults:
        model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, settings["dtype"]))
    trainer = SFTTrainer(
        model,
        arguments,
        train_dataset=Dataset.from_list(settings["tokens"]),
        peft_config=LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()


def measure(settings: Json) -> Json:
    """Train once, in a separate process that starts nothing else.

    Returns:
        The peak memory of its largest process in bytes, and the CPU seconds of all.
    """
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.large_vocabulary", "measure"]
    done = subprocess.run(
        command, input=json.dumps(settings), stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def _measure_here(settings: Json) -> None:
    if settings["arm"] == "ours":
        command = [
            *(sys.executable, "-m", "peft_space", "train", settings["rows"]),
            *("--out", settings["out"], "--recipe", json.dumps(recipe_of(settings))),
        ]
    else:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.large_vocabulary", "trl"]
    began = time.perf_counter()
    subprocess.run(command, input=json.dumps(settings), stdout=sys.stderr, text=True, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = {
        "peak": used.ru_maxrss * 1024,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "seconds": time.perf_counter() - began,
    }
    print(json.dumps(result))


def _median(results: list[Json], figure: str) -> float:
    return statistics.median(result[figure] for result in results)


def _ratios(results: dict[str, list[Json]], other: str, figure: str) -> str:
    pairs = zip(results["ours"], results[other], strict=True)
    ratios = sorted(ours[figure] / theirs[figure] for ours, theirs in pairs)
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def main() -> None:
    repetitions, steps, dtype = [*sys.argv[1:], *("3", "4", "bfloat16")[len(sys.argv) - 1 :]]
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    with working_folder() as folder:
        model = make_model(folder / "model")
        for name, (batch_size, length) in SHAPES.items():
            rows = make_rows(folder / f"{length}.jsonl", batch_size * int(steps), length)
            settings: Json = {"model": model, "rows": rows, "batch_size": batch_size}
            settings |= {"length": length, "steps": int(steps), "dtype": dtype}
            settings["tokens"] = tokens_of(settings)
            for checkpointing in (True, False):
                arms = (*ARMS, "trl_defaults") if checkpointing and length == 256 else ARMS
                results: dict[str, list[Json]] = {arm: [] for arm in arms}
                for number in range(int(repetitions)):
                    for arm in arms:
                        own = {"arm": arm, "checkpointing": checkpointing}
                        out = str(folder / f"{arm}-{length}-{checkpointing}-{number}")
                        results[arm].append(measure(settings | own | {"out": out}))
                summary: Json = {"batch": name, "dtype": dtype, "checkpointing": checkpointing}
                for arm, lines in results.items():
                    summary[f"{arm}_peak_gb"] = round(_median(lines, "peak") / 1e9, 2)
                    summary[f"{arm}_cpu_seconds"] = round(_median(lines, "cpu_seconds"), 1)
                summary["peak_of_trl"] = _ratios(results, "trl", "peak")
                summary["cpu_time_of_trl"] = _ratios(results, "trl", "cpu_seconds")
                if "trl_defaults" in results:
                    summary["cpu_time_of_defaults"] = _ratios(
                        results, "trl_defaults", "cpu_seconds"
                    )
                tell(summary)


if __name__ == "__main__":
    if sys.argv[1:] == ["measure"]:
        _measure_here(json.load(sys.stdin))
    elif sys.argv[1:] == ["trl"]:
        trl(json.load(sys.stdin))
    else:
        main()
