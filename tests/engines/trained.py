"""A run of the demo, trained in full, and what its adapter answers to the held-out prompts: what every engine is held against."""

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
    """A run of the demo with the sample data and the default recipe, but for what the base is held in."""
    run = make_run(
        Path(tempfile.mkdtemp(prefix="engines-")) / "run", "demo", Recipe(quantization=quantization)
    )
    with run.lock():
        assert train(run).event == "Finished"
    return run


@dataclass(frozen=True)
class Answers:
    """The held-out prompts, and the greedy answers of a run's adapter, as messages and as token ids."""

    conversations: list[list[dict[str, str]]]
    prompts: list[list[int]]
    stops: list[int]
    answers: list[list[int]]
    texts: list[str]


@functools.cache
def answers_of(quantization, held="float32"):
    """By the adapter on the base in float32, or (`own`) on the base as it was trained on. One prompt after the other: nothing is padded."""
    run: Run = run_of(quantization)
    base, goal = base_of(run)
    tokenizer = load_tokenizer(base, run.recipe.chat_template)
    if held == "own":
        model = load_adapted(run).model
    else:
        plain = load_base_model(
            base,
            run.recipe.model_copy(update={"quantization": "none"}),
            "float32",
            goal,
            device="cpu",
        )
        model = PeftModel.from_pretrained(plain, run.adapter).eval()
    conversations = [row.messages[:-1] for row in load_run_data(run).held_out]
    prompts, stops = (
        [prompt_ids(tokenizer, messages) for messages in conversations],
        stop_token_ids(tokenizer),
    )
    with torch.inference_mode():
        answers = [
            model.generate(
                input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=NUM_TOKENS,
                do_sample=False, eos_token_id=stops, pad_token_id=tokenizer.pad_token_id,
            )[0, len(prompt) :].tolist()
            for prompt in prompts
        ]  # fmt: skip
    return Answers(
        conversations,
        prompts,
        stops,
        answers,
        [tokenizer.decode(ids, skip_special_tokens=True) for ids in answers],
    )


def agreement(ours, theirs):
    """How many answers are the same, and the share of tokens before the first that differs, in words."""
    same = sum(one == other for one, other in zip(ours, theirs, strict=True))
    alike = sum(_alike(one, other) for one, other in zip(ours, theirs, strict=True)) / sum(
        map(len, ours)
    )
    return same, alike


def _alike(one, other):
    for number, pair in enumerate(zip(one, other, strict=False)):
        if pair[0] != pair[1]:
            return number
    return min(len(one), len(other))


@contextlib.contextmanager
def folder():
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="engines-") as path:
        yield Path(path)
