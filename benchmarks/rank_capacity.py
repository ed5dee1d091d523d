"""The capacity rule where it can fail: labels drawn at random, more than an adapter can learn by heart, and how many bits of them it holds.

The rule (`advice.needed_rank`) says 2 bits a trained parameter. Tiny Llamas of four widths, adapters of four ranks on all their linear layers; rows
of random tokens whose last one is to be followed by one of 16 at random, 4 bits, three times as many as the rule says there is room for. Bits
learnt are those that the loss has fallen below chance, over all rows. The bases have learnt other such rows before, in full: weights as they are
drawn are too small for an adapter to do anything with. `python -m benchmarks.capacity` prints one JSON line a cell.
"""

import json
import math
import time
from typing import Any

WIDTHS, RANKS = (8, 12, 16, 24), (1, 2, 4, 8)
NUM_LABELS, LENGTH, VOCABULARY = 16, 6, 64
OVERLOAD = 3
BATCH, MOST_EPOCHS, PATIENCE = 128, 300, 40
"""Training ends when the bits learnt have not grown by a hundredth for so many epochs."""
BASE_ROWS, BASE_EPOCHS = 2000, 150


def main() -> None:
    cells = []
    for width in WIDTHS:
        weights = _base(width)
        cells += [measure(width, rank, weights) for rank in RANKS]
    within = sum(0.5 <= cell["held_over_predicted"] <= 2 for cell in cells)
    print(json.dumps({"within_a_factor_of_two": within, "of": len(cells)}))


def measure(width: int, rank: int, weights: dict) -> dict:
    """Bits that an adapter of `rank` on a model of `width` learns by heart, over those that the rule says."""
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
    held, epochs = _learn(model, num_rows, MOST_EPOCHS, 5e-3, seed=1)
    told = {
        "width": width,
        "rank": rank,
        "trained_parameters": num_trained,
        "rows": num_rows,
        "predicted_bits": predicted,
    }
    told |= {
        "held_bits": round(held),
        "held_over_predicted": round(held / predicted, 3),
        "bits_a_parameter": round(held / num_trained, 2),
    }
    told |= {"epochs": epochs, "seconds": round(time.perf_counter() - began, 1)}
    print(json.dumps(told), flush=True)
    return told


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
    """Weights of a model that has learnt other rows, all of it trained."""
    model = _model(width)
    held, _ = _learn(model, BASE_ROWS, BASE_EPOCHS, 3e-3, seed=2)
    print(json.dumps({"width": width, "base_bits_a_row": round(held / BASE_ROWS, 2)}), flush=True)
    return model.state_dict()


def _learn(
    model: Any, num_rows: int, most_epochs: int, rate: float, seed: int
) -> tuple[float, int]:
    """(bits learnt by heart, epochs that it took): the loss that is left counts against them, over an epoch in which the rows are still learnt."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    rows = torch.randint(VOCABULARY, (num_rows, LENGTH), generator=draw)
    labels = torch.randint(NUM_LABELS, (num_rows,), generator=draw)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, most_epochs)
    best, since = -math.inf, 0  # a base that is sure of other rows begins far below chance
    for epoch in range(1, most_epochs + 1):
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
        if since >= PATIENCE and epoch > most_epochs / 3:
            break
    return max(best, 0.0), epoch


if __name__ == "__main__":
    main()
