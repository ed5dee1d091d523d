"""Rows of tasks that use no chat template: a text and its label, tokens and their tags, a source and its target.

They are tokenized as the model's authors do it, with the tokenizer's own opening, separating and closing tokens. Knows no files and no models.
"""

from typing import Any

from peft_space.data.records import Conversation, Message, TextClassification, TokenClassification
from peft_space.data.tokenization.example import TokenizedExample
from peft_space.errors import UserError

UNTAGGED = ""
"""The tag of a token that no loss is taken on: a control token, or one that goes on with a word."""


def render_text_classification(
    tokenizer: Any, row: TextClassification, max_length: int, with_texts: bool
) -> TokenizedExample:
    """The text, or both, cut at the end where they are too long, and the label."""
    encoding, cut = _encode(
        tokenizer, (row.text,) if row.second is None else (row.text, row.second), max_length
    )
    texts = _texts(encoding, [row.text, row.second or ""]) if with_texts else []
    types = (
        encoding.type_ids
        if any(encoding.type_ids) and "token_type_ids" in tokenizer.model_input_names
        else []
    )
    return TokenizedExample(
        row.row, encoding.ids, [], cut, texts=texts, label=row.label, types=types
    )


def render_token_classification(
    tokenizer: Any, row: TokenClassification, max_length: int, with_texts: bool
) -> TokenizedExample:
    """The tokens of each word, the first of them with the word's tag: (T,) tags."""
    encoding, cut = _encode(tokenizer, (row.tokens,), max_length)
    tags, before = [], None
    for word in encoding.word_ids:
        tags.append(UNTAGGED if word is None or word == before else row.tags[word])
        before = word
    texts = [
        token if word is None else row.tokens[word][start:end]
        for token, word, (start, end) in zip(
            encoding.tokens, encoding.word_ids, encoding.offsets, strict=True
        )
    ]
    return TokenizedExample(
        row.row, encoding.ids, [], cut, texts=texts if with_texts else [], tags=tags
    )


def render_source_target(
    tokenizer: Any, row: Conversation, max_length: int, with_texts: bool
) -> TokenizedExample:
    """What is read before the answer as source, and the answer as target, each within the limit. Raises UserError where there are several turns."""
    source, target = source_of(row), row.messages[-1]["content"]
    read, cut = _encode(tokenizer, (source,), max_length)
    written, target_cut = _encode(tokenizer, (target,), max_length)
    texts, target_texts = (
        _texts(encoding, [text]) if with_texts else []
        for encoding, text in ((read, source), (written, target))
    )
    answer = TokenizedExample(
        row.row, written.ids, [(0, len(written.ids))], target_cut, texts=target_texts
    )
    return TokenizedExample(row.row, read.ids, [], cut, texts=texts, target=answer)


def source_of(row: Conversation) -> str:
    """The text from which the answer is written. Raises UserError where more than one message is answered."""
    if sum(message["role"] == "assistant" for message in row.messages) != 1 or row.tools:
        raise UserError(
            "todo",
            f"Row {row.row}: a model that writes one text from another takes one question and one answer, without tools. "
            "Remove the row, or choose a model that continues text.",
        )
    return source_text(row.messages[:-1])


def source_text(messages: list[Message]) -> str:
    """Messages before an answer as the one text that it is written from."""
    return "\n\n".join(message["content"] for message in messages)


def _encode(tokenizer: Any, texts: tuple[Any, ...], max_length: int) -> tuple[Any, int]:
    """(encoding, how many tokens were cut off). Control tokens that the row's author typed stay text."""
    backend = tokenizer.backend_tokenizer
    words = not isinstance(texts[0], str)
    backend.encode_special_tokens = True
    backend.no_padding()
    backend.no_truncation()
    try:
        encoding = backend.encode(*texts, is_pretokenized=words)
        whole = len(encoding.ids)
        if whole > max_length:
            backend.enable_truncation(max_length, strategy="longest_first")
            encoding = backend.encode(*texts, is_pretokenized=words)
            backend.no_truncation()
    finally:
        backend.encode_special_tokens = False
    return encoding, whole - len(encoding.ids)


def _texts(encoding: Any, texts: list[str]) -> list[str]:
    """What each token stands for: its part of the text, or its name where the tokenizer has added it."""
    return [
        token if sequence is None else texts[sequence][start:end]
        for token, sequence, (start, end) in zip(
            encoding.tokens, encoding.sequence_ids, encoding.offsets, strict=True
        )
    ]
