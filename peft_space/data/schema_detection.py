"""Detects the schema of a dataset from the names of its columns and its first rows."""

import functools
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from peft_space.data.cells import (
    as_rating,
    choices_of,
    conversation_in,
    is_clear_rating,
    is_segments,
    is_shortened,
    is_verdict_word,
    listed,
    one_text,
    spans_of,
    turns_of,
)
from peft_space.data.column_mapping import (
    ANSWERS,
    LABELS,
    MORE_ANSWERS,
    MORE_QUESTIONS,
    ROLES,
    TEXTS,
    ColumnMapping,
    Schema,
    is_known_name,
    lacks_answer,
    listed_names,
    normalized,
    roles,
)
from peft_space.data.messages import is_question, unknown_speakers
from peft_space.data.pictures import looks_like_picture
from peft_space.data.unused_columns import ask_about_unused, is_detail_name
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
    if "b" in by_name:  # then `a` is the first of several choices, and not an answer
        by_name.pop("a", None)
    mappings = [mapping for schema in ROLES for mapping in _match_names(schema, by_name, rows)]
    mappings = [
        mapping
        for mapping in mappings
        if not any(_is_more_specific(other, mapping) for other in mappings)
    ]
    _check_one_label(source, mappings, columns, rows)
    offered = [column for column in columns if not _UNNAMED.fullmatch(column)] or columns
    mappings = [*_match_labels(mappings, offered, rows), *mappings]
    if not mappings:
        mappings = _match_names("question_answer", by_name, rows, _MORE_NAMES)[:1]
        mappings = mappings or _match_names("prompt_completion", by_name, rows, _MORE_NAMES)[:1]
    mappings = mappings or _match_languages(offered, rows) or _match_content(offered, rows)
    mappings = [*_match_templated(mappings, rows), *mappings]
    mappings = [_with_last_answer(mapping, by_name, rows) for mapping in mappings]
    mappings = [*mappings, *_match_stars(mappings, by_name, rows)]
    mappings = [*mappings, *_match_verdicts(mappings, by_name, rows)]
    mappings = [choice for mapping in mappings for choice in _match_speakers(mapping, rows)]
    mappings = [_with_signed_labels(mapping, rows) for mapping in mappings]
    if not mappings:
        _check_not_shortened(source, columns, rows)
        raise UserError(
            "data.unknown_columns",
            f"{source}: the columns {listed_names(columns)} fit no known schema. Rename them to "
            "instruction and output, prompt and completion, question and answer, or messages.",
        )
    return ask_about_unused(mappings, columns, rows)


_MIN_SIGNED = 0.05
"""Share of rows with -1 from which it is one of the labels -1, 0, 1. As a mark it is rare."""


def _with_signed_labels(mapping: ColumnMapping, rows: Sequence[dict[str, Any]]) -> ColumnMapping:
    """Return the mapping with -1 as a label if the labels are -1 and 1, perhaps with 0."""
    if mapping.schema not in ("text_classification", "text_pair_classification"):
        return mapping
    labels = Counter(str(row.get(mapping.columns["label"])).strip() for row in rows)
    is_signed = {"-1", "1"} <= labels.keys() <= {"-1", "0", "1"}
    is_frequent = labels["-1"] >= _MIN_SIGNED * labels.total()
    return replace(mapping, fixes=("minus_one",)) if is_signed and is_frequent else mapping


_MAX_SPEAKERS = 6
_MORE_NAMES = {"question": MORE_QUESTIONS, "answer": MORE_ANSWERS}


def _match_speakers(
    mapping: ColumnMapping, rows: Sequence[dict[str, Any]]
) -> Iterable[ColumnMapping]:
    """Offer each speaker without a known role as the assistant, the one who ends most first."""
    if "messages" not in mapping.columns:
        return [mapping]
    conversations = [turns_of(row.get(mapping.columns["messages"])) or [] for row in rows]
    speakers = unknown_speakers(itertools.chain.from_iterable(conversations))
    if not 0 < len(speakers) <= _MAX_SPEAKERS:
        return [mapping]
    ends = [name for turns in conversations for name in unknown_speakers(turns[-1:])]
    speakers.sort(key=ends.count, reverse=True)
    return [replace(mapping, assistant=speaker) for speaker in speakers]


_UNNAMED = re.compile(r"column \d+|Unnamed: \d+(_level_\d+)?|__index_level_\d+__")
"""Names that the app, pandas and Arrow give to columns without a name, such as an index."""
_MAYBE_LABELS = {
    *LABELS, "polarity", "stars", "score", "rating", "ratings", "class_name", "class_label",
    "emotion", "stance", "toxic", "toxicity", "spam", "is_spam", "gold_label", "tag", "y",
    "sentiment_label", "overall",
}  # fmt: skip
_METADATA = {"source", "lang", "language", "split", "dataset", "url", "author", "date", "title"}


