"""The Compare tab: base and adapter answer the same prompt side by side, and the held-out rows give both a score."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from peft_space.data.check import data_of
from peft_space.errors import UserError
from peft_space.ui import view
from peft_space.ui.page import Page, tells_errors


def build(page: Page) -> None:
    """Place and wire the tab."""
    gr.Markdown("Both columns come from one base in memory, with the adapter off and on: same prompt, same sampling, same seed.")
    prompt = gr.Textbox(label="Prompt", lines=3, elem_id="prompt")
    with gr.Row():
        take = gr.Button("Take a held-out row", elem_id="take-row")
        ask = gr.Button("Let both answer", variant="primary", elem_id="ask")
        stop = gr.Button("Stop", elem_id="stop-answers")
    with gr.Accordion("Sampling", open=False), gr.Row():
        system = gr.Textbox(label="System prompt", info="Said before the prompt. Empty: none.")
        length = gr.Number(128, precision=0, minimum=1, maximum=4096, label="Tokens at most")
        temperature = gr.Number(0.0, minimum=0.0, maximum=5.0, label="Temperature", info="0 takes the likeliest token always.")
        top_p = gr.Number(1.0, minimum=0.01, maximum=1.0, label="Top p")
        seed = gr.Number(0, precision=0, minimum=0, label="Seed")
    with gr.Row():
        base = gr.Textbox(label="Base", lines=6, elem_id="base-answer")
        adapter = gr.Textbox(label="Adapter", lines=6, elem_id="adapter-answer")
    expected = gr.Textbox(label="The row's own answer", visible=False, elem_id="expected")
    with gr.Accordion("The prompt as the model sees it", open=False):
        rendered = gr.Textbox(show_label=False, lines=3, elem_id="rendered")
    score = gr.Button("Score both on the held-out rows", elem_id="score")
    progress = gr.Markdown(elem_id="score-progress")
    scores = gr.Dataframe(visible=False, interactive=False, label="Scores on the held-out rows", elem_id="scores")
    taken = gr.State(0)

    @tells_errors
    def take_row(values: dict[Any, Any]) -> dict[Any, Any]:
        rows = data_of(page.chosen_run(values)).held_out
        if not rows:
            raise UserError("This run has no held-out rows. Type a prompt.")
        messages = rows[values[taken] % len(rows)].messages
        return {
            prompt: messages[-2]["content"],
            system: messages[0]["content"] if messages[0]["role"] == "system" else "",
            expected: gr.update(value=messages[-1]["content"], visible=True),
            taken: values[taken] + 1,
        }

    @tells_errors
    def answer(values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        if not values[prompt].strip():
            raise UserError("The prompt is empty. Type one, or take a held-out row.")
        run = page.chosen_run(values)
        sampling = {"max_new_tokens": values[length], "temperature": values[temperature], "top_p": values[top_p], "seed": values[seed]}
        _ = run.adapter  # tell it at once where there is none
        yield {base: "…", adapter: "…", rendered: ""}
        for message in page.workers.stream(
            "compare", run=str(run.directory), prompts=[values[prompt]], system=values[system], sampling=sampling
        ):
            if "report" in message:
                yield {base if message["report"]["column"] == "base" else adapter: message["report"]["text"]}
            else:
                [given] = message["result"]["answers"]
                yield {base: given["base"], adapter: given["adapter"], rendered: given["rendered"]}

    @tells_errors
    def evaluate(values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        run = page.chosen_run(values)
        _ = run.adapter
        yield {progress: "Loading the base and the adapter…"}
        for message in page.workers.stream("evaluate", run=str(run.directory)):
            if "report" in message:
                yield {progress: f"{message['report']['what']}…"}
            else:
                result = message["result"]
                yield {
                    progress: f"On {result['num_rows']} held-out rows:",
                    scores: gr.update(value=view.scores_table(result), visible=True),
                }

    chosen = {page.visitor, page.run}
    private: Any = {"api_visibility": "private"}
    take.click(take_row, {*chosen, taken}, [prompt, system, expected, taken], **private)
    asked = {*chosen, prompt, system, length, temperature, top_p, seed}
    answering = gr.on([ask.click, prompt.submit], answer, asked, [base, adapter, rendered], **private)
    scoring = score.click(evaluate, chosen, [progress, scores], **private)
    stop.click(lambda: "Stopped.", None, progress, cancels=[answering, scoring], **private)
    page.run.change(
        lambda: ["", "", "", gr.update(visible=False), "", gr.update(visible=False)],
        None,
        [base, adapter, rendered, expected, progress, scores],
        **private,
    )
