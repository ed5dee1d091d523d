"""Exports in which a row is not one example, as rows with ordinary columns.

Trees of messages, exports of ChatGPT and of annotation tools, texts with several questions, tables
with one word a row, texts with a tag for each word, two answers with a choice, several answers,
choices in columns, and translations in one column.
"""

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from peft_space.data.arrow_store import ROWS
from peft_space.data.cells import as_bool, listed
from peft_space.data.choice_columns import has_choice_columns, have_keys, join_choices
from peft_space.data.column_mapping import normalized
from peft_space.data.exports import (
    Numbered,
    Row,
    accepted_by_prodigy,
    is_of_ai_studio,
    is_of_argilla,
    is_of_chatgpt,
    is_of_dataturks,
    is_of_faq_page,
    is_of_label_studio,
    is_of_prodigy,
    is_of_viewer,
    is_stored_completion,
    is_wrapped,
    objects_in,
    read_ai_studio,
    read_argilla,
    read_chatgpt,
    read_dataturks,
    read_faq_page,
    read_label_studio,
    read_stored_completion,
    read_viewer,
    read_wrapped,
)
from peft_space.data.messages import is_answer, is_role
from peft_space.data.table import Table
from peft_space.storage.content_cache import get_or_create

_VERSION = "11"
"""Change it when rows are restructured differently, so that cached rows are not used again."""
_SAMPLE_ROWS = 20
_BATCH_ROWS = 2_000


@dataclass(frozen=True)
class Form:
    """A way to store examples, and how they become rows."""

    note: str
    """Says how the rows are read; `{before}` and `{after}` are numbers of rows."""
    matches: Callable[[Row], bool]
    convert: Callable[[Iterator[Numbered]], Iterator[Numbered]]
    suits: Callable[[Sequence[Row]], bool] = bool
    """True if the first rows, which all match, have this form together."""


def by_row(note: str, matches: Callable[[Row], bool], read: Callable[[Row], Row]) -> Form:
    """Return a form in which each row is read alone. Rows that do not match stay as they are."""

    def convert(rows: Iterator[Numbered]) -> Iterator[Numbered]:
        for number, row in rows:
            yield number, read(row) if matches(row) else row

    return Form(note, matches, convert)


def form_of(rows: Sequence[Row]) -> Form | None:
    """Return the form of the first rows of a file, or None if they are ordinary rows."""
    first = rows[:_SAMPLE_ROWS]
    for form in _FORMS:
        if first and all(map(form.matches, first)) and form.suits(first):
            return form
    return None


def restructure(table: Table) -> Table:
    """Return the table, or a table of the examples that its rows contain."""
    ends = [begin for _, begin in table.begins[1:]] + [table.num_rows]
    files = [(name, begin, end) for (name, begin), end in zip(table.begins, ends, strict=True)]
    forms = {
        name: form_of([row for _, row in table.rows(begin, min(end, begin + _SAMPLE_ROWS))])
        for name, begin, end in files
    }
    if not any(forms.values()):
        return table
    key = hashlib.sha256(json.dumps([_VERSION, table.key]).encode()).hexdigest()
    write = functools.partial(_write, table, files, forms)
    folder = get_or_create("rows", key, write)
    about = json.loads((folder / "table.json").read_text(encoding="utf-8"))
    begins = [(name, before) for name, before in about.pop("begins")]
    return Table(
        table.source, table.sha256, key, path=folder / "rows.arrow", begins=begins,
        pictures=table.pictures, pictures_folder=table.pictures_folder, **about,
    )  # fmt: skip


