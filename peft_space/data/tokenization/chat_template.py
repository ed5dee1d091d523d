"""Chat templates: how a model writes a conversation, and where answers begin and end in it.

Templates are programs of the models' authors. They run in Jinja's sandbox with limits.
"""

import functools
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from peft_space.compat.transformers import render_chat_template
from peft_space.compat.trl import training_chat_template
from peft_space.data.row_normalization import Message
from peft_space.data.tokenization.loss_mask import Span, special_tokens_of
from peft_space.data.tokenization.template_sandbox import resource_limits
from peft_space.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MAX_SECONDS, MAX_BYTES = 2.0, 256 << 20
"""Time and memory that a template may use for one conversation."""
_MAX_CHARACTERS = 16_000_000

Tools = list[dict[str, Any]] | None
"""Functions that a conversation may call, as chat templates take them."""

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


_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_QUESTION, _ANSWER = "q7x", "w5z"


class ChatTemplate:
    """A chat template, how it opens and ends an answer, and the model's special tokens.

    Args:
        template: the Jinja template.
        variables: special tokens that the template can use, such as `eos_token`.
        special_tokens: all special tokens of the model.
    """

    def __init__(self, template: str, variables: dict[str, str], special_tokens: Sequence[str]):
        self.template, self.specials = template, list(special_tokens)
        has_blocks = _GENERATION_BLOCK.search(template)
        self._marked = template if has_blocks else training_chat_template(template)
        text = template + (self._marked or "")
        # each variable costs time for every row
        self._variables = {name: token for name, token in variables.items() if name in text}
        self._verified_forms: set[tuple[Any, ...]] = set()

    def apply(self, messages: list[Message], tools: Tools) -> tuple[str, list[Span] | None]:
        """Write a conversation.

        Returns:
            The text, and the spans of its generation blocks, or None if it has no blocks.
        """
        if self._marked == self.template:
            messages = self._with_accepted_arguments(messages)
            text, blocks = self._render(self.template, messages, tools, mark=True)
        else:
            text, blocks = self.write(messages, tools), []
            if self._marked is None:
                return text, None
            marked_text, blocks = self._render(self._marked, messages, tools, mark=True)
            if marked_text != text:  # the model is served with the unmarked template
                return text, None
        return text, _merge([self._with_stop(text, span) for span in blocks if span[1] > span[0]])

    def write(self, messages: list[Message], tools: Tools, prompt: bool = False) -> str:
        """Write a conversation; with `prompt`, it ends with the opening of the next answer."""
        messages = self._with_accepted_arguments(messages)
        return self._render(self.template, messages, tools, prompt)[0]

    def _render(
        self,
        template: str,
        messages: list[Message],
        tools: Tools,
        prompt: bool = False,
        mark: bool = False,
    ) -> tuple[str, list[Span]]:
        try:
            with resource_limits(MAX_SECONDS, MAX_BYTES):
                text, spans = render_chat_template(
                    template, messages, tools, prompt, mark, self._variables
                )
        except (TimeoutError, MemoryError):
            raise template_timeout("a conversation") from None
        if len(text) > _MAX_CHARACTERS:
            raise template_timeout("a conversation")
        return text, spans

    # Tool calls

    @property
    def leaves_out_calls(self) -> bool:
        """True if the template does not write tool calls."""
        return self._call_support[0]

    def _with_accepted_arguments(self, messages: list[Message]) -> list[Message]:
        """Return the messages with the arguments of tool calls as the template takes them."""
        has_calls = any(message.get("tool_calls") for message in messages)
        if not has_calls or not self._call_support[1]:
            return messages
        return _with_text_arguments(messages)

    @functools.cached_property
    def _call_support(self) -> tuple[bool, bool]:
        """If tool calls are left out, and if their arguments must be JSON text.

        Some templates concatenate the arguments to a text.
        """
        call = {"type": "function", "function": {"name": _ANSWER, "arguments": {"a": 1}}}
        messages: list[Message] = [
            {"role": "user", "content": _QUESTION},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "1"},
            {"role": "assistant", "content": "b"},
        ]
        for as_text in (False, True):
            tried = _with_text_arguments(messages) if as_text else messages
            try:
                text = self._render(self.template, tried, None)[0]
            except Exception:  # noqa: BLE001 - a template that takes neither form fails at the row
                continue
            if as_text or "{'a'" not in text:  # Python's form of an object is not JSON
                return _ANSWER not in text, as_text
        return False, False

    # Where answers begin and end

    def _with_stop(self, text: str, block: Span) -> Span:
        """Extend a generation block that ends directly before the stop token."""
        start, end = block
        has_end = text[start:end].rstrip().endswith(tuple(self.specials))
        if self.stop and not has_end and text[end:].lstrip().startswith(self.stop):
            return start, text.index(self.stop, end) + len(self.stop)
        return block

    def without_special_tokens(self, text: str) -> str:
        """Return the text without the model's special tokens."""
        for token in self.specials:
            text = text.replace(token, "")
        return text

    @functools.cached_property
    def stop(self) -> str | None:
        """The special token that follows an answer, or None."""
        try:
            text = self._probe(answered=True)
        except Exception:  # noqa: BLE001 - a template that fails here fails at the first row too
            return None
        tail = text[text.rfind(_ANSWER) + len(_ANSWER) :].lstrip()
        following = (token for token in self.specials if tail.startswith(token))
        return max(following, key=len, default=None)

    @functools.cached_property
    def _header(self) -> str:
        """The opening of an answer if it contains a special token, which makes it unique."""
        prompt, question = self._probe(prompt=True), self._probe()
        header = prompt[len(question) :] if prompt.startswith(question) else ""
        return header if any(token in header for token in self.specials) else ""

    def _probe(self, prompt: bool = False, answered: bool = False) -> str:
        messages = [{"role": "user", "content": _QUESTION}]
        if answered:
            messages.append({"role": "assistant", "content": _ANSWER})
        return self.write(messages, None, prompt)

    def starts(self, row: int, messages: list[Message], tools: Tools, text: str) -> list[int]:
        """Return the position of the first character of each answer.

        Args:
            row: the number of the row, for messages.
            messages: the conversation.
            tools: the functions that it may call.
            text: the conversation as the template writes it.

        Raises:
            UserError: the template writes a conversation differently once it is answered.
        """
        roles = [message["role"] + "*" * bool(message.get("tool_calls")) for message in messages]
        form = (*roles, bool(tools))
        if self._header:
            starts = [match.end() for match in re.finditer(re.escape(self._header), text)]
            if len(starts) == roles.count("assistant") + roles.count("assistant*") and (
                form in self._verified_forms
                or starts == self._starts_by_prompts(row, messages, tools, text)
            ):
                # other conversations of this form have the same openings
                self._verified_forms.add(form)
                return starts
        return self._starts_by_prompts(row, messages, tools, text)

    def _starts_by_prompts(
        self, row: int, messages: list[Message], tools: Tools, text: str
    ) -> list[int]:
        starts: list[int] = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self.write(messages[:number], tools, prompt=True)
            start: int | None = len(prompt)
            if not text.startswith(prompt):
                start = self._find_answer(messages[: number + 1], tools, prompt, text, starts)
            if start is None:  # the prompt at inference would differ from the one in training
                raise UserError(
                    "data.template_rewrites_prompt",
                    f"Row {row}: the model's chat template writes the prompt differently once "
                    "the conversation is answered. Choose another base model.",
                )
            starts.append(start)
        return starts

    def _find_answer(
        self, answered: list[Message], tools: Tools, prompt: str, text: str, starts: list[int]
    ) -> int | None:
        """Find an earlier answer in the text of the whole conversation.

        Some templates write the system message or the tools only with the last question. Their text
        does not begin with the prompt of an earlier answer.
        """
        until = self.write(answered, tools)
        if not self.stop or not until.startswith(prompt) or self.stop not in until[len(prompt) :]:
            return None
        answer = until[len(prompt) :]
        after = text.index(self.stop, starts[-1]) + len(self.stop) if starts else 0
        position = text.find(answer[: answer.index(self.stop) + len(self.stop)], after)
        return position if position >= 0 else None


def _merge(spans: list[Span]) -> list[Span]:
    """Join adjacent spans."""
    merged: list[Span] = []
    for start, end in spans:
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged


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


def load_chat_template(tokenizer: "PreTrainedTokenizerFast", tools: Tools = None) -> ChatTemplate:
    """Return the model's chat template. If it has several, `tools` selects one."""
    return _cached_template(tokenizer.get_chat_template(None, tools), tokenizer)


@functools.lru_cache(maxsize=32)
def _cached_template(template: str, tokenizer: "PreTrainedTokenizerFast") -> ChatTemplate:
    return ChatTemplate(template, tokenizer.special_tokens_map, special_tokens_of(tokenizer)[0])
