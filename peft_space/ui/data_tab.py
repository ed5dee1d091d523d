"""The Data tab: bring a file, or take the sample; see what was understood and what each token's fate in training is."""

from typing import Any

import gradio as gr

from peft_space.data.read import SUFFIXES
from peft_space.ui import view
from peft_space.ui.page import Page, tells_errors


def build(page: Page) -> None:
    """Place and wire the tab."""
    gr.Markdown(
        "Bring rows that show what the model should answer. A `.json`, `.jsonl` or `.csv` file with columns such as *instruction* and *output*, *prompt* and *completion*, *question* and *answer*, or *messages*."
    )
    with gr.Row():
        with gr.Column():
            file = gr.File(label="Your data", file_types=list(SUFFIXES), elem_id="data-file")
            demo = gr.Button("Use the sample data: support messages to tickets", elem_id="use-demo")
        with gr.Column(), gr.Accordion("Rows to score on, if you have a file of them", open=False):
            held_out = gr.File(label="Held-out rows", file_types=list(SUFFIXES), elem_id="held-out-file")
    summary = gr.Markdown("Nothing here yet: bring a file, or use the sample data.", elem_id="data-summary")
    rows = gr.State([])
    with gr.Column(visible=False) as preview:
        number = gr.Slider(
            1, 2, value=1, step=1, label="Row", info="The first rows, exactly as they will be trained.", elem_id="preview-row"
        )
        tokens = gr.HighlightedText(
            label="Marked tokens are trained; the others are read only", color_map={"trained": "green", "cut off": "red"},
            combine_adjacent=True, show_legend=True, show_whitespaces=True, elem_id="preview",
        )  # fmt: skip
    problems = gr.Dataframe(label="Rows that cannot be used", visible=False, interactive=False, elem_id="problems")
    outputs = [summary, preview, rows, number, tokens, problems]

    @tells_errors
    def check(values: dict[Any, Any]) -> dict[Any, Any]:
        if not values[page.data]:
            return {
                summary: "Nothing here yet: bring a file, or use the sample data.",
                preview: gr.update(visible=False),
                problems: gr.update(visible=False),
            }
        recipe = page.form.recipe(values)
        found = page.workers.call("check", data=values[page.data], recipe=recipe.model_dump(), held_out=values[page.held_out] or None)
        examples = found["examples"]
        return {
            summary: view.check_markdown(found),
            preview: gr.update(visible=True),
            rows: examples,
            number: gr.update(maximum=max(2, len(examples)), value=1, visible=len(examples) > 1),
            tokens: view.tokens_of(examples[0]),
            problems: gr.update(value=view.problems_table(found), visible=bool(found["problems"])),
        }

    private: Any = {"api_visibility": "private"}
    checked = {"inputs": {page.data, page.held_out, *page.form.inputs}, "outputs": outputs, **private}
    file.change(lambda path: path or "", file, page.data, **private).then(check, **checked)
    held_out.change(lambda path: path or "", held_out, page.held_out, **private).then(check, **checked)
    demo.click(lambda: "demo", None, page.data, **private).then(check, **checked)
    number.change(
        lambda examples, n: view.tokens_of(examples[min(int(n), len(examples)) - 1]) if examples else [], [rows, number], tokens, **private
    )
