"""For each task: what a row becomes in a batch. The trainer is transformers' own."""

from collections.abc import Sequence

import numpy as np
import torch

from peft_space.data.render import MASKED, Example
from peft_space.data.store import Tokens


class Examples(torch.utils.data.Dataset[Example]):
    """Rendered rows that have something to learn in them, as the trainer draws them from the disk."""

    def __init__(self, tokens: Tokens):
        self.tokens = tokens.at(tokens.index[tokens.column("num_trained") > 0])

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Example:
        return self.tokens[index]

    def of_median_length(self) -> Example:
        """A row that is neither short nor long."""
        lengths = self.tokens.column("length")
        return self.tokens[int(np.argsort(lengths, kind="stable")[len(lengths) // 2])]


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
