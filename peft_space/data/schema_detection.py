"""Detects the schema of a dataset from the names of its columns and its first rows."""

import itertools
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from peft_space.data.cells import (
    as_rating,
    choices_of,
    conversation_in,
    listed,
    one_text,
    spans_of,
    turns_of,
)
from peft_space.data.column_mapping import (
    ANSWERS,
    LABELS,
    ROLES,
    TEXTS,
    ColumnMapping,
    Schema,
    lacks_answer,
    listed_names,
    normalized,
    roles,
)
from peft_space.errors import UserError


def detect_schema(
    source: str, columns: Sequence[str], rows: Sequence[dict[str, Any]]
) -> list[ColumnMapping]:
    """Return the plausible column mappings, the likeliest first.

    Args:
        source: the dataset, for messages.
        columns: its columns; known names are compared as whole names.
        rows: its first rows.

    Raises:
        UserError: the columns fit no schema.
    """
    by_name = {normalized(column): column for column in columns}
    mappings = [mapping for schema in ROLES for mapping in _match_names(schema, by_name, rows)]
    mappings = [
        mapping
        for mapping in mappings
        if not any(_is_more_specific(other, mapping) for other in mappings)
    ]
    _check_one_label(source, mappings, columns, rows)
    mappings = mappings or _match_languages(columns, rows) or _match_content(columns, rows)
    mappings = [*_match_templated(mappings, rows), *mappings]
    mappings = [*mappings, *_match_stars(mappings, by_name, rows)]
    if not mappings:
        raise UserError(
            "data.unknown_columns",
            f"{source}: the columns {listed_names(columns)} fit no known schema. Rename them to "
            "instruction and output, prompt and completion, question and answer, or messages.",
        )
    return _ask_about_unused(mappings, columns, rows)


_ONE_LABEL = (
    "Learning several labels of one text (multi-label classification) is not offered. Keep one "
    "label for each row"
)


def _check_one_label(
    source: str,
    mappings: Sequence[ColumnMapping],
    columns: Sequence[str],
    rows: Sequence[dict[str, Any]],
) -> None:
    """Raise UserError if rows have several labels, in a list or in a column of 0 and 1 for each.

    Such rows must not be trained as something else, such as plain text.
    """
    for mapping in mappings:
        column = mapping.columns.get("label", "")
        lists = [listed(row.get(column)) for row in rows if row.get(column) is not None]
        if mapping.schema == "text_classification" and any(len(one or []) > 1 for one in lists):
            message = f"{source}: the column {column!r} has several labels in a row. {_ONE_LABEL}."
            raise UserError("data.multi_label", message)
    if any(mapping.schema != "text" for mapping in mappings):
        return
    binary = [
        column
        for column in columns
        if not _FLAG.fullmatch(normalized(column)) and _is_binary(row.get(column) for row in rows)
    ]
    texts = [column for column in columns if _is_prose(row.get(column) for row in rows)]
    if len(binary) > (1 if mappings else 2) and len(texts) == 1:
        as_text = json.dumps(ColumnMapping("text", {"text": texts[0]}).as_choice())
        raise UserError(
            "data.multi_label",
            f"{source}: the columns {listed_names(binary)} look like several labels of a text. "
            f"{_ONE_LABEL} in a column 'label'. To learn to continue the texts, use the column "
            f"mapping {as_text}.",
        )


_FLAG = re.compile(r"(is|has|was)_.*|deleted|synthetic|verified|review_result|valid.*")


def _is_binary(cells: Iterable[Any]) -> bool:
    values = {str(cell).lower() for cell in cells if cell is not None}
    return values <= {"0", "1", "0.0", "1.0", "true", "false"} and len(values) > 0


