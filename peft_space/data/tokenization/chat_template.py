"""Chat templates: how a model writes a conversation.

Templates are programs of the models' authors. They run in Jinja's sandbox with limits.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from peft_space.compat.transformers import render_chat_template, template_variables
from peft_space.data.messages import PICTURE, Message
from peft_space.data.tokenization.answer_spans import AnswerFinder, Written, try_writing
from peft_space.data.tokenization.loss_mask import special_tokens_of
from peft_space.data.tokenization.template_sandbox import resource_limits
from peft_space.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MAX_SECONDS, MAX_BYTES = 2.0, 256 << 20
"""Time and memory that a template may use for one conversation."""
_MAX_CHARACTERS = 16_000_000

Tools = list[dict[str, Any]] | None
"""Functions that a conversation may call, as chat templates take them."""

_Change = Callable[[list[Message]], list[Message]]

# Templates for base models without a chat template. The adapter is saved with the template that
# was used, so that it is served as it was trained.
_GENERATED = "{% generation %}{{ message.content + eos_token }}{% endgeneration %}"


def _header_template(user: str, after_user: str, assistant: str, after_assistant: str) -> str:
    """Return a template that writes a header before each message, and a text after it."""
    return (
        "{%- for message in messages %}\n"
        f"{{%- if message.role == 'assistant' %}}{{{{ '{assistant}' }}}}{_GENERATED}"
        f"{{{{ '{after_assistant}' }}}}\n"
        "{%- elif message.role == 'user' %}"
        f"{{{{ '{user}' + message.content + '{after_user}' }}}}\n"
        "{%- else %}{{ message.content + '\\n\\n' }}\n"
        "{%- endif %}\n"
        "{%- endfor %}\n"
        f"{{%- if add_generation_prompt %}}{{{{ '{assistant}' }}}}{{% endif %}}"
    )


_CHATML = (
    "{%- for message in messages %}\n"
    "{{- '<|im_start|>' + message.role + '\\n' }}\n"
    "{%- if message.role == 'assistant' %}" + _GENERATED + "\n"
    "{%- else %}{{ message.content + '<|im_end|>' }}{% endif %}\n"
    "{{- '\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# the header ends with a line break: a space would merge into the first token of the answer
TEMPLATES = {
    "plain": _header_template(r"Question:\n", r"\n\n", r"Answer:\n", r"\n"),
    "chatml": _CHATML,
    "alpaca": _header_template(r"### Instruction:\n", r"\n\n", r"### Response:\n", r"\n\n"),
    "vicuna": _header_template("USER: ", r"\n", r"ASSISTANT:\n", r"\n"),
}
"""Name in a recipe -> chat template."""


_SWITCHES = ("enable_thinking", "thinking")
"""Variables of chat templates that turn reasoning on and off."""


def set_thinking(template: str, value: bool) -> str | None:
    """Return a chat template with its switch for reasoning set, or None if it has no switch.

    The value is the default of the template's variable, so whoever serves the model can still
    choose the other one.
    """
    variables = template_variables(template)
    switch = next((name for name in _SWITCHES if name in variables), None)
    if switch is None:
        return None
    return f"{{%- set {switch} = {switch} | default({str(value).lower()}) %}}\n{template}"


def text_template(begins_with_bos: bool) -> str:
    """Return the template for a model that continues plain texts: each question begins one.

    Args:
        begins_with_bos: whether BOS precedes each text in training.
    """
    bos = (
        "{%- if loop.first or loop.previtem.role == 'assistant' %}{{ bos_token }}{% endif %}\n"
        if begins_with_bos
        else ""
    )
    return (
        "{%- for message in messages %}\n"
        f"{bos}{{%- if message.role == 'assistant' %}}{_GENERATED}\n"
        "{%- else %}{{- message.content }}{% endif %}\n"
        "{%- endfor %}"
    )


class TemplateTimeout(UserError):
    """A template exceeded its limit of time or memory."""


def template_timeout(place: str, seconds: float = MAX_SECONDS) -> TemplateTimeout:
    """Return the error for a template that exceeded its limits.

    Args:
        place: the text that the template was writing, such as `row 3`.
        seconds: the time limit.
    """
    return TemplateTimeout(
        "data.template_timeout",
        f"The model's chat template did not finish {place} within {seconds:g} seconds, or used "
        "too much memory. Choose another base model, or another chat template in the recipe.",
    )


class ChatTemplate:
    """A chat template, with the model's special tokens.

    Args:
        template: the Jinja template.
        variables: special tokens that the template can use, such as `eos_token`.
        special_tokens: all special tokens of the model.
    """

    def __init__(self, template: str, variables: dict[str, str], special_tokens: Sequence[str]):
        self.template, self.specials = template, list(special_tokens)
        # each variable costs time for every row
        self._variables = {name: token for name, token in variables.items() if name in template}
        self._finder = AnswerFinder(self.write, self.specials, template)

    def find_answers(self, row: int, messages: list[Message], tools: Tools) -> Written:
        """Write a conversation and find its answers. See `AnswerFinder.find`."""
        return self._finder.find(row, messages, tools)

    def write(self, messages: list[Message], tools: Tools, prompt: bool = False) -> str:
        """Write a conversation; with `prompt`, it ends with the opening of the next answer."""
        messages = self._with_accepted_calls(messages)
        if self._takes_parts:
            messages = _with_parts(messages)
        elif any("images" in message for message in messages):
            messages = [one if "images" not in one else _with_parts([one])[0] for one in messages]
        return self._render(messages, tools, prompt)

    def write_prompt(self, messages: list[Message], tools: Tools) -> str:
        """Write a conversation as training does, up to the opening of the next answer."""
        return self.write(self._finder.prompted(messages, tools), tools, prompt=True)

    def _render(self, messages: list[Message], tools: Tools, prompt: bool = False) -> str:
        try:
            with resource_limits(MAX_SECONDS, MAX_BYTES):
                text = render_chat_template(self.template, messages, tools, prompt, self._variables)
        except (TimeoutError, MemoryError):
            raise template_timeout("a conversation") from None
        if len(text) > _MAX_CHARACTERS:
            raise template_timeout("a conversation")
        return text

    def without_special_tokens(self, text: str) -> str:
        """Return the text without the model's special tokens."""
        for token in self.specials:
            text = text.replace(token, "")
        return text

    @functools.cached_property
    def _takes_parts(self) -> bool:
        """True if a text has to be a part of a list, as for some models that also read images."""
        question: list[Message] = [{"role": "user", "content": "q7x"}]
        written = [
            "q7x" in (try_writing(functools.partial(self._render, messages, None)) or "")
            for messages in (question, _with_parts(question))
        ]
        return written == [False, True]

    # Tool calls

    def _with_accepted_calls(self, messages: list[Message]) -> list[Message]:
        """Return the messages with tool calls as the template takes them."""
        if not any(message.get("tool_calls") for message in messages):
            return messages
        for change in self._call_form:
            messages = change(messages)
        return messages

    @functools.cached_property
    def _call_form(self) -> tuple[_Change, ...]:
        """The changes of messages with which the template writes calls.

        Some templates concatenate the arguments to a text, those of Mistral check the ids, those
        of DeepSeek take an empty text for an answer, and Kimi's write the id for the name.
        """
        function = {"name": "w5z", "arguments": {"a": 1}}
        messages: list[Message] = [
            {"role": "user", "content": "q7x"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
            },
            {"role": "tool", "content": "1", "tool_call_id": "call_1", "name": "w5z"},
            {"role": "assistant", "content": "b"},
        ]
        takes = [
            changes
            for number in range(len(_CHANGES) + 1)
            for changes in itertools.combinations(_CHANGES, number)
            if self._takes_calls(messages, changes)
        ]
        return takes[0] if takes else ()

    def _takes_calls(self, messages: list[Message], changes: tuple[_Change, ...]) -> bool:
        for change in changes:
            messages = change(messages)
        text = try_writing(functools.partial(self._render, messages[:2], None)) or ""
        if try_writing(functools.partial(self._render, messages, None)) is None:
            return False
        # Python's form of an object is not JSON
        return "w5z" in text and ("{'a'" not in text or _with_text_arguments in changes)


