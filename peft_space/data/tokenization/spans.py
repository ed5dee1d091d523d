"""From a text to token ids, and from its characters to them. Control tokens that a row's author typed stay text.

Knows tokenizers; knows no chat template and no rows.
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from peft_space.data.records import Message
from peft_space.errors import UserError

Span = tuple[int, int]
"""Where something begins and ends, the end not included: in characters of a text, or in tokens."""


@dataclass(frozen=True)
class AnnotatedText:
    """A text and which of its characters are trained. Each control token that was typed by the row's author stands in it as one character of `typed`."""

    text: str
    trained: list[Span]
    typed: dict[str, str]
    add_bos: bool = False
    ends: bool = False
    """Whether EOS belongs after the text, and is trained."""


@dataclass(frozen=True)
class Encoded:
    """Token ids (T,) of a marked text, the token spans that are trained, and, where it was asked for, the text of each token (T,)."""

    ids: list[int]
    trained: list[Span]
    texts: list[str]


# Control tokens that a row's author typed: they stay text

_FIRST_PLACEHOLDER = 0x10F000
"""In a plane that no text uses (private use)."""


@functools.lru_cache(maxsize=32)
def special_tokens_of(tokenizer: Any) -> tuple[tuple[str, ...], "re.Pattern[str]"]:
    """The model's control tokens, and a pattern that finds them. Those of a tokenizer do not change."""
    specials = sorted(
        {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special},
        key=len,
        reverse=True,
    )
    return tuple(specials), re.compile("|".join(map(re.escape, specials)) or r"(?!)")