def _match_templated(
    mappings: Sequence[ColumnMapping], rows: Sequence[dict[str, Any]]
) -> list[ColumnMapping]:
    """Offer texts that a chat template has written as the conversations that they are."""
    if len(mappings) != 1 or mappings[0].schema != "text":
        return []
    column = mappings[0].columns["text"]
    texts = [row[column] for row in rows if row.get(column)]
    if not texts or not all(map(conversation_in, texts)):
        return []
    return [ColumnMapping("messages", {"messages": column})]


_LANGUAGES = frozenset(
    "en de fr es it pt nl sv da no nb nn fi is pl cs sk hu ro bg ru uk tr el ar he fa hi bn ur ta "
    "te mr gu pa zh ja ko vi th id ms tl sw et lv lt sl hr sr mk sq ca eu gl cy ga mt ka hy az kk "
    "uz af am so yo ig ha zu xh english german french spanish italian portuguese dutch russian "
    "chinese japanese korean arabic hindi turkish polish ukrainian swedish".split()
)
_LANGUAGE = re.compile(r"([a-z]{2})(?:_[a-z]{2,4})?|[a-z]{5,}")
_MAX_LANGUAGES = 3


def _match_languages(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[ColumnMapping]:
    """Return each direction of a translation if columns are named after languages."""
    found = []
    for column in columns:
        match = _LANGUAGE.fullmatch(normalized(column))
        is_language = match is not None and (match[1] or match[0]) in _LANGUAGES
        cells = [row.get(column) for row in rows]
        if is_language and (_is_prose if normalized(column) == "id" else _is_text)(cells):
            found.append(column)
    pairs = itertools.permutations(found[:_MAX_LANGUAGES], 2)
    return [ColumnMapping("source_target", {"source": one, "target": two}) for one, two in pairs]


def _match_stars(
    mappings: Sequence[ColumnMapping], by_name: Mapping[str, str], rows: Sequence[dict[str, Any]]
) -> list[ColumnMapping]:
    """Offer answers with ratings such as 1 to 5 as good and bad answers too, so the user is asked.

    Otherwise the model would learn the badly rated answers as well.
    """
    if len(mappings) != 1 or not {"answer", "messages"} & set(mappings[0].columns):
        return []
    chosen = mappings[0].columns
    for name in (*ROLES["unpaired_preference"].required["label"], *_RATINGS):
        column = by_name.get(name)
        if column is None or column in chosen.values():
            continue
        ratings = [_number(row[column]) for row in rows if row.get(column) is not None]
        numbers = sorted({number for number in ratings if number is not None})
        if None in ratings or not 2 <= len(numbers) <= _MAX_RATINGS:
            continue
        good_from = next(n for n in numbers if n > (numbers[0] + numbers[-1]) / 2)
        rated = {"label": column}
        if "messages" in chosen:
            rated["messages"] = chosen["messages"]
        else:
            prompts = (chosen[role] for role in _PROMPTS if role in chosen)
            rated |= {"prompt": next(prompts), "answer": chosen["answer"]}
        return [ColumnMapping("unpaired_preference", rated, (), good_from)]
    return []


_PROMPTS = ("prompt", "question", "instruction")
_RATINGS = ("helpfulness", "overall_score", "score", "quality", "reward")
_MAX_RATINGS = 11


def _number(cell: Any) -> float | None:
    if isinstance(cell, bool):
        return None
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def _match_names(
    schema: Schema, by_name: Mapping[str, str], rows: Sequence[dict[str, Any]]
) -> list[ColumnMapping]:
    """Return a mapping for each column with a known name of the role `answer`."""
    chosen: dict[str, str] = {}
    answers: list[str] = []
    for role, names in {**ROLES[schema].required, **ROLES[schema].optional}.items():
        known = [by_name[name] for name in names if name in by_name]
        free = [column for column in known if column not in chosen.values()]
        columns = [column for column in free if _matches_role(schema, role, column, rows)]
        if columns:
            chosen[role] = columns[0]
        elif role in ROLES[schema].required:
            return []
        if role == "answer":
            answers = columns
    if lacks_answer(schema, chosen):
        return []
    others = [ColumnMapping(schema, {**chosen, "answer": column}) for column in answers[1:]]
    return [ColumnMapping(schema, chosen), *others]


def _matches_role(schema: Schema, role: str, column: str, rows: Sequence[dict[str, Any]]) -> bool:
    """Return True if the cells of the first rows have the form of the role."""
    cells = [row[column] for row in rows if row.get(column) is not None]
    if role == "messages":
        turns = [turn for cell in cells for turn in turns_of(cell) or conversation_in(cell) or []]
        if schema == "unpaired_preference":
            return bool(turns)
        return bool(turns) and any("from" in turn for turn in turns) == (schema == "sharegpt")
    if schema == "unpaired_preference" and role == "label":
        return bool(cells) and all(as_rating(cell) is not None for cell in cells)
    if schema == "token_classification":
        is_list = bool(cells) and all(listed(cell) is not None for cell in cells)
        if role == "tokens" and not is_list:  # a text, with spans in another column
            return any(
                _has_spans([row.get(name) for row in rows])
                for name in {name for row in rows for name in row}
            )
        texts = [name for name in TEXTS if name in (rows[0] if rows else {})]
        lists = {name for name in ("tokens", "words") if name in (rows[0] if rows else {})}
        return is_list and (bool(lists) or (bool(texts) and _has_spans(cells)))
    if schema == "text_classification" and role == "label":
        return not _has_spans(cells)
    if role == "reasoning":
        return all(one_text(cell) is not None for cell in cells) and _is_prose(map(one_text, cells))
    if role == "choices":
        return bool(cells) and all(choices_of(cell) is not None for cell in cells)
    return True


def _has_spans(cells: Sequence[Any]) -> bool:
    spans = [spans_of(cell) for cell in cells if cell is not None]
    return bool(spans) and None not in spans and any(spans)


def _is_more_specific(mapping: ColumnMapping, other: ColumnMapping) -> bool:
    """Return True if `mapping` uses all columns of `other` and more, or `other` is plain text."""
    if other.schema == "text" and mapping.schema != "text":
        return True
    return set(other.columns.values()) < set(mapping.columns.values())


_NAMES_IN_PAIRS = {
    name
    for roles_of_schema in ROLES.values()
    if len(roles_of_schema.required) > 1
    for names in roles_of_schema.required.values()
    for name in names
}
"""Names of columns that need a second column: alone, such a column is not a text to continue."""
_MAX_LABEL_SHARE = 0.2
"""A column with fewer distinct values than this share of the rows looks like a label."""


def _match_content(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[ColumnMapping]:
    """Return several mappings of columns with unknown names, or one if there is one column."""
    texts = [column for column in columns if _is_text(row.get(column) for row in rows)]
    if len(texts) == 1 and len(columns) == 1 and normalized(texts[0]) not in _NAMES_IN_PAIRS:
        return [ColumnMapping("text", {"text": texts[0]})]
    if len(texts) < 2:
        return []
    by_length = sorted(texts, key=lambda column: _mean_length(rows, column), reverse=True)[:2]
    first, second = sorted(by_length, key=texts.index)
    pairs = [
        ColumnMapping("question_answer", {"question": first, "answer": second}),
        ColumnMapping("question_answer", {"question": second, "answer": first}),
    ]
    labelled = []
    for label in texts:
        values = {str(row.get(label)) for row in rows}
        if len(rows) >= 10 and len(values) <= max(2, _MAX_LABEL_SHARE * len(rows)):
            text = next(column for column in by_length if column != label)
            labelled.append(ColumnMapping("text_classification", {"text": text, "label": label}))
    # with two longer texts, a label is more likely metadata
    mappings = [*labelled, *pairs] if len(texts) == 2 else [*pairs, *labelled]
    return [*mappings, ColumnMapping("text", {"text": by_length[0]})]


def _is_text(cells: Iterable[Any]) -> bool:
    filled = [cell for cell in cells if cell not in (None, "")]
    is_string = bool(filled) and all(isinstance(cell, str) for cell in filled)
    return is_string and any(re.search(r"[^\W\d_]", cell) for cell in filled)


def _is_prose(cells: Iterable[Any]) -> bool:
    """Return True if most cells are texts of several words."""
    filled = [cell for cell in cells if cell not in (None, "")]
    longer = sum(" " in str(cell) or len(str(cell)) > 20 for cell in filled)
    return _is_text(filled) and longer > len(filled) / 2


def _mean_length(rows: Sequence[dict[str, Any]], column: str) -> float:
    return sum(len(str(row.get(column) or "")) for row in rows) / len(rows)


# Columns that look like a part of the task and are not used

_MAX_ALTERNATIVES = 4
_ROWS_COMPARED = 50
_ANSWERING: tuple[Schema, ...] = (
    "alpaca", "question_answer", "prompt_completion", "source_target",
)  # fmt: skip
_CHATTING: tuple[Schema, ...] = ("messages", "sharegpt")
_LABELLED: tuple[Schema, ...] = ("text_classification", "text_pair_classification")
_NEVER = re.compile(
    r"id|idx|index|uuid|key|source|url|link|timestamp|date|time|metadata|meta|split|lang|language"
    r"|license|licence|author|model|version|tokens|(num|n|count|len)_.*|.*_(id|ids|url|count|len"
    r"|length|tokens|model|date|time|type|source|version|rating|score)|(is|has|score|rating)_.*"
    r"|created.*|updated.*|__index_level_0__"
)
_CONTEXT_NAMES = (
    "context", "passage", "document", "article", "background", "evidence", "support", "knowledge",
    "input", "inputs", "reference_text", "sentence", "text",
)  # fmt: skip
_QUESTION_NAMES = ("question", "instruction", "prompt", "query")
_MORE_ANSWERS = (
    *ANSWERS, "solution", "best_answer", "correct_answer", "correct_answers", "expected_output",
    "reference_answer", "gold_answer", "ideal", "summary", "translation", "target",
)  # fmt: skip
_MORE_TEXTS = (
    *TEXTS, "title", "headline", "subject", *_QUESTION_NAMES, *ANSWERS, "sentence2", "hypothesis",
    "premise", "passage", "description", "context", "text2", "abstract", "selftext",
)  # fmt: skip


@dataclass(frozen=True)
class _Sign:
    """What a column looks like, by its name and its cells, next to some schemas."""

    schemas: tuple[Schema, ...]
    name: re.Pattern[str]
    fits: Callable[[list[Any]], bool]


def _names(*names: str) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, names)))


