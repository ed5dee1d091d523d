"""Normalized records: a row of any schema as a conversation, text, preference, label or tags."""

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_space.data.cells import (
    as_rating,
    choices_of,
    conversation_in,
    is_segments,
    listed,
    message_turns,
    parse_literal,
    prompt_in,
    spans_of,
    turns_of,
    without_end,
)
from peft_space.data.column_mapping import ColumnMapping
from peft_space.data.messages import (
    BadRow,
    Clean,
    FixableRow,
    Message,
    answer_message,
    check_encodable,
    check_turns,
    has_speaker,
    is_message,
    is_role,
    parse_calls,
    parse_messages,
    parse_tools,
    text_of,
    tools_in,
    with_numbers,
)
from peft_space.data.pictures import Opener, place_pictures


@dataclass(frozen=True)
class Conversation:
    """Messages that end with the assistant's answer."""

    row: int
    messages: list[Message]
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Text:
    """A text to continue."""

    row: int
    text: str
    keep_control_tokens: bool | None = None
    """True if special tokens of the model in the text are these tokens, and not letters."""
    trained: list[tuple[int, int]] | None = None
    """Spans of characters that are trained; None for the whole text."""


@dataclass(frozen=True)
class Preference:
    """A prompt with a chosen and a rejected answer."""

    row: int
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class UnpairedPreference:
    """A conversation whose last answer is rated good or not."""

    row: int
    messages: list[Message]
    good: bool
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class TextClassification:
    """A text, or a pair of texts, and its label."""

    row: int
    text: str
    label: str
    second: str | None = None


@dataclass(frozen=True)
class TokenClassification:
    """Tokens and the tag of each."""

    row: int
    tokens: list[str]
    tags: list[str]


Row = (
    Conversation | Text | Preference | UnpairedPreference | TextClassification | TokenClassification
)
_KINDS: dict[str, type[Row]] = {kind.__name__: kind for kind in Row.__args__}


@dataclass(frozen=True)
class Problem:
    """The reason why a row, identified by its number in the file, is left out."""

    row: int
    problem: str


def to_json(row: Row) -> str:
    """Return a row as one line of JSON, which `from_json` reads."""
    values = {key: value for key, value in vars(row).items() if value is not None}
    del values["row"]
    return json.dumps({"kind": type(row).__name__, **values}, ensure_ascii=False)


def from_json(number: int, line: str, pictures: Path | None = None) -> Row:
    """Return the row that `to_json` wrote.

    Args:
        number: of the row.
        line: what `to_json` returned.
        pictures: the folder of the pictures, whose paths take the place of their digests.
    """
    values = json.loads(line)
    row = _KINDS[values.pop("kind")](row=number, **values)
    if pictures is not None and isinstance(row, Conversation):
        for message in row.messages:
            if "images" in message:
                paths = [str(pictures / f"{digest}.png") for digest in message["images"]]
                message["images"] = paths
    return row


def pictures_of(row: Row) -> list[str]:
    """Return the pictures of a row, in their order."""
    messages = row.messages if isinstance(row, Conversation) else []
    return [picture for message in messages for picture in message.get("images", [])]


def normalize_record(
    number: int,
    row: dict[str, Any],
    column_mapping: ColumnMapping,
    opener: Opener | None = None,
) -> Row:
    """Normalize a row and apply the fixes of the column mapping.

    Args:
        number: of the row.
        row: its cells.
        column_mapping: how they are read.
        opener: opens the pictures of the row. Without it they stay references.

    Raises:
        BadRow: a model cannot learn from the row.
    """
    if opener:
        opener.kinds, opener.opened = [], []
    column_mapping = column_mapping.of_row(row)
    columns = column_mapping.columns
    clean: Clean = _strip if "strip" in column_mapping.fixes else str

    def conversation() -> tuple[list[Message], list[dict[str, Any]] | None]:
        messages, tools = _messages(row, columns, clean, column_mapping.assistant)
        messages = place_pictures(messages, row.get(columns.get("images", "")))
        messages = check_turns(messages, column_mapping.fixes)
        return opener.open_row(messages) if opener else messages, parse_tools(tools)

    match column_mapping.schema:
        case "text":
            if is_segments(row.get(columns["text"])):
                return _segments(number, row[columns["text"]])
            text = clean(_text(row, columns["text"]))
            if not text.strip():
                raise BadRow("the text is empty")
            return Text(number, text, "keep_control_tokens" in column_mapping.fixes or None)
        case "text_classification" | "text_pair_classification":
            keeps_minus_one = "minus_one" in column_mapping.fixes
            return _text_classification(number, row, columns, clean, keeps_minus_one)
        case "token_classification":
            return _token_classification(number, row, columns)
        case "preference":
            return _without_pictures(_preference(number, row, columns, clean))
        case "unpaired_preference":
            good = as_rating(row.get(columns["label"]), column_mapping.good_from)
            if good is None:
                raise BadRow(f"{columns['label']!r} does not say whether the answer is good")
            messages, tools = conversation()
            return _without_pictures(UnpairedPreference(number, messages, good, tools))
        case _:
            return Conversation(number, *conversation())


