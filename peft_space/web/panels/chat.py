"""A chat with base and fine-tuned model at once, on the Compare tab."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from peft_space.errors import UserError
from peft_space.web.components import Operation, show_errors
from peft_space.web.context import HIDDEN, Inputs, PageContext, Updates, Values
from peft_space.web.panels.answers import Answers, picture_box, reads_pictures, writing
from peft_space.web.render import compare as render_compare


class Chat:
    """The panel's components and handlers. Sampling and system prompt are those of `answers`."""

    def __init__(self, page: PageContext, answers: Answers):
        self.page, self.system, self.sampling = page, answers.system, answers.sampling
        self.answers = gr.HTML(elem_id="chat-answers")
        self.message = gr.Textbox(
            label="Message both models",
            info="Ctrl+Enter sends.",
            lines=1,
            max_lines=8,
            elem_id="chat-message",
        )
        self.pictures = picture_box("Pictures for the first message", "chat-pictures")
        with gr.Row():
            small: dict[str, Any] = {"size": "md", "scale": 0, "min_width": 130}
            self.send = gr.Button(
                "Send", variant="primary", interactive=False, elem_id="chat-send", **small
            )
            self.stop = gr.Button(
                "Stop", variant="stop", visible=False, elem_id="chat-stop", **small
            )
            self.new = gr.Button("New chat", elem_id="chat-new", **small)
        self.progress = gr.Markdown(elem_id="chat-progress")
        self.turns = gr.State([])
        self.operation = Operation(page, self.progress)
        self.outputs: list[gr.components.Component] = [
            self.progress,
            self.answers,
            self.turns,
            self.message,
            self.stop,
            self.pictures,
        ]

    def answer(self, values: Values) -> Iterator[Updates]:
        """Answer the message with both models."""
        text = (values[self.message] or "").strip()
        if not text:
            raise UserError("web.no_message", "Type a message first.")
        run, history = self.page.trained_run(values), values[self.turns]
        turn = {"prompt": text, "base": "", "adapter": ""}
        arguments = {
            "prompts": [text],
            "system": values[self.system] or "",
            "sampling": {name: values[field] for name, field in self.sampling.items()},
            "history": history,
        }
        if pictures := [str(path) for path in values[self.pictures] or []]:
            arguments["pictures"] = pictures  # of the first message, in each turn

        def show_growing(report: dict[str, Any]) -> Updates | None:
            if "column" not in report:
                return None
            turn[report["column"]] = report["text"]
            html = render_compare.answers_html([*history, turn])
            return {self.progress: writing(report["column"]), self.answers: html}

        def show(result: dict[str, Any]) -> Updates:
            answered = result["answers"][0]
            kept = ["prompt", "rendered", "base", "adapter", "cut"]
            if not history:
                kept.append("pictures")
            new_turn = {key: answered[key] for key in kept}
            html = render_compare.answers_html([*history, new_turn])
            html += render_compare.fairness_html(result["fairness"]["words"])
            return {
                self.progress: "",
                self.answers: html,
                self.turns: [*history, new_turn],
                self.message: "",
                self.stop: gr.update(visible=False),
                self.pictures: gr.update(interactive=False),
            }

        yield self.operation.begin() | {self.stop: gr.update(visible=True)}
        directory = str(run.directory)
        yield from self.operation.stream("compare", show, show_growing, run=directory, **arguments)


def build(page: PageContext, answers: Answers) -> None:
    """Place and wire the panel."""
    chat = Chat(page, answers)
    more = {chat.message, chat.turns, chat.system, chat.pictures, *chat.sampling.values()}
    inputs: Inputs = {*page.selection, *more}
    events = [chat.send.click, chat.message.submit]
    answer = show_errors(chat.answer, chat.progress)
    answering = gr.on(events, answer, inputs, chat.outputs, **HIDDEN)
    hidden = gr.update(visible=False)
    answering.failure(lambda: hidden, None, chat.stop, **HIDDEN)
    stopped = {chat.progress: "Stopped.", chat.stop: hidden}
    chat.stop.click(lambda: stopped, None, list(stopped), cancels=answering, **HIDDEN)

    def restart(values: Values) -> list[Any]:
        has_box = bool(values[page.run]) and reads_pictures(page.selected_run(values))
        return ["", "", [], "", hidden, gr.update(visible=has_box, interactive=True, value=None)]

    restarts = [chat.new.click, page.run.change]
    gr.on(restarts, restart, {*page.selection}, chat.outputs, cancels=answering, **HIDDEN)
    page.enable_with_adapter(chat.send)