def _with_parts(messages: list[Message]) -> list[Message]:
    """Return the messages with each content as a list: of one text, or of texts and pictures."""
    return [
        {key: value for key, value in message.items() if key != "images"}
        | {"content": _parts_of(message)}
        for message in messages
    ]


def _parts_of(message: Message) -> list[dict[str, str]]:
    if "images" not in message:
        return [{"type": "text", "text": message["content"]}]
    picture = {"type": "image"}
    parts: list[dict[str, str]] = []
    for number, text in enumerate(message["content"].split(PICTURE)):
        parts += [picture] if number else []
        parts += [{"type": "text", "text": text}] if text else []
    return parts


_ID_LENGTH = 9


def _with_short_ids(messages: list[Message]) -> list[Message]:
    """Return the messages with ids of calls that have nine letters and digits.

    A call without an id gets one. A result without one belongs to the next unanswered call.
    """
    waiting: list[str] = []
    changed: list[Message] = []
    for message in messages:
        if calls := message.get("tool_calls"):
            given = [str(call.get("id") or f"{len(changed)}-{at}") for at, call in enumerate(calls)]
            waiting = [_short_id(identity) for identity in given]
            pairs = zip(calls, waiting, strict=True)
            message = message | {"tool_calls": [call | {"id": short} for call, short in pairs]}
        elif message["role"] == "tool":
            given_id = message.get("tool_call_id")
            short = _short_id(str(given_id)) if given_id else (waiting or ["000000000"])[0]
            waiting = [other for other in waiting if other != short]
            message = message | {"tool_call_id": short}
        changed.append(message)
    return changed


