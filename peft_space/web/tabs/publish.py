"""The Publish tab: download the adapter or a merged model, or push it to the Hub."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from peft_space.web.auth import token_of
from peft_space.web.components import Operation, cancel_button, show_errors
from peft_space.web.context import (
    HIDDEN,
    PRIVATE,
    Inputs,
    PageContext,
    Updates,
    Values,
    has_adapter,
)
from peft_space.web.panels import export as export_panel
from peft_space.web.panels import ranks as ranks_panel
from peft_space.web.render import overview as render_overview
from peft_space.web.render import publish as render_publish
from peft_space.web.render.overview import empty_html
from peft_space.web.tabs.compare import show_blocked


def build(page: PageContext) -> None:
    """Place and wire the tab."""
    blocked = gr.HTML(empty_html("Train an adapter first."), elem_id="publish-blocked")
    with gr.Column(visible=False, elem_id="publish-run") as content:
        gr.Markdown("### Is it ready?")
        ready = gr.HTML(elem_id="ready")
        gr.Markdown("### Take it with you")
        export = export_panel.build(page)
        gr.Markdown("### Push to the Hugging Face Hub")
        panel = PushPanel(page, export)
        ranks_panel.build_reduce_rank(page)
    inputs: Inputs = {*page.selection, *panel.inputs, *export.inputs}
    event = panel.operation.on_click(panel.push, panel.push_run, inputs, [panel.token])
    panel.operation.cancel_events([event], "Canceled. An empty repository may have been created.")
    page.enable_with_adapter(panel.push)
    page.reset_with_run({panel.progress: ""})
    _wire_card(page, panel)
    show_blocked(page, "Publish", blocked, content)

    def show_ready(values: Values) -> Updates:
        if not values[page.run] or not has_adapter(values[page.run_state]):
            return {ready: ""}
        return {ready: render_publish.readiness_html(page.selected_run(values))}

    page.listen("run", show_ready, set(), [ready])


class PushPanel:
    """The push to the Hub: its components and handlers."""

    def __init__(self, page: PageContext, export: export_panel.ExportPanel):
        self.page, self.export = page, export
        with gr.Row():
            self.repo = gr.Textbox(
                label="Repository",
                placeholder="owner/name",
                info="Created if new; existing repos get a pull request.",
                elem_id="repo",
            )
            self.token = gr.Textbox(
                label="Token with write access",
                type="password",
                info="Used once, not stored. Optional if you're signed in.",
                elem_id="token",
            )
        contents = [("The adapter", "adapter"), ("The export selected above", "export")]
        self.content = gr.Radio(
            contents, value="adapter", label="What to push", elem_id="what-to-push"
        )
        self.public = gr.Checkbox(False, label="Public", info="Visible to everyone.")
        with (
            gr.Accordion(
                "Preview and edit the model card", open=False, elem_id="card-panel"
            ) as self.card_panel,
            gr.Row(),
        ):
            self.card = gr.Code(
                language="markdown",
                label="README.md",
                interactive=True,
                wrap_lines=True,
                max_lines=20,
                elem_id="card",
            )
            self.card_preview = gr.Markdown(elem_id="card-shown", container=True, max_height=440)
        self.generated = gr.State(["", "", {}])
        """[run id, generated card, its pictures]: a card that differs was edited, so it stays."""
        with gr.Row():
            self.push = gr.Button(
                "Push", size="md", scale=0, min_width=160, interactive=False, elem_id="push"
            )
            cancel = cancel_button("cancel-push")
        self.progress = gr.Markdown(elem_id="pushed")
        self.operation = Operation(page, self.progress, [self.push], cancel)
        card = {self.card, self.generated}
        self.inputs = {self.repo, self.token, self.public, self.content, *card}

    def is_edited(self, values: Values) -> bool:
        """Return True if the card is of the selected run and was edited."""
        run_id, text, _ = values[self.generated]
        card = values[self.card] or ""
        return run_id == values[self.page.run] and bool(card) and card.strip() != text.strip()

    def push_run(self, values: Values, signed_in: gr.OAuthToken | None) -> Iterator[Updates]:
        """Push the selected run's adapter, or the export that is selected."""
        run = self.page.selected_run(values)
        is_adapter = values[self.content] == "adapter"
        arguments = {
            "repo": (values[self.repo] or "").strip(),
            "token": token_of(values[self.token], signed_in),
            "public": values[self.public],
            "card": values[self.card] if is_adapter and self.is_edited(values) else None,
        }

        def show(result: dict[str, Any]) -> Updates:
            url = result["url"]
            link = f"[{render_overview.escape(url)}]({url})"
            return {self.progress: f"Pushed to {link}.", self.token: ""}

        yield self.operation.begin()
        arguments["options"] = None if is_adapter else self.export.options(values)
        yield from self.operation.stream("push", show, run=str(run.directory), **arguments)

    def write_card(self, values: Values) -> tuple[Any, Any]:
        """Generate the selected run's card, unless it was edited."""
        run = self.page.selected_run(values)
        if self.is_edited(values):
            return gr.skip(), gr.skip()
        card = self.page.workers.call("model_card", run=str(run.directory))
        return card["card"], [values[self.page.run], card["card"], card["pictures"]]


def _wire_card(page: PageContext, panel: PushPanel) -> None:
    def show_card_panel(content: str) -> Any:  # an export writes its own card
        return gr.update(visible=content == "adapter")

    def preview(text: str | None, generated: list[Any]) -> str:
        return render_overview.card_markdown(text or "", generated[2])

    def clear_other(run_id: str, generated: list[Any]) -> Any:
        # Gradio reports a change late after a reload: the card may already be of this run.
        return gr.skip() if generated[0] == run_id else ""

    panel.content.change(show_card_panel, panel.content, panel.card_panel, **HIDDEN)
    card = [panel.card, panel.generated]
    write_card = show_errors(panel.write_card)
    panel.card_panel.expand(write_card, {*page.selection, *card}, card, **PRIVATE)
    panel.card.change(preview, card, panel.card_preview, **HIDDEN)
    page.run.change(clear_other, [page.run, panel.generated], panel.card, **HIDDEN)
