"""Generates answers in batches. This is the app's only generation loop."""

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList, set_seed
from transformers.generation.streamers import BaseStreamer

from peft_space.data.arrow_store import TokenizedExample
from peft_space.data.batches import pad_rows, picture_inputs
from peft_space.data.messages import Message
from peft_space.data.row_normalization import Conversation, pictures_of
from peft_space.data.tokenization.render import prompt_ids, render
from peft_space.errors import UserError
from peft_space.evaluation.adapter_off_check import (
    SeenTokens,
    Side,
    adapter_names,
    capture_input_ids,
    use_side,
)
from peft_space.models.loading import AdaptedModel

OnText = Callable[[Side, int, str], None]
"""Called with (side, number of the prompt, answer so far) while an answer grows."""
BATCH_SIZE = 16
NO_LENGTH_LIMIT = 100_000
"""Tokens of a prompt that is never truncated."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, the same on both sides. Temperature 0 always takes the likeliest."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {
            "max_new_tokens": (1, 4096),
            "temperature": (0, 5),
            "top_p": (0.01, 1),
            "seed": (0, 2**31 - 1),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is None or not low <= value <= high:
                raise UserError(
                    "evaluation.invalid_sampling",
                    f"{name} cannot be {value!r}. Choose a value from {low} to {high}.",
                )

    def options(self) -> dict[str, Any]:
        """The arguments for `generate` of transformers."""
        if not self.temperature:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        drawn = {"temperature": self.temperature, "top_p": self.top_p}
        return {"do_sample": True, "top_k": 0, **drawn}


def generate_greedy(
    adapted: AdaptedModel,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    pictures: Sequence[list[str]] | None = None,
) -> list[list[int]]:
    """Generate the likeliest tokens after each prompt, with the adapter on.

    Args:
        prompts: token ids of each prompt, in one batch.
        max_new_tokens: the limit for each answer.
        pictures: those of each prompt.

    Returns:
        The token ids of each answer, including the stop token if there is one.
    """
    prompts = [fit_prompt(adapted, ids, max_new_tokens) for ids in prompts]
    sampling = _within_places(adapted, prompts, Sampling(max_new_tokens=max_new_tokens))
    settings = generation_settings(adapted, sampling)
    return _generate_ids(adapted, prompts, pictures, settings, StoppingCriteriaList(), None)


def answer(
    adapted: AdaptedModel,
    side: Side,
    conversations: Sequence[list[Message]],
    sampling: Sampling,
    on_text: OnText | None = None,
    tools: Sequence[list[dict[str, Any]] | None] | None = None,
    limits: Sequence[int] | None = None,
    seen: SeenTokens | None = None,
    on_token: Callable[[], None] | None = None,
    ended: list[bool] | None = None,
) -> list[str]:
    """Generate one side's answers, in batches.

    Args:
        side: the base alone, or with its adapter.
        conversations: each ends with the user's message.
        tools: those that each conversation may call.
        limits: the maximum tokens of each answer.
        seen: the token ids that the model gets are added to it.
        on_token: called after each token of a batch.
        ended: for each answer, True is added if the model ended it, and False if its limit did.
    """
    tools = tools or [None] * len(conversations)
    prompts = [
        tokenize_prompt(adapted, messages, offered)
        for messages, offered in zip(conversations, tools, strict=True)
    ]
    answers: list[str] = []
    for start in range(0, len(prompts), BATCH_SIZE):
        end = start + BATCH_SIZE
        batch, batch_limits = prompts[start:end], limits[start:end] if limits is not None else None
        sides = [side] * len(batch)
        shown = [pictures_in(messages) for messages in conversations[start:end]]
        answers += generate_batch(
            adapted,
            sides,
            batch,
            start,
            sampling,
            on_text,
            batch_limits,
            seen,
            on_token,
            ended,
            shown,
        )
    return answers


def pictures_in(messages: list[Message]) -> list[str]:
    """The paths of the pictures in a conversation."""
    return pictures_of(Conversation(0, messages))


def tokenize_prompt(
    adapted: AdaptedModel, messages: list[Message], tools: list[dict[str, Any]] | None = None
) -> list[int]:
    """The token ids of a conversation, up to where the answer begins."""
    if adapted.task_spec.task != "seq2seq-lm":
        return prompt_ids(adapted.tokenizer, messages, tools)
    return _render_source(adapted, messages).input_ids


def _render_source(adapted: AdaptedModel, messages: list[Message]) -> TokenizedExample:
    row = Conversation(0, [*messages, {"role": "assistant", "content": ""}])
    [example] = render(adapted.tokenizer, [row], NO_LENGTH_LIMIT, task="seq2seq-lm")
    return example


def num_cut(
    adapted: AdaptedModel,
    messages: list[Message],
    max_new_tokens: int,
    tools: list[dict[str, Any]] | None = None,
) -> int:
    """The number of tokens of a prompt that the model has no positions for, and does not read."""
    if adapted.task_spec.task == "seq2seq-lm":
        return _render_source(adapted, messages).cut
    ids = tokenize_prompt(adapted, messages, tools)
    return len(ids) - len(fit_prompt(adapted, ids, max_new_tokens))


def generate_batch(
    adapted: AdaptedModel,
    sides: Sequence[Side],
    prompts: Sequence[list[int]],
    start: int,
    sampling: Sampling,
    on_text: OnText | None = None,
    limits: Sequence[int] | None = None,
    seen: SeenTokens | None = None,
    on_token: Callable[[], None] | None = None,
    ended: list[bool] | None = None,
    pictures: Sequence[list[str]] | None = None,
) -> list[str]:
    """Generate the answers to one batch of prompts.

    Args:
        sides: the side that answers each prompt. If both do, PEFT switches the adapter by row.
        prompts: token ids.
        start: the number of the first prompt of each side, for `on_text`.
        limits: the maximum tokens of each answer.
        seen: the token ids that the model gets are added to it.
        on_token: called after each token.
        ended: for each answer, True is added if the model ended it, and False if its limit did.
        pictures: those of each prompt.

    Raises:
        UserError: a prompt with a picture has more tokens than the model has positions for.
    """
    _check_pictures_fit(adapted, prompts, pictures, sampling)
    prompts = [fit_prompt(adapted, ids, sampling.max_new_tokens) for ids in prompts]
    if len(prompts) > 1 and _exceeds_places(adapted, prompts, sampling):
        return [
            text
            for row, (side, ids) in enumerate(zip(sides, prompts, strict=True))
            for text in generate_batch(
                adapted,
                [side],
                [ids],
                start + list(sides[:row]).count(side),
                sampling,
                on_text,
                limits and limits[row : row + 1],
                seen,
                on_token,
                ended,
                pictures and pictures[row : row + 1],
            )
        ]
    sampling = _within_places(adapted, prompts, sampling)
    stopper = ProgressStopper(on_token)
    criteria = StoppingCriteriaList([stopper])
    if limits is not None:
        criteria.append(PerRowMaxTokens(_answer_start(adapted, prompts), limits))
    streamer = None
    if on_text:
        numbers = [start + sides[:row].count(side) for row, side in enumerate(sides)]
        streamer = _Streamer(
            adapted, lambda row, text: stopper.call(on_text, sides[row], numbers[row], text)
        )
    mixed = len(set(sides)) > 1
    options: dict[str, Any] = {"adapter_names": adapter_names(sides)} if mixed else {}
    settings = generation_settings(adapted, sampling)  # may try the model, so it comes first
    set_seed(sampling.seed)
    with (
        contextlib.nullcontext() if mixed else use_side(adapted, sides[0]),
        capture_input_ids(adapted, sides, list(map(len, prompts)), seen),
    ):
        answers = _generate_ids(adapted, prompts, pictures, settings, criteria, streamer, **options)
    if stopper.raised:
        raise stopper.raised
    if ended is not None:
        stops = adapted.answer_tokens.stops
        written = zip(answers, limits or map(len, answers), strict=True)
        # after its limit a row is padded, with a stop token if the tokenizer has no other
        ended += [any(token in stops for token in ids[:limit]) for ids, limit in written]
    return [decode(adapted, ids) for ids in answers]


def _check_pictures_fit(
    adapted: AdaptedModel,
    prompts: Sequence[list[int]],
    pictures: Sequence[list[str]] | None,
    sampling: Sampling,
) -> None:
    for ids, shown in zip(prompts, pictures or [], strict=False):
        if shown and len(fit_prompt(adapted, ids, sampling.max_new_tokens)) < len(ids):
            raise UserError(
                "data.picture_too_long",
                f"A prompt with a picture has {len(ids):,} tokens, and the model has positions for "
                f"{adapted.num_places:,}. Use a smaller picture, or fewer.",
            )


_MAX_ANSWER_SHARE = 4
"""The part of a model's positions that a long prompt leaves for the answer is one in so many."""


