"""Models, rows and timed trainings that the speed benchmarks share.

Each training runs in a separate process and measures its times. `ours` is the process that the page
starts, from its start to its end. The others are scripts as a person writes them for the same rows.
They are a bare transformers Trainer, TRL's SFTTrainer with equal settings and with its defaults,
and a plain loop.
"""

import contextlib
import functools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Json = dict[str, Any]

SIZES = {
    "33M": {
        "hidden_size": 512,
        "intermediate_size": 1_408,
        "num_hidden_layers": 10,
        "num_attention_heads": 8,
    },
    "3.6M": {
        "hidden_size": 256,
        "intermediate_size": 640,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    },
}
"""Llamas with random weights and the built-in model's tokenizer: 33.2M and 3.5M parameters."""


def make_model(folder: Path, size: str) -> str:
    """Write a model of this size with random weights, and its tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from peft_space.demo import MODEL_DIR

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=1_024, tie_word_embeddings=True,
            num_key_value_heads=SIZES[size]["num_attention_heads"],
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        **SIZES[size],
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_rows(path: Path, count: int, messages: float, sigma: float = 0.0) -> str:
    """Write `count` rows of text, each made of messages of the sample data (44 tokens on average).

    The number of messages is lognormal, with the median `messages`.
    """
    from peft_space.demo import TRAIN_FILE

    lines = [json.loads(line) for line in TRAIN_FILE.read_text().splitlines()]
    texts = [f"{line['instruction']} {line['output']}" for line in lines]
    draw = random.Random(0)
    rows = [
        " ".join(draw.sample(texts, max(1, round(messages * draw.lognormvariate(0, sigma)))))
        for _ in range(count)
    ]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return str(path)


def recipe_of(settings: Json) -> Json:
    """The same settings as a recipe of the app."""
    return {
        "base_model": settings["model"],
        "quantization": "none",
        "lora_rank": settings["rank"],
        "lora_dropout": 0.0,
        "learning_rate": settings["rate"],
        "batch_size": settings["batch_size"],
        "max_length": settings["length"],
        "max_steps": settings["steps"],
        "eval_split": 0.0,
        "num_epochs": 1000,
    }


def make_run(folder: Path, settings: Json) -> str:
    """A run ready for training, created by the operation that the page uses."""
    from peft_space import operations

    return operations.make_run(str(folder), settings["rows"], recipe_of(settings))["run"]


# In the training's process


def _time_trainers() -> Json:
    """Patch Trainer to record the start of its first step, its training time and its losses."""
    from transformers import Trainer

    times: Json = {}
    train, training_step = Trainer.train, Trainer.training_step

    def timed_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "first_step_at" not in times:
            times["first_step_at"], times["start_cpu"] = time.time(), time.process_time()
        return training_step(self, *args, **kwargs)

    def timed_train(self: Any, *args: Any, **kwargs: Any) -> Any:
        began, cpu = time.perf_counter(), time.process_time()
        result = train(self, *args, **kwargs)
        times["loop_seconds"] = time.perf_counter() - began
        times["loop_cpu"] = time.process_time() - cpu
        times["losses"] = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        return result

    Trainer.train, Trainer.training_step = timed_train, timed_step
    return times


def _ours(settings: Json) -> Json:
    from peft_space.runtime import supervisor, train_process

    before: list[float] = []
    main_of_attempt = train_process.main

    def begun(run: Any, held: Any, options: list[str]) -> int:
        before.append(time.process_time())
        command = [
            sys.executable,
            "-W",
            "ignore",
            __file__,
            "attempt",
            str(run.directory),
            *options,
        ]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=held).wait()

    supervisor._attempt = begun
    train_process.main = lambda arguments: _timed_attempt(main_of_attempt, arguments)
    from peft_space.__main__ import main

    directory = Path(settings["run"])
    command = ["resume", str(directory)]
    if not (directory / "run.json").is_file():
        recipe = json.dumps(recipe_of(settings))
        command = ["train", settings["rows"], "--out", str(directory), "--recipe", recipe]
    with contextlib.redirect_stdout(sys.stderr):
        assert main(command) == 0
    plan = json.loads((directory / "plan.json").read_text())
    dtype = f"{plan['frozen_dtype']} weights" if plan["frozen_dtype"] else plan["compute_dtype"]
    times = json.loads((directory / "times.json").read_text()) | {
        "dtype": dtype,
        "threads": plan["threads"],
    }
    return times | {"start_cpu": times["start_cpu"] + before[0]}


def _timed_attempt(main: Any, arguments: list[str]) -> int:
    """Run the training process of the app and store its times in the run."""
    from peft_space.settings import prepare_libraries

    prepare_libraries()
    times = _time_trainers()
    status = main(arguments)
    (Path(arguments[0]) / "times.json").write_text(json.dumps(times))
    return status


def _adapted(settings: Json) -> tuple[Any, Any]:
    """(model with a new adapter, tokenizer), as in a script."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    torch.set_num_threads(settings["threads"])
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    set_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32),
        _lora(settings),
    )
    # after the adapter was added, whose initial weights would be rounded otherwise
    if settings["dtype"] == "bfloat16 weights":
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
    return model, tokenizer


