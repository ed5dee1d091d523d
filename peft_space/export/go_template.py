"""A chat template of Jinja in the language of Ollama's templates, which is Go's: derived from what it writes around probes, and held against it.

What Ollama hands to a template: `.System`, all system messages joined; `.Messages`, each with `.Role` and `.Content`, no two of one role in a row.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peft_space.data.records import Message
from peft_space.data.tokenization.chat_template import ChatTemplate, load_chat_template
from peft_space.errors import UserError
from peft_space.export.gguf.tokenizer import begins_with_bos

_SYSTEM, _USERS, _ANSWERS = (
    "s0q7x",
    ("u1q7x", "u2q7x", "u3q7x", "u4q7x"),
    ("a1w5z", "a2w5z", "a3w5z"),
)


@dataclass(frozen=True)
class Around:
    """What a chat template writes around the messages of a conversation that ends with a question."""

    start: str
    """Before the first question where there is no system message."""
    asked: str
    """Between a question and its answer."""
    answered: str
    """Between an answer and the next question."""
    asks: str
    """After the last question."""
    system: tuple[str, str] | None = None
    """Before the system message, and between it and a question, None where the template takes none."""
    later: str | None = None
    """Before the system message where it stands with a question that is not the first: then it is with the last one, otherwise with the first."""

    def write(self, system: str, questions: Sequence[str], answers: Sequence[str]) -> str:
        """The conversation as the Go template writes it."""
        opening = [self.start, *[self.answered] * len(answers)]
        if system and self.system:
            place = -1 if self.later is not None else 0
            before = self.later if place and answers else self.system[0]
            opening[place] = f"{before}{system}{self.system[1]}"
        turns = [f"{before}{question}" for before, question in zip(opening, questions, strict=True)]
        return (
            "".join(
                f"{turn}{self.asked}{answer}" for turn, answer in zip(turns, answers, strict=False)
            )
            + turns[-1]
            + self.asks
        )


def around(tokenizer: Any) -> Around:
    """Derive it from the tokenizer's chat template. Raises UserError where the template is not of this form."""
    template = load_chat_template(tokenizer)
    start, asks = _parts(template, 1)
    start_2, asked, answered, asks_2 = _parts(template, 2)
    if (start, asks) != (start_2, asks_2):
        raise _refused("it writes the first question otherwise once there is a second")
    system, later = _system(template)
    found = Around(start, asked, answered, asks, system, later)
    _check(template, found)
    return found


def _parts(template: ChatTemplate, num_questions: int) -> list[str]:
    """What stands around the messages of a conversation without a system message."""
    words = _words(num_questions)
    return _cut(template.write(_conversation(words), None, prompt=True), words)


def _words(num_questions: int) -> list[str]:
    return [
        word
        for pair in zip(_USERS, ("", *_ANSWERS), strict=True)
        for word in reversed(pair)
        if word
    ][: 2 * num_questions - 1]


def _conversation(words: Sequence[str], system: str = "") -> list[Message]:
    first: list[Message] = [{"role": "system", "content": system}] if system else []
    return first + [
        {"role": "assistant" if number % 2 else "user", "content": word}
        for number, word in enumerate(words)
    ]


def _cut(text: str, words: Sequence[str]) -> list[str]:
    """The text between the words, which it has once each and in this order. Raises UserError otherwise."""
    found = re.split("|".join(map(re.escape, words)), text)
    if re.findall("|".join(map(re.escape, words)), text) != list(words):
        raise _refused("it does not write the messages one after the other")
    return found


def _system(template: ChatTemplate) -> tuple[tuple[str, str] | None, str | None]:
    """`Around.system` and `Around.later`."""
    one, two = _words(1), _words(2)
    try:
        text = template.write(_conversation(one, _SYSTEM), None, prompt=True)
    except Exception:  # noqa: BLE001 - a template says with an error of its own that it takes no system message
        return None, None
    if _SYSTEM not in text:
        return None, None
    before, after, _ = _cut(text, [_SYSTEM, *one])
    text = template.write(_conversation(two, _SYSTEM), None, prompt=True)
    if text.find(_SYSTEM) < text.find(two[0]):
        return (before, after), None
    return (before, after), _cut(text, [*two[:-1], _SYSTEM, two[-1]])[2]


def _check(template: ChatTemplate, found: Around) -> None:
    """Raises UserError where the template writes any of some conversations otherwise."""
    odd = 'a "quoted" \\n {{ .System }}\nline, 100 % <b> é 猫'
    for num_questions in range(1, len(_USERS) + 1):
        for system in ("", _SYSTEM, odd)[: 3 if found.system else 1]:
            for change in (str, lambda word: f"{word} {odd}"):
                words = [change(word) for word in _words(num_questions)]
                if template.write(_conversation(words, system), None, prompt=True) != found.write(
                    system, words[::2], words[1::2]
                ):
                    raise _refused("what it writes of a message depends on more than its place")


def _refused(why: str) -> UserError:
    return UserError(
        "todo",
        f"This model's chat template cannot be written for Ollama: {why}. Export GGUF, and run it with llama.cpp, which takes the template as it is.",
    )


def go_template(tokenizer: Any) -> str:
    """The Go template that writes what the tokenizer's own writes. Raises UserError where there is none.

    Without the token that begins a text, where the template writes one: Ollama puts it there by itself.
    """
    found = around(tokenizer)
    bos = tokenizer.bos_token if begins_with_bos(tokenizer) else ""
    start, system = found.start.removeprefix(bos), found.system
    first = _text(start)
    if system is None:
        opening = f"{{{{- if $first }}}}{first}{{{{ else }}}}{_text(found.answered)}{{{{ end }}}}"
    elif found.later is None:
        told = _text(system[0].removeprefix(bos)) + "{{ $.System }}" + _text(system[1])
        opening = (
            "{{- if $first }}{{ if $.System }}"
            + told
            + "{{ else }}"
            + first
            + "{{ end }}{{ else }}"
            + _text(found.answered)
            + "{{ end }}"
        )
    else:
        place = (
            "{{ if $first }}"
            + _text(system[0].removeprefix(bos))
            + "{{ else }}"
            + _text(found.later)
            + "{{ end }}"
        )
        opening = "{{- if and $last $.System }}" + place + "{{ $.System }}" + _text(system[1])
        opening += (
            "{{ else if $first }}" + first + "{{ else }}" + _text(found.answered) + "{{ end }}"
        )
    after = "{{ if $last }}" + _text(found.asks) + "{{ else }}" + _text(found.asked) + "{{ end }}"
    if found.asks == found.asked:
        after = _text(found.asks)
    return "\n".join(
        [
            "{{- $first := true }}",
            "{{- range $i, $_ := .Messages }}",
            "{{- $last := eq (len (slice $.Messages $i)) 1 }}",
            '{{- if eq .Role "user" }}',
            opening + "{{ .Content }}" + after + "{{ $first = false }}",
            '{{- else if eq .Role "assistant" }}{{ .Content }}',
            "{{- end }}",
            "{{- end }}",
        ]
    )


def _text(text: str) -> str:
    """An action that writes this text. No three quotation marks can come of it, which would end the template in a Modelfile."""
    signs = {"\\": "\\\\", '"': "\\u0022", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    written = "".join(
        signs.get(sign) or (f"\\u{ord(sign):04x}" if ord(sign) < 32 else sign) for sign in text
    )
    return f'{{{{ "{written}" }}}}' if text else ""
