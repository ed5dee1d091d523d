"""One row in the one form that everything after this module takes: a conversation, a text, a pair, a label or tags.

Turns a row of a file into it by a Reading, or says what keeps it from being trained on. Knows no tokenizer and no other row.
"""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from peft_space.data.schemas import ColumnMapping, as_bool, listed, message_turns

Message = dict[str, Any]
"""{"role": "system" | "user" | "assistant" | "tool", "content": text}, and where there are any `tool_calls` and `weight` (0 or 1)."""


@dataclass(frozen=True)
class Conversation:
    """Messages that end with the assistant's answer."""

    row: int
    messages: list[Message]
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Text:
    """A text to go on as."""

    row: int
    text: str


@dataclass(frozen=True)
class Preference:
    """Two answers to one conversation, of which the first is preferred."""

    row: int
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


@dataclass(frozen=True)
class UnpairedPreference:
    """A conversation whose last answer is good or not."""

    row: int
    messages: list[Message]
    good: bool


@dataclass(frozen=True)
class TextClassification:
    """A text, or two, and the label it belongs to."""

    row: int
    text: str
    label: str
    second: str | None = None


@dataclass(frozen=True)
class TokenClassification:
    """Tokens and the tag of each."""

    row: int
    tokens: list[str]
    tags: list[str]


Row = (
    Conversation | Text | Preference | UnpairedPreference | TextClassification | TokenClassification
)
_KINDS: dict[str, type[Row]] = {
    kind.__name__: kind
    for kind in (
        Conversation,
        Text,
        Preference,
        UnpairedPreference,
        TextClassification,
        TokenClassification,
    )
}


@dataclass(frozen=True)
class Problem:
    """What keeps a row from being trained on, with the row's number in the file."""

    row: int
    problem: str


class BadRow(Exception):
    """Why a row cannot be used; never leaves the data package."""


def to_json(row: Row) -> str:
    """The row as one line; `from_json` reads it back."""
    values = {key: value for key, value in asdict(row).items() if value is not None}
    del values["row"]
    return json.dumps({"kind": type(row).__name__, **values}, ensure_ascii=False)


def from_json(number: int, line: str) -> Row:
    """The row that `to_json` wrote."""
    values = json.loads(line)
    return _KINDS[values.pop("kind")](row=number, **values)


def normalize_record(number: int, row: dict[str, Any], column_mapping: ColumnMapping) -> Row:
    """The row as `column_mapping` reads it, mended as it says. Raises BadRow where nothing can be learnt from it."""
    columns = column_mapping.columns
    clean: Callable[[str], str] = _stripped if "strip" in column_mapping.fixes else str

    def text(role: str) -> str:
        return clean(_text(row, columns.get(role)))

    match column_mapping.schema:
        case "text":
            if not (whole := text("text")).strip():
                raise BadRow("the text is empty")
            return Text(number, whole)
        case "text_classification" | "text_pair_classification":
            first, label = text("text") or text("first"), _text(row, columns["label"]).strip()
            second = text("second") if "second" in columns else None
            if not first.strip() or (second is not None and not second.strip()):
                raise BadRow("the text is empty")
            if not label:
                raise BadRow("the label is empty")
            return TextClassification(number, first, label, second)
        case "token_classification":
            return _tagged(number, row, columns)
        case "preference":
            return _preference(number, row, columns, clean)
        case "unpaired_preference":
            good = as_bool(row.get(columns["label"]))
            if good is None:
                raise BadRow(f"{columns['label']!r} is neither true nor false")
            return UnpairedPreference(
                number, _checked(_messages(row, columns, clean), column_mapping), good
            )
        case _:
            return Conversation(
                number,
                _checked(_messages(row, columns, clean), column_mapping),
                _tools(row.get(columns.get("tools", ""))),
            )


# Cells


def _text(row: dict[str, Any], column: str | None) -> str:
    """The cell's text exactly as written; an absent cell is empty. What is no text is refused."""
    value = row.get(column) if column else None
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRow(f"{column!r} is {_named(value)}, not text")
    return _writable(value)


def _named(value: Any) -> str:
    return {bool: "true or false", dict: "an object", list: "a list", type(None): "nothing"}.get(
        type(value), "a number"
    )


