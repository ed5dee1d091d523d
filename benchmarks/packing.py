"""Compares rows laid end to end with rows ordered by length, on lognormal lengths.

`python -m benchmarks.packing [REPETITIONS]`. The demo model trains 96 rows of random tokens in
batches of 8 on one thread. Both arms compute the same losses; their steps take turns, and the
script compares CPU time.
"""

import statistics
import sys
import time
from typing import Any

import numpy as np

from benchmarks.harness import Json, tell, working_folder

ROWS, BATCH_SIZE, MEDIAN, SIGMA, LONGEST = 96, 8, 100, 0.9, 512


def examples_of(lengths: np.ndarray, vocabulary: int) -> list[Any]:
    """Rows of random tokens, all of which have a label but the first."""
    from peft_space.data.arrow_store import TokenizedExample

    draw = np.random.default_rng(1)
    return [
        TokenizedExample(row, draw.integers(5, vocabulary, length).tolist(), [(1, int(length))])
        for row, length in enumerate(lengths)
    ]


def run_epoch(model: Any, batches: list[Any], collate: Any) -> tuple[float, float]:
    """(CPU seconds, sum of the losses) of the forward and backward passes over all batches."""
    seconds, losses = 0.0, 0.0
    for rows in batches:
        batch = collate(rows)
        began = time.process_time()
        loss = model(**batch, num_items_in_batch=1).loss
        loss.backward()
        seconds += time.process_time() - began
        losses += loss.item()
        model.zero_grad()
    return seconds, losses


def main() -> None:
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with working_folder():
        import functools

        import torch

        from peft_space.data.batches import collate, collate_packed
        from peft_space.models.label_scorer import own_forward, score_labels_only
        from peft_space.models.loading import load_base_model, new_adapter
        from peft_space.models.packing import pack_rows
        from peft_space.models.resolve import find_base
        from peft_space.recipe import Recipe
        from peft_space.training.trainers import ByLength

        torch.set_num_threads(1)
        base, recipe = find_base("demo"), Recipe(quantization="none", lora_dropout=0.0)
        draw = np.random.default_rng(0)
        lengths = draw.lognormal(np.log(MEDIAN), SIGMA, ROWS).astype(int).clip(8, LONGEST)
        model: Any = new_adapter(load_base_model(base, recipe, "float32"), recipe, base).train()
        own_attention = model.get_base_model().config._attn_implementation
        examples = examples_of(lengths, model.config.vocab_size)
        orders = {
            "by_length": list(ByLength(lengths, BATCH_SIZE, 0)),
            "packed": draw.permutation(ROWS).tolist(),
            "shuffled": draw.permutation(ROWS).tolist(),
        }
        pad = functools.partial(collate, pad_token_id=0)
        results: dict[str, list[tuple[float, float]]] = {arm: [] for arm in orders}
        for _ in range(repetitions):
            for arm, order in orders.items():
                own_forward(model)
                score_labels_only(model)
                model.get_base_model().set_attn_implementation(own_attention)
                if arm == "packed":
                    pack_rows(model)
                batches = [
                    [examples[place] for place in order[start : start + BATCH_SIZE]]
                    for start in range(0, ROWS, BATCH_SIZE)
                ]
                results[arm].append(
                    run_epoch(model, batches, collate_packed if arm == "packed" else pad)
                )
        tell(_summary(results, int(lengths.sum())))


def _summary(results: dict[str, list[tuple[float, float]]], tokens: int) -> Json:
    losses = [loss for lines in results.values() for _, loss in lines]
    summary: Json = {
        f"{arm}_tokens_a_second": round(tokens / statistics.median(s for s, _ in lines))
        for arm, lines in results.items()
    }
    for other in ("by_length", "shuffled"):
        pairs = zip(results[other], results["packed"], strict=True)
        ratios = sorted(theirs[0] / ours[0] for theirs, ours in pairs)
        summary[f"times_{other}"] = (
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )
    summary["loss_difference"] = f"{(max(losses) - min(losses)) / min(losses):.1e}"
    return summary


if __name__ == "__main__":
    main()
