"""Messages of conversations in the forms in which people store them, as one form.

Forms: OpenAI (with tool calls, the older function_call, content parts), Anthropic (tool_use,
tool_result), Gemini (parts, functionCall), Bedrock (toolUse), Cohere, ShareGPT, and thoughts under
several names or in the text.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

from peft_space.data.cells import as_bool, parse_literal, turns_of
from peft_space.data.readers import WrittenNumber

Message = dict[str, Any]
"""`role` ("system", "user", "assistant" or "tool") and `content`.

Optional: `reasoning_content` (thoughts before the content), `tool_calls`, `tool_call_id` and `name`
of a tool's result; `weight` (0 or 1) of the message in the loss; `trained`, spans of its content
that have a loss; `images`, a reference for each `PICTURE` in the content, which
becomes the digest of the picture's copy.
"""
Reference = Any
"""What a row has in place of a picture: a name, a data URI, or an object with one of them."""
PICTURE = "\U0010e000"
"""A private character that marks the place of a picture in a content."""
Clean = Callable[[str], str]


def shown_text(content: str) -> str:
    """Return a content for people, with <image> in the place of each picture."""
    return content.replace(PICTURE, "<image>")


class BadRow(Exception):
    """The reason why a row cannot be used; caught inside the data package."""


class FixableRow(BadRow):
    """A row that a fix makes usable.

    Args:
        reason: why the row cannot be used.
        finding: the kind of finding whose fix it is.
    """

    def __init__(self, reason: str, finding: str):
        super().__init__(reason, finding)
        self.finding = finding

    def __str__(self) -> str:
        return str(self.args[0])


_ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user", "customer": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "chatgpt": "assistant", "ai": "assistant", "bing": "assistant", "bard": "assistant",
    "claude": "assistant", "agent": "assistant", "chatbot": "assistant",
    "function_call": "call", "tool_call": "call",
    "tool": "tool", "observation": "tool", "function": "tool", "function_response": "tool",
    "tool_response": "tool", "tool_result": "tool", "ipython": "tool", "environment": "tool",
}  # fmt: skip
_SPEAKERS = ("role", "from", "speaker", "author", "sender", "sender_name")
_CHANNELS = ("analysis", "commentary", "final")
"""Channels of gpt-oss. Texts in the first one are reasoning."""
_CONTENTS = ("content", "value", "text", "parts", "message", "utterance", "refusal")
_WEIGHTS = (
    "loss_weight", "weight", "train", "training", "loss", "loss_mask", "mask", "train_on_turn",
    "trainable",
)  # fmt: skip
_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts")
_CALLS = ("tool_calls", "function_call", "function_calls", "tool_call")
_TOOLS = ("tools", "functions")
_OF_TOOLS = ("tool_call_id", "name", "tool_name")
_ALWAYS_USED = frozenset((*_TOOLS, "train_detail"))
_PLAIN = frozenset(("role", "from", "content", "value"))


def parse_messages(cell: Any, clean: Clean, assistant: str | None = None) -> list[Message] | None:
    """Return the messages in a cell; None if it contains no messages.

    Args:
        cell: a list of messages, its JSON text, an object of lists, or texts that take turns.
        clean: changes every text.
        assistant: the speaker who is the assistant. Other speakers without a role are the user.

    Raises:
        BadRow: a message cannot be read.
    """
    turns = turns_of(cell)
    # other objects in a text are an answer in JSON, which the model learns to write
    if turns is None or (isinstance(cell, str) and not (turns and all(map(_speaker, turns)))):
        return None
    turns = _join_channels([_with_speaker(turn) for turn in turns])
    if assistant is None and _speaks_as_system(turns):
        turns = [
            turn | {"role": "assistant"} if _role_of(_speaker(turn)) == "system" else turn
            for turn in turns
        ]
    messages = [message for turn in turns for message in _parse_message(turn, clean, assistant)]
    return _name_results(_join_calls(messages))


def _call_of_responses(item: dict[str, Any]) -> dict[str, Any]:
    function = {"name": item.get("name"), "arguments": item.get("arguments")}
    identity = {"id": item["call_id"]} if item.get("call_id") else {}
    return {"role": "assistant", "tool_calls": [{**identity, "function": function}]}


def _result_of_responses(item: dict[str, Any]) -> dict[str, Any]:
    return {"role": "tool", "content": item.get("output"), "tool_call_id": item.get("call_id")}


def _thought_of_responses(item: dict[str, Any]) -> dict[str, Any]:
    parts = item.get("content") or item.get("summary") or []
    texts = [part["text"] for part in parts if isinstance(part, dict) and part.get("text")]
    return {"role": "assistant", "channel": _CHANNELS[0], "content": "\n\n".join(texts)}


_ITEMS: dict[Any, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "function_call": _call_of_responses,
    "function_call_output": _result_of_responses,
    "reasoning": _thought_of_responses,
}
"""Types of the Responses API's items that have no role."""