def _match_labels(
    mappings: Sequence[ColumnMapping], columns: Sequence[str], rows: Sequence[dict[str, Any]]
) -> list[ColumnMapping]:
    """Offer labelled texts where a text has what may be its label, so the user is asked.

    Otherwise the model would only learn to continue the texts.
    """
    if len(mappings) != 1 or mappings[0].schema != "text":
        return []
    text = mappings[0].columns["text"]
    others = [column for column in columns if column != text and not _is_id(column, rows)]
    labels = [column for column in others if normalized(column) in _MAYBE_LABELS]
    if not labels and len(others) == 1 and normalized(others[0]) not in _METADATA:
        labels = [column for column in others if _repeats(column, rows)]
    return [
        ColumnMapping("text_classification", {"text": text, "label": column})
        for column in labels
        if all(isinstance(row.get(column), str | bool | None) for row in rows)
    ]


def _is_empty(column: str, rows: Sequence[dict[str, Any]]) -> bool:
    return not any(row.get(column) not in (None, "", [], {}) for row in rows)


def _is_detail(column: str, rows: Sequence[dict[str, Any]]) -> bool:
    """Return True if a column such as `source` names where the rows are from: not a text."""
    values = {str(row.get(column)) for row in rows}
    is_repeated = _repeats(column, rows) or (len(values) == 1 and len(rows) > 1)
    return normalized(column) in _METADATA and is_repeated


def _repeats(column: str, rows: Sequence[dict[str, Any]]) -> bool:
    """Return True if a column has few different values, like a label."""
    values = {str(row.get(column)) for row in rows}
    return len(rows) >= 10 and len(values) <= max(2, _MAX_LABEL_SHARE * len(rows))


def _check_not_shortened(
    source: str, columns: Sequence[str], rows: Sequence[dict[str, Any]]
) -> None:
    """Raise UserError if NumPy wrote only the ends of a long list, so that the rest is lost."""
    for column in filter(is_known_name, columns):
        for position, row in enumerate(rows, 1):
            if is_shortened(row.get(column)):
                raise UserError(
                    "data.shortened_list",
                    f"{source}: row {position} has a list in the column {column!r} in which NumPy "
                    "left out elements and wrote '...'. Save the rows again as JSON Lines or "
                    "Parquet.",
                )


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


_MOST = 0.8


def _match_templated(
    mappings: Sequence[ColumnMapping], rows: Sequence[dict[str, Any]]
) -> list[ColumnMapping]:
    """Offer texts that a chat template has written as the conversations that they are."""
    if len(mappings) != 1 or mappings[0].schema != "text":
        return []
    column = mappings[0].columns["text"]
    texts = [row[column] for row in rows if row.get(column)]
    if not texts or sum(map(bool, map(conversation_in, texts))) < _MOST * len(texts):
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
        return [
            ColumnMapping("unpaired_preference", _rated(chosen, column, by_name), (), good_from)
        ]
    return []


_GIVEN = re.compile(
    r"(bot|model|actual|predicted|generated|ai|student)_(answer|response|output|reply)|actual"
    r"|prediction"
)
"""Names of answers that were given, and not of those that were expected."""


def _rated(chosen: Mapping[str, str], label: str, by_name: Mapping[str, str]) -> dict[str, str]:
    """Return the columns of answers that a column rates: those that were given, if there are."""
    kept = [*roles("unpaired_preference")[0], *roles("unpaired_preference")[1]]
    prompt = next((chosen[role] for role in _PROMPTS if role in chosen), None)
    given = {"label": label, **chosen, **({"prompt": prompt} if prompt else {})}
    told = [column for name, column in by_name.items() if _GIVEN.fullmatch(name)]
    if "answer" in given and len(told) == 1:
        given["answer"] = told[0]
    return {role: given[role] for role in kept if role in given}


_VERDICT = re.compile(
    r"((user|human|review|is|was|qa|response|answer|annotation|customer|expert|ai|this|overall)_)*"
    r"(feedback|liked?|accepted|acceptable|approved|thumbs?(_up)?|helpful|correct|votes?|upvoted"
    r"|verdict|quality|judge?ment|outcome|desirable|good|rating|rated|passed|chosen|preferred"
    r"|evaluation|correctness|safe|resolved|success|successful|status|solved|pass|valid"
    r"|satisfaction|satisfied|result|review|keep|use|usable|include|grade|label|korrekt|bewertung"
    r"|avis|valoración|avaliação|beoordeling|оценка|评价|評価)"
)


