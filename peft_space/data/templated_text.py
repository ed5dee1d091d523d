"""Conversations that were written as one text, as a chat template or a transcript writes them."""

import re
from dataclasses import dataclass
from typing import Any

_ROLES = {
    "human": "user", "user": "user", "assistant": "assistant", "model": "assistant",
    "system": "system", "tool": "tool", "ipython": "tool", "function response": "tool",
}  # fmt: skip
_BEGINNINGS = ("", "<s>", "<bos>", "<|begin_of_text|>")
_ENDS = ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>")


@dataclass(frozen=True)
class _Form:
    """How a turn begins, with its role, and how it ends."""

    beginning: re.Pattern[str]
    ends: tuple[str, ...] = ()
    always_ends: bool = False
    """True if every turn but the last has an end."""


_FORMS = (
    # ChatML
    _Form(re.compile(r"<\|im_start\|>(system|user|assistant|tool)\n"), ("<|im_end|>",), True),
    # Llama 3
    _Form(
        re.compile(
            r"<\|start_header_id\|>(system|user|assistant|ipython)<\|end_header_id\|>\n\n"
        ),
        ("<|eot_id|>", "<|eom_id|>"), True,
    ),
    # Gemma
    _Form(re.compile(r"<start_of_turn>(user|model)\n"), ("<end_of_turn>",), True),
    # Zephyr, Phi
    _Form(re.compile(r"<\|(system|user|assistant|tool)\|>\n?"), ("<|end|>", *_ENDS)),
    # Guanaco
    _Form(re.compile(r"### (Human|User|Assistant|System): ?")),
    # HH
    _Form(re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")),
    # Vicuna, Glaive
    _Form(re.compile(r"(?:\A|(?<=[\s>]))(USER|ASSISTANT|FUNCTION RESPONSE): ?"), _ENDS),
)  # fmt: skip
_SIGN = re.compile(r"<\||\[INST\]|<start_of_turn>|### |Human:|USER:")
_SIGN_WITHIN = 200


def conversation_in(text: Any) -> list[dict[str, Any]] | None:
    """Return the turns of a conversation that is written as one text, or None.

    The text must consist of nothing else, and at least one turn must be an answer.
    """
    if not isinstance(text, str) or not _SIGN.search(text[:_SIGN_WITHIN]):
        return None
    text = text.strip()
    turns = _llama_2(text)
    for form in _FORMS:
        turns = turns or _read(form, text)
    if turns and turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip():
        turns.pop()  # the opening of an answer
    roles = {turn["role"] for turn in turns or []}
    return turns if {"user", "assistant"} <= roles else None


def _read(form: _Form, text: str) -> list[dict[str, Any]] | None:
    before, *parts = form.beginning.split(text)
    if not parts or before.strip() not in _BEGINNINGS:
        return None
    turns: list[dict[str, Any]] = []
    for role, content in zip(parts[::2], parts[1::2], strict=True):
        is_last = len(turns) == len(parts) // 2 - 1
        ended, has_end = _without_end(content, (*form.ends, *(_ENDS if is_last else ())))
        if (form.always_ends and not has_end and not is_last) or any(
            end in ended for end in form.ends
        ):
            return None
        content = ended if form.always_ends else ended.strip()
        turns.append({"role": _ROLES[role.lower()], "content": content})
    return turns


def _without_end(content: str, ends: tuple[str, ...]) -> tuple[str, bool]:
    has_end = False
    while end := next((end for end in ends if content.rstrip().endswith(end)), ""):
        content, has_end = content.rstrip().removesuffix(end), True
    return content, has_end


_SYSTEM = re.compile(r"\s*<<SYS>>\n?(.*?)\n?<</SYS>>\s*", re.DOTALL)


def _llama_2(text: str) -> list[dict[str, Any]] | None:
    before, *parts = text.split("[INST]")
    if not parts or before.strip() not in _BEGINNINGS:
        return None
    turns: list[dict[str, Any]] = []
    for part in parts:
        question, *answers = part.split("[/INST]")
        if len(answers) != 1:
            return None
        if not turns and (system := _SYSTEM.match(question)):
            turns.append({"role": "system", "content": system[1]})
            question = question[system.end() :]
        answer = answers[0].rstrip().removesuffix("<s>")
        answer = _without_end(answer, _ENDS)[0].strip()
        turns.append({"role": "user", "content": question.strip()})
        turns.append({"role": "assistant", "content": answer})
    return turns
