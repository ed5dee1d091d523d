"""Base and adapter answer the same prompts: one base in memory, the adapter off and on, same rendered prompt, sampling and seed."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, set_seed
from transformers.generation.streamers import BaseStreamer

from peft_space.data.render import prompt_ids, render, render_prompt, stop_token_ids
from peft_space.data.render_plain import source_text
from peft_space.data.rows import Conversation, Labelled, Message, Tagged
from peft_space.errors import UserError
from peft_space.models.families import CLASSIFYING
from peft_space.models.load import Adapted

Column = Literal["base", "adapter"]
OnText = Callable[[Column, int, str], None]
"""Called with (column, number of the prompt, answer so far) while an answer grows."""

_BATCH = 16
_LONGEST = 100_000
"""Tokens of a prompt that is not cut."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, the same for both columns. Temperature 0 takes the likeliest token always."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        allowed = {"max_new_tokens": (1, 4096), "temperature": (0, 5), "top_p": (0.01, 1), "seed": (0, 2**31 - 1)}
        for name, (least, most) in allowed.items():
            if getattr(self, name) is None or not least <= getattr(self, name) <= most:
                raise UserError(f"{name} cannot be {getattr(self, name)!r}. Choose a value from {least} to {most}.")


@dataclass(frozen=True)
class Comparison:
    """What both columns answered to one prompt, and the prompt as the model saw it."""

    prompt: str
    rendered: str
    base: str
    adapter: str


def compare(
    adapted: Adapted, conversations: Sequence[list[Message]], sampling: Sampling, on_text: OnText | None = None
) -> list[Comparison]:
    """Both columns' answers to each conversation, which ends with the user's message."""
    columns: dict[Column, list[str]] = {}
    for column in ("base", "adapter"):
        if adapted.goal.task in CLASSIFYING:
            columns[column] = [classify(adapted, column, messages[-1]["content"]) for messages in conversations]  # type: ignore[index]
        else:
            columns[column] = answer(adapted, column, conversations, sampling, on_text)  # type: ignore[index]
    return [
        Comparison(messages[-1]["content"], _rendered(adapted, messages), base, tuned)
        for messages, base, tuned in zip(conversations, columns["base"], columns["adapter"], strict=True)
    ]


def _rendered(adapted: Adapted, messages: list[Message]) -> str:
    if adapted.goal.task == "seq2seq-lm":
        return source_text(messages)
    return messages[-1]["content"] if adapted.goal.task in CLASSIFYING else render_prompt(adapted.tokenizer, messages)


_LABELS_SHOWN = 5


def classify(adapted: Adapted, column: Column, text: str) -> str:
    """The likeliest labels of a text with their probabilities, a line each; of tags the words, each with its tag.

    The base's head is the one that training began with, drawn from the recipe's seed.
    """
    labels, tags = adapted.goal.labels, adapted.goal.task == "token-classification"
    words = text.split()
    row = Tagged(0, words, [labels[0]] * len(words)) if tags else Labelled(0, text, labels[0])
    [example] = render(adapted.tokenizer, [row], _LONGEST, task=adapted.goal.task)
    ids = torch.tensor([example.input_ids], device=adapted.model.device)
    with torch.inference_mode(), only(adapted, column):
        chances = adapted.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float().softmax(-1)
    if tags:
        found = [labels[int(place)] for place, tag in zip(chances.argmax(-1), example.tags, strict=True) if tag]
        return " ".join(f"{word}/{tag}" for word, tag in zip(words, found, strict=False))
    shares, places = chances.topk(min(_LABELS_SHOWN, len(labels)))
    return "\n".join(f"{labels[place]}: {share:.1%}" for share, place in zip(shares.tolist(), places.tolist(), strict=True))


def answer(
    adapted: Adapted,
    column: Column,
    conversations: Sequence[list[Message]],
    sampling: Sampling,
    on_text: OnText | None = None,
    expected: Sequence[str] | None = None,
    tools: Sequence[list[dict[str, Any]] | None] | None = None,
) -> list[str]:
    """One column's answers, generated in batches of prompts.

    Args:
        tools: for each conversation those that it may call.
        expected: texts to be answered word for word; an answer ends as soon as it has become another.
    """
    offered = tools or [None] * len(conversations)
    prompts = [_prompt_ids(adapted, messages, some) for messages, some in zip(conversations, offered, strict=True)]
    answers: list[str] = []
    for start in range(0, len(prompts), _BATCH):
        wanted = expected[start : start + _BATCH] if expected is not None else None
        answers += _generate(adapted, column, prompts[start : start + _BATCH], start, sampling, on_text, wanted)
    return answers


