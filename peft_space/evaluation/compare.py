"""Compares the answers of the base model and the adapter to the same prompts.

One base is in memory, with the adapter off and on. Token ids, sampling and seed are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from peft_space.data.messages import Message, shown_text
from peft_space.data.pictures import thumbnail
from peft_space.data.row_normalization import TextClassification, TokenClassification
from peft_space.data.tokenization.render import render, render_prompt, source_text
from peft_space.evaluation.adapter_off_check import (
    SIDES,
    SeenTokens,
    Side,
    capture_input_ids,
    use_side,
)
from peft_space.evaluation.generate import (
    BATCH_SIZE,
    NO_LENGTH_LIMIT,
    OnText,
    Sampling,
    answer,
    generate_batch,
    num_cut,
    pictures_in,
    tokenize_prompt,
)
from peft_space.models.architecture import CLASSIFYING
from peft_space.models.loading import AdaptedModel

_LABELS_SHOWN = 5
_BATCHED_BY_PEFT = {"Linear", "Embedding", "Linear4bit"}
"""PEFT's layers that switch the adapter row by row. Others raise an error, or silently give all
rows the adapter (GPTQ, AWQ). Linear8bitLt could too, but rounds a row by the large numbers in all
rows of its batch: the adapter's rows would change those of the base."""


@dataclass(frozen=True)
class Comparison:
    """The answers of both sides to one prompt."""

    prompt: str
    rendered: str
    """The prompt as the model saw it."""
    base: str
    adapter: str
    chances: dict[Side, dict[str, float]] | None = None
    """For labels, each side's probability of each label, 0 to 1, in the order of the head."""
    cut: int = 0
    """Tokens of the prompt that the model has no positions for, and did not read."""
    tags: dict[Side, list[tuple[str, str]]] | None = None
    """For tags, each side's (word, tag) pairs."""
    pictures: list[str] = field(default_factory=list)
    """Small copies of the prompt's pictures, as data URIs."""


def compare(
    adapted: AdaptedModel,
    conversations: Sequence[list[Message]],
    sampling: Sampling,
    on_text: OnText | None = None,
    seen: SeenTokens | None = None,
    adapters: Sequence[list[Message]] | None = None,
) -> list[Comparison]:
    """Generate both sides' answers to each conversation.

    Args:
        conversations: each ends with the user's message.
        seen: the token ids that each side gets are added to it.
        adapters: the adapter's conversations, if its earlier answers differ from the base's.
    """
    if adapted.task_spec.task in CLASSIFYING:
        return [classify(adapted, messages[-1]["content"], seen) for messages in conversations]
    by_side: dict[Side, Sequence[list[Message]]] = {
        "base": conversations,
        "adapter": adapters or conversations,
    }
    if can_batch_both_sides(adapted, sampling):
        answers = answer_together(adapted, by_side, sampling, on_text, seen)
    else:
        answers = {
            side: answer(adapted, side, by_side[side], sampling, on_text, seen=seen)
            for side in SIDES
        }
    rows = zip(conversations, answers["base"], answers["adapter"], strict=True)
    return [
        Comparison(
            shown_text(messages[-1]["content"]),
            _rendered(adapted, messages),
            base,
            tuned,
            cut=num_cut(adapted, messages, sampling.max_new_tokens),
            pictures=[thumbnail(path) for path in pictures_in(messages)],
        )
        for messages, base, tuned in rows
    ]


def _rendered(adapted: AdaptedModel, messages: list[Message]) -> str:
    if adapted.task_spec.task == "seq2seq-lm":
        return source_text(messages)
    return render_prompt(adapted.tokenizer, messages)