def _write(
    table: Table, files: list[tuple[str, int, int]], forms: dict[str, Form | None], folder: Path
) -> None:
    """Write rows.arrow and table.json into `folder`."""
    columns: dict[str, None] = {}
    notes, begins, count = list(table.notes), [], 0
    with (
        pa.OSFile(str(folder / "rows.arrow"), "wb") as file,
        pa.ipc.new_file(file, ROWS) as writer,
    ):
        for name, begin, end in files:
            begins.append((name, count))
            form, rows = forms[name], table.rows(begin, end)
            batch: list[tuple[int, str]] = []
            for number, row in form.convert(rows) if form else rows:
                columns.update(dict.fromkeys(row))
                batch.append((number, json.dumps(row, ensure_ascii=False)))
                if len(batch) == _BATCH_ROWS:
                    writer.write_batch(_record_batch(batch))
                    count, batch = count + len(batch), []
            if batch:
                writer.write_batch(_record_batch(batch))
                count += len(batch)
            if form:
                after = f"{count - begins[-1][1]:,}"
                notes.append(form.note.format(before=f"{end - begin:,}", after=after))
    about = {"columns": list(columns), "num_rows": count, "notes": notes, "begins": begins}
    (folder / "table.json").write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")


def _record_batch(rows: list[tuple[int, str]]) -> pa.RecordBatch:
    numbers, texts = zip(*rows, strict=True)
    return pa.record_batch([pa.array(numbers, pa.int64()), pa.array(texts)], schema=ROWS)


# Trees of messages, as OpenAssistant stores them


@dataclass
class _Node:
    """A message of a tree."""

    number: int
    """The row of the message."""
    message: Row
    rank: float | None
    parent: "_Node | None" = None
    children: list["_Node"] = field(default_factory=list)

    def path(self) -> list["_Node"]:
        """Return the messages from the first of the tree to this one."""
        nodes = [self]
        while nodes[-1].parent is not None:
            nodes.append(nodes[-1].parent)
        return nodes[::-1]


def _node(number: int, row: Row) -> _Node:
    try:
        rank = float(row["rank"])
    except (KeyError, TypeError, ValueError):
        rank = None
    return _Node(number, {"role": row.get("role"), "content": row.get("text")}, rank)


def _is_message_of_tree(row: Row) -> bool:
    return {"message_id", "role", "text"} <= set(row) and "parent_id" in row


def _threads_of_rows(rows: Iterator[Numbered]) -> Iterator[Numbered]:
    parents: dict[str, Any] = {}
    nodes: dict[str, _Node] = {}
    for number, row in rows:
        if not as_bool(row.get("deleted")):
            name = str(row.get("message_id") or number)
            nodes[name], parents[name] = _node(number, row), row.get("parent_id")
    for name, node in nodes.items():
        parent = None if parents[name] is None else nodes.get(str(parents[name]))
        if parent is not None:
            node.parent = parent
            parent.children.append(node)
    for node in nodes.values():
        if node.parent is None:
            yield from _threads(node)


def _is_tree(row: Row) -> bool:
    prompt = row.get("prompt")
    return isinstance(prompt, dict) and isinstance(prompt.get("replies"), list)


def _threads_of_trees(rows: Iterator[Numbered]) -> Iterator[Numbered]:
    for number, row in rows:
        if not _is_tree(row):
            yield number, row
            continue
        root = _node(number, row["prompt"])
        waiting = [(root, row["prompt"])]
        while waiting:
            node, message = waiting.pop()
            for reply in objects_in(message.get("replies")):
                child = _node(number, reply)
                child.parent = node
                node.children.append(child)
                waiting.append((child, reply))
        yield from _threads(root)


def _threads(root: _Node) -> Iterator[Numbered]:
    """Yield the best-ranked thread of a tree, or without ranks each thread, up to an answer."""
    leaves, waiting = [], [root]
    while waiting:
        node = waiting.pop()
        children = node.children
        if any(child.rank is not None for child in children):
            ranks = [float("inf") if child.rank is None else child.rank for child in children]
            children = [children[ranks.index(min(ranks))]]
        waiting += children[::-1]
        if not children:
            leaves.append(node)
    seen = set()
    for leaf in leaves:
        path = leaf.path()
        while len(path) > 1 and path[-1].message["role"] != "assistant":
            path.pop()
        if id(path[-1]) not in seen:
            seen.add(id(path[-1]))
            yield path[-1].number, {"messages": [node.message for node in path]}


