"""Memory and time before a training, on the Recipe tab: estimated at once, or measured in a few steps, and which hardware of a Space would do."""

import functools
import html
from collections.abc import Iterator
from typing import Any

import gradio as gr

from peft_space.errors import UserError
from peft_space.web.context import PRIVATE, PageContext, reset_on_failure, show_errors
from peft_space.web.render import overview as render_overview

_HIDDEN: dict[str, Any] = {"show_progress": "hidden", **PRIVATE}
_SOURCES = (
    "A tenth of each memory is left to the system. Sizes: Hub documentation, 2026. *At least*: all steps at the full speed of NVIDIA's "
    "data sheets, where there is one; what is reached is less, by far with small models."
)


def build(page: PageContext) -> None:
    """Place and wire the estimates."""
    with gr.Accordion("How much memory and time will it take?", open=False):
        gr.Markdown(
            "*Estimate* works it out. *Measure* trains four steps for real, the last with your longest rows; nothing of it is kept."
        )
        with gr.Row():
            estimate = gr.Button("Estimate memory and time", elem_id="estimate")
            measure = gr.Button("Measure a few steps", elem_id="dry-run")
            cancel = gr.Button("Cancel", visible=False, elem_id="cancel-estimates")
        told = gr.Markdown(elem_id="estimates")
        with gr.Accordion("Would it fit on a Space?", open=False, visible=False) as on_spaces:
            spaces = gr.HTML(elem_id="on-spaces")
            gr.Markdown(_SOURCES)
    buttons = (estimate, measure)
    ready = {
        **dict.fromkeys(buttons, gr.update(interactive=True)),
        cancel: gr.update(visible=False),
    }
    busy = {**dict.fromkeys(buttons, gr.update(interactive=False)), cancel: gr.update(visible=True)}

    def find_out(verb: str, values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        if not values[page.data]:
            raise UserError(
                "todo",
                "There is no data yet. Bring a file, or use the sample data, on the Data tab.",
            )
        yield {told: "Starting…", **busy}
        show = functools.partial(tell, verb)
        yield from page.working(
            told,
            show,
            verb,
            recipe=page.form.recipe(values).model_dump(),
            **page.data_arguments(values),
        )

    def tell(verb: str, found: dict[str, Any]) -> dict[Any, Any]:
        lines = found.get("estimates", found)["spaces"]
        shown = {spaces: spaces_html(lines), on_spaces: gr.update(visible=bool(lines))}
        measured = {page.measured: found["seconds"] if verb == "dry_run" else None}
        return {told: words_markdown(found["words"]), **measured, **shown, **ready}

    def work_out(values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        yield from find_out("estimate", values)

    def train_a_little(values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        yield from find_out("dry_run", values)

    taken = {page.data, page.held_out, page.column_mapping, *page.form.inputs}
    outputs = [told, page.measured, spaces, on_spaces, estimate, measure, cancel]
    working = [
        button.click(show_errors(handler, where=told), taken, outputs, **_HIDDEN)
        for button, handler in ((estimate, work_out), (measure, train_a_little))
    ]
    for one in working:
        reset_on_failure(one, ready)
    cancel.click(
        lambda: {told: "Cancelled.", **ready},
        None,
        [told, *buttons, cancel],
        cancels=working,
        **_HIDDEN,
    )
    forgotten = {told: "", page.measured: None, on_spaces: gr.update(visible=False)}
    page.data.change(lambda: forgotten, None, [told, page.measured, on_spaces], **_HIDDEN)


def words_markdown(words: list[str]) -> str:
    """Sentences of which each begins with what it is about, as paragraphs."""
    pairs = [sentence.split(": ", 1) for sentence in words]
    return "\n\n".join(
        f"**{render_overview.escape(about)}:** {render_overview.escape(rest)}"
        for about, rest in pairs
    )


def spaces_html(lines: list[dict[str, Any]]) -> str:
    """One line a kind of hardware: its name, whether the training fits, and the time below which it cannot come."""
    rows = []
    for line in lines:
        need = f"{'✓ fits' if line['fits'] else '✗ does not fit'}: {line['need'] / 1e9:,.2f} of {line['memory'] / 1e9:,.0f} GB"
        cells = {
            "Hardware": f"{html.escape(line['title'])} <small>{html.escape(line['name'])}</small>",
            "Memory": need,
        }
        cells["Time"] = _at_least(line["least_seconds"]) if line["fits"] else ""
        rows.append(
            "<tr>"
            + "".join(f'<td data-title="{title}">{cell}</td>' for title, cell in cells.items())
            + "</tr>"
        )
    head = "".join(f'<th scope="col">{title}</th>' for title in ("Hardware", "Memory", "Time"))
    return f'<table class="answers advice"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _at_least(seconds: float | None) -> str:
    if seconds is None:
        return "not known"
    minutes = round(seconds / 60)
    return (
        "at least seconds"
        if not minutes
        else f"at least {minutes // 60} h {minutes % 60} min"
        if minutes >= 60
        else f"at least {minutes} min"
    )
