"""Batches of padded examples for each task, and the dataset that the trainers read them from."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from peft_space.data.arrow_store import MASKED, TokenizedExample, Tokens
from peft_space.recipe import TaskSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Batch = dict[str, torch.Tensor]


class Examples(torch.utils.data.Dataset[TokenizedExample]):
    """Examples that have a loss, read from the disk one by one.

    Args:
        tokens: tokenized rows; those without a loss are skipped.
        shuffled_by: seed of the order, for trainers that read rows in sequence.
    """

    def __init__(self, tokens: Tokens, shuffled_by: int | None = None):
        positions = tokens.positions[tokens.column("num_trained") > 0]
        if shuffled_by is not None:
            positions = np.random.default_rng(shuffled_by).permutation(positions)
        self.tokens = tokens.at(positions)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> TokenizedExample:
        return self.tokens[index]

    def lengths(self, max_length: int) -> np.ndarray:
        """Return the number of tokens of each example after the cut at `max_length` (N,)."""
        return np.minimum(self.tokens.column("length"), max_length)

    def of_median_length(self) -> TokenizedExample:
        """Return an example of median length."""
        lengths = self.tokens.column("length")
        return self.tokens[int(np.argsort(lengths, kind="stable")[len(lengths) // 2])]


def collate(examples: Sequence[TokenizedExample], pad_token_id: int) -> Batch:
    """Pad text to continue: `input_ids`, `attention_mask` and `labels`, each (B, T)."""
    labels = pad_rows([example.labels for example in examples], MASKED)
    return _inputs(examples, pad_token_id) | {"labels": labels}


def collate_with_pictures(
    examples: Sequence[TokenizedExample], tokenizer: "PreTrainedTokenizerFast"
) -> Batch:
    """Pad texts to continue, and add the arrays of the pictures in them.

    Returns:
        As `collate`; the arrays of the model's processor, such as `pixel_values`; and (B, T) which
        tokens stand for pictures, if the model asks for that.
    """
    rows, pictures = [one.input_ids for one in examples], [one.pictures for one in examples]
    return collate(examples, tokenizer.pad_token_id) | picture_inputs(tokenizer, rows, pictures)


def picture_inputs(
    tokenizer: "PreTrainedTokenizerFast",
    rows: Sequence[list[int]],
    pictures: Sequence[Sequence[str]],
    pad: "Callable[[Sequence[list[int]], int], torch.Tensor] | None" = None,
) -> Batch:
    """Return what a model gets of the pictures of a batch, besides the tokens.

    Args:
        tokenizer: of a model that reads pictures; of others nothing is returned.
        rows: token ids of each row.
        pictures: paths of the pictures of each row.
        pad: pads rows; on the right if it is None.
    """
    processor = getattr(tokenizer, "pictures", None)
    if processor is None:
        return {}
    batch: Batch = processor.batch(pictures)
    if name := processor.types_name:
        batch[name] = (pad or pad_rows)([processor.types_of(row) for row in rows], 0)
    return batch


def collate_packed(examples: Sequence[TokenizedExample]) -> dict[str, Any]:
    """Lay texts to continue end to end.

    Returns:
        `input_ids`, `labels` and `position_ids`, each (1, T), where positions start anew with each
        text; `row_starts` (B + 1,) int32, where texts begin and the last one ends; and
        `longest_row`, the tokens of the longest text. No text predicts the first token of the next.
    """
    lengths = [len(example.input_ids) for example in examples]
    labels = [
        MASKED if at == 0 else label for one in examples for at, label in enumerate(one.labels)
    ]
    starts = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return {
        "input_ids": torch.tensor([[id for example in examples for id in example.input_ids]]),
        "labels": torch.tensor([labels]),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "row_starts": starts,
        "longest_row": max(lengths),
    }


def collate_labelled(
    examples: Sequence[TokenizedExample], pad_token_id: int, labels: Sequence[str]
) -> Batch:
    """Pad texts with a label, which becomes an index into `labels`.

    Returns:
        `input_ids` and `attention_mask` (B, T), `labels` (B,), and `token_type_ids` (B, T) for
        text pairs.
    """
    batch = _inputs(examples, pad_token_id)
    if any(example.types for example in examples):
        types = [example.types or [0] * len(example.input_ids) for example in examples]
        batch["token_type_ids"] = pad_rows(types, 0)
    indices = [labels.index(str(example.label)) for example in examples]
    return batch | {"labels": torch.tensor(indices)}


def collate_tagged(
    examples: Sequence[TokenizedExample], pad_token_id: int, labels: Sequence[str]
) -> Batch:
    """Pad tagged tokens: `input_ids`, `attention_mask` and `labels`, each (B, T).

    A tag becomes an index into the argument `labels`.
    """
    tags = [[labels.index(tag) if tag else MASKED for tag in example.tags] for example in examples]
    return _inputs(examples, pad_token_id) | {"labels": pad_rows(tags, MASKED)}


def collate_pairs(examples: Sequence[TokenizedExample], pad_token_id: int) -> Batch:
    """Pad sources to `input_ids` and `attention_mask` (B, T), targets to `labels` (B, U)."""
    targets = [example.target.labels for example in examples if example.target]
    return _inputs(examples, pad_token_id) | {"labels": pad_rows(targets, MASKED)}


def collate_preferences(examples: Sequence[TokenizedExample], pad_token_id: int) -> Batch:
    """Pad the chosen answers followed by the rejected answers.

    Returns:
        `input_ids`, `attention_mask` and `completion_mask`, each (2 B, T).
    """
    rejected = [example.rejected for example in examples if example.rejected]
    return _with_completion_mask([*examples, *rejected], pad_token_id)


def collate_rated(
    examples: Sequence[TokenizedExample],
    pad_token_id: int,
    previous: Sequence[TokenizedExample] | None = None,
) -> Batch:
    """Pad rated answers, and the mismatched pairs from which KTO estimates the KL term.

    Each prompt gets the answer of the example before it (arXiv 2402.01306, section 4.2).

    Args:
        examples: the rows of the batch.
        pad_token_id: of the tokenizer.
        previous: the example before each of them. None: those of the batch itself.

    Returns:
        `input_ids`, `attention_mask` and `completion_mask` (B, T), these three for the
        mismatched pairs with the prefix `KL_`, and `label` (B,).
    """
    pairs = zip(examples, previous or [*examples[-1:], *examples[:-1]], strict=True)
    mismatched = [_with_answer_of(example, other) for example, other in pairs]
    mismatched_batch = _with_completion_mask(mismatched, pad_token_id)
    batch = _with_completion_mask(examples, pad_token_id)
    batch |= {f"KL_{name}": value for name, value in mismatched_batch.items()}
    return batch | {"label": torch.tensor([bool(example.good) for example in examples])}


def _with_answer_of(example: TokenizedExample, other: TokenizedExample) -> TokenizedExample:
    prompt = example.input_ids[: example.trained[0][0]]
    ids = [*prompt, *other.input_ids[other.trained[0][0] : other.trained[-1][1]]]
    return TokenizedExample(example.row, ids, [(len(prompt), len(ids))])


def _with_completion_mask(examples: Sequence[TokenizedExample], pad_token_id: int) -> Batch:
    masks = [[int(label != MASKED) for label in example.labels] for example in examples]
    return _inputs(examples, pad_token_id) | {"completion_mask": pad_rows(masks, 0)}


def _inputs(examples: Sequence[TokenizedExample], pad_token_id: int) -> Batch:
    rows = [example.input_ids for example in examples]
    mask = pad_rows([[1] * len(row) for row in rows], 0)
    return {"input_ids": pad_rows(rows, pad_token_id), "attention_mask": mask}


def first_rows(batch: dict[str, Any], count: int) -> dict[str, Any]:
    """Return the first rows of a batch of any task, with its padding.

    Args:
        batch: what one of the functions above has made.
        count: 0 is one row without labels, because a model computes no empty batch.
    """
    if count == 0:
        one = first_rows(batch, 1)
        return one | {name: torch.full_like(one[name], MASKED) for name in one.keys() & {"labels"}}
    if "row_starts" in batch:
        starts = batch["row_starts"][: count + 1]
        cut = {name: batch[name][:, : starts[-1]] for name in ("input_ids", "labels")}
        cut["position_ids"] = batch["position_ids"][:, : starts[-1]]
        return cut | {"row_starts": starts, "longest_row": int(starts.diff().max())}
    if "completion_mask" in batch and "label" not in batch:  # all chosen answers come first
        half = len(batch["input_ids"]) // 2
        parts = {name: (value[:count], value[half:][:count]) for name, value in batch.items()}
        return {name: torch.cat(part) for name, part in parts.items()}
    return {name: value[:count] for name, value in batch.items()}


def pad_rows(rows: Sequence[list[int]], value: int) -> torch.Tensor:
    length = max(map(len, rows))
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


def collator_of(
    task_spec: TaskSpec, tokenizer: "PreTrainedTokenizerFast"
) -> Callable[[Sequence[TokenizedExample]], Batch]:
    """Return the function that pads examples of a task to a batch."""
    if task_spec.task == "image-text-to-text":
        return functools.partial(collate_with_pictures, tokenizer=tokenizer)
    pad_token_id = tokenizer.pad_token_id
    labelled = functools.partial(
        collate_tagged if task_spec.task == "token-classification" else collate_labelled,
        pad_token_id=pad_token_id,
        labels=task_spec.labels,
    )
    if task_spec.task in ("sequence-classification", "token-classification"):
        return labelled
    collators = {"seq2seq-lm": collate_pairs, "dpo": collate_preferences, "kto": collate_rated}
    collator = collators.get(task_spec.task, collate)
    return functools.partial(collator, pad_token_id=pad_token_id)


def example_batch(
    task_spec: TaskSpec, example: TokenizedExample, tokenizer: "PreTrainedTokenizerFast"
) -> Batch:
    """Return a batch of one example with `labels`, as `model.forward` takes it.

    For DPO and KTO it contains the chosen or rated answer as a text to continue.
    """
    if task_spec.task in ("dpo", "kto"):
        return collate([example], tokenizer.pad_token_id)
    return collator_of(task_spec, tokenizer)([example])