def _with_speaker(turn: dict[str, Any]) -> dict[str, Any]:
    """Return a message with its role, which LangChain stores as `type`."""
    if _speaker(turn):
        return turn
    if turn.get("type") in _ITEMS:
        return _ITEMS[turn["type"]](turn)
    has_content = any(key in turn for key in ("content", "data"))
    if has_content and _role_of(turn.get("type")) is not None:
        if isinstance(turn.get("data"), dict) and "content" not in turn:  # as LangChain has it
            return {"role": turn["type"], **turn["data"]}
        return {"role": turn["type"], **{key: turn[key] for key in turn if key != "type"}}
    return turn


def _speaks_as_system(turns: list[dict[str, Any]]) -> bool:
    """Return True if a user and a system take turns: the system is the assistant of MultiWOZ."""
    roles = [_role_of(_speaker(turn)) for turn in turns]
    return set(roles) == {"user", "system"} and roles[0] == "user"


def _join_channels(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join the channels of an answer: an analysis becomes the reasoning of the next message."""
    joined: list[dict[str, Any]] = []
    for turn in turns:
        before = joined[-1] if joined else {}
        is_thought = before.get("channel") == _CHANNELS[0] and "recipient" not in before
        is_thought = is_thought and isinstance(before.get("content"), str)
        if is_thought and _role_of(_speaker(turn)) == "assistant":
            if turn.get("channel") == _CHANNELS[0]:
                joined[-1] = turn | {"content": f"{before['content']}\n\n{turn.get('content')}"}
            else:
                joined[-1] = turn | {"reasoning_content": before["content"]}
        else:
            joined.append(turn)
    return joined


def tools_in(turns: Iterable[dict[str, Any]]) -> Any:
    """Return the tools that a message declares, or None."""
    found = (turn.get(key) for turn in turns for key in _TOOLS)
    return next((tools for tools in found if tools not in (None, "", [])), None)


def unused_in_message(turn: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of a message and of its calls that have no use here, with their values.

    Of several keys for the same thing, such as `content` and `text`, the first one is used.
    """
    if len(turn) == 2 and turn.keys() <= _PLAIN and isinstance([*turn.values()][1], str):
        return {}  # most messages
    turn = _with_speaker(turn)
    role = _role_of(_speaker(turn))
    used = {
        next((key for key in keys if turn.get(key) is not None), "")
        for keys in (_SPEAKERS, _CONTENTS, _WEIGHTS)
    }
    if role not in ("assistant", "call"):  # only answers are trained
        used -= {key for key in _WEIGHTS if as_bool(turn.get(key))}
    calls = next((key for key in _CALLS if turn.get(key)), "")
    used |= {calls, *_ALWAYS_USED, *(_OF_TOOLS if role == "tool" else ())}
    if role == "assistant":
        thoughts = [key for key in _THOUGHTS if isinstance(turn.get(key), str)]
        used.add(next((key for key in thoughts if turn[key].strip()), ""))
    same = [turn[key] for key in used if key in turn]
    unused = {
        key: value
        for key, value in turn.items()
        if key not in used
        and value not in (None, "", [], {}, *same)
        and (key, value) != ("type", "message")
        and not (key == "channel" and value in _CHANNELS)
        and not (key in _SPEAKERS and _role_of(value) == role)
    }
    content = next((turn[key] for key in _CONTENTS if turn.get(key) is not None), None)
    for part in content if isinstance(content, list) else []:
        if isinstance(part, dict) and part.get("type") not in _PICTURES:
            rest = part.keys() - _PART_KEYS
            unused |= {f"content: {key}": part[key] for key in sorted(rest) if part[key]}
    return unused | unused_in_calls(turn.get(calls))


def unused_in_calls(calls: Any) -> dict[str, Any]:
    """Return the keys of tool calls, given as objects, that have no use here, with a value."""
    unused: dict[str, Any] = {}
    for call in calls if isinstance(calls, list) else [calls]:
        if not isinstance(call, dict):
            continue
        function = call.get("function")
        for part in (call, function) if isinstance(function, dict) else (call,):
            unused |= {key: part[key] for key in part if key not in _CALL_KEYS and part[key]}
    return unused


def _role_of(speaker: Any) -> str | None:
    return _ROLES.get(str(speaker).lower())


def _speaker(turn: dict[str, Any]) -> str:
    for key in _SPEAKERS:
        if (speaker := turn.get(key)) is not None:
            return str(speaker)
    return ""


def is_message(turn: dict[str, Any]) -> bool:
    """Return True if an object is a message: its speaker has a role, or it is a call of an API."""
    turn = _with_speaker(turn)
    return is_role(_speaker(turn)) and any(
        turn.get(key) is not None for key in (*_CONTENTS, *_CALLS)
    )


def is_role(speaker: Any) -> bool:
    """Return True if a speaker has a role that is known here, such as user or gpt."""
    return _role_of(speaker) is not None


def is_answer(speaker: Any) -> bool:
    """Return True if a speaker is the assistant."""
    return _role_of(speaker) in ("assistant", "call")


def is_question(turn: dict[str, Any]) -> bool:
    """Return True for a message of the user."""
    return _role_of(_speaker(turn)) == "user"


def has_speaker(turn: dict[str, Any]) -> bool:
    """Return True if an object says who speaks, as a message does."""
    return bool(_speaker(_with_speaker(turn)))


def unknown_speakers(turns: Iterable[dict[str, Any]]) -> list[str]:
    """Return the speakers without a known role, or none if one is known to be the assistant."""
    speakers = list(dict.fromkeys(filter(None, map(_speaker, turns))))
    known = {_ROLES.get(speaker.lower()) for speaker in speakers}
    if known & {"assistant", "call"}:
        return []
    return [speaker for speaker in speakers if speaker.lower() not in _ROLES]


def _parse_message(turn: dict[str, Any], clean: Clean, assistant: str | None) -> list[Message]:
    """Return a message. A message with several results of tools becomes several."""
    speaker = _speaker(turn)
    if not speaker:
        raise BadRow("a message has no role")
    role = _ROLES.get(speaker.lower())
    if assistant is not None and role is None:
        role = "assistant" if speaker == assistant else "user"
    if role is None:
        raise BadRow(f"the role {speaker!r} is unknown (use system, user, assistant or tool)")
    content = next((turn[key] for key in _CONTENTS if turn.get(key) is not None), None)
    is_plain = len(turn) == 2 and role != "call"
    if is_plain and isinstance(content, str) and not _END_OF_THOUGHT.search(content):  # most
        return [{"role": role, "content": clean(check_encodable(content))}]
    written = next((turn[key] for key in _CALLS if turn.get(key)), None)
    if role == "call":
        role, content, written = "assistant", "", content
    parts = _Parts()
    text = parts.read(role, content, written is not None) if content is not None else None
    if isinstance(written, str) and isinstance(parse_literal(written), str):
        text, written = f"{text or ''}{written}", None  # a call as the model writes it
    calls = [*parts.calls, *(parse_calls(written) if written else [])]
    if text is None:
        if not calls:
            raise BadRow("a message has no text")
        text = ""
    messages = [
        {"role": "tool", "content": clean(result), **identity} for result, identity in parts.results
    ]
    if messages and not text.strip():
        return messages
    thoughts = [turn[key] for key in _THOUGHTS if isinstance(turn.get(key), str)]
    thoughts.append("\n\n".join(filter(str.strip, parts.thoughts)))
    details = turn.get("train_detail")  # its offsets are those of the whole text
    if role == "assistant" and not details and not any(map(str.strip, thoughts)):
        thought, text = split_thought(text)
        thoughts = [thought]
    content = clean(check_encodable(text))
    message: Message = {"role": role, "content": content}
    if parts.pictures:
        message["images"] = parts.pictures
    if role == "assistant" and (thought := next(filter(str.strip, thoughts), "").strip()):
        message["reasoning_content"] = check_encodable(thought)
    if calls:
        message["tool_calls"] = calls
    if role == "tool":
        message |= _identity(turn)
    if (weight := _weight(turn)) is not None:
        message["weight"] = weight
    if details:
        removed = text.index(content)  # a fix strips white space
        message["trained"] = [
            [max(0, start - removed), min(len(content), end - removed)]
            for start, end in _trained_spans(details)
        ]
    return [*messages, message]


_THOUGHT_MARKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
)
"""What models write around a thought. The prompt can contain the first mark of the first pair."""
_THOUGHTS_IN_TEXT = (
    *(
        re.compile(
            rf"\s*(?:{re.escape(begin)}){'?' if begin == '<think>' else ''}(.*?){re.escape(end)}"
            r"\s*(.*)",
            re.DOTALL,
        )
        for begin, end in _THOUGHT_MARKS
    ),
    re.compile(
        r"\s*<\|begin_of_thought\|>(.*?)<\|end_of_thought\|>\s*"
        r"<\|begin_of_solution\|>\s*(.*?)\s*<\|end_of_solution\|>\s*",
        re.DOTALL,
    ),
)
_END_OF_THOUGHT = re.compile(r"</(?:think|thought|seed:)|/THINK\]|/think▷|end_of_thought")


