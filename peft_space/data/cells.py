"""Values of cells: lists, messages, spans, choices and ratings, as files of any kind hold them."""

import ast
import json
import re
from typing import Any


def listed(cell: Any) -> list[Any] | None:
    """Return the list in a cell, or None. A text is read as JSON, or as Python writes a list."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        cell = parse_literal(cell)
    return cell if isinstance(cell, list) else None


def parse_literal(value: Any) -> Any:
    """Return the value of a JSON or Python text, and anything else unchanged. Runs no code."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    if not value.lstrip().startswith(("{", "[")):
        return value
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return value


def message_turns(cell: Any) -> list[dict[str, Any]] | None:
    """Return the list of messages in a cell, or None."""
    turns = listed(cell)
    return turns if turns is not None and all(isinstance(turn, dict) for turn in turns) else None


def turns_of(cell: Any) -> list[dict[str, Any]] | None:
    """Return the messages of a cell as they are written there, or None.

    Args:
        cell: a list of messages, an object of lists, or a list of texts that take turns.
    """
    if isinstance(cell, dict) and cell and all(isinstance(part, list) for part in cell.values()):
        keys = list(cell)  # one list of roles, one of contents
        return [dict(zip(keys, turn, strict=False)) for turn in zip(*cell.values(), strict=False)]
    if (turns := message_turns(cell)) is not None:
        return _turns_of_pairs(turns) or turns
    texts = listed(cell)
    if texts and len(texts) > 1 and all(isinstance(text, str) for text in texts):
        roles = ("user", "assistant")
        return [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    return None


_PAIRS = (("input", "output"), ("human", "assistant"), ("user", "assistant"))


def _turns_of_pairs(items: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """Return the messages of pairs of a question and an answer, or None."""
    for pair in _PAIRS:
        if items and all(set(pair) <= set(item) for item in items):
            roles = ("user", "assistant")
            return [
                {"role": role, "content": item[key]}
                for item in items
                for role, key in zip(roles, pair, strict=True)
            ]
    return None


def spans_of(cell: Any) -> list[tuple[int, int, str]] | None:
    """Return the labelled spans (start, end, label) of a text that are in a cell, or None.

    Prodigy and spaCy write objects, doccano lists of three.
    """
    items = listed(cell)
    if items is None:
        return None
    spans = []
    for item in items:
        if isinstance(item, dict):
            values = [
                next((item[name] for name in names if name in item), None)
                for names in (
                    ("start", "start_offset", "begin"), ("end", "end_offset"),
                    ("label", "entity", "type", "tag", "entity_group", "labels"),
                )
            ]  # fmt: skip
            if isinstance(values[2], list) and len(values[2]) == 1:  # as Label Studio writes it
                values[2] = values[2][0]
        else:
            values = list(item) if isinstance(item, list) else []
        if len(values) != 3 or not all(str(number).isdigit() for number in values[:2]):
            return None
        if not isinstance(values[2], str):
            return None
        spans.append((int(str(values[0])), int(str(values[1])), values[2]))
    return spans


def as_bool(cell: Any) -> bool | None:
    """Return the boolean in a cell (true, 1, yes, false, 0, no), or None."""
    values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    return cell if isinstance(cell, bool) else values.get(str(cell).strip().lower())


_RATINGS = {
    **dict.fromkeys(("desirable", "good", "chosen", "accepted", "thumbs_up", "up", "+1"), True),
    **dict.fromkeys(("undesirable", "bad", "rejected", "thumbs_down", "down", "-1"), False),
}


def as_rating(cell: Any, good_from: float | None = None) -> bool | None:
    """Return whether a rating is good: a boolean, a word such as desirable, 1 or -1, or None.

    Args:
        cell: the rating.
        good_from: if given, ratings are numbers, and those from here on are good.
    """
    if good_from is not None:
        try:
            return float(cell) >= good_from
        except (TypeError, ValueError):
            return None
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    word = re.sub(r"[\s-]+", "_", str(cell).strip().lower()) if isinstance(cell, str) else cell
    known = _RATINGS.get(str(cell).strip().lower(), _RATINGS.get(str(word)))
    return as_bool(cell) if known is None else known


def choices_of(cell: Any) -> list[tuple[str, str]] | None:
    """Return the (letter, text) of each choice of a multiple-choice question, or None."""
    cell = parse_literal(cell)
    if isinstance(cell, dict) and isinstance(cell.get("text"), list):
        texts, letters = cell["text"], cell.get("label")
    else:
        texts, letters = listed(cell), None
    if not texts or not all(isinstance(text, str) for text in texts):
        return None
    letters = letters or [chr(ord("A") + number) for number in range(len(texts))]
    return list(zip(map(str, letters), texts, strict=False))


def one_text(cell: Any) -> str | None:
    """The text of a cell, or of a list of one."""
    values = listed(cell)
    cell = values[0] if values and len(values) == 1 else cell
    return cell if isinstance(cell, str) else None