def _segments(number: int, cell: list[dict[str, Any]]) -> Text:
    """Return the text of segments, of which those with a true label are trained."""
    text, trained = "", []
    for segment in cell:
        begin = len(text)
        text += check_encodable(segment["text"])
        if segment["label"] and len(text) > begin:
            trained.append((begin, len(text)))
    if not trained:
        raise BadRow("none of its segments has a true label, so nothing of it is trained")
    return Text(number, text, keep_control_tokens=True, trained=trained)


def _without_pictures(row: "Preference | UnpairedPreference") -> Row:
    messages = row.messages if isinstance(row, UnpairedPreference) else row.prompt + row.chosen
    if any("images" in message for message in messages):
        raise BadRow("the row has a picture, and pictures are learned from questions and answers")
    return row


# Cells


def _text(row: dict[str, Any], column: str | None) -> str:
    """Return the text of a cell exactly as written; an absent cell is empty."""
    value = row.get(column) if column else None
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        raise BadRow(f"{column!r} is {_type_name(value)}, not text")
    return check_encodable(value)


def _type_name(value: Any) -> str:
    names = {bool: "true or false", dict: "an object", list: "a list", type(None): "empty"}
    return names.get(type(value), "a number")


_AROUND = re.compile(r"^[\s\u200b\ufeff]+|[\s\u200b\ufeff]+$")


def _strip(text: str) -> str:
    return _AROUND.sub("", text)


# Conversations

CAPTION_QUESTION = "What does the picture show?"
"""What is asked about a picture that has only a caption or a label."""
_QUESTIONS = ("instruction", "question", "prompt", "source")


def _messages(
    row: dict[str, Any], columns: dict[str, str], clean: Clean, assistant: str | None
) -> tuple[list[Message], Any]:
    """Return a conversation, and the tools that it may call as they are written."""
    messages = _system_message(row, columns, clean)
    tools = row.get(columns.get("tools", ""))
    if "messages" in columns:
        cell = row.get(columns["messages"])
        written = conversation_in(cell)
        parsed = parse_messages(written or cell, clean, assistant)
        if written and messages:
            messages[0]["content"] = messages[0]["content"].removeprefix("SYSTEM:").lstrip()
        if not parsed:
            raise BadRow(f"{columns['messages']!r} is not a list of messages")
        return messages + parsed, tools or tools_in(turns_of(cell) or [])
    if "caption" in columns:
        caption = _one_answer(row.get(columns["caption"]), columns["caption"])
        asked: Message = {"role": "user", "content": CAPTION_QUESTION}
        return [*messages, asked, answer_message(caption, clean)], tools
    question_column = next(columns[role] for role in _QUESTIONS if role in columns)
    answer_column = columns.get("answer") or columns["target"]
    messages += _history(row.get(columns.get("history", "")), clean)
    cell = unwrapped(row.get(question_column), question_column)
    questions = _as_messages(cell, clean)
    is_rendered = False
    if questions is None and isinstance(cell, str) and not {"input", "choices"} & set(columns):
        dialogue = _dialogue(cell, clean)
        questions = dialogue if dialogue and dialogue[-1]["role"] == "user" else None
        is_rendered = questions is not None and _is_rendered(cell)
    if questions is None:
        cell = structured(cell) or cell
        question = clean(_text({question_column: cell}, question_column))
        if (context := clean(_context(row.get(columns.get("input", ""))))).strip():
            question = f"{question}\n\n{context}"
        choices = choices_of(row.get(columns.get("choices", ""))) or []
        if choices:
            listing = "\n".join(f"{letter}. {text}" for letter, text in choices)
            question = f"{question}\n\n{listing}"
            row = row | {answer_column: _chosen(row.get(answer_column), choices)}
        questions = [{"role": "user", "content": question}]
    cell = unwrapped(row.get(answer_column), answer_column)
    answers = None if tools else _as_messages(cell, clean)
    if tools and (called := _called(cell)):
        answers = [{"role": "assistant", "content": "", "tool_calls": called}]
    if answers is None:
        answers = [answer_message(_one_answer(cell, answer_column), clean)]
    if is_rendered:
        answers = _without_ends(answers)
    thoughts = listed(row.get(columns.get("reasoning", "")))
    thought = _context(thoughts) if thoughts else _text(row, columns.get("reasoning"))
    if thought.strip():
        answers[-1] = answers[-1] | {"reasoning_content": check_encodable(thought.strip())}
    return [*messages, *questions, *answers], tools


