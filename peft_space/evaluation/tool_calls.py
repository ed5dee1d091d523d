"""Compares tool calls by their names and arguments, in whatever form a model writes them."""

import ast
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from peft_space.data.row_normalization import Conversation

_VALUE = re.compile(r"[\[{]")
_TAGGED = re.compile(
    r"<([\w:]*parameter)[= ][^<>]+>.*?</\1>|<arg_key>.*?</arg_key>\s*<arg_value>.*?</arg_value>",
    re.DOTALL,
)
"""An argument as some families write it: the order of arguments has no meaning."""
_DECODER = json.JSONDecoder()


def function_names(row: Conversation) -> set[str]:
    """The names of the functions that a conversation offers or calls."""
    offered = (tool.get("function", tool).get("name") for tool in row.tools or [])
    calls = (call for message in row.messages for call in message.get("tool_calls") or [])
    return {str(name) for name in (*offered, *(call["function"]["name"] for call in calls)) if name}


def called_names(text: str, names: Iterable[str]) -> list[str]:
    """The functions that are named in a text, in order, without those inside of JSON texts."""
    longest_first = sorted(names, key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest_first))
    return re.findall(rf"(?<![\w-])(?:{pattern})(?![\w-])", text) if pattern else []


def canonical_call(text: str) -> str:
    """A written call in a form in which equal calls are equal texts.

    JSON gets sorted keys and no white space, also in a text within JSON. Other arguments are
    sorted. Apart from that, white space counts as one space.
    """
    parts, position = [], 0
    while start := _VALUE.search(text, position):
        value, end = _read_value(text, start.start())
        parts += [text[position : start.start()], value]
        position = end
    return " ".join(_with_sorted_arguments("".join([*parts, text[position:]])).split())


def _read_value(text: str, start: int) -> tuple[str, int]:
    """The JSON value or the list of Python calls that begins at `start`, and its end."""
    try:
        value, end = _DECODER.raw_decode(text, start)
        return _dumps(value), end
    except ValueError:
        pass
    end = text.rfind("]", start) + 1
    try:
        calls = ast.parse(text[start:end], mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return text[start], start + 1
    for node in ast.walk(calls):
        if isinstance(node, ast.Call):
            node.keywords.sort(key=lambda keyword: keyword.arg or "")
    return ast.unparse(calls), end


def _dumps(value: Any) -> str:
    return json.dumps(_parsed(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _parsed(value: Any) -> Any:
    """The value with objects in place of their JSON texts, as OpenAI writes arguments."""
    if isinstance(value, dict):
        return {key: _parsed(item) for key, item in value.items()}
    if isinstance(value, list):
        return list(map(_parsed, value))
    if isinstance(value, str) and value.strip().startswith("{"):
        try:
            return _parsed(json.loads(value))
        except ValueError:
            return value
    return value


def _with_sorted_arguments(text: str) -> str:
    found: list[re.Match[str]] = []
    for match in _TAGGED.finditer(text):
        if found and text[found[-1].end() : match.start()].strip():
            text_before = _with_sorted_arguments(text[: match.start()])
            return text_before + _with_sorted_arguments(text[match.start() :])
        found.append(match)
    if not found:
        return text
    ordered = " ".join(sorted(_squeezed(match[0]) for match in found))
    return text[: found[0].start()] + ordered + text[found[-1].end() :]


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def are_equal_calls(answer: str, target: str) -> bool:
    """True if both texts call the same functions with the same arguments, in the same order."""
    return canonical_call(answer) == canonical_call(target)


def call_the_same(answer: str, target: str, names: Sequence[str] | set[str]) -> bool:
    """True if both texts name the same functions in the same order."""
    return called_names(answer, names) == called_names(target, names)
