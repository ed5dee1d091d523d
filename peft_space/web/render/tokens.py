"""HTML of the tokens and the pictures of one row."""

import html
from collections.abc import Sequence
from typing import Any

from peft_space.web.render.compare import pictures_html

MAX_TOKENS = 2_000


def row_pictures_html(pictures: list[dict[str, Any]]) -> str:
    """Return the pictures of a row, what each costs, and what the model gets of it."""
    figures = []
    for picture in pictures:
        shapes = ", ".join(
            f"{name} {' × '.join(map(str, shape))}" for name, shape in picture["arrays"].items()
        )
        caption = f"{picture['tokens']:,} tokens<br><small>{html.escape(shapes)}</small>"
        shown = pictures_html([picture["thumbnail"]])
        figures.append(f"<figure>{shown}<figcaption>{caption}</figcaption></figure>")
    return f'<div class="row-pictures">{"".join(figures)}</div>' if figures else ""


def cut_html(num_cut: int) -> str:
    """Return how many tokens are cut off; nothing if none are."""
    return f'<span class="cut">✂ {num_cut:,} tokens truncated</span>' if num_cut else ""


def tokens_box(label: str, content: str) -> str:
    """Return tokens in a box that scrolls, with a label for screen readers."""
    return f'<div class="tokens" role="group" aria-label="{label}" tabindex="0">{content}</div>'


def tokens_html(
    name: str, row: list[list[Any]], num_cut: int, unknown: Sequence[int] | None = None
) -> str:
    """Return a rendered row: learned tokens marked, ends of answers boxed, the others gray.

    Args:
        name: of the row, for screen readers.
        row: [text, whether the model learns it] of each token.
        num_cut: tokens beyond the length limit.
        unknown: places of tokens that stand for text which the tokenizer has no token for.
    """
    tokens = row[:MAX_TOKENS]
    pieces = []
    for number, (text, trained) in enumerate(tokens):
        if number and not trained and _repeats(row, number):
            if not _repeats(row, number + 1):
                pieces.append(_repetitions_html(row, number))
            continue
        kind = "masked"
        if trained:
            kind = "trained end" if not num_cut and _ends_answer(row, number) else "trained"
        shown = html.escape(text).replace("\n", '<span class="break">↵</span>\n')
        shown = shown or '<span class="break">‧</span>'  # the character continues
        if number in (unknown or ()):
            kind, shown = f"{kind} unknown", f"<s>{shown}</s>"
        pieces.append(f'<span class="{kind}" title="token {number + 1}: {kind}">{shown}</span>')
    if more := len(row) - len(tokens):
        pieces.append(f'<span class="masked"> … and {more:,} more tokens</span>')
    return tokens_box(f"{name}, token by token", "".join(pieces) + cut_html(num_cut))


_MIN_REPETITIONS = 4
"""So many equal special tokens after each other, as those of a picture, are shown as one."""


def _repeats(row: list[list[Any]], number: int) -> bool:
    """Return True for a special token after an equal one, if there are many."""
    if number >= len(row) or not row[number][0].startswith("<") or row[number] != row[number - 1]:
        return False
    return _run_length(row, number) >= _MIN_REPETITIONS


def _run_length(row: list[list[Any]], number: int) -> int:
    first = last = number
    while first > 0 and row[first - 1] == row[number]:
        first -= 1
    while last + 1 < len(row) and row[last + 1] == row[number]:
        last += 1
    return last - first + 1


def _repetitions_html(row: list[list[Any]], number: int) -> str:
    return f'<span class="masked"> × {_run_length(row, number):,} </span>'


def _ends_answer(row: list[list[Any]], number: int) -> bool:
    return number + 1 == len(row) or (number + 1 < MAX_TOKENS and not row[number + 1][1])
