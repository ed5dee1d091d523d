"""Fully trained runs, and their adapters' answers, which engines must reproduce."""

import contextlib
import functools
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_space.data.dataset import load_run_data
from peft_space.data.tokenization.render import prompt_ids, stop_token_ids
from peft_space.models.loading import base_of, load_adapted, load_base_model
from peft_space.models.resolve import load_tokenizer
from peft_space.recipe import Recipe
from peft_space.runs.run import Run
from peft_space.training.prepare import make_run
from peft_space.training.train import train
from tests.fixtures import gguf_models

NUM_TOKENS = 48
FAMILIES = ("Llama 2", "Qwen 3", "Gemma 3")
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana")
_THINGS = ("a lamp", "red tea", "two cats", "a kettle", "blue ink", "warm rice", "ten keys", "fog")


def _rows(things):
    """Few and short rows, so that a small model learns them by heart."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"What has {name}?"},
                {"role": "assistant", "content": f"{name} has {thing}."},
            ]
        }
        for name, thing in zip(NAMES, things, strict=True)
    ]


ROWS = _rows(_THINGS)


@functools.cache
def run_of(quantization):
    """Train the demo with the default recipe and this quantization."""
    directory = Path(tempfile.mkdtemp(prefix="engines-")) / "run"
    run = make_run(directory, "demo", Recipe(quantization=quantization))
    with run.lock():
        assert train(run).event == "Finished"
    return run


@functools.cache
def run_of_family(name):
    """Train a small random model of a family (see `fixtures.gguf_models`) on `ROWS`."""
    directory = Path(tempfile.mkdtemp(prefix="engines-"))
    # llama.cpp's formats of 4 and 5 bits take 256 weights at a time
    sizes = {"hidden_size": 256, "intermediate_size": 512, "initializer_range": 0.02}
    base = gguf_models.model(directory / "base", name, **sizes)
    _teach(base, _rows(reversed(_THINGS)))
    data = directory / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    recipe = Recipe(
        base_model=str(base),
        quantization="none",
        max_steps=150,
        batch_size=8,
        learning_rate=2e-3,
        eval_split=0,
    )
    run = make_run(directory / "run", str(data), recipe)
    with run.lock():
        assert train(run).event == "Finished"
    return run


def _teach(folder, rows):
    """Train all weights of a saved model, so that an adapter has something to change."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    encoded = [
        tokenizer.apply_chat_template(row["messages"], return_tensors="pt", return_dict=True)
        for row in rows
    ]
    for _ in range(40):
        for batch in encoded:
            model(**batch, labels=batch["input_ids"]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(folder)


@dataclass(frozen=True)
class Answers:
    """The prompts and an adapter's greedy answers, as text and as token ids."""

    conversations: list[list[dict[str, str]]]
    prompts: list[list[int]]
    stops: list[int]
    answers: list[list[int]]
    texts: list[str]
    tokenizer: Any


@functools.cache
def answers_of(quantization, base_dtype="float32"):
    """Return the adapter's answers, one prompt at a time, so without padding.

    Args:
        quantization: of the base in training.
        base_dtype: float32, or `own` for the base that the adapter was trained on.
    """
    run = run_of(quantization)
    rows = load_run_data(run).held_out
    return _answers(run, [row.messages[:-1] for row in rows], base_dtype)


@functools.cache
def answers_of_family(name):
    """Return the answers to the questions of `ROWS` by the adapter of `run_of_family`."""
    return _answers(run_of_family(name), [row["messages"][:-1] for row in ROWS], "float32")


def _answers(run: Run, conversations, base_dtype):
    base, task_spec = base_of(run)
    tokenizer = load_tokenizer(base, run.recipe)
    if base_dtype == "own":
        model = load_adapted(run).model
    else:
        recipe = run.recipe.model_copy(update={"quantization": "none"})
        plain = load_base_model(base, recipe, "float32", task_spec, device="cpu")
        model = PeftModel.from_pretrained(plain, run.adapter).eval()
    prompts = [prompt_ids(tokenizer, messages) for messages in conversations]
    stops, answers = stop_token_ids(tokenizer), []
    options = {"max_new_tokens": NUM_TOKENS, "do_sample": False, "eos_token_id": stops}
    for prompt in prompts:
        ids = torch.tensor([prompt])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.inference_mode():
            output = model.generate(**inputs, **options, pad_token_id=tokenizer.pad_token_id)
        answers.append(output[0, len(prompt) :].tolist())
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
    return Answers(conversations, prompts, stops, answers, texts, tokenizer)


def agreement(ours, theirs):
    """Return the number of equal answers, and the share of tokens before the first difference."""
    pairs = list(zip(ours, theirs, strict=True))
    same = sum(one == other for one, other in pairs)
    return same, sum(_common_prefix(*pair) for pair in pairs) / sum(map(len, ours))


def _common_prefix(one, other):
    for number, pair in enumerate(zip(one, other, strict=False)):
        if pair[0] != pair[1]:
            return number
    return min(len(one), len(other))


@contextlib.contextmanager
def folder():
    """Yield a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="engines-") as path:
        yield Path(path)
