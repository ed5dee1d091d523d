"""Turns a row into the token ids and labels that a trainer receives: one function, for preview and training alike.

Knows tokenizers and chat templates; knows no files and no models. What the model answers to in compare and evaluate is rendered here too.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from peft_space.data.records import (
    Conversation,
    Message,
    Preference,
    Row,
    Text,
    TextClassification,
    TokenClassification,
    UnpairedPreference,
)
from peft_space.data.tokenization.chat_template import (
    ChatTemplate,
    TemplateTimeout,
    load_chat_template,
    template_timeout,
)
from peft_space.data.tokenization.example import MASKED, TokenizedExample
from peft_space.data.tokenization.render_plain import (
    render_source_target,
    render_text_classification,
    render_token_classification,
)
from peft_space.data.tokenization.sandbox import RowLimit
from peft_space.data.tokenization.spans import (
    AnnotatedText,
    Encoded,
    Span,
    encode,
    escape_special_tokens,
)
from peft_space.errors import UserError
from peft_space.recipe import Task, TrainOn


def render(
    tokenizer: Any,
    rows: Sequence[Row],
    max_length: int,
    train_on: TrainOn = "automatic",
    task: Task = "causal-lm",
    with_texts: bool = True,
    watch: Callable[[int | None], None] = lambda row: None,
) -> list[TokenizedExample]:
    """Each row as the model gets it. Trained are the answers and, once each, the token that ends them; of labels and tags those.

    Args:
        watch: is told the number of each row that the template begins to write, and None when it has written the last.

    Raises UserError where the template refuses a row, naming it.
    """
    if task in _WITHOUT_TEMPLATE:
        return [_plain(tokenizer, row, max_length, with_texts) for row in rows]
    rejected = [
        dataclasses.replace(row, chosen=row.rejected) for row in rows if isinstance(row, Preference)
    ]
    texts = []
    for row in (*rows, *rejected):
        watch(row.row)
        texts.append(_text_of(tokenizer, row, train_on))
    watch(None)
    encoded = encode(tokenizer, texts, with_texts)
    examples = [
        _example(row, text, tokens, max_length)
        for row, text, tokens in zip((*rows, *rejected), texts, encoded, strict=True)
    ]
    if not rejected:
        return examples[: len(rows)]
    return [
        dataclasses.replace(chosen, rejected=worse)
        for chosen, worse in zip(examples, examples[len(rows) :], strict=False)
    ]


_WITHOUT_TEMPLATE: tuple[Task, ...] = (
    "seq2seq-lm",
    "sequence-classification",
    "token-classification",
)


def _plain(tokenizer: Any, row: Row, max_length: int, with_texts: bool) -> TokenizedExample:
    match row:
        case TextClassification():
            return render_text_classification(tokenizer, row, max_length, with_texts)
        case TokenClassification():
            return render_token_classification(tokenizer, row, max_length, with_texts)
        case Conversation():
            return render_source_target(tokenizer, row, max_length, with_texts)
    raise AssertionError(
        f"{type(row).__name__} rows are never given to a task without a chat template"
    )


def _example(
    row: Row, marked: AnnotatedText, encoded: Encoded, max_length: int
) -> TokenizedExample:
    ids = encoded.ids
    kept = [(start, min(end, max_length)) for start, end in encoded.trained if start < max_length]
    typed = any(sign in marked.text for sign in marked.typed)
    good = row.good if isinstance(row, UnpairedPreference) else None
    return TokenizedExample(
        row.row,
        ids[:max_length],
        kept,
        max(0, len(ids) - max_length),
        typed,
        encoded.texts[:max_length],
        good=good,
    )


def render_prompt(
    tokenizer: Any, messages: list[Message], tools: list[dict[str, Any]] | None = None
) -> str:
    """The text after which the model is to answer: the conversation so far, and the opening of the assistant's turn."""
    return load_chat_template(tokenizer, tools).write(messages, tools, prompt=True)


def prompt_ids(
    tokenizer: Any, messages: list[Message], tools: list[dict[str, Any]] | None = None
) -> list[int]:
    """`render_prompt` as token ids, as they stand before the answer in a rendered Example."""
    hidden, typed = escape_special_tokens(tokenizer, messages)
    [tokens] = encode(
        tokenizer,
        [
            AnnotatedText(
                load_chat_template(tokenizer, tools).write(hidden, tools, prompt=True), [], typed
            )
        ],
        with_texts=False,
    )
    return tokens.ids


