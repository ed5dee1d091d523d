"""The Publish tab: the adapter as a download, or pushed to the Hub."""

import tempfile
from typing import Any

import gradio as gr

from peft_space.ui.page import PRIVATE, Page, tells_errors


def build(page: Page) -> None:
    """Place and wire the tab."""
    gr.Markdown("The adapter alone, apart from its base, which it names: it loads in PEFT anywhere.")
    pack = gr.Button("Make a .zip of the adapter", variant="primary", elem_id="make-zip")
    file = gr.File(label="Download", visible=False, interactive=False, elem_id="zip")
    gr.Markdown("### Push to the Hugging Face Hub")
    with gr.Row():
        repo = gr.Textbox(
            label="Repository",
            placeholder="owner/name",
            info="A new one is made; to one that exists a pull request is opened.",
            elem_id="repo",
        )
        token = gr.Textbox(
            label="Token with write access",
            type="password",
            info="Used for this push and forgotten. On your own machine it may stay empty, if that is signed in.",
            elem_id="token",
        )
    public = gr.Checkbox(False, label="Public", info="Everybody can see it. Off: only you can.")
    push = gr.Button("Push", elem_id="push")
    pushed = gr.Markdown(elem_id="pushed")

    @tells_errors
    def make_zip(values: dict[Any, Any]) -> Any:
        run = page.chosen_run(values)
        made = page.workers.call("export", run=str(run.directory), out=tempfile.mkdtemp(prefix="peft_space-"), as_zip=True)
        return gr.update(value=made["path"], visible=True)

    @tells_errors
    def push_adapter(values: dict[Any, Any]) -> dict[Any, Any]:
        run = page.chosen_run(values)
        made = page.workers.call(
            "push",
            run=str(run.directory),
            repo=(values[repo] or "").strip(),
            token=(values[token] or "").strip() or None,
            public=values[public],
        )
        return {pushed: f"Pushed to [{made['url']}]({made['url']}).", token: ""}

    chosen = {page.visitor, page.run}
    pack.click(make_zip, chosen, file, **PRIVATE)
    push.click(push_adapter, {*chosen, repo, token, public}, [pushed, token], **PRIVATE)
    page.run.change(lambda: [gr.update(value=None, visible=False), ""], None, [file, pushed], **PRIVATE)
