"""Reconciles the special tokens of a model, its tokenizer and its chat template.

Training, scores, answers and exports all take padding, stop tokens and languages from here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_space.compat.transformers import target_mode
from peft_space.data.arrow_store import MASKED
from peft_space.data.tokenization.render import stop_token_ids
from peft_space.errors import UserError
from peft_space.models.architecture import text_config
from peft_space.recipe import Task

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import (
        GenerationConfig,
        PreTrainedConfig,
        PreTrainedTokenizerBase,
        PreTrainedTokenizerFast,
    )


def choose_pad_token(
    tokenizer: "PreTrainedTokenizerBase", config: "PreTrainedConfig"
) -> tuple[str, str] | None:
    """Give a tokenizer a padding token that the model has an embedding for.

    Padding is masked, so its embedding does not matter, but it needs one. A model whose tokenizer
    has no such token is padded with its own padding token, or with EOS or another special token.

    Args:
        tokenizer: its padding token is replaced if there is no embedding for it.
        config: of the model.

    Returns:
        What pads rows, and why it is not what the tokenizer or the config says. None if it is, or
        if they say nothing.
    """
    own, own_id = tokenizer.pad_token, tokenizer.pad_token_id
    configured = getattr(text_config(config), "pad_token_id", None)
    candidates = [
        own_id,
        configured,
        tokenizer.eos_token_id,
        tokenizer.unk_token_id,
        tokenizer.bos_token_id,
        tokenizer.cls_token_id,
    ]
    if config.is_encoder_decoder:  # its classifiers look for the only EOS of a row
        candidates.sort(key=lambda token: token == tokenizer.eos_token_id)
    size = min(len(tokenizer), _vocabulary_size(config) or len(tokenizer))
    chosen = next((token for token in candidates if token is not None and 0 <= token < size), None)
    if chosen is None:
        tokenizer.pad_token = None
        return None
    if chosen != own_id:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(chosen)
    what = f"Rows are padded with the token {tokenizer.pad_token}."
    if own_id is not None and chosen != own_id:
        reason = "has no embedding in the base"
        if 0 <= own_id < size:
            reason = "is its end token, at which this base reads the label of a row"
        return what, f"The padding token of the tokenizer, {own}, {reason}."
    if own_id is not None and configured not in (None, chosen):
        return what, f"It is the tokenizer's. The config of the base names token {configured:,}."
    return None


def _vocabulary_size(config: "PreTrainedConfig") -> int | None:
    return getattr(text_config(config), "vocab_size", None)


def forget_foreign_pad_token(config: "PreTrainedConfig") -> None:
    """Remove a padding token without an embedding from a config: no model can be built with it."""
    for part in _parts_of(config):
        size, pad = getattr(part, "vocab_size", None), getattr(part, "pad_token_id", None)
        if isinstance(size, int) and isinstance(pad, int) and not 0 <= pad < size:
            part.pad_token_id = None


def _parts_of(config: Any) -> "Iterator[PreTrainedConfig]":
    """The config and the configs in it, of its text part for instance."""
    from transformers import PreTrainedConfig

    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from _parts_of(value)


def set_special_tokens(model: Any, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Make a model use the padding token, and a classifier the EOS, of its tokenizer.

    A decoder with a head for labels reads its answer at the last token that is not padding, and an
    encoder-decoder reads it at EOS. With other tokens than the tokenizer's they would read it
    elsewhere. Composite models look the tokens up in any of their configs.

    Args:
        model: with or without an adapter.
        tokenizer: what pads the model's batches.
    """
    from transformers import PreTrainedModel

    configs = [model.config, text_config(model.config)]
    configs += [part.config for part in model.modules() if isinstance(part, PreTrainedModel)]
    for config in configs:
        for part in _parts_of(config):
            part.pad_token_id = tokenizer.pad_token_id
    classifies = model.get_output_embeddings() is None
    if classifies and model.config.is_encoder_decoder and tokenizer.eos_token_id is not None:
        model.config.eos_token_id = tokenizer.eos_token_id


@dataclass(frozen=True)
class AnswerTokens:
    """The token ids that begin, end and pad the answers of a model."""

    stops: list[int]
    """An answer ends at any of them."""
    pad: int
    decoder_start: int | None = None
    """Of an encoder-decoder: what its decoder begins with."""
    forced_first: int | None = None
    """The first token of each answer, if it is the target language and not the model's choice."""
    before: tuple[int, ...] = ()
    """What precedes the text of an answer: the tokenizer puts it before targets."""


def decoder_inputs(model: Any, labels: "Tensor") -> "Tensor":
    """Return the labels (B, T) moved one place to the right, as an encoder-decoder does itself."""
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        # FSMT writes padding into the labels that it is given
        return model.prepare_decoder_input_ids_from_labels(labels=labels.clone())
    moved = labels.roll(1, 1)
    moved[:, 0] = model.config.decoder_start_token_id
    return moved.masked_fill(moved == MASKED, model.config.pad_token_id)


