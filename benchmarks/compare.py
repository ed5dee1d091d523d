"""Compares both columns with one: time, memory, and equality of the base column.

`python -m benchmarks.compare [PROMPTS]`. The script takes times in turn in one process and prints
their medians. Memory is the peak resident memory of a process, minus that of a process that has
only imported the libraries. One process has one base and its adapter; the other has a base and a
second base with the adapter, both in float32.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peft_space.settings import prepare_libraries

MAX_PROMPTS, ROUNDS, TIMED_PROMPTS = 1000, 9, 16
WIDTH, DEPTH = 1024, 16
"""Size of the model for the memory figures: large enough that its weights dominate."""


def make_trained_run(folder: Path, **choices: Any) -> Any:
    """A run of the built-in model, trained for 40 steps."""
    from peft_space.recipe import Recipe
    from peft_space.runs.run import Run
    from peft_space.training.prepare import make_run
    from peft_space.training.train import train

    run = make_run(folder, "demo", Recipe(max_steps=40, **choices))
    with run.lock():
        train(run)
    return Run(folder)


def times(run: Any, rounds: int = ROUNDS, num_prompts: int = TIMED_PROMPTS) -> dict[str, Any]:
    """Seconds of one column and of both, in turn, and of one batch with an adapter per row."""
    from peft_space.evaluation import adapter_off_check, compare
    from peft_space.evaluation.prompts import held_out_prompts
    from peft_space.models.loading import load_adapted

    adapted = load_adapted(run)
    turns = [
        [{"role": "user", "content": row["prompt"]}] for row in held_out_prompts(run, num_prompts)
    ]
    sampling = compare.Sampling(max_new_tokens=48)
    both_sides = dict.fromkeys(adapter_off_check.SIDES, turns)

    def both() -> None:
        seen: adapter_off_check.SeenTokens = {"base": [], "adapter": []}
        compare.compare(adapted, turns, sampling, seen=seen)
        assert adapter_off_check.check(adapted, seen).fair

    ways = {
        "base": lambda: compare.answer(adapted, "base", turns, sampling),
        "adapter": lambda: compare.answer(adapted, "adapter", turns, sampling),
        "both": both,
        "one_batch": lambda: compare.answer_together(adapted, both_sides, sampling, None, None),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if number:  # the first round warms up
                taken[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    return {f"{name}_seconds": round(value, 3) for name, value in medians.items()} | {
        "both_over_the_slower": round(
            medians["both"] / max(medians["base"], medians["adapter"]), 3
        ),
        "both_over_their_sum": round(medians["both"] / (medians["base"] + medians["adapter"]), 3),
        "one_batch_over_both": round(medians["one_batch"] / medians["both"], 3),
    }


def mismatches(run: Any, count: int) -> dict[str, Any]:
    """Count the prompts that the base column answers differently from the base alone.

    transformers generates with the base alone, in batches of the same prompts.
    """
    import torch

    from peft_space.data.dataset import load_run_data
    from peft_space.data.tokenization.render import prompt_ids, stop_token_ids
    from peft_space.evaluation import compare
    from peft_space.evaluation.generate import decode
    from peft_space.models.loading import load_adapted, load_base_model
    from peft_space.models.resolve import find_base

    adapted = load_adapted(run)
    alone = load_base_model(find_base("demo"), run.recipe, "float32").eval()
    data = load_run_data(run)
    rows = [row.messages[:-1] for part in (data.held_out, data.train) for row in part]
    # when the rows repeat, a longer question makes each prompt different
    turns = [
        [
            *row[:-1],
            {"role": "user", "content": f"{row[-1]['content']}{' Please.' * (at // len(rows))}"},
        ]
        for at, row in ((at, rows[at % len(rows)]) for at in range(count))
    ]
    tokenizer, wrong, different = adapted.tokenizer, 0, 0
    for start in range(0, count, 16):
        batch = turns[start : start + 16]
        answers = compare.compare(adapted, batch, compare.Sampling(max_new_tokens=24))
        prompts = [prompt_ids(tokenizer, messages) for messages in batch]
        longest = max(map(len, prompts))
        ids = torch.tensor(
            [[tokenizer.pad_token_id] * (longest - len(prompt)) + prompt for prompt in prompts]
        )
        mask = torch.tensor(
            [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        )
        stops = stop_token_ids(tokenizer)
        with torch.inference_mode():
            out = alone.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=24,
                do_sample=False,
                eos_token_id=stops,
                pad_token_id=tokenizer.pad_token_id,
            )
        expected = [decode(adapted, row[longest:].tolist()) for row in out]
        wrong += sum(answer.base != text for answer, text in zip(answers, expected, strict=True))
        different += sum(answer.base != answer.adapter for answer in answers)
    return {
        "prompts": count,
        "base_column_mismatches": wrong,
        "adapter_answers_differently": different,
    }


def memory_of(what: str) -> int:
    """Peak resident memory in KiB of a separate process."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.compare", what],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stdout)


def hold(what: str) -> None:
    """Load the models, answer once, and print the peak resident memory."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=4000,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=16,
        num_key_value_heads=16,
    )
    ids = torch.arange(16)[None]
    count = {"nothing": 0, "one": 1, "two": 2}[what]
    models = [LlamaForCausalLM(config).eval() for _ in range(count)]
    if models:
        models[-1] = get_peft_model(
            models[-1], LoraConfig(r=16, target_modules="all-linear")
        ).eval()
        with torch.inference_mode():
            for model in models:
                model(input_ids=ids)
            if what == "one":
                with models[0].disable_adapter():
                    models[0](input_ids=ids)
    # not getrusage, whose figure includes the parent's
    status = Path("/proc/self/status").read_text()
    print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def main() -> None:
    prepare_libraries()
    argument = sys.argv[1] if len(sys.argv) > 1 else str(MAX_PROMPTS)
    if not argument.isdigit():
        hold(argument)
        return
    with tempfile.TemporaryDirectory() as folder:
        run = make_trained_run(Path(folder) / "run")
        print(json.dumps(times(run)), flush=True)
        print(json.dumps(mismatches(run, int(argument))), flush=True)
    nothing, one, two = (memory_of(what) for what in ("nothing", "one", "two"))
    print(
        json.dumps(
            {
                "one_base_mib": (one - nothing) // 1024,
                "two_bases_mib": (two - nothing) // 1024,
                "ratio": round((one - nothing) / (two - nothing), 3),
            }
        )
    )


if __name__ == "__main__":
    main()
