"""The Data tab: bring a file, or take the sample; see what was understood, and each token's fate in training."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from peft_space.data.check import DEMO
from peft_space.data.read import SUFFIXES
from peft_space.errors import UserError
from peft_space.ui import view
from peft_space.ui.page import PRIVATE, Page, tells_errors

NOTHING = "No data yet: bring a file, or use the sample data."


class DataTab:
    """The tab's components, and what a check of the data shows on them."""

    def __init__(self, page: Page):
        self.page = page
        gr.Markdown(
            "Bring rows that show what the model should answer: a `.json`, `.jsonl` or `.csv` file with columns such as *instruction* and *output*, "
            "*prompt* and *completion*, *question* and *answer*, or *messages*."
        )
        with gr.Row():
            self.file = gr.File(label="Your data", file_types=list(SUFFIXES), elem_id="data-file", height=150)
            with gr.Column():
                self.sample = gr.Button("Use the sample data", elem_id="use-sample")
                gr.Markdown("300 messages to a shop's support desk, and the tickets that belong to them.")
                with gr.Accordion("I have a second file, of rows to score on", open=False):
                    self.held_out = gr.File(label="Held-out rows", file_types=list(SUFFIXES), elem_id="held-out-file", height=120)
                    gr.Markdown("Without one, a tenth of your rows is kept from training.")
        self.summary = gr.Markdown(NOTHING, elem_id="data-summary")
        self.cancel = gr.Button("Cancel reading", visible=False, elem_id="cancel-check")
        self.found_rows = gr.State([])
        with gr.Column(visible=False) as self.preview:
            self.number = gr.Slider(
                1, 2, value=1, step=1, label="Row", info="The first rows, exactly as they will be trained.", elem_id="preview-row"
            )
            self.tokens = gr.HTML(elem_id="preview")
            self.histogram = gr.BarPlot(
                x="tokens",
                y="rows",
                color="fate",
                color_map={"within the limit": "#0f766e", "cut off": "#b91c1c"},
                title="Tokens in a row",
                height=220,
                elem_id="histogram",
            )
        self.problems = gr.Dataframe(label="Rows that cannot be used", visible=False, interactive=False, elem_id="problems")
        self.outputs = [
            self.summary, self.cancel, self.preview, self.found_rows, self.number, self.tokens, self.histogram, self.problems, page.num_rows,
        ]  # fmt: skip
        hidden = gr.update(visible=False)
        self.empty = {self.cancel: hidden, self.preview: hidden, self.problems: hidden, page.num_rows: 0}

    def show(self, found: dict[str, Any]) -> dict[Any, Any]:
        """Everything that was found."""
        examples = found["examples"]
        return {
            self.summary: view.check_markdown(found),
            self.cancel: gr.update(visible=False),
            self.preview: gr.update(visible=True),
            self.found_rows: examples,
            self.number: gr.update(maximum=max(2, len(examples)), value=1, visible=len(examples) > 1),
            self.tokens: view.tokens_html(examples[0]),
            self.histogram: gr.update(value=view.lengths_table(found), x_bin=found["bin_width"]),
            self.problems: gr.update(value=view.problems_table(found), visible=bool(found["problems"])),
            self.page.num_rows: found["to_train"],
        }

    def check(self, values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        """Read the data and show what was found, telling what is being done."""
        page = self.page
        yield {self.summary: "Reading…" if values[page.data] else NOTHING, **self.empty}
        if not values[page.data]:
            return
        recipe = page.form.recipe(values).model_dump()
        yield {self.cancel: gr.update(visible=True)}
        try:
            for message in page.workers.stream("check", data=values[page.data], recipe=recipe, held_out=values[page.held_out] or None):
                if "result" in message:
                    yield self.show(message["result"])
                else:
                    yield {self.summary: f"{message['report']['what']}…" if message["report"] else gr.skip()}
        except UserError:
            yield self.empty
            raise


def build(page: Page) -> None:
    """Place and wire the tab."""
    tab = DataTab(page)
    hidden: dict[str, Any] = {"show_progress": "hidden", **PRIVATE}
    checked: dict[str, Any] = {"inputs": {page.data, page.held_out, *page.form.inputs}, "outputs": tab.outputs, **hidden}
    check = tells_errors(tab.check, where=tab.summary)
    tab.file.change(lambda path: path or "", tab.file, page.data, **PRIVATE)
    tab.held_out.change(lambda path: path or "", tab.held_out, page.held_out, **PRIVATE)
    tab.sample.click(lambda: DEMO, None, page.data, **PRIVATE)
    shaping = [page.form.widgets[name] for name in ("base_model", "revision", "max_length", "held_out_share", "seed")]
    again = [event for widget in shaping for event in (widget.blur, widget.submit)]
    checks = [gr.on([page.data.change, page.held_out.change], check, **checked), gr.on(again, check, **checked)]
    cancelled = {tab.summary: NOTHING, page.data: "", **tab.empty}
    tab.cancel.click(lambda: cancelled, None, [*tab.outputs, page.data], cancels=checks, **PRIVATE)
    tab.number.change(
        lambda examples, n: view.tokens_html(examples[min(int(n), len(examples)) - 1]) if examples else "",
        [tab.found_rows, tab.number],
        tab.tokens,
        **hidden,
    )