def _context(cell: Any) -> str:
    """Return the text of a context: a text, or several with a blank line between them."""
    texts = listed(cell)
    if texts and all(isinstance(text, str) for text in texts):
        return check_encodable("\n\n".join(texts))
    return structured(cell) or _text({"context": cell}, "context")


def _as_messages(cell: Any, clean: Clean) -> list[Message] | None:
    """Return the messages in the cell of a question or an answer; None if it has a text."""
    inner = cell.get("messages") if isinstance(cell, dict) else cell
    turns = message_turns(inner)
    return parse_messages(cell, clean) if turns and all(map(is_message, turns)) else None


_OF_LANGSMITH = ("inputs", "outputs")
_TRIVIA_KEYS = {
    "value", "aliases", "normalized_aliases", "normalized_value", "type",
    "matched_wiki_entity_name", "normalized_matched_wiki_entity_name",
}  # fmt: skip
_SQUAD_KEYS = {
    "text", "answer_start", "answer_end", "answer_category", "span_start", "span_end", "a_id",
    "answer_id", "score",
}  # fmt: skip
_SEVERAL = re.compile(r".*(answers|solutions|contexts|passages|documents)", re.IGNORECASE)
_ACCEPTED = re.compile(rf"{_SEVERAL.pattern}|answer|ideal|references?|targets?", re.IGNORECASE)
"""Names of columns with several accepted answers, of which the first one is learned."""


def _is_of_squad(cell: Any) -> bool:
    """Return True for the answers of SQuAD: an object with a list of texts."""
    is_object = isinstance(cell, dict) and isinstance(cell.get("text"), list)
    return is_object and cell.keys() <= _SQUAD_KEYS


def _is_answer_of_squad(item: dict[str, Any]) -> bool:
    return isinstance(item.get("text"), str) and item.keys() <= _SQUAD_KEYS


def _written(cell: str, column: str) -> Any:
    """Return the object or list that a cell contains as text, as pandas writes it, or None.

    A list of texts in JSON can be an answer that the model learns to write, unless the column is
    named after several.
    """
    parsed = parse_literal(cell) if cell.lstrip()[:1] in ("{", "[") else None
    if isinstance(parsed, dict):
        return parsed
    kinds = {type(one) for one in parsed} if isinstance(parsed, list) else set()
    is_python = cell.lstrip().startswith("['")
    if kinds == {dict} or (kinds == {str} and (is_python or _SEVERAL.fullmatch(column))):
        return parsed
    return None


def unwrapped(cell: Any, column: str) -> Any:
    """Return the message or the text in an answer of an API, and any other cell unchanged.

    Chat completions have `choices`, Anthropic and Langfuse a message, the Responses API a list of
    items, LangSmith an object with one text, TriviaQA an object with a `value`.
    """
    if isinstance(cell, str):
        parsed = _written(cell, column)
        found = cell if parsed is None else unwrapped(parsed, column)
        is_json = found is parsed and re.match(r'\s*(\{\s*["}]|\[\s*\{\s*["}])', cell)
        return cell if is_json else found  # JSON is learned as it is written
    if isinstance(cell, list) and all(isinstance(item, dict) for item in cell):
        if cell and all(map(_is_answer_of_squad, cell)) and _ACCEPTED.fullmatch(column):
            return [item["text"] for item in cell]
        said = [item for item in cell if has_speaker(item)]
        right = [item for item in cell if item.get("correct", item.get("is_correct")) is True]
        if len(right) == 1 and isinstance(right[0].get("text"), str):
            return right[0]["text"]
        return said if said and any(item.get("type") == "message" for item in said) else cell
    if not isinstance(cell, dict):
        return cell
    choices = cell.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    message = cell.get("message")
    if isinstance(first, dict):
        is_of_api = {"index", "finish_reason", "logprobs"} & first.keys()
        message = first.get("message") or (first.get("text") if is_of_api else None)
    elif message is None and ("content" in cell or "parts" in cell):
        message = cell
    if isinstance(message, dict) and is_message(message):
        return [message]
    if isinstance(first, dict) and isinstance(message, str):
        return message
    if isinstance(cell.get("value"), str) and cell.keys() <= _TRIVIA_KEYS:
        return cell["value"]
    texts = list(cell.values())
    is_wrapped = column.lower() in _OF_LANGSMITH and len(texts) == 1 and isinstance(texts[0], str)
    return texts[0] if is_wrapped else cell


