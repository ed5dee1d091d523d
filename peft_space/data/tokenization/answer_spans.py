"""Finds what a chat template writes for each answer, whatever the template.

Every text of a conversation is put between two private characters, and the conversation is written
again. So its places in the text are known exactly. An answer begins where the prompt for it ends.
It ends with what the template writes after it in every case, whether another message follows or
not.
"""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from peft_space.data.messages import PICTURE, Message
from peft_space.data.tokenization.template_sandbox import RowLimit
from peft_space.errors import UserError

Note = Literal[
    "tools_left_out", "text_left_out", "call_left_out", "reasoning_left_out", "message_left_out",
    "empty_thought", "untrained_by_weight", "reasoning_dropped", "in_pieces",
]  # fmt: skip
"""What a user should know about how a row is written. `quality` explains each."""
NOTES: tuple[Note, ...] = get_args(Note)

Span = tuple[int, int]
"""Start and end (exclusive), in characters or in tokens."""
Tools = list[dict[str, Any]] | None
Write = Callable[[list[Message], Tools, bool], str]
"""Writes messages with tools; if the last argument is true, with the opening of an answer."""

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Names under which templates look for the thoughts of an answer."""
_THOUGHT = re.compile(r"think|thought|reason|channel|analysis", re.IGNORECASE)
_EMPTY_THOUGHT = re.compile(r"<think>\s*</think>")
_MAX_OPENING = 80
"""Characters in which an answer can begin with the opening of its thought."""
_TAG_LENGTH = 12
"""Characters before a place where a tag that opens a thought can begin."""
_CLOSED_THOUGHT = re.compile(
    r"</[\w:]*(think|thought|reason)\w*>|\[/THINK\]|◁/think▷|<\|END_THINKING\|>"
    r"|<\|inner_suffix\|>",
    re.IGNORECASE,
)
_THOUGHT_TAGS = {
    "<think>": ("<think>\n", "\n</think>\n\n"),
    "[THINK]": ("[THINK]", "[/THINK]"),
    "<seed:think>": ("<seed:think>", "</seed:think>"),
    "<|inner_prefix|>": ("<|inner_prefix|>", "<|inner_suffix|>"),
    "<|START_THINKING|>": ("<|START_THINKING|>", "<|END_THINKING|>"),
    "<thought>": ("<thought>\n", "\n</thought>\n\n"),
    "<reasoning>": ("<reasoning>\n", "\n</reasoning>\n\n"),
    "<thinking>": ("<thinking>\n", "\n</thinking>\n\n"),
}
"""A token of the model -> how it writes a thought in a text. The first is for other models."""
_FIRST_MARK = 0xF0000
"""A private character that no text contains; `loss_mask` escapes special tokens with others."""
_MARKS = re.compile("[\U000f0000-\U000ffffd]")
_AROUND = re.compile(rf"^[\s{PICTURE}]+|[\s{PICTURE}]+$")
_MAX_LAYOUTS = 256
_MARKED_KINDS = (
    ("content", "reasoning", "call", "name"),
    ("content", "reasoning", "call"),
    ("content", "reasoning"),
    ("content",),
)
"""What is marked, the most first. A template can look for the name of a tool, for instance."""


@dataclass(frozen=True)
class Answer:
    """Places of an answer in the text, in characters."""

    spans: list[Span]
    """From the end of the prompt to the end of the token that ends the answer. More than one if the
    template writes other messages between parts of the answer."""
    content: Span | None
    reasoning: Span | None


@dataclass(frozen=True)
class Written:
    """A conversation as the template writes it, with an `Answer` for each assistant message."""

    text: str
    answers: list[Answer]
    notes: frozenset[Note]


@dataclass(frozen=True)
class _Layout:
    """What the template writes around the texts of plain conversations of one form."""

    as_template: list[str]
    """Before, between and after the texts of the messages, by the template."""
    gaps: list[str]
    """The same with the thought that the last prompt opens, if the template does not write it."""
    starts: list[int]
    """Where each answer begins, from the end of the text before it."""
    ends: list[int]
    """Where each answer ends, from the end of its text."""
    notes: frozenset[Note]

    @property
    def opening(self) -> str:
        """What the prompt of the last answer ends with."""
        return self.gaps[-2][: self.starts[-1]]


_Pieces = dict[tuple[int, str], Span]
"""(number of the message, "content" or "reasoning" or "call 0" …) -> its place in the text."""


@dataclass
class AnswerFinder:
    """Finds answers in what one template writes.

    Args:
        write: the template.
        specials: the model's special tokens.
        source: the text of the template.
    """

    write: Write
    specials: Sequence[str]
    source: str
    _layouts: dict[Any, _Layout] = field(default_factory=dict)
    _ignores_tools: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = [key for key in REASONING_KEYS if re.search(rf"\b{key}\b", self.source)]
        self._reasoning_keys = named
        tokens = sorted(self.specials, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, tokens)) or r"(?!)")
        self._indivisible = re.compile("|".join([*map(re.escape, tokens), r"</?\w+>"]))
        named_tag = next((tag for tag in _THOUGHT_TAGS if tag in tokens), "<think>")
        self._thought_tags = _THOUGHT_TAGS[named_tag]

    def find(self, row: int, messages: list[Message], tools: Tools) -> Written:
        """Write a conversation and find its answers.

        Args:
            row: the number of the row, for messages.
            messages: the conversation. Thoughts are under `reasoning_content`.
            tools: the functions that it may call.

        Raises:
            UserError: the place of an answer is not certain.
        """
        form = self._form(messages, tools)
        layout = self._layouts.get(form) if form else None
        if layout:
            text = self.write(messages, tools, False)
            written = _by_layout(layout, messages, text)
            if written is not None and self._has_opening(layout, messages, tools):
                return written
        written, layout = self._find(row, messages, tools)
        if form and layout and len(self._layouts) < _MAX_LAYOUTS:
            self._layouts[form] = layout
        return written

    def _form(self, messages: list[Message], tools: Tools) -> Any:
        """The form of a plain conversation; None for others."""
        is_plain = all(
            set(message) <= {"role", "content"} and message["content"].strip() == message["content"]
            for message in messages
        )
        if not is_plain or not all(message["content"] for message in messages):
            return None
        return tuple(message["role"] for message in messages), repr(tools)

    def _has_opening(self, layout: _Layout, messages: list[Message], tools: Tools) -> bool:
        """Return True if the prompt opens the thought that the template does not write."""
        if layout.gaps == layout.as_template:
            return True
        if _THOUGHT.search(messages[-1]["content"][:_MAX_OPENING]):
            return False  # the text may begin with the opening itself
        return self.write(messages[:-1], tools, True).endswith(layout.opening)

    # One conversation

    def _find(
        self, row: int, messages: list[Message], tools: Tools
    ) -> tuple[Written, _Layout | None]:
        given = messages
        messages, text, pieces = self._with_reasoning(messages, tools)
        gaps_of_template = _gaps(messages, text, pieces)
        answers: list[Answer] = []
        notes: set[Note] = set()
        last = max(n for n, message in enumerate(messages) if message["role"] == "assistant")
        begin = 0
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            start, opening, missing = self._start(row, number, messages, tools, text, pieces)
            if (number, "reasoning") in pieces and _CLOSED_THOUGHT.search(opening):
                # the prompt ends a thought, so that no other one follows it
                given = [*given[:number], _without_reasoning(given[number]), *given[number + 1 :]]
                written, _ = self._find(row, given, tools)
                return replace(written, notes=written.notes | {"reasoning_left_out"}), None
            if start < begin:
                raise _uncertain(row, number, "it writes the messages in another order")
            unwritten = message.get("reasoning_content") and (number, "reasoning") not in pieces
            if number == last and (missing or (unwritten and _opens_thought(opening))):
                if not message.get("reasoning_content") and not _CLOSED_THOUGHT.search(opening):
                    notes.add("empty_thought")
                text, pieces = self._open_thought(
                    row, text, pieces, start, (opening, missing), number, messages
                )
                start += len(missing)
            elif number == last and unwritten:
                text, pieces = _fill_thought(text, pieces, start, number, message)
            spans = self._spans(number, messages, tools, text, pieces, start)
            content, reasoning = pieces.get((number, "content")), pieces.get((number, "reasoning"))
            answers.append(Answer(spans, content, reasoning))
            answer = _outside(text, spans, [content, reasoning]) if "tool_calls" in message else ""
            if not message.get("reasoning_content") and _begins_empty(text, start, spans[0][1]):
                notes.add("empty_thought")
            notes |= self._left_out(row, number, message, pieces, answer)
            begin = spans[-1][1]
        for number, message in enumerate(messages):
            is_missing = _stripped(message["content"]) and (number, "content") not in pieces
            if is_missing and message["role"] != "assistant":
                notes.add("message_left_out")
        if tools and self._leaves_out_tools(messages, tools, text):
            notes.add("tools_left_out")
        written = Written(text, answers, frozenset(notes))
        gaps = _gaps(messages, text, pieces)
        has_opening = any(one.content and one.content[0] < one.spans[0][0] for one in answers)
        if gaps_of_template is None or gaps is None or has_opening:
            return written, None
        return written, _layout_of(written, messages, gaps_of_template, gaps)

    def _left_out(
        self, row: int, number: int, message: Message, pieces: _Pieces, answer: str
    ) -> set[Note]:
        """What of an assistant's message the template does not write."""
        notes: set[Note] = set()
        calls = message.get("tool_calls") or []
        names = [call["function"]["name"] for call in calls]
        marked = [kind for at, kind in pieces if at == number and kind.startswith("name ")]
        num_written = len(marked)
        if not marked:  # the template did not take marked names
            num_written = sum(
                min(answer.count(name), names.count(name)) for name in dict.fromkeys(names)
            )
        if num_written < len(names):
            notes.add("call_left_out")
        if message.get("reasoning_content") and (number, "reasoning") not in pieces:
            notes.add("reasoning_left_out")
        if message["content"].strip() and (number, "content") not in pieces:
            if not calls:
                raise _uncertain(row, number, "it changes the text of the answer")
            notes.add("text_left_out")
        if calls and not num_written and (number, "content") not in pieces:
            raise UserError(
                "data.template_omits_tool_calls",
                f"Row {row}, message {number + 1}: the model's chat template leaves out tool "
                "calls, so the model would learn an empty answer. Remove the row, or choose "
                "another base model or template.",
            )
        return notes

    def _leaves_out_tools(self, messages: list[Message], tools: Tools, text: str) -> bool:
        system = [message for message in messages[:1] if message["role"] == "system"]
        key = repr((tools, bool(system)))
        if key not in self._ignores_tools and len(self._ignores_tools) < _MAX_LAYOUTS:
            question = [*system, {"role": "user", "content": "a"}]
            without, with_tools = (
                try_writing(functools.partial(self.write, question, some, True))
                for some in (None, tools)
            )
            if without is None or with_tools is None:  # the template needs more messages
                without, with_tools = self.write(messages, None, False), text
            self._ignores_tools[key] = without == with_tools
        return self._ignores_tools.get(key, False)

    # Where texts are

    def _place(
        self, messages: list[Message], tools: Tools, prompt: bool = False
    ) -> tuple[str, _Pieces]:
        """Write messages, and find the places of their texts.

        If the template treats marked texts differently, fewer are marked. What is not marked is
        searched for.
        """
        text = self.write(self._mark(messages, ())[0], tools, prompt)
        for kinds in _MARKED_KINDS:
            marked, marks = self._mark(messages, kinds)
            try:
                found = self.write(marked, tools, prompt)
            except Exception:  # noqa: BLE001 - a template can test its texts for anything
                continue
            plain, places = _unmark(found)
            if plain == text:
                return text, {
                    piece: (places[first], places[second])
                    for piece, (first, second) in marks.items()
                    if first in places and second in places
                }
        return text, _search(messages, text)

    def _mark(
        self, messages: list[Message], kinds: Sequence[str]
    ) -> tuple[list[Message], dict[tuple[int, str], tuple[str, str]]]:
        return _mark(messages, kinds, self._thought_tags)

    def _with_reasoning(
        self, messages: list[Message], tools: Tools
    ) -> tuple[list[Message], str, _Pieces]:
        """Write thoughts as the template takes them: under its own name, or in the text."""
        thoughtful = [n for n, message in enumerate(messages) if message.get("reasoning_content")]
        if not thoughtful:
            return messages, *self._place(messages, tools)
        keys = self._reasoning_keys
        named = [_rename_reasoning(message, keys) for message in messages]
        text, pieces = self._place(named, tools)
        if (thoughtful[-1], "reasoning") in pieces:
            return named, text, pieces
        last_user = max((n for n, m in enumerate(messages) if m["role"] == "user"), default=-1)
        inline = [
            {**message, "inline": True} if number in thoughtful and number > last_user else message
            for number, message in enumerate(messages)
        ]
        inline_text, inline_pieces = self._place(inline, tools)
        if (thoughtful[-1], "reasoning") not in inline_pieces:
            return named, text, pieces
        prompt, opening = self._prompt(inline[: thoughtful[-1]], tools)
        before = inline_text[len(prompt) : inline_pieces[thoughtful[-1], "reasoning"][0]]
        follows = inline_text.startswith(prompt)
        if _CLOSED_THOUGHT.search(before) or (_THOUGHT.search(opening) and not follows):
            return named, text, pieces  # the prompt or the template writes the thought
        return inline, inline_text, inline_pieces

    def _prompt(self, messages: list[Message], tools: Tools) -> tuple[str, str]:
        """Return the prompt after messages, and what of it follows their last text."""
        prompt, before = self._place(messages, tools, prompt=True)
        return prompt, prompt[max((span[1] for span in before.values()), default=0) :]

    def prompted(self, messages: list[Message], tools: Tools) -> list[Message]:
        """Return the messages before an answer with those thoughts that training writes there."""
        if not any(message.get("reasoning_content") for message in messages):
            return messages
        answered = [*messages, {"role": "assistant", "content": "x"}]
        written, _, pieces = self._with_reasoning(answered, tools)
        _, asked = self._place(written[:-1], tools, prompt=True)
        lost = {number for number, kind in asked.keys() - pieces.keys() if kind == "reasoning"}
        lost |= {
            number
            for number, kind in asked.keys() & pieces.keys()
            if kind == "reasoning"
            and _CLOSED_THOUGHT.search(self._prompt(written[:number], tools)[1])
        }
        kept = [
            _without_reasoning(message) if number in lost else message
            for number, message in enumerate(written[:-1])
        ]
        return self._mark(kept, ())[0]

    def _open_thought(
        self,
        row: int,
        text: str,
        pieces: _Pieces,
        start: int,
        prompted: tuple[str, str],
        number: int,
        messages: list[Message],
    ) -> tuple[str, _Pieces]:
        """Write the thought that the prompt opens, so that the answer follows the same prompt.

        Args:
            row: the number of the row.
            text: what the template writes.
            pieces: the places of the texts in it.
            start: where the text ceases to be like the prompt.
            prompted: what the prompt ends with, and what of that the text lacks.
            number: of the message.
            messages: the conversation.
        """
        whole, opening = prompted
        first = min((span[0] for (at, _), span in pieces.items() if at == number), default=start)
        gap, thought = text[start:first], ""
        if (number, "reasoning") in pieces:
            inserted = opening
        elif _CLOSED_THOUGHT.search(opening):
            inserted = opening + gap
        else:
            thought = messages[number].get("reasoning_content") or ""
            closing = gap
            if not _CLOSED_THOUGHT.search(gap):
                end = self._closing_of(whole)
                if end is None:
                    raise _uncertain(row, number, "its prompt begins a thought without a known end")
                closing = end + gap
            inserted = opening + thought + closing
        shift = len(inserted) - (first - start)
        moved = {
            piece: (a + shift, b + shift) if a >= first else (a, b)
            for piece, (a, b) in pieces.items()
        }
        if thought:
            begin = start + len(opening)
            moved[number, "reasoning"] = (begin, begin + len(thought))
        return text[:start] + inserted + text[first:], moved

    def _closing_of(self, opening: str) -> str | None:
        """Return what ends the thought that a prompt opens, or None."""
        tags = (tags[1] for tag, tags in _THOUGHT_TAGS.items() if tag in opening)
        return self._own_closing or next(tags, None)

    @functools.cached_property
    def _own_closing(self) -> str | None:
        """What the template writes between a thought and the text after it; None if it does not."""
        named = dict.fromkeys(REASONING_KEYS, "t7z")
        answer = {"role": "assistant", "content": "q7x", **named}
        messages = [{"role": "user", "content": "a"}, answer]
        text = try_writing(functools.partial(self.write, messages, None, False)) or ""
        between = re.search(r"t7z(.*?)q7x", text, re.DOTALL)
        return between[1] if between and between[1].strip() else None

    # Where answers begin and end

    def _start(
        self,
        row: int,
        number: int,
        messages: list[Message],
        tools: Tools,
        text: str,
        pieces: _Pieces,
    ) -> tuple[int, str, str]:
        """Where the answer begins, what its prompt ends with, and what the text lacks of that."""
        limit = min((span[0] for (at, _), span in pieces.items() if at == number), default=None)
        if number == 0:
            return limit or 0, "", ""
        prompt, before = self._place(messages[:number], tools, prompt=True)
        limit = len(text) if limit is None else limit
        shared = [piece for piece in before if piece in pieces and piece[0] < number]
        last = max(shared, key=lambda piece: before[piece][1], default=None)
        here, there = (pieces[last][1], before[last][1]) if last else (0, 0)
        opening, gap = prompt[there:], text[here:limit]
        # a text can begin with the opening of its thought
        if text.startswith(prompt) and (len(prompt) <= limit or _THOUGHT.search(opening)):
            return len(prompt), opening, ""
        length = self._common(opening, gap)
        missing = opening[length:]
        opens_thought = _THOUGHT.search(opening, max(0, length - _TAG_LENGTH))
        if (missing and not opens_thought) or not length:
            raise UserError(
                "data.template_rewrites_prompt",
                f"Row {row}, message {number + 1}: the model's chat template writes the prompt "
                "differently once the conversation is answered. Remove the row, or choose another "
                "chat template in the recipe.",
            )
        return here + length, opening, missing

    def _spans(
        self,
        number: int,
        messages: list[Message],
        tools: Tools,
        text: str,
        pieces: _Pieces,
        start: int,
    ) -> list[Span]:
        """The spans of the answer that begins at `start`."""
        own = sorted((span, kind) for (at, kind), span in pieces.items() if at == number)
        others = sorted(span[0] for (at, _), span in pieces.items() if at != number)
        runs: list[list[tuple[Span, str]]] = [[]]
        for span, kind in own:
            last = runs[-1][-1][0][1] if runs[-1] else span[0]
            if any(last <= other < span[0] for other in others):
                runs.append([])  # a template can write results of tools before the text
            runs[-1].append((span, kind))
        spans: list[Span] = []
        for run in runs:
            anchor = run[-1][0][1] if run else start
            limit = min((other for other in others if other >= anchor), default=len(text))
            kinds = [kind for _, kind in run]
            if not spans:
                end = self._end(number, messages, tools, text[anchor:limit], kinds, text[:start])
                spans.append((start, anchor + end))
            else:
                closing = self._special.match(text, anchor)
                spans.append((run[0][0][0], closing.end() if closing else anchor))
        return spans

    def _end(
        self,
        number: int,
        messages: list[Message],
        tools: Tools,
        own: str,
        kinds: list[str],
        before: str,
    ) -> int:
        """The length of what ends the answer: it is written whether a message follows or not.

        Args:
            number: of the message.
            messages: the conversation.
            tools: the functions that it may call.
            own: what is written between the last text of the answer and the next one.
            kinds: of the texts of the answer that are written together.
            before: what is written before the answer.
        """
        has_calls = bool(messages[number].get("tool_calls"))
        following: Message = {"role": "tool" if has_calls else "user", "content": "x"}
        if has_calls and (identity := messages[number]["tool_calls"][0].get("id")):
            following["tool_call_id"] = identity
        is_last = number == len(messages) - 1
        other_messages = [*messages[: number + 1], *([following] if is_last else [])]
        other_text, other = "", dict[tuple[int, str], Span]()
        # some templates do not take such a conversation
        if try_writing(functools.partial(self.write, other_messages, tools, False)) is not None:
            other_text, other = self._place(other_messages, tools)
        ends = [other[number, kind][1] for kind in kinds if (number, kind) in other]
        if ends:
            following_text = other_text[max(ends) :]
        elif not kinds and other_text.startswith(before):
            following_text = other_text[len(before) :]
        else:
            following_text = own
        content = messages[number]["content"] if kinds[-1:] == ["content"] else ""
        space = content[len(content.rstrip()) :]
        length = max(self._closing(own, following_text), len(space) * own.startswith(space))
        if not has_calls or kinds[-1:] in ([], ["content"]) or self._ends_special(own[:length]):
            return length
        return self._end_of_last_form(number, messages, tools, own, kinds) or length

    def _ends_special(self, text: str) -> bool:
        return text.endswith(tuple(self.specials))

    def _end_of_last_form(
        self, number: int, messages: list[Message], tools: Tools, own: str, kinds: list[str]
    ) -> int:
        """The length of what ends a call if the template writes a last message in another way.

        The arguments are those of `_end`.
        """
        token = self._special.search(own)
        if number == len(messages) - 1:
            return token.end() if token else len(own.rstrip())
        asked = [*messages[: number + 1], {"role": "user", "content": "x"}]
        if token is None or try_writing(lambda: self.write(asked, tools, False)) is None:
            return 0
        text, places = self._place(asked, tools)
        ends = [places[number, kind][1] for kind in kinds if (number, kind) in places]
        is_shared = bool(ends) and self._common(own, text[max(ends) :]) >= token.end()
        return token.end() if is_shared else 0

    def _closing(self, own: str, other: str) -> int:
        """The length of the part of `own` that ends an answer."""
        length = self._common(own, other)
        tokens = list(self._special.finditer(own[:length]))
        if tokens:
            return tokens[-1].end()
        rest = own[length:]
        following = self._special.match(rest.lstrip())
        if following:  # another token ends the last answer, or that of the next message does
            return length + len(rest) - len(rest.lstrip()) + following.end()
        return len(own[:length].rstrip())

    def _common(self, one: str, other: str) -> int:
        """The length of the common beginning that does not end inside of a token or a tag."""
        length = 0
        for a, b in zip(one, other, strict=False):
            if a != b:
                break
            length += 1
        for text in (one, other):
            for token in self._indivisible.finditer(text):
                if token.start() < length < token.end():
                    length = token.start()
        return length