def answer_tokens(
    tokenizer: Any, task: Task, generation: "GenerationConfig | None", model: Any = None
) -> AnswerTokens:
    """The tokens around the answers of a model that was trained with this tokenizer.

    Args:
        tokenizer: as in training.
        task: a task that writes text.
        generation: of the base. Its stop tokens stay, and those that are trained are added.
        model: the base; needed for an encoder-decoder.
    """
    own = _as_list(getattr(generation, "eos_token_id", None))
    trained = [tokenizer.eos_token_id] if task == "seq2seq-lm" else stop_token_ids(tokenizer)
    known = [token for token in (*trained, *own) if _is_token(token, tokenizer)]
    stops = sorted(set(known))
    if task != "seq2seq-lm":
        return AnswerTokens(stops, tokenizer.pad_token_id)
    frame = target_frame(tokenizer)
    end = frame.after or [tokenizer.eos_token_id]
    start = None if model is None else _decoder_start(model, end, generation)
    forced = frame.before[:1] == [frame.language]
    first = frame.language if forced else None
    return AnswerTokens(stops, tokenizer.pad_token_id, start, first, tuple(frame.before))


def save_generation_config(
    generation: "GenerationConfig", tokens: AnswerTokens, folder: Path
) -> None:
    """Write settings for answers with these tokens at their ends."""
    generation.eos_token_id, generation.pad_token_id = tokens.stops, tokens.pad
    make_valid(generation)
    generation.save_pretrained(folder)


def make_valid(generation: "GenerationConfig") -> None:
    """Some models set a temperature without sampling, which cannot be saved."""
    try:
        generation.validate(strict=True)
    except ValueError:
        generation.do_sample = True


def _decoder_start(model: Any, end: list[int], generation: "GenerationConfig | None") -> int | None:
    """What the decoder begins with in training, or else what the base says."""
    import torch

    # some begin with the last token of the target, which may be its language
    target = torch.tensor([[end[0], *end]], device=model.device)
    try:
        return int(decoder_inputs(model, target)[0, 0])
    except (TypeError, ValueError):  # it knows no such token
        return getattr(generation, "decoder_start_token_id", None)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_token(token: Any, tokenizer: Any) -> bool:
    is_number = isinstance(token, int) and not isinstance(token, bool)
    return is_number and 0 <= token < len(tokenizer)


# Languages

Languages = tuple[str | None, str | None]
"""Source and target, as the tokenizer calls them; None for its own setting."""
_MAX_NAMED = 12


def set_languages(tokenizer: Any, name: str, languages: Languages) -> None:
    """Set the languages of a translation.

    Args:
        tokenizer: of an encoder-decoder.
        name: of its model, for messages.
        languages: what the recipe says.

    Raises:
        UserError: the tokenizer needs languages that nobody gave, or does not know them.
    """
    source, target = languages
    if not hasattr(tokenizer, "tgt_lang"):
        if source or target:
            raise UserError(
                "models.no_languages",
                f"The tokenizer of {name} does not mark languages, so it cannot use src_lang or "
                "tgt_lang. Leave both empty, and name the language in the texts if it matters.",
            )
        return
    if (target is None and tokenizer.tgt_lang is None) or (source is None and target is not None):
        raise UserError(
            "models.language_missing",
            f"The tokenizer of {name} marks each text with its language. "
            "Set src_lang and tgt_lang in the recipe"
            f"{_examples(tokenizer)}.",
        )
    source, target = source or tokenizer.src_lang, target or tokenizer.tgt_lang
    for field, language in (("src_lang", source), ("tgt_lang", target)):
        if language not in _special_tokens(tokenizer):
            raise UserError(
                "models.unknown_language",
                f"The tokenizer of {name} has no language {language!r}. "
                f"Set {field} to one that it has{_examples(tokenizer)}.",
            )
    tokenizer.tgt_lang = target
    tokenizer.src_lang = source


def _special_tokens(tokenizer: Any) -> list[str]:
    return [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]


def _examples(tokenizer: Any) -> str:
    named = {*tokenizer.special_tokens_map.values()} - {None}
    codes = [token for token in _special_tokens(tokenizer) if token not in map(str, named)]
    return f", such as {', '.join(codes[:_MAX_NAMED])}" if codes else ""


@dataclass(frozen=True)
class TargetFrame:
    """The tokens that a tokenizer puts around a target."""

    before: list[int]
    after: list[int]
    language: int | None
    """The token of the target language, which is one of them. None if targets have none."""


def target_frame(tokenizer: "PreTrainedTokenizerFast") -> TargetFrame:
    """Return the tokens around a target, in the target language of the tokenizer."""
    with target_mode(tokenizer):
        encoding = tokenizer.backend_tokenizer.encode("a")
    inside = [place for place, sequence in enumerate(encoding.sequence_ids) if sequence is not None]
    first, last = (inside[0], inside[-1] + 1) if inside else (0, 0)
    language = getattr(tokenizer, "tgt_lang", None)
    code: Any = tokenizer.convert_tokens_to_ids(language) if language else None
    return TargetFrame(encoding.ids[:first], encoding.ids[last:], code)
