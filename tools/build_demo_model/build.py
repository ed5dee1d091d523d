"""Builds the demo base model and the rows of the demo task.

`PYTHONPATH=tools python -m build_demo_model.build [--minutes N] [--out DIR] [--data-only]` writes
the text, trains the tokenizer and the model, and measures it. The same seed gives the same text,
rows and tokenizer; the model also depends on the steps that the machine takes in N minutes.
`corpus.py` decides the content of the text.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from build_demo_model import corpus
from build_demo_model.induction import plant_copying

SEED = 20261122
PROBE_SEED = SEED + 1
TICKET_SEED = SEED + 2
NUM_TRAIN, NUM_HELD_OUT = 300, 60

VOCAB_SIZE = 2048
CONTEXT = 512
TOKENS_PER_BATCH = 3072
MAX_PACKED_TOKENS = 320
PROMPT_WEIGHT = 0.1
"""Weight of the user's random words, so that the answers get more of the gradient."""
MUON_RATE, ADAMW_RATE = 0.02, 1e-3
WARMUP_STEPS, DECAY_SHARE = 60, 0.35

PAD, END, SYSTEM, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
ROLE_TOKENS = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}

# A turn is its role's token, a space and the text, so its first word has the token that it has in
# the middle of a sentence.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('This model knows the roles system, user and assistant, not ' \
+ message['role']) -}}
{%- endif -%}
{{- '<|' + message['role'] + '|>' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}
{{- ' ' + message['content'] | trim + '<|end|>' -}}
{%- endgeneration -%}
{%- else -%}
{{- ' ' + message['content'] | trim + '<|end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""

Encoded = tuple[list[int], list[float]]
"""Token ids and, for each, the weight of its loss."""


# ---------------------------------------------------------------- text and tokens


def turn_text(turn: corpus.Turn) -> str:
    role, text = turn
    if role in ROLE_TOKENS:
        return f"{ROLE_TOKENS[role]} {text}{END}"
    return text + END if role == "text" else text


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with single digits on the first 30,000 documents.

    llama.cpp calls this pre-tokenizer `smollm`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, END, SYSTEM, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = (
        "".join(turn_text(turn) for turn in document)
        for document in islice(corpus.documents(SEED), 30_000)
    )
    tokenizer.train_from_iterator(text, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[corpus.Document]) -> list[Encoded]:
    """Tokens of each document, with one call for all turns, which is faster."""
    turns = [(i, turn) for i, document in enumerate(documents) for turn in document]
    ids = tokenizer([turn_text(turn) for _, turn in turns], add_special_tokens=False)["input_ids"]
    encoded: list[Encoded] = [([], []) for _ in documents]
    for (i, (role, _)), turn_ids in zip(turns, ids, strict=True):
        encoded[i][0].extend(turn_ids)
        encoded[i][1].extend(
            [1.0 if role in ("assistant", "text") else PROMPT_WEIGHT] * len(turn_ids)
        )
    return encoded


def packed(rng: Random, encoded: list[Encoded]) -> list[Encoded]:
    """Join some documents so that later positions are trained too; most stay single."""
    rows: list[Encoded] = []
    follow = False
    for ids, weights in encoded:
        if follow and len(rows[-1][0]) + len(ids) <= MAX_PACKED_TOKENS:
            rows[-1] = (rows[-1][0] + ids, rows[-1][1] + weights)
        else:
            rows.append((ids[:CONTEXT], weights[:CONTEXT]))
        follow = rng.random() < 0.25
    return rows


def batches(
    tokenizer: PreTrainedTokenizerFast, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(ids, loss weights) of rows of similar length, about TOKENS_PER_BATCH each, endlessly."""
    rng, stream = Random(seed), corpus.documents(seed)
    pad = tokenizer.pad_token_id
    while True:
        rows = sorted(
            packed(rng, encode(tokenizer, list(islice(stream, 4000)))), key=lambda row: len(row[0])
        )
        groups = []
        while rows:
            width = -(-len(rows[-1][0]) // 16) * 16
            group, rows = (
                rows[-max(1, TOKENS_PER_BATCH // width) :],
                rows[: -max(1, TOKENS_PER_BATCH // width)],
            )
            groups.append((
                torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in group]),
                torch.tensor([weights + [0.0] * (width - len(weights)) for _, weights in group]),
            ))  # fmt: skip
        rng.shuffle(groups)
        yield from groups


# ---------------------------------------------------------------- the model


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    plant_copying(model)
    return model


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for embeddings and norms; faster than AdamW alone in a trial."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.0, momentum=0.95),
        torch.optim.AdamW(rest, lr=ADAMW_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate_factor(step: int, progress: float) -> float:
    """Warm up, hold, then decay linearly to zero over the last DECAY_SHARE of the time."""
    return min(1.0, (step + 1) / WARMUP_STEPS, (1 - progress) / DECAY_SHARE)


def loss_function(model: LlamaForCausalLM) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """(ids, weights) -> weighted mean loss, compiled, in bfloat16 arithmetic.

    That gave 5,300 instead of 3,200 tokens per second on two Zen 4 cores.
    """

    def loss(ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits
        each = cross_entropy(
            logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
        flat = weights[:, 1:].flatten()
        return (each * flat).sum() / flat.sum()

    return torch.compile(loss, dynamic=True)


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    minutes: float,
    save: Callable[[LlamaForCausalLM], None],
) -> dict:
    """Train for the given wall-clock time, with `save` called every ten minutes.

    Returns:
        The measured figures.
    """
    loss_of, steppers = loss_function(model), optimizers(model)
    base_rates = [stepper.param_groups[0]["lr"] for stepper in steppers]
    began, saved, tokens, recent = time.time(), time.time(), 0, []
    for step, (ids, weights) in enumerate(batches(tokenizer, SEED)):
        progress = (time.time() - began) / (60 * minutes)
        if progress >= 1:
            break
        for stepper, rate in zip(steppers, base_rates, strict=True):
            stepper.param_groups[0]["lr"] = rate * rate_factor(step, progress)
        loss = loss_of(ids, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
        model.zero_grad()
        tokens += int((weights > 0).sum())
        recent = [*recent[-99:], loss.item()]
        if step % 50 == 0:
            print(
                f"step {step} minute {progress * minutes:.1f} tokens {tokens} loss "
                f"{sum(recent) / len(recent):.3f}",
                flush=True,
            )
        if time.time() - saved > 600:
            save(model)
            saved = time.time()
    measured = {
        "parameters": model.num_parameters(),
        "steps": step,
        "tokens": tokens,
        "minutes": round((time.time() - began) / 60, 1),
    }
    return measured | {"final_loss": round(sum(recent) / len(recent), 3)}


# ---------------------------------------------------------------- probes

PROBES: dict[str, Callable[[Random], corpus.Document]] = {
    "take from or repeat a list": corpus.list_document,
    "fill in a form never seen": corpus.described_record,
    "change one word of a sentence": corpus.change_document,
    "read a record": corpus.record_to_words,
}
"""Documents whose last answer follows from the prompt alone, nearly always."""


@torch.no_grad()
def probe(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    write: Callable[[Random], corpus.Document],
    count: int = 200,
) -> float:
    """Share of new documents whose last answer greedy decoding gives word for word."""
    rng, hits = Random(PROBE_SEED), 0
    for _ in range(count):
        *prompt, answer = write(rng)
        prompt_ids = tokenizer("".join(map(turn_text, prompt)) + ASSISTANT)["input_ids"]
        answer_ids = tokenizer(turn_text(answer))["input_ids"][1:]
        # One pass with the right answer is enough: greedy decoding gives it if every argmax agrees.
        logits = model(input_ids=torch.tensor([prompt_ids + answer_ids])).logits[0]
        guessed = logits[len(prompt_ids) - 1 : -1].argmax(-1).tolist()
        hits += guessed == answer_ids
    return hits / count


# ---------------------------------------------------------------- files


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )


def write_data(folder: Path) -> None:
    """Write the rows of the demo task."""
    folder.mkdir(parents=True, exist_ok=True)
    train_rows, held_out_rows = corpus.ticket_rows(TICKET_SEED, NUM_TRAIN, NUM_HELD_OUT)
    write_rows(folder / "train.jsonl", train_rows)
    write_rows(folder / "held_out.jsonl", held_out_rows)
    (folder / "README.md").write_text(DATA_CARD, encoding="utf-8")


def write_model(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write float16 weights (half the size), tokenizer, template and generation settings."""
    folder.mkdir(parents=True, exist_ok=True)
    half = LlamaForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half.half()
    half.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=128,
    )
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    # The name that transformers 4 and serving engines know too.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "model.safetensors").chmod(0o644)


DATA_CARD = f"""\
# Support tickets

A customer's message to the shop of {corpus.TOWN} (`instruction`) and the four-line ticket that
the shop files (`output`). {NUM_TRAIN} rows to train on (`train.jsonl`), {NUM_HELD_OUT} held out
(`held_out.jsonl`); no customer and no color-object pair is in both. The prompt does not describe
the ticket: only fine-tuning teaches its form. Written by `tools/build_demo_model/corpus.py`,
license Apache-2.0.
"""

MODEL_CARD = """\
---
license: apache-2.0
language:
- en
library_name: transformers
pipeline_tag: text-generation
tags:
- tiny
- synthetic
- demo
---

# Pebbleford, a tiny base model

A Llama of {parameters:,} parameters with which everything in peft_space works offline on a CPU:
loading, 4-bit fine-tuning, comparing, exporting. It is not useful for anything else. It writes
simple English about an invented town, answers questions about a short text in the prompt, chats
through its template as a friendly shop, and copies names and things from its prompt.

## How it was trained

`tools/build_demo_model/corpus.py` generated the text from seed {seed} during the training;
byte-level BPE of {vocab} tokens. The initial weights are random except for three attention heads
of the first two layers, into which `induction.py` writes a circuit that copies. Muon for the
matrices and AdamW for the rest, bfloat16 arithmetic, constant learning rates that decay to zero
at the end. Two shared cores of an AMD EPYC (Zen 4) virtual machine: {minutes} minutes, {steps:,}
steps, {tokens:,} tokens, final training loss {final_loss} (the user's words weighted by
{prompt_weight}). To build it again: `PYTHONPATH=tools python -m build_demo_model.build`.

## What it can do

Share of 200 new prompts that greedy decoding answers word for word:

| Probe | Right |
|---|---|
{probes}

It knows nothing outside its town, answers other questions at random, and has seen no text written
by people.
"""


def write_card(folder: Path, measured: dict, probes: dict[str, float]) -> None:
    table = "\n".join(f"| {name} | {share:.0%} |" for name, share in probes.items())
    card = MODEL_CARD.format(
        **measured, probes=table, seed=SEED, vocab=VOCAB_SIZE, prompt_weight=PROMPT_WEIGHT
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15, help="wall-clock time to train")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parents[2] / "peft_space" / "demo",
        help="folder that gets model/ and data/",
    )
    parser.add_argument("--data-only", action="store_true", help="write data/ and stop")
    options = parser.parse_args()
    write_data(options.out / "data")
    if options.data_only:
        return
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    tokenizer = train_tokenizer()
    folder = options.out / "model"
    model = new_model(tokenizer)
    measured = train(
        model, tokenizer, options.minutes, lambda model: write_model(folder, model, tokenizer)
    )
    write_model(folder, model, tokenizer)
    model.eval()
    probes = {name: probe(model, tokenizer, write) for name, write in PROBES.items()}
    write_card(folder, measured, probes)
    print(json.dumps(measured | {"probes": probes}))


if __name__ == "__main__":
    main()
