"""Checks a million conversations, from a file on the disk to token ids.

`python -m benchmarks.million_rows [--rows N]`. The script measures the peak memory of all processes
of a check together, and counts shared pages once. It also measures the time of the first preview in
a worker that the page has warmed up, and rows per second. TRL prepares a part of the same rows with
the same tokenizer, in turn with us. The script compares medians of three, and TRL's token ids and
mask must equal ours. TRL's input is already in memory; ours reads a file and writes one.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROWS, COMPARED, ROUNDS = 1_000_000, 20_000, 3
_WORDS = """lamp kettle chair shelf mirror red blue green grey Mira Tom Anna Ben arrived broken late
wrong order parcel seven two ticket please thank you hello my name is the a has not it was and
should be sent again today tomorrow colour number shop café größer naïve 猫""".split()


def write_rows(path: Path, count: int) -> None:
    """Write conversations of one to three questions with their answers."""
    rng = random.Random(0)

    def sentence() -> str:
        return " ".join(rng.choices(_WORDS, k=rng.randint(5, 30))).capitalize() + "."

    with open(path, "w", encoding="utf-8") as file:
        for _ in range(count):
            turns = [
                {"role": role, "content": sentence()}
                for role in ("user", "assistant") * rng.randint(1, 3)
            ]
            file.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")


class Memory(threading.Thread):
    """Watches the memory of this process and its children, in bytes: `peak`."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.ended = 0, threading.Event()

    def run(self) -> None:
        import psutil

        while not self.ended.wait(0.25):
            held = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    held += process.memory_full_info().pss
                except psutil.Error:  # the process has ended
                    continue
            self.peak = max(self.peak, held)


def whole_check(path: Path) -> dict[str, Any]:
    """Figures of a check of all rows, as the page calls it."""
    from peft_space.runtime.worker_pool import Workers

    workers = Workers()
    workers.warm()  # as the page does when it opens
    memory, began = Memory(), time.perf_counter()
    memory.start()
    first_preview: list[float] = []
    stages: dict[str, float] = {}
    result: dict[str, Any] = {}
    for message in workers.stream("check", data=str(path), recipe={"base_model": "demo"}):
        report = message.get("report") or {}
        if "preview" in report:
            first_preview.append(time.perf_counter() - began)
        elif report:
            stages.setdefault(report["what"].split(" ")[0], time.perf_counter() - began)
        result = message.get("result", result)
    seconds = time.perf_counter() - began
    workers.close()
    memory.ended.set()
    memory.join()
    assert result["to_train"] + result["held_out"] <= result["rows"]
    return {
        "rows": result["rows"],
        "first_preview_seconds": first_preview[0],
        "seconds": seconds,
        "rows_a_second": result["rows"] / seconds,
        "tokenizing_rows_a_second": result["rows"] / (seconds - stages["Tokenized"]),
        "most_memory_gb": memory.peak / 1e9,
    }


def ours(path: Path, rows: Any, tokenizer: Any) -> tuple[float, Any]:
    """(seconds, tokens) of tokenizing with an empty cache."""
    from peft_space.data.tokenization.tokenize import tokenize

    with tempfile.TemporaryDirectory() as home:
        os.environ["PEFT_SPACE_HOME"] = home
        began = time.perf_counter()
        tokens = tokenize(tokenizer, rows, 100_000)
        seconds = time.perf_counter() - began
        return seconds, [(example.input_ids, example.labels) for example in tokens]


def trls(
    conversations: list[Any], tokenizer: Any, model: Any, processes: int | None
) -> tuple[float, Any]:
    """(seconds, tokens) of TRL's preparation of the same rows, with the assistant mask."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    datasets.disable_caching()
    datasets.disable_progress_bars()
    dataset = datasets.Dataset.from_list([{"messages": row} for row in conversations])
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            assistant_only_loss=True,
            max_length=None,
            dataset_num_proc=processes,
            report_to="none",
            use_cpu=True,
            bf16=False,
        )
        trainer = SFTTrainer(
            model, arguments, train_dataset=dataset.select([0]), processing_class=tokenizer
        )
        began = time.perf_counter()
        prepared = trainer._prepare_dataset(dataset, tokenizer, arguments, False, None, "train")
        seconds = time.perf_counter() - began
        return seconds, list(zip(prepared["input_ids"], prepared["labels"], strict=True))


def compared(path: Path) -> dict[str, Any]:
    """Prepare the same rows with the app and with TRL, in turn."""
    from transformers import AutoModelForCausalLM

    from peft_space.data.dataset import load_dataset
    from peft_space.demo import MODEL_DIR
    from peft_space.models.resolve import find_base, load_tokenizer

    tokenizer, model = (
        load_tokenizer(find_base("demo")),
        AutoModelForCausalLM.from_pretrained(MODEL_DIR),
    )
    rows = load_dataset(str(path), 0.0, 0).train
    conversations = [row.messages for row in rows]
    seconds: dict[str, list[float]] = {"ours": [], "trl": [], "trl, two processes": []}
    for _ in range(ROUNDS):
        taken, tokens = ours(path, rows, tokenizer)
        seconds["ours"].append(taken)
        for name, processes in (("trl", None), ("trl, two processes", 2)):
            taken, theirs = trls(conversations, tokenizer, model, processes)
            seconds[name].append(taken)
            assert [(list(ids), list(labels)) for ids, labels in theirs] == tokens, (
                f"{name} gives different tokens"
            )
    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    return {f"{name}_rows_a_second": len(rows) / taken for name, taken in median.items()} | {
        "times_trl": median["trl"] / median["ours"],
        "times_trl_with_two_processes": median["trl, two processes"] / median["ours"],
    }


def main() -> None:
    from peft_space.settings import prepare_libraries

    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=ROWS)
    count = parser.parse_args().rows
    prepare_libraries()
    os.environ["PEFT_SPACE_MAX_FILE_MB"] = "5000"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PEFT_SPACE_HOME"] = f"{folder}/home"
        write_rows(Path(folder, "rows.jsonl"), count)
        result = whole_check(Path(folder, "rows.jsonl"))
        write_rows(Path(folder, "part.jsonl"), min(count, COMPARED))
        result |= compared(Path(folder, "part.jsonl"))
    print(json.dumps({key: round(value, 3) for key, value in result.items()}))


if __name__ == "__main__":
    main()
