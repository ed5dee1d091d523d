"""Asks about columns that look like a part of the task and that no reading uses."""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from peft_space.data.cells import as_bool, choices_of, listed, message_turns, one_text
from peft_space.data.column_mapping import (
    ANSWERS,
    LABELS,
    MORE_ANSWERS,
    TEXTS,
    ColumnMapping,
    Schema,
    normalized,
    roles,
)
from peft_space.data.pictures import looks_like_picture

_MAX_ALTERNATIVES = 4
_ROWS_COMPARED = 50
_MIN_COPIED = 0.6
"""A column with a smaller share of a text is extracted from it, which can be the task."""
_ANSWERING: tuple[Schema, ...] = (
    "alpaca", "question_answer", "prompt_completion", "source_target",
)  # fmt: skip
_CHATTING: tuple[Schema, ...] = ("messages", "sharegpt")
_LABELLED: tuple[Schema, ...] = ("text_classification", "text_pair_classification")
_WITHOUT_PICTURES: tuple[Schema, ...] = (
    "text", *_LABELLED, "token_classification", "preference", "unpaired_preference",
    "source_target",
)  # fmt: skip
_NEVER = re.compile(
    r"id|idx|index|uuid|key|embeddings?|vectors?|domain|subset|dataset|source|url|uri|link|domain|path|file(_?(name|path))?|dump|warc.*|sha\d*"
    r"|hash|md5|timestamp|date|time|metadata|meta|split|lang|language"
    r"|license|licence|author|model|version|(num|n|count|len)_.*|.*_(id|ids|url|count|len"
    r"|length|tokens|model|date|time|type|source|version|rating|score)|(is|has|score|rating)_.*"
    r"|created.*|updated.*|__index_level_0__"
)
_CONTEXT_NAMES = (
    "context", "passage", "document", "article", "background", "evidence", "support", "knowledge",
    "input", "inputs", "reference_text", "sentence", "text", "contexts", "documents", "ctxs",
    "paragraphs", "passages", "citations", "table", "schema", "db_schema", "code_context", "hint",
    "retrieved_contexts", "references", "story", "knowledge_base", "definition", "task",
    "task_description", "chunk", "chunks", "excerpt", "content", "transcript", "source_text",
    "retrieved_docs", "retrieved_documents", "reference_contexts", "background_info", "query",
)  # fmt: skip
_CONTEXTS_OF_CHATS = (
    "context", "contexts", "document", "documents", "passage", "passages", "instructions",
    "definition", "retrieved_contexts", "retrieved_docs", "retrieved_documents", "knowledge",
    "knowledge_base", "citations", "reference_contexts", "background",
)  # fmt: skip
_QUESTION_NAMES = ("question", "instruction", "prompt", "query")
_MORE_ANSWERS = (*ANSWERS, *MORE_ANSWERS, "correct_answers", "summary", "translation", "target")
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
    """Return True if cells are texts of more than a word, and mostly different.

    Dates, numbers, ids and names of files are not.
    """
    texts = [one_text(cell) for cell in cells]
    longer = sum(" " in str(text).strip() or len(str(text)) > 20 for text in texts)
    if not all(texts) or longer < len(texts) / 2:
        return False
    if sum(_is_code(str(text)) for text in texts) > len(texts) / 2:
        return False
    return len(set(texts)) > len(texts) / 2 or len(texts) < 3


_FILE_NAME = re.compile(r".*\.\w{2,5}\s*")


def _is_code(text: str) -> bool:
    """Return True for a date, a number with a unit, an id, an address, or the name of a file."""
    characters = [one for one in text if not one.isspace()]
    num_letters = sum(map(str.isalpha, characters))
    is_long_id = " " not in text.strip() and text.isascii()
    is_file = _FILE_NAME.fullmatch(text) is not None and len(text.split()) < _MIN_WORDS
    return num_letters < len(characters) / 2 or is_long_id or is_file


_MIN_WORDS = 4


def _is_told(cells: list[Any]) -> bool:
    """Return True if cells are sentences, and mostly different."""
    texts = [str(one_text(cell)) for cell in cells]
    spoken = sum(len(re.findall(r"[^\W\d_]+", text)) >= _MIN_WORDS for text in texts)
    written = sum(len(text) > _MIN_LETTERS and not _is_spaced(text) for text in texts)
    return _is_varied_prose(cells) and max(spoken, written) > len(cells) / 2


_MIN_LETTERS = 8


def _is_spaced(text: str) -> bool:
    """Return True for a text of a script that puts spaces between words."""
    return all(ord(one) < 0x2E80 for one in text)


def _is_prose(cells: list[Any]) -> bool:
    """Return True if cells are texts of several words, or lists of them."""
    texts = [text for cell in cells for text in listed(cell) or [cell]]
    longer = sum(len(str(text).split()) > 2 for text in texts)
    return all(isinstance(text, str) for text in texts) and longer > len(texts) / 2


