"""Writes a Modelfile for Ollama, with the chat template translated to Go's template language.

The translation is derived from what the chat template writes around probe messages, and checked
against it on further conversations. Ollama gives a template `.System`, all system messages joined,
and `.Messages` with `.Role` and `.Content`, in which roles alternate.
The Go translation is frozen: fix it, do not extend it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peft_space.data.messages import Message
from peft_space.data.tokenization.chat_template import ChatTemplate, load_chat_template
from peft_space.errors import UserError
from peft_space.export.gguf.tokenizer import begins_with_bos
from peft_space.models.special_tokens import answer_tokens

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerFast

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def modelfile(
    tokenizer: "PreTrainedTokenizerFast",
    generation: "GenerationConfig | None",
    model: str,
    adapter: str | None = None,
    system: str = "",
) -> str:
    """Return the text of a Modelfile.

    Args:
        tokenizer: the model's tokenizer, with its chat template.
        generation: the model's sampling settings, if it has any.
        model: the name of the model's GGUF file, in the same folder.
        adapter: the name of the adapter's GGUF file, if it is separate.
        system: a system message for conversations that have none.

    Raises:
        UserError: the chat template, the system message or a file name cannot be written.
    """
    for file in (model, adapter):
        if file is not None and not _FILE_NAME.fullmatch(file):  # it could be another instruction
            message = f"A Modelfile cannot name the file {file!r}. Use only letters, digits, dots "
            raise UserError("export.modelfile_file_name", message + "and dashes.")
    lines = [f"# {note}" for note in notes(tokenizer)] + [f"FROM ./{model}"]
    if adapter:
        lines.append(f"ADAPTER ./{adapter}")
    template = go_template(tokenizer)
    assert '"""' not in template, "quotation marks in it are escaped"
    lines.append(f'TEMPLATE """{template}"""')
    if system.strip():
        lines.append(f'SYSTEM """{_quotable(tokenizer, system)}"""')
    ids = answer_tokens(tokenizer, "causal-lm", generation).stops
    stops = [str(tokenizer.convert_ids_to_tokens(stop)) for stop in ids]
    # a token that cannot be quoted still ends an answer, because the GGUF file says so
    lines += [f'PARAMETER stop "{stop}"' for stop in stops if not re.search(r'["\r\n]', stop)]
    parameters = _sampling_parameters(generation)
    lines += [f"PARAMETER {name} {value:g}" for name, value in parameters.items()]
    return "\n".join(lines) + "\n"


def notes(tokenizer: "PreTrainedTokenizerFast") -> list[str]:
    """Return how Ollama's template differs from the tokenizer's, one sentence each."""
    template, sentences = load_chat_template(tokenizer), []
    if "strftime_now" in template.template:
        sentences.append("The model's template writes today's date; here, the date of the export.")
    if derive_layout(tokenizer).system is None:
        sentences.append("The model's template takes no system message, so Ollama ignores it.")
    if " q7x " not in template.write([{"role": "user", "content": " q7x "}], None, prompt=True):
        sentences.append("The model's template strips white space around messages; this does not.")
    return sentences


def _quotable(tokenizer: "PreTrainedTokenizerFast", system: str) -> str:
    if derive_layout(tokenizer).system is None:
        message = "This model's chat template takes no system message. Put its text into the first "
        raise UserError("export.no_system_message", message + "question instead.")
    if '"""' in system:
        message = 'A system message in a Modelfile cannot contain three quotation marks ("""). '
        raise UserError("export.quotes_in_system_message", message + "Rephrase it.")
    # a quotation mark at the end would join the three that close the message
    return f"{system} " if system.endswith('"') else system


def _sampling_parameters(generation: "GenerationConfig | None") -> dict[str, float]:
    """Ollama's parameters; its default repetition penalty is off unless the model sets one."""
    values = {"repeat_penalty": getattr(generation, "repetition_penalty", None) or 1.0}
    if not getattr(generation, "do_sample", False):
        return {"temperature": 0.0, **values}
    names = ("temperature", "top_p", "top_k", "min_p")
    sampling = {name: getattr(generation, name, None) for name in names}
    return {name: value for name, value in sampling.items() if value is not None} | values


# The chat template in Go

_SYSTEM = "s0q7x"
_USER_PROBES = ("u1q7x", "u2q7x", "u3q7x", "u4q7x")
_ASSISTANT_PROBES = ("a1w5z", "a2w5z", "a3w5z")


@dataclass(frozen=True)
class Layout:
    """The text that a chat template writes around the messages of a prompt."""

    start: str
    """Before the first question, if there is no system message."""
    before_answer: str
    """Between a question and its answer."""
    after_answer: str
    """Between an answer and the next question."""
    end: str
    """After the last question."""
    system: tuple[str, str] | None = None
    """Before and after the system message; None if the template takes none."""
    before_late_system: str | None = None
    """Before a system message that is written with the last question, after other messages.
    None if the template writes it with the first question."""

    def write(self, system: str, questions: Sequence[str], answers: Sequence[str]) -> str:
        """Return the prompt that the Go template writes for a conversation."""
        openings = [self.start, *[self.after_answer] * len(answers)]
        if system and self.system:
            late = self.before_late_system
            before = self.system[0] if late is None or not answers else late
            openings[0 if late is None else -1] = f"{before}{system}{self.system[1]}"
        text = ""
        for opening, question, answer in zip(openings, questions, [*answers, None], strict=True):
            following = self.end if answer is None else f"{self.before_answer}{answer}"
            text += f"{opening}{question}{following}"
        return text


