"""Values of cells: lists, messages, conversations in a text, spans, choices and ratings."""

import ast
import itertools
import json
import re
from dataclasses import dataclass
from typing import Any

_LIST_STARTS = ("[", "array(", "np.array(", "list(")


def listed(cell: Any) -> list[Any] | None:
    """Return the list in a cell, or None.

    A text is read as JSON, or as Python or NumPy writes a list.
    """
    if isinstance(cell, str) and cell.lstrip().startswith(_LIST_STARTS):
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
    if not value.lstrip().startswith(("{", *_LIST_STARTS)):
        return value
    try:
        return json.loads(python_to_json(value.strip()))
    except (ValueError, RecursionError):
        return value


class NotPythonError(ValueError):
    """A text is not a value as Python or NumPy writes it.

    Args:
        cause: what is wrong.
        position: where, in characters.
    """

    def __init__(self, cause: str, position: int):
        super().__init__(cause)
        self.position = position


_PYTHON_TOKEN = re.compile(
    r"""(?P<space>[\s\ufeff]+)
    |(?P<text>[uU]?(?:'[^'\\]*(?:\\.[^'\\]*)*'|"[^"\\]*(?:\\.[^"\\]*)*"))
    |(?P<gap>\.\.\.)
    |(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]))
    |(?P<call>(?:(?:np|numpy)\.)?(?:array|list|tuple|str_|bool_?|u?int\d*|float\d*)\()
    |(?P<word>-?[A-Za-z][\w.]*)
    |(?P<mark>[][{}(),:])""",
    re.VERBOSE | re.DOTALL,
)
_CALL_END = re.compile(r"(?:\s*,\s*dtype=[\w.'\"<>|=]+)?\s*\)")
_PYTHON_WORDS = {
    **{"None": "null", "True": "true", "False": "false", "null": "null", "true": "true"},
    **{"false": "false", "nan": "NaN", "NaN": "NaN", "inf": "Infinity", "-inf": "-Infinity"},
    **{"np.True_": "true", "np.False_": "false", "np.nan": "NaN"},
}
_CLOSING = {"]": "[", "}": "{", ")": "("}


_SHORTENED = "NumPy left out elements where it wrote ..."


def is_shortened(cell: Any) -> bool:
    """Return True if a cell is a list in which NumPy left out elements."""
    if not isinstance(cell, str) or not cell.lstrip().startswith(_LIST_STARTS):
        return False
    try:
        python_to_json(cell.strip())
    except NotPythonError as error:
        return str(error) == _SHORTENED
    return False


def python_to_json(text: str) -> str:
    """Translate lists, objects and tuples, as Python or NumPy writes them, to JSON. Runs no code.

    NumPy writes no commas between the elements of a list; Python would join such texts. White
    space outside of texts stays, so that lines keep their numbers. Several values may follow
    one another.

    Raises:
        NotPythonError: the text contains anything else, such as the call of a function.
    """
    written: list[str] = []
    opened: list[str] = []  # brackets, and "call" for calls such as array(
    commas: list[int] = []  # number of commas in each opened bracket
    last = ""  # the last token that is not white space
    position = last_comma = 0
    while position < len(text):
        token = _PYTHON_TOKEN.match(text, position)
        if token is None or text.startswith(("'''", '"""'), position):
            raise NotPythonError("something is neither JSON nor a Python value", position)
        kind, part, inside = str(token.lastgroup), token[0], opened[-1] if opened else ""
        begins = kind in ("text", "number", "call", "word") or part in ("[", "{", "(")
        if begins and last == "value" and inside:
            if inside != "[":
                raise NotPythonError("a comma is missing", position)
            written.append(",")
        is_key = inside == "{" and last in ("{", ",")
        end = token.end()
        if kind == "gap":
            raise NotPythonError(_SHORTENED, position)
        if kind == "space":
            written.append(part.replace("\ufeff", ""))
        elif kind == "call" or part in ("[", "{", "("):
            opened.append("call" if kind == "call" else part)
            commas.append(0)
            written.append({"call": "", "(": "["}.get(opened[-1], part))
            last = opened[-1]
        elif inside == "call" and part in (",", ")"):
            closing = _CALL_END.match(text, position)
            if closing is None or last != "value":
                raise NotPythonError("a call of a function is not a value", position)
            opened.pop(), commas.pop()
            end, last = closing.end(), "value"
        elif part in _CLOSING:
            if inside != _CLOSING[part] or (part == ")" and last == "value" and not commas[-1]):
                raise NotPythonError("a bracket does not fit", position)
            if last == ",":
                written[last_comma] = ""
            opened.pop(), commas.pop()
            written.append("]" if part == ")" else part)
            last = "value"
        elif part in (",", ":"):
            if opened and part == ",":
                commas[-1] += 1
            last, last_comma = part, len(written)
            written.append(part)
        else:
            value = _json_scalar(kind, part, position)
            written.append(json.dumps(value) if is_key and value[0] != '"' else value)
            last = "value"
        position = end
    if opened:
        raise NotPythonError("the text ends in the middle of it", len(text))
    return "".join(written)


