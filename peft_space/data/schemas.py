"""The schemas of data that people bring, declared once: which roles each has, and by which names columns are known to play them.

Recognises them by whole names and by the first rows; where two readings are plausible it returns both, to be asked. Reads no row into its form.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from peft_space.errors import UserError
from peft_space.recipe import Task

Schema = Literal[
    "alpaca", "question_answer", "prompt_completion", "messages", "sharegpt", "text", "preference",
    "unpaired_preference", "text_classification", "text_pair_classification", "token_classification", "source_target",
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
    """What can be learnt from rows of this schema."""
    return _TASKS.get(schema, ("causal-lm", "seq2seq-lm"))


Fix = Literal["deduplicate", "trim", "strip", "drop_cut", "drop_secrets"]
FIXES: dict[Fix, str] = {
    "deduplicate": "Keep one of each row that occurs several times",
    "trim": "Cut what follows the last answer of a conversation",
    "strip": "Remove white space and zero-width characters around each text",
    "drop_cut": "Leave out rows that are longer than the limit",
    "drop_secrets": "Leave out rows with likely keys or tokens",
}
"""What can be mended with a click, because it cannot do harm."""

_ANSWERS = (
    "output",
    "response",
    "answer",
    "completion",
    "answers",
    "responses",
    "reply",
    "assistant",
    "model_output",
)
_CHATS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
_SYSTEM = {"system": ("system", "system_prompt")}
_LABELS = (
    "label",
    "labels",
    "category",
    "class",
    "intent",
    "sentiment",
    "topic",
    "target",
    "label_text",
)
_TEXTS = (
    "text",
    "sentence",
    "review",
    "content",
    "utterance",
    "tweet",
    "document",
    "body",
    "comment",
    "story",
)


@dataclass(frozen=True)
class _Declared:
    """What a schema needs and may have: role -> the names by which a column is known to play it."""

    needs: dict[str, tuple[str, ...]]
    may_have: dict[str, tuple[str, ...]] = field(default_factory=dict)


_DECLARED: dict[Schema, _Declared] = {
    "token_classification": _Declared(
        {
            "tokens": ("tokens", "words"),
            "tags": ("tags", "ner_tags", "pos_tags", "labels", "ner", "chunk_tags"),
        }
    ),
    "preference": _Declared(
        {
            "chosen": ("chosen", "preferred", "response_chosen"),
            "rejected": ("rejected", "dispreferred", "response_rejected"),
        },
        {"prompt": ("prompt", "question", "instruction", "input", *_CHATS), **_SYSTEM},
    ),
    "unpaired_preference": _Declared(
        {"label": ("label", "rating", "kto_tag", "desirable", "is_good", "thumbs_up")},
        {
            "messages": _CHATS,
            "prompt": ("prompt", "question", "instruction"),
            "answer": _ANSWERS,
            **_SYSTEM,
        },
    ),
    "messages": _Declared({"messages": _CHATS}, {**_SYSTEM, "tools": ("tools", "functions")}),
    "sharegpt": _Declared({"messages": _CHATS}, {**_SYSTEM, "tools": ("tools", "functions")}),
    "alpaca": _Declared(
        {"instruction": ("instruction", "instructions"), "answer": _ANSWERS},
        {"input": ("input", "context", "inputs"), **_SYSTEM},
    ),
    "question_answer": _Declared(
        {"question": ("question", "query", "q"), "answer": (*_ANSWERS, "a")},
        {"input": ("input", "context"), **_SYSTEM},
    ),
    "prompt_completion": _Declared(
        {"prompt": ("prompt", "input", "user"), "answer": _ANSWERS},
        {"input": ("context",), **_SYSTEM},
    ),
    "source_target": _Declared(
        {
            "source": (
                "source",
                "src",
                "article",
                "document",
                "text",
                "input_text",
                "source_text",
                "dialogue",
            ),
            "target": (
                "target",
                "tgt",
                "summary",
                "highlights",
                "translation",
                "target_text",
                "headline",
            ),
        }
    ),
    "text_pair_classification": _Declared(
        {
            "first": ("sentence1", "premise", "text1", "question1", "sentence_a", "text_a"),
            "second": ("sentence2", "hypothesis", "text2", "question2", "sentence_b", "text_b"),
            "label": (*_LABELS, "score"),
        }
    ),
    "text_classification": _Declared({"text": _TEXTS, "label": _LABELS}),
    "text": _Declared({"text": _TEXTS}),
}


def roles(schema: Schema) -> tuple[list[str], list[str]]:
    """(roles that a column must be named for, roles that may stay empty)."""
    declared = _DECLARED[schema]
    return list(declared.needs), list(declared.may_have)


@dataclass(frozen=True)
class ColumnMapping:
    """How a file is understood: its schema, which column plays which role, and what is mended. Kept in the run, so it can be repeated."""

    schema: Schema
    columns: dict[str, str]
    fixes: tuple[Fix, ...] = ()

    def why(self) -> str:
        """One sentence for the user."""
        told = ", ".join(f"{column!r} as {role}" for role, column in self.columns.items())
        return f"Recognised as {self.schema}: it reads the column{'s' if len(self.columns) > 1 else ''} {told}."

    def as_json(self) -> dict[str, Any]:
        """{"schema", "columns", "fixes"}, which `make_column_mapping` takes."""
        return {**asdict(self), "fixes": list(self.fixes)}


def make_column_mapping(values: Mapping[str, Any], columns: Sequence[str]) -> ColumnMapping:
    """The reading that the user wants. Raises UserError naming the schema, role, column or fix that there is not."""
    schema, chosen, fixes = (
        values.get("schema"),
        dict(values.get("columns") or {}),
        tuple(values.get("fixes") or ()),
    )
    if schema not in SCHEMAS:
        raise UserError(
            "todo", f"There is no schema {schema!r}. Choose one of {', '.join(SCHEMAS)}."
        )
    needs, may_have = roles(schema)
    chosen = {role: column for role, column in chosen.items() if column}
    for role, column in chosen.items():
        if role not in (*needs, *may_have):
            raise UserError(
                "todo",
                f"{schema} has no role {role!r}. Its roles are {', '.join([*needs, *may_have])}.",
            )
        if column not in columns:
            raise UserError(
                "todo",
                f"There is no column {column!r} for {role}. The columns are {_listed(columns)}.",
            )
    if missing := [role for role in needs if role not in chosen]:
        raise UserError(
            "todo", f"{schema} needs a column for {missing[0]}. Choose one of {_listed(columns)}."
        )
    if schema == "unpaired_preference" and not (
        "messages" in chosen or {"prompt", "answer"} <= set(chosen)
    ):
        raise UserError(
            "todo", f"{schema} needs a column for messages, or one for prompt and one for answer."
        )
    if unknown := [fix for fix in fixes if fix not in FIXES]:
        raise UserError("todo", f"There is no fix {unknown[0]!r}. Choose among {', '.join(FIXES)}.")
    return ColumnMapping(
        schema, {role: chosen[role] for role in (*needs, *may_have) if role in chosen}, fixes
    )


def detect_schema(
    source: str, columns: Sequence[str], rows: Sequence[dict[str, Any]]
) -> list[ColumnMapping]:
    """The plausible readings of a file with these columns and first rows, likeliest first; one where there is no doubt.

    Columns are known by their whole names. Raises UserError naming the columns where nothing fits.
    """
    by_name = {_plain(column): column for column in columns}
    found = [
        column_mapping
        for schema in _DECLARED
        for column_mapping in _by_names(schema, by_name, rows)
    ]
    found = [
        column_mapping
        for column_mapping in found
        if not any(_is_more_specific(other, column_mapping) for other in found)
    ]
    found = found or _by_content(columns, rows)
    if not found:
        raise UserError(
            "todo",
            f"{source}: the columns {_listed(columns)} fit no known schema. "
            "Name them instruction and output, prompt and completion, question and answer, or bring a column messages.",
        )
    return found


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _by_names(
    schema: Schema, by_name: Mapping[str, str], rows: Sequence[dict[str, Any]]
) -> list[ColumnMapping]:
    declared = _DECLARED[schema]
    chosen: dict[str, str] = {}
    doubtful: list[tuple[str, list[str]]] = []
    for role, names in (*declared.needs.items(), *declared.may_have.items()):
        columns = [
            by_name[name]
            for name in names
            if name in by_name and by_name[name] not in chosen.values()
        ]
        columns = [column for column in columns if _matches_role(schema, role, column, rows)]
        if columns:
            chosen[role] = columns[0]
        elif role in declared.needs:
            return []
        if len(columns) > 1 and role == "answer":
            doubtful.append((role, columns))
    if schema == "unpaired_preference" and not (
        "messages" in chosen or {"prompt", "answer"} <= set(chosen)
    ):
        return []
    mappings = [ColumnMapping(schema, chosen)]
    for role, columns in doubtful:
        mappings += [ColumnMapping(schema, {**chosen, role: column}) for column in columns[1:]]
    return mappings


def _matches_role(schema: Schema, role: str, column: str, rows: Sequence[dict[str, Any]]) -> bool:
    """Whether the first rows' cells are of the form that the role takes."""
    cells = [row[column] for row in rows if row.get(column) is not None]
    if role == "messages":
        turns = [
            turn for cell in cells for turn in (message_turns(cell) or []) if isinstance(turn, dict)
        ]
        if schema == "unpaired_preference":
            return bool(turns)
        return bool(turns) and any("from" in turn for turn in turns) == (schema == "sharegpt")
    if schema == "unpaired_preference" and role == "label":
        return bool(cells) and all(as_bool(cell) is not None for cell in cells)
    if schema == "token_classification":
        return bool(cells) and all(listed(cell) is not None for cell in cells)
    return True


