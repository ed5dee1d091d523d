"""Figures in words, and names that end nothing around them, the same on the page, through the API and on the command line."""

import html
import re

RESUME_ANYWAY = "*Resume anyway* on the page, or `peft-space resume RUN_DIR --ignore-mismatch`"
"""How to go on from a checkpoint of other rows, another recipe or other libraries."""


def gigabytes(size: float) -> str:
    """Bytes in words."""
    return f"{size / 2**30:.{1 if size >= 2**30 else 2}f} GiB"


def duration(seconds: float) -> str:
    """Seconds in words, as exact as they are worth."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )


_MARKDOWN = set("\\`*_{}[]()#+-.!|~$")


def escape(text: str) -> str:
    """Text of a user or a model, so that Markdown shows it as it is."""
    return "".join(
        f"\\{character}" if character in _MARKDOWN else character
        for character in html.escape(text, quote=False)
    )


def single_line(text: str) -> str:
    """The text with all that ends a line as a space."""
    return " ".join(text.splitlines())


def code(text: str) -> str:
    """A name as code within a line of Markdown, which nothing in it ends."""
    marks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{marks}{space}{single_line(text)}{space}{marks}"


def code_block(text: str, language: str = "") -> str:
    """Lines as a block of code in Markdown, which nothing in them ends."""
    marks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{marks}{language}\n{text}\n{marks}"
