"""A model's chat template: how it writes a conversation, how it opens and ends an answer, and which characters it says are the model's own.

Templates are programs of the models' authors: transformers runs them in Jinja's sandbox, and here their time and memory are limited.
"""

import functools
import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft_space.data.records import Message
from peft_space.data.tokenization.sandbox import resource_limits
from peft_space.data.tokenization.spans import Span, special_tokens_of
from peft_space.errors import UserError

SECONDS, MOST_BYTES = 2.0, 256 << 20
"""What a template may take for one conversation."""
_MOST_CHARACTERS = 16_000_000


class TemplateTimeout(UserError):
    """A template took more than it may."""


def template_timeout(where: str, seconds: float = SECONDS) -> TemplateTimeout:
    """What to tell of a template that did not come to an end."""
    return TemplateTimeout(
        f"The model's chat template did not finish {where} within {seconds:g} seconds, or took too much memory. "
        "Choose another base model, or another chat template in the recipe."
    )


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

    try:
        with resource_limits(SECONDS, MOST_BYTES):
            [text], spans = render_jinja_template(
                [messages],
                tools,
                chat_template=template,
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=mask,
                **specials,
            )
    except (TimeoutError, MemoryError):
        raise template_timeout("a conversation") from None
    if len(text) > _MOST_CHARACTERS:
        raise template_timeout("a conversation")
    return text, [tuple(span) for span in spans[0]] if mask else []


_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_QUESTION, _ANSWER = "q7x", "w5z"


class ChatTemplate:
    """A model's chat template: how it opens and ends an answer, and which characters it says are the model's own."""

    def __init__(self, template: str, names: dict[str, str], specials: Sequence[str]):
        self.template, self.specials = template, list(specials)
        self.marking = (
            template if _GENERATION.search(template) else _with_generation_blocks(template)
        )
        self.names = {
            name: token for name, token in names.items() if name in template + (self.marking or "")
        }  # each costs time a row
        self._checked: set[tuple[Any, ...]] = set()

    def apply(
        self, messages: list[Message], tools: list[dict[str, Any]] | None
    ) -> tuple[str, list[Span] | None]:
        """The text, and the spans of its generation blocks, None where it has none."""
        if self.marking == self.template:
            text, blocks = _rendered(
                self.template, self.names, self._given(messages), tools, mask=True
            )
        else:
            own = self.write(messages, tools)
            text, blocks = (
                _rendered(self.marking, self.names, messages, tools, mask=True)
                if self.marking
                else ("", [])
            )
            if (
                own != text
            ):  # its marked form writes this conversation otherwise; what is trained is what is served
                return own, None
        return text, _joined(
            [self._with_stop(text, block) for block in blocks if block[1] > block[0]]
        )

    def write(
        self, messages: list[Message], tools: list[dict[str, Any]] | None, prompt: bool = False
    ) -> str:
        """The conversation, and with `prompt` what asks for the next answer."""
        return _rendered(self.template, self.names, self._given(messages), tools, prompt)[0]

    def _given(self, messages: list[Message]) -> list[Message]:
        """The messages with the arguments of their calls in the form that the template takes."""
        if not any(message.get("tool_calls") for message in messages) or not self._calls[1]:
            return messages
        return [
            _with_text_arguments(message) if message.get("tool_calls") else message
            for message in messages
        ]

    @property
    def leaves_out_calls(self) -> bool:
        """Whether the template writes nothing of a tool call."""
        return self._calls[0]

    @functools.cached_property
    def _calls(self) -> tuple[bool, bool]:
        """Whether tool calls are left out, and whether their arguments have to be JSON text because the template joins them to text."""
        call = {"type": "function", "function": {"name": _ANSWER, "arguments": {"a": 1}}}
        asked: list[Message] = [
            {"role": "user", "content": _QUESTION},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        asked += [{"role": "tool", "content": "1"}, {"role": "assistant", "content": "b"}]
        for as_text in (False, True):
            given = [
                _with_text_arguments(message) if as_text and "tool_calls" in message else message
                for message in asked
            ]
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
        if (
            self.stop
            and not text[start:end].rstrip().endswith(tuple(self.specials))
            and text[end:].lstrip().startswith(self.stop)
        ):
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
        return max(
            (special for special in self.specials if tail.startswith(special)),
            key=len,
            default=None,
        )

    @functools.cached_property
    def _header(self) -> str:
        """What asks for an answer, if a control token makes it unmistakable."""
        asked, question = self._probe(prompt=True), self._probe()
        header = asked[len(question) :] if asked.startswith(question) else ""
        return header if any(special in header for special in self.specials) else ""

    def _probe(self, prompt: bool = False, answered: bool = False) -> str:
        messages = [{"role": "user", "content": _QUESTION}] + [
            {"role": "assistant", "content": _ANSWER}
        ] * answered
        return self.write(messages, None, prompt)

    def starts(
        self, row: int, messages: list[Message], tools: list[dict[str, Any]] | None, text: str
    ) -> list[int]:
        """Where each answer begins: after what asks for it."""
        kind = (
            *[message["role"] + "*" * bool(message.get("tool_calls")) for message in messages],
            bool(tools),
        )
        answers = sum(message["role"] == "assistant" for message in messages)
        if self._header:
            found = [match.end() for match in re.finditer(re.escape(self._header), text)]
            if len(found) == answers and (
                kind in self._checked or found == self._by_prompts(row, messages, tools, text)
            ):
                self._checked.add(kind)  # conversations of one form are opened alike
                return found
        return self._by_prompts(row, messages, tools, text)

    def _by_prompts(
        self, row: int, messages: list[Message], tools: list[dict[str, Any]] | None, text: str
    ) -> list[int]:
        starts: list[int] = []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt = self.write(messages[:number], tools, prompt=True)
                start = (
                    len(prompt)
                    if text.startswith(prompt)
                    else self._found(messages[: number + 1], tools, prompt, text, starts)
                )
                if start is None:  # the model would be asked otherwise than it was trained
                    raise UserError(
                        "todo",
                        f"Row {row}: the model's chat template writes the conversation differently once it is answered. "
                        "Choose another base model.",
                    )
                starts.append(start)
        return starts

    def _found(
        self,
        answered: list[Message],
        tools: list[dict[str, Any]] | None,
        prompt: str,
        text: str,
        starts: list[int],
    ) -> int | None:
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
        written = (
            arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        )
        calls.append({**call, "function": {**call["function"], "arguments": written}})
    return {**message, "tool_calls": calls}


def load_chat_template(tokenizer: Any, tools: list[dict[str, Any]] | None = None) -> ChatTemplate:
    """The chat template, of a model with several the one for these tools."""
    return _made(tokenizer.get_chat_template(None, tools), tokenizer)


@functools.lru_cache(maxsize=32)
def _made(template: str, tokenizer: Any) -> ChatTemplate:
    return ChatTemplate(template, tokenizer.special_tokens_map, special_tokens_of(tokenizer)[0])


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