def _json_scalar(kind: str, part: str, position: int) -> str:
    """Return a text, number or word of Python as JSON."""
    if kind == "text":
        try:
            return json.dumps(ast.literal_eval(part.lstrip("uU")), ensure_ascii=False)
        except (ValueError, SyntaxError):
            raise NotPythonError("a text has an unknown escape or a line break", position) from None
    if kind == "number":
        number = part.removeprefix("+")
        number = re.sub(r"(?<!\d)\.", "0.", number)  # .5
        return re.sub(r"\.(?!\d)", ".0", number)  # NumPy writes 1. for 1.0
    if part not in _PYTHON_WORDS:
        raise NotPythonError(f"{part[:30]!r} is not a value", position)
    return _PYTHON_WORDS[part]


def message_turns(cell: Any) -> list[dict[str, Any]] | None:
    """Return the list of messages in a cell, or None."""
    turns = listed(cell)
    return turns if turns is not None and all(isinstance(turn, dict) for turn in turns) else None


def turns_of(cell: Any) -> list[dict[str, Any]] | None:
    """Return the messages of a cell as they are written there, or None.

    Args:
        cell: a list of messages, an object of lists, or a list of texts that take turns.
    """
    if isinstance(cell, str) and cell.lstrip().startswith(("{'", '{"')):
        cell = parse_literal(cell)  # as pandas writes an object
    if isinstance(cell, dict) and isinstance(cell.get("messages"), list):
        turns = turns_of(cell["messages"])
        if turns is None:
            return None
        system = next((cell[key] for key in _SYSTEMS if isinstance(cell.get(key), str)), "")
        first = [{"role": "system", "content": system}] if system.strip() else []
        tools = {"tools": cell["tools"]} if cell.get("tools") else {}
        return [*first, *([turns[0] | tools, *turns[1:]] if tools and turns else turns)]
    if isinstance(cell, dict) and len({len(p) for p in cell.values() if isinstance(p, list)}) > 1:
        return None
    if isinstance(cell, dict) and cell and all(isinstance(part, list) for part in cell.values()):
        keys = list(cell)  # one list of roles, one of contents
        return [dict(zip(keys, turn, strict=False)) for turn in zip(*cell.values(), strict=False)]
    if (turns := message_turns(cell)) is not None:
        return _turns_of_pairs(turns) or _oldest_first(turns)
    texts = listed(cell)
    if texts and len(texts) > 1 and all(isinstance(text, str) for text in texts):
        if spoken := conversation_in("\n".join(texts)):
            return spoken
        roles = ("user", "assistant")
        return [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    return None


_SYSTEMS = ("system", "system_prompt", "system_message")


def unused_around_messages(cell: Any) -> dict[str, Any]:
    """Return the keys of an object with messages that have no use, with their values."""
    if not isinstance(cell, dict) or not isinstance(cell.get("messages"), list):
        return {}
    system = next((key for key in _SYSTEMS if isinstance(cell.get(key), str)), "")
    used = ("messages", "tools", system)
    return {key: value for key, value in cell.items() if key not in used and value}


_TIMES = ("timestamp_ms", "timestamp", "created_at", "sent_at", "ts", "time", "date")


def _oldest_first(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages in the order of their times if each is older than the one before it."""
    first = turns[0] if turns else {}
    for name in _TIMES if len(first) > 2 else ():  # most messages have a role and a content
        times = [turn.get(name) for turn in turns]
        if len(times) < 2 or any(time is None for time in times):
            continue
        texts = list(map(str, times))
        is_number = all(re.fullmatch(r"\d+(\.\d+)?", text) for text in texts)
        is_iso = all(re.match(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d", text) for text in texts)
        if is_number or is_iso:
            keys: list[Any] = list(map(float, texts)) if is_number else texts
            falls = all(a >= b for a, b in itertools.pairwise(keys)) and keys[0] > keys[-1]
            return turns[::-1] if falls else turns
    return turns


_PAIRS = (
    ("input", "output"), ("human", "assistant"), ("user", "assistant"), ("question", "answer"),
    ("prompt", "response"), ("instruction", "output"), ("query", "response"), ("user", "bot"),
    ("human", "ai"), ("user", "agent"),
)  # fmt: skip


def _turns_of_pairs(items: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """Return the messages of pairs of a question and an answer, or None."""
    for pair in _PAIRS if items else ():
        if pair[0] in items[0] and all(name in item for item in items for name in pair):
            turns = []
            for item in items:
                rest = {key: value for key, value in item.items() if key not in (*pair, "system")}
                if item.get("system"):
                    turns.append({"role": "system", "content": item["system"]})
                turns.append({"role": "user", "content": item[pair[0]]})
                turns.append({"role": "assistant", "content": item[pair[1]], **rest})
            return turns
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
                    ("label", "labels", "entity_group", "entity_type", "entityLabel", "tag", "type",
                     "entity"),
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
    values = {
        **dict.fromkeys(("true", "1", "yes", "y", "ja", "oui", "si", "sí"), True),
        **dict.fromkeys(("false", "0", "no", "n", "nein", "non"), False),
    }
    return cell if isinstance(cell, bool) else values.get(str(cell).strip().lower())


_RATINGS = {
    **dict.fromkeys(("desirable", "good", "chosen", "accepted", "thumbs_up", "up", "+1"), True),
    **dict.fromkeys(("undesirable", "bad", "rejected", "thumbs_down", "down", "-1"), False),
}
_VERDICTS = {
    **dict.fromkeys(
        (
            "positive", "like", "liked", "correct", "right", "helpful", "approved", "upvote",
            "pass", "passed", "safe", "resolved", "success", "solved", "👍", "satisfied", "bon",
            "gut", "bueno", "goed", "buono", "bom", "ok", "okay", "unharmful", "harmless", "好",
            "hilfreich", "richtig", "bestanden", "utile", "validé", "útil", "buona", "boa",
            "dobra", "iyi", "хорошо", "满意", "良い", "좋음", "bra", "happy", "excellent", "✓",
            "supported", "very_good", "high",
        ),
        True,
    ),
    **dict.fromkeys(
        (
            "negative", "dislike", "disliked", "incorrect", "wrong", "unhelpful", "disapproved",
            "downvote", "fail", "failed", "unsafe", "unresolved", "failure", "unsolved", "👎",
            "unsatisfied", "dissatisfied", "mauvais", "schlecht", "malo", "slecht", "cattivo",
            "ruim", "harmful", "needs_fix", "needs_work", "差", "nicht_hilfreich", "falsch",
            "nicht_bestanden", "pas_utile", "refusé", "no_útil", "cattiva", "zła", "fout",
            "kötü", "плохо", "不满意", "悪い", "나쁨", "dåligt", "unhappy", "poor", "✗",
            "refuted", "very_bad", "low",
        ),
        False,
    ),
}  # fmt: skip
"""Words that rate an answer, but could be labels to learn too."""
_WORDS = _RATINGS | _VERDICTS


def is_verdict_word(cell: Any) -> bool:
    """Return True for a word that rates an answer, such as good or unhelpful."""
    return isinstance(cell, str) and _word(cell) in _WORDS


def is_clear_rating(cell: Any) -> bool:
    """Return True if a cell rates an answer, and is hardly a label to learn."""
    return as_rating(cell) is not None and _word(cell) not in _VERDICTS


def _word(cell: Any) -> str:
    return re.sub(r"[\s-]+", "_", str(cell).strip().lower())


def as_rating(cell: Any, good_from: float | None = None) -> bool | None:
    """Return whether a rating is good: a boolean, a word such as desirable, 1 or -1, or None.

    Args:
        cell: the rating.
        good_from: if given, ratings are numbers, and those from here on are good.
    """
    if good_from is not None:
        number = re.match(r"\s*-?\d+(\.\d+)?", str(cell))
        return None if number is None else float(number[0]) >= good_from
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    rating = _WORDS.get(str(cell).strip().lower(), _WORDS.get(_word(cell)))
    return as_bool(cell) if rating is None else rating


_LETTERED = re.compile(r"\s*\(?([A-Z])[).:]\s*(.+)")


def choices_of(cell: Any) -> list[tuple[str, str]] | None:
    """Return the (letter, text) of each choice of a multiple-choice question, or None."""
    cell = parse_literal(cell)
    if isinstance(cell, str):
        found = [_LETTERED.match(line) for line in cell.strip().splitlines() if line.strip()]
        marked = [(match[1], match[2].strip()) for match in found if match]
        is_list = len(marked) == len(found) > 1
        in_order = [letter for letter, _ in marked] == [chr(65 + n) for n in range(len(marked))]
        return marked if is_list and in_order else None
    if isinstance(cell, dict) and isinstance(cell.get("text"), list):
        texts, letters = cell["text"], cell.get("label")
    elif isinstance(cell, dict) and all(len(letter) == 1 for letter in cell):
        texts, letters = list(cell.values()), list(cell)
    else:
        texts, letters = listed(cell), None
        if texts and all(
            isinstance(one, dict) and {"text", "label"} == one.keys() for one in texts
        ):
            letters, texts = [one["label"] for one in texts], [one["text"] for one in texts]
    if not texts or not all(isinstance(text, str) for text in texts):
        return None
    letters = letters or [chr(ord("A") + number) for number in range(len(texts))]
    return list(zip(map(str, letters), texts, strict=False))


def is_segments(cell: Any) -> bool:
    """Return True for parts of a text that say if they are trained, as Axolotl has them."""
    return (
        isinstance(cell, list)
        and bool(cell)
        and all(
            isinstance(part, dict)
            and isinstance(part.get("text"), str)
            and isinstance(part.get("label"), bool)
            for part in cell
        )
    )


def one_text(cell: Any) -> str | None:
    """The text of a cell, or of a list of one."""
    values = listed(cell)
    cell = values[0] if values and len(values) == 1 else cell
    return cell if isinstance(cell, str) else None


# Conversations that a chat template or a transcript has written as one text

_SPEAKERS = {
    "human": "user", "user": "user", "assistant": "assistant", "model": "assistant",
    "system": "system", "tool": "tool", "ipython": "tool", "function response": "tool",
    "q": "user", "question": "user", "a": "assistant", "answer": "assistant",
    "customer": "user", "client": "user", "patient": "user", "ai": "assistant",
    "bot": "assistant", "chatbot": "assistant", "agent": "assistant", "doctor": "assistant",
    "support": "assistant", "frage": "user", "antwort": "assistant", "问": "user",
    "答": "assistant", "pregunta": "user", "respuesta": "assistant", "kunde": "user",
    "berater": "assistant", "input": "user", "output": "assistant", "вопрос": "user",
    "ответ": "assistant", "domanda": "user", "risposta": "assistant", "pergunta": "user",
    "resposta": "assistant",
}  # fmt: skip
_BEGINNINGS = (
    "", "<s>", "<bos>", "<|begin_of_text|>", "<｜begin▁of▁sentence｜>", "[gMASK]<sop>",
    "<BOS_TOKEN>",
)  # fmt: skip
_TEXT_ENDS = ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>")


@dataclass(frozen=True)
class _TextForm:
    """How a turn begins, with its role, and how it ends."""

    beginning: re.Pattern[str]
    ends: tuple[str, ...] = ()
    always_ends: bool = False
    """True if every turn but the last has an end."""
    has_system: bool = False
    """True if a text before the first turn is a system message."""


_OTHER_SPEAKERS = (
    "Frage|Antwort|Kunde|Berater|Pregunta|Respuesta|Pergunta|Resposta|Domanda|Risposta|Вопрос"
    "|Ответ|Input|Output|问|答"
)
_TEXT_FORMS = (
    # ChatML
    _TextForm(re.compile(r"<\|im_start\|>(system|user|assistant|tool)\n"), ("<|im_end|>",), True),
    # Llama 3
    _TextForm(
        re.compile(
            r"<\|start_header_id\|>(system|user|assistant|ipython)<\|end_header_id\|>\n\n"
        ),
        ("<|eot_id|>", "<|eom_id|>"), True,
    ),
    # Llama 4
    _TextForm(
        re.compile(r"<\|header_start\|>(system|user|assistant|ipython)<\|header_end\|>\n\n"),
        ("<|eot|>", "<|eom|>"), True,
    ),
    # Phi-4
    _TextForm(
        re.compile(r"<\|im_start\|>(system|user|assistant)<\|im_sep\|>"), ("<|im_end|>",), True
    ),
    # Granite
    _TextForm(
        re.compile(r"<\|start_of_role\|>(system|user|assistant|tool)<\|end_of_role\|>"),
        ("<|end_of_text|>",), True,
    ),
    # DeepSeek
    _TextForm(re.compile(r"<｜(User|Assistant)｜>"), ("<｜end▁of▁sentence｜>",), has_system=True),
    # Gemma
    _TextForm(re.compile(r"<start_of_turn>(user|model)\n"), ("<end_of_turn>",), True),
    # Command R
    _TextForm(
        re.compile(r"<\|START_OF_TURN_TOKEN\|><\|(SYSTEM|USER|CHATBOT)_TOKEN\|>"),
        ("<|END_OF_TURN_TOKEN|>",), True,
    ),
    # Kimi
    _TextForm(
        re.compile(r"<\|im_(system|user|assistant)\|>\w+<\|im_middle\|>"), ("<|im_end|>",), True
    ),
    # tags around each message
    _TextForm(
        re.compile(r"<(system|user|human|assistant|bot)>\s*"),
        ("</system>", "</user>", "</human>", "</assistant>", "</bot>"), True,
    ),
    # Zephyr, Phi
    _TextForm(re.compile(r"<\|(system|user|assistant|tool)\|>\n?"), ("<|end|>", *_TEXT_ENDS)),
    # Guanaco
    _TextForm(re.compile(r"### (Human|User|Assistant|System): ?")),
    # transcripts
    _TextForm(re.compile(r"(?:\A|\n)(User|Assistant|System): ?")),
    _TextForm(re.compile(r"(?:\A|\n)(Q|A): ?")),
    _TextForm(re.compile(r"(?:\A|\n)(Question|Answer): ?")),
    # HH
    _TextForm(re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")),
    # of a person and a bot, or of two people
    _TextForm(
        re.compile(
            r"(?:\A|\n)(Human|User|Customer|Client|AI|Assistant|Bot|Chatbot|Agent|Support): ?"
        )
    ),
    _TextForm(re.compile(r"(?:\A|\n)(Patient|Doctor): ?")),
    # Vicuna, Glaive
    _TextForm(
        re.compile(r"(?:\A|(?<=[\s>]))(USER|ASSISTANT|FUNCTION RESPONSE): ?"), _TEXT_ENDS,
        has_system=True,
    ),
    # capitals, bold, brackets, and a time before each line
    _TextForm(
        re.compile(
            r"(?:\A|\n)(?:[\[(]?\d{1,2}:\d\d(?::\d\d)?[\])]? *-? *)?(?:\*\*|\[)?"
            r"(user|human|customer|client|ai|assistant|bot|chatbot|agent|support|patient|doctor"
            r"|system)(?::\*\*|\*\*:|\]:?|:)[ \n]?",
            re.IGNORECASE,
        )
    ),
    # in other languages
    _TextForm(re.compile(rf"(?:\A|\n)({_OTHER_SPEAKERS}) ?[:：] ?")),
)  # fmt: skip
_SIGN = re.compile(
    r"<\||<｜|\[INST\]|<start_of_turn>|##|Human:|USER:|\A\s*<(?:system|user|human)>"
    rf"|\A\s*(?:Q|Question|{_OTHER_SPEAKERS}) ?[:：] ?"
    r"|\A[^a-zA-Z]{0,15}(?i:user|system|customer|client|patient|human)(?:[:\]]|\*\*)"
)
_SIGN_WITHIN = 200


def conversation_in(text: Any) -> list[dict[str, Any]] | None:
    """Return the turns of a conversation that is written as one text, or None.

    The text must consist of nothing else, and at least one turn must be an answer.
    """
    if not isinstance(text, str) or not _SIGN.search(text[:_SIGN_WITHIN]):
        return None
    text = text.strip()
    forms = (_read_turns(form, text) for form in _TEXT_FORMS)
    every = itertools.chain([_llama_2(text)], [_headed(text)], [_harmony(text)], forms)
    turns = _without_opening(next(filter(_is_conversation, every), None))
    return turns if _is_conversation(turns) else None


_CONTROL = re.compile(r"<\||<｜|\[INST\]|<start_of_turn>|#{2,3} ?(?:Instruction|Human|User)|USER:")


def prompt_in(text: str) -> list[dict[str, Any]] | None:
    """Return the turns of a prompt that a chat template has written, or None.

    It ends with the opening of an answer.
    """
    if not _CONTROL.search(text[:_SIGN_WITHIN]):
        return None
    text = f"{text.strip()}\n\n"  # an opening can end in line breaks
    forms = (_read_turns(form, text) for form in _TEXT_FORMS)
    for turns in itertools.chain([_llama_2(text)], [_headed(text)], [_harmony(text)], forms):
        asked = _without_opening(turns)
        if turns and asked and len(asked) < len(turns) and asked[-1]["role"] != "assistant":
            return asked
    return None


def _without_opening(turns: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Return the turns without the opening of an answer at the end."""
    if not turns or turns[-1]["role"] != "assistant":
        return turns
    if turns[-1]["content"].strip() not in ("", "<think>"):
        return turns
    return turns[:-1]


def without_end(text: str) -> str:
    """Return an answer without the tokens with which a chat template ends it."""
    ends = {end for form in _TEXT_FORMS for end in form.ends} | set(_TEXT_ENDS)
    return _without_end(text, tuple(ends))[0]


_HARMONY = re.compile(
    r"<\|start\|>(?P<role>system|developer|user|assistant)(?:<\|channel\|>(?P<channel>\w+))?"
    r"(?:<\|message\|>(?P<content>.*?)(?P<end><\|end\|>|<\|return\|>|<\|call\|>|\Z))?",
    re.DOTALL,
)


def _harmony(text: str) -> list[dict[str, Any]] | None:
    """Read the form of gpt-oss, in which an answer has channels."""
    position, turns = 0, []
    for match in _HARMONY.finditer(text):
        if match.start() != position:
            return None
        position = match.end()
        role = "system" if match["role"] == "developer" else match["role"]
        turn = {"role": role, "content": match["content"] or ""}
        turns.append(turn | ({"channel": match["channel"]} if match["channel"] else {}))
    return turns if position == len(text) else None


def _is_conversation(turns: list[dict[str, Any]] | None) -> bool:
    return {"user", "assistant"} <= {turn["role"] for turn in turns or []}


def _read_turns(form: _TextForm, text: str) -> list[dict[str, Any]] | None:
    before, *parts = form.beginning.split(text)
    for beginning in filter(None, _BEGINNINGS):
        before = before.replace(beginning, "")
    is_system = form.has_system and bool(before.strip())
    if not parts or not (is_system or before.strip() in _BEGINNINGS):
        return None
    turns: list[dict[str, Any]] = []
    for role, content in zip(parts[::2], parts[1::2], strict=True):
        is_last = len(turns) == len(parts) // 2 - 1
        ended, has_end = _without_end(content, (*form.ends, *(_TEXT_ENDS if is_last else ())))
        if (form.always_ends and not has_end and not is_last) or any(
            end in ended for end in form.ends
        ):
            return None
        content = ended if form.always_ends else ended.strip()
        turns.append({"role": _SPEAKERS[role.lower()], "content": content})
    return [{"role": "system", "content": before.strip()}, *turns] if is_system else turns


def _without_end(content: str, ends: tuple[str, ...]) -> tuple[str, bool]:
    has_end = False
    while end := next((end for end in ends if content.rstrip().endswith(end)), ""):
        content, has_end = content.rstrip().removesuffix(end), True
    return content, has_end


_LLAMA_SYSTEM = re.compile(r"\s*<<SYS>>\n?(.*?)\n?<</SYS>>\s*", re.DOTALL)


def _llama_2(text: str) -> list[dict[str, Any]] | None:
    before, *parts = text.split("[INST]")
    if not parts or before.strip() not in _BEGINNINGS:
        return None
    turns: list[dict[str, Any]] = []
    for part in parts:
        question, *answers = part.split("[/INST]")
        if len(answers) != 1:
            return None
        if not turns and (system := _LLAMA_SYSTEM.match(question)):
            turns.append({"role": "system", "content": system[1]})
            question = question[system.end() :]
        answer = answers[0].rstrip().removesuffix("<s>")
        answer = _without_end(answer, _TEXT_ENDS)[0].strip()
        turns.append({"role": "user", "content": question.strip()})
        turns.append({"role": "assistant", "content": answer})
    return turns


_HEADING = re.compile(
    r"(?:\A|\n|(?<=[ \n]))#{2,3} ?"
    r"(Instruction|Input|Context|Question|Response|Answer|Output):?[ \t]*\n?",
    re.IGNORECASE,
)
_HEADED_ENDS = ("### End", *_TEXT_ENDS)


def _headed(text: str) -> list[dict[str, Any]] | None:
    """Read the form of Alpaca and Dolly: sections of an instruction, its input and the response.

    What stands before the first section is a system message. Sections of the user in a row, such as
    instruction and input, are one message.
    """
    before, *parts = _HEADING.split(text)
    turns = [{"role": "system", "content": before.strip()}] if before.strip() else []
    for heading, content in zip(parts[::2], parts[1::2], strict=True):
        is_answer = heading.lower() in ("response", "answer", "output")
        role = "assistant" if is_answer else "user"
        content = _without_end(content, _HEADED_ENDS)[0].strip()
        if is_answer and turns and turns[-1]["role"] == "assistant":
            return None
        if turns and turns[-1]["role"] == role:
            content = "\n\n".join(filter(None, (turns.pop()["content"], content)))
        turns.append({"role": role, "content": content})
    return turns if parts else None