def _are_told(cells: list[Any]) -> bool:
    """Return True if cells are lists of sentences, or of objects with a sentence."""
    items = [item for cell in cells for item in (cell if isinstance(cell, list) else [None])]
    longest = (max(_texts_in(item), key=len, default="") for item in items)
    texts = [
        text if isinstance(item, dict) else item for item, text in zip(items, longest, strict=True)
    ]
    return bool(texts) and all(isinstance(text, str) for text in texts) and _is_told(texts)


def _is_graded(cells: list[Any]) -> bool:
    """Return True if cells are two to five words, each in several rows."""
    values = {str(cell).strip() for cell in cells}
    is_word = all(len(value) < 20 and not value.isdigit() for value in values)
    return is_word and 2 <= len(values) <= 5 and len(cells) >= 2 * len(values)


def _is_either(cells: list[Any]) -> bool:
    """Return True if some cells say yes and others no."""
    return {as_bool(cell) for cell in cells} == {True, False}


def _is_answer(cells: list[Any]) -> bool:
    return all(isinstance(cell, str | list | dict) for cell in cells)


def _is_label(cells: list[Any]) -> bool:
    values = {str(cell) for cell in cells}
    is_short = all(len(value) < 60 and not {"{", "["} & set(value) for value in values)
    return is_short and 2 <= len(values) <= max(2, len(cells) / 2)


def _is_scale(cells: list[Any]) -> bool:
    """Return True for numbers, or yes and no, that differ."""
    values = {str(cell).strip().lower() for cell in cells}
    return len(values) > 1 and all(re.fullmatch(r"\d+(\.\d+)?|true|false", one) for one in values)


