"""Normalized records: a row of any schema as a conversation, text, preference, label or tags."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from peft_space.data.schema_detection import ColumnMapping, as_bool, listed, message_turns

Message = dict[str, Any]
"""`role` ("system", "user", "assistant" or "tool") and `content`.

Optional: `tool_calls`, and `weight` (0 or 1) of the message in the loss.
"""
_Clean = Callable[[str], str]


@dataclass(frozen=True)
class Conversation:
    """Messages that end with the assistant's answer."""

    row: int
    messages: list[Message]
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Text:
    """A text to continue."""

    row: int
    text: str


@dataclass(frozen=True)
class Preference:
    """A prompt with a chosen and a rejected answer."""

    row: int
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


@dataclass(frozen=True)
class UnpairedPreference:
    """A conversation whose last answer is rated good or not."""

    row: int
    messages: list[Message]
    good: bool


@dataclass(frozen=True)
class TextClassification:
    """A text, or a pair of texts, and its label."""

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
_KINDS: dict[str, type[Row]] = {kind.__name__: kind for kind in Row.__args__}


@dataclass(frozen=True)
class Problem:
    """The reason why a row, identified by its number in the file, is left out."""

    row: int
    problem: str


class BadRow(Exception):
    """The reason why a row cannot be used; caught inside the data package."""


class UnansweredRow(BadRow):
    """The last message has no answer."""


def to_json(row: Row) -> str:
    """Return a row as one line of JSON, which `from_json` reads."""
    values = {key: value for key, value in asdict(row).items() if value is not None}
    del values["row"]
    return json.dumps({"kind": type(row).__name__, **values}, ensure_ascii=False)


def from_json(number: int, line: str) -> Row:
    """Return the row that `to_json` wrote."""
    values = json.loads(line)
    return _KINDS[values.pop("kind")](row=number, **values)


def normalize_record(number: int, row: dict[str, Any], column_mapping: ColumnMapping) -> Row:
    """Normalize a row and apply the fixes of the column mapping.

    Raises:
        BadRow: a model cannot learn from the row.
    """
    columns = column_mapping.columns
    clean: _Clean = _strip if "strip" in column_mapping.fixes else str

    def conversation() -> list[Message]:
        return _check_turns(_messages(row, columns, clean), column_mapping)

    match column_mapping.schema:
        case "text":
            text = clean(_text(row, columns["text"]))
            if not text.strip():
                raise BadRow("the text is empty")
            return Text(number, text)
        case "text_classification" | "text_pair_classification":
            return _text_classification(number, row, columns, clean)
        case "token_classification":
            return _token_classification(number, row, columns)
        case "preference":
            return _preference(number, row, columns, clean)
        case "unpaired_preference":
            good = as_bool(row.get(columns["label"]))
            if good is None:
                raise BadRow(f"{columns['label']!r} is neither true nor false")
            return UnpairedPreference(number, conversation(), good)
        case _:
            return Conversation(number, conversation(), _tools(row.get(columns.get("tools", ""))))


# Cells


def _text(row: dict[str, Any], column: str | None) -> str:
    """Return the text of a cell exactly as written; an absent cell is empty."""
    value = row.get(column) if column else None
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRow(f"{column!r} is {_type_name(value)}, not text")
    return _check_encodable(value)


def _type_name(value: Any) -> str:
    names = {bool: "true or false", dict: "an object", list: "a list", type(None): "empty"}
    return names.get(type(value), "a number")


def _check_encodable(text: str) -> str:
    """Return the text. JSON can escape half a character, which cannot be written to a file."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRow("the text contains half a character (a lone surrogate)") from None
    return text


_AROUND = re.compile(r"^[\s\u200b\ufeff]+|[\s\u200b\ufeff]+$")


def _strip(text: str) -> str:
    return _AROUND.sub("", text)


def _parse_json(value: Any) -> Any:
    """Return the value of a JSON text, and anything else unchanged."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


# Conversations

_ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user", "customer": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "chatgpt": "assistant", "ai": "assistant",
    "function_call": "call", "tool_call": "call",
    "tool": "tool", "observation": "tool", "function": "tool", "function_response": "tool",
    "tool_response": "tool", "ipython": "tool",
}  # fmt: skip
_WEIGHTS = ("loss_weight", "weight", "train", "training")
_QUESTIONS = ("instruction", "question", "prompt", "source")