def _is_varied_prose(cells: list[Any]) -> bool:
    """Return True if cells are texts of more than a word, and mostly different."""
    texts = [one_text(cell) for cell in cells]
    longer = sum(" " in str(text).strip() or len(str(text)) > 20 for text in texts)
    if not all(texts) or longer < len(texts) / 2:
        return False
    return len(set(texts)) > len(texts) / 2 or len(texts) < 3


def _is_answer(cells: list[Any]) -> bool:
    return all(isinstance(cell, str | list | dict) for cell in cells)


def _is_label(cells: list[Any]) -> bool:
    values = {str(cell) for cell in cells}
    is_short = all(len(value) < 60 and "{" not in value for value in values)
    return is_short and 2 <= len(values) <= max(2, len(cells) / 2)


def _is_list(cells: list[Any]) -> bool:
    return all(listed(cell) is not None for cell in cells)


_REASONING = (
    r"(explanation|explanations|rationale|rationales|thoughts?|thinking|(complex_)?cot|scratchpad"
    r"|chain_of_thought|reasoning(_\w+)?|analysis|thinking_\w+|reason)(_?\d)?"
)
_LABEL = re.compile("(?:" + "|".join(LABELS) + r")|(?:.*_)?(?:label|class)(?:_.*)?")
_SIGNS = (
    _Sign(
        (*_ANSWERING, *_CHATTING, "text"),
        re.compile(
            r"(.*_)?(rejected|reject|dispreferred|non_?preferred|worse|losing|incorrect|wrong)(_.*)?"
        ),
        _is_answer,
    ),
    _Sign(
        (*_ANSWERING, "text", *_LABELLED),
        re.compile(r"choices|options|endings|candidates|(choice|option|opt|distractor|ending)_?\w"
                   r"|op[a-e]"),
        lambda cells: all(isinstance(cell, str | list | dict) for cell in cells),
    ),
    _Sign(
        (*_ANSWERING, "preference"),
        re.compile(r"history|(chat|dialog|dialogue|conversation)_history|(previous|prior)_turns"),
        _is_answer,
    ),
    _Sign(
        (*_ANSWERING, *_CHATTING, *_LABELLED), re.compile(_REASONING), _is_varied_prose,
    ),
    _Sign(
        (*_ANSWERING, *_CHATTING, "text"),
        re.compile(r"tools|functions|(tool|function)_(definitions|descriptions?|list)"
                   r"|available_(tools|functions)|apis"),
        lambda cells: all(isinstance(cell, str | list | dict) for cell in cells),
    ),
    _Sign(("text", *_LABELLED), _names("entities", "spans", "annotations", "ner"), _is_list),
    _Sign(("text", *_LABELLED), _LABEL, _is_label),
    _Sign((*_ANSWERING, *_CHATTING), _names("label", "labels"), _is_label),
    _Sign(_ANSWERING, _names(*_MORE_ANSWERS, *_CONTEXT_NAMES), _is_varied_prose),
    _Sign(("text",), _names(*_MORE_ANSWERS, *_QUESTION_NAMES, "input", "inputs"), _is_varied_prose),
    _Sign(_LABELLED, _names(*_MORE_TEXTS), _is_varied_prose),
    _Sign(("preference",), _names(*_CONTEXT_NAMES), _is_varied_prose),
)  # fmt: skip