def try_writing(write: Callable[[], str]) -> str | None:
    """Return what a template writes, or None if it does not take the conversation.

    Raises:
        UserError, RowLimit, MemoryError: it exceeded its limits, and is not tried again.
    """
    try:
        return write()
    except (UserError, RowLimit, MemoryError):
        raise
    except Exception:  # noqa: BLE001 - a template can raise anything
        return None


def _fill_thought(
    text: str, pieces: _Pieces, start: int, number: int, message: Message
) -> tuple[str, _Pieces]:
    """Write a thought where the template writes an empty one for the answer, if it does."""
    first = min((span[0] for (at, _), span in pieces.items() if at == number), default=start)
    empty = re.compile(r"(<think>\s*)(\s*</think>)").search(text, start, first)
    if empty is None:
        return text, pieces
    thought = message["reasoning_content"]
    place = empty.end(1)
    moved = {
        piece: (a + len(thought), b + len(thought)) if a >= first else (a, b)
        for piece, (a, b) in pieces.items()
    }
    moved[number, "reasoning"] = (place, place + len(thought))
    return text[:place] + thought + text[place:], moved


def _opens_thought(opening: str) -> bool:
    return any(tag in opening for tag in _THOUGHT_TAGS) and not _CLOSED_THOUGHT.search(opening)