def classify(adapted: AdaptedModel, text: str, seen: SeenTokens | None = None) -> Comparison:
    """Classify a text, or tag its words, with both sides.

    The base's head is the one that training started from, drawn with the recipe's seed.

    Args:
        text: the text; tags belong to its words between white space.
        seen: the token ids that each side gets are added to it.

    Returns:
        As answers the likeliest labels with their probabilities, one a line, or the words with
        their tags.
    """
    task, labels = adapted.task_spec.task, adapted.task_spec.labels
    words = text.split()
    row: TokenClassification | TextClassification = TextClassification(0, text, labels[0])
    if task == "token-classification":
        row = TokenClassification(0, words, [labels[0]] * len(words))
    [example] = render(adapted.tokenizer, [row], NO_LENGTH_LIMIT, task=task)
    ids = torch.tensor([example.input_ids], device=adapted.model.device)
    shares = {side: _label_shares(adapted, side, ids, seen) for side in SIDES}
    if task == "token-classification":
        tagged: dict[Side, list[tuple[str, str]]] = {}
        for side in SIDES:
            places = shares[side].argmax(-1).tolist()
            tags = [labels[at] for at, tag in zip(places, example.tags, strict=True) if tag]
            tagged[side] = list(zip(words, tags, strict=False))
        base, tuned = (" ".join(f"{word}/{tag}" for word, tag in tagged[side]) for side in SIDES)
        return Comparison(text, text, base, tuned, cut=example.cut, tags=tagged)
    chances = {side: dict(zip(labels, shares[side].tolist(), strict=True)) for side in SIDES}
    base, tuned = (
        "\n".join(f"{label}: {p:.1%}" for label, p in likeliest(chances[side], _LABELS_SHOWN))
        for side in SIDES
    )
    return Comparison(text, text, base, tuned, chances, example.cut)


def _label_shares(
    adapted: AdaptedModel, side: Side, ids: torch.Tensor, seen: SeenTokens | None
) -> torch.Tensor:
    """Probabilities of the labels, (L,), or of the tags at each token, (T, L)."""
    with (
        torch.inference_mode(),
        use_side(adapted, side),
        capture_input_ids(adapted, [side], [ids.shape[1]], seen),
    ):
        logits = adapted.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits[0].float().softmax(-1)


def likeliest(chances: dict[str, float], limit: int) -> list[tuple[str, float]]:
    """At most `limit` labels with their probabilities, the likeliest first."""
    return sorted(chances.items(), key=lambda item: -item[1])[:limit]


def can_batch_both_sides(adapted: AdaptedModel, sampling: Sampling) -> bool:
    """Return True if both sides should answer in one batch, with the adapter switched by row.

    On a CPU this was slower (docs/benchmarks.md). On a GPU, where a step costs about the same for
    twice the rows, it was not measured. Rows of one batch draw different random numbers, so
    sampled answers would differ by chance.
    """
    greedy_on_gpu = adapted.model.device.type == "cuda" and sampling.temperature == 0
    return greedy_on_gpu and can_answer_together(adapted)


def can_answer_together(adapted: AdaptedModel) -> bool:
    """Return True if PEFT can switch this adapter on and off by row."""
    from peft.tuners.lora import LoraLayer

    layers = [module for module in adapted.model.modules() if isinstance(module, LoraLayer)]
    return (
        all(type(layer).__name__ in _BATCHED_BY_PEFT for layer in layers)
        and not any(any(layer.use_dora.values()) for layer in layers)
        and not adapted.biases
        and not adapted.model.peft_config["default"].modules_to_save
        and not adapted.model.peft_config["default"].trainable_token_indices
        and adapted.task_spec.task != "seq2seq-lm"
    )


def answer_together(
    adapted: AdaptedModel,
    conversations: dict[Side, Sequence[list[Message]]],
    sampling: Sampling,
    on_text: OnText | None = None,
    seen: SeenTokens | None = None,
) -> dict[Side, list[str]]:
    """Generate the answers of both sides in common batches. See `can_answer_together`."""
    prompts = {
        side: [tokenize_prompt(adapted, messages) for messages in conversations[side]]
        for side in SIDES
    }
    answers: dict[Side, list[str]] = {side: [] for side in SIDES}
    half = BATCH_SIZE // 2
    for start in range(0, len(prompts["base"]), half):
        batch = [(side, ids) for side in SIDES for ids in prompts[side][start : start + half]]
        sides, ids = [side for side, _ in batch], [ids for _, ids in batch]
        shown = [
            pictures_in(one) for side in SIDES for one in conversations[side][start : start + half]
        ]
        texts = generate_batch(
            adapted, sides, ids, start, sampling, on_text, seen=seen, pictures=shown
        )
        for side, text in zip(sides, texts, strict=True):
            answers[side].append(text)
    return answers