def _short_id(identity: str) -> str:
    if len(identity) == _ID_LENGTH and identity.isalnum():
        return identity
    return hashlib.sha256(identity.encode()).hexdigest()[:_ID_LENGTH]


def _with_text_arguments(messages: list[Message]) -> list[Message]:
    """Return the messages with the arguments of tool calls as JSON text."""
    return [
        message | {"tool_calls": [_with_text_argument(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _with_text_argument(call: dict[str, Any]) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return call | {"function": call["function"] | {"arguments": arguments}}


def _with_no_empty_text(messages: list[Message]) -> list[Message]:
    """Return the messages without the text of those that only call tools."""
    return [
        message | {"content": None}
        if message.get("tool_calls") and not message["content"]
        else message
        for message in messages
    ]


def _with_ids_of_names(messages: list[Message]) -> list[Message]:
    """Return the messages with ids of calls such as `functions.weather:0`, as Kimi writes them."""
    waiting: list[tuple[Any, str]] = []
    changed: list[Message] = []
    count = 0
    for message in messages:
        if calls := message.get("tool_calls"):
            names = [call["function"]["name"] for call in calls]
            named = [f"functions.{name}:{count + at}" for at, name in enumerate(names)]
            waiting = [(call.get("id"), name) for call, name in zip(calls, named, strict=True)]
            count += len(calls)
            pairs = zip(calls, named, strict=True)
            message = message | {"tool_calls": [call | {"id": name} for call, name in pairs]}
        elif message["role"] == "tool" and waiting:
            given = message.get("tool_call_id")
            found = next((one for one in waiting if given and one[0] == given), waiting[0])
            waiting.remove(found)
            message = message | {"tool_call_id": found[1]}
        changed.append(message)
    return changed


_CHANGES: tuple[_Change, ...] = (
    _with_text_arguments, _with_short_ids, _with_no_empty_text, _with_ids_of_names,
)  # fmt: skip


def load_chat_template(tokenizer: "PreTrainedTokenizerFast", tools: Tools = None) -> ChatTemplate:
    """Return the model's chat template. If it has several, `tools` selects one."""
    return _cached_template(tokenizer.get_chat_template(None, tools), tokenizer)


@functools.lru_cache(maxsize=32)
def _cached_template(template: str, tokenizer: "PreTrainedTokenizerFast") -> ChatTemplate:
    return ChatTemplate(template, tokenizer.special_tokens_map, special_tokens_of(tokenizer)[0])