# Texts with several questions: articles with paragraphs, as SQuAD stores them, and lists

_QUESTION_LISTS = ("qas", "qa", "qa_pairs", "qa_list", "question_answer_pairs", "qna", "faqs")
_PASSAGES = ("context", "passage", "story", "paragraph", "document", "text", "article", "content")


def _is_article(row: Row) -> bool:
    parts = row.get("paragraphs")
    return (
        isinstance(parts, list)
        and bool(parts)
        and all(isinstance(part, dict) and isinstance(part.get("qas"), list) for part in parts)
    )


def _questions(rows: Iterator[Numbered]) -> Iterator[Numbered]:
    number = 0
    for _, row in rows:
        if not _is_article(row):
            number += 1
            yield number, row
            continue
        for part in row["paragraphs"]:
            for question in objects_in(part["qas"]):
                number += 1
                answers = listed(question.get("answers")) or []
                texts = [one.get("text") if isinstance(one, dict) else one for one in answers]
                cells = {"question": question.get("question"), "context": part.get("context")}
                known = {"question", "context", "answers", "qas", "id"}
                rest = {key: value for key, value in (part | question).items() if key not in known}
                cells |= {"answers": {"text": texts}, "title": row.get("title")}
                yield number, rest | cells


def _has_question_list(row: Row) -> bool:
    name = next((name for name in _QUESTION_LISTS if row.get(name)), "")
    pairs = listed(row.get(name)) or []
    return (
        bool(pairs)
        and any(isinstance(row.get(one), str) for one in _PASSAGES)
        and all(isinstance(one, dict) and {"question", "answer"} <= one.keys() for one in pairs)
    )


def _pairs_in_lists(rows: Iterator[Numbered]) -> Iterator[Numbered]:
    number = 0
    for _, row in rows:
        name = next((name for name in _QUESTION_LISTS if row.get(name)), None)
        rest = {key: value for key, value in row.items() if key != name}
        pairs = objects_in(listed(row.get(name))) if name else []
        for pair in pairs or [{}]:
            number += 1
            yield number, {**rest, **pair}


_VARIANTS = ("patterns", "questions", "utterances", "examples", "training_phrases")
_INTENTS = ("tag", "intent", "name")
_VARIANT_ANSWERS = ("responses", "answer", "response", "answers")
_BESIDE_VARIANTS = {
    *_VARIANTS, *_INTENTS, *_VARIANT_ANSWERS, "id", "source", "metadata", "context", "context_set",
    "context_filter", "lang", "language", "entities", "slots", "action", "priority", "dialog",
}  # fmt: skip
"""Columns of such rows. A row with others, such as a question, is not one of them."""


def _variants_of(row: Row) -> tuple[str, list[str]] | None:
    """Return the column of several ways to ask the same, and these; or None."""
    for name in _VARIANTS:
        texts = listed(row.get(name)) or []
        if texts and all(isinstance(text, str) for text in texts):
            others = [one for one in (*_INTENTS, *_VARIANT_ANSWERS) if row.get(one)]
            lists = [listed(row[one]) or [] for one in others]
            # as many answers as questions are the turns of a dialogue
            is_parallel = name == "questions" and len(texts) in map(len, lists)
            is_definition = name == "examples" and not {"tag", "intent"} & row.keys()
            return (name, texts) if others and not is_parallel and not is_definition else None
    return None


def _has_variants(row: Row) -> bool:
    has_passage = any(isinstance(row.get(name), str) for name in _PASSAGES)
    has_name = any(name in row for name in _VARIANTS)
    return has_name and not has_passage and row.keys() <= _BESIDE_VARIANTS


def _are_variants(rows: Sequence[Row]) -> bool:
    """Return True if rows have several ways to ask, or none yet."""
    names = [name for row in rows for name in _VARIANTS if row.get(name)]
    return any(_variants_of(row) for row in rows) and all(
        _variants_of(row) or not row.get(names[0]) for row in rows
    )