@functools.lru_cache(maxsize=1_000)
def is_verdict(column: str) -> bool:
    """Return True if a column has a name for a verdict on an answer, such as `liked`."""
    return _VERDICT.fullmatch(normalized(column)) is not None


def _match_verdicts(
    mappings: Sequence[ColumnMapping], by_name: Mapping[str, str], rows: Sequence[dict[str, Any]]
) -> list[ColumnMapping]:
    """Offer answers with a verdict such as `liked` as good and bad answers, so the user is asked.

    Otherwise the model would learn the bad answers as well.
    """
    answering = [one for one in mappings if {"answer", "messages"} & set(one.columns)]
    guessed = ("question_answer", "text", "text_classification")  # by the content of columns
    if not answering or (len(mappings) > 1 and any(one.schema not in guessed for one in mappings)):
        return []
    if answering[0].schema == "unpaired_preference":
        return []
    chosen = answering[0].columns
    for name, column in by_name.items():
        verdicts = {as_rating(row[column]) for row in rows if row.get(column) is not None}
        is_of_question = name.startswith(("prompt", "question"))
        if column in chosen.values() or is_of_question or not {True, False} <= verdicts:
            continue
        cells = [row[column] for row in rows if row.get(column) is not None]
        if _VERDICT.fullmatch(name) or all(map(is_verdict_word, cells)):
            return [ColumnMapping("unpaired_preference", _rated(chosen, column, by_name))]
    return []


def _with_last_answer(
    mapping: ColumnMapping, by_name: Mapping[str, str], rows: Sequence[dict[str, Any]]
) -> ColumnMapping:
    """Return conversations without a last answer with the answer from another column."""
    answer = next((by_name[name] for name in (*ANSWERS, *MORE_ANSWERS) if name in by_name), None)
    if mapping.schema not in ("messages", "sharegpt") or answer is None:
        return mapping
    chosen = mapping.columns
    cells = [row.get(chosen["messages"]) for row in rows]
    turns = [turns_of(cell) or conversation_in(cell) or [{}] for cell in cells]
    if not all(is_question(messages[-1]) for messages in turns if messages):
        return mapping
    columns = {"prompt": chosen["messages"], "answer": answer}
    columns |= {role: chosen[role] for role in ("system", "tools") if role in chosen}
    return ColumnMapping("prompt_completion", columns)


_PROMPTS = ("prompt", "question", "instruction")
_RATINGS = (
    "helpfulness", "overall_score", "score", "quality", "reward", "csat", "csat_score", "nps",
    "nps_score", "user_rating", "customer_rating", "satisfaction", "satisfaction_score",
    "bewertung", "wertung", "note", "note_sur_5", "nota", "puntuación", "puntuacion", "valoración",
    "calificación", "avaliação", "punteggio", "beoordeling", "оценка", "评分", "评价", "評価",
)  # fmt: skip
_MAX_RATINGS = 11


def _number(cell: Any) -> float | None:
    if isinstance(cell, bool):
        return None
    stars = _STARS.fullmatch(cell.strip()) if isinstance(cell, str) else None
    if isinstance(cell, str) and cell and set(cell) <= set("★☆"):
        return cell.count("★")
    try:
        return float(stars[1] if stars else cell)
    except (TypeError, ValueError):
        return None


_STARS = re.compile(r"(\d+(?:\.\d+)?) ?(?:stars?|★+|/ ?\d+|%)")


def _match_names(
    schema: Schema,
    by_name: Mapping[str, str],
    rows: Sequence[dict[str, Any]],
    more: Mapping[str, Sequence[str]] | None = None,
) -> list[ColumnMapping]:
    """Return a mapping for each column with a known name of the role `answer`.

    Args:
        schema: to match.
        by_name: normalized name -> column.
        rows: the first rows.
        more: role -> further names, after those that are known for the schema.
    """
    chosen: dict[str, str] = {}
    answers: list[str] = []
    for role, names in {**ROLES[schema].required, **ROLES[schema].optional}.items():
        known = [by_name[name] for name in names if name in by_name]
        known += [by_name[name] for name in (more or {}).get(role, ()) if name in by_name]
        free = [column for column in known if column not in chosen.values()]
        columns = [column for column in free if _matches_role(schema, role, column, rows)]
        columns.sort(key=lambda column: (_is_empty(column, rows), _is_detail(column, rows)))
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


