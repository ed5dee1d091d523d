"""Batches: what the rows of each task become when they are padded together, and the dataset that trainers draw them from."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch

from peft_space.data.arrow_store import Tokens
from peft_space.data.tokenization.example import MASKED, TokenizedExample
from peft_space.recipe import TaskSpec

Batch = dict[str, torch.Tensor]


class Examples(torch.utils.data.Dataset[TokenizedExample]):
    """Rendered rows that have something to learn in them, as the trainer draws them from the disk."""

    def __init__(self, tokens: Tokens, shuffled_by: int | None = None):
        """`shuffled_by` is a seed for who takes rows in the order in which they are given."""
        index = tokens.index[tokens.column("num_trained") > 0]
        self.tokens = tokens.at(
            index if shuffled_by is None else np.random.default_rng(shuffled_by).permutation(index)
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> TokenizedExample:
        return self.tokens[index]

    def lengths(self, max_length: int) -> np.ndarray:
        """Tokens of each row, cut off at the limit."""
        return np.minimum(self.tokens.column("length"), max_length)

    def of_median_length(self) -> TokenizedExample:
        """A row that is neither short nor long."""
        lengths = self.tokens.column("length")
        return self.tokens[int(np.argsort(lengths, kind="stable")[len(lengths) // 2])]


def collate(examples: Sequence[TokenizedExample], pad_token_id: int) -> Batch:
    """Of texts to go on with: `input_ids`, `attention_mask` and `labels`, each (B, T)."""
    return _sequences([example.input_ids for example in examples], pad_token_id) | {
        "labels": _padded([example.labels for example in examples], MASKED)
    }


def collate_labelled(
    examples: Sequence[TokenizedExample], pad_token_id: int, labels: Sequence[str]
) -> Batch:
    """Of labelled texts: `input_ids` and `attention_mask` (B, T), `labels` (B,) as places in `labels`; of two texts also `token_type_ids`."""
    return _sequences([example.input_ids for example in examples], pad_token_id) | _types(examples) | {
        "labels": torch.tensor([labels.index(str(example.label)) for example in examples])
    }  # fmt: skip


def collate_tagged(
    examples: Sequence[TokenizedExample], pad_token_id: int, labels: Sequence[str]
) -> Batch:
    """Of tagged tokens: as `collate`, `labels` being places in `labels`, where a token has a tag."""
    tags = [[labels.index(tag) if tag else MASKED for tag in example.tags] for example in examples]
    return _sequences([example.input_ids for example in examples], pad_token_id) | {
        "labels": _padded(tags, MASKED)
    }


def collate_pairs(examples: Sequence[TokenizedExample], pad_token_id: int) -> Batch:
    """Of sources and targets: `input_ids` and `attention_mask` (B, T) of the sources, `labels` (B, U) of the targets."""
    targets = [example.target.labels for example in examples if example.target]
    return _sequences([example.input_ids for example in examples], pad_token_id) | {
        "labels": _padded(targets, MASKED)
    }


def collate_preferences(examples: Sequence[TokenizedExample], pad_token_id: int) -> Batch:
    """Of preferences: first all preferred answers, then all rejected: `input_ids`, `attention_mask` and `completion_mask`, each (2 B, T)."""
    both = [*examples, *(example.rejected for example in examples if example.rejected)]
    return _with_completions(both, pad_token_id)


def collate_rated(examples: Sequence[TokenizedExample], pad_token_id: int) -> Batch:
    """Of rated answers: `input_ids`, `attention_mask` and `completion_mask` (B, T), `label` (B,), and the same with `KL_` before their names.

    KTO estimates how far the model has moved by giving each prompt the answer of the row before (arXiv 2402.01306, section 4.2).
    """
    others = [*examples[-1:], *examples[:-1]]
    mismatched = [
        _with_answer_of(example, other) for example, other in zip(examples, others, strict=True)
    ]
    moved = {
        f"KL_{name}": value for name, value in _with_completions(mismatched, pad_token_id).items()
    }
    return (
        _with_completions(examples, pad_token_id)
        | moved
        | {"label": torch.tensor([bool(example.good) for example in examples])}
    )


def _with_answer_of(example: TokenizedExample, other: TokenizedExample) -> TokenizedExample:
    prompt, answer = (
        example.input_ids[: example.trained[0][0]],
        other.input_ids[other.trained[0][0] : other.trained[-1][1]],
    )
    return TokenizedExample(
        example.row, [*prompt, *answer], [(len(prompt), len(prompt) + len(answer))]
    )


def _with_completions(examples: Sequence[TokenizedExample], pad_token_id: int) -> Batch:
    trained = [[int(label != MASKED) for label in example.labels] for example in examples]
    return _sequences([example.input_ids for example in examples], pad_token_id) | {
        "completion_mask": _padded(trained, 0)
    }


def _sequences(rows: Sequence[list[int]], pad_token_id: int) -> Batch:
    return {
        "input_ids": _padded(rows, pad_token_id),
        "attention_mask": _padded([[1] * len(row) for row in rows], 0),
    }


def _types(examples: Sequence[TokenizedExample]) -> Batch:
    if not any(example.types for example in examples):
        return {}
    return {
        "token_type_ids": _padded(
            [example.types or [0] * len(example.input_ids) for example in examples], 0
        )
    }


def _padded(rows: Sequence[list[int]], value: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def collator_of(goal: TaskSpec, pad_token_id: int) -> Callable[[Sequence[TokenizedExample]], Batch]:
    """What makes a batch of a goal's examples."""
    match goal.task:
        case "sequence-classification":
            return functools.partial(
                collate_labelled, pad_token_id=pad_token_id, labels=goal.labels
            )
        case "token-classification":
            return functools.partial(collate_tagged, pad_token_id=pad_token_id, labels=goal.labels)
        case "seq2seq-lm":
            return functools.partial(collate_pairs, pad_token_id=pad_token_id)
        case "dpo":
            return functools.partial(collate_preferences, pad_token_id=pad_token_id)
        case "kto":
            return functools.partial(collate_rated, pad_token_id=pad_token_id)
    return functools.partial(collate, pad_token_id=pad_token_id)


def example_batch(goal: TaskSpec, example: TokenizedExample, pad_token_id: int) -> Batch:
    """One example as the model itself takes it, with `labels`; of preferences and ratings the answer as a text to go on with."""
    return (
        collate([example], pad_token_id)
        if goal.task in ("dpo", "kto")
        else collator_of(goal, pad_token_id)([example])
    )


pad_rows = _padded
