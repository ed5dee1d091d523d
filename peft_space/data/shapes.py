"""Recognises what the columns of a Table mean, and turns every row into a Conversation or a Problem.

Knows the shapes people bring (Alpaca, prompt/completion, question/answer, messages, ShareGPT); knows no tokenizer.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from peft_space.data.read import Table
from peft_space.errors import UserError

Message = dict[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}: what chat templates take."""

Shape = Literal["alpaca", "prompt/completion", "question/answer", "messages", "sharegpt"]


@dataclass(frozen=True)
class Reading:
    """How a file was understood: its shape, and which column plays which role. Kept in the run, so it can be repeated."""

    shape: Shape
    columns: dict[str, str]

    def why(self) -> str:
        """One sentence for the user."""
        roles = ", ".join(f"{column!r} as {role}" for role, column in self.columns.items())
        return f"Recognised as {self.shape}: it reads the column{'s' if len(self.columns) > 1 else ''} {roles}."


@dataclass(frozen=True)
class Conversation:
    """One row in the one form that everything after this module takes: messages that end with the assistant's answer."""

    row: int
    messages: list[Message]


@dataclass(frozen=True)
class Problem:
    """What keeps a row from being trained on, with the row's number in the file."""

    row: int
    problem: str


_ANSWERS = ("output", "response", "answer", "completion")
_ROLES: dict[Shape, dict[str, tuple[str, ...]]] = {
    "alpaca": {"instruction": ("instruction",), "answer": _ANSWERS},
    "question/answer": {"question": ("question", "query"), "answer": ("answer", "response", "output", "completion")},
    "prompt/completion": {"prompt": ("prompt",), "answer": ("completion", "response", "output", "answer")},
}
_OPTIONAL: dict[str, tuple[str, ...]] = {"input": ("input", "context"), "system": ("system", "system_prompt")}
_CHATS = ("messages", "conversations", "conversation", "dialogue", "dialog")
_SPEAKERS = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
}  # fmt: skip


def recognise(table: Table) -> Reading:
    """What the columns of `table` mean, by their whole names. Raises UserError naming the columns found and the shapes known."""
    by_name = {column.strip().lower(): column for column in table.columns}
    for name in _CHATS:
        if name in by_name:
            return Reading(_chat_shape(table, by_name[name]), {"messages": by_name[name], **_found(by_name, ("system",))})
    for shape, roles in _ROLES.items():
        columns = {role: next((by_name[name] for name in names if name in by_name), None) for role, names in roles.items()}
        if all(columns.values()):
            return Reading(shape, {**columns, **_found(by_name, ("input", "system"))})  # type: ignore[dict-item]
    raise UserError(
        f"{table.source}: the columns {', '.join(map(repr, table.columns[:12]))} fit no known shape. "
        "Name them instruction and output, prompt and completion, question and answer, or bring a column messages."
    )


def conversations(table: Table, reading: Reading) -> tuple[list[Conversation], list[Problem]]:
    """Every row as a Conversation, or as a Problem where it cannot be trained on."""
    messages_of = _messages_from_chat if reading.shape in ("messages", "sharegpt") else _messages_from_columns
    good: list[Conversation] = []
    bad: list[Problem] = []
    for number, row in zip(table.numbers, table.rows, strict=True):
        try:
            good.append(Conversation(number, _checked(messages_of(row, reading))))
        except _BadRow as problem:
            bad.append(Problem(number, str(problem)))
    return good, bad


class _BadRow(Exception):
    """Why a row cannot be used; never leaves this module."""


def _found(by_name: dict[str, str], roles: Sequence[str]) -> dict[str, str]:
    return {role: by_name[name] for role in roles for name in _OPTIONAL[role] if name in by_name}


def _chat_shape(table: Table, column: str) -> Shape:
    for row in table.rows:
        turns = _listed(row.get(column))
        if turns and isinstance(turns[0], dict):
            return "sharegpt" if "from" in turns[0] else "messages"
    raise UserError(
        f'{table.source}: no row\'s {column!r} is a list of messages. Each must look like [{{"role": "user", "content": …}}, …].'
    )


def _listed(value: Any) -> list[Any] | None:
    """A list of turns; in a CSV it stands as JSON text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            return None
    return value if isinstance(value, list) else None


def _text(row: dict[str, Any], column: str | None) -> str:
    """The cell's text exactly as written; an absent cell is empty. Numbers are given as they were, other things are refused."""
    value = row.get(column) if column else None
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _BadRow(f"{column!r} is a {type(value).__name__}, not text")
    return _writable(str(value))


def _messages_from_columns(row: dict[str, Any], reading: Reading) -> list[Message]:
    columns = reading.columns
    asked = _text(row, columns.get("instruction") or columns.get("question") or columns.get("prompt"))
    more = _text(row, columns.get("input"))
    system = _text(row, columns.get("system"))
    turns = [{"role": "system", "content": system}] if system.strip() else []
    turns.append({"role": "user", "content": f"{asked}\n\n{more}" if more.strip() else asked})
    turns.append({"role": "assistant", "content": _text(row, columns["answer"])})
    return turns


def _messages_from_chat(row: dict[str, Any], reading: Reading) -> list[Message]:
    column = reading.columns["messages"]
    turns = _listed(row.get(column))
    if not turns:
        raise _BadRow(f"{column!r} is not a list of messages")
    system = _text(row, reading.columns.get("system"))
    messages = [{"role": "system", "content": system}] if system.strip() else []
    return messages + [_message(turn) for turn in turns]


def _message(turn: Any) -> Message:
    speaker = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
    if speaker is None:
        raise _BadRow("a message has no role")
    if str(speaker).lower() not in _SPEAKERS:
        raise _BadRow(f"the role {speaker!r} is not known (system, user, assistant)")
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):  # parts: [{"type": "text", "text": …}]
        texts = [part.get("text", part.get("value")) if isinstance(part, dict) else part for part in content]
        content = "".join(texts) if all(isinstance(text, str) for text in texts) else None
    if not isinstance(content, str):
        raise _BadRow("a message has no text")
    return {"role": _SPEAKERS[str(speaker).lower()], "content": _writable(content)}


def _writable(text: str) -> str:
    """The text, if it is one: JSON can escape half a character, which no file takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _BadRow("the text has half a character in it (a lone surrogate)") from None
    return text


def _checked(messages: list[Message]) -> list[Message]:
    """The messages, if a model can learn from them. What ends on a question loses that question only."""
    checks: list[tuple[Callable[[], bool], str]] = [
        (lambda: all(message["role"] != "system" for message in messages[1:]), "a system message is not the first"),
        (lambda: any(message["role"] == "assistant" for message in messages), "there is no answer"),
        (lambda: messages[-1]["role"] == "assistant", "the last message is not an answer"),
        (lambda: all(message["content"].strip() for message in messages if message["role"] == "assistant"), "the answer is empty"),
        (lambda: all(message["content"].strip() for message in messages if message["role"] == "user"), "the prompt is empty"),
        (lambda: _alternates(messages), "user and assistant do not take turns"),
    ]
    for holds, problem in checks:
        if not holds():
            raise _BadRow(problem)
    return messages


def _alternates(messages: list[Message]) -> bool:
    spoken = [message["role"] for message in messages if message["role"] != "system"]
    return spoken == ["user", "assistant"] * (len(spoken) // 2)
