"""Tokenizes texts and maps spans of characters to spans of tokens."""

import functools
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peft_space.compat.transformers import special_tokens_as_text
from peft_space.data.messages import Message
from peft_space.data.tokenization.answer_spans import Note, Span
from peft_space.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class AnnotatedText:
    """A text and its trained characters. Special tokens that the row's author typed are escaped."""

    text: str
    trained: list[Span]
    """Spans of characters that have a loss."""
    typed: dict[str, str]
    """Private character -> the special token that the row's author typed."""
    add_bos: bool = False
    add_eos: bool = False
    """True if EOS follows the text and has a loss."""
    notes: frozenset[Note] = frozenset()
    begins: tuple[int, ...] = ()
    """Where prompts end and trained answers begin."""
    untrained: frozenset[int] = frozenset()
    """Ids of the tokens that stand for pictures, which never have a loss."""


@dataclass(frozen=True)
class Encoded:
    """Token ids (T,), trained spans of tokens, and the text of each token (T,) if requested."""

    ids: list[int]
    trained: list[Span]
    texts: list[str]


# Special tokens that a row's author typed

_FIRST_PLACEHOLDER = 0x10F000
"""A private-use character that no text contains."""


@functools.lru_cache(maxsize=32)
def special_tokens_of(
    tokenizer: "PreTrainedTokenizerFast",
) -> tuple[tuple[str, ...], re.Pattern[str]]:
    """Return the model's special tokens, the longest first, and a pattern that matches them."""
    names = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special_tokens = sorted(names, key=len, reverse=True)
    pattern = "|".join(map(re.escape, special_tokens)) or r"(?!)"
    return tuple(special_tokens), re.compile(pattern)


