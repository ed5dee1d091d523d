"""Tests the capacity rule where it can fail: random labels, more than an adapter can memorize.

The rule (`needed_rank` in `recommend/rules.py`) says 2 bits per trained parameter. The benchmark
trains tiny Llamas of four widths, with adapters of four ranks on all linear layers. Each row has
random tokens and one of 16 random labels, which is 4 bits. There are three times as many rows as
the rule has room for. The bits learned are the decrease of the loss below chance, over all rows.
The bases have learned other such rows in full before: an adapter can do nothing with untrained
weights.

`python -m benchmarks.rank_capacity` prints one JSON line per cell.
"""

import json
import math
import time
from typing import Any

WIDTHS, RANKS = (8, 12, 16, 24), (1, 2, 4, 8)
NUM_LABELS, LENGTH, VOCABULARY = 16, 6, 64
OVERLOAD = 3
BATCH, MAX_EPOCHS, PATIENCE = 128, 300, 40
"""PATIENCE: training ends after this many epochs without a growth of 1 % of the bits."""
BASE_ROWS, BASE_EPOCHS = 2000, 150


def main() -> None:
    cells = []
    for width in WIDTHS:
        weights = _base(width)
        cells += [measure(width, rank, weights) for rank in RANKS]
    within = sum(0.5 <= cell["held_over_predicted"] <= 2 for cell in cells)
    print(json.dumps({"within_a_factor_of_two": within, "of": len(cells)}))


def measure(width: int, rank: int, weights: dict) -> dict:
    """Bits that an adapter of `rank` on a model of `width` memorizes, relative to the rule."""
    from peft import LoraConfig, get_peft_model

    from peft_space.recommend.rules import _BITS_PER_PARAMETER

    model = _model(width)
    model.load_state_dict(weights)
    model = get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    )
    num_trained = sum(
        parameter.numel() for parameter in model.parameters() if parameter.requires_grad
    )
    predicted = _BITS_PER_PARAMETER * num_trained
    num_rows = round(OVERLOAD * predicted / math.log2(NUM_LABELS))
    began = time.perf_counter()
    held, epochs = _learn(model, num_rows, MAX_EPOCHS, 5e-3, seed=1)
    result = {
        "width": width,
        "rank": rank,
        "trained_parameters": num_trained,
        "rows": num_rows,
        "predicted_bits": predicted,
    }
    result |= {
        "held_bits": round(held),
        "held_over_predicted": round(held / predicted, 3),
        "bits_a_parameter": round(held / num_trained, 2),
    }
    result |= {"epochs": epochs, "seconds": round(time.perf_counter() - began, 1)}
    print(json.dumps(result), flush=True)
    return result


def _model(width: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_num_threads(1)
    shape = {
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=False, **shape))


def _base(width: int) -> dict:
    """Weights of a model that has learned other rows with all its parameters."""
    model = _model(width)
    held, _ = _learn(model, BASE_ROWS, BASE_EPOCHS, 3e-3, seed=2)
    print(json.dumps({"width": width, "base_bits_a_row": round(held / BASE_ROWS, 2)}), flush=True)
    return model.state_dict()


def _learn(model: Any, num_rows: int, max_epochs: int, rate: float, seed: int) -> tuple[float, int]:
    """(bits memorized, epochs used).

    The remaining loss counts against the bits, over an epoch in which training continues.
    """
    import torch

    draw = torch.Generator().manual_seed(seed)
    rows = torch.randint(VOCABULARY, (num_rows, LENGTH), generator=draw)
    labels = torch.randint(NUM_LABELS, (num_rows,), generator=draw)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, max_epochs)
    best, since = -math.inf, 0  # a base that is certain of other rows begins far below chance
    for epoch in range(1, max_epochs + 1):
        nats = 0.0
        for places in torch.randperm(num_rows, generator=draw).split(BATCH):
            logits = model(input_ids=rows[places]).logits[:, -1]
            loss = torch.nn.functional.cross_entropy(logits, labels[places])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            nats += loss.item() * len(places)
        schedule.step()
        bits = num_rows * math.log2(NUM_LABELS) - nats / math.log(2)
        best, since = (
            (bits, 0) if bits > best + 0.01 * abs(best) + 1 else (max(bits, best), since + 1)
        )
        if since >= PATIENCE and epoch > max_epochs / 3:
            break
    return max(best, 0.0), epoch


if __name__ == "__main__":
    main()
