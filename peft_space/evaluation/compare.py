"""Base and adapter answer the same prompts: one base in memory, the adapter off and on, same token ids, sampling and seed."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, set_seed
from transformers.generation.streamers import BaseStreamer

from peft_space.data.records import Conversation, Message, TextClassification, TokenClassification
from peft_space.data.tokenization.render import (
    prompt_ids,
    render,
    render_prompt,
    source_text,
    stop_token_ids,
)
from peft_space.errors import UserError
from peft_space.evaluation.base_check import SIDES, SeenTokens, Side, capture_input_ids, use_side
from peft_space.models.architecture import CLASSIFYING
from peft_space.models.loading import AdaptedModel

OnText = Callable[[Side, int, str], None]
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
        allowed = {
            "max_new_tokens": (1, 4096),
            "temperature": (0, 5),
            "top_p": (0.01, 1),
            "seed": (0, 2**31 - 1),
        }
        for name, (least, most) in allowed.items():
            if getattr(self, name) is None or not least <= getattr(self, name) <= most:
                raise UserError(
                    "todo",
                    f"{name} cannot be {getattr(self, name)!r}. Choose a value from {least} to {most}.",
                )


@dataclass(frozen=True)
class Comparison:
    """What both columns answered to one prompt, and the prompt as the model saw it."""

    prompt: str
    rendered: str
    base: str
    adapter: str
    chances: dict[Side, dict[str, float]] | None = None
    """Of labels the probability of each in each column, 0 to 1, in the order of the head."""
    tags: dict[Side, list[tuple[str, str]]] | None = None
    """Of tags each word with its own in each column."""


def compare(
    adapted: AdaptedModel,
    conversations: Sequence[list[Message]],
    sampling: Sampling,
    on_text: OnText | None = None,
    seen: SeenTokens | None = None,
    adapters: Sequence[list[Message]] | None = None,
) -> list[Comparison]:
    """Both columns' answers to each conversation, which ends with the user's message.

    Args:
        seen: gets the token ids that each column was given.
        adapters: the adapter's conversations, where earlier turns have made them others than the base's.
    """
    if adapted.goal.task in CLASSIFYING:
        return [classify(adapted, messages[-1]["content"], seen) for messages in conversations]
    asked: dict[Side, Sequence[list[Message]]] = {
        "base": conversations,
        "adapter": adapters or conversations,
    }
    if can_batch_both_sides(adapted, sampling):
        columns = _answer_together(adapted, asked, sampling, on_text, seen)
    else:
        columns = {
            column: answer(adapted, column, asked[column], sampling, on_text, seen=seen)
            for column in SIDES
        }
    return [
        Comparison(messages[-1]["content"], _rendered(adapted, messages), base, tuned)
        for messages, base, tuned in zip(
            conversations, columns["base"], columns["adapter"], strict=True
        )
    ]


def _rendered(adapted: AdaptedModel, messages: list[Message]) -> str:
    return (
        source_text(messages)
        if adapted.goal.task == "seq2seq-lm"
        else render_prompt(adapted.tokenizer, messages)
    )


_LABELS_SHOWN = 5


def classify(adapted: AdaptedModel, text: str, seen: SeenTokens | None = None) -> Comparison:
    """What both columns make of a text: the likeliest labels with their probabilities, a line each; of tags the words, each with its tag.

    The base's head is the one that training began with, drawn from the recipe's seed.
    """
    labels, tags = adapted.goal.labels, adapted.goal.task == "token-classification"
    words = text.split()
    row = (
        TokenClassification(0, words, [labels[0]] * len(words))
        if tags
        else TextClassification(0, text, labels[0])
    )
    [example] = render(adapted.tokenizer, [row], _LONGEST, task=adapted.goal.task)
    ids = torch.tensor([example.input_ids], device=adapted.model.device)
    chances: dict[Side, dict[str, float]] = {}
    tagged: dict[Side, list[tuple[str, str]]] = {}
    for column in SIDES:
        with (
            torch.inference_mode(),
            use_side(adapted, column),
            capture_input_ids(adapted, [column], [ids.shape[1]], seen),
        ):
            shares = (
                adapted.model(input_ids=ids, attention_mask=torch.ones_like(ids))
                .logits[0]
                .float()
                .softmax(-1)
            )
        if tags:
            found = [
                labels[int(place)]
                for place, tag in zip(shares.argmax(-1), example.tags, strict=True)
                if tag
            ]
            tagged[column] = list(zip(words, found, strict=False))
        else:
            chances[column] = dict(zip(labels, shares.tolist(), strict=True))
    if tags:
        lines = [" ".join(f"{word}/{tag}" for word, tag in tagged[column]) for column in SIDES]
        return Comparison(text, text, *lines, tags=tagged)
    lines = [
        "\n".join(
            f"{label}: {share:.1%}" for label, share in likeliest(chances[column], _LABELS_SHOWN)
        )
        for column in SIDES
    ]
    return Comparison(text, text, *lines, chances=chances)


def likeliest(chances: dict[str, float], most: int) -> list[tuple[str, float]]:
    """The likeliest labels with their probabilities, likeliest first."""
    return sorted(chances.items(), key=lambda one: -one[1])[:most]


def can_batch_both_sides(adapted: AdaptedModel, sampling: Sampling) -> bool:
    """Whether both columns answer in one batch, in which each row has its own adapter or none.

    On a CPU it was slower (docs/benchmarks.md); a GPU, where a step costs about the same for twice the rows, was not measured. Only where PEFT does it, and
    where no token is drawn: rows of one batch draw different numbers, so that columns would differ by chance.
    """
    return (
        adapted.model.device.type == "cuda"
        and sampling.temperature == 0
        and can_answer_together(adapted)
    )


_MIXED_BY_PEFT = {"Linear", "Embedding", "Linear8bitLt", "Linear4bit"}
"""PEFT's layers that look at each row's adapter. Others refuse, or give all rows the adapter without a word (GPTQ, AWQ)."""


def can_answer_together(adapted: AdaptedModel) -> bool:
    """Whether PEFT can switch this adapter on and off by row."""
    from peft.tuners.lora import LoraLayer

    layers = [module for module in adapted.model.modules() if isinstance(module, LoraLayer)]
    plain = all(
        type(layer).__name__ in _MIXED_BY_PEFT and not any(layer.use_dora.values())
        for layer in layers
    )
    return (
        plain
        and not adapted.biases
        and not adapted.model.peft_config["default"].modules_to_save
        and adapted.goal.task != "seq2seq-lm"
    )


def _answer_together(
    adapted: AdaptedModel,
    asked: dict[Side, Sequence[list[Message]]],
    sampling: Sampling,
    on_text: OnText | None,
    seen: SeenTokens | None,
) -> dict[Side, list[str]]:
    prompts = {
        column: [_prompt_ids(adapted, messages, None) for messages in asked[column]]
        for column in SIDES
    }
    answers: dict[Side, list[str]] = {column: [] for column in SIDES}
    half = _BATCH // 2
    for start in range(0, len(prompts["base"]), half):
        some = {column: prompts[column][start : start + half] for column in SIDES}
        columns = [column for column in SIDES for _ in some[column]]
        texts = _generate(
            adapted, columns, [*some["base"], *some["adapter"]], start, sampling, on_text, seen=seen
        )
        for column, text in zip(columns, texts, strict=True):
            answers[column].append(text)
    return answers


def answer(
    adapted: AdaptedModel,
    column: Side,
    conversations: Sequence[list[Message]],
    sampling: Sampling,
    on_text: OnText | None = None,
    tools: Sequence[list[dict[str, Any]] | None] | None = None,
    limits: Sequence[int] | None = None,
    seen: SeenTokens | None = None,
    on_token: Callable[[], None] | None = None,
) -> list[str]:
    """One column's answers, generated in batches of prompts.

    Args:
        tools: for each conversation those that it may call.
        limits: for each conversation how many tokens its answer may have.
        seen: gets the token ids that the model was given.
        on_token: called after each token of a batch.
    """
    offered = tools or [None] * len(conversations)
    prompts = [
        _prompt_ids(adapted, messages, some)
        for messages, some in zip(conversations, offered, strict=True)
    ]
    answers: list[str] = []
    for start in range(0, len(prompts), _BATCH):
        batch = prompts[start : start + _BATCH]
        most = limits[start : start + _BATCH] if limits is not None else None
        answers += _generate(
            adapted, [column] * len(batch), batch, start, sampling, on_text, most, seen, on_token
        )
    return answers


def _prompt_ids(
    adapted: AdaptedModel, messages: list[Message], tools: list[dict[str, Any]] | None
) -> list[int]:
    if adapted.goal.task != "seq2seq-lm":
        return prompt_ids(adapted.tokenizer, messages, tools)
    row = Conversation(0, [*messages, {"role": "assistant", "content": ""}])
    return render(adapted.tokenizer, [row], _LONGEST, task="seq2seq-lm")[0].input_ids


def _generate(
    adapted: AdaptedModel,
    columns: Sequence[Side],
    prompts: list[list[int]],
    start: int,
    sampling: Sampling,
    on_text: OnText | None,
    limits: Sequence[int] | None = None,
    seen: SeenTokens | None = None,
    on_token: Callable[[], None] | None = None,
) -> list[str]:
    """The answers to one batch of prompts, row by row those of `columns`; the prompts of each column are numbered from `start`."""
    tokenizer, model = adapted.tokenizer, adapted.model
    longest = max(map(len, prompts))
    answers_apart = (
        adapted.goal.task == "seq2seq-lm"
    )  # then prompts are padded as in training, and what is generated begins with one start token
    padded = [
        _padded(prompt, longest, tokenizer.pad_token_id, left=not answers_apart)
        for prompt in prompts
    ]
    ids = torch.tensor(padded, device=model.device)
    mask = torch.tensor(
        [_padded([1] * len(prompt), longest, 0, left=not answers_apart) for prompt in prompts],
        device=model.device,
    )
    drawn: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if sampling.temperature > 0:
        drawn = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
        }
    mixed = len(set(columns)) > 1
    if mixed:
        drawn["adapter_names"] = [
            "__base__" if column == "base" else "default" for column in columns
        ]
    stops = [tokenizer.eos_token_id] if answers_apart else stop_token_ids(tokenizer)
    begins = 1 if answers_apart else longest
    places = [start + columns[:row].count(column) for row, column in enumerate(columns)]
    told = ProgressStopper(on_token)
    tell = (
        (lambda row, text: told.tell(on_text, columns[row], places[row], text)) if on_text else None
    )
    streamer = _Streamer(tokenizer, stops, tell) if tell else None
    ended = StoppingCriteriaList(
        [told, *([PerRowMaxTokens(begins, limits)] if limits is not None else [])]
    )
    set_seed(sampling.seed)
    switched = contextlib.nullcontext() if mixed else use_side(adapted, columns[0])
    with (
        torch.inference_mode(),
        switched,
        capture_input_ids(adapted, columns, list(map(len, prompts)), seen),
    ):
        output = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=sampling.max_new_tokens,
            eos_token_id=stops, pad_token_id=tokenizer.pad_token_id, streamer=streamer, stopping_criteria=ended, **drawn,
        )  # fmt: skip
    if told.raised:
        raise told.raised
    return [_text(tokenizer, row[begins:].tolist(), stops) for row in output]


def _padded(ids: list[int], length: int, value: int, left: bool) -> list[int]:
    missing = [value] * (length - len(ids))
    return missing + ids if left else ids + missing


def _text(tokenizer: Any, ids: list[int], stops: list[int]) -> str:
    """The answer up to the token that ends it, or the padding of a row that has ended; other control tokens stay visible."""
    end = next(
        (i for i, token in enumerate(ids) if token in stops or token == tokenizer.pad_token_id),
        len(ids),
    )
    return tokenizer.decode(ids[:end], skip_special_tokens=False).strip()


class PerRowMaxTokens(StoppingCriteria):
    """Ends each row after so many tokens of its own."""

    def __init__(self, prompt_length: int, limits: Sequence[int]):
        self.prompt_length, self.limits = prompt_length, limits

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return input_ids.shape[1] - self.prompt_length >= torch.tensor(
            self.limits, device=input_ids.device
        )


class ProgressStopper(StoppingCriteria):
    """Tells how generation goes on, and ends it where who is told raises: what went through PEFT as an exception would leave its hooks on the layers."""

    def __init__(self, on_token: Callable[[], None] | None):
        self.on_token = on_token
        self.raised: Exception | None = None

    def tell(self, listener: Callable[..., None], *told: Any) -> None:
        if self.raised is None:
            try:
                listener(*told)
            except Exception as error:  # noqa: BLE001 - it is raised when generation has ended
                self.raised = error

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if self.on_token:
            self.tell(self.on_token)
        return torch.full((input_ids.shape[0],), self.raised is not None, device=input_ids.device)


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
