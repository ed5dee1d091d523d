"""Exports of annotation tools and of services, as rows with ordinary columns."""

import json
import re
from collections.abc import Iterator
from typing import Any

from peft_space.data.cells import as_bool, listed

Row = dict[str, Any]
Numbered = tuple[int, Row]


def objects_in(value: Any) -> list[Row]:
    """Return the objects in a list, or nothing."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


# Label Studio


def is_of_label_studio(row: Row) -> bool:
    """Return True for a task of Label Studio."""
    tasks = row.get("annotations", row.get("completions"))
    return isinstance(row.get("data"), dict) and isinstance(tasks, list)


_SPANS = ("labels", "hypertextlabels")
_NUMBERS = ("rating", "number")


def read_label_studio(row: Row) -> Row:
    """Return the row of a task, with the annotation that is the ground truth, or the first."""
    annotations = objects_in(row.get("annotations", row.get("completions")))
    done = [one for one in annotations if not as_bool(one.get("was_cancelled"))]
    done.sort(key=lambda one: not as_bool(one.get("ground_truth")))
    cells: dict[str, dict[str, list[Any]]] = {"choices": {}, "text": {}, "spans": {}}
    unknown = []
    for result in objects_in(done[0].get("result")) if done else []:
        name, value = str(result.get("from_name")), result.get("value")
        value = value if isinstance(value, dict) else {}
        if spans := next((listed(value[key]) for key in _SPANS if key in value), None):
            span = {key: value.get(key) for key in ("start", "end")}
            found = [span | {"label": label} for label in spans]
            cells["spans"].setdefault("entities", []).extend(found)
        elif (chosen := _chosen(value)) is not None:
            cells["choices"].setdefault(name, []).extend(chosen)
        elif isinstance(value.get("text"), list):
            cells["text"].setdefault(name, []).extend(value["text"])
        else:
            unknown.append(value)
    found_row = _row_of_task(row, cells, bool(done) and not unknown)
    return found_row | ({"annotations": unknown} if unknown else {})


def _chosen(value: Row) -> list[Any] | None:
    """Return what was chosen: of a list, on a scale, or at the end of a path of a taxonomy."""
    if isinstance(value.get("choices"), list):
        return list(value["choices"])
    if isinstance(paths := value.get("taxonomy"), list):
        return [" / ".join(map(str, path)) for path in paths if isinstance(path, list)]
    return [str(value[key]) for key in _NUMBERS if value.get(key) is not None] or None


def _row_of_task(row: Row, cells: dict[str, dict[str, list[Any]]], is_done: bool) -> Row:
    """Return the texts of a task, and what was annotated under names that the app recognizes."""
    texts = {key: value for key, value in row["data"].items() if value is not None}
    choices, written = cells["choices"], cells["text"]
    if len(choices) == 1:
        choices = {"label": next(iter(choices.values()))}
    if len(texts) == 1:
        texts = {"prompt" if written else "text": next(iter(texts.values()))}
    if len(written) == 1:
        written = {"completion": ["\n".join(map(str, next(iter(written.values()))))]}
    spans = cells["spans"]
    if is_done and not (choices or written or spans):
        spans = {"entities": []}  # a text without entities is an example too
    single = {
        name: values[0] if len(values) == 1 else values
        for name, values in {**choices, **written}.items()
    }
    more = {"predictions": row["predictions"]} if row.get("predictions") else {}
    return {**texts, **single, **spans, "id": row.get("id"), **more}


# Prodigy

_DECISIONS = ("accept", "reject", "ignore")


def is_of_prodigy(row: Row) -> bool:
    """Return True for a row that an annotator accepted or rejected in Prodigy."""
    return row.get("answer") in _DECISIONS and {"text", "label", "spans"} & row.keys() > {"text"}


def accepted_by_prodigy(rows: Iterator[Numbered]) -> Iterator[Numbered]:
    """Yield the rows that were accepted."""
    for number, row in rows:
        if row.get("answer") == "accept":
            yield number, {name: cell for name, cell in row.items() if name != "answer"}


# Dataturks


def is_of_dataturks(row: Row) -> bool:
    """Return True for a row of Dataturks, with labels or with labelled spans."""
    annotation = row.get("annotation")
    is_labelled = isinstance(annotation, dict) and isinstance(annotation.get("labels"), list)
    is_tagged = isinstance(annotation, list) and all(
        isinstance(one, dict) and isinstance(one.get("points"), list) for one in annotation
    )
    return isinstance(row.get("content"), str) and (is_labelled or is_tagged)


def read_dataturks(row: Row) -> Row:
    """Return a text with its label, or with labelled spans.

    Dataturks counts the last letter of a span as a part of it.
    """
    annotation = row["annotation"]
    rest = {key: row[key] for key in row if key not in ("content", "annotation")}
    if isinstance(annotation, dict):
        return {"text": row["content"], "label": annotation["labels"], **rest}
    spans = [
        {"start": point.get("start"), "end": int(point.get("end", -1)) + 1, "label": label}
        for one in annotation
        for point in objects_in(one["points"])
        for label in listed(one.get("label")) or [one.get("label")]
    ]
    return {"text": row["content"], "entities": spans, **rest}


# Argilla

_RESPONSES = ".responses"


def _response_columns(row: Row) -> list[str]:
    return [name for name in row if name.endswith(_RESPONSES) and f"{name}.status" in row]


def is_of_argilla(row: Row) -> bool:
    """Return True for a record of Argilla, with a list of responses to each question."""
    return bool(_response_columns(row))


def read_argilla(row: Row) -> Row:
    """Return a record with the first submitted response to each question as its column."""
    columns = _response_columns(row)
    of_responses = re.compile("|".join(f"{re.escape(name)}(\\..*)?" for name in columns) or "$^")
    kept = {name: cell for name, cell in row.items() if not of_responses.fullmatch(name)}
    for name in columns:
        responses, status = listed(row[name]) or [], listed(row[f"{name}.status"]) or []
        submitted = [
            response for response, one in zip(responses, status, strict=False) if one == "submitted"
        ]
        kept[name.removesuffix(_RESPONSES)] = submitted[0] if submitted else None
    return kept


# ChatGPT's export


def is_of_chatgpt(row: Row) -> bool:
    """Return True for a conversation of ChatGPT."""
    nodes = row.get("mapping")
    return (
        isinstance(nodes, dict)
        and bool(nodes)
        and all(isinstance(node, dict) and "parent" in node for node in nodes.values())
    )


def read_chatgpt(row: Row) -> Row:
    """Return the branch of a conversation that was open last."""
    nodes = row["mapping"]
    at = str(row.get("current_node"))
    if at not in nodes:
        at = next((name for name in reversed(nodes) if not nodes[name].get("children")), "")
    branch: list[Row] = []
    while at in nodes and len(branch) <= len(nodes):
        message = nodes[at].get("message")
        branch.append(message if isinstance(message, dict) else {})
        at = str(nodes[at].get("parent"))
    rest = {key: value for key, value in row.items() if key not in ("mapping", "current_node")}
    return {"messages": _chatgpt_messages(branch[::-1]), **rest}


def _call(name: str, written: Any) -> Row:
    """Return a call of a tool with what ChatGPT wrote for it: arguments, or a text such as code."""
    try:
        arguments = json.loads(written)
    except (TypeError, ValueError):
        arguments = None
    if not isinstance(arguments, dict):
        arguments = {"input": written}
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


_HIDDEN = ("user_editable_context", "model_editable_context", "reasoning_recap")


def _chatgpt_messages(branch: list[Row]) -> list[Row]:
    messages: list[Row] = []
    thoughts: list[str] = []
    for message in branch:
        author, content = message.get("author"), message.get("content")
        role = author.get("role") if isinstance(author, dict) else author
        content = content if isinstance(content, dict) else {"text": content}
        kind = content.get("content_type")
        if kind == "thoughts":
            thoughts += [str(one.get("content", "")) for one in objects_in(content.get("thoughts"))]
        if kind in (*_HIDDEN, "thoughts") or role is None:
            continue
        parts = [part for part in listed(content.get("parts")) or [] if part != ""]
        text = content.get("text") if "parts" not in content else None
        if not parts and not text:
            continue
        turn: Row = {"role": role, "content": text or (parts[0] if len(parts) == 1 else parts)}
        recipient = message.get("recipient")
        if role == "assistant" and recipient not in (None, "all"):  # a call, such as of python
            turn = {"role": role, "tool_calls": [_call(str(recipient), text or parts[0])]}
        if role == "assistant" and thoughts:
            turn["reasoning_content"], thoughts = "\n\n".join(thoughts), []
        messages.append(turn)
    return messages


# Google AI Studio's export


def is_of_ai_studio(row: Row) -> bool:
    """Return True for a chat of Google AI Studio."""
    prompt = row.get("chunkedPrompt")
    return isinstance(prompt, dict) and isinstance(prompt.get("chunks"), list)


def read_ai_studio(row: Row) -> Row:
    """Return the messages of a chat, with its system message."""
    system = row.get("systemInstruction")
    turns: list[Row] = []
    for chunk in objects_in(row["chunkedPrompt"]["chunks"]):
        part = {"text": chunk.get("text"), "thought": as_bool(chunk.get("isThought")) is True}
        if turns and turns[-1]["role"] == chunk.get("role"):
            turns[-1]["parts"].append(part)
        else:
            turns.append({"role": chunk.get("role"), "parts": [part]})
    rest = {key: row[key] for key in row.keys() - {"chunkedPrompt", "systemInstruction"}}
    return ({"system": system} if system else {}) | {"messages": turns} | rest


# Rows of the Hub's dataset viewer


def is_of_viewer(row: Row) -> bool:
    """Return True for a row of the Hub's dataset viewer."""
    return isinstance(row.get("row"), dict) and "row_idx" in row


