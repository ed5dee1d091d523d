"""Reads plain text and CoNLL files of tagged tokens."""

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import IO

from peft_space.data.cells import conversation_in
from peft_space.data.readers import Note, NumberedRow, check_row_length
from peft_space.errors import UserError


def read_text(name: str, text: IO[str], note: Note) -> Iterator[NumberedRow]:
    """Yield a row for each paragraph if blank lines separate paragraphs, or for each line.

    Conversations that a chat template has written, and texts with <|endoftext|> between them, are
    rows as they are. The file is read twice because it may not fit into memory. A row's number is
    its first line.
    """
    by_paragraph = _has_paragraphs(text)
    text.seek(0)
    if all(_FAST_TEXT.match(line) for line in itertools.islice(text, _NUM_PEEKED)):
        text.seek(0)
        yield from _read_fast_text(text, note)
        return
    text.seek(0)
    head = list(itertools.islice(text, _NUM_HEAD))
    text.seek(0)
    if begins := _begin_of_rows(head):
        note(f"Each part of the text that begins with {begins[0]!r} is a row.")
        yield from _read_parts(name, text, *begins)
        return
    if any(_END_OF_TEXT in line for line in head):
        note(f"Each text before {_END_OF_TEXT} is a row.")
        yield from _read_ended(name, text)
        return
    note("Each paragraph is a row." if by_paragraph else "Each line is a row.")
    paragraph: list[str] = []
    for number, line in enumerate(itertools.chain(text, [""]), 1):
        line = line.rstrip("\r\n")
        if line.strip():
            paragraph.append(line)
        if paragraph and not (by_paragraph and line.strip()):
            first = number - len(paragraph) + (0 if by_paragraph else 1)
            row = {"text": "\n".join(paragraph)}
            check_row_length(name, f"the text that begins on line {first}", len(row["text"]))
            yield first, json.dumps(row, ensure_ascii=False), row
            paragraph = []


_NUM_HEAD = 2_000
_END_OF_TEXT = "<|endoftext|>"
_OPENING = re.compile(
    r"<s>|<bos>|<\|begin_of_text\|>|<｜begin▁of▁sentence｜>|<\|im_start\|>\w+"
    r"|<\|start_header_id\|>\w+|<start_of_turn>\w+|<\|(?:system|user)\|>|\[INST\]"
    r"|#{2,3} ?(?:Instruction|Human|User|Question)|Human:"
)


def _begin_of_rows(head: list[str]) -> tuple[str, int] | None:
    """Return what each conversation begins with, and the blank lines before it; or None.

    None if paragraphs are conversations already, or the first part is none.
    """
    lines = [line.rstrip("\r\n") for line in head]
    first = next((line.lstrip("\ufeff") for line in lines if line.strip()), "")
    opening = _OPENING.match(first)
    begin = opening[0] if opening else first
    places = [at for at, line in enumerate(lines) if line.lstrip("\ufeff").startswith(begin)]
    if not first or (not opening and (len(places) < 2 or not _has_sections(lines))):
        return None
    for num_blank in (2, 1, 0):
        starts = [at for at in places if at and not any(map(str.strip, lines[at - num_blank : at]))]
        starts = [at for at in starts if at >= num_blank]
        if starts or num_blank == 0:
            ends = [*starts, len(lines)]
            parts = ["\n".join(lines[a:b]) for a, b in itertools.pairwise([0, *ends])]
            # parts without blank lines are read as paragraphs
            is_known = num_blank > 0 and not any("\n\n" in part.strip() for part in parts)
            is_conversation = conversation_in(parts[0]) is not None
            return (begin, num_blank) if is_conversation and not is_known else None
    return None


def _has_sections(lines: list[str]) -> bool:
    return any(re.match(r"#{2,3} ?Instruction", line) for line in lines)


def _read_parts(name: str, text: IO[str], begin: str, num_blank: int) -> Iterator[NumberedRow]:
    """Yield a row for each part that begins with `begin` after so many blank lines."""
    part: list[str] = []
    first, blank = 1, num_blank
    for number, line in enumerate(text, 1):
        line = line.lstrip("\ufeff")
        if line.startswith(begin) and blank >= num_blank and any(map(str.strip, part)):
            yield from _row_of_text(name, first, "".join(part))
            part, first = [], number
        part.append(line)
        blank = 0 if line.strip() else blank + 1
    yield from _row_of_text(name, first, "".join(part))


def _read_ended(name: str, text: IO[str]) -> Iterator[NumberedRow]:
    """Yield a row for each text that ends with <|endoftext|>."""
    part, first = "", 1
    for number, line in enumerate(text, 1):
        *ended, rest = line.split(_END_OF_TEXT)
        for end in ended:
            yield from _row_of_text(name, first, part + end)
            part, first = "", number
        part += rest
    yield from _row_of_text(name, first, part)