def structured(cell: Any) -> str | None:
    """Return an object, or a list of objects without messages, as JSON. Return None for others."""
    if isinstance(cell, dict):
        is_structured = not _is_of_squad(cell) and not isinstance(cell.get("messages"), list)
    else:
        objects = cell if isinstance(cell, list) else []
        is_structured = bool(objects) and all(isinstance(one, dict) for one in objects)
        is_structured = is_structured and not all(map(is_message, objects))
    return json.dumps(with_numbers(cell), ensure_ascii=False) if is_structured else None


def _one_answer(cell: Any, column: str) -> str:
    """Return the text of an answer. Of several accepted answers, the first one is learned."""
    if _is_of_squad(cell):
        cell = cell["text"]
        if not cell:
            raise BadRow("the question has no answer")
        return _text({column: cell[0]}, column)
    cell = structured(cell) or cell
    if cell == [] and _ACCEPTED.fullmatch(column):
        raise BadRow("the question has no answer")
    values = cell if isinstance(cell, list) else None  # a list in a text is an answer
    if values is not None and len(values) > 1 and not _ACCEPTED.fullmatch(column):
        raise BadRow(
            f"{column!r} is a list of {len(values)} texts, and a row has one answer. To prefer one "
            "of two answers, use the columns chosen and rejected"
        )
    return _text({column: values[0]} if values else {column: cell}, column)


def _chosen(cell: Any, choices: list[tuple[str, str]]) -> str:
    """Return the right choice with its letter, from its number, its letter or its text."""
    if (whole := next((f"{a}. {b}" for a, b in choices if cell == f"{a}. {b}"), None)) is not None:
        return whole
    number = int(cell) if str(cell).isdigit() and int(cell) < len(choices) else -1
    for at, (letter, text) in enumerate(choices):
        if at == number or str(cell).strip() in (letter, text):
            return f"{letter}. {text}"
    raise BadRow(f"the answer {cell!r} is none of the {len(choices)} choices")


def _called(cell: Any) -> list[dict[str, Any]] | None:
    """Return the calls in an answer that consists of calls, or None."""
    try:
        return parse_calls(cell)
    except BadRow:
        return None


def _history(cell: Any, clean: Clean) -> list[Message]:
    """Return earlier turns: messages, or pairs of a question and an answer."""
    if message_turns(cell):
        return parse_messages(cell, clean) or []
    if spoken := conversation_in(cell):
        return parse_messages(spoken, clean) or []
    pairs = listed(cell)
    if pairs is None and cell not in (None, ""):
        raise BadRow("the history is not a list of pairs of a question and an answer")
    pairs = pairs or []
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise BadRow("the history is not a list of pairs of a question and an answer")
    if pairs and all(is_role(role) for role, _ in pairs):
        turns = [{"role": role, "content": text} for role, text in pairs]
        return parse_messages(turns, clean) or []
    return [
        {"role": role, "content": clean(check_encodable(str(text)))}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
        if text not in (None, "")
    ]


def _system_message(row: dict[str, Any], columns: dict[str, str], clean: Clean) -> list[Message]:
    cell = row.get(columns.get("system", ""))
    system = clean(check_encodable(text_of(cell))) if cell is not None else ""
    return [{"role": "system", "content": system}] if system.strip() else []


# Preferences