def split_thought(text: str) -> tuple[str, str]:
    """Return (thought, answer) of a text such as `<think>…</think>…`; the thought can be empty."""
    for form in _THOUGHTS_IN_TEXT:
        match = form.fullmatch(text)
        if match and "<think>" not in match[1] and not _END_OF_THOUGHT.search(match[2]):
            return match[1].strip(), match[2]
    return "", text


def answer_message(text: str, clean: Clean) -> Message:
    """Return the message of an answer, with the thought in its text apart."""
    thought, text = split_thought(text)
    message: Message = {"role": "assistant", "content": clean(check_encodable(text))}
    return message | {"reasoning_content": check_encodable(thought)} if thought else message


def _identity(turn: dict[str, Any]) -> dict[str, str]:
    identity = turn.get("tool_call_id")
    name = turn.get("name") or turn.get("tool_name")
    return {key: str(value) for key, value in (("tool_call_id", identity), ("name", name)) if value}


class _Parts:
    """What the parts of a content are: text, pictures, thoughts, calls and results of tools."""

    def __init__(self) -> None:
        self.thoughts: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.results: list[tuple[str, dict[str, str]]] = []
        self.pictures: list[Reference | None] = []

    def read(self, role: str, content: Any, has_calls: bool) -> str:
        """Return the text of a content."""
        if role == "tool" and not isinstance(content, str):
            is_parts = isinstance(content, list) and all(
                isinstance(part, dict) and {"type", *_RESULTS} & set(part) for part in content
            )
            if not is_parts:
                return json.dumps(with_numbers(content), ensure_ascii=False)
        if isinstance(content, list):
            return "".join(map(self._read_part, content))
        if not isinstance(content, str):
            raise BadRow("a message has no text")
        return content

    def _read_part(self, part: Any) -> str:
        if isinstance(part, str):
            return part
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, dict) and kind is None:
            kind, part = _typed(part)
        if kind in _OF_VERCEL:
            kind, part = _of_vercel(part)
        if kind in ("thinking", "reasoning", "thought"):
            value = part.get("thinking", part.get("reasoning", part.get("text")))
            value = value if isinstance(value, str) else self._nested(value)
            self.thoughts.append(value)
            return ""
        if kind == "tool_use":
            function = {"name": part.get("name"), "arguments": part.get("input", {})}
            identity = {"id": part["id"]} if part.get("id") else {}
            self.calls += parse_calls([{**identity, "function": function}])
            return ""
        if kind == "tool_result":
            content = part.get("content")
            text = _as_text(self._nested(content) if isinstance(content, list) else content)
            identity = part.get("tool_use_id")
            self.results.append((text, {"tool_call_id": identity} if identity else {}))
            return ""
        if isinstance(part, dict) and kind in _PICTURES:
            self.pictures.append(self._reference(part))
            return PICTURE
        if kind == "step-start":  # of Vercel's AI SDK, without a content
            return ""
        named = (part[key] for key in ("text", "value", "refusal") if key in part)
        value = next(named, None) if isinstance(part, dict) else None
        if isinstance(value, dict):  # as OpenAI's Assistants have it
            value = value.get("value")
        if isinstance(value, str) and PICTURE in value:
            raise BadRow("the text contains a private-use character that marks a picture here")
        if not isinstance(value, str):
            what = f" of type {kind!r}" if kind else ""
            raise BadRow(f"a message has a part{what} that is neither text nor a picture")
        return value

    @staticmethod
    def _reference(part: dict[str, Any]) -> Reference | None:
        """The picture in a part; None if a column of the row has it."""
        named = {key: value for key, value in part.items() if key != "type" and value is not None}
        return named or None

    def _nested(self, value: Any) -> str:
        parts = value if isinstance(value, list) else [value]
        return "".join(self._read_part(part) for part in parts)