def _rows_of_variants(rows: Iterator[Numbered]) -> Iterator[Numbered]:
    """Yield a row for each way to ask: its text, its intent, and the first answer."""
    number = 0
    for _, row in rows:
        name, texts = _variants_of(row) or ("", [])
        if not texts:
            number += 1
            yield number, row
            continue
        rest = {key: value for key, value in row.items() if key != name}
        intent = next((one for one in _INTENTS if isinstance(rest.get(one), str)), None)
        answer = next((one for one in _VARIANT_ANSWERS if rest.get(one)), None)
        asked: Row = {"intent": rest.pop(intent)} if intent else {}
        if answer:
            told = rest.pop(answer)
            asked["response"] = listed(told) or told
            if isinstance(asked["response"], list):
                more, asked["response"] = asked["response"][1:], asked["response"][0]
                rest |= {"other responses": more} if more else {}
        for text in texts:
            number += 1
            yield number, {"text" if intent else "question": text, **asked, **rest}


def _texts_of(cell: Any) -> list[str] | None:
    """Return the texts of a list of texts, or of objects such as those of CoQA."""
    if isinstance(cell, dict):
        cell = cell.get("input_text")
    cells = [one.get("input_text") if isinstance(one, dict) else one for one in listed(cell) or []]
    texts = [cell for cell in cells if isinstance(cell, str)]
    return texts if texts and len(texts) == len(cells) else None


def _has_dialogue_about_text(row: Row) -> bool:
    questions, answers = _texts_of(row.get("questions")), _texts_of(row.get("answers"))
    has_passage = any(isinstance(row.get(name), str) for name in _PASSAGES)
    return bool(questions and answers and len(questions) == len(answers)) and has_passage


def _dialogue_about_text(row: Row) -> Row:
    name = next(name for name in _PASSAGES if isinstance(row.get(name), str))
    used = (name, "questions", "answers")
    rest = {key: value for key, value in row.items() if key not in used}
    questions, answers = _texts_of(row["questions"]) or [], _texts_of(row["answers"]) or []
    questions[0] = f"{row[name]}\n\n{questions[0]}"
    turns: list[Row] = []
    for question, answer in zip(questions, answers, strict=True):
        turns.append({"role": "user", "content": question})
        turns.append({"role": "assistant", "content": answer})
    return {"messages": turns, **rest}


# Tables with one word a row


def _word_columns(row: Row) -> dict[str, str] | None:
    """Return the columns of sentence, word, tag and part of speech, or None."""
    names = {re.sub(r"[\s_#-]+", "", name.lower()): name for name in row}
    known = {
        "sentence": ("sentence", "sentenceid", "sentid", "sentencenumber"),
        "word": ("word", "token"),
        "tag": ("tag", "nertag", "ner", "label"),
        "pos": ("pos", "postag"),
        "document": ("docid", "documentid", "document", "doc", "file", "filename"),
    }
    found = {
        role: next((names[one] for one in options if one in names), None)
        for role, options in known.items()
    }
    if not found["sentence"] or not found["word"] or not found["tag"]:
        return None
    return {role: name for role, name in found.items() if name}


def _is_word(row: Row) -> bool:
    columns = _word_columns(row)
    return columns is not None and " " not in str(row[columns["word"]] or "").strip()


def _sentences(rows: Iterator[Numbered]) -> Iterator[Numbered]:
    begin, current = 0, None
    lists: dict[str, list[Any]] = {"tokens": [], "tags": [], "pos_tags": []}
    for number, row in rows:
        columns = _word_columns(row) or {}
        sentence = row.get(columns.get("sentence", ""))
        if sentence not in (None, ""):
            sentence = (row.get(columns.get("document", "")), sentence)
        if sentence not in (None, "") and sentence != current:
            if lists["tokens"]:
                yield begin, {name: cells for name, cells in lists.items() if cells}
            begin, current, lists = number, sentence, {name: [] for name in lists}
        for name, role in (("tokens", "word"), ("tags", "tag"), ("pos_tags", "pos")):
            if role in columns:
                lists[name].append(str(row.get(columns[role]) or ""))
        for name in row.keys() - set(columns.values()) - {"tokens", "tags", "pos_tags"}:
            lists.setdefault(name, []).append(row[name])
    if lists["tokens"]:
        yield begin, {name: cells for name, cells in lists.items() if cells}