def _writable(text: str) -> str:
    """The text, if it is one: JSON can escape half a character, which no file takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRow("the text has half a character in it (a lone surrogate)") from None
    return text


_AROUND = re.compile(r"^[\s\u200b\ufeff]+|[\s\u200b\ufeff]+$")


def _stripped(text: str) -> str:
    return _AROUND.sub("", text)


# Conversations

_SPEAKERS = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user", "customer": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant", "ai": "assistant",
    "function_call": "call", "tool_call": "call",
    "tool": "tool", "observation": "tool", "function": "tool", "function_response": "tool", "tool_response": "tool", "ipython": "tool",
}  # fmt: skip
_WEIGHTS = ("loss_weight", "weight", "train", "training")


def _messages(
    row: dict[str, Any], columns: dict[str, str], clean: Callable[[str], str]
) -> list[Message]:
    system = clean(_text(row, columns.get("system")))
    messages: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
    if "messages" in columns:
        turns = message_turns(row.get(columns["messages"]))
        if not turns:
            raise BadRow(f"{columns['messages']!r} is not a list of messages")
        return messages + [_message(turn, clean) for turn in turns]
    asking = next(
        columns[role] for role in ("instruction", "question", "prompt", "source") if role in columns
    )
    answering = columns.get("answer") or columns["target"]
    if (turns := message_turns(row.get(asking))) and (
        answers := message_turns(row.get(answering))
    ):  # both sides as messages
        return messages + [_message(turn, clean) for turn in (*turns, *answers)]
    asked, more = clean(_text(row, asking)), clean(_text(row, columns.get("input")))
    messages.append({"role": "user", "content": f"{asked}\n\n{more}" if more.strip() else asked})
    return [*messages, {"role": "assistant", "content": clean(_text(row, answering))}]


def _message(turn: dict[str, Any], clean: Callable[[str], str]) -> Message:
    speaker = turn.get("role", turn.get("from", turn.get("speaker")))
    if speaker is None:
        raise BadRow("a message has no role")
    role = _SPEAKERS.get(str(speaker).lower())
    if role is None:
        raise BadRow(f"the role {speaker!r} is not known (system, user, assistant, tool)")
    content = turn.get("content", turn.get("value", turn.get("text")))
    calls = (
        _calls(content)
        if role == "call"
        else _calls(turn["tool_calls"])
        if turn.get("tool_calls")
        else None
    )
    if isinstance(content, list) and role != "call":  # parts: [{"type": "text", "text": …}]
        parts = [
            part.get("text", part.get("value")) if isinstance(part, dict) else part
            for part in content
        ]
        if not all(isinstance(part, str) for part in parts):
            raise BadRow("a message has a part that is no text, such as an image")
        content = "".join(parts)
    if role == "call":
        role, content = "assistant", ""
    if role == "tool" and isinstance(content, dict | list):
        content = json.dumps(content, ensure_ascii=False)
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise BadRow("a message has no text")
    message: Message = {"role": role, "content": clean(_writable(content))}
    if calls:
        message["tool_calls"] = calls
    if (weight := _weight(turn)) is not None:
        message["weight"] = weight
    return message


def _weight(turn: dict[str, Any]) -> int | None:
    """Whether a message is trained, where it says so itself."""
    value = next((turn[key] for key in _WEIGHTS if turn.get(key) is not None), None)
    if value is None or isinstance(value, bool):
        return None if value is None else int(value)
    try:
        weight = float(value)
    except (TypeError, ValueError):
        raise BadRow(f"the weight {value!r} of a message is no number") from None
    if weight not in (0.0, 1.0):
        raise BadRow(f"the weight {value} of a message is neither 0 (read) nor 1 (trained)")
    return int(weight)


def _calls(value: Any) -> list[dict[str, Any]]:
    """Tool calls as chat templates take them: a list of functions with a name, and arguments as an object."""
    value = _parsed(value)
    calls = []
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow("a tool call has no function name")
        arguments = _parsed(function.get("arguments", {}))
        calls.append(
            {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
        )
    return calls


def _tools(value: Any) -> list[dict[str, Any]] | None:
    """The tools that a conversation may call: a list of functions, or its JSON text."""
    if value in (None, "", "[]", []):
        return None
    tools = _parsed(value)
    tools = tools if isinstance(tools, list) else [tools]
    if not all(isinstance(tool, dict) for tool in tools):
        raise BadRow("the tools are not a list of functions")
    return [
        tool if "function" in tool else {"type": "function", "function": tool} for tool in tools
    ] or None


def _parsed(value: Any) -> Any:
    """What a JSON text stands for; anything else as it is."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _checked(messages: list[Message], column_mapping: ColumnMapping) -> list[Message]:
    """The messages, if a model can learn from them."""
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise BadRow("there is no answer")
    if roles[-1] != "assistant":
        if "trim" not in column_mapping.fixes:
            raise BadRow("the last message is not an answer")
        messages = messages[: len(roles) - roles[::-1].index("assistant")]
        roles = roles[: len(messages)]
    if "system" in roles[1:]:
        raise BadRow("a system message is not the first")
    for message in messages:
        if (
            message["role"] in ("user", "assistant")
            and not message["content"].strip()
            and not message.get("tool_calls")
        ):
            raise BadRow(
                "the answer is empty" if message["role"] == "assistant" else "the prompt is empty"
            )
    if messages[-1].get("tool_calls"):
        raise BadRow("it ends on a tool call, without an answer")
    before = "start"
    for message in messages:
        if message["role"] not in _MAY_FOLLOW[before]:
            raise BadRow("user and assistant do not take turns")
        before = "call" if message.get("tool_calls") else message["role"]
    return messages