def _ask_about_unused(
    mappings: Sequence[ColumnMapping], columns: Sequence[str], rows: Sequence[dict[str, Any]]
) -> list[ColumnMapping]:
    """Return the mappings with what they leave out. One mapping gets alternatives that use it.

    Args:
        mappings: plausible mappings, the likeliest first.
        columns: the columns of the dataset.
        rows: its first rows.
    """
    rated = {mapping.columns["label"] for mapping in mappings if mapping.good_from is not None}
    asked = []
    for mapping in mappings:
        unrated = rated - set(mapping.columns.values())
        asked.append(replace(mapping, left_out=_left_out(mapping, columns, rows, unrated)))
    if len(asked) == 1 and (unused := list(asked[0].left_out)):
        for column in unused:
            for other in _alternatives(asked[0], column, columns, rows):
                asked.append(replace(other, left_out=_left_out(other, columns, rows)))
    return asked[: 1 + _MAX_ALTERNATIVES] if len(mappings) == 1 else asked


def _left_out(
    mapping: ColumnMapping,
    columns: Sequence[str],
    rows: Sequence[dict[str, Any]],
    rated: Collection[str] = (),
) -> tuple[str, ...]:
    used = mapping.columns.values()
    return tuple(
        column
        for column in columns
        if column in rated or (column not in used and _is_part_of_task(mapping, column, rows))
    )


