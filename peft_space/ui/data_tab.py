"""The Data tab: bring a file, or take the sample; see what was understood, and each token's fate in training."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from peft_space.data.read import SUFFIXES
from peft_space.errors import UserError
from peft_space.ui import view
from peft_space.ui.page import PRIVATE, Page, tells_errors

NOTHING = "No data yet: bring a file, or use the sample data."


def build(page: Page) -> None:
    """Place and wire the tab."""
    gr.Markdown(
        "Bring rows that show what the model should answer: a `.json`, `.jsonl` or `.csv` file with columns such as *instruction* and *output*, "
        "*prompt* and *completion*, *question* and *answer*, or *messages*."
    )
    with gr.Row():
        file = gr.File(label="Your data", file_types=list(SUFFIXES), elem_id="data-file", height=150)
        with gr.Column():
            sample = gr.Button("Use the sample data", elem_id="use-sample")
            gr.Markdown("300 messages to a shop's support desk, and the tickets that belong to them.")
            with gr.Accordion("I have a second file, of rows to score on", open=False):
                held_out = gr.File(label="Held-out rows", file_types=list(SUFFIXES), elem_id="held-out-file", height=120)
                gr.Markdown("Without one, a tenth of your rows is kept from training.")
    summary = gr.Markdown(NOTHING, elem_id="data-summary")
    cancel = gr.Button("Cancel reading", visible=False, elem_id="cancel-check")
    found_rows = gr.State([])
    with gr.Column(visible=False) as preview:
        number = gr.Slider(
            1, 2, value=1, step=1, label="Row", info="The first rows, exactly as they will be trained.", elem_id="preview-row"
        )
        tokens = gr.HTML(elem_id="preview")
        histogram = gr.BarPlot(
            x="tokens",
            y="rows",
            color="fate",
            color_map={"within the limit": "#0f766e", "cut off": "#b91c1c"},
            title="Tokens in a row",
            height=220,
            elem_id="histogram",
        )
    problems = gr.Dataframe(label="Rows that cannot be used", visible=False, interactive=False, elem_id="problems")
    outputs = [summary, cancel, preview, found_rows, number, tokens, histogram, problems, page.num_rows]
    empty = {cancel: gr.update(visible=False), preview: gr.update(visible=False), problems: gr.update(visible=False), page.num_rows: 0}

    def show(found: dict[str, Any]) -> dict[Any, Any]:
        examples = found["examples"]
        return {
            summary: view.check_markdown(found),
            cancel: gr.update(visible=False),
            preview: gr.update(visible=True),
            found_rows: examples,
            number: gr.update(maximum=max(2, len(examples)), value=1, visible=len(examples) > 1),
            tokens: view.tokens_html(examples[0]),
            histogram: gr.update(value=view.lengths_table(found), x_bin=found["bin_width"]),
            problems: gr.update(value=view.problems_table(found), visible=bool(found["problems"])),
            page.num_rows: found["to_train"],
        }

    def check(values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        yield {summary: "Reading…" if values[page.data] else NOTHING, **empty}
        if not values[page.data]:
            return
        recipe = page.form.recipe(values).model_dump()
        yield {cancel: gr.update(visible=True)}
        try:
            for message in page.workers.stream("check", data=values[page.data], recipe=recipe, held_out=values[page.held_out] or None):
                if "result" in message:
                    yield show(message["result"])
                else:
                    yield {summary: f"{message['report']['what']}…" if message["report"] else gr.skip()}
        except UserError:
            yield empty
            raise

    checked: dict[str, Any] = {
        "inputs": {page.data, page.held_out, *page.form.inputs},
        "outputs": outputs,
        "show_progress": "hidden",
        **PRIVATE,
    }
    file.change(lambda path: path or "", file, page.data, **PRIVATE)
    held_out.change(lambda path: path or "", held_out, page.held_out, **PRIVATE)
    sample.click(lambda: "demo", None, page.data, **PRIVATE)
    checks = gr.on([page.data.change, page.held_out.change], tells_errors(check, where=summary), **checked)
    shaping = [page.form.widgets[name] for name in ("base_model", "revision", "max_length", "held_out_share", "seed")]
    gr.on([event for widget in shaping for event in (widget.blur, widget.submit)], tells_errors(check, where=summary), **checked)
    cancelled = {summary: NOTHING, page.data: "", **empty}
    cancel.click(lambda: cancelled, None, [*outputs, page.data], cancels=checks, **PRIVATE)
    number.change(
        lambda examples, n: view.tokens_html(examples[min(int(n), len(examples)) - 1]) if examples else "",
        [found_rows, number],
        tokens,
        show_progress="hidden",
        **PRIVATE,
    )
