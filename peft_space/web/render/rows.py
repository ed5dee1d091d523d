"""HTML of one row: as the app reads it, token by token, and its pictures."""

import html
from collections.abc import Sequence
from typing import Any

from peft_space.web.render.compare import pictures_html

MAX_TOKENS = 2_000
_PARTS = {"reasoning": "thinking", "content": "", "tool_calls": "tool calls"}
"""What a message has: key -> title."""
_LEARNED = ("assistant", "label", "tags", "preferred")
"""Roles of what is learned."""
_AVOIDED = '<p class="legend"><strong>The model learns to avoid this answer.</strong></p>'
_LEGEND = (
    '<p class="legend"><span class="trained">learned</span> '
    '<span class="trained end">end-of-answer token</span> '
    '<span class="masked">context only</span> <span class="cut">✂ truncated</span></p>'
)


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


def chat_html(row: dict[str, Any]) -> str:
    """Return a row as a conversation, or why it is skipped."""
    if problem := row.get("problem"):
        return f"<p><strong>Row {row['row']} is skipped:</strong> {html.escape(problem)}.</p>"
    bubbles = "".join(map(_bubble_html, row["messages"]))
    return (
        f'<div class="chat" tabindex="0" role="group" aria-label="Row {row["row"]}">{bubbles}</div>'
    )


def _bubble_html(message: dict[str, str]) -> str:
    role = html.escape(message["role"])
    parts = [
        f"<i>{title}</i><pre>{html.escape(message[name])}</pre>"
        for name, title in _PARTS.items()
        if message.get(name)
    ]
    side = "assistant" if role in _LEARNED else role.partition(" ")[0]
    return f'<div class="bubble {side}"><small>{role}</small>{"".join(parts)}</div>'


def example_html(example: dict[str, Any]) -> str:
    """Return a row as the model sees it in training, token by token, or why it is skipped."""
    name = f"Row {example['row']}"
    if "problem" in example:
        raw = f'<pre class="raw">{html.escape(example["raw"])}</pre>' if "raw" in example else ""
        problem = html.escape(example["problem"])
        return f"<p><strong>{name} is skipped:</strong> {problem}.</p>{raw}"
    if "tags" in example:
        return _tags_html(name, example["tags"], example["cut"])
    tokens = tokens_html(name, example["tokens"], example["cut"], example.get("unknown"))
    if "rejected" in example:
        rejected = tokens_html(
            f"{name}, rejected", example["rejected"], example["rejected_cut"],
            example.get("rejected_unknown"),
        )  # fmt: skip
        return (
            _legend(example)
            + _titled("Preferred", tokens)
            + _titled("Rejected, to avoid", _avoided(rejected))
        )
    if "target" in example:
        target = tokens_html(
            f"{name}, target", example["target"], example["target_cut"],
            example.get("target_unknown"),
        )  # fmt: skip
        return _legend(example) + _titled("Input", tokens) + _titled("Target", target)
    is_label = "label" in example
    label = f"<p><strong>Label:</strong> {html.escape(example['label'])}</p>" if is_label else ""
    learns_text = any(trained for _, trained in example["tokens"])
    pictures = row_pictures_html(example.get("pictures", []))
    legend = (
        _legend(example) if learns_text else "<p>The model reads the text and learns the label.</p>"
    )
    if learns_text and is_label:  # an answer that is rated
        is_good = example["label"] == "good"
        tokens, legend = (tokens, legend) if is_good else (_avoided(tokens), _AVOIDED)
    pieces = ""
    if "pieces" in example:
        pieces = f"<p>This is the first of {example['pieces']} pieces of a long text.</p>"
    return f"{legend}{pictures}{tokens}{label}{pieces}"


def _legend(example: dict[str, Any]) -> str:
    if not any(key.endswith("unknown") for key in example):
        return _LEGEND
    return _LEGEND.replace("</p>", ' <s class="masked">unknown to the tokenizer</s></p>')


def _avoided(tokens: str) -> str:
    return f'<div class="avoided">{tokens}</div>'


def _titled(title: str, content: str) -> str:
    return f"<p><strong>{title}</strong></p>{content}"


def _tags_html(name: str, tags: list[list[str]], num_cut: int) -> str:
    """Return tokens with their tags; untagged ones, such as later parts of a word, are gray."""
    tokens = [
        f'<span class="{"trained" if tag else "masked"}">{html.escape(text)}'
        f"{f'<sub>{html.escape(tag)}</sub>' if tag else ''}</span>"
        for text, tag in tags
    ]
    legend = "<p>The model learns the tag below each token. Gray tokens are context only.</p>"
    return legend + tokens_box(f"{name}, tags", " ".join(tokens) + cut_html(num_cut))