def derive_layout(tokenizer: "PreTrainedTokenizerFast") -> Layout:
    """Derive the layout of the tokenizer's chat template from probes.

    Raises:
        UserError: the template cannot be described by a layout.
    """
    template = load_chat_template(tokenizer)
    start, end = _surrounding_texts(template, 1)
    start_of_two, before_answer, after_answer, end_of_two = _surrounding_texts(template, 2)
    if (start, end) != (start_of_two, end_of_two):
        raise _untranslatable("it writes a question differently if another one follows")
    system, before_late_system = _system_layout(template)
    layout = Layout(start, before_answer, after_answer, end, system, before_late_system)
    _check_layout(template, layout)
    return layout


def _surrounding_texts(template: ChatTemplate, num_questions: int) -> list[str]:
    probes = _probes(num_questions)
    return _split(template.write(_conversation(probes), None, prompt=True), probes)


def _probes(num_questions: int) -> list[str]:
    """Questions and answers in turn, from a question to a question."""
    answers = _ASSISTANT_PROBES[: num_questions - 1]
    pairs = zip(_USER_PROBES, answers, strict=False)
    return [*(probe for pair in pairs for probe in pair), _USER_PROBES[num_questions - 1]]


def _conversation(contents: Sequence[str], system: str = "") -> list[Message]:
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for index, content in enumerate(contents):
        messages.append({"role": "assistant" if index % 2 else "user", "content": content})
    return messages


def _split(text: str, probes: Sequence[str]) -> list[str]:
    """The text between the probes, which must occur once each and in this order."""
    pattern = "|".join(map(re.escape, probes))
    if re.findall(pattern, text) != list(probes):
        raise _untranslatable("it does not write the messages one after the other")
    return re.split(pattern, text)


def _system_layout(template: ChatTemplate) -> tuple[tuple[str, str] | None, str | None]:
    """`Layout.system` and `Layout.before_late_system`."""
    one, two = _probes(1), _probes(2)
    try:
        text = template.write(_conversation(one, _SYSTEM), None, prompt=True)
    except Exception:  # noqa: BLE001 - templates raise errors of any kind to reject system messages
        return None, None
    if _SYSTEM not in text:
        return None, None
    before, after, _ = _split(text, [_SYSTEM, *one])
    text = template.write(_conversation(two, _SYSTEM), None, prompt=True)
    if text.find(_SYSTEM) < text.find(two[0]):
        return (before, after), None
    return (before, after), _split(text, [*two[:-1], _SYSTEM, two[-1]])[2]


def _check_layout(template: ChatTemplate, layout: Layout) -> None:
    """Reject a template that writes any of some other conversations differently."""
    odd = 'a "quoted" \\n {{ .System }}\nline, 100 % <b> é 猫'
    for num_questions in range(1, len(_USER_PROBES) + 1):
        for system in ("", _SYSTEM, odd) if layout.system else ("",):
            for suffix in ("", f" {odd}"):
                contents = [probe + suffix for probe in _probes(num_questions)]
                expected = template.write(_conversation(contents, system), None, prompt=True)
                if layout.write(system, contents[::2], contents[1::2]) != expected:
                    raise _untranslatable("its output depends on more than a message's position")


def _untranslatable(reason: str) -> UserError:
    message = f"This model's chat template cannot be translated for Ollama: {reason}. Export GGUF "
    message += "and run it with llama.cpp, which uses the original template."
    return UserError("export.untranslatable_template", message)


def go_template(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Return the Go template that writes the same text as the tokenizer's chat template.

    It omits a token that begins the text, because Ollama adds it.

    Raises:
        UserError: the chat template cannot be translated.
    """
    layout = derive_layout(tokenizer)
    bos = tokenizer.bos_token if begins_with_bos(tokenizer) else ""
    after = (
        f"{{{{ if $last }}}}{_go(layout.end)}{{{{ else }}}}{_go(layout.before_answer)}{{{{ end }}}}"
    )
    if layout.end == layout.before_answer:
        after = _go(layout.end)
    return "\n".join(
        [
            "{{- $first := true }}",
            "{{- range $i, $_ := .Messages }}",
            "{{- $last := eq (len (slice $.Messages $i)) 1 }}",
            '{{- if eq .Role "user" }}',
            _go_opening(layout, bos) + "{{ .Content }}" + after + "{{ $first = false }}",
            '{{- else if eq .Role "assistant" }}{{ .Content }}',
            "{{- end }}",
            "{{- end }}",
        ]
    )


def _go_opening(layout: Layout, bos: str) -> str:
    """What precedes a question, including a system message."""
    first, later = _go(layout.start.removeprefix(bos)), _go(layout.after_answer)
    if layout.system is None:
        return "{{- if $first }}" + first + "{{ else }}" + later + "{{ end }}"
    before, after = _go(layout.system[0].removeprefix(bos)), _go(layout.system[1])
    system = "{{ $.System }}" + after
    if layout.before_late_system is None:
        opening = "{{- if $first }}{{ if $.System }}" + before + system + "{{ else }}" + first
        return opening + "{{ end }}{{ else }}" + later + "{{ end }}"
    late = _go(layout.before_late_system)
    opening = "{{- if and $last $.System }}{{ if $first }}" + before + "{{ else }}" + late
    opening += "{{ end }}" + system + "{{ else if $first }}" + first
    return opening + "{{ else }}" + later + "{{ end }}"


def _go(text: str) -> str:
    """An action that writes this text, without three quotation marks, which end a template."""
    escapes = {"\\": "\\\\", '"': "\\u0022", "\n": "\\n", "\t": "\\t", "\r": "\\r"}

    def escaped(character: str) -> str:
        if character in escapes:
            return escapes[character]
        return f"\\u{ord(character):04x}" if ord(character) < 32 else character

    return f'{{{{ "{"".join(map(escaped, text))}" }}}}' if text else ""
