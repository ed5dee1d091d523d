"""Turns a row into the token ids and labels that a trainer receives: one function, for preview and training alike.

Knows tokenizers and chat templates; knows no files and no models. What the model answers to in compare and evaluate is rendered here too.
"""

import contextlib
import functools
import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft_space.data.pool import RowLimit
from peft_space.data.rows import Conversation, Labelled, Message, Preference, Rated, Row, Tagged, Text
from peft_space.errors import UserError
from peft_space.recipe import LossOn

MASKED = -100
"""The label of a token that no loss is taken on."""

Span = tuple[int, int]
"""Where something begins and ends, the end not included: in characters of a text, or in tokens."""


@dataclass(frozen=True)
class Example:
    """What the trainer gets for one row: `input_ids` (T,), and which of them are trained."""

    row: int
    input_ids: list[int]
    trained: list[Span]
    """Token spans that a loss is taken on, in order."""
    cut: int = 0
    """Number of tokens beyond the length limit that were cut off."""
    typed_controls: bool = False
    """Whether control tokens of the model were typed in the row's text; they are tokenized as the text they are."""
    texts: list[str] = field(default_factory=list)
    """The text each token stands for, (T,), where it was asked for; a character of several tokens stands with the first of them."""

    @property
    def labels(self) -> list[int]:
        """`input_ids` where a loss is taken, -100 elsewhere, (T,)."""
        labels = [MASKED] * len(self.input_ids)
        for start, end in self.trained:
            labels[start:end] = self.input_ids[start:end]
        return labels

    @property
    def num_trained(self) -> int:
        return sum(end - start for start, end in self.trained)


def render(
    tokenizer: Any,
    rows: Sequence[Row],
    max_length: int,
    loss_on: LossOn = "automatic",
    with_texts: bool = True,
    guard: Callable[[int], AbstractContextManager[None]] = contextlib.nullcontext,
) -> list[Example]:
    """Each row as the model gets it. Trained are the answers and, once each, the token that ends them.

    Of a preference the chosen answer is rendered, of a label its text, of tags the tokens.
    Args:
        guard: the context in which the template writes a row, given its number, to limit what it may take.

    Raises UserError where the template refuses a row, naming it.
    """
    texts = []
    for row in rows:
        with guard(row.row):
            texts.append(_text_of(tokenizer, row, loss_on))
    encoded = _encode(tokenizer, texts)
    return [_example(tokenizer, row, text, tokens, max_length, with_texts) for row, text, tokens in zip(rows, texts, encoded, strict=True)]


def render_prompt(tokenizer: Any, messages: list[Message], tools: list[dict[str, Any]] | None = None) -> str:
    """The text after which the model is to answer: the conversation so far, and the opening of the assistant's turn."""
    return _applied(tokenizer, messages, tools, prompt=True)


def prompt_ids(tokenizer: Any, messages: list[Message], tools: list[dict[str, Any]] | None = None) -> list[int]:
    """`render_prompt` as token ids, as they stand before the answer in a rendered Example."""
    hidden, typed = _hide_controls(tokenizer, messages)
    [tokens] = _encode(tokenizer, [_Marked(_applied(tokenizer, hidden, tools, prompt=True), [], typed)])
    return tokens.ids


