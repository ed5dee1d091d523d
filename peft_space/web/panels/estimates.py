"""Memory and time of a training before it starts, on the Recipe tab: estimated or measured."""

import html
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from peft_space.web.components import Operation, cancel_button
from peft_space.web.context import HIDDEN, PageContext, Updates, Values
from peft_space.web.render.overview import escape, table_html

_SOURCES = (
    "10 % of memory is reserved. Sizes: Hub documentation, 2026. Times are lower bounds from the "
    "peak speeds in NVIDIA's data sheets; small models are far slower than that."
)


def build(page: PageContext) -> None:
    """Place and wire the panel."""
    with gr.Accordion("Memory and time", open=False, elem_id="memory-and-time"):
        gr.Markdown(
            "*Estimate*: instant, rough. *Measure*: runs four real training steps, the last with "
            "your longest rows; nothing is saved."
        )
        with gr.Row():
            estimate = gr.Button("Estimate memory and time", elem_id="estimate")
            measure = gr.Button("Measure a few steps", elem_id="dry-run")
            cancel = cancel_button("cancel-estimates")
        progress = gr.Markdown(elem_id="estimates")
        with gr.Accordion("Would it fit on a Space?", open=False, visible=False) as on_spaces:
            spaces = gr.HTML(elem_id="on-spaces")
            gr.Markdown(_SOURCES)
    operation = Operation(page, progress, [estimate, measure], cancel)

    def show(result: dict[str, Any]) -> Updates:
        hardware = result.get("estimates", result)["spaces"]
        return {
            progress: words_markdown(result["words"]),
            page.measured_seconds: None,
            spaces: spaces_html(hardware),
            on_spaces: gr.update(visible=bool(hardware)),
        }

    def show_measured(result: dict[str, Any]) -> Updates:
        return show(result) | {page.measured_seconds: result["seconds"]}

    def handler(
        name: str, show: Callable[[dict[str, Any]], Updates]
    ) -> Callable[[Values], Iterator[Updates]]:
        def run(values: Values) -> Iterator[Updates]:
            arguments = page.data_arguments(values)
            yield operation.begin()
            yield from operation.stream(name, show, **arguments)

        return run

    outputs = [page.measured_seconds, spaces, on_spaces]
    events = [
        operation.on_click(button, handler(name, shown), page.data_inputs, outputs)
        for button, name, shown in (
            (estimate, "estimate", show),
            (measure, "dry_run", show_measured),
        )
    ]
    operation.cancel_events(events)
    cleared = {progress: "", page.measured_seconds: None, on_spaces: gr.update(visible=False)}
    page.data.change(lambda: cleared, None, list(cleared), **HIDDEN)


def words_markdown(words: list[str]) -> str:
    """Return sentences such as "Time: 3 s." as paragraphs that begin in bold."""
    pairs = [sentence.split(": ", 1) for sentence in words]
    return "\n\n".join(f"**{escape(subject)}:** {escape(rest)}" for subject, rest in pairs)


def spaces_html(hardware: list[dict[str, Any]]) -> str:
    """Return one line per hardware of a Space: name, whether training fits, and a minimal time."""
    rows = []
    for item in hardware:
        name = f"{html.escape(item['title'])} <small>{html.escape(item['name'])}</small>"
        verdict = "✓ fits" if item["fits"] else "✗ does not fit"
        need = f"{verdict}: {item['need'] / 1e9:,.2f} of {item['memory'] / 1e9:,.0f} GB"
        rows.append([name, need, _at_least(item["least_seconds"]) if item["fits"] else ""])
    return table_html(["Hardware", "Memory", "Time"], rows, "answers advice")


def _at_least(seconds: float | None) -> str:
    if seconds is None:
        return "not known"
    hours, minutes = divmod(round(seconds / 60), 60)
    if not hours and not minutes:
        return "at least seconds"
    return f"at least {hours} h {minutes} min" if hours else f"at least {minutes} min"