def _lora(settings: Json) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=settings["rank"],
        lora_alpha=2 * settings["rank"],
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def _texts(settings: Json) -> list[str]:
    return [json.loads(line)["text"] for line in Path(settings["rows"]).read_text().splitlines()]


def _tokens(settings: Json, tokenizer: Any) -> list[Json]:
    encoded = tokenizer(_texts(settings), truncation=True, max_length=settings["length"])[
        "input_ids"
    ]
    return [{"input_ids": ids, "labels": ids} for ids in encoded]


def _equal(settings: Json) -> Json:
    """Arguments with which any Trainer takes the same steps as ours."""
    return {
        "output_dir": settings["out"], "max_steps": settings["steps"],
        "per_device_train_batch_size": settings["batch_size"],
        "learning_rate": settings["rate"], "warmup_steps": 0.05,
        "bf16": settings["dtype"] != "float32", "use_cpu": True, "seed": 0,
        "logging_steps": 1, "save_strategy": "steps", "save_steps": 100, "report_to": "none",
        "disable_tqdm": True,
    }  # fmt: skip


def _bare(settings: Json) -> Json:
    times = _time_trainers()
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    model, tokenizer = _adapted(settings)
    trainer = Trainer(
        model,
        TrainingArguments(**_equal(settings)),
        train_dataset=_tokens(settings, tokenizer),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
    with contextlib.redirect_stdout(sys.stderr):
        trainer.train()
        trainer.save_model()
    return times


def _sft(settings: Json) -> Json:
    times = _time_trainers()
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = _adapted(settings)
    arguments = SFTConfig(
        **_equal(settings),
        gradient_checkpointing=False,
        max_length=settings["length"],
        packing=False,
    )
    rows = Dataset.from_list(_tokens(settings, tokenizer))
    trainer = SFTTrainer(model, arguments, train_dataset=rows, processing_class=tokenizer)
    with contextlib.redirect_stdout(sys.stderr):
        trainer.train()
        trainer.save_model()
    return times


def _trl_defaults(settings: Json) -> Json:
    """TRL's defaults: only the required arguments and the size of the work."""
    times = _time_trainers()
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        settings["out"], max_steps=settings["steps"],
        per_device_train_batch_size=settings["batch_size"], max_length=settings["length"],
        logging_steps=1, report_to="none", use_cpu=True,
    )  # fmt: skip
    trainer = SFTTrainer(
        settings["model"],
        arguments,
        train_dataset=Dataset.from_dict({"text": _texts(settings)}),
        peft_config=_lora(settings),
    )
    with contextlib.redirect_stdout(sys.stderr):
        trainer.train()
    return times