def _prompt_ids(adapted: Adapted, messages: list[Message], tools: list[dict[str, Any]] | None) -> list[int]:
    if adapted.goal.task != "seq2seq-lm":
        return prompt_ids(adapted.tokenizer, messages, tools)
    row = Conversation(0, [*messages, {"role": "assistant", "content": ""}])
    return render(adapted.tokenizer, [row], _LONGEST, task="seq2seq-lm")[0].input_ids


def only(adapted: Adapted, column: Column) -> Any:
    """Within this context the model is the base alone, or the base with its adapter."""
    return adapted.model.disable_adapter() if column == "base" else contextlib.nullcontext()


def _generate(
    adapted: Adapted,
    column: Column,
    prompts: list[list[int]],
    start: int,
    sampling: Sampling,
    on_text: OnText | None,
    expected: Sequence[str] | None,
) -> list[str]:
    tokenizer, model = adapted.tokenizer, adapted.model
    longest = max(map(len, prompts))
    answers_apart = (
        adapted.goal.task == "seq2seq-lm"
    )  # then prompts are padded as in training, and what is generated begins with one start token
    padded = [_padded(prompt, longest, tokenizer.pad_token_id, left=not answers_apart) for prompt in prompts]
    ids = torch.tensor(padded, device=model.device)
    mask = torch.tensor([_padded([1] * len(prompt), longest, 0, left=not answers_apart) for prompt in prompts], device=model.device)
    drawn: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if sampling.temperature > 0:
        drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    stops = [tokenizer.eos_token_id] if answers_apart else stop_token_ids(tokenizer)
    begins = 1 if answers_apart else longest
    streamer = _Streamer(tokenizer, stops, lambda row, text: on_text(column, start + row, text)) if on_text else None
    ended = StoppingCriteriaList([_NoLongerExpected(tokenizer, stops, begins, expected)]) if expected is not None else None
    set_seed(sampling.seed)
    with torch.inference_mode(), only(adapted, column):
        output = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=sampling.max_new_tokens,
            eos_token_id=stops, pad_token_id=tokenizer.pad_token_id, streamer=streamer, stopping_criteria=ended, **drawn,
        )  # fmt: skip
    return [_text(tokenizer, row[begins:].tolist(), stops) for row in output]


def _padded(ids: list[int], length: int, value: int, left: bool) -> list[int]:
    missing = [value] * (length - len(ids))
    return missing + ids if left else ids + missing


def _text(tokenizer: Any, ids: list[int], stops: list[int]) -> str:
    """The answer up to the token that ends it, or the padding of a row that has ended; other control tokens stay visible."""
    end = next((i for i, token in enumerate(ids) if token in stops or token == tokenizer.pad_token_id), len(ids))
    return tokenizer.decode(ids[:end], skip_special_tokens=False).strip()


class _NoLongerExpected(StoppingCriteria):
    """Ends a row once its text can no longer become the expected one, or is twice as long in tokens: what comes after decides nothing."""

    def __init__(self, tokenizer: Any, stops: list[int], prompt_length: int, expected: Sequence[str]):
        self.tokenizer, self.stops, self.prompt_length, self.expected = tokenizer, stops, prompt_length, expected
        self.limits = [2 * len(ids) + 8 for ids in tokenizer(list(expected), add_special_tokens=False)["input_ids"]]

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        texts = [_text(self.tokenizer, row[self.prompt_length :].tolist(), self.stops).rstrip("\ufffd") for row in input_ids]
        length = input_ids.shape[1] - self.prompt_length
        over = [
            length > limit or not wanted.strip().startswith(text)
            for text, wanted, limit in zip(texts, self.expected, self.limits, strict=True)
        ]
        return torch.tensor(over, device=input_ids.device)


class _Streamer(BaseStreamer):
    """Collects the tokens of every row of a batch as they come."""

    def __init__(self, tokenizer: Any, stops: list[int], on_text: Callable[[int, str], None]):
        self.tokenizer, self.stops, self.on_text = tokenizer, stops, on_text
        self.rows: list[list[int]] | None = None
        self.ended: set[int] = set()

    def put(self, value: torch.Tensor) -> None:
        if self.rows is None:  # the first call brings the prompts
            self.rows = [[] for _ in range(value.shape[0])]
            return
        for row, token in enumerate(value.tolist()):
            if row not in self.ended:
                self.rows[row].append(token)
                self.on_text(row, _text(self.tokenizer, self.rows[row], self.stops))
                if token in self.stops:
                    self.ended.add(row)

    def end(self) -> None:
        pass