def stop_token_ids(tokenizer: Any) -> list[int]:
    """The tokens after which the model has finished its answer: those that `render` trains at the end of one, and EOS."""
    probe = Conversation(
        0, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    )
    [example] = render(tokenizer, [probe], 100_000, "all_assistant")
    stop = load_chat_template(tokenizer).stop
    ids = [label for label in example.labels if label != MASKED]
    last = tokenizer.convert_tokens_to_ids(stop) if stop else ids[-1]
    return sorted({last, tokenizer.eos_token_id})


# From a row to its text, and which characters of it are trained


def _text_of(tokenizer: Any, row: Row, train_on: TrainOn) -> AnnotatedText:
    match row:
        case Conversation():
            return _conversation(tokenizer, row, train_on)
        case UnpairedPreference():
            return _conversation(tokenizer, Conversation(row.row, row.messages), "last_assistant")
        case Preference():
            return _conversation(
                tokenizer, Conversation(row.row, [*row.prompt, *row.chosen]), "last_assistant"
            )
        case Text():
            [hidden], typed = escape_special_tokens(
                tokenizer, [{"role": "user", "content": row.text}]
            )
            return AnnotatedText(
                hidden["content"], [(0, len(hidden["content"]))], typed, add_bos=True, ends=True
            )
    raise AssertionError(
        f"{type(row).__name__} rows are never given to a task with a chat template"
    )


def _conversation(tokenizer: Any, row: Conversation, train_on: TrainOn) -> AnnotatedText:
    messages, typed = escape_special_tokens(tokenizer, row.messages)
    try:
        template = load_chat_template(tokenizer, row.tools)
        return _marked(template, Conversation(row.row, messages, row.tools), train_on, typed)
    except TemplateTimeout:
        raise template_timeout(f"row {row.row}") from None
    except (UserError, RowLimit, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - a template is a program of the model's author and raises what it likes
        why = str(error).strip() or type(error).__name__
        raise UserError(
            "todo",
            f"Row {row.row}: the model's chat template refuses it ({why[:300]}). Remove the row, or choose another base model.",
        ) from None


def _marked(
    template: ChatTemplate, row: Conversation, train_on: TrainOn, typed: dict[str, str]
) -> AnnotatedText:
    weighted = any("weight" in message for message in row.messages)
    policy = (
        ("message_weights" if weighted else "all_assistant")
        if train_on == "automatic"
        else train_on
    )
    messages = row.messages
    if weighted:
        messages = [
            {key: value for key, value in message.items() if key != "weight"}
            for message in messages
        ]
    text, blocks = template.apply(messages, row.tools)
    if any(message.get("tool_calls") for message in messages) and template.leaves_out_calls:
        raise UserError(
            "todo",
            f"Row {row.row}: the model's chat template leaves out tool calls, so that an empty answer would be learnt. "
            "Remove the row, or choose another base model or chat template.",
        )
    if policy == "all_tokens":
        return AnnotatedText(
            text, [(0, len(text))], typed, ends=not _ended(template, text, [(0, len(text))])
        )
    weights = [
        message.get("weight", 1) for message in row.messages if message["role"] == "assistant"
    ]
    if blocks is None or (policy != "all_assistant" and len(blocks) != len(weights)):
        blocks = _from_prompt_to_stop(template, row, messages, text)
    if policy == "last_assistant":
        blocks = blocks[-1:]
    if policy == "message_weights":
        blocks = [block for block, weight in zip(blocks, weights, strict=True) if weight]
    last_is_trained = bool(blocks) and not template.without_controls(text[blocks[-1][1] :]).strip()
    return AnnotatedText(
        text, blocks, typed, ends=last_is_trained and not _ended(template, text, blocks)
    )


def _ended(template: ChatTemplate, text: str, blocks: list[Span]) -> bool:
    """Whether the last answer ends with a token that stops generation; where it does not, EOS has to be learnt, or the model never stops."""
    return text[: blocks[-1][1]].rstrip().endswith(tuple(template.specials)) if blocks else True


def _from_prompt_to_stop(
    template: ChatTemplate, row: Conversation, messages: list[Message], text: str
) -> list[Span]:
    """Where the answers stand: each from where the model is asked, to the token with which it stops."""
    starts = template.starts(row.row, messages, row.tools, text)
    spans = []
    for number, start in enumerate(starts):
        message = [message for message in messages if message["role"] == "assistant"][number]
        end = text.find(template.stop, start) if template.stop else -1
        if end >= 0:
            spans.append((start, end + len(str(template.stop))))
            continue
        at = text.find(message["content"].strip(), start)
        if at < 0:
            raise UserError(
                "todo",
                f"Row {row.row}: the model's chat template changes the answer's text. Choose another base model.",
            )
        spans.append((start, at + len(message["content"].strip())))
    return spans