def _preference(
    number: int, row: dict[str, Any], columns: dict[str, str], clean: Clean
) -> Preference:
    if row.get(columns["rejected"]) is None and row.get(columns.get("chosen", "")) is None:
        raise BadRow("the row does not say which answer is better")
    system = _system_message(row, columns, clean)
    prompt, tools = _prompt(row.get(columns.get("prompt", "")), columns.get("prompt"), clean)
    if (context := clean(_context(row.get(columns.get("input", ""))))).strip() and prompt:
        asked = {"content": f"{prompt[-1]['content']}\n\n{context}"}
        prompt = [*prompt[:-1], prompt[-1] | asked]
    prompt = [*_history(row.get(columns.get("history", "")), clean), *prompt]
    ends = _is_rendered(row.get(columns.get("prompt", "")))
    chosen = _answer(row.get(columns["chosen"]), clean) if "chosen" in columns else []
    rejected = _answer(row.get(columns["rejected"]), clean)
    if prompt and prompt[-1]["role"] == "assistant":  # a conversation, and another last answer
        prompt, chosen = prompt[:-1], chosen or prompt[-1:]
    shared = 0  # both answers can repeat the prompt
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    repeated, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    prompt = _join_prompts(system, prompt, repeated)
    if not prompt or prompt[-1]["role"] == "assistant":
        raise BadRow("the two answers do not share a prompt")
    for answer, name in ((chosen, "chosen"), (rejected, "rejected")):
        last = answer[-1] if answer else {"role": "", "content": ""}
        is_empty = not last["content"].strip() and not last.get("tool_calls")
        if last["role"] != "assistant" or is_empty:
            raise BadRow(f"the {name} answer is empty")
        if answer[0]["role"] == "user":
            raise BadRow("the prompt and the first messages of the answers differ")
    if ends:
        chosen, rejected = _without_ends(chosen), _without_ends(rejected)
    chosen, rejected = _without_prompt_text(prompt, chosen, rejected)
    if chosen == rejected:
        raise BadRow("the two answers are the same")
    return Preference(number, prompt, chosen, rejected, parse_tools(tools))


def _join_prompts(
    system: list[Message], prompt: list[Message], repeated: list[Message]
) -> list[Message]:
    """Return the prompt once, if its column and the beginning of the answers both contain it.

    Args:
        system: from a column for the system message.
        prompt: from the prompt's column: the whole prompt, or a part such as its last question.
        repeated: the messages with which both answers begin.
    """

    def contents(messages: list[Message]) -> list[str]:
        return [message["content"].strip() for message in messages if message["role"] != "system"]

    known, told = contents(prompt), contents(repeated)
    is_part = any(told[at : at + len(known)] == known for at in range(len(told)))
    if is_part and known:
        first = [message for message in prompt if message["role"] == "system"]
        prompt = repeated if any(m["role"] == "system" for m in repeated) else first + repeated
    else:
        prompt = prompt + repeated
    has_system = any(message["role"] == "system" for message in prompt)
    same = has_system and system and prompt[0]["content"].strip() == system[0]["content"].strip()
    return prompt if same else system + prompt


def _without_prompt_text(
    prompt: list[Message], chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message]]:
    """Remove the text of the prompt if both answers begin with it."""
    question = prompt[-1]["content"].strip()
    firsts = [answer[0]["content"].lstrip() for answer in (chosen, rejected)]
    if not question or not all(
        first.startswith(question) and first != question for first in firsts
    ):
        return chosen, rejected
    first, second = (
        [answer[0] | {"content": text[len(question) :].lstrip()}, *answer[1:]]
        for answer, text in zip((chosen, rejected), firsts, strict=True)
    )
    return first, second


def _prompt(cell: Any, column: str | None, clean: Clean) -> tuple[list[Message], Any]:
    """Return the messages of a prompt, and the tools that it declares."""
    tools = None
    if isinstance(cell, dict) and isinstance(cell.get("messages"), list):  # as OpenAI writes it
        tools = cell.get("tools")
    if (messages := parse_messages(cell, clean)) is not None:
        return messages, tools or tools_in(turns_of(cell) or [])
    if cell is not None and not isinstance(cell, str):
        raise BadRow(f"{column!r} is {_type_name(cell)}, not text")
    if not cell or not cell.strip():
        return [], tools
    if dialogue := _dialogue(cell, clean):
        return dialogue, tools
    return [{"role": "user", "content": clean(check_encodable(cell))}], tools


def _is_rendered(cell: Any) -> bool:
    """Return True if a chat template has written a prompt."""
    return isinstance(cell, str) and prompt_in(cell) is not None


def _without_ends(answers: list[Message]) -> list[Message]:
    """Return answers without the tokens with which a chat template ended the last one."""
    last = answers[-1]
    return [*answers[:-1], last | {"content": without_end(last["content"])}]


_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


