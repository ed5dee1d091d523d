"""A chat with base and adapter on the Compare tab. Each continues with its own answers."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from peft_space.errors import UserError
from peft_space.web.components import Operation, show_errors
from peft_space.web.context import HIDDEN, Inputs, PageContext, Updates, Values
from peft_space.web.render import compare as render_compare


def build(
    page: PageContext, sampling: dict[str, gr.components.Component], system: gr.Textbox
) -> None:
    """Place and wire the panel. Sampling and system prompt are those of the tab."""
    with gr.Accordion("Chat", open=False, elem_id="chat"):
        answers = gr.HTML(elem_id="chat-answers")
        message = gr.Textbox(
            label="Message both models", lines=1, max_lines=8, elem_id="chat-message"
        )
        with gr.Row():
            send = gr.Button("Send", interactive=False, elem_id="chat-send")
            stop = gr.Button("Stop", elem_id="chat-stop")
            new = gr.Button("New chat", elem_id="chat-new")
        progress = gr.Markdown(elem_id="chat-progress")
    turns = gr.State([])
    operation = Operation(page, progress)

    def answer(values: Values) -> Iterator[Updates]:
        text = (values[message] or "").strip()
        if not text:
            raise UserError("web.no_message", "Type a message first.")
        run, history = page.trained_run(values), values[turns]
        turn = {"prompt": text, "base": "", "adapter": ""}
        arguments = {
            "prompts": [text],
            "system": values[system] or "",
            "sampling": {name: values[field] for name, field in sampling.items()},
            "history": history,
        }

        def show_growing(report: dict[str, Any]) -> Updates | None:
            if "column" not in report:
                return None
            turn[report["column"]] = report["text"]
            html = render_compare.answers_html([*history, turn])
            return {progress: writing(report["column"]), answers: html}

        def show(result: dict[str, Any]) -> Updates:
            answered = result["answers"][0]
            new_turn = {key: answered[key] for key in ("prompt", "rendered", "base", "adapter")}
            html = render_compare.answers_html([*history, new_turn])
            html += render_compare.fairness_html(result["fairness"]["words"])
            return {progress: "", answers: html, turns: [*history, new_turn], message: ""}

        yield operation.begin()
        directory = str(run.directory)
        yield from operation.stream("compare", show, show_growing, run=directory, **arguments)

    inputs: Inputs = {*page.selection, message, turns, system, *sampling.values()}
    outputs = [progress, answers, turns, message]
    events = [send.click, message.submit]
    answering = gr.on(events, show_errors(answer, progress), inputs, outputs, **HIDDEN)
    stop.click(lambda: "Stopped.", None, progress, cancels=answering, **HIDDEN)
    restarts = [new.click, page.run_id.change]
    gr.on(restarts, lambda: ["", "", [], ""], None, outputs, cancels=answering, **HIDDEN)
    page.enable_with_adapter(send)


def writing(side: str) -> str:
    """Say which model is writing."""
    names = {"base": "Base model", "adapter": "Adapter"}
    return f"{names.get(side, side)} is writing…"