def _is_category(cells: list[Any]) -> bool:
    """Return True if many cells share a few short values, as labels do."""
    values = {cell for cell in cells if isinstance(cell, str | bool)}
    is_short = all(len(str(value)) < 40 for value in values)
    return len(cells) >= 8 and is_short and 2 <= len(values) <= max(2, len(cells) // 4)


def _is_list(cells: list[Any]) -> bool:
    return all(listed(cell) is not None for cell in cells)


def _is_structure(cells: list[Any]) -> bool:
    return all(isinstance(cell, dict | list) for cell in cells)


_BETTER_ANSWER = re.compile(
    r"(corrected|edited|revised|improved|better|fixed|preferred|human)_"
    r"(answer|response|output|completion|text|edit)|improved|human_edit|edited|rewrite|rewritten"
    r"|ground_truth|(\w+_)?solution_\d"
)
_BAD = re.compile(
    r"((is|has|was|contains|response|answer)_)?(rejected|flagged|bad|toxic|toxicity"
    r"|hallucinat(ed|ion)|errors?|unsafe|wrong|incorrect|deleted|hidden|skip|ignore|exclude|drop"
    r"|harmful|harm|refus(ed|al)|thumbs_down|downvoted|spam|offensive|nsfw|inappropriate|broken"
    r"|outdated)"
)
"""Names of columns that say that an answer is bad, or that a row is not meant to be learned."""
_MASK = re.compile(
    r"((loss|train|turn|token|assistant|label|completion|assistant_tokens?)_?)?masks?"
    r"|train_on_\w+|trainable|is_train(ed|ing|able)?|include_in_loss"
)
"""Names of columns that say which turns have a loss."""
_MORE_TURNS = re.compile(r"(user|assistant|question|answer|prompt|response)_2|follow_?up_\w+")
_BESIDE_TEXT = re.compile(
    r"(?!.*(title|headline|heading|name|path|file|subject|summary_of|parse)).*"
)
"""A second text may be what the model has to learn, but a title is not."""
_BESIDE_ANSWER = re.compile(
    r"(?!.*(seed|topic|tag|template|author|publisher|journal|venue|address|location|comment"
    r"|question|query))"
    rf"{_BESIDE_TEXT.pattern}"
)
"""Next to a question and its answer, these are details."""
_LIKE_ANSWER = re.compile(
    r".*(answer|response|output|solution|reply|completion|prediction|correct(ed|ion)|revision|draft"
    r"|final|negative|positive).*"
)
_VERDICT_NAME = re.compile(
    r"((is|was|human|user|customer|answer|response)_)*(verdict|judge?ment|evaluation|grading|quality"
    r"|rating|satisfaction|correctness|review|validation|ok|approval|bewertung|prüfung|freigabe"
    r"|korrekt|avis|valoración|valutazione|avaliação|oordeel|ocena|değerlendirme|оценка|评价|評価|평가"
    r"|betyg)"
)
_PERSONA = _names(
    "character",
    "scenario",
    "bot_description",
    "role_prompt",
    "task_prompt",
    "instructions",
)
_REASONING = (
    r"(explanations?|exp|rationales?|justification|thought_process|steps|thoughts?|think(ing)?"
    r"|\w+_(reasoning|thinking)|(solution|reasoning)_(steps|chain)"
    r"|(complex_)?cot|scratchpad"
    r"|chain_of_thought|reasoning(_\w+)?|analysis|thinking_\w+|reason)(_?\d)?"
)
_LABEL = re.compile("(?:" + "|".join(LABELS) + r")|(?:.*_)?(?:label|class)(?:_.*)?")
_SIGNS = (
    _Sign(
        (*_ANSWERING, *_CHATTING, "text"),
        re.compile(
            r"(.*_)?(rejected|reject|dispreferred|non_?preferred|worse|losing|incorrect|wrong)(_.*)?"
            r"|(negative|bad|poor|hallucinated)_(answer|response|output|completion)"
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
        re.compile(r"history|(chat|dialog|dialogue|conversation)_history|past(_\w+)?"
                   r"|(previous|prior|earlier|prev)_\w+|context_messages"),
        _is_answer,
    ),
    _Sign(
        (*_ANSWERING, *_CHATTING, *_LABELLED, "preference"),
        re.compile(_REASONING + r"|(chosen|rejected)_(reasoning|thinking|thoughts?)"),
        lambda cells: _is_varied_prose(cells) or (_is_list(cells) and _is_prose(cells)),
    ),
    _Sign(
        (*_ANSWERING, *_CHATTING, "text", "preference"),
        re.compile(r"tools|functions|(tool|function)_(definitions|descriptions?|list)"
                   r"|available_(tools|functions)|apis"),
        lambda cells: all(isinstance(cell, str | list | dict) for cell in cells),
    ),
    _Sign(
        ("text", *_LABELLED),
        _names("entities", "spans", "annotations", "ner", "tags", "ner_tags", "slots"),
        _is_list,
    ),
    _Sign(("text",), re.compile(".*"), _is_structure),
    _Sign(("text",), re.compile(".*"), _is_category),
    _Sign(_LABELLED, _names("aspect", "aspect_term", "entity"), _is_label),
    _Sign((*_ANSWERING, *_CHATTING), _BAD, _is_either),
    _Sign((*_ANSWERING, *_CHATTING), _MASK, bool),
    _Sign(_CHATTING, _names("labels"), _is_list),
    _Sign(("token_classification",), _names("intent", "sentiment", "label"), _is_label),
    _Sign(_CHATTING, _names(*_CONTEXTS_OF_CHATS), _is_prose),
    _Sign(("text", *_LABELLED), _LABEL, _is_label),
    _Sign((*_ANSWERING, *_CHATTING), _names("label", "labels"), _is_label),
    _Sign((*_ANSWERING, *_CHATTING), _names("weight", "loss_weight", "sample_weight", "train"),
          _is_scale),
    _Sign((*_ANSWERING, *_CHATTING), _BETTER_ANSWER, _is_varied_prose),
    _Sign((*_ANSWERING, *_CHATTING), _names("trajectory", "trace"), _is_structure),
    _Sign(_CHATTING, _names("intent", "sentiment"), _is_label),
    _Sign(_CHATTING, _names("summary", "note", "notes", "tldr"), _is_varied_prose),
    _Sign(_ANSWERING, _MORE_TURNS, _is_varied_prose),
    _Sign(_ANSWERING, _names(*_MORE_ANSWERS, *_CONTEXT_NAMES), _is_varied_prose),
    _Sign(_ANSWERING, _names(*_CONTEXT_NAMES), _is_structure),
    _Sign(("text",), _BESIDE_TEXT, _is_varied_prose),
    _Sign(_LABELLED, _BESIDE_TEXT, _is_told),
    _Sign((*_ANSWERING, "unpaired_preference"), _BESIDE_ANSWER, _is_told),
    _Sign((*_ANSWERING, "unpaired_preference"), _LIKE_ANSWER, _is_varied_prose),
    _Sign(_ANSWERING, _BESIDE_ANSWER, _are_told),
    _Sign((*_ANSWERING, *_CHATTING), _VERDICT_NAME, _is_graded),
    _Sign(_CHATTING, _PERSONA, _is_prose),
    _Sign(_LABELLED, _names(*_MORE_TEXTS), _is_varied_prose),
    _Sign(_LABELLED, _names(*ANSWERS), _is_prose),
    _Sign(_LABELLED, _names("paraphrases", "keyphrases", "keywords", "translations"), _is_list),
    _Sign(_CHATTING, re.compile(r"(expected|reference|gold|ideal)_\w+"), _is_varied_prose),
    _Sign(("preference",), _names(*_CONTEXT_NAMES), _is_varied_prose),
    _Sign(_WITHOUT_PICTURES, re.compile(".*"), lambda cells: all(map(looks_like_picture, cells))),
)  # fmt: skip


def is_detail_name(name: str) -> bool:
    """Return True for the name of a column that says where a row is from, such as `id` or `url`."""
    return _NEVER.fullmatch(name) is not None


def is_bad_name(name: str) -> bool:
    """Return True for a name that says that an answer is bad if it is true, such as `rejected`."""
    return _BAD.fullmatch(normalized(name)) is not None


def ask_about_unused(
    mappings: Sequence[ColumnMapping], columns: Sequence[str], rows: Sequence[dict[str, Any]]
) -> list[ColumnMapping]:
    """Return the mappings with what they leave out. One mapping gets alternatives that use it.

    Args:
        mappings: plausible mappings, the likeliest first.
        columns: the columns of the dataset.
        rows: its first rows.
    """
    rated = {
        mapping.columns["label"] for mapping in mappings if mapping.schema == "unpaired_preference"
    }
    asked = []
    for mapping in mappings:
        unrated = rated - set(mapping.columns.values())
        asked.append(replace(mapping, left_out=_left_out(mapping, columns, rows, unrated)))
    if len(asked) == 1 and (unused := list(asked[0].left_out)):
        for column in unused:
            for other in _alternatives(asked[0], column, columns, rows):
                asked.append(replace(other, left_out=_left_out(other, columns, rows)))
        if asked[0].schema == "text":  # the other column is rather what is learned
            asked = [*asked[1:], asked[0]]
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
    if _NEVER.fullmatch(name) and not _BAD.fullmatch(name) and not _MASK.fullmatch(name):
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
    if label and not _is_prose([row[column] for row in rows]):
        pairs = {(str(row.get(label)), str(row[column])) for row in rows}
        if len(pairs) == len({one for one, _ in pairs}) == len({other for _, other in pairs}):
            return True
    first = rows[:_ROWS_COMPARED]
    copies = 0
    for row in first:
        used = [text for name in mapping.columns.values() for text in _texts_in(row.get(name))]
        text = " ".join(_texts_in(row[column]))
        is_within = len(text) > 3 and any(
            text in one and len(text) >= _MIN_COPIED * len(one) for one in used
        )
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
    is_worse = _SIGNS[0].name.fullmatch(name)

    def with_role(role: str) -> ColumnMapping:
        ordered = {**used, role: column}
        names = [*roles(schema)[0], *roles(schema)[1]]
        return replace(mapping, columns={key: ordered[key] for key in names if key in ordered})

    def other(schema: Schema, **columns: str) -> ColumnMapping:
        return ColumnMapping(schema, columns)

    has_one_text = all(isinstance(cell, str) or message_turns(cell) for cell in cells)
    are_texts = all(isinstance(one, str) for cell in cells for one in listed(cell) or [None])
    is_context = "input" in optional and name in _CONTEXT_NAMES
    if not has_one_text and ((is_context and not are_texts) or is_worse):
        return
    if schema in _ANSWERING and "answer" in used and is_worse:
        yield other("preference", rejected=column, chosen=used["answer"], prompt=question)
    elif schema in _CHATTING and is_worse:
        yield other("preference", rejected=column, prompt=question)
    elif "choices" in optional and _SIGNS[1].name.fullmatch(name) and all(map(choices_of, cells)):
        yield with_role("choices")
    elif "history" in optional and _SIGNS[2].name.fullmatch(name):
        yield with_role("history")
    elif "reasoning" in optional and re.fullmatch(_REASONING, name):
        yield with_role("reasoning")
    elif "tools" in optional and _SIGNS[4].name.fullmatch(name):
        yield with_role("tools")
    elif "input" in optional and name in _CONTEXT_NAMES:
        yield with_role("input")
    elif "answer" in used and (name in _MORE_ANSWERS or _LIKE_ANSWER.fullmatch(name)):
        yield with_role("answer")
    elif schema == "text" and name in (*_QUESTION_NAMES, "input", "inputs"):
        yield other("prompt_completion", prompt=column, answer=used["text"])
    elif schema == "text" and _is_varied_prose(cells):
        yield other("prompt_completion", prompt=used["text"], answer=column)
    elif schema == "text" and _is_label(cells):
        yield other("text_classification", text=used["text"], label=column)
    elif schema in _LABELLED and _LABEL.fullmatch(name):
        yield with_role("label")
    elif schema == "text_classification" and name in (*ANSWERS, *MORE_ANSWERS):
        yield other("prompt_completion", prompt=used["text"], answer=column)
    elif schema == "text_classification" and name in _MORE_TEXTS:
        first, second = sorted((used["text"], column), key=list(columns).index)
        label = used["label"]
        yield other("text_pair_classification", first=first, second=second, label=label)
