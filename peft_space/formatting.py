"""Formats sizes, durations and untrusted text for the page, the API and the command line."""

import html
import re

#: How to resume from a checkpoint of other rows, another recipe or other libraries.
RESUME_ANYWAY = "*Resume anyway* on the page, or `peft-space resume RUN_DIR --ignore-mismatch`"


def gigabytes(size: float) -> str:
    """Format a number of bytes."""
    return f"{size / 2**30:.{1 if size >= 2**30 else 2}f} GiB"


def duration(seconds: float) -> str:
    """Format seconds with the precision that the value deserves."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


_MARKDOWN = set("\\`*_{}[]()#+-.!|~$")


def escape(text: str) -> str:
    """Escape text of a user or a model, so that Markdown shows it unchanged."""
    return "".join(
        f"\\{character}" if character in _MARKDOWN else character
        for character in html.escape(text, quote=False)
    )


def single_line(text: str) -> str:
    """Replace every line break by a space."""
    return " ".join(text.splitlines())


def code(text: str) -> str:
    """Format text as inline code in Markdown. Nothing in the text can end the code."""
    marks = "`" * (1 + _longest_backticks(text))
    space = " " if "`" in text else ""
    return f"{marks}{space}{single_line(text)}{space}{marks}"


def code_block(text: str, language: str = "") -> str:
    """Format lines as a code block in Markdown. Nothing in the text can end the block."""
    marks = "`" * max(3, 1 + _longest_backticks(text))
    return f"{marks}{language}\n{text}\n{marks}"


def _longest_backticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