# One message a row

_THREADS = (
    "conversation_id", "conv_id", "thread_id", "dialogue_id", "dialog_id", "chat_id", "session_id",
    "ticket_id", "conversation",
)  # fmt: skip
_MAX_NAMES = 6
_ROLE_NAMES = ("role", "speaker", "author", "sender", "from", "author_role", "speaker_role")
_CONTENT_NAMES = ("content", "message", "text", "body", "utterance", "value")


def _message_columns(row: Row) -> tuple[str, str, str] | None:
    """Return the columns of conversation, role and content of a message, or None."""
    by_name = {normalized(name): name for name in row}
    found = [
        next((by_name[name] for name in names if name in by_name), None)
        for names in (_THREADS, _ROLE_NAMES, _CONTENT_NAMES)
    ]
    if not found[0] or not found[1] or not found[2]:
        return None
    return found[0], found[1], found[2]


def _is_one_message(row: Row) -> bool:
    columns = _message_columns(row)
    if columns is None or not all(isinstance(row[name], str | int) for name in columns[:2]):
        return False
    return isinstance(row[columns[2]], str)


def _have_answers(rows: Sequence[Row]) -> bool:
    """Return True if the assistant, or someone who may be it, speaks in longer conversations."""
    columns = _message_columns(rows[0]) or ("", "", "")
    roles = {row.get(columns[1]) for row in rows}
    threads = {str(row.get(columns[0])) for row in rows}
    named = 2 <= len(roles) <= _MAX_NAMES and not any(map(is_role, roles))
    return len(threads) < len(rows) and (named or any(map(is_answer, roles)))


def _conversations_of_messages(rows: Iterator[Numbered]) -> Iterator[Numbered]:
    threads: dict[str, tuple[int, list[Row]]] = {}
    for number, row in rows:
        columns = _message_columns(row)
        if columns is None:
            yield number, row
            continue
        thread, role, content = columns
        rest = {name: cell for name, cell in row.items() if name not in columns and cell != ""}
        turn = {**rest, "role": row[role], "content": row[content]}
        threads.setdefault(str(row[thread]), (number, []))[1].append(turn)
    for number, turns in threads.values():
        yield number, {"messages": _in_order(turns)}


_ORDERS = (
    "turn", "turn_id", "turn_index", "turn_number", "turn_idx", "message_index", "message_number",
    "index", "idx", "seq", "sequence", "position", "order", "timestamp", "created_at", "sent_at",
    "time", "datetime", "date",
)  # fmt: skip


def _in_order(turns: list[Row]) -> list[Row]:
    """Return the messages in the order of their numbers or times, if they have these."""
    for name in _ORDERS:
        cells = [turn.get(name) for turn in turns]
        numbers = [_number(cell) for cell in cells]
        keys: list[Any] = numbers if None not in numbers else list(map(str, cells))
        is_iso = all(re.match(r"\d{4}-\d\d-\d\d", str(cell)) for cell in cells)
        if (None not in numbers or is_iso) and len(set(keys)) > 1:
            return [turns[at] for at in sorted(range(len(turns)), key=keys.__getitem__)]
    return turns


# Texts with a tag for each word

_TEXTS_OF_WORDS = ("sentence", "text", "words", "tokens", "utterance")
_TAGS_OF_WORDS = (
    "word_labels", "ner_tags", "tags", "bio_tags", "iob_tags", "ner", "slots", "pos_tags", "labels",
)  # fmt: skip
_TAG = re.compile(r"O|[BIESLUM][-_].+")


