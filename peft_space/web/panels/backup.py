"""Backups of runs in a private dataset on the Hub, in the view of all runs."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from peft_space.runs import quotas
from peft_space.runs.run import Run
from peft_space.runs.store import unique_name
from peft_space.web.auth import token_of
from peft_space.web.components import Operation
from peft_space.web.context import Inputs, PageContext, Updates, Values
from peft_space.web.render import overview as render_overview


class BackupPanel:
    """The panel's components and handlers."""

    def __init__(self, page: PageContext):
        self.page = page
        gr.Markdown(
            "Stores the selected run in a **private** dataset repository on the Hub, with its data "
            "and newest checkpoint. You can restore it here or on another machine."
        )
        with gr.Row():
            self.repo = gr.Textbox(
                label="Dataset repository", placeholder="owner/name", elem_id="backup-repo"
            )
            self.token = gr.Textbox(
                label="Token with write access",
                type="password",
                elem_id="backup-token",
                info="Used once, not stored. Optional if you're signed in.",
            )
        with gr.Row():
            self.backup = gr.Button("Back up", size="md", elem_id="backup")
            self.restore = gr.Button("Restore", size="md", elem_id="restore")
        self.progress = gr.Markdown(elem_id="backup-progress")
        self.operation = Operation(page, self.progress, [self.backup, self.restore])

    def _hub_arguments(self, values: Values, signed_in: gr.OAuthToken | None) -> dict[str, Any]:
        repo = (values[self.repo] or "").strip()
        return {"repo": repo, "token": token_of(values[self.token], signed_in)}

    def back_up_run(self, values: Values, signed_in: gr.OAuthToken | None) -> Iterator[Updates]:
        """Back up the selected run."""

        def show(result: dict[str, Any]) -> Updates:
            url = result["url"]
            sentence = f"Backed up to [{render_overview.escape(url)}]({url})."
            return {self.progress: sentence, self.token: ""}

        run, hub = self.page.selected_run(values), self._hub_arguments(values, signed_in)
        yield self.operation.begin("Backing up…")
        yield from self.operation.stream("backup", show, run=str(run.directory), **hub)

    def restore_run(self, values: Values, signed_in: gr.OAuthToken | None) -> Iterator[Updates]:
        """Restore a run from the Hub and select it."""
        page, owner = self.page, self.page.owner(values)
        folder = quotas.new_run(owner)

        def show(result: dict[str, Any]) -> Updates:
            run = Run(folder)
            run.rename(unique_name(owner, run.name, but=run))
            return {
                self.progress: "✓ Restored and selected. Resume it on Train.",
                self.token: "",
                page.run: folder.name,
            }

        hub = self._hub_arguments(values, signed_in)
        yield self.operation.begin("Restoring…")
        yield from self.operation.stream("restore", show, directory=str(folder), **hub)


def build(page: PageContext) -> None:
    """Place and wire the panel."""
    with gr.Accordion("Back up to the Hub", open=False, elem_id="backup-panel"):
        panel = BackupPanel(page)
    inputs: Inputs = {*page.selection, panel.repo, panel.token}
    panel.operation.on_click(panel.backup, panel.back_up_run, inputs, [panel.token])
    panel.operation.on_click(panel.restore, panel.restore_run, inputs, [panel.token, page.run])