def stop_token_ids(tokenizer: Any) -> list[int]:
    """The tokens after which the model has finished its answer: those that `render` trains at the end of one, and EOS."""
    probe = Conversation(0, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    [example] = render(tokenizer, [probe], 100_000, "every answer")
    stop = _template(tokenizer).stop
    ids = [label for label in example.labels if label != MASKED]
    last = tokenizer.convert_tokens_to_ids(stop) if stop else ids[-1]
    return sorted({last, tokenizer.eos_token_id})


# From a row to its text, and which characters of it are trained


@dataclass(frozen=True)
class _Marked:
    """A rendered text. Each control token that was typed by the row's author stands in it as one character of `typed`."""

    text: str
    trained: list[Span]
    typed: dict[str, str]
    add_bos: bool = False
    ends: bool = False
    """Whether EOS belongs after the text."""


def _text_of(tokenizer: Any, row: Row, loss_on: LossOn) -> _Marked:
    match row:
        case Conversation():
            return _conversation(tokenizer, row, loss_on)
        case Rated():
            return _conversation(tokenizer, Conversation(row.row, row.messages), loss_on)
        case Preference():
            return _conversation(tokenizer, Conversation(row.row, [*row.prompt, *row.chosen]), "last answer")
        case Text():
            [hidden], typed = _hide_controls(tokenizer, [{"role": "user", "content": row.text}])
            return _Marked(hidden["content"], [(0, len(hidden["content"]))], typed, add_bos=True, ends=True)
        case Labelled():
            [hidden], typed = _hide_controls(tokenizer, [{"role": "user", "content": f"{row.text}\n{row.second or ''}".strip("\n")}])
            return _Marked(hidden["content"], [], typed, add_bos=True)
        case Tagged():
            [hidden], typed = _hide_controls(tokenizer, [{"role": "user", "content": " ".join(row.tokens)}])
            return _Marked(hidden["content"], [], typed, add_bos=True)


def _conversation(tokenizer: Any, row: Conversation, loss_on: LossOn) -> _Marked:
    messages, typed = _hide_controls(tokenizer, row.messages)
    try:
        template = _template(tokenizer, row.tools)
        return _marked(template, Conversation(row.row, messages, row.tools), loss_on, typed)
    except (UserError, RowLimit, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - a template is a program of the model's author and raises what it likes
        why = str(error).strip() or type(error).__name__
        raise UserError(
            f"Row {row.row}: the model's chat template refuses it ({why[:300]}). Remove the row, or choose another base model."
        ) from None


def _marked(template: "_Template", row: Conversation, loss_on: LossOn, typed: dict[str, str]) -> _Marked:
    weighted = any("weight" in message for message in row.messages)
    policy = ("message weights" if weighted else "every answer") if loss_on == "automatic" else loss_on
    messages = [{key: value for key, value in message.items() if key != "weight"} for message in row.messages]
    text, blocks = template.apply(messages, row.tools)
    if any(message.get("tool_calls") for message in messages) and template.leaves_out_calls:
        raise UserError(
            f"Row {row.row}: the model's chat template leaves out tool calls, so that an empty answer would be learnt. "
            "Remove the row, or choose another base model or chat template."
        )
    if policy == "whole text":
        return _Marked(text, [(0, len(text))], typed, ends=not _ended(template, text, [(0, len(text))]))
    weights = [message.get("weight", 1) for message in row.messages if message["role"] == "assistant"]
    if blocks is None or (policy != "every answer" and len(blocks) != len(weights)):
        blocks = _from_prompt_to_stop(template, row, messages, text)
    if policy == "last answer":
        blocks = blocks[-1:]
    if policy == "message weights":
        blocks = [block for block, weight in zip(blocks, weights, strict=True) if weight]
    last_is_trained = bool(blocks) and not template.without_controls(text[blocks[-1][1] :]).strip()
    return _Marked(text, blocks, typed, ends=last_is_trained and not _ended(template, text, blocks))


def _ended(template: "_Template", text: str, blocks: list[Span]) -> bool:
    """Whether the last answer ends with a token that stops generation; where it does not, EOS has to be learnt, or the model never stops."""
    return text[: blocks[-1][1]].rstrip().endswith(tuple(template.specials)) if blocks else True


def _from_prompt_to_stop(template: "_Template", row: Conversation, messages: list[Message], text: str) -> list[Span]:
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
            raise UserError(f"Row {row.row}: the model's chat template changes the answer's text. Choose another base model.")
        spans.append((start, at + len(message["content"].strip())))
    return spans


# Chat templates


def _applied(tokenizer: Any, messages: list[Message], tools: list[dict[str, Any]] | None, prompt: bool) -> str:
    return _template(tokenizer, tools).write(messages, tools, prompt)


def _rendered(
    template: str,
    specials: dict[str, str],
    messages: list[Message],
    tools: list[dict[str, Any]] | None,
    prompt: bool = False,
    mask: bool = False,
) -> tuple[str, list[Span]]:
    """The text, and with `mask` where the template's own generation blocks stand."""
    from transformers.utils.chat_template_utils import render_jinja_template

    [text], spans = render_jinja_template(
        [messages], tools, chat_template=template, add_generation_prompt=prompt, return_assistant_tokens_mask=mask, **specials
    )
    return text, [tuple(span) for span in spans[0]] if mask else []


_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_QUESTION, _ANSWER = "q7x", "w5z"


class _Template:
    """A model's chat template: how it opens and ends an answer, and which characters it says are the model's own."""

    def __init__(self, template: str, names: dict[str, str], specials: Sequence[str]):
        self.template, self.names, self.specials = template, names, list(specials)
        self.marking = template if _GENERATION.search(template) else _with_generation_blocks(template)
        self._checked: set[tuple[Any, ...]] = set()

    def apply(self, messages: list[Message], tools: list[dict[str, Any]] | None) -> tuple[str, list[Span] | None]:
        """The text, and the spans of its generation blocks, None where it has none."""
        own = self.write(messages, tools)
        if self.marking is None:
            return own, None
        given = messages if self.marking != self.template else self._given(messages)
        text, blocks = _rendered(self.marking, self.names, given, tools, mask=True)
        if own != text:  # its marked form writes this conversation otherwise; what is trained is what is served
            return own, None
        return text, _joined([self._with_stop(text, block) for block in blocks if block[1] > block[0]])

    def write(self, messages: list[Message], tools: list[dict[str, Any]] | None, prompt: bool = False) -> str:
        """The conversation, and with `prompt` what asks for the next answer."""
        return _rendered(self.template, self.names, self._given(messages), tools, prompt)[0]

    def _given(self, messages: list[Message]) -> list[Message]:
        """The messages with the arguments of their calls in the form that the template takes."""
        if not any(message.get("tool_calls") for message in messages) or not self._calls[1]:
            return messages
        return [_with_text_arguments(message) if message.get("tool_calls") else message for message in messages]

    @property
    def leaves_out_calls(self) -> bool:
        """Whether the template writes nothing of a tool call."""
        return self._calls[0]

    @functools.cached_property
    def _calls(self) -> tuple[bool, bool]:
        """Whether tool calls are left out, and whether their arguments have to be JSON text because the template joins them to text."""
        call = {"type": "function", "function": {"name": _ANSWER, "arguments": {"a": 1}}}
        asked: list[Message] = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": "", "tool_calls": [call]}]
        asked += [{"role": "tool", "content": "1"}, {"role": "assistant", "content": "b"}]
        for as_text in (False, True):
            given = [_with_text_arguments(message) if as_text and "tool_calls" in message else message for message in asked]
            try:
                text = _rendered(self.template, self.names, given, None)[0]
            except Exception:  # noqa: BLE001 - a template that takes neither form says so with the row
                continue
            if as_text or "{'a'" not in text:  # how Python writes an object, which is no JSON
                return _ANSWER not in text, as_text
        return False, False

    def _with_stop(self, text: str, block: Span) -> Span:
        """A block that leaves out the stop token directly after it is extended to it."""
        start, end = block
        if self.stop and not text[start:end].rstrip().endswith(tuple(self.specials)) and text[end:].lstrip().startswith(self.stop):
            return start, text.index(self.stop, end) + len(self.stop)
        return block

    def without_controls(self, text: str) -> str:
        """The text without the model's control tokens."""
        for special in self.specials:
            text = text.replace(special, "")
        return text

    @functools.cached_property
    def stop(self) -> str | None:
        """The control token that follows an answer, None where there is none."""
        try:
            text = self._probe(answered=True)
        except Exception:  # noqa: BLE001 - a template that cannot write the simplest conversation says so with the first row
            return None
        tail = text[text.rfind(_ANSWER) + len(_ANSWER) :].lstrip()
        return max((special for special in self.specials if tail.startswith(special)), key=len, default=None)

    @functools.cached_property
    def _header(self) -> str:
        """What asks for an answer, if a control token makes it unmistakable."""
        asked, question = self._probe(prompt=True), self._probe()
        header = asked[len(question) :] if asked.startswith(question) else ""
        return header if any(special in header for special in self.specials) else ""

    def _probe(self, prompt: bool = False, answered: bool = False) -> str:
        messages = [{"role": "user", "content": _QUESTION}] + [{"role": "assistant", "content": _ANSWER}] * answered
        return self.write(messages, None, prompt)

    def starts(self, row: int, messages: list[Message], tools: list[dict[str, Any]] | None, text: str) -> list[int]:
        """Where each answer begins: after what asks for it."""
        kind = (*[message["role"] + "*" * bool(message.get("tool_calls")) for message in messages], bool(tools))
        answers = sum(message["role"] == "assistant" for message in messages)
        if self._header:
            found = [match.end() for match in re.finditer(re.escape(self._header), text)]
            if len(found) == answers and (kind in self._checked or found == self._by_prompts(row, messages, tools, text)):
                self._checked.add(kind)  # conversations of one form are opened alike
                return found
        return self._by_prompts(row, messages, tools, text)

    def _by_prompts(self, row: int, messages: list[Message], tools: list[dict[str, Any]] | None, text: str) -> list[int]:
        starts: list[int] = []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt = self.write(messages[:number], tools, prompt=True)
                start = len(prompt) if text.startswith(prompt) else self._found(messages[: number + 1], tools, prompt, text, starts)
                if start is None:  # the model would be asked otherwise than it was trained
                    raise UserError(
                        f"Row {row}: the model's chat template writes the conversation differently once it is answered. "
                        "Choose another base model."
                    )
                starts.append(start)
        return starts

    def _found(self, answered: list[Message], tools: list[dict[str, Any]] | None, prompt: str, text: str, starts: list[int]) -> int | None:
        """Where an earlier answer stands in the text of a conversation that went on.

        Some templates write the system message or the tools with the last question only, so no prompt of before is the text's beginning.
        """
        until = self.write(answered, tools)
        if not self.stop or not until.startswith(prompt) or self.stop not in until[len(prompt) :]:
            return None
        answer = until[len(prompt) :]
        after = text.index(self.stop, starts[-1]) + len(self.stop) if starts else 0
        at = text.find(answer[: answer.index(self.stop) + len(self.stop)], after)
        return at if at >= 0 else None


def _joined(blocks: list[Span]) -> list[Span]:
    """The blocks, those that touch as one."""
    joined: list[Span] = []
    for start, end in blocks:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _with_text_arguments(message: Message) -> Message:
    """The message with the arguments of its calls as JSON text."""
    calls = []
    for call in message["tool_calls"]:
        arguments = call["function"]["arguments"]
        written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append({**call, "function": {**call["function"], "arguments": written}})
    return {**message, "tool_calls": calls}


@functools.lru_cache(maxsize=32)
def _template_of(template: str, names: tuple[tuple[str, str], ...], specials: tuple[str, ...]) -> _Template:
    return _Template(template, dict(names), specials)


def _template(tokenizer: Any, tools: list[dict[str, Any]] | None = None) -> _Template:
    """The chat template, of a model with several the one for these tools."""
    names = tuple(sorted(tokenizer.special_tokens_map.items()))
    return _template_of(tokenizer.get_chat_template(None, tools), names, _controls(tokenizer)[0])


@functools.lru_cache(maxsize=32)
def _with_generation_blocks(template: str) -> str | None:
    """The same template as TRL marks it, where TRL knows it: its mask is the field's."""
    found = importlib.util.find_spec("trl")  # the files alone; importing it takes seconds
    folder = Path(found.origin).parent / "chat_templates" if found and found.origin else None
    for path in sorted(folder.glob("*.jinja")) if folder and folder.is_dir() else []:
        marked = path.with_name(f"{path.stem}_training.jinja")
        if marked.is_file() and path.read_text(encoding="utf-8") == template:
            return marked.read_text(encoding="utf-8")
    return None


# Control tokens that a row's author typed: they stay text

_FIRST_STAND_IN = 0x10F000
"""In a plane that no text uses (private use)."""


def _controls(tokenizer: Any) -> tuple[tuple[str, ...], "re.Pattern[str]"]:
    """The model's control tokens, and a pattern that finds them."""
    specials = sorted({str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}, key=len, reverse=True)
    return _compiled(tuple(specials))


@functools.lru_cache(maxsize=32)
def _compiled(specials: tuple[str, ...]) -> tuple[tuple[str, ...], "re.Pattern[str]"]:
    return specials, re.compile("|".join(map(re.escape, specials)) or r"(?!)")


def _hide_controls(tokenizer: Any, messages: list[Message]) -> tuple[list[Message], dict[str, str]]:
    """The messages with each typed control token as one private character, and which character stands for what."""
    specials, pattern = _controls(tokenizer)
    if not any(pattern.search(text) for message in messages for text in _texts_of(message)):
        return messages, {}
    stand_ins = {special: chr(_FIRST_STAND_IN + number) for number, special in enumerate(specials)}
    if any(character in text for message in messages for text in _texts_of(message) for character in stand_ins.values()):
        raise UserError("A text has private-use characters and control tokens of the model at once. Remove either.")

    def hide(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(lambda match: stand_ins[match[0]], value)
        if isinstance(value, dict):
            return {key: hide(inner) for key, inner in value.items()}
        return [hide(inner) for inner in value] if isinstance(value, list) else value

    return [hide(message) | {"role": message["role"]} for message in messages], {sign: special for special, sign in stand_ins.items()}


def _texts_of(message: Message) -> list[str]:
    return [message["content"], json.dumps(message["tool_calls"], ensure_ascii=False)] if "tool_calls" in message else [message["content"]]


# From text to tokens


@dataclass(frozen=True)
class _Tokens:
    """Token ids of a text, and from its characters to them."""

    ids: list[int]
    to_tokens: Callable[[Span], Span | None]
    texts: Callable[[], list[str]]


def _encode(tokenizer: Any, marked: Sequence[_Marked]) -> list[_Tokens]:
    """Tokenize in one go; a text with typed control tokens in pieces, so that those become text and nothing else changes."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    plain = [one for one in marked if not one.typed]
    encoded = iter(backend.encode_batch([one.text for one in plain], add_special_tokens=False))
    tokens = [_in_pieces(tokenizer, one) if one.typed else _whole(one.text, next(encoded)) for one in marked]
    opens = any(one.add_bos for one in marked) and tokenizer.bos_token_id in tokenizer("a")["input_ids"][:1]
    return [_after_bos(tokenizer, one) if opens and given.add_bos else one for one, given in zip(tokens, marked, strict=True)]


def _whole(text: str, encoding: Any) -> _Tokens:
    def to_tokens(span: Span) -> Span | None:
        start, end = span
        first = next((token for at in range(start, end) if (token := encoding.char_to_token(at)) is not None), None)
        last = next((token for at in range(end - 1, start - 1, -1) if (token := encoding.char_to_token(at)) is not None), None)
        if first is None or last is None:
            return None
        while last + 1 < len(encoding) and encoding.token_to_chars(last + 1) == encoding.token_to_chars(last):
            last += 1  # a character of several tokens
        return first, last + 1

    return _Tokens(encoding.ids, to_tokens, lambda: _parts(text, encoding.offsets))


def _parts(text: str, offsets: Sequence[Span]) -> list[str]:
    """The text by tokens, each character once."""
    parts, at = [], 0
    for start, end in offsets:
        parts.append(text[max(at, start) : end])
        at = max(at, end)
    return parts


def _in_pieces(tokenizer: Any, marked: _Marked) -> _Tokens:
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
        offsets += [(at, at + 1) if typed else (at + start, at + end) for start, end in encoding.offsets]
        texts += _parts(typed or piece, encoding.offsets)
        at += len(piece)
    backend.encode_special_tokens = False

    def to_tokens(span: Span) -> Span | None:
        inside = [number for number, (start, end) in enumerate(offsets) if start < span[1] and end > span[0]]
        return (inside[0], inside[-1] + 1) if inside else None

    return _Tokens(ids, to_tokens, lambda: texts)


def _after_bos(tokenizer: Any, tokens: _Tokens) -> _Tokens:
    def to_tokens(span: Span) -> Span | None:
        found = tokens.to_tokens(span)
        return found and (found[0] + 1, found[1] + 1)

    return _Tokens([tokenizer.bos_token_id, *tokens.ids], to_tokens, lambda: [tokenizer.bos_token, *tokens.texts()])


def _example(tokenizer: Any, row: Row, marked: _Marked, tokens: _Tokens, max_length: int, with_texts: bool) -> Example:
    ids = tokens.ids
    trained = [span for block in marked.trained if (span := tokens.to_tokens(block))]
    texts = tokens.texts() if with_texts else []
    if marked.ends:
        ids, texts = [*ids, tokenizer.eos_token_id], [*texts, tokenizer.eos_token] if with_texts else []
        if trained and trained[-1][1] == len(ids) - 1:
            trained[-1] = (trained[-1][0], len(ids))
        else:
            trained.append((len(ids) - 1, len(ids)))
    cut = max(0, len(ids) - max_length)
    kept = [(start, min(end, max_length)) for start, end in trained if start < max_length]
    return Example(row.row, ids[:max_length], kept, cut, any(sign in marked.text for sign in marked.typed), texts[:max_length])
