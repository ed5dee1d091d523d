"""Exports of annotation tools, as rows with ordinary columns."""

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