def _without_reasoning(message: Message) -> Message:
    keys = ("inline", *REASONING_KEYS)
    return {key: value for key, value in message.items() if key not in keys}


def _outside(text: str, spans: Sequence[Span], parts: Sequence[Span | None]) -> str:
    """Return the text of an answer without its content and its thought."""
    places = [range(*part) for part in parts if part]
    return "".join(
        text[at] for span in spans for at in range(*span) if not any(at in part for part in places)
    )


def _begins_empty(text: str, start: int, end: int) -> bool:
    """True if an answer ends a thought, which it or its prompt opens, without a word in it."""
    empty = _EMPTY_THOUGHT.search(text, max(0, start - _TAG_LENGTH), end)
    return empty is not None and empty.end() > start


def _uncertain(row: int, number: int, reason: str) -> UserError:
    return UserError(
        "data.template_changes_answer",
        f"Row {row}, message {number + 1}: what the model's chat template writes for this answer "
        f"is not certain, because {reason}. Remove the row, or choose another chat template in "
        "the recipe.",
    )


# Marks


def _mark(
    messages: list[Message], kinds: Sequence[str], thought_tags: tuple[str, str]
) -> tuple[list[Message], dict[tuple[int, str], tuple[str, str]]]:
    """Put texts between two private characters each, and inline thoughts between their tags."""
    marks: dict[tuple[int, str], tuple[str, str]] = {}

    def mark(number: int, kind: str, text: str) -> str:
        core = _stripped(text)
        if not core:
            return text
        first = _FIRST_MARK + 2 * len(marks)
        marks[number, kind] = chr(first), chr(first + 1)
        before, after = text[: text.index(core)], text[text.index(core) + len(core) :]
        return f"{before}{chr(first)}{core}{chr(first + 1)}{after}"

    marked = []
    for number, message in enumerate(messages):
        copy = dict(message)
        thought = message.get("reasoning_content")
        if "reasoning" in kinds and thought:
            thought = mark(number, "reasoning", thought)
            copy |= {key: thought for key in REASONING_KEYS if key in message}
        if "content" in kinds:
            copy["content"] = mark(number, "content", message["content"])
        if copy.pop("inline", None):
            copy.pop("reasoning_content")
            copy["content"] = f"{thought_tags[0]}{thought}{thought_tags[1]}{copy['content']}"
        if message.get("tool_calls"):
            copy["tool_calls"] = [
                _mark_call(call, kinds, functools.partial(mark, number), at)
                for at, call in enumerate(message["tool_calls"])
            ]
        marked.append(copy)
    return marked, marks