def _messages(row: dict[str, Any], columns: dict[str, str], clean: _Clean) -> list[Message]:
    messages = _system_message(row, columns, clean)
    if "messages" in columns:
        turns = message_turns(row.get(columns["messages"]))
        if not turns:
            raise BadRow(f"{columns['messages']!r} is not a list of messages")
        return messages + [_message(turn, clean) for turn in turns]
    question_column = next(columns[role] for role in _QUESTIONS if role in columns)
    answer_column = columns.get("answer") or columns["target"]
    questions = message_turns(row.get(question_column))
    answers = message_turns(row.get(answer_column))
    if questions and answers:
        return messages + [_message(turn, clean) for turn in (*questions, *answers)]
    question = clean(_text(row, question_column))
    context = clean(_text(row, columns.get("input")))
    if context.strip():
        question = f"{question}\n\n{context}"
    messages.append({"role": "user", "content": question})
    return [*messages, {"role": "assistant", "content": clean(_text(row, answer_column))}]


def _system_message(row: dict[str, Any], columns: dict[str, str], clean: _Clean) -> list[Message]:
    system = clean(_text(row, columns.get("system")))
    return [{"role": "system", "content": system}] if system.strip() else []


def _message(turn: dict[str, Any], clean: _Clean) -> Message:
    speaker = turn.get("role", turn.get("from", turn.get("speaker")))
    if speaker is None:
        raise BadRow("a message has no role")
    role = _ROLES.get(str(speaker).lower())
    if role is None:
        raise BadRow(f"the role {speaker!r} is unknown (use system, user, assistant or tool)")
    content = turn.get("content", turn.get("value", turn.get("text")))
    if role == "call":
        role, content, calls = "assistant", "", _calls(content)
    else:
        calls = _calls(turn["tool_calls"]) if turn.get("tool_calls") else []
    message: Message = {"role": role, "content": clean(_content(role, content, bool(calls)))}
    if calls:
        message["tool_calls"] = calls
    if (weight := _weight(turn)) is not None:
        message["weight"] = weight
    return message


def _content(role: str, content: Any, has_calls: bool) -> str:
    """Return the text of a message."""
    if isinstance(content, list):  # parts: [{"type": "text", "text": …}]
        content = "".join(map(_part_text, content))
    if role == "tool" and isinstance(content, dict):
        content = json.dumps(content, ensure_ascii=False)
    if content is None and has_calls:
        content = ""
    if not isinstance(content, str):
        raise BadRow("a message has no text")
    return _check_encodable(content)


def _part_text(part: Any) -> str:
    text = part.get("text", part.get("value")) if isinstance(part, dict) else part
    if not isinstance(text, str):
        raise BadRow("a message has a part that is not text, such as an image")
    return text


def _weight(turn: dict[str, Any]) -> int | None:
    """Return the weight of a message in the loss, or None if the message has none."""
    value = next((turn[key] for key in _WEIGHTS if turn.get(key) is not None), None)
    if value is None or isinstance(value, bool):
        return None if value is None else int(value)
    try:
        weight = float(value)
    except (TypeError, ValueError):
        raise BadRow(f"the weight {value!r} of a message is not a number") from None
    if weight not in (0.0, 1.0):
        raise BadRow(f"the weight {value} of a message is neither 0 (read) nor 1 (trained)")
    return int(weight)


def _calls(value: Any) -> list[dict[str, Any]]:
    """Return tool calls as chat templates take them, with the arguments as an object."""
    value = _parse_json(value)
    calls = []
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow("a tool call has no function name")
        arguments = _parse_json(function.get("arguments", {}))
        named = {"name": function["name"], "arguments": arguments}
        calls.append({"type": "function", "function": named})
    return calls


def _tools(value: Any) -> list[dict[str, Any]] | None:
    """Return the functions that a conversation may call, from a list or its JSON text."""
    if value in (None, "", "[]", []):
        return None
    tools = _parse_json(value)
    tools = tools if isinstance(tools, list) else [tools]
    if not all(isinstance(tool, dict) for tool in tools):
        raise BadRow("the tools are not a list of functions")
    wrapped = [
        tool if "function" in tool else {"type": "function", "function": tool} for tool in tools
    ]
    return wrapped or None


_MAY_FOLLOW = {
    "start": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "call": ("tool",),
    "tool": ("tool", "assistant"),
}