def _tagged_words(row: Row) -> tuple[str, str, list[str], list[str]] | None:
    """Return the columns of a text and of its tags, its words, and the tag of each; or None."""
    by_name = {re.sub(r"[\s-]+", "_", name.lower()): name for name in row}
    text = next((by_name[name] for name in _TEXTS_OF_WORDS if name in by_name), None)
    if text is None or not isinstance(row[text], str) or listed(row[text]) is not None:
        return None
    words = row[text].split()
    for name in _TAGS_OF_WORDS:
        cell = row.get(by_name.get(name, ""))
        tags = listed(cell)
        if tags is None and isinstance(cell, str):
            tags = [tag.strip() for tag in cell.split("," if "," in cell else None)]
        if tags and all(_TAG.fullmatch(str(tag)) for tag in tags):
            return text, by_name[name], words, list(map(str, tags))
    return None


def _has_tagged_words(row: Row) -> bool:
    return _tagged_words(row) is not None


def _words_with_tags(row: Row) -> Row:
    found = _tagged_words(row)
    assert found is not None
    text, tags_column, words, tags = found
    rest = {name: cell for name, cell in row.items() if name not in (text, tags_column)}
    return {"tokens": words, "tags": tags, **rest}


# Two answers, and which of them is better

_PROMPTS = ("prompt", "question", "instruction", "history", "post", "input")
_TIES = ("tie", "tie (bothbad)", "both_bad", "none", "")
_FIRST = ("a", "model_a", "first", "response_a", "answer_a", "output_a")
_SECOND = ("b", "model_b", "second", "response_b", "answer_b", "output_b")
_BASES = ("response", "answer", "conversation", "human_ref", "completion", "output")
_CHOICES = ("better_response_id", "winner", "preference", "preferred", "choice")


def _two_answers(row: Row) -> tuple[str, str] | None:
    """Return the columns of two answers, whose names differ in their last character, or None."""
    names = {name.lower(): name for name in row}
    for base in _BASES:
        for one, two in (("0", "1"), ("1", "2"), ("a", "b")):
            first, second = names.get(f"{base}_{one}"), names.get(f"{base}_{two}")
            if first and second and row[first] and row[second]:
                return first, second
    return None


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _better(row: Row, pair: tuple[str, str]) -> int | None:
    """Return 0 or 1 for the better answer, -1 for a tie, None if the row does not say it."""
    cells = {name.lower(): value for name, value in row.items()}
    ends = [name.rsplit("_", 1)[1].lower() for name in pair]
    for name in _CHOICES:
        value = str(cells.get(name, "?")).strip().lower().removesuffix(".0")
        if value in _TIES:
            return -1
        for number, words in enumerate((_FIRST, _SECOND)):
            if value in (ends[number], pair[number].lower(), *words):
                return number
    if (strength := _number(cells.get("preference_strength"))) is not None:
        return -1 if strength == 0 else int(strength > 0)
    if "human_ref_a" in cells and str(cells.get("labels")) in ("0", "1"):
        return 1 - int(str(cells["labels"]))
    winners = [str(cells.get(f"winner_model_{end}")) for end in ends]
    if winners != ["None", "None"]:
        return winners.index("1") if "1" in winners else -1
    first, second = (_number(cells.get(f"score_{end}")) for end in ends)
    if first is None or second is None:
        return None
    return -1 if first == second else int(second > first)


def _is_comparison(row: Row) -> bool:
    pair = _two_answers(row)
    known = pair is not None and _better(row, pair) is not None
    return known and not {"chosen", "rejected"} & set(row)


def _preference(row: Row) -> Row:
    pair = _two_answers(row)
    better = _better(row, pair) if pair else None
    assert pair is not None
    assert better is not None
    rest = {name: value for name, value in row.items() if name not in pair}
    name = next((name for name in _PROMPTS if name in rest), None)
    prompt = rest.pop(name) if name else None
    prompt = prompt.get("full_text") if isinstance(prompt, dict) else prompt
    cells = [prompt, *(None if better < 0 else row[pair[at]] for at in (better, 1 - better))]
    lists = [listed(cell) or [] for cell in cells]
    if all(texts and isinstance(texts[0], str) for texts in lists):
        cells = _of_turns(*lists) or cells  # as Kaggle has the arena's conversations
    prompt, chosen, rejected = cells
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **rest}