def _by_hand(settings: Json) -> Json:
    """A plain loop over the same batches in the same order, with nothing but the training."""
    import torch
    from transformers import get_linear_schedule_with_warmup

    model, tokenizer = _adapted(settings)
    rows, steps = _tokens(settings, tokenizer), settings["steps"]
    parameters = [parameter for parameter in model.train().parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(parameters, settings["rate"], weight_decay=0.0, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, -(-steps // 20), steps)
    order, size, losses = (
        torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist(),
        settings["batch_size"],
        [],
    )
    computing = (
        functools.partial(torch.autocast, "cpu", torch.bfloat16)
        if settings["dtype"] != "float32"
        else contextlib.nullcontext
    )
    times: Json = {"first_step_at": time.time()}
    began, cpu = time.perf_counter(), time.process_time()
    for step in range(steps):
        ids = torch.tensor(
            [rows[place]["input_ids"] for place in order[step * size : (step + 1) * size]]
        )
        with computing():
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return times | {
        "loop_seconds": time.perf_counter() - began,
        "loop_cpu": time.process_time() - cpu,
        "losses": losses,
    }


def _llamafactory(settings: Json) -> Json:
    times = _time_trainers()
    from llamafactory.cli import main

    sys.argv = ["llamafactory-cli", "train", settings["config"]]
    with contextlib.redirect_stdout(sys.stderr):
        main()
    return times


ARMS = {
    "ours": _ours,
    "bare": _bare,
    "sft": _sft,
    "trl_defaults": _trl_defaults,
    "by_hand": _by_hand,
    "llamafactory": _llamafactory,
}


# In the benchmark's process


def time_training(
    arm: str,
    settings: Json,
    folder: Path,
    environment: Json | None = None,
    python: str = sys.executable,
) -> Json:
    """Run one arm in a fresh process.

    With a `run` in `settings`, `ours` goes from data to adapter; otherwise the run exists already.

    Returns:
        The arm's times, `start_seconds` until its first step, and `seconds` and `cpu` in all.
    """
    settings = settings | {"out": tempfile.mkdtemp(dir=folder)}
    shutil.rmtree(
        Path(os.environ["PEFT_SPACE_HOME"]) / "cache" / "speed", ignore_errors=True
    )  # each run measures its dtype
    if arm == "ours" and "run" not in settings:
        settings |= {"run": make_run(Path(settings["out"]) / "run", settings)}
    began = time.time()
    result = run_timed([python, "-W", "ignore", __file__, arm, json.dumps(settings)], environment)
    result |= json.loads(result.pop("output").strip().splitlines()[-1])
    return result | {"start_seconds": result.pop("first_step_at") - began}


def run_timed(command: list[str], environment: Json | None = None) -> Json:
    """Run a command to its end.

    Returns:
        `seconds`, `cpu` (user and system time of it and its children), and its `output`.
    """
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    variables.pop("THP_MEM_ALLOC_ENABLE", None)  # our arms set it themselves; others do not
    variables |= environment or {}
    before, began = os.times(), time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables
    ) as process:
        output, errors = process.communicate()
    after = os.times()
    if process.returncode:
        sys.exit(f"{' '.join(command[:6])} failed:\n{errors[-3000:]}")
    cpu = (
        after.children_user - before.children_user + after.children_system - before.children_system
    )
    return {"seconds": time.perf_counter() - began, "cpu": cpu, "output": output}


def medians(results: list[Json], names: tuple[str, ...]) -> Json:
    """The median of each figure over the repetitions."""
    return {name: round(statistics.median(result[name] for result in results), 3) for name in names}


def ratio(ours: list[Json], theirs: list[Json], name: str) -> float:
    """The median of ours / theirs, repetition by repetition."""
    return round(statistics.median(a[name] / b[name] for a, b in zip(ours, theirs, strict=True)), 3)


def loss_difference(ours: Json, theirs: Json) -> float:
    """The largest difference between the losses of any step."""
    return max(abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True))


@contextlib.contextmanager
def working_folder() -> Iterator[Path]:
    """A temporary folder for all files of a benchmark, including the app's home."""
    from peft_space.settings import prepare_libraries

    prepare_libraries()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        os.environ |= {"PEFT_SPACE_HOME": f"{folder}/home", "HF_HUB_OFFLINE": "1"}
        yield Path(folder)


def tell(result: Json) -> None:
    """Print one line of the result."""
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "attempt":
        from peft_space.runtime import train_process

        sys.exit(_timed_attempt(train_process.main, sys.argv[2:]))
    print(json.dumps(ARMS[sys.argv[1]](json.loads(sys.argv[2]))), flush=True)
