"""A fully trained run of the demo, and its adapter's answers, which engines must reproduce."""

import contextlib
import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel

from peft_space.data.dataset import load_run_data
from peft_space.data.tokenization.render import prompt_ids, stop_token_ids
from peft_space.models.loading import base_of, load_adapted, load_base_model
from peft_space.models.resolve import load_tokenizer
from peft_space.recipe import Recipe
from peft_space.runs.run import Run
from peft_space.training.prepare import make_run
from peft_space.training.train import train

NUM_TOKENS = 48


@functools.cache
def run_of(quantization):
    """Train the demo with the default recipe and this quantization."""
    directory = Path(tempfile.mkdtemp(prefix="engines-")) / "run"
    run = make_run(directory, "demo", Recipe(quantization=quantization))
    with run.lock():
        assert train(run).event == "Finished"
    return run


@dataclass(frozen=True)
class Answers:
    """The held-out prompts and an adapter's greedy answers, as text and as token ids."""

    conversations: list[list[dict[str, str]]]
    prompts: list[list[int]]
    stops: list[int]
    answers: list[list[int]]
    texts: list[str]


@functools.cache
def answers_of(quantization, base_dtype="float32"):
    """Return the adapter's answers, one prompt at a time, so without padding.

    Args:
        quantization: of the base in training.
        base_dtype: float32, or `own` for the base that the adapter was trained on.
    """
    run: Run = run_of(quantization)
    base, task_spec = base_of(run)
    tokenizer = load_tokenizer(base, run.recipe)
    if base_dtype == "own":
        model = load_adapted(run).model
    else:
        recipe = run.recipe.model_copy(update={"quantization": "none"})
        plain = load_base_model(base, recipe, "float32", task_spec, device="cpu")
        model = PeftModel.from_pretrained(plain, run.adapter).eval()
    conversations = [row.messages[:-1] for row in load_run_data(run).held_out]
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
    return Answers(conversations, prompts, stops, answers, texts)


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