_OF_VERCEL = ("tool-call", "tool-result")


def _of_vercel(part: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a call or a result of Vercel's AI SDK as Anthropic writes it."""
    if part["type"] == "tool-call":
        given = part.get("args", part.get("input", {}))
        return "tool_use", {
            "id": part.get("toolCallId"), "name": part.get("toolName"), "input": given,
        }  # fmt: skip
    content = part.get("result", part.get("output"))
    if isinstance(content, dict) and "value" in content:
        content = content["value"]
    return "tool_result", {"tool_use_id": part.get("toolCallId"), "content": content}


_PICTURES = ("image", "image_url", "input_image", "picture", "inlineData", "inline_data")
_CALLS_IN_PARTS = ("functionCall", "function_call", "toolUse")
_RESULTS = ("functionResponse", "function_response", "toolResult")
_PART_KEYS = frozenset(
    ("type", "text", "value", "refusal", "thinking", "reasoning", "thought", "id", "name", "input",
     "content", "tool_use_id", "toolCallId", "toolName", "args", "result", "output",
     *_PICTURES, *_CALLS_IN_PARTS, *_RESULTS)
)  # fmt: skip


def _typed(part: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Return the type of a part as Gemini or Bedrock writes it, and the part as Anthropic does."""
    if part.get("thought") is True:
        return "thought", part
    call = next((part[key] for key in _CALLS_IN_PARTS if isinstance(part.get(key), dict)), None)
    if call is not None:
        arguments = call.get("args", call.get("input", {}))
        identity = call.get("toolUseId", call.get("id"))
        return "tool_use", {"id": identity, "name": call.get("name"), "input": arguments}
    result = next((part[key] for key in _RESULTS if isinstance(part.get(key), dict)), None)
    if result is not None:
        content = result.get("content", result.get("response"))
        if isinstance(content, list):
            content = [{"text": _as_text(one.get("json", one.get("text")))} for one in content]
        identity = result.get("toolUseId", result.get("id"))
        return "tool_result", {"tool_use_id": identity, "content": content}
    return next((key for key in ("inlineData", "inline_data") if key in part), None), part


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(with_numbers(value), ensure_ascii=False)


def text_of(content: Any) -> str:
    """Return the text of a content: a text, parts, or an object with one of them.

    Raises:
        BadRow: it has a part that is not text.
    """
    if isinstance(content, dict):
        inner = next((content[key] for key in _CONTENTS if content.get(key) is not None), None)
        content = [content] if isinstance(inner, str) else inner
    parts = _Parts()
    text = parts.read("system", content, False)
    if parts.pictures:
        raise BadRow("a system message has a picture. Put it into the question")
    return text


def _trained_spans(details: Any) -> list[list[int]]:
    """Return the trained spans of Axolotl's `train_detail`; `end_offset` is a last character."""
    try:
        return [
            [int(part["begin_offset"]), int(part["end_offset"]) + 1]
            for part in details
            if part.get("train", True)
        ]
    except (TypeError, KeyError, ValueError, AttributeError):
        raise BadRow("train_detail is not a list of begin_offset, end_offset and train") from None


def _weight(turn: dict[str, Any]) -> int | None:
    """Return the weight of a message in the loss, or None if the message has none."""
    value = next((turn[key] for key in _WEIGHTS if turn.get(key) is not None), None)
    if value is None or isinstance(value, bool):
        return None if value is None else int(value)
    if (truth := as_bool(value)) is not None:
        return int(truth)
    try:
        weight = float(value)
    except (TypeError, ValueError):
        raise BadRow(f"the weight {value!r} of a message is not a number") from None
    if weight not in (0.0, 1.0):
        raise BadRow(f"the weight {value} of a message is neither 0 (read) nor 1 (trained)")
    return int(weight)


# Tools


_ARGUMENTS = ("arguments", "parameters", "args", "input")
_CALL_KEYS = frozenset(("id", "type", "index", "function", "name", *_ARGUMENTS))


def parse_calls(value: Any) -> list[dict[str, Any]]:
    """Return tool calls as chat templates take them, with the arguments as an object."""
    value = parse_literal(value)
    calls = []
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow("a tool call has no function name")
        arguments = next((function[key] for key in _ARGUMENTS if key in function), None)
        arguments = parse_literal(arguments)
        arguments = {} if arguments is None else with_numbers(arguments)
        named = {"name": function["name"], "arguments": arguments}
        identity = {"id": str(call["id"])} if call.get("id") else {}
        calls.append({**identity, "type": "function", "function": named})
    return calls


def parse_tools(value: Any) -> list[dict[str, Any]] | None:
    """Return the functions that a conversation may call, from a list or its JSON text."""
    if value in (None, "", "[]", []):
        return None
    tools = _unfolded(with_numbers(parse_literal(value)))
    if not all(isinstance(tool, dict) for tool in tools):
        raise BadRow("the tools are not a list of functions")
    wrapped = [
        tool if "function" in tool else {"type": "function", "function": _function(tool)}
        for tool in tools
    ]
    if not all(_tool_name(tool) for tool in wrapped):
        raise BadRow("a tool has no name")
    return wrapped or None


def _tool_name(tool: dict[str, Any]) -> Any:
    function = tool["function"]
    return function.get("name") if isinstance(function, dict) else function


_TOOL_KEYS = {"name", "function", "type", "parameters", "description", "input_schema"}


def _unfolded(tools: Any) -> list[Any]:
    """Return the functions of a list, of Gemini's declarations, of Bedrock, or of names."""
    if isinstance(tools, list):
        return [one for tool in tools for one in _unfolded(tool)]
    if not isinstance(tools, dict):
        return [tools]
    for key in ("functionDeclarations", "function_declarations", "tools"):
        if isinstance(tools.get(key), list):
            return _unfolded(tools[key])
    if isinstance(spec := tools.get("toolSpec"), dict):
        schema = spec.get("inputSchema", {})
        schema = schema.get("json", schema) if isinstance(schema, dict) else schema
        rest = {key: spec[key] for key in spec if key != "inputSchema"}
        return [{**rest, "parameters": schema}]
    is_named = not _TOOL_KEYS & tools.keys()
    if tools and is_named and all(isinstance(tool, dict) for tool in tools.values()):
        return [{"name": name, **tool} for name, tool in tools.items()]
    return [tools]


def _function(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a function with its parameters under OpenAI's name."""
    if "input_schema" not in tool:
        return tool
    renamed = {key: value for key, value in tool.items() if key != "input_schema"}
    return renamed | {"parameters": tool["input_schema"]}


def with_numbers(value: Any) -> Any:
    """Return a value with numbers in place of their text as written."""
    if isinstance(value, WrittenNumber):
        return json.loads(value)
    if isinstance(value, dict):
        return {key: with_numbers(inner) for key, inner in value.items()}
    return [with_numbers(inner) for inner in value] if isinstance(value, list) else value


def _join_calls(messages: list[Message]) -> list[Message]:
    """Join calls that follow each other without a text: several calls of one message."""
    joined: list[Message] = []
    for message in messages:
        before = joined[-1] if joined else {}
        calls_only = message.get("tool_calls") and not message["content"].strip()
        same_weight = message.get("weight") == before.get("weight")
        if calls_only and before.get("tool_calls") and same_weight:
            calls = [*before["tool_calls"], *message["tool_calls"]]
            joined[-1] = before | {"tool_calls": calls} | _joined_thoughts(before, message)
        else:
            joined.append(message)
    return joined


def _joined_thoughts(*messages: Message) -> Message:
    """Return the thoughts of messages as a part of one message."""
    thoughts = [one["reasoning_content"] for one in messages if one.get("reasoning_content")]
    return {"reasoning_content": "\n\n".join(thoughts)} if thoughts else {}


def _name_results(messages: list[Message]) -> list[Message]:
    """Give each result of a tool the name of the tool, by its id or in the order of the calls."""
    waiting: list[dict[str, Any]] = []
    for message in messages:
        if message.get("tool_calls"):
            waiting = list(message["tool_calls"])
        if message["role"] != "tool" or not waiting:
            continue
        identity = message.get("tool_call_id")
        call = next((call for call in waiting if identity and call.get("id") == identity), None)
        call = call or waiting[0]
        waiting.remove(call)
        message.setdefault("name", call["function"]["name"])
    return messages


def check_encodable(text: str) -> str:
    """Return the text. JSON can escape half a character, which cannot be written to a file."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRow("the text contains half a character (a lone surrogate)") from None
    return text


# Turns

_MAY_FOLLOW = {
    "start": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),  # a call can be a part of the text
    "call": ("tool",),
    "tool": ("tool", "assistant", "user"),
}


def merge_turns(messages: list[Message]) -> list[Message]:
    """Join messages of one role that follow each other, and put system messages at the front."""
    system = [message for message in messages if message["role"] == "system"]
    merged: list[Message] = []
    for message in (*system, *(m for m in messages if m["role"] != "system")):
        before = merged[-1] if merged else None
        same = before is not None and before["role"] == message["role"] != "tool"
        if before is None or not same or before.get("tool_calls"):
            merged.append(message)
            continue
        images = [*before.get("images", []), *message.get("images", [])]
        merged[-1] = (
            before
            | message
            | _joined_contents(before, message)
            | _joined_thoughts(before, message)
            | ({"images": images} if images else {})
        )
    return merged


def _joined_contents(first: Message, second: Message) -> Message:
    """Return the contents of two messages as a part of one, with what of it has a loss."""
    texts = [text for one in (first, second) if (text := one["content"]).strip()]
    joined: Message = {"content": "\n\n".join(texts)}
    weights = [one.get("weight") for one in (first, second)]
    if weights[0] == weights[1] and not {"trained"} & (first.keys() | second.keys()):
        return joined
    spans: list[list[int]] = []
    begin = 0
    for message in (first, second):
        length = len(message["content"])
        whole = [[0, length]] if message.get("weight") != 0 else []
        spans += [[begin + a, begin + b] for a, b in message.get("trained", whole)]
        begin += length + 2 if message["content"].strip() else 0
    return joined | {"trained": spans, "weight": int(bool(spans))}


def check_turns(messages: list[Message], fixes: Collection[str]) -> list[Message]:
    """Return the messages up to the last answer, if a model can learn from them.

    Args:
        messages: a conversation.
        fixes: of these, `drop_greeting`, `merge` and `trim` are applied.

    Raises:
        BadRow: a model cannot learn from them.
    """
    if "drop_greeting" in fixes:
        messages = _without_greeting(messages)
    if "merge" in fixes:
        messages = merge_turns(messages)
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise BadRow("the row has no answer")
    if roles[-1] != "assistant":
        if "trim" not in fixes:
            raise FixableRow("the last message is not an answer", "trailing")
        messages = messages[: len(roles) - roles[::-1].index("assistant")]
    before = "start"
    for number, message in enumerate(messages, 1):
        role = message["role"]
        where = f" (message {number})" if len(messages) > 2 else ""
        if role == "system" and number > 1:
            reason = f"message {number} is a system message, and not the first message"
            raise FixableRow(reason, "unmerged")
        is_silent = not message["content"].strip() and not message.get("tool_calls")
        if is_silent and role in ("user", "assistant"):
            name = "answer" if role == "assistant" else "prompt"
            raise BadRow(f"the {name} is empty{where}")
        if role not in _MAY_FOLLOW[before]:
            reason = f"user and assistant do not take turns{where}"
            asked = _without_greeting(messages)
            if len(asked) < len(messages) and any(one["role"] == "assistant" for one in asked):
                raise FixableRow("the conversation begins with an answer", "greeted")
            if role == before or before == "call":
                raise FixableRow(reason, "unmerged")
            raise BadRow(reason)
        before = "call" if message.get("tool_calls") else role
    return messages


def _without_greeting(messages: list[Message]) -> list[Message]:
    """Return the system messages, and the messages from the first question on."""
    roles = [message["role"] for message in messages]
    first = roles.index("user") if "user" in roles else 0
    system = [message for message in messages[:first] if message["role"] == "system"]
    return [*system, *messages[first:]]
