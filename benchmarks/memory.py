"""Compares the memory estimate with the peak memory of trainings on a CPU.

`python -m benchmarks.memory`. Each recipe is trained for two steps in a fresh process, with the
app's loading, adapter, batches and Trainer. Measured is the peak resident memory (VmHWM, which a
child does not inherit) minus the resident memory after all imports and before loading. The models
have random weights, which do not matter here. The script also fits the estimate's three constants
on the recipes of FITTED.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

BLOCK = {
    "vocab_size": 16_000,
    "hidden_size": 512,
    "num_hidden_layers": 10,
    "num_attention_heads": 8,
}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Llama": (
        "LlamaConfig",
        "CausalLM",
        BLOCK | {"intermediate_size": 1_408, "num_key_value_heads": 4, "tie_word_embeddings": True},
    ),
    "GPT-2": (
        "GPT2Config",
        "CausalLM",
        {"vocab_size": 32_000, "n_embd": 512, "n_layer": 8, "n_head": 8},
    ),
    "Qwen 2": (
        "Qwen2Config",
        "CausalLM",
        BLOCK
        | {
            "vocab_size": 48_000,
            "hidden_size": 448,
            "intermediate_size": 1_216,
            "num_key_value_heads": 1,
            "num_attention_heads": 7,
        },
    ),
    "Mistral": (
        "MistralConfig",
        "CausalLM",
        {
            "vocab_size": 32_000,
            "hidden_size": 768,
            "intermediate_size": 2_048,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
        }
        | {"num_key_value_heads": 4, "sliding_window": None},
    ),
    "GPT-NeoX": (
        "GPTNeoXConfig",
        "CausalLM",
        BLOCK | {"vocab_size": 24_000, "intermediate_size": 2_048},
    ),
    "OPT": (
        "OPTConfig",
        "CausalLM",
        BLOCK | {"vocab_size": 24_000, "ffn_dim": 2_048, "word_embed_proj_dim": 512},
    ),
    "BERT": (
        "BertConfig",
        "SequenceClassification",
        BLOCK | {"vocab_size": 30_522, "intermediate_size": 2_048},
    ),
    "Phi": ("PhiConfig", "CausalLM", BLOCK | {"vocab_size": 20_000, "intermediate_size": 2_048}),
    "Gemma": (
        "GemmaConfig",
        "CausalLM",
        BLOCK
        | {
            "vocab_size": 40_000,
            "intermediate_size": 1_536,
            "num_key_value_heads": 1,
            "head_dim": 64,
        },
    ),
    "T5": (
        "T5Config",
        "Seq2SeqLM",
        {
            "vocab_size": 32_128,
            "d_model": 512,
            "d_ff": 2_048,
            "d_kv": 64,
            "num_layers": 6,
            "num_heads": 8,
            "decoder_start_token_id": 0,
        },
    ),
}
"""Configuration, kind, sizes: 32 to 67 million parameters each, 128 MB and more."""
SHAPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Qwen3-0.6B": (
        "Qwen3Config",
        "CausalLM",
        {
            "vocab_size": 151_936,
            "hidden_size": 1_024,
            "intermediate_size": 3_072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": True,
        },
    ),
    "SmolLM2-135M": (
        "LlamaConfig",
        "CausalLM",
        {
            "vocab_size": 49_152,
            "hidden_size": 576,
            "intermediate_size": 1_536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        },
    ),
    "BERT-base": ("BertConfig", "SequenceClassification", {}),
    "T5-small": ("T5Config", "Seq2SeqLM", {"decoder_start_token_id": 0}),
}
"""Configuration, kind and sizes of models that people train; for `benchmarks.real_shapes`."""


@dataclass(frozen=True)
class Case:
    """One training; `recipe` has the fields that differ from the defaults."""

    model: str
    batch_size: int
    length: int
    recipe: dict[str, Any] = field(default_factory=dict)
    checkpointing: bool = False
    stored: str = "float32"


EXACT = {"quantization": "none"}
FITTED = (
    Case("Llama", 4, 256, EXACT),
    Case("Llama", 8, 128),
    Case("Llama", 8, 192, EXACT, checkpointing=True),
    Case("GPT-2", 4, 256, EXACT | {"lora_rank": 8}),
    Case("GPT-2", 2, 192),
    Case("GPT-2", 8, 128, checkpointing=True),
    Case("Llama", 2, 128, EXACT | {"lora_rank": 64}),
    Case("Llama", 12, 512, EXACT),
    Case("OPT", 4, 192, EXACT),
    Case("BERT", 8, 128, EXACT),
)
TESTED = (
    Case("Llama", 6, 192, {"target_modules": "attention"}),
    Case("Llama", 4, 256, checkpointing=True),
    Case("Llama", 4, 128, {"double_quantization": False}, stored="bfloat16"),
    Case("Llama", 4, 128, EXACT, stored="bfloat16"),
    Case("GPT-2", 1, 512, EXACT),
    Case("Qwen 2", 4, 128, EXACT),
    Case("Qwen 2", 2, 320),
    Case("Qwen 2", 4, 192, {"lora_rank": 32}, checkpointing=True),
    Case("Mistral", 4, 192, EXACT),
    Case("Mistral", 4, 192, EXACT, checkpointing=True),
    Case("Mistral", 8, 96, {"lora_rank": 4}),
    Case("GPT-NeoX", 4, 128, EXACT),
    Case("GPT-NeoX", 2, 384, {"lora_rank": 32}),
    Case("OPT", 8, 64, {"quantization": "fp4"}),
    Case("T5", 4, 192, EXACT),
    Case("T5", 4, 128),
    Case("Phi", 4, 160, EXACT),
    Case("Phi", 3, 224, {"target_modules": "attention", "lora_rank": 8}),
    Case("Gemma", 4, 112, EXACT),
    Case("Gemma", 6, 128),
    Case("BERT", 16, 64, EXACT | {"lora_rank": 4}),
    Case("Mistral", 2, 256, {"double_quantization": False}),
)


def config_of(case: Case) -> Any:
    import torch
    import transformers

    name, _, sizes = (MODELS | SHAPES)[case.model]
    return getattr(transformers, name)(
        **sizes, bos_token_id=1, eos_token_id=2, pad_token_id=0, dtype=getattr(torch, case.stored)
    )


def auto_class(case: Case) -> Any:
    import transformers

    return getattr(transformers, f"AutoModelFor{(MODELS | SHAPES)[case.model][1]}")


def store(case: Case, folder: str) -> None:
    """Write the model of `case` with random weights."""
    config = config_of(case)
    auto_class(case).from_config(config).to(config.dtype).save_pretrained(folder)


def task_spec_of(case: Case) -> Any:
    """The task of the model of `case`."""
    from peft_space.recipe import TaskSpec

    tasks = {"Seq2SeqLM": "seq2seq-lm", "SequenceClassification": "sequence-classification"}
    task = tasks.get((MODELS | SHAPES)[case.model][1], "causal-lm")
    return TaskSpec(task, ("no", "yes") if task == "sequence-classification" else ())


def estimated(case: Case) -> Any:
    """The MemoryEstimate of `case`."""
    from peft_space.estimation.memory import estimate

    return estimate(*_layers_and_recipe(case), case.batch_size, case.length)


def estimated_seconds(case: Case) -> float:
    """The estimate of a step of `case`, in which each token has a label."""
    from peft_space.estimation.step_time import measure_step

    here = measure_step(*_layers_and_recipe(case), case.batch_size, case.length)
    passes = here.both + case.checkpointing * here.forward + here.label
    return passes * case.batch_size * case.length


def _layers_and_recipe(case: Case) -> tuple[Any, Any]:
    from peft_space.models.architecture import linear_layers
    from peft_space.recipe import make_recipe

    checkpointing = {"gradient_checkpointing": "on"} if case.checkpointing else {}
    recipe = make_recipe(case.recipe | checkpointing)
    return linear_layers(config_of(case), task_spec_of(case).task), recipe


def memory(key: str) -> int:
    """Resident bytes of this process: `VmRSS` now, `VmHWM` at its peak."""
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(f"{key}:")
    )
    return int(line.split()[1]) * 1024


def adapted(case: Case, folder: str) -> Any:
    """The model of `case` as the app trains it."""
    from peft_space.models.loading import load_base_model, new_adapter
    from peft_space.models.resolve import find_base
    from peft_space.recipe import make_recipe

    recipe, base, goal = make_recipe(case.recipe), find_base(folder), task_spec_of(case)
    return new_adapter(load_base_model(base, recipe, "float32", goal), recipe, base, goal)


def rows_of(case: Case) -> Any:
    """Two batches of rows, of which the first of each has the length of the case."""
    import torch

    from peft_space.data.arrow_store import TokenizedExample

    random = torch.Generator().manual_seed(0)
    rows = []
    for number in range(2 * case.batch_size):
        length = case.length - (number % case.batch_size) % 5
        ids = torch.randint(3, 16_000, (length,), generator=random).tolist()
        example = TokenizedExample(number, ids, [(0, length)], label=("no", "yes")[number % 2])
        rows.append(dataclasses.replace(example, target=example))
    return rows


def step_timer() -> Any:
    """A callback of Trainer that keeps the seconds that each step took."""
    from transformers import TrainerCallback

    class StepTimer(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self._began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - self._began)

    return StepTimer()


def measured_here(case: Case, folder: str) -> tuple[int, float]:
    """Bytes by which this fresh process grows after its imports, and seconds of its last step."""
    import bitsandbytes  # noqa: F401
    import peft  # noqa: F401

    from peft_space.recipe import make_recipe
    from peft_space.training.trainers import FrozenInputs, make_trainer

    rows, task_spec, recipe = rows_of(case), task_spec_of(case), make_recipe(case.recipe)
    before = memory("VmRSS")
    arguments = {  # as training/trainers.py sets them
        "output_dir": f"{folder}/out",
        "max_steps": 2,
        "per_device_train_batch_size": case.batch_size,
        "use_cpu": True,
        "bf16": False,
        "fp16": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "report_to": "none",
        "activation_checkpointing": case.checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": False} if case.checkpointing else None,
    }
    model, tokenizer, timer = adapted(case, folder), SimpleNamespace(pad_token_id=0), step_timer()
    trainer = make_trainer(
        task_spec,
        recipe,
        model,
        tokenizer,
        arguments,
        rows,
        None,
        [FrozenInputs(model), timer],
    )
    trainer.train()
    return memory("VmHWM") - before, timer.seconds[-1]


def measured(case: Case, repeats: int) -> tuple[list[int], list[float]]:
    """Bytes by which fresh processes grow, and seconds of their last steps; the medians count.

    Heap fragmentation varies between runs by a few percent. With checkpointing, which releases more
    memory, it varies by up to 40.
    """
    runs: list[list[float]] = []
    with tempfile.TemporaryDirectory() as folder:
        store(case, folder)
        settings = json.dumps(dataclasses.asdict(case))
        for _ in range(repeats):
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory"]
            command += ["--here", settings, folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    return sorted(int(run[0]) for run in runs), sorted(run[1] for run in runs)


def compared(case: Case, repeats: int) -> dict[str, Any]:
    """The line that is printed for one case."""
    estimate, seconds = estimated(case).total, estimated_seconds(case)
    runs, seconds_measured = measured(case, repeats)
    truth, measured_seconds = statistics.median(runs), statistics.median(seconds_measured)
    return {
        "model": case.model,
        "rows": case.batch_size,
        "length": case.length,
        "recipe": case.recipe | ({"gradient_checkpointing": True} if case.checkpointing else {}),
        "stored": case.stored,
        "estimated_mb": round(estimate / 1e6),
        "measured_mb": [round(run / 1e6) for run in runs],
        "error": round(estimate / truth - 1, 3),
        "estimated_seconds": round(seconds, 3),
        "measured_seconds": [round(second, 3) for second in seconds_measured],
        "time_error": round(seconds / measured_seconds - 1, 3),
    }


def fitted(truths: list[float]) -> dict[str, float]:
    """The estimate's constants with the least squares of the relative error on FITTED."""
    import numpy as np

    from peft_space.estimation import activations, memory

    names = ("LIBRARIES", "HOLES", "HUGE_HOLES")

    def totals(*values: float) -> Any:
        for name, value in zip(names, values, strict=True):
            for module in (memory, activations):
                if hasattr(module, name):
                    setattr(module, name, value)
        return np.array([estimated(case).total for case in FITTED])

    truth, without = np.array(truths), totals(0, 0, 0)  # the estimate is linear in each of them
    columns = [
        (totals(*row) - without) / truth for row in ((1_000_000, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    constants = np.linalg.lstsq(np.stack(columns, axis=1), (truth - without) / truth, rcond=None)[0]
    return {
        f"fitted_{name}": round(float(value), 3)
        for name, value in zip(("LIBRARIES_mb", *names[1:]), constants, strict=True)
    }


def main() -> None:
    from peft_space.settings import prepare_libraries

    prepare_libraries()
    parser = argparse.ArgumentParser()
    parser.add_argument("--here", nargs=2)
    here = parser.parse_args().here
    if here:
        print(json.dumps(measured_here(Case(**json.loads(here[0])), here[1])))
        return
    lines = []
    for number, case in enumerate([*FITTED, *TESTED]):
        group = "fitted" if number < len(FITTED) else "tested"
        lines.append({"set": group} | compared(case, 3 if case.checkpointing else 1))
        print(json.dumps(lines[-1]), flush=True)
    errors = [abs(line["error"]) for line in lines if line["set"] == "tested"]
    truths = [statistics.median(line["measured_mb"]) * 1e6 for line in lines[: len(FITTED)]]
    print(json.dumps(fitted(truths)))
    summary = {
        "recipes": len(errors),
        "median_error_percent": round(100 * statistics.median(errors), 1),
        "worst_error_percent": round(100 * max(errors), 1),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