def _is_more_specific(one: ColumnMapping, other: ColumnMapping) -> bool:
    """Whether `one` reads the same columns as `other` and more: then nobody means the other. A whole text is what is left without another schema."""
    return set(other.columns.values()) < set(one.columns.values()) or (
        other.schema == "text" and one.schema != "text"
    )


_HALVES = {
    name
    for declared in _DECLARED.values()
    if len(declared.needs) > 1
    for names in declared.needs.values()
    for name in names
}
"""Names of columns that belong to a pair: one alone is half of something, not a text."""
_FEW_VALUES = 0.2
"""A column with fewer different values than this share of the rows looks like a label."""


def _by_content(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[ColumnMapping]:
    """What columns of unknown names could mean: always several readings, unless there is but one column."""
    texts = [column for column in columns if _is_text(row.get(column) for row in rows)]
    if len(texts) == 1 and len(columns) == 1 and _plain(texts[0]) not in _HALVES:
        return [ColumnMapping("text", {"text": texts[0]})]
    if len(texts) < 2:
        return []
    by_length = sorted(texts, key=lambda column: _mean_length(rows, column), reverse=True)[:2]
    first, second = sorted(by_length, key=texts.index)
    mappings = [
        ColumnMapping("question_answer", {"question": first, "answer": second}),
        ColumnMapping("question_answer", {"question": second, "answer": first}),
    ]
    labelled = []
    for label in texts:
        values = {str(row.get(label)) for row in rows}
        if len(rows) >= 10 and len(values) <= max(2, _FEW_VALUES * len(rows)):
            others = [column for column in by_length if column != label]
            labelled.append(
                ColumnMapping("text_classification", {"text": others[0], "label": label})
            )
    # beside two longer texts a label is rather a note about them
    mappings = [*labelled, *mappings] if len(texts) == 2 else [*mappings, *labelled]
    return [*mappings, ColumnMapping("text", {"text": by_length[0]})]


def _is_text(cells: Iterable[Any]) -> bool:
    present = [cell for cell in cells if cell not in (None, "")]
    return (
        bool(present)
        and all(isinstance(cell, str) for cell in present)
        and any(re.search(r"[^\W\d_]", cell) for cell in present)
    )


def _mean_length(rows: Sequence[dict[str, Any]], column: str) -> float:
    return sum(len(row.get(column) or "") for row in rows) / len(rows)


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(map(repr, columns[:12])) + (
        f" and {len(columns) - 12} more" if len(columns) > 12 else ""
    )


# What cells hold; a list in a CSV stands as its JSON text


def listed(cell: Any) -> list[Any] | None:
    """The cell's list."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return None
    return cell if isinstance(cell, list) else None


def message_turns(cell: Any) -> list[Any] | None:
    """The cell's list of messages."""
    turns = listed(cell)
    return turns if turns is None or all(isinstance(turn, dict) for turn in turns) else None


def as_bool(cell: Any) -> bool | None:
    """The yes or no that a cell says, None where it says neither."""
    if isinstance(cell, bool):
        return cell
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(
        str(cell).strip().lower()
    )