def _is_texts(cell: Any) -> bool:
    return isinstance(cell, list) and bool(cell) and all(isinstance(one, str) for one in cell)


def _matches_role(schema: Schema, role: str, column: str, rows: Sequence[dict[str, Any]]) -> bool:
    """Return True if the cells of the first rows have the form of the role."""
    cells = [row[column] for row in rows if row.get(column) is not None]
    if schema == "text" and not any(cells):
        return False
    if role == "prompt" and normalized(column) == "user":  # or else it is somebody's name
        return any(" " in str(cell).strip() for cell in cells)
    if schema == "preference" and role in ("chosen", "rejected"):
        return not cells or not all(map(_is_verdict, cells))
    if role == "input":
        return all(isinstance(cell, str | int | float) or _is_texts(cell) for cell in cells)
    if role == "messages":
        turns = [turn for cell in cells for turn in turns_of(cell) or conversation_in(cell) or []]
        if schema == "unpaired_preference":
            return bool(turns)
        return bool(turns) and any("from" in turn for turn in turns) == (schema == "sharegpt")
    if schema == "unpaired_preference" and role == "label":
        return bool(cells) and all(map(is_clear_rating, cells))
    if schema == "token_classification":
        is_list = bool(cells) and all(listed(cell) is not None for cell in cells)
        if role == "tokens" and is_list:
            return all(isinstance(token, str) for cell in cells for token in listed(cell) or [])
        if role == "tokens":  # a text, with spans in another column
            return any(
                _has_spans([row.get(name) for row in rows])
                for name in {name for row in rows for name in row}
            )
        texts = [name for name in TEXTS if name in (rows[0] if rows else {})]
        lists = {name for name in ("tokens", "words") if name in (rows[0] if rows else {})}
        return is_list and (bool(lists) or (bool(texts) and _has_spans(cells)))
    if schema == "text_classification" and role == "label":
        texts = [one_text(cell) or "" for cell in cells if isinstance(cell, list)]
        is_summary = len(set(texts)) > 0.8 * len(cells) and len(cells) > 3 and _is_prose(texts)
        all_differ = len(cells) > 7 and len(set(map(str, cells))) == len(cells) and _is_prose(cells)
        return not _has_spans(cells) and not is_summary and not all_differ
    if role == "reasoning":
        return all(one_text(cell) is not None for cell in cells) and _is_prose(map(one_text, cells))
    if schema == "text" and normalized(column) == "segments":
        return any(map(is_segments, cells))
    if role == "images":
        return bool(cells) and all(map(looks_like_picture, cells))
    if role == "choices":
        return bool(cells) and all(choices_of(cell) is not None for cell in cells)
    return True


def _is_verdict(cell: Any) -> bool:
    is_flag = isinstance(cell, bool | int) or str(cell).strip().lower() in ("true", "false")
    return is_flag or is_verdict_word(cell)


def _has_spans(cells: Sequence[Any]) -> bool:
    spans = [spans_of(cell) for cell in cells if cell is not None]
    return bool(spans) and None not in spans and any(spans)


_LABELS_OF_ANSWERS = {
    "label", "labels", "class", "gold_label", "is_correct", "is_duplicate", "is_paraphrase",
}  # fmt: skip


def _is_label_of_answers(mapping: ColumnMapping) -> bool:
    """Return True if pairs are questions with answers: their label is the task or a detail."""
    is_pair = mapping.schema == "text_pair_classification"
    return is_pair and normalized(mapping.columns["second"]) in ANSWERS