def escape_special_tokens(
    tokenizer: "PreTrainedTokenizerFast", messages: list[Message]
) -> tuple[list[Message], dict[str, str]]:
    """Replace special tokens in the text of messages by private characters.

    Returns:
        The messages, and private character -> special token.

    Raises:
        UserError: the messages already contain these private characters.
    """
    special_tokens, pattern = special_tokens_of(tokenizer)
    texts = [text for message in messages for text in _texts_of(message)]
    if not any(pattern.search(text) for text in texts):
        return messages, {}
    escapes = {token: chr(_FIRST_PLACEHOLDER + n) for n, token in enumerate(special_tokens)}
    if any(character in text for text in texts for character in escapes.values()):
        raise UserError(
            "data.private_use_characters",
            "A row contains both private-use characters and special tokens of the model. "
            "Remove one of them.",
        )

    def escape(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(lambda match: escapes[match[0]], value)
        if isinstance(value, dict):
            return {key: escape(inner) for key, inner in value.items()}
        return [escape(inner) for inner in value] if isinstance(value, list) else value

    escaped = [escape(message) | {"role": message["role"]} for message in messages]
    for message, copy in zip(messages, escaped, strict=True):
        if "trained" in message:  # places in the content, which is shorter now
            content = message["content"]
            copy["trained"] = [[len(escape(content[:at])) for at in s] for s in message["trained"]]
    return escaped, {character: token for token, character in escapes.items()}


def _texts_of(message: Message) -> list[str]:
    texts = [message["content"], message.get("reasoning_content") or ""]
    if "tool_calls" in message:
        texts.append(json.dumps(message["tool_calls"], ensure_ascii=False))
    return texts


# Unknown characters


@functools.lru_cache(maxsize=32)
def unknown_id(tokenizer: "PreTrainedTokenizerFast") -> int | None:
    """Return the id that stands for unknown text, or None if that id has other uses too."""
    others = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
    number = tokenizer.unk_token_id
    return None if number in others else number


@functools.lru_cache(maxsize=32)
def _loses_line_breaks(tokenizer: "PreTrainedTokenizerFast") -> bool:
    return _ids_of(tokenizer, "a\nb") == _ids_of(tokenizer, "a b")


def unknown_characters(
    tokenizer: "PreTrainedTokenizerFast", annotated: AnnotatedText, encoded: Encoded
) -> str:
    """Return the characters of the trained text that have no token, each once, in order."""
    number, found = unknown_id(tokenizer), ""
    spans = [annotated.text[start:end] for start, end in annotated.trained]
    if any("\n" in text.strip() for text in spans) and _loses_line_breaks(tokenizer):
        found = "\n"
    ids = encoded.ids
    if number is not None and any(number in ids[start:end] for start, end in encoded.trained):
        for text in spans:
            plain = "".join(character for character in text if character not in annotated.typed)
            encoding = tokenizer.backend_tokenizer.encode(plain, add_special_tokens=False)
            places = zip(encoding.ids, encoding.offsets, strict=True)
            found += "".join(plain[start:end] for one, (start, end) in places if one == number)
    return "".join(dict.fromkeys(found))[:_MAX_UNKNOWN]


_MAX_UNKNOWN = 50


# From text to tokens


def encode(
    tokenizer: "PreTrainedTokenizerFast", annotated: Sequence[AnnotatedText], with_texts: bool
) -> list[Encoded]:
    """Tokenize texts together; escaped special tokens become plain text.

    Args:
        annotated: N texts.
        with_texts: also return the text of each token.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    encoded: dict[int, Encoded] = {}
    plain = [number for number, text in enumerate(annotated) if not text.typed]
    if not with_texts and (special_ids := _exact_special_tokens(tokenizer)):
        texts = [annotated[number].text for number in plain]
        fast = backend.encode_batch_fast(texts, add_special_tokens=False)
        for number, encoding in zip(plain, fast, strict=True):
            located = _locate_by_special_tokens(
                tokenizer, special_ids, annotated[number], encoding.ids
            )
            if located is not None:
                encoded[number] = located
        plain = [number for number in plain if number not in encoded]
    texts = [annotated[number].text for number in plain]
    encodings = backend.encode_batch(texts, add_special_tokens=False)
    for number, encoding in zip(plain, encodings, strict=True):
        merged = _merged_starts(tokenizer, annotated[number], encoding)
        if not merged:
            encoded[number] = _locate_by_offsets(annotated[number], encoding, with_texts)
        else:
            encoded[number] = _encode_piecewise(tokenizer, annotated[number], merged)
    for number, text in enumerate(annotated):
        if number not in encoded:
            starts = [start for start in text.begins if text.text[start - 1].isspace()]
            encoded[number] = _encode_piecewise(tokenizer, text, starts)
    has_bos = any(text.add_bos for text in annotated) and texts_begin_with_bos(tokenizer)
    return [
        _with_bos_and_eos(tokenizer, encoded[number], has_bos and text.add_bos, text.add_eos)
        for number, text in enumerate(annotated)
    ]


def texts_begin_with_bos(tokenizer: "PreTrainedTokenizerFast") -> bool:
    """Return True if the tokenizer puts BOS before a text. Then training does so too."""
    return tokenizer.bos_token_id in tokenizer("a")["input_ids"][:1]


@functools.lru_cache(maxsize=32)
def _exact_special_tokens(tokenizer: "PreTrainedTokenizerFast") -> dict[str, int]:
    """Return special token -> id, or nothing if one of them absorbs adjacent white space."""
    tokens = [token for token in tokenizer.added_tokens_decoder.items() if token[1].special]
    if any(token.lstrip or token.rstrip or token.normalized for _, token in tokens):
        return {}
    return {str(token): number for number, token in tokens}


_MAX_GAP = 80
"""Characters between a special token and a boundary, which the template writes."""


def _locate_by_special_tokens(
    tokenizer: "PreTrainedTokenizerFast",
    special_ids: dict[str, int],
    annotated: AnnotatedText,
    ids: list[int],
) -> Encoded | None:
    """Map the trained spans to tokens without character offsets; None if that is not certain.

    Offsets take a third of the time of tokenization. A special token is the same in the text and in
    the ids. So the places directly before and after it correspond, and so do start and end. From
    there, the text up to the boundary of a span must have the same tokens on its own.
    """
    anchors = _anchors(special_tokens_of(tokenizer)[1], special_ids, annotated.text, ids)
    if anchors is None:
        return None
    ends, edges = anchors

    def token_at(place: int) -> int | None:
        if place in edges:
            return edges[place]
        before = max(end for end in ends if end <= place)
        if place - before > _MAX_GAP:
            return None
        gap = _ids_of(tokenizer, annotated.text[before:place])
        first = ends[before]
        return first + len(gap) if tuple(ids[first : first + len(gap)]) == gap else None

    if any(annotated.text[at - 1].isspace() and token_at(at) is None for at in annotated.begins):
        return None
    spans: list[Span] = []
    for start, end in annotated.trained:
        first, last = token_at(start), token_at(end)
        if first is None or last is None or first >= last:
            return None
        spans.append((first, last))
    return Encoded(ids, spans, [])


def _anchors(
    pattern: re.Pattern[str], special_ids: dict[str, int], text: str, ids: list[int]
) -> tuple[dict[int, int], dict[int, int]] | None:
    """Return place in the text -> place in the ids: ends of special tokens, and all their edges."""
    ends, edges, position = {0: 0}, {0: 0, len(text): len(ids)}, 0
    counts: Counter[int] = Counter()
    for match in pattern.finditer(text):
        number = special_ids[match[0]]
        try:
            position = ids.index(number, position)
        except ValueError:
            return None
        counts[number] += 1
        edges[match.start()] = position
        position += 1
        ends[match.end()] = edges[match.end()] = position
    # an unknown character can have the same id as a special token
    is_exact = all(ids.count(number) == count for number, count in counts.items())
    return (ends, edges) if is_exact else None


@functools.lru_cache(maxsize=512)
def _ids_of(tokenizer: "PreTrainedTokenizerFast", text: str) -> tuple[int, ...]:
    return tuple(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)


def _locate_by_offsets(annotated: AnnotatedText, encoding: "Encoding", with_texts: bool) -> Encoded:
    def first_token(characters: range) -> int | None:
        tokens = (encoding.char_to_token(character) for character in characters)
        return next((token for token in tokens if token is not None), None)

    def to_tokens(span: Span) -> Span | None:
        first, last = first_token(range(*span)), first_token(range(span[1] - 1, span[0] - 1, -1))
        if first is None or last is None:
            return None
        characters = encoding.token_to_chars(last)
        while last + 1 < len(encoding) and encoding.token_to_chars(last + 1) == characters:
            last += 1  # a character of several tokens
        return first, last + 1

    texts = _token_texts(annotated.text, encoding.offsets) if with_texts else []
    return Encoded(encoding.ids, _map_spans(annotated, to_tokens), texts)


def _map_spans(annotated: AnnotatedText, to_tokens: Callable[[Span], Span | None]) -> list[Span]:
    return [span for characters in annotated.trained if (span := to_tokens(characters))]


def _token_texts(text: str, offsets: Sequence[Span]) -> list[str]:
    """Return the text of each token; each character occurs once.

    Some offsets leave characters out: a space before a word, or a mark that is composed with the
    character before it.
    """
    texts: list[str] = []
    position = 0
    for start, end in offsets:
        between = text[position:start]
        if between and texts and not between.isspace():
            texts[-1] += between
            position = start
        texts.append(text[position:end] if end > position else "")
        position = max(position, end)
    if texts:
        texts[-1] += text[position:]
    return texts


def _merged_starts(
    tokenizer: "PreTrainedTokenizerFast", annotated: AnnotatedText, encoding: "Encoding"
) -> list[int]:
    """Return where an answer has to be tokenized on its own, as after a space.

    The prompt alone has other tokens there.
    """
    starts = []
    for start in annotated.begins:
        if annotated.text[start - 1].isspace():
            prompt = _ids_of(tokenizer, annotated.text[:start])
            if tuple(encoding.ids[: len(prompt)]) != prompt:
                starts.append(start)
    return starts


@functools.lru_cache(maxsize=32)
def _adds_space(tokenizer: "PreTrainedTokenizerFast") -> bool:
    """Return True if the tokenizer puts a space before each text, also in the middle of one."""
    return tokenizer.decode([*_ids_of(tokenizer, "a")] * 2) != "aa"


def _encode_piecewise(
    tokenizer: "PreTrainedTokenizerFast", annotated: AnnotatedText, starts: Sequence[int] = ()
) -> Encoded:
    """Tokenize the parts between escaped special tokens, and these tokens as plain text.

    Args:
        tokenizer: of the model.
        annotated: the text.
        starts: further places where a part begins.
    """
    ids: list[int] = []
    offsets: list[Span] = []
    texts: list[str] = []
    position = 0
    for piece in _parts(annotated, starts):
        typed = annotated.typed.get(piece)
        if typed is None:
            more, places = _encode_part(tokenizer, piece, is_first=position == 0)
            offsets += [(position + start, position + end) for start, end in places]
        else:
            with special_tokens_as_text(tokenizer):
                more, places = _encode_part(tokenizer, typed, is_first=position == 0)
            offsets += [(position, position + 1)] * len(more)
        ids += more
        texts += _token_texts(typed or piece, places)
        position += len(piece)

    def to_tokens(span: Span) -> Span | None:
        inside = [n for n, (start, end) in enumerate(offsets) if start < span[1] and end > span[0]]
        return (inside[0], inside[-1] + 1) if inside else None

    return Encoded(ids, _map_spans(annotated, to_tokens), texts)


_FIRST = "\n"
"""A text before a part, so that the tokenizer does not put a space before the part itself."""


def _encode_part(
    tokenizer: "PreTrainedTokenizerFast", part: str, is_first: bool
) -> tuple[list[int], list[Span]]:
    """Return the ids and offsets of a part of a text, without a space that only begins a text."""
    backend = tokenizer.backend_tokenizer
    encoding = backend.encode(part, add_special_tokens=False)
    if is_first or not part or not _adds_space(tokenizer):
        return encoding.ids, encoding.offsets
    first = list(_ids_of(tokenizer, _FIRST))
    longer = backend.encode(_FIRST + part, add_special_tokens=False)
    if longer.ids[: len(first)] != first:
        return encoding.ids, encoding.offsets
    places = [(start - len(_FIRST), end - len(_FIRST)) for start, end in longer.offsets]
    return longer.ids[len(first) :], places[len(first) :]


def _parts(annotated: AnnotatedText, starts: Sequence[int]) -> Iterator[str]:
    """Yield the escaped special tokens of a text, and the parts between these and `starts`."""
    for begin, end in itertools.pairwise([0, *starts, len(annotated.text)]):
        part = annotated.text[begin:end]
        if annotated.typed:
            yield from filter(None, re.split(f"([{''.join(annotated.typed)}])", part))
        else:
            yield part


def _with_bos_and_eos(
    tokenizer: "PreTrainedTokenizerFast", encoded: Encoded, add_bos: bool, add_eos: bool
) -> Encoded:
    """Add BOS before the tokens and a trained EOS after them."""
    ids, trained, texts = encoded.ids, encoded.trained, encoded.texts
    if add_bos:
        ids = [tokenizer.bos_token_id, *ids]
        trained = [(start + 1, end + 1) for start, end in trained]
        texts = [str(tokenizer.bos_token), *texts] if texts else []
    if add_eos:
        if trained and trained[-1][1] == len(ids):
            trained = [*trained[:-1], (trained[-1][0], len(ids) + 1)]
        else:
            trained = [*trained, (len(ids), len(ids) + 1)]
        ids = [*ids, tokenizer.eos_token_id]
        texts = [*texts, str(tokenizer.eos_token)] if texts else []
    return Encoded(ids, trained, texts)
