"""Base and adapter answer the same prompts: one base in memory, the adapter off and on, same rendered prompt, sampling and seed."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, set_seed
from transformers.generation.streamers import BaseStreamer

from peft_space.data.render import prompt_ids, render_prompt, stop_token_ids
from peft_space.data.rows import Message
from peft_space.errors import UserError
from peft_space.models.load import Adapted

Column = Literal["base", "adapter"]
OnText = Callable[[Column, int, str], None]
"""Called with (column, number of the prompt, answer so far) while an answer grows."""

_BATCH = 16


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
        columns[column] = answer(adapted, column, conversations, sampling, on_text)  # type: ignore[index]
    return [
        Comparison(messages[-1]["content"], render_prompt(adapted.tokenizer, messages), base, tuned)
        for messages, base, tuned in zip(conversations, columns["base"], columns["adapter"], strict=True)
    ]


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
    prompts = [prompt_ids(adapted.tokenizer, messages, some) for messages, some in zip(conversations, offered, strict=True)]
    answers: list[str] = []
    for start in range(0, len(prompts), _BATCH):
        wanted = expected[start : start + _BATCH] if expected is not None else None
        answers += _generate(adapted, column, prompts[start : start + _BATCH], start, sampling, on_text, wanted)
    return answers


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
    ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    drawn: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if sampling.temperature > 0:
        drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    stops = stop_token_ids(tokenizer)
    streamer = _Streamer(tokenizer, stops, lambda row, text: on_text(column, start + row, text)) if on_text else None
    ended = StoppingCriteriaList([_NoLongerExpected(tokenizer, stops, longest, expected)]) if expected is not None else None
    set_seed(sampling.seed)
    with torch.inference_mode(), only(adapted, column):
        output = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=sampling.max_new_tokens,
            eos_token_id=stops, pad_token_id=tokenizer.pad_token_id, streamer=streamer, stopping_criteria=ended, **drawn,
        )  # fmt: skip
    return [_text(tokenizer, row[longest:].tolist(), stops) for row in output]


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
