"""The supported schemas of datasets, and their detection from column names and first rows."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from peft_space.data.cells import (
    as_rating,
    choices_of,
    is_shortened,
    listed,
    one_text,
    spans_of,
    turns_of,
)
from peft_space.errors import UserError
from peft_space.recipe import Task

Schema = Literal[
    "alpaca", "question_answer", "prompt_completion", "messages", "sharegpt", "text", "preference",
    "unpaired_preference", "text_classification", "text_pair_classification",
    "token_classification", "source_target",
]  # fmt: skip
SCHEMAS: tuple[Schema, ...] = get_args(Schema)
_TASKS: dict[Schema, tuple[Task, ...]] = {
    "text_classification": ("sequence-classification",),
    "text_pair_classification": ("sequence-classification",),
    "token_classification": ("token-classification",),
    "preference": ("dpo",),
    "unpaired_preference": ("kto",),
    "text": ("causal-lm",),
}


def tasks_of_schema(schema: Schema) -> tuple[Task, ...]:
    """Return the tasks that a model can learn from rows of this schema."""
    return _TASKS.get(schema, ("causal-lm", "seq2seq-lm"))


Fix = Literal["deduplicate", "trim", "merge", "strip", "drop_cut", "drop_secrets"]
FIXES: dict[Fix, str] = {
    "deduplicate": "Keep one of each group of duplicate rows",
    "trim": "Remove messages after the last answer of a conversation",
    "merge": "Join messages of one role that follow each other, and put system messages first",
    "strip": "Remove white space and zero-width characters around each text",
    "drop_cut": "Remove rows that are longer than the length limit",
    "drop_secrets": "Remove rows with likely keys or tokens",
}
"""Fixes that the user can apply with a click because they cannot do harm."""

_ANSWERS = (
    "output", "response", "answer", "completion", "answers", "responses", "reply", "assistant",
    "model_output", "attempt", "answerkey", "targets",
)  # fmt: skip
_CHATS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
_SYSTEM = {"system": ("system", "system_prompt")}
_LABELS = (
    "label", "labels", "category", "class", "intent", "sentiment", "topic", "target", "label_text",
)  # fmt: skip
_TEXTS = (
    "text", "sentence", "review", "content", "utterance", "tweet", "document", "body", "comment",
    "story",
)  # fmt: skip


@dataclass(frozen=True)
class _Roles:
    """Required and optional roles of a schema: role -> known names of its column."""

    required: dict[str, tuple[str, ...]]
    optional: dict[str, tuple[str, ...]] = field(default_factory=dict)


_TOOLS = {"tools": ("tools", "functions")}
_CHAT_ROLES = _Roles({"messages": _CHATS}, {**_SYSTEM, **_TOOLS})
_MORE = {
    **_SYSTEM,
    **_TOOLS,
    "history": ("history",),
    "reasoning": (
        "reasoning", "reasoning_content", "thinking", "thought", "thoughts", "cot", "complex_cot",
        "rationale", "chain_of_thought", "deepseek_reasoning", "thinking_trajectories",
        "reasoning_trace", "thinking_trace", "deepseek_thinking_trajectory",
    ),
    "choices": ("choices", "options"),
}  # fmt: skip
_ROLES: dict[Schema, _Roles] = {
    "token_classification": _Roles(
        {
            "tokens": ("tokens", "words", "text", "sentence"),
            "tags": (
                "tags", "ner_tags", "pos_tags", "labels", "ner", "chunk_tags", "entities", "spans",
                "label",
            ),
        }
    ),
    "preference": _Roles(
        {
            "rejected": (
                "rejected", "dispreferred", "response_rejected", "rejected_response",
                "non_preferred_output", "response_k", "rejected_answer", "rejected_output",
            ),
        },
        {
            "chosen": (
                "chosen", "preferred", "response_chosen", "chosen_response", "preferred_output",
                "response_j", "chosen_answer", "chosen_output",
            ),
            "prompt": ("prompt", "question", "instruction", "input", *_CHATS),
            **_SYSTEM,
        },
    ),
    "unpaired_preference": _Roles(
        {
            "label": (
                "label", "rating", "kto_tag", "desirable", "is_good", "thumbs_up", "feedback",
                "stars",
            )
        },
        {
            "messages": _CHATS,
            "prompt": ("prompt", "question", "instruction"),
            "answer": _ANSWERS,
            **_TOOLS,
            **_SYSTEM,
        },
    ),
    "messages": _CHAT_ROLES,
    "sharegpt": _CHAT_ROLES,
    "alpaca": _Roles(
        {"instruction": ("instruction", "instructions"), "answer": _ANSWERS},
        {"input": ("input", "context", "inputs"), **_MORE},
    ),
    "question_answer": _Roles(
        {"question": ("question", "query", "q"), "answer": (*_ANSWERS, "a")},
        {"input": ("input", "context", "passage"), **_MORE},
    ),
    "prompt_completion": _Roles(
        {"prompt": ("prompt", "input", "user", "inputs"), "answer": _ANSWERS},
        {"input": ("context",), **_MORE},
    ),
    "source_target": _Roles(
        {
            "source": (
                "source", "src", "article", "document", "text", "input_text", "source_text",
                "dialogue",
            ),
            "target": (
                "target", "tgt", "summary", "highlights", "translation", "target_text", "headline",
            ),
        }
    ),
    "text_pair_classification": _Roles(
        {
            "first": (
                "sentence1", "premise", "text1", "question1", "sentence_a", "text_a", "question",
                "query",
            ),
            "second": (
                "sentence2", "hypothesis", "text2", "question2", "sentence_b", "text_b",
                "sentence", "passage", "answer",
            ),
            "label": (*_LABELS, "score", "gold_label", "is_duplicate", "is_paraphrase"),
        }
    ),
    "text_classification": _Roles({"text": _TEXTS, "label": _LABELS}),
    "text": _Roles({"text": _TEXTS}),
}  # fmt: skip


def is_known_name(column: str) -> bool:
    """Return True if a column has the name of a role, such as text, label or question."""
    return _normalized(column) in _NAMES


_NAMES = {
    name
    for known in _ROLES.values()
    for names in (*known.required.values(), *known.optional.values())
    for name in names
}


def roles(schema: Schema) -> tuple[list[str], list[str]]:
    """Return the required and the optional roles of a schema."""
    return list(_ROLES[schema].required), list(_ROLES[schema].optional)


@dataclass(frozen=True)
class ColumnMapping:
    """The schema of a dataset, the column of each role, and the fixes; stored in the run."""

    schema: Schema
    columns: dict[str, str]
    """Role -> column."""
    fixes: tuple[Fix, ...] = ()
    good_from: float | None = None
    """Unpaired preference with ratings: the lowest rating of a good answer."""

    def why(self) -> str:
        """Explain the mapping to the user in one sentence."""
        columns = ", ".join(f"{column!r} as {role}" for role, column in self.columns.items())
        plural = "s" if len(self.columns) > 1 else ""
        return f"Detected as {self.schema}, with the column{plural} {columns}."

    def as_json(self) -> dict[str, Any]:
        """Return `schema`, `columns` and `fixes`, which `make_column_mapping` takes."""
        return {**asdict(self), "fixes": list(self.fixes)}


def make_column_mapping(values: Mapping[str, Any], columns: Sequence[str]) -> ColumnMapping:
    """Return the column mapping that the user chose.

    Args:
        values: `schema`, `columns` (role -> column) and `fixes`.
        columns: the columns of the dataset.

    Raises:
        UserError: a schema, role, column or fix does not exist, or a required role has no column.
    """
    schema = values.get("schema")
    chosen = {role: name for role, name in dict(values.get("columns") or {}).items() if name}
    fixes = tuple(values.get("fixes") or ())
    if schema not in SCHEMAS:
        message = f"There is no schema {schema!r}. Choose one of {', '.join(SCHEMAS)}."
        raise UserError("data.unknown_schema", message)
    required, optional = roles(schema)
    for role, column in chosen.items():
        if role not in (*required, *optional):
            allowed = ", ".join([*required, *optional])
            message = f"The schema {schema} has no role {role!r}. Its roles are {allowed}."
            raise UserError("data.unknown_role", message)
        if column not in columns:
            names = _listed(columns)
            message = f"There is no column {column!r} for {role}. The columns are {names}."
            raise UserError("data.unknown_column", message)
    missing = next((role for role in required if role not in chosen), None)
    if missing is None and _lacks_answer(schema, chosen):
        missing = "messages, or for prompt and answer"
    if missing:
        message = (
            f"The schema {schema} needs a column for {missing}. Choose from {_listed(columns)}."
        )
        raise UserError("data.missing_column", message)
    if unknown := [fix for fix in fixes if fix not in FIXES]:
        message = f"There is no fix {unknown[0]!r}. Choose from {', '.join(FIXES)}."
        raise UserError("data.unknown_fix", message)
    ordered = {role: chosen[role] for role in (*required, *optional) if role in chosen}
    good_from = values.get("good_from")
    return ColumnMapping(schema, ordered, fixes, None if good_from is None else float(good_from))


def _lacks_answer(schema: Schema, columns: Mapping[str, str]) -> bool:
    """Return True if an unpaired preference has neither messages nor prompt and answer.

    A preference needs a chosen answer, or a conversation whose last answer is the chosen one.
    """
    if schema == "preference":
        return "chosen" not in columns and _normalized(columns.get("prompt", "")) not in _CHATS
    has_answer = "messages" in columns or {"prompt", "answer"} <= set(columns)
    return schema == "unpaired_preference" and not has_answer


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
    by_name = {_normalized(column): column for column in columns}
    mappings = [mapping for schema in _ROLES for mapping in _match_names(schema, by_name, rows)]
    mappings = [
        mapping
        for mapping in mappings
        if not any(_is_more_specific(other, mapping) for other in mappings)
    ]
    offered = [column for column in columns if not _UNNAMED.fullmatch(column)] or columns
    mappings = [*_match_labels(mappings, offered, rows), *mappings]
    mappings = mappings or _match_content(offered, rows)
    mappings = [*mappings, *_match_stars(mappings, by_name, rows)]
    if not mappings:
        _check_not_shortened(source, columns, rows)
        raise UserError(
            "data.unknown_columns",
            f"{source}: the columns {_listed(columns)} fit no known schema. Rename them to "
            "instruction and output, prompt and completion, question and answer, or messages.",
        )
    return mappings


_UNNAMED = re.compile(r"column \d+|Unnamed: \d+(_level_\d+)?|__index_level_\d+__")
"""Names that the app, pandas and Arrow give to columns without a name, such as an index."""
_MAYBE_LABELS = {
    *_LABELS, "polarity", "stars", "score", "rating", "ratings", "class_name", "class_label",
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
    others = [column for column in columns if column != text]
    labels = [column for column in others if _normalized(column) in _MAYBE_LABELS]
    if not labels and len(others) == 1 and _normalized(others[0]) not in _METADATA:
        labels = [column for column in others if _repeats(column, rows)]
    return [
        ColumnMapping("text_classification", {"text": text, "label": column})
        for column in labels
        if all(isinstance(row.get(column), str | bool | None) for row in rows)
    ]


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


def _match_stars(
    mappings: Sequence[ColumnMapping], by_name: Mapping[str, str], rows: Sequence[dict[str, Any]]
) -> list[ColumnMapping]:
    """Offer answers with ratings such as 1 to 5 as good and bad answers too, so the user is asked.

    Otherwise the model would learn the badly rated answers as well.
    """
    if len(mappings) != 1 or not {"answer", "messages"} & set(mappings[0].columns):
        return []
    chosen = mappings[0].columns
    for name in _ROLES["unpaired_preference"].required["label"]:
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
_MAX_RATINGS = 11


def _number(cell: Any) -> float | None:
    if isinstance(cell, bool):
        return None
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def _normalized(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _match_names(
    schema: Schema, by_name: Mapping[str, str], rows: Sequence[dict[str, Any]]
) -> list[ColumnMapping]:
    """Return a mapping for each column with a known name of the role `answer`."""
    chosen: dict[str, str] = {}
    answers: list[str] = []
    for role, names in {**_ROLES[schema].required, **_ROLES[schema].optional}.items():
        known = [by_name[name] for name in names if name in by_name]
        free = [column for column in known if column not in chosen.values()]
        columns = [column for column in free if _matches_role(schema, role, column, rows)]
        if columns:
            chosen[role] = columns[0]
        elif role in _ROLES[schema].required:
            return []
        if role == "answer":
            answers = columns
    if _lacks_answer(schema, chosen):
        return []
    others = [ColumnMapping(schema, {**chosen, "answer": column}) for column in answers[1:]]
    return [ColumnMapping(schema, chosen), *others]


def _matches_role(schema: Schema, role: str, column: str, rows: Sequence[dict[str, Any]]) -> bool:
    """Return True if the cells of the first rows have the form of the role."""
    cells = [row[column] for row in rows if row.get(column) is not None]
    if role == "messages":
        turns = [turn for cell in cells for turn in turns_of(cell) or []]
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
        texts = [name for name in _TEXTS if name in (rows[0] if rows else {})]
        lists = {name for name in ("tokens", "words") if name in (rows[0] if rows else {})}
        return is_list and (bool(lists) or (bool(texts) and _has_spans(cells)))
    if schema == "text_classification" and role == "label":
        return not _has_spans(cells)
    if role == "reasoning":
        return bool(cells) and all(one_text(cell) is not None for cell in cells)
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
    for roles_of_schema in _ROLES.values()
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
    if len(texts) == 1 and len(columns) == 1 and _normalized(texts[0]) not in _NAMES_IN_PAIRS:
        return [ColumnMapping("text", {"text": texts[0]})]
    labels = [
        column
        for column in columns
        if _normalized(column) in _MAYBE_LABELS or (column in texts and _repeats(column, rows))
    ]
    if len(texts) < 2:
        free = [column for column in texts if column not in labels]
        text_only = [ColumnMapping("text", {"text": column}) for column in free]
        return [*_match_labels(text_only, columns, rows), *text_only] if labels else []
    by_length = sorted(texts, key=lambda column: _mean_length(rows, column), reverse=True)[:2]
    first, second = sorted(by_length, key=texts.index)
    pairs = [
        ColumnMapping("question_answer", {"question": first, "answer": second}),
        ColumnMapping("question_answer", {"question": second, "answer": first}),
    ]
    labelled = []
    for label in labels:
        text = next(column for column in by_length if column != label)
        labelled.append(ColumnMapping("text_classification", {"text": text, "label": label}))
    # with two longer texts, a label is more likely metadata
    is_first = len(texts) == 2 or any(_normalized(label) in _MAYBE_LABELS for label in labels)
    mappings = [*labelled, *pairs] if is_first else [*pairs, *labelled]
    return [*mappings, ColumnMapping("text", {"text": by_length[0]})]


def _is_text(cells: Iterable[Any]) -> bool:
    filled = [cell for cell in cells if cell not in (None, "")]
    is_string = bool(filled) and all(isinstance(cell, str) for cell in filled)
    return is_string and any(re.search(r"[^\W\d_]", cell) for cell in filled)


def _mean_length(rows: Sequence[dict[str, Any]], column: str) -> float:
    return sum(len(row.get(column) or "") for row in rows) / len(rows)


def _listed(columns: Sequence[str]) -> str:
    rest = f" and {len(columns) - 12} more" if len(columns) > 12 else ""
    return ", ".join(map(repr, columns[:12])) + rest
