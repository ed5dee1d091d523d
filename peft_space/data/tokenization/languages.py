"""Sets the languages of tokenizers that mark a text with its language, such as NLLB's."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peft_space.compat.transformers import target_mode
from peft_space.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

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