def read_viewer(row: Row) -> Row:
    """Return the row, and the names of its shortened cells."""
    cut = row.get("truncated_cells")  # the viewer shortens long cells
    return row["row"] | ({"truncated_cells": cut} if cut else {})


# Objects around a row, or a conversation


def is_wrapped(row: Row) -> bool:
    """Return True for a record of Airtable, or a hit of Elasticsearch: the row is one object."""
    return any(
        isinstance(row.get(key), dict) and row.keys() - {key} <= _RECORD_KEYS for key in _RECORDS
    )


_RECORDS = ("fields", "_source", "node")
_RECORD_KEYS = frozenset(
    ("id", "createdTime", "_index", "_id", "_score", "_type", "_ignored", "sort", "cursor")
)


def read_wrapped(row: Row) -> Row:
    """Return the row inside of a record, with the record's own keys."""
    key = next(key for key in _RECORDS if isinstance(row.get(key), dict))
    return row[key] | {name: row[name] for name in row if name != key and name not in row[key]}


def is_stored_completion(row: Row) -> bool:
    """Return True for a completion that OpenAI has stored, or a log of request and response."""
    return _asked(row) is not None and _answered(row) is not None


def _asked(row: Row) -> list[Any] | None:
    asked: Any = next(
        (row[key] for key in ("input", "request") if isinstance(row.get(key), dict)), {}
    )
    asked = asked.get("body", asked)
    messages = asked.get("messages") if isinstance(asked, dict) else None
    return messages if isinstance(messages, list) and messages else None


def _answered(row: Row) -> Row | None:
    response = row.get("response", row.get("output", row))
    response = response.get("body", response) if isinstance(response, dict) else {}
    choices = objects_in(response.get("choices")) if isinstance(response, dict) else []
    message = choices[0].get("message") if choices else None
    return message if isinstance(message, dict) else None


def read_stored_completion(row: Row) -> Row:
    """Return the messages of the request with the answer."""
    used = ("input", "request", "response", "output", "choices", "messages")
    rest = {key: value for key, value in row.items() if key not in used}
    return {"messages": [*(_asked(row) or []), _answered(row)], **rest}


def is_of_faq_page(row: Row) -> bool:
    """Return True for a question of schema.org's FAQPage."""
    answer = row.get("acceptedAnswer")
    return isinstance(answer, dict) and "text" in answer and isinstance(row.get("name"), str)


def read_faq_page(row: Row) -> Row:
    """Return the question with its accepted answer."""
    rest = {key: row[key] for key in row if key not in ("name", "acceptedAnswer", "@type")}
    return {"question": row["name"], "answer": row["acceptedAnswer"]["text"], **rest}