def _is_more_specific(mapping: ColumnMapping, other: ColumnMapping) -> bool:
    """Return True if `mapping` uses all columns of `other` and more, or `other` is plain text."""
    if other.schema == "text" and mapping.schema != "text":
        return True
    if _is_label_of_answers(other) and mapping.schema == "question_answer":
        # a category or a topic describes the question, and is not what is learned
        return normalized(other.columns["label"]) not in _LABELS_OF_ANSWERS
    if _is_label_of_answers(mapping):
        return False
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
    texts = [
        column
        for column in columns
        if _is_text(row.get(column) for row in rows) or _has_answers(column, rows)
    ]
    if len(texts) == 1 and len(columns) == 1 and normalized(texts[0]) not in _NAMES_IN_PAIRS:
        return [ColumnMapping("text", {"text": texts[0]})]
    written, free = texts, [one for one in texts if not is_detail_name(normalized(one))]
    texts = free or texts
    labels = [
        column
        for column in columns
        if _is_coded_label(column, rows)
        or (normalized(column) in _MAYBE_LABELS and _are_scalar(column, rows))
        or (column in written and _repeats(column, rows) and not _is_detail(column, rows))
    ]
    labels.sort(key=lambda column: not _is_coded_label(column, rows))
    if len(texts) < 2:
        free = [column for column in texts if column not in labels]
        text_only = [ColumnMapping("text", {"text": column}) for column in free]
        is_told = bool(free) and _is_prose(row.get(free[0]) for row in rows)
        is_alone = is_told and normalized(free[0]) not in _NAMES_IN_PAIRS
        known = _match_labels(text_only, columns, rows)
        return [*known, *text_only] if labels or is_alone else []
    by_length = sorted(texts, key=lambda column: _mean_length(rows, column), reverse=True)
    free = [column for column in by_length if column not in labels]
    pairs = _hinted_pairs(free, texts)
    by_length = by_length[:2]
    first, second = sorted(by_length, key=texts.index)
    pairs = pairs or [
        ColumnMapping("question_answer", {"question": first, "answer": second}),
        ColumnMapping("question_answer", {"question": second, "answer": first}),
    ]
    labelled = []
    for label in labels:
        text = next(column for column in by_length if column != label)
        labelled.append(ColumnMapping("text_classification", {"text": text, "label": label}))
    # with two longer texts, a label is more likely metadata, or a verdict on the second
    is_first = len(texts) == 2 or any(normalized(label) in _MAYBE_LABELS for label in labels)
    is_first = is_first and not any(_rates(label, rows) for label in labels)
    mappings = [*labelled, *pairs] if is_first else [*pairs, *labelled]
    return [*mappings, ColumnMapping("text", {"text": by_length[0]})]


_QUESTION_HINT = re.compile(
    r".*(question|prompt|query|input|instruction|problem|anchor|source|src|body|description|message"
    r"|passage|context).*"
)
_ANSWER_HINT = re.compile(
    r".*(answer|solution|resolution|response|reply|output|sql|completion|target|translation|edited"
    r"|positive|post_edit|reference).*"
)
_MAX_PAIRS = 4


def _hinted_pairs(by_length: Sequence[str], columns: Sequence[str]) -> list[ColumnMapping]:
    """Return a mapping for each of several texts whose name says that it is an answer.

    Args:
        by_length: columns of texts, the longest first.
        columns: these and others in the order of the file.
    """
    hinted = [column for column in by_length if _QUESTION_HINT.fullmatch(normalized(column))]
    told = [column for column in by_length if _ANSWER_HINT.fullmatch(normalized(column))]
    answers = [column for column in told if column not in hinted] or told
    asked = [column for column in hinted or by_length if column not in answers]
    if len(by_length) < 3 or not answers or not asked:
        return []
    answers.sort(key=columns.index)
    pairs = itertools.product(asked[:2], answers)
    return [
        ColumnMapping("question_answer", {"question": question, "answer": answer})
        for question, answer in itertools.islice(pairs, _MAX_PAIRS)
    ]


def _rates(column: str, rows: Sequence[dict[str, Any]]) -> bool:
    """Return True if the cells of a column are words that rate an answer, good and bad."""
    cells = [row[column] for row in rows if row.get(column) is not None]
    return bool(cells) and all(map(is_verdict_word, cells)) and len(set(map(as_rating, cells))) > 1


def _is_id(column: str, rows: Sequence[dict[str, Any]]) -> bool:
    """Return True for a column with another value in each row, without a space."""
    cells = [str(row.get(column)) for row in rows]
    return len(set(cells)) == len(cells) > 1 and not any(" " in cell for cell in cells)


def _are_scalar(column: str, rows: Sequence[dict[str, Any]]) -> bool:
    return not any(isinstance(row.get(column), dict | list) for row in rows)


def _is_coded_label(column: str, rows: Sequence[dict[str, Any]]) -> bool:
    """Return True if a column without a name has few numbers, as labels without a header are."""
    cells = [str(row.get(column)) for row in rows]
    is_number = all(re.fullmatch(r"-?\d{1,2}", cell) for cell in cells)
    is_unnamed = _UNNAMED.fullmatch(column) is not None
    return is_unnamed and is_number and len(set(cells)) > 1 and _repeats(column, rows)


def _has_answers(column: str, rows: Sequence[dict[str, Any]]) -> bool:
    """Return True for answers as SQuAD has them: an object with a list of texts."""
    cells = [row.get(column) for row in rows]
    is_object = all(isinstance(cell, dict) and isinstance(cell.get("text"), list) for cell in cells)
    return normalized(column) in ANSWERS and is_object


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