def _stripped(text: str) -> str:
    """Return a text without white space and places of pictures around it.

    A template can look at the first part of a content, so that no mark may precede a picture.
    """
    return _AROUND.sub("", text) if PICTURE in text else text.strip()


def _mark_call(
    call: dict[str, Any], kinds: Sequence[str], mark: Callable[[str, str], str], at: int
) -> dict[str, Any]:
    """Mark the name of a call, and the last text among its arguments."""
    function = dict(call["function"])
    if "name" in kinds:
        function["name"] = mark(f"name {at}", function["name"])
    arguments = function["arguments"]
    if "call" in kinds and isinstance(arguments, dict):
        texts = [
            key for key, value in arguments.items() if isinstance(value, str) and value.strip()
        ]
        if texts:
            last = mark(f"call {at}", arguments[texts[-1]])
            function["arguments"] = {**arguments, texts[-1]: last}
    return {**call, "function": function}


def _unmark(text: str) -> tuple[str, dict[str, int]]:
    """Remove the marks. Returns the text, and mark -> its place."""
    places: dict[str, int] = {}
    parts, position, length = [], 0, 0
    for match in _MARKS.finditer(text):
        parts.append(text[position : match.start()])
        length += match.start() - position
        position = match.end()
        # a template can write the name of a call once more with its result
        places.setdefault(match[0], length)
    return "".join([*parts, text[position:]]), places