def _dialogue(text: str, clean: Clean) -> list[Message]:
    """Return the messages of a dialogue of `Human:` and `Assistant:`, or of a prompt that a chat
    template has written; empty if it is none.
    """
    if (turns := prompt_in(text)) is not None:
        return parse_messages(turns, clean) or []
    text = text.strip()
    if not text.startswith("Human:") or "\n\nAssistant:" not in text:
        return []
    _, *parts = _SPEAKER.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    messages: list[Message] = [
        {"role": roles[speaker], "content": clean(check_encodable(part))}
        for speaker, part in zip(parts[::2], parts[1::2], strict=True)
    ]
    return messages if messages[-1]["content"].strip() else messages[:-1]


def _answer(cell: Any, clean: Clean) -> list[Message]:
    """Return an answer, or a conversation that ends with it.

    The cell contains a text, a message, messages, or a dialogue of `Human:` and `Assistant:`.
    """
    if isinstance(cell, dict):
        cell = [cell] if "content" in cell or "value" in cell else cell
    if isinstance(cell, list) and cell and all(isinstance(one, str) for one in cell):
        if len(cell) > 1:
            raise BadRow(f"an answer is a list of {len(cell)} texts; keep one of them")
        cell = cell[0]
    if (messages := parse_messages(cell, clean)) is not None:
        return messages
    if not isinstance(cell, str):
        raise BadRow(f"an answer is {_type_name(cell)}, not text")
    return _dialogue(cell, clean) or [answer_message(cell, clean)]


# Labels and tags


def _text_classification(
    number: int,
    row: dict[str, Any],
    columns: dict[str, str],
    clean: Clean,
    keeps_minus_one: bool,
) -> TextClassification:
    text = clean(_text(row, columns.get("text") or columns.get("first")))
    second = clean(_text(row, columns["second"])) if "second" in columns else None
    label = _label(row.get(columns["label"]), columns["label"])
    if label == "-" and columns["label"] == "gold_label":  # as SNLI has it
        raise BadRow("the label is '-', as in rows whose annotators did not agree")
    if not text.strip() or (second is not None and not second.strip()):
        raise BadRow("the text is empty")
    if not label:
        raise BadRow("the label is empty")
    if label == "-1" and not keeps_minus_one:
        raise FixableRow("the label is -1, as in rows without a label", "unlabeled")
    return TextClassification(number, text, label, second)


def _label(cell: Any, column: str) -> str:
    """Return the label in a cell: a text, a boolean, or a list of one of them."""
    values = listed(cell)
    if values is not None:
        if len(values) != 1:
            raise BadRow(
                f"{column!r} has {len(values)} labels; a row can have one here. "
                "Learning several labels of one text is not offered"
            )
        cell = values[0]
    if isinstance(cell, bool):
        return str(cell).lower()
    return _text({column: cell}, column).strip()


def _token_classification(
    number: int, row: dict[str, Any], columns: dict[str, str]
) -> TokenClassification:
    cell, tags = row.get(columns["tokens"]), listed(row.get(columns["tags"]))
    tokens: list[Any]
    if isinstance(cell, str) and (spans := spans_of(row.get(columns["tags"]))) is not None:
        tokens, tags = _tagged_words(cell, spans)
    else:
        tokens = listed(cell) or []
        if not isinstance(listed(cell), list):
            tags = None
    if tags is None:
        raise BadRow("tokens or tags are not a list")
    if len(tokens) != len(tags):
        raise BadRow(f"there are {len(tokens)} tokens but {len(tags)} tags")
    if not tokens:
        raise BadRow("there are no tokens")
    texts = [check_encodable(str(token)) for token in tokens]
    return TokenClassification(number, texts, [str(tag) for tag in tags])


_WORD = re.compile(r"\w+|[^\w\s]")


def _tagged_words(text: str, spans: list[tuple[int, int, str]]) -> tuple[list[str], list[str]]:
    """Return the words of a text and their tags in the form B-LABEL, I-LABEL, O."""
    tokens: list[str] = []
    tags: list[str] = []
    for begin, end, _ in spans:
        if not 0 <= begin < end <= len(text):
            raise BadRow(f"the span {begin} to {end} is outside of the text")
    ordered = sorted(spans)
    if any(after[0] < before[1] for before, after in itertools.pairwise(ordered)):
        raise BadRow("two spans overlap, and a word can have one tag here")
    open_span = None
    for word in _WORD.finditer(text):
        span = next((s for s in spans if s[0] < word.end() and s[1] > word.start()), None)
        tokens.append(word[0])
        tags.append("O" if span is None else f"{'I' if span is open_span else 'B'}-{span[2]}")
        open_span = span
    return tokens, tags