def _is_part_of_task(mapping: ColumnMapping, column: str, rows: Sequence[dict[str, Any]]) -> bool:
    name = normalized(column)
    if _NEVER.fullmatch(name):
        return False
    filled = [row for row in rows if row.get(column) not in (None, "", [], {})]
    cells = [row[column] for row in filled]
    looks = any(
        mapping.schema in sign.schemas and sign.name.fullmatch(name) and sign.fits(cells)
        for sign in _SIGNS
        if cells
    )
    return looks and not _is_copy(mapping, column, filled)


def _is_copy(mapping: ColumnMapping, column: str, rows: list[dict[str, Any]]) -> bool:
    """Return True if a column repeats what is used: its texts, or the label in other words."""
    label = mapping.columns.get("label") if mapping.schema in _LABELLED else None
    if label:
        pairs = {(str(row.get(label)), str(row[column])) for row in rows}
        if len(pairs) == len({one for one, _ in pairs}) == len({other for _, other in pairs}):
            return True
    first = rows[:_ROWS_COMPARED]
    copies = 0
    for row in first:
        used = [text for name in mapping.columns.values() for text in _texts_in(row.get(name))]
        text = " ".join(_texts_in(row[column]))
        is_within = len(text) > 3 and any(text in one for one in used)
        copies += is_within or all(one in text for one in used if one)
    return copies >= 0.9 * len(first)