def _row_of_text(name: str, number: int, text: str) -> Iterator[NumberedRow]:
    check_row_length(name, f"the text that begins on line {number}", len(text))
    row = {"text": text.strip("\ufeff\r\n")}
    if row["text"].strip():
        yield number, json.dumps(row, ensure_ascii=False), row


_NUM_PEEKED = 50
_FAST_TEXT = re.compile(r"\ufeff?((?:__label__\S+\s+)+)(.*)|\s*$")


def _read_fast_text(lines: Iterable[str], note: Note) -> Iterator[NumberedRow]:
    """Yield a row for each line, which begins with the labels of its text, as in fastText."""
    note("Each line begins with the label of its text, as in fastText.")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        marks, text = (found.groups() if (found := _FAST_TEXT.match(line)) else None) or ("", line)
        labels = [mark.removeprefix("__label__") for mark in (marks or "").split()]
        row = {"text": text.rstrip("\r\n"), "label": labels[0] if len(labels) == 1 else labels}
        yield number, json.dumps(row, ensure_ascii=False), row


def _has_paragraphs(text: IO[str]) -> bool:
    """Return True if a blank line separates two lines of text."""
    is_filled = (bool(line.strip()) for line in text)
    blocks = itertools.groupby(itertools.dropwhile(lambda filled: not filled, is_filled))
    return sum(1 for _ in itertools.islice(blocks, 3)) == 3  # text, blank, text


def read_conll(name: str, lines: Iterator[str], note: Note) -> Iterator[NumberedRow]:
    """Yield a row for each sentence: a token and its tag on each line, blank lines in between.

    In CoNLL-U files, which have ten columns, these are the columns FORM and UPOS.

    Raises:
        UserError: a line has no tag.
    """
    tokens: list[str] = []
    tags: list[str] = []
    number = length = 0
    is_noted = False
    for line_number, line in enumerate(itertools.chain(lines, [""]), 1):
        if line.strip() and not _is_comment(line):
            parts = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
            if len(parts) < 2 or not parts[0] or not parts[-1].strip():
                raise UserError(
                    "data.missing_tag",
                    f"{name}: line {line_number} has no tag after the token. "
                    "Write TOKEN, a tab and TAG on every line.",
                )
            if universal := _CONLL_U.fullmatch(line.rstrip("\r\n")):
                if not is_noted:
                    note("The file is CoNLL-U: the tokens are FORM, the tags are UPOS.")
                    is_noted = True
                if not universal["number"].isdigit():
                    continue  # several words written as one, or a word that is not written
                parts = [universal["form"], universal["tag"]]
            length += len(line)
            check_row_length(name, f"sentence {number + 1}, up to line {line_number},", length)
            tokens.append(parts[0])
            tags.append(parts[-1].strip())
        elif tokens:
            number += 1
            row = {"tokens": tokens, "tags": tags}
            yield number, json.dumps(row, ensure_ascii=False), row
            tokens, tags, length = [], [], 0


_CONLL_U = re.compile(
    r"(?P<number>\d+(?:[-.]\d+)?)\t(?P<form>[^\t]+)\t[^\t]*\t(?P<tag>[^\t]+)(?:\t[^\t]*){6}"
)


def _is_comment(line: str) -> bool:
    """Return True for a document mark, or for metadata such as `# sent_id = 1`."""
    is_metadata = line.startswith("# ") and "\t" not in line and " = " in line
    return is_metadata or line.startswith("-DOCSTART-")


_TAG = re.compile(r"O|[BILUESMbilues][-_]\S+")


def looks_tagged(sample: str, is_whole: bool) -> bool:
    """Return True if the beginning of a text is surely CoNLL: tokens with tags such as B-PER.

    Args:
        sample: the beginning of the text.
        is_whole: True if that is the whole text; otherwise its last line may be cut off.
    """
    lines = sample.lstrip("\ufeff").splitlines()
    lines = [line for line in (lines if is_whole else lines[:-1]) if line.strip()]
    lines = [line for line in lines if not _is_comment(line)]
    if not lines:
        return False
    if all(_CONLL_U.fullmatch(line) for line in lines):
        return True
    rows = [line.split("\t") if "\t" in line else line.split() for line in lines]
    tags = [row[-1].strip() for row in rows]
    is_uniform = len(rows[0]) >= 2 and all(len(row) == len(rows[0]) for row in rows)
    has_tags = all(_TAG.fullmatch(tag) for tag in tags) and any(tag != "O" for tag in tags)
    return is_uniform and has_tags and not any(" " in row[0].strip() for row in rows)
