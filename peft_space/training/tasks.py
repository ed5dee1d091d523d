"""For each task: what a row becomes in a batch. The trainer is transformers' own."""

from collections.abc import Sequence

import torch

from peft_space.data.render import MASKED, Example


class Examples(torch.utils.data.Dataset[Example]):
    """Rendered rows, as the trainer draws them."""

    def __init__(self, examples: Sequence[Example]):
        self.examples = [example for example in examples if example.num_trained]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


def collate(examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
    """A batch of B rows, padded on the right to the longest, T: `input_ids`, `attention_mask` and `labels`, each (B, T)."""
    longest = max(len(example.input_ids) for example in examples)

    def padded(rows: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([row + [value] * (longest - len(row)) for row in rows])

    return {
        "input_ids": padded([example.input_ids for example in examples], pad_token_id),
        "attention_mask": padded([[1] * len(example.input_ids) for example in examples], 0),
        "labels": padded([example.labels for example in examples], MASKED),
    }
