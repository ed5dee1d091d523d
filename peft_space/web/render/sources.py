"""HTML of the source of the data, made without gradio."""

import html

from peft_space.data.dataset import DEMO_DATA
from peft_space.data.table import short_name


def source_html(data: str | list[str]) -> str:
    """Return the one chip that says which data the page uses."""
    return f'<p class="source"><b>{html.escape(names_of(data))}</b></p>'


def names_of(data: str | list[str]) -> str:
    """Return the names of the files or the dataset."""
    if data == DEMO_DATA:
        return "Example: support tickets"
    return " + ".join(short_name(path) for path in ([data] if isinstance(data, str) else data))


def examples_html(examples: dict[str, tuple[str, str]]) -> str:
    """Return one button per example.

    Args:
        examples: kind -> title and description.
    """
    buttons = "".join(
        f'<button class="row" data-value="{kind}" id="use-{kind}"><b>{html.escape(title)}</b>'
        f"<small>{html.escape(about)}</small></button>"
        for kind, (title, about) in examples.items()
    )
    return f'<div class="list">{buttons}</div>'