def escape_special_tokens(
    tokenizer: Any, messages: list[Message]
) -> tuple[list[Message], dict[str, str]]:
    """The messages with each typed control token as one private character, and which character stands for what."""
    specials, pattern = special_tokens_of(tokenizer)
    if not any(pattern.search(text) for message in messages for text in _texts_of(message)):
        return messages, {}
    stand_ins = {
        special: chr(_FIRST_PLACEHOLDER + number) for number, special in enumerate(specials)
    }
    if any(
        character in text
        for message in messages
        for text in _texts_of(message)
        for character in stand_ins.values()
    ):
        raise UserError(
            "todo",
            "A text has private-use characters and control tokens of the model at once. Remove either.",
        )

    def hide(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(lambda match: stand_ins[match[0]], value)
        if isinstance(value, dict):
            return {key: hide(inner) for key, inner in value.items()}
        return [hide(inner) for inner in value] if isinstance(value, list) else value

    return [hide(message) | {"role": message["role"]} for message in messages], {
        sign: special for special, sign in stand_ins.items()
    }


def _texts_of(message: Message) -> list[str]:
    return (
        [message["content"], json.dumps(message["tool_calls"], ensure_ascii=False)]
        if "tool_calls" in message
        else [message["content"]]
    )


# From text to tokens


def encode(tokenizer: Any, marked: Sequence[AnnotatedText], with_texts: bool) -> list[Encoded]:
    """Tokenize in one go; a text with typed control tokens in pieces, so that those become text and nothing else changes."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    done: dict[int, Encoded] = {}
    plain = [number for number, one in enumerate(marked) if not one.typed]
    if not with_texts and (controls := _unescaped_special_tokens(tokenizer)):
        fast = backend.encode_batch_fast(
            [marked[number].text for number in plain], add_special_tokens=False
        )
        for number, encoding in zip(plain, fast, strict=True):
            if (
                found := _spans_by_special_tokens(tokenizer, controls, marked[number], encoding.ids)
            ) is not None:
                done[number] = found
        plain = [number for number in plain if number not in done]
    for number, encoding in zip(
        plain,
        backend.encode_batch([marked[number].text for number in plain], add_special_tokens=False),
        strict=True,
    ):
        done[number] = _by_offsets(marked[number], encoding, with_texts)
    whole = [
        done[number] if number in done else _encode_piecewise(tokenizer, one)
        for number, one in enumerate(marked)
    ]
    opens = (
        any(one.add_bos for one in marked)
        and tokenizer.bos_token_id in tokenizer("a")["input_ids"][:1]
    )
    return [
        _completed(tokenizer, given, one, opens and given.add_bos)
        for given, one in zip(marked, whole, strict=True)
    ]


@functools.lru_cache(maxsize=32)
def _unescaped_special_tokens(tokenizer: Any) -> dict[str, int]:
    """The control tokens, if none of them takes in the white space beside it; else nothing."""
    tokens = [token for token in tokenizer.added_tokens_decoder.items() if token[1].special]
    return (
        {}
        if any(token.lstrip or token.rstrip or token.normalized for _, token in tokens)
        else {str(token): number for number, token in tokens}
    )


_LONGEST_GAP = 80
"""Characters between a control token and the place that is looked for: what a template writes there."""


def _spans_by_special_tokens(
    tokenizer: Any, controls: dict[str, int], marked: AnnotatedText, ids: list[int]
) -> Encoded | None:
    """The trained spans without character offsets, which cost a third of the time of tokenizing; None where that is not certain.

    A control token stands for itself in the text and in the ids, so the places directly before and after it are the same in both; likewise
    the beginning and the end. From there, what the template has written up to the place in question has to be the same tokens alone.
    """
    _, pattern = special_tokens_of(tokenizer)
    after, edges, at = (
        {0: 0},
        {0: 0, len(marked.text): len(ids)},
        0,
    )  # places in the text -> places in the ids
    seen: Counter[int] = Counter()
    for match in pattern.finditer(marked.text):
        number = controls[match[0]]
        try:
            at = ids.index(number, at)
        except ValueError:
            return None
        seen[number] += 1
        edges[match.start()] = at
        at += 1
        after[match.end()] = edges[match.end()] = at
    if any(
        ids.count(number) != count for number, count in seen.items()
    ):  # one of them stands for an unknown character too
        return None

    def token_at(place: int) -> int | None:
        if place in edges:
            return edges[place]
        before = max(end for end in after if end <= place)
        if place - before > _LONGEST_GAP:
            return None
        gap = _ids_of(tokenizer, marked.text[before:place])
        first = after[before]
        return first + len(gap) if tuple(ids[first : first + len(gap)]) == gap else None

    spans = [(token_at(start), token_at(end)) for start, end in marked.trained]
    if any(start is None or end is None or start >= end for start, end in spans):
        return None
    return Encoded(ids, spans, [])  # type: ignore[arg-type]


@functools.lru_cache(maxsize=512)
def _ids_of(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)


def _by_offsets(marked: AnnotatedText, encoding: Any, with_texts: bool) -> Encoded:
    def to_tokens(span: Span) -> Span | None:
        start, end = span
        first = next(
            (
                token
                for at in range(start, end)
                if (token := encoding.char_to_token(at)) is not None
            ),
            None,
        )
        last = next(
            (
                token
                for at in range(end - 1, start - 1, -1)
                if (token := encoding.char_to_token(at)) is not None
            ),
            None,
        )
        if first is None or last is None:
            return None
        while last + 1 < len(encoding) and encoding.token_to_chars(
            last + 1
        ) == encoding.token_to_chars(last):
            last += 1  # a character of several tokens
        return first, last + 1

    return Encoded(
        encoding.ids,
        _locate_spans(marked, to_tokens),
        _parts(marked.text, encoding.offsets) if with_texts else [],
    )


def _locate_spans(marked: AnnotatedText, to_tokens: Callable[[Span], Span | None]) -> list[Span]:
    return [span for block in marked.trained if (span := to_tokens(block))]


def _parts(text: str, offsets: Sequence[Span]) -> list[str]:
    """The text by tokens, each character once."""
    parts, at = [], 0
    for start, end in offsets:
        parts.append(text[max(at, start) : end])
        at = max(at, end)
    return parts


def _encode_piecewise(tokenizer: Any, marked: AnnotatedText) -> Encoded:
    backend = tokenizer.backend_tokenizer
    ids: list[int] = []
    offsets: list[Span] = []
    texts: list[str] = []
    at = 0
    for piece in re.split(f"([{''.join(marked.typed)}])", marked.text):
        typed = marked.typed.get(piece)
        backend.encode_special_tokens = typed is not None
        encoding = backend.encode(typed or piece, add_special_tokens=False)
        ids += encoding.ids
        offsets += [
            (at, at + 1) if typed else (at + start, at + end) for start, end in encoding.offsets
        ]
        texts += _parts(typed or piece, encoding.offsets)
        at += len(piece)
    backend.encode_special_tokens = False

    def to_tokens(span: Span) -> Span | None:
        inside = [
            number
            for number, (start, end) in enumerate(offsets)
            if start < span[1] and end > span[0]
        ]
        return (inside[0], inside[-1] + 1) if inside else None

    return Encoded(ids, _locate_spans(marked, to_tokens), texts)


def _completed(tokenizer: Any, marked: AnnotatedText, encoded: Encoded, opens: bool) -> Encoded:
    """With BOS before it and EOS behind it, where they belong."""
    if not opens and not marked.ends:
        return encoded
    ids, trained, texts = encoded.ids, encoded.trained, encoded.texts
    if opens:
        ids, trained = (
            [tokenizer.bos_token_id, *ids],
            [(start + 1, end + 1) for start, end in trained],
        )
        texts = [tokenizer.bos_token, *texts] if texts else []
    if marked.ends:
        ids, texts = [*ids, tokenizer.eos_token_id], [*texts, tokenizer.eos_token] if texts else []
        if trained and trained[-1][1] == len(ids) - 1:
            trained = [*trained[:-1], (trained[-1][0], len(ids))]
        else:
            trained = [*trained, (len(ids) - 1, len(ids))]
    return Encoded(ids, trained, texts)
