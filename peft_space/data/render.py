"""Turns a Conversation into the token ids and labels that a trainer receives: one function, for preview and training alike.

Knows tokenizers and chat templates; knows no files and no models. What the model answers to in compare and evaluate is rendered here too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peft_space.data.shapes import Conversation, Message
from peft_space.errors import UserError

MASKED = -100
"""The label of a token that no loss is taken on."""

PLAIN_TEMPLATE = """\
{%- for message in messages %}
{%- if message.role == 'assistant' %}{{ 'Answer:\\n' }}{% generation %}{{ message.content + eos_token }}{% endgeneration %}{{ '\\n' }}
{%- elif message.role == 'user' %}{{ 'Question:\\n' + message.content + '\\n\\n' }}
{%- else %}{{ message.content + '\\n\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Answer:\\n' }}{% endif %}"""
"""For models that come without a chat template; it is saved with the adapter, so that serving renders what was trained.
A line break before the answer, not a space: a space would melt into the answer's first token."""


@dataclass(frozen=True)
class Example:
    """What the trainer gets for one row. `input_ids` and `labels` have the same length (T,); `labels` is -100 where no loss is taken."""

    row: int
    input_ids: list[int]
    labels: list[int]
    texts: list[str]
    """The text each token stands for, (T,); a character of several tokens stands with each of them."""
    cut: int
    """Number of tokens beyond the length limit that were cut off."""

    @property
    def num_trained(self) -> int:
        return sum(label != MASKED for label in self.labels)


def render(tokenizer: Any, conversations: Sequence[Conversation], max_length: int) -> list[Example]:
    """Each conversation through the model's chat template. Trained are the answers and, once each, the token that ends them.

    Raises UserError where the template refuses a conversation, naming the row.
    """
    if not conversations:
        return []
    rendered = [_text_and_answers(tokenizer, conversation) for conversation in conversations]
    encoded = tokenizer([text for text, _ in rendered], add_special_tokens=False, return_offsets_mapping=True)
    return [
        _example(tokenizer, conversation, text, answers, ids, offsets, max_length)
        for conversation, (text, answers), ids, offsets in zip(
            conversations, rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True
        )
    ]


def render_prompt(tokenizer: Any, messages: list[Message]) -> str:
    """The text after which the model is to answer: the conversation so far, and the opening of the assistant's turn."""
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def prompt_ids(tokenizer: Any, messages: list[Message]) -> list[int]:
    """`render_prompt` as token ids, as they stand before the answer in a rendered Example."""
    return tokenizer(render_prompt(tokenizer, messages), add_special_tokens=False)["input_ids"]


def stop_token_ids(tokenizer: Any) -> list[int]:
    """The tokens after which the model has finished its answer: those that `render` trains at the end of one, and EOS."""
    probe = Conversation(0, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    [example] = render(tokenizer, [probe], 100_000)
    last = [label for label in example.labels if label != MASKED][-1]
    return sorted({last, tokenizer.eos_token_id})


# One answer of a conversation: where its text begins and ends in the rendered text, in characters
_Span = tuple[int, int]


def _text_and_answers(tokenizer: Any, conversation: Conversation) -> tuple[str, list[_Span]]:
    messages = conversation.messages
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        starts = [
            len(
                _common_start(
                    text, tokenizer.apply_chat_template(messages[:i], tokenize=False, add_generation_prompt=True), conversation.row
                )
            )
            for i, message in enumerate(messages)
            if message["role"] == "assistant"
        ]
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - a template is a program of the model's author and raises what it likes
        raise UserError(
            f"Row {conversation.row}: the model's chat template refuses it ({error}). Remove the row, or choose another base model."
        ) from None
    answers = [message["content"].strip() for message in messages if message["role"] == "assistant"]
    return text, [_answer_span(text, start, answer, conversation.row) for start, answer in zip(starts, answers, strict=True)]


def _common_start(text: str, prompt: str, row: int) -> str:
    """`prompt`, which must be how `text` begins: or else the model would be asked otherwise than it was trained."""
    if not text.startswith(prompt):
        raise UserError(
            f"Row {row}: the model's chat template writes the conversation differently once it is answered. Choose another base model."
        )
    return prompt


def _answer_span(text: str, start: int, answer: str, row: int) -> _Span:
    at = text.find(answer, start)
    if at < 0:
        raise UserError(f"Row {row}: the model's chat template changes the answer's text. Choose another base model.")
    return start, at + len(answer)


def _example(
    tokenizer: Any, conversation: Conversation, text: str, answers: list[_Span], ids: list[int], offsets: list[_Span], max_length: int
) -> Example:
    labels = [MASKED] * len(ids)
    specials = set(tokenizer.all_special_ids)
    ended = False
    for start, end in answers:
        inside = [i for i, (a, b) in enumerate(offsets) if a >= start and a < end and b > a]
        after = next((i for i, (a, b) in enumerate(offsets) if a >= end and b > a and ids[i] in specials), None)
        following = inside[-1] + 1 if inside else 0
        ended = after is not None and not text[end : offsets[after][0]].strip()
        for i in [*inside, *(range(following, after + 1) if ended else [])]:
            labels[i] = ids[i]
    texts = [text[a:b] for a, b in offsets]
    ids = list(ids)
    if not ended:  # a template without an end of turn: EOS has to be learnt, or the model never stops
        ids, labels, texts = [*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id], [*texts, tokenizer.eos_token]
    return Example(conversation.row, ids[:max_length], labels[:max_length], texts[:max_length], max(0, len(ids) - max_length))