def _check_turns(messages: list[Message], column_mapping: ColumnMapping) -> list[Message]:
    """Return the messages up to the last answer, if a model can learn from them."""
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise BadRow("there is no answer")
    if roles[-1] != "assistant":
        if "trim" not in column_mapping.fixes:
            raise UnansweredRow("the last message is not an answer")
        messages = messages[: len(roles) - roles[::-1].index("assistant")]
    if "system" in roles[1 : len(messages)]:
        raise BadRow("a system message is not the first message")
    for message in messages:
        is_silent = not message["content"].strip() and not message.get("tool_calls")
        if is_silent and message["role"] in ("user", "assistant"):
            name = "answer" if message["role"] == "assistant" else "prompt"
            raise BadRow(f"the {name} is empty")
    if messages[-1].get("tool_calls"):
        raise BadRow("the conversation ends with a tool call, without an answer")
    before = "start"
    for message in messages:
        if message["role"] not in _MAY_FOLLOW[before]:
            raise BadRow("user and assistant do not take turns")
        before = "call" if message.get("tool_calls") else message["role"]
    return messages


# Preferences


def _preference(
    number: int, row: dict[str, Any], columns: dict[str, str], clean: _Clean
) -> Preference:
    chosen, rejected = (_answer(row.get(columns[role]), clean) for role in ("chosen", "rejected"))
    prompt = _prompt(row, columns, clean)
    shared = 0  # without a prompt column, both conversations begin with the prompt
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if not prompt or prompt == chosen[:shared]:
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if not prompt or prompt[-1]["role"] == "assistant":
        raise BadRow("the two answers do not share a prompt")
    for answer, name in ((chosen, "chosen"), (rejected, "rejected")):
        if not answer or answer[-1]["role"] != "assistant" or not answer[-1]["content"].strip():
            raise BadRow(f"the {name} answer is empty")
    if chosen == rejected:
        raise BadRow("the two answers are the same")
    return Preference(number, prompt, chosen, rejected)


def _prompt(row: dict[str, Any], columns: dict[str, str], clean: _Clean) -> list[Message]:
    messages = _system_message(row, columns, clean)
    cell = row.get(columns.get("prompt", ""))
    if (turns := message_turns(cell)) is not None:
        return messages + [_message(turn, clean) for turn in turns]
    if cell is not None and not isinstance(cell, str):
        raise BadRow(f"{columns['prompt']!r} is {_type_name(cell)}, not text")
    if cell and cell.strip():
        messages.append({"role": "user", "content": clean(_check_encodable(cell))})
    return messages


_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


def _answer(cell: Any, clean: _Clean) -> list[Message]:
    """Return an answer, or a conversation that ends with it.

    The cell contains a text, a message, messages, or a dialogue of `Human:` and `Assistant:`.
    """
    if isinstance(cell, dict):
        return [_message(cell, clean)]
    if (turns := message_turns(cell)) is not None:
        return [_message(turn, clean) for turn in turns]
    if not isinstance(cell, str):
        raise BadRow(f"an answer is {_type_name(cell)}, not text")
    if cell.startswith("\n\nHuman:"):
        _, *parts = _SPEAKER.split(cell)
        return [
            {"role": _ROLES[speaker.lower()], "content": clean(_check_encodable(text))}
            for speaker, text in zip(parts[::2], parts[1::2], strict=True)
        ]
    return [{"role": "assistant", "content": clean(_check_encodable(cell))}]


# Labels and tags


def _text_classification(
    number: int, row: dict[str, Any], columns: dict[str, str], clean: _Clean
) -> TextClassification:
    text = clean(_text(row, columns.get("text") or columns.get("first")))
    second = clean(_text(row, columns["second"])) if "second" in columns else None
    label = _text(row, columns["label"]).strip()
    if not text.strip() or (second is not None and not second.strip()):
        raise BadRow("the text is empty")
    if not label:
        raise BadRow("the label is empty")
    return TextClassification(number, text, label, second)


def _token_classification(
    number: int, row: dict[str, Any], columns: dict[str, str]
) -> TokenClassification:
    tokens, tags = listed(row.get(columns["tokens"])), listed(row.get(columns["tags"]))
    if tokens is None or tags is None:
        raise BadRow("tokens or tags are not a list")
    if len(tokens) != len(tags):
        raise BadRow(f"there are {len(tokens)} tokens but {len(tags)} tags")
    if not tokens:
        raise BadRow("there are no tokens")
    texts = [_check_encodable(str(token)) for token in tokens]
    return TokenClassification(number, texts, [str(tag) for tag in tags])