def _texts_in(cell: Any) -> Iterator[str]:
    """Yield the texts in a cell, with single spaces."""
    if isinstance(cell, str):
        yield " ".join(cell.split())
    elif isinstance(cell, list | dict):
        for inner in cell.values() if isinstance(cell, dict) else cell:
            yield from _texts_in(inner)


def _alternatives(
    mapping: ColumnMapping, column: str, columns: Sequence[str], rows: Sequence[dict[str, Any]]
) -> Iterator[ColumnMapping]:
    """Yield mappings that use a column which `mapping` does not use."""
    name, schema, used = normalized(column), mapping.schema, mapping.columns
    cells = [row[column] for row in rows if row.get(column) not in (None, "", [], {})]
    question = next((used[role] for role in roles(schema)[0] if role in used), "")
    optional = [role for role in roles(schema)[1] if role not in used]

    def with_role(role: str) -> ColumnMapping:
        ordered = {**used, role: column}
        names = [*roles(schema)[0], *roles(schema)[1]]
        return replace(mapping, columns={key: ordered[key] for key in names if key in ordered})

    def other(schema: Schema, **columns: str) -> ColumnMapping:
        return ColumnMapping(schema, columns)

    if schema in _ANSWERING and "answer" in used and _SIGNS[0].name.fullmatch(name):
        yield other("preference", rejected=column, chosen=used["answer"], prompt=question)
    elif schema in _CHATTING and _SIGNS[0].name.fullmatch(name):
        yield other("preference", rejected=column, prompt=question)
    elif "choices" in optional and all(choices_of(cell) for cell in cells):
        yield with_role("choices")
    elif "history" in optional and _SIGNS[2].name.fullmatch(name):
        yield with_role("history")
    elif "reasoning" in optional and re.fullmatch(_REASONING, name):
        yield with_role("reasoning")
    elif "tools" in optional and _SIGNS[4].name.fullmatch(name):
        yield with_role("tools")
    elif "input" in optional and name in _CONTEXT_NAMES:
        yield with_role("input")
    elif "answer" in used and name in _MORE_ANSWERS:
        yield with_role("answer")
    elif schema == "text" and name in (*_QUESTION_NAMES, "input", "inputs"):
        yield other("prompt_completion", prompt=column, answer=used["text"])
    elif schema == "text" and _is_varied_prose(cells):
        yield other("prompt_completion", prompt=used["text"], answer=column)
    elif schema == "text" and _is_label(cells):
        yield other("text_classification", text=used["text"], label=column)
    elif schema in _LABELLED and _LABEL.fullmatch(name):
        yield with_role("label")
    elif schema == "text_classification" and name in _MORE_TEXTS:
        first, second = sorted((used["text"], column), key=list(columns).index)
        label = used["label"]
        yield other("text_pair_classification", first=first, second=second, label=label)