def fit_prompt(adapted: AdaptedModel, ids: list[int], max_new_tokens: int) -> list[int]:
    """The end of a prompt for which a model has positions, with place for an answer.

    An encoder-decoder reads the beginning, as in training, and writes to other positions.
    """
    places = adapted.num_places
    if places is None or len(ids) < places:
        return ids
    if _is_seq2seq(adapted):
        return ids[:places]
    return ids[-(places - min(max_new_tokens, max(1, places // _MAX_ANSWER_SHARE))) :]


def _exceeds_places(
    adapted: AdaptedModel, prompts: Sequence[list[int]], sampling: Sampling
) -> bool:
    """True if the model's positions end an answer early. Rows of a batch would end together."""
    written = _within_places(adapted, prompts, sampling).max_new_tokens
    return not _is_seq2seq(adapted) and written < sampling.max_new_tokens


def _within_places(
    adapted: AdaptedModel, prompts: Sequence[list[int]], sampling: Sampling
) -> Sampling:
    """As many new tokens as the model has positions for after the longest prompt."""
    if adapted.num_places is None:
        return sampling
    read = 1 if _is_seq2seq(adapted) else max(map(len, prompts))
    left = max(1, adapted.num_places - read)
    return dataclasses.replace(sampling, max_new_tokens=min(sampling.max_new_tokens, left))


def _generate_ids(
    adapted: AdaptedModel,
    prompts: Sequence[list[int]],
    pictures: Sequence[list[str]] | None,
    settings: GenerationConfig,
    criteria: StoppingCriteriaList,
    streamer: BaseStreamer | None,
    **options: Any,
) -> list[list[int]]:
    """The generated token ids of each row, including the stop token or the padding after it."""
    model, tokens = adapted.model, adapted.answer_tokens
    # an encoder-decoder reads prompts padded on the right, as in training
    pad = pad_rows if _is_seq2seq(adapted) else _pad_left
    shown = picture_inputs(adapted.tokenizer, prompts, pictures or [[] for _ in prompts], pad)
    options |= {name: tensor.to(model.device) for name, tensor in shown.items()}
    with torch.no_grad():  # in training, tensors of inference mode could not be used again
        output = model.generate(
            input_ids=pad(prompts, tokens.pad).to(model.device),
            attention_mask=pad([[1] * len(prompt) for prompt in prompts], 0).to(model.device),
            generation_config=settings,
            streamer=streamer,
            stopping_criteria=criteria,
            **options,
        )
    start = _answer_start(adapted, prompts)
    return [_cut_after_stop(row, tokens.stops) for row in output[:, start:].tolist()]


def generation_settings(adapted: AdaptedModel, sampling: Sampling) -> GenerationConfig:
    """All settings with which a model answers. None of the base's own has an effect.

    `generate` fills what is not set from the model's settings: beams, penalties, forced tokens. So
    these are replaced too, on the model that is in memory.
    """
    tokens = adapted.answer_tokens
    settings = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        num_beams=1,
        use_cache=adapted.can_cache,
        eos_token_id=tokens.stops,
        pad_token_id=tokens.pad,
        decoder_start_token_id=tokens.decoder_start,
        forced_bos_token_id=tokens.forced_first,
        **sampling.options(),
    )
    adapted.model.get_base_model().generation_config = copy.deepcopy(settings)
    return settings


def _cut_after_stop(ids: list[int], stops: Sequence[int]) -> list[int]:
    end = next((place + 1 for place, token in enumerate(ids) if token in stops), len(ids))
    return ids[:end]


def _pad_left(rows: Sequence[list[int]], value: int) -> torch.Tensor:
    return pad_rows([row[::-1] for row in rows], value).flip(1)


def _is_seq2seq(adapted: AdaptedModel) -> bool:
    return adapted.task_spec.task == "seq2seq-lm"


def _answer_start(adapted: AdaptedModel, prompts: Sequence[list[int]]) -> int:
    """The place of the first generated token. An encoder-decoder's output has one token before."""
    return 1 if _is_seq2seq(adapted) else max(map(len, prompts))


def decode(adapted: AdaptedModel, ids: list[int]) -> str:
    """The text of an answer, up to its stop token or the padding, with other special tokens."""
    ends = {*adapted.answer_tokens.stops, adapted.answer_tokens.pad}
    before = adapted.answer_tokens.before
    start = next((at for at, token in enumerate(ids) if token not in before), len(ids))
    end = next((at for at, token in enumerate(ids) if at >= start and token in ends), len(ids))
    text: Any = adapted.tokenizer.decode(ids[start:end], skip_special_tokens=False)
    return text.strip()


class PerRowMaxTokens(StoppingCriteria):
    """Stops each row after its own number of tokens."""

    def __init__(self, prompt_length: int, limits: Sequence[int]):
        self.prompt_length, self.limits = prompt_length, limits

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        limits = torch.tensor(self.limits, device=input_ids.device)
        return input_ids.shape[1] - self.prompt_length >= limits


class ProgressStopper(StoppingCriteria):
    """Stops generation if a progress callback raises.

    The exception is raised after generation: an exception that passes through PEFT would leave its
    hooks on the layers.
    """

    def __init__(self, on_token: Callable[[], None] | None):
        self.on_token = on_token
        self.raised: Exception | None = None

    def call(self, callback: Callable[..., None], *args: Any) -> None:
        """Call back, unless a callback has raised. Its exception is stored in `raised`."""
        if self.raised is None:
            try:
                callback(*args)
            except Exception as error:  # noqa: BLE001 - raised when generation has ended
                self.raised = error

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if self.on_token:
            self.call(self.on_token)
        return torch.full((input_ids.shape[0],), self.raised is not None, device=input_ids.device)


class _Streamer(BaseStreamer):
    """Collects the tokens of every row of a batch as they are generated."""

    def __init__(self, adapted: AdaptedModel, on_text: Callable[[int, str], None]):
        self.adapted, self.on_text = adapted, on_text
        self.stops = adapted.answer_tokens.stops
        self.rows: list[list[int]] | None = None
        self.ended: set[int] = set()

    def put(self, value: torch.Tensor) -> None:
        """Take the prompts at the first call, later one token of each row."""
        if self.rows is None:
            self.rows = [[] for _ in range(value.shape[0])]
            return
        for row, token in enumerate(value.tolist()):
            if row not in self.ended:
                self.rows[row].append(token)
                self.on_text(row, decode(self.adapted, self.rows[row]))
                if token in self.stops:
                    self.ended.add(row)

    def end(self) -> None:
        """Nothing to do at the end."""