_MAY_FOLLOW = {
    "start": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "call": ("tool",),
    "tool": ("tool", "assistant"),
}


# Pairs and tags


def _preference(
    number: int, row: dict[str, Any], columns: dict[str, str], clean: Callable[[str], str]
) -> Preference:
    chosen, rejected = (_answer(row.get(columns[role]), clean) for role in ("chosen", "rejected"))
    prompt = _prompt(row, columns, clean)
    shared = 0  # a pair without a prompt of its own has it in both conversations
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if not prompt or prompt == chosen[:shared]:
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if not prompt or prompt[-1]["role"] == "assistant":
        raise BadRow("there is no prompt that both answers belong to")
    for answer, name in ((chosen, "chosen"), (rejected, "rejected")):
        if not answer or answer[-1]["role"] != "assistant" or not answer[-1]["content"].strip():
            raise BadRow(f"the {name} answer is empty")
    if chosen == rejected:
        raise BadRow("both answers are the same")
    return Preference(number, prompt, chosen, rejected)


def _prompt(
    row: dict[str, Any], columns: dict[str, str], clean: Callable[[str], str]
) -> list[Message]:
    system = clean(_text(row, columns.get("system")))
    messages: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
    cell = row.get(columns.get("prompt", ""))
    if (turns := message_turns(cell)) is not None:
        return messages + [_message(turn, clean) for turn in turns]
    if cell is not None and not isinstance(cell, str):
        raise BadRow(f"{columns['prompt']!r} is {_named(cell)}, not text")
    return messages + (
        [{"role": "user", "content": clean(_writable(cell))}] if cell and cell.strip() else []
    )


_SPEAKS = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


def _answer(cell: Any, clean: Callable[[str], str]) -> list[Message]:
    """An answer, or a conversation that ends on it: a text, a message, messages, or a dialogue of Human: and Assistant:."""
    if isinstance(cell, dict):
        return [_message(cell, clean)]
    if (turns := message_turns(cell)) is not None:
        return [_message(turn, clean) for turn in turns]
    if not isinstance(cell, str):
        raise BadRow(f"an answer is {_named(cell)}, not text")
    if cell.startswith("\n\nHuman:"):
        _, *parts = _SPEAKS.split(cell)
        return [
            {"role": _SPEAKERS[who.lower()], "content": clean(_writable(said))}
            for who, said in zip(parts[::2], parts[1::2], strict=True)
        ]
    return [{"role": "assistant", "content": clean(_writable(cell))}]


def _tagged(number: int, row: dict[str, Any], columns: dict[str, str]) -> TokenClassification:
    tokens, tags = listed(row.get(columns["tokens"])), listed(row.get(columns["tags"]))
    if tokens is None or tags is None:
        raise BadRow("tokens or tags are no list")
    if len(tokens) != len(tags):
        raise BadRow(f"there are {len(tokens)} tokens and {len(tags)} tags")
    if not tokens:
        raise BadRow("there are no tokens")
    return TokenClassification(
        number, [_writable(str(token)) for token in tokens], [str(tag) for tag in tags]
    )
