"""The supported schemas of datasets, and how the columns of a dataset are used."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from peft_space.errors import UserError
from peft_space.recipe import Task

Schema = Literal[
    "alpaca", "question_answer", "prompt_completion", "messages", "sharegpt", "text", "preference",
    "unpaired_preference", "text_classification", "text_pair_classification",
    "token_classification", "source_target", "image_text",
]  # fmt: skip
SCHEMAS: tuple[Schema, ...] = get_args(Schema)
SCHEMA_TITLES: dict[Schema, str] = {
    "alpaca": "instructions and answers",
    "question_answer": "questions and answers",
    "prompt_completion": "prompts and completions",
    "messages": "chats",
    "sharegpt": "chats (ShareGPT)",
    "text": "plain texts",
    "preference": "better and worse answers",
    "unpaired_preference": "answers rated good or bad",
    "text_classification": "texts with labels",
    "text_pair_classification": "pairs of texts with labels",
    "token_classification": "words with tags",
    "source_target": "texts with their rewritten form",
    "image_text": "pictures with texts",
}
"""Schema -> plain words for its rows."""
_TASKS: dict[Schema, tuple[Task, ...]] = {
    "text_classification": ("sequence-classification",),
    "text_pair_classification": ("sequence-classification",),
    "token_classification": ("token-classification",),
    "preference": ("dpo",),
    "unpaired_preference": ("kto",),
    "text": ("causal-lm",),
    "image_text": ("image-text-to-text",),
}


def tasks_of_schema(schema: Schema) -> tuple[Task, ...]:
    """Return the tasks that a model can learn from rows of this schema."""
    return _TASKS.get(schema, ("causal-lm", "seq2seq-lm", "image-text-to-text"))


Fix = Literal[
    "deduplicate", "trim", "merge", "strip", "unify", "keep_control_tokens", "drop_cut",
    "drop_secrets", "drop_greeting", "minus_one",
]  # fmt: skip
FIXES: dict[Fix, str] = {
    "deduplicate": "Keep one of each group of duplicate rows",
    "trim": "Remove messages after the last answer of a conversation",
    "merge": "Join messages of one role that follow each other, and put system messages first",
    "strip": "Remove white space and zero-width characters around each text",
    "unify": "Use the most frequent spelling of each label",
    "keep_control_tokens": "Keep the special tokens of the model in plain texts",
    "drop_cut": "Remove rows that are longer than the length limit",
    "drop_secrets": "Remove rows with likely keys or tokens",
    "drop_greeting": "Remove answers before the first question of a conversation",
    "minus_one": "Read -1 as a label",
}
"""Fixes that the user can apply with a click because they cannot do harm."""

ANSWERS = (
    "output", "response", "answer", "completion", "answers", "responses", "reply", "assistant",
    "model_output", "attempt", "answerkey", "answer_key", "targets",
)  # fmt: skip
MORE_ANSWERS = (
    "solution", "best_answer", "correct_answer", "canonical_solution", "long_answer",
    "final_answer", "expected_output", "reference_answer", "gold_answer", "ideal", "completions",
    "outputs", "solutions", "back", "ground_truth", "expected_answer", "expected", "reference",
    "gold", "antwort", "antwoord", "réponse", "reponse", "respuesta", "resposta", "risposta",
    "svar", "odpowiedź", "cevap", "ответ", "答案", "回答", "答え", "답변",
)  # fmt: skip
"""Names of answers in tables whose columns fit no schema otherwise."""
MORE_QUESTIONS = (
    "problem", "goal", "front", "message", "user_message", "customer_message", "user_input",
    "user_query", "frage", "vraag", "pregunta", "pergunta", "domanda", "fråga", "pytanie", "soru",
    "вопрос", "问题", "問題", "質問", "질문",
)  # fmt: skip
CHATS = (
    "messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns", "contents",
    "chat_messages", "transcript", "thread",
)  # fmt: skip
_SYSTEM = {
    "system": (
        "system", "system_prompt", "system_message", "system_instruction", "systeminstruction",
        "developer", "persona", "sys_prompt", "system_role", "preamble", "pre_prompt", "preprompt",
        "systemprompt", "sys",
    )
}  # fmt: skip
LABELS = (
    "label", "labels", "category", "class", "intent", "sentiment", "stance", "topic", "target",
    "label_text",
)  # fmt: skip
TEXTS = (
    "text", "sentence", "review", "content", "utterance", "tweet", "document", "body", "comment",
    "story", "page_content",
)  # fmt: skip


@dataclass(frozen=True)
class _Roles:
    """Required and optional roles of a schema: role -> known names of its column."""

    required: dict[str, tuple[str, ...]]
    optional: dict[str, tuple[str, ...]] = field(default_factory=dict)


_TOOLS = {"tools": ("tools", "functions", "tool_config")}
IMAGES = (
    "images", "image", "image_path", "image_paths", "file_name", "picture", "pictures", "photo",
    "img", "image_file", "image_url", "image_urls", "path",
)  # fmt: skip
_IMAGES = {"images": IMAGES}
_CHAT_ROLES = _Roles({"messages": CHATS}, {**_SYSTEM, **_TOOLS, **_IMAGES})
_HISTORY = ("history", "chat_history", "previous_messages")
_REASONING = (
    "reasoning", "reasoning_content", "thinking", "thought", "thoughts", "cot", "complex_cot",
    "rationale", "chain_of_thought", "deepseek_reasoning", "thinking_trajectories",
    "reasoning_trace", "thinking_trace", "deepseek_thinking_trajectory",
)  # fmt: skip
_MORE = {
    **_SYSTEM,
    **_TOOLS,
    "history": _HISTORY,
    "reasoning": _REASONING,
    "choices": ("choices", "options"),
    **_IMAGES,
}  # fmt: skip
ROLES: dict[Schema, _Roles] = {
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
                "worse", "loser", "bad", "bad_response", "worse_response", "unsafe_response",
                "bad_answer", "worse_answer", "declined", "y_l", "schlechte_antwort",
                "respuesta_mala", "不好的回答",
            ),
        },
        {
            "chosen": (
                "chosen", "preferred", "response_chosen", "chosen_response", "preferred_output",
                "response_j", "chosen_answer", "chosen_output", "accepted", "better", "winner",
                "good", "good_response", "better_response", "safe_response", "good_answer",
                "better_answer", "y_w", "gute_antwort", "respuesta_buena", "好的回答",
            ),
            "prompt": (
                "prompt", "question", "instruction", "input", *CHATS, "trajectory", "query", "q",
                *MORE_QUESTIONS, "user", "text",
            ),
            "input": ("input", "context", "passage"),
            "history": _HISTORY,
            **_SYSTEM,
        },
    ),
    "unpaired_preference": _Roles(
        {
            "label": (
                "label", "rating", "kto_tag", "desirable", "is_good", "thumbs_up", "feedback",
                "stars", "helpfulness", "overall_score", "score", "quality", "reward",
            )
        },
        {
            "messages": CHATS,
            "prompt": ("prompt", "question", "instruction"),
            "answer": ANSWERS,
            "input": ("input", "context", "passage"),
            "history": _HISTORY,
            "reasoning": _REASONING,
            **_TOOLS,
            **_SYSTEM,
        },
    ),
    "messages": _CHAT_ROLES,
    "sharegpt": _CHAT_ROLES,
    "alpaca": _Roles(
        {"instruction": ("instruction", "instructions"), "answer": ANSWERS},
        {"input": ("input", "context", "inputs"), **_MORE},
    ),
    "question_answer": _Roles(
        {"question": ("question", "query", "q"), "answer": (*ANSWERS, "a")},
        {"input": ("input", "context", "passage"), **_MORE},
    ),
    "prompt_completion": _Roles(
        {"prompt": ("prompt", "input", "user", "inputs"), "answer": ANSWERS},
        {"input": ("context",), **_MORE},
    ),
    "source_target": _Roles(
        {
            "source": (
                "source", "src", "article", "document", "documents", "text", "input_text",
                "source_text", "dialogue",
            ),
            "target": (
                "target", "tgt", "summary", "highlights", "translation", "target_text", "headline",
                "output_text", "tldr",
            ),
        }
    ),
    "image_text": _Roles(
        {
            "images": IMAGES,
            "caption": ("caption", "captions", "description", "alt_text", *TEXTS, *LABELS),
        },
        {**_SYSTEM},
    ),
    "text_pair_classification": _Roles(
        {
            "first": (
                "sentence1", "premise", "text1", "question1", "sentence_a", "text_a", "claim",
                "question", "query", "#1_string",
            ),
            "second": (
                "sentence2", "hypothesis", "text2", "question2", "sentence_b", "text_b",
                "evidence", "sentence", "passage", "answer", "#2_string",
            ),
            "label": (
                *LABELS, "score", "gold_label", "is_duplicate", "is_paraphrase", "similarity",
                "similarity_score", "relatedness_score", "quality",
            ),
        }
    ),
    "text_classification": _Roles({"text": TEXTS, "label": LABELS}),
    "text": _Roles({"text": (*TEXTS, "segments")}),
}  # fmt: skip


def is_known_name(column: str) -> bool:
    """Return True if a column has the name of a role, such as text, label or question."""
    return normalized(column) in _NAMES


_NAMES = {
    name
    for known in ROLES.values()
    for names in (*known.required.values(), *known.optional.values())
    for name in names
}


def roles(schema: Schema) -> tuple[list[str], list[str]]:
    """Return the required and the optional roles of a schema."""
    return list(ROLES[schema].required), list(ROLES[schema].optional)


@dataclass(frozen=True)
class ColumnMapping:
    """The schema of a dataset, the column of each role, and the fixes; stored in the run."""

    schema: Schema
    columns: dict[str, str]
    """Role -> column."""
    fixes: tuple[Fix, ...] = ()
    good_from: float | None = None
    """Unpaired preference with ratings: the lowest rating of a good answer."""
    left_out: tuple[str, ...] = ()
    """Columns that look like a part of the task and are not used, by the user's choice."""
    assistant: str | None = None
    """Name of the speaker whose messages are trained. Used if speakers have names, not roles."""
    others: tuple["ColumnMapping", ...] = ()
    """Mappings of files with another schema. `of_row` chooses the one of a row."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ColumnMapping":
        """Return the mapping whose fields `as_json` returned."""
        lists = {name: tuple(values.get(name) or ()) for name in ("fixes", "left_out")}
        others = tuple(map(cls.from_json, values.get("others") or ()))
        return cls(**{**values, **lists, "others": others})

    def of_row(self, row: Mapping[str, Any]) -> "ColumnMapping":
        """Return the mapping of this row: all required columns and most others have a value."""
        best, most = self, 0
        for mapping in (self, *self.others) if self.others else ():
            filled = {role for role, name in mapping.columns.items() if row.get(name) is not None}
            if len(filled) > most and filled.issuperset(ROLES[mapping.schema].required):
                best, most = replace(mapping, fixes=self.fixes, others=()), len(filled)
        return best

    @property
    def used(self) -> set[str]:
        """The columns that have a role, in any file."""
        return {name for mapping in (self, *self.others) for name in mapping.columns.values()}

    def why(self) -> str:
        """Explain the mapping to the user in one sentence."""
        columns = ", ".join(f"{column!r} as {role}" for role, column in self.columns.items())
        plural = "s" if len(self.columns) > 1 else ""
        left_out = f" Left out: {listed_names(self.left_out)}." if self.left_out else ""
        learned = f" {self.assistant!r} is the assistant." if self.assistant else ""
        others = "".join(f" {other.why()}" for other in self.others)
        rows = f"{SCHEMA_TITLES[self.schema]} ({self.schema})"
        detected = f"Detected as {rows}, with the column{plural} {columns}."
        return f"{detected}{learned}{left_out}{others}"

    def as_json(self) -> dict[str, Any]:
        """Return the fields, which `make_column_mapping` takes."""
        others = [other.as_json() for other in self.others]
        lists = {"fixes": list(self.fixes), "left_out": list(self.left_out), "others": others}
        return {**asdict(self), **lists}

    def as_choice(self) -> dict[str, Any]:
        """Return the fields that have a value, as a user gives them to choose this mapping."""
        given = {name: value for name, value in self.as_json().items() if value not in (None, [])}
        return {"schema": self.schema, **given}


def is_question(mappings: Sequence[ColumnMapping]) -> bool:
    """Return True if the user has to choose one of these plausible mappings."""
    return len(mappings) > 1 or bool(mappings[0].left_out)


def make_column_mapping(values: Mapping[str, Any], columns: Sequence[str]) -> ColumnMapping:
    """Return the column mapping that the user chose.

    Args:
        values: `schema`, `columns` (role -> column), `fixes`, `good_from`, `left_out`, `assistant`,
            and `others`, a list of such values.
        columns: the columns of the dataset.

    Raises:
        UserError: a schema, role, column or fix does not exist, a required role has no column, or
            `assistant` is not a name.
    """
    schema = values.get("schema")
    chosen = {role: name for role, name in dict(values.get("columns") or {}).items() if name}
    fixes = tuple(values.get("fixes") or ())
    if schema not in SCHEMAS:
        message = f"The schema {schema!r} does not exist. Choose one of {', '.join(SCHEMAS)}."
        raise UserError("data.unknown_schema", message)
    required, optional = roles(schema)
    for role, column in chosen.items():
        if role not in (*required, *optional):
            allowed = ", ".join([*required, *optional])
            message = f"The schema {schema} has no role {role!r}. Its roles are {allowed}."
            raise UserError("data.unknown_role", message)
        if column not in columns:
            names = listed_names(columns)
            message = f"The column {column!r} for {role} does not exist. The columns are {names}."
            raise UserError("data.unknown_column", message)
    missing = next((role for role in required if role not in chosen), None)
    if missing is None and lacks_answer(schema, chosen):
        missing = "messages, or for prompt and answer"
    if missing:
        names = listed_names(columns)
        message = f"The schema {schema} needs a column for {missing}. Choose from {names}."
        raise UserError("data.missing_column", message)
    if unknown := [fix for fix in fixes if fix not in FIXES]:
        message = f"The fix {unknown[0]!r} does not exist. Choose from {', '.join(FIXES)}."
        raise UserError("data.unknown_fix", message)
    ordered = {role: chosen[role] for role in (*required, *optional) if role in chosen}
    good_from = values.get("good_from")
    left_out = tuple(name for name in values.get("left_out") or () if name not in chosen.values())
    if unknown := [name for name in left_out if name not in columns]:
        names = listed_names(columns)
        message = f"The column {unknown[0]!r} to leave out does not exist. The columns are {names}."
        raise UserError("data.unknown_column", message)
    rating = None if good_from is None else float(good_from)
    assistant = values.get("assistant")
    if assistant is not None and not (isinstance(assistant, str) and "messages" in ordered):
        message = "`assistant` must be the name of a speaker in a column of messages."
        raise UserError("data.invalid_assistant", message)
    others = tuple(make_column_mapping(other, columns) for other in values.get("others") or ())
    return ColumnMapping(schema, ordered, fixes, rating, left_out, assistant, others)


def lacks_answer(schema: Schema, columns: Mapping[str, str]) -> bool:
    """Return True if an unpaired preference has neither messages nor prompt and answer.

    A preference needs a chosen answer, or a conversation whose last answer is the chosen one.
    """
    if schema == "preference":
        return "chosen" not in columns and normalized(columns.get("prompt", "")) not in CHATS
    has_answer = "messages" in columns or {"prompt", "answer"} <= set(columns)
    return schema == "unpaired_preference" and not has_answer


def normalized(name: str) -> str:
    """Return the name of a column as known names are written."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", name.strip(" ?:!*."))
    return re.sub(r"[\s_-]+", "_", words.lower())


def listed_names(columns: Sequence[str]) -> str:
    """Return the first names in quotation marks, for a sentence."""
    rest = f" and {len(columns) - 12} more" if len(columns) > 12 else ""
    return ", ".join(map(repr, columns[:12])) + rest