def _of_turns(questions: list[Any], better: list[Any], worse: list[Any]) -> list[Any] | None:
    """Return prompt, better and worse answer of conversations with the same questions, or None."""
    if not len(questions) == len(better) == len(worse):
        return None
    if len(questions) == 1:
        return [questions[0], better[0], worse[0]]
    answers = []
    for texts in (better, worse):
        turns: list[Row] = [{"role": "assistant", "content": texts[0]}]
        for question, answer in zip(questions[1:], texts[1:], strict=True):
            turns += [{"role": "user", "content": question}]
            turns += [{"role": "assistant", "content": answer}]
        answers.append(turns)
    return [questions[0], *answers]


# Several answers with ranks or scores

_ANSWER_LISTS = ("completions", "answers", "responses", "outputs", "generations", "candidates")
_ANSWER_TEXTS = ("response", "answer", "completion", "output", "text", "content")
_RATED_BY = ("ratings", "scores", "ranks", "rewards")
_SCORES = ("overall_score", "score", "pm_score", "rating", "fine-grained_score", "reward")


def _rated_answers(row: Row) -> tuple[str, list[tuple[float, str]]] | None:
    """Return the column of several answers, and each with its score: more is better; or None."""
    for name in _ANSWER_LISTS:
        found = []
        cells = listed(row.get(name)) or []
        for key in _RATED_BY:
            numbers = [_number(one) for one in listed(row.get(key)) or []]
            if len(numbers) == len(cells) and all(isinstance(one, str) for one in cells):
                sign = -1 if key == "ranks" else 1
                found = [
                    (sign * number, text)
                    for number, text in zip(numbers, cells, strict=True)
                    if number is not None
                ]
                if len(found) == len(cells) > 1:
                    return name, found
        found = []
        for one in (items := objects_in(cells)):
            text = next((one[key] for key in _ANSWER_TEXTS if isinstance(one.get(key), str)), None)
            score = next((s for key in _SCORES if (s := _number(one.get(key))) is not None), None)
            if score is None and (rank := _number(one.get("rank"))) is not None:
                score = -rank
            if text is not None and score is not None:
                found.append((score, text))
        if len(found) > 1 and len(found) == len(items):
            return name, found
    return None


def _is_rated(row: Row) -> bool:
    has_prompt = any(isinstance(row.get(name), str) for name in _PROMPTS)
    return has_prompt and _rated_answers(row) is not None


def _best_and_worst(row: Row) -> Row:
    rated = _rated_answers(row)
    assert rated is not None
    column, answers = rated
    rest = {name: value for name, value in row.items() if name not in (column, *_RATED_BY)}
    name = next((name for name in _PROMPTS if name in rest), None)
    prompt = rest.pop(name) if name else None
    best, worst = (choose(answers, key=lambda one: one[0]) for choose in (max, min))
    pair = (best[1], worst[1]) if best[0] > worst[0] else (None, None)
    return {"prompt": prompt, "chosen": pair[0], "rejected": pair[1], **rest}


# Several better or worse answers


def _answer_lists(row: Row) -> list[list[str]] | None:
    """Return the texts of the better and the worse answers, if there are several; or None."""
    lists = []
    for name in ("chosen", "rejected"):
        cell = row.get(name)
        texts = [cell] if isinstance(cell, str) and cell else cell
        if not isinstance(texts, list) or not texts:
            return None
        if not all(isinstance(text, str) for text in texts):
            return None
        lists.append(texts)
    return lists if max(map(len, lists)) > 1 else None


def _has_answer_lists(row: Row) -> bool:
    return _answer_lists(row) is not None


def _pairs_of_answers(rows: Iterator[Numbered]) -> Iterator[Numbered]:
    number = 0
    for _, row in rows:
        lists = _answer_lists(row)
        pairs = list(itertools.product(*lists)) if lists else []
        for more in [{"chosen": a, "rejected": b} for a, b in pairs] or [{}]:
            number += 1
            yield number, row | more


# Translations


