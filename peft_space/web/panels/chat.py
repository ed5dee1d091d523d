"""A chat of several turns with both columns, on the Compare tab. Each column goes on with its own answers."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from peft_space.errors import UserError
from peft_space.web.context import PRIVATE, PageContext, show_errors
from peft_space.web.render import compare as render_compare


def build(
    page: PageContext, settings: dict[str, gr.components.Component], system: gr.Textbox
) -> None:
    """Place and wire it; sampling and system message are those of the tab."""
    with gr.Accordion("Chat of several turns", open=False):
        said = gr.HTML(elem_id="chat-said")
        message = gr.Textbox(
            label="Your message to both", lines=1, max_lines=8, elem_id="chat-message"
        )
        with gr.Row():
            send = gr.Button("Send", interactive=False, elem_id="chat-send")
            stop = gr.Button("Stop", elem_id="chat-stop")
            anew = gr.Button("Start anew", elem_id="chat-anew")
        progress = gr.Markdown(elem_id="chat-progress")
    turns = gr.State([])

    def go_on(values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        text = (values[message] or "").strip()
        if not text:
            raise UserError("todo", "There is no message. Write one.")
        run = page.chosen_run(values)
        _ = run.adapter
        before, row = values[turns], {"prompt": text, "base": "", "adapter": ""}
        sampling = {name: values[field] for name, field in settings.items()}
        arguments = {
            "prompts": [text],
            "system": values[system] or "",
            "sampling": sampling,
            "history": before,
        }
        yield {progress: "Starting…"}
        for told in page.workers.stream("compare", run=str(run.directory), **arguments):
            report = told.get("report")
            if report and "column" in report:
                row[report["column"]] = report["text"]
                yield {
                    progress: f"The {report['column']} answers…",
                    said: render_compare.answers_html([*before, row]),
                }
            elif "result" in told:
                found = told["result"]
                answered = [
                    *before,
                    {
                        key: found["answers"][0][key]
                        for key in ("prompt", "rendered", "base", "adapter")
                    },
                ]
                shown = render_compare.answers_html(answered) + render_compare.fairness_html(
                    found["fairness"]["words"]
                )
                yield {progress: "", said: shown, turns: answered, message: ""}
            else:
                yield {progress: f"{report['what']}…" if report else gr.skip()}

    hidden: dict[str, Any] = {"show_progress": "hidden", **PRIVATE}
    asked = {page.visitor, page.run, message, turns, system, *settings.values()}
    given = [progress, said, turns, message]
    # one handler, two ways to it
    going = gr.on(
        [send.click, message.submit], show_errors(go_on, where=progress), asked, given, **hidden
    )
    stop.click(lambda: "Stopped.", None, progress, cancels=going, **hidden)
    gr.on(
        [anew.click, page.shown.change],
        lambda: ["", "", [], ""],
        None,
        given,
        cancels=going,
        **hidden,
    )
    page.state.change(
        lambda state: gr.update(interactive=bool(state and state[1])), page.state, send, **hidden
    )