def _search(messages: list[Message], text: str) -> _Pieces:
    pieces: _Pieces = {}
    position = 0
    for number, message in enumerate(messages):
        core = message["content"].strip()
        place = text.find(core, position) if core else -1
        if place >= 0:
            position = place + len(core)
            pieces[number, "content"] = (place, position)
    return pieces


def _rename_reasoning(message: Message, keys: Sequence[str]) -> Message:
    thought = message.get("reasoning_content")
    return {**message, **dict.fromkeys(keys, thought)} if thought else message


# Plain conversations: the same texts around other contents


def _gaps(messages: list[Message], text: str, pieces: _Pieces) -> list[str] | None:
    """What is written around the contents of messages; None if one of them is not written."""
    gaps, position = [], 0
    for number in range(len(messages)):
        span = pieces.get((number, "content"))
        if span is None or span[0] < position:
            return None
        gaps.append(text[position : span[0]])
        position = span[1]
    return [*gaps, text[position:]]


def _layout_of(
    written: Written, messages: list[Message], as_template: list[str], gaps: list[str]
) -> _Layout:
    starts, ends, position = [], [], 0
    answers = iter(written.answers)
    for message, gap in zip(messages, gaps, strict=False):
        end = position + len(gap) + len(message["content"])
        if message["role"] == "assistant":
            [span] = next(answers).spans
            starts.append(span[0] - position)
            ends.append(span[1] - end)
        position = end
    return _Layout(as_template, gaps, starts, ends, written.notes)


def _by_layout(layout: _Layout, messages: list[Message], text: str) -> Written | None:
    """What is written if the conversation has this layout exactly."""
    contents = [message["content"] for message in messages]
    if _fill(layout.as_template, contents) != text:
        return None
    answers: list[Answer] = []
    position, starts, ends = 0, iter(layout.starts), iter(layout.ends)
    for gap, message in zip(layout.gaps, messages, strict=False):
        begin = position + len(gap)
        end = begin + len(message["content"])
        if message["role"] == "assistant":
            span = position + next(starts), end + next(ends)
            answers.append(Answer([span], (begin, end), None))
        position = end
    return Written(_fill(layout.gaps, contents), answers, layout.notes)


def _fill(gaps: list[str], contents: list[str]) -> str:
    parts = [part for pair in zip(gaps, contents, strict=False) for part in pair]
    return "".join([*parts, gaps[-1]])