def _is_translation(row: Row) -> bool:
    cell = row.get("translation")
    return (
        isinstance(cell, dict)
        and len(cell) > 1
        and all(isinstance(text, str) for text in cell.values())
    )


def _translation(row: Row) -> Row:
    texts = row["translation"]
    rest = {key: value for key, value in row.items() if key != "translation"}
    return {f"{key} of row" if key in texts else key: rest[key] for key in rest} | texts


_FORMS = (
    Form(
        "The {before} rows are messages of trees: {after} conversations are read, which are the "
        "best-ranked thread of each tree, or each thread if there are no ranks. "
        "Only the role and the text of a message are used.",
        _is_message_of_tree, _threads_of_rows,
    ),
    Form(
        "The {before} rows are trees of messages: {after} conversations are read, which are the "
        "best-ranked thread of each tree, or each thread if there are no ranks. "
        "Only the role and the text of a message are used.",
        _is_tree, _threads_of_trees,
    ),
    by_row(
        "The file is an export of ChatGPT: of each conversation, the branch that was open last is "
        "read, without hidden messages.",
        is_of_chatgpt, read_chatgpt,
    ),
    by_row(
        "The file is an export of Label Studio: of each task, the annotation that is marked as "
        "ground truth is read, or the first one. Predictions are not read.",
        is_of_label_studio, read_label_studio,
    ),
    by_row("The file is an export of Dataturks.", is_of_dataturks, read_dataturks),
    by_row(
        "The file is an export of Argilla: of each question, the first submitted response is "
        "read.",
        is_of_argilla, read_argilla,
    ),
    Form(
        "The {before} rows are articles: the {after} questions about them are the rows, and are "
        "numbered in order.",
        _is_article, _questions,
    ),
    Form(
        "Each of the {before} rows has several questions: the {after} questions are the rows, and "
        "are numbered in order.",
        _has_question_list, _pairs_in_lists,
    ),
    by_row(
        "The questions about a text are one conversation, which begins with the text.",
        _has_dialogue_about_text, _dialogue_about_text,
    ),
    Form(
        "Each of the {before} rows has several ways to ask the same: these are {after} rows, and "
        "are numbered in order.",
        _has_variants, _rows_of_variants, _are_variants,
    ),
    by_row("Each row is the object inside of a record.", is_wrapped, read_wrapped),
    by_row(
        "Each row is a stored completion: the messages of the request, and the first answer.",
        is_stored_completion, read_stored_completion,
    ),
    by_row("The file is a FAQ page of schema.org.", is_of_faq_page, read_faq_page),
    Form(
        "The {before} rows are words: the {after} sentences are the rows, and have the number of "
        "their first word.",
        _is_word, _sentences,
    ),
    by_row(
        "The file is an export of Google AI Studio.",
        is_of_ai_studio, read_ai_studio,
    ),
    Form(
        "The {before} rows are messages: {after} conversations are read.",
        _is_one_message, _conversations_of_messages, _have_answers,
    ),
    Form(
        "Of the {before} rows, the {after} that were accepted in Prodigy are read.",
        is_of_prodigy, accepted_by_prodigy,
    ),
    by_row("The rows are those of the Hub's dataset viewer.", is_of_viewer, read_viewer),
    by_row("The words of each text have a tag each.", _has_tagged_words, _words_with_tags),
    by_row(
        "Each row has two answers, and says which is better. Rows without a better one are left "
        "out.",
        _is_comparison, _preference,
    ),
    by_row(
        "Each row has several answers with scores or ranks. The app reads the best and the worst "
        "answer, and skips rows with a tie.",
        _is_rated, _best_and_worst,
    ),
    Form(
        "The {before} rows have several better or worse answers: each pair of them is one of "
        "{after} rows, which are numbered in order.",
        _has_answer_lists, _pairs_of_answers,
    ),
    Form(
        "The choices of a question are listed under it, and the right one is the answer.",
        has_choice_columns, join_choices, have_keys,
    ),
    by_row("Each language of the translations is a column.", _is_translation, _translation),
)  # fmt: skip
