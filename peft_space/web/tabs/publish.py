"""The Publish tab: the adapter or a merged model as a download, or pushed to the Hub."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from peft_space.export.readiness import checklist_markdown, read_checklist
from peft_space.web.context import PRIVATE, PageContext, reset_on_failure, show_errors, token_of
from peft_space.web.panels import export as export_panel
from peft_space.web.panels import ranks as ranks_panel
from peft_space.web.render import overview as render_overview


def build(page: PageContext) -> None:
    """Place and wire the tab."""
    choice, wanted_export = export_panel.build(page)
    _build_ready(page)
    ranks_panel.build_compress(page)
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
            info="Used for this push and forgotten. It may stay empty where you are signed in, here or on your own machine.",
            elem_id="token",
        )
    what = gr.Radio(
        [("The adapter", "adapter"), ("What is chosen for the export above, with its proof", "export")], value="adapter", label="What to push",
        elem_id="what-to-push",
    )  # fmt: skip
    public = gr.Checkbox(False, label="Public", info="Everybody can see it. Off: only you can.")
    with gr.Accordion("The model card, to read and to edit before", open=False) as card_open:
        card = gr.Code(
            language="markdown",
            label="README.md",
            interactive=True,
            wrap_lines=True,
            elem_id="card",
        )
        card_shown = gr.Markdown(elem_id="card-shown", container=True)
    written = gr.State(["", "", {}])
    """[run, card as it was written from it, its pictures], so that an edited card is known: that one is pushed and stays, another is written anew."""
    with gr.Row():
        push = gr.Button("Push", interactive=False, elem_id="push")
        cancel = gr.Button("Cancel", visible=False, elem_id="cancel-push")
    pushed = gr.Markdown(elem_id="pushed")

    ready = {push: gr.update(interactive=True), cancel: gr.update(visible=False)}

    def edited(values: dict[Any, Any]) -> bool:
        of, text, _ = values[written]
        return (
            of == values[page.run] and bool(values[card]) and values[card].strip() != text.strip()
        )

    def push_adapter(
        values: dict[Any, Any], signed_in: gr.OAuthToken | None
    ) -> Iterator[dict[Any, Any]]:
        run = page.chosen_run(values)
        wanted = {
            "repo": (values[repo] or "").strip(),
            "token": token_of(values[token], signed_in),
            "public": values[public],
        }
        wanted["card"] = values[card] if values[what] == "adapter" and edited(values) else None
        yield {
            pushed: "Starting…",
            push: gr.update(interactive=False),
            cancel: gr.update(visible=True),
        }
        wanted["options"] = wanted_export(values) if values[what] == "export" else None
        yield from page.working(pushed, show, "push", run=str(run.directory), **wanted)

    def show(found: dict[str, Any]) -> dict[Any, Any]:
        return {
            pushed: f"Pushed to [{render_overview.escape(found['url'])}]({found['url']}).",
            token: "",
            **ready,
        }

    chosen = {page.visitor, page.run}
    hidden: dict[str, Any] = {"show_progress": "hidden", **PRIVATE}
    pushing = push.click(
        show_errors(push_adapter, where=pushed),
        {*chosen, repo, token, public, card, written, what, *choice},
        [pushed, token, push, cancel],
        **hidden,
    )
    reset_on_failure(pushing, ready)
    stopped = {
        pushed: "Cancelled. If the upload had begun, the Hub may have made an empty repository.",
        **ready,
    }
    cancel.click(lambda: stopped, None, [pushed, push, cancel], cancels=pushing, **hidden)
    page.state.change(
        lambda state: gr.update(interactive=bool(state and state[1])), page.state, push, **hidden
    )

    @show_errors
    def write_card(values: dict[Any, Any]) -> Any:
        run = page.chosen_run(values)
        if edited(values):
            return gr.skip(), gr.skip()
        made = page.workers.call("model_card", run=str(run.directory))
        return made["card"], [values[page.run], made["card"], made["pictures"]]

    what.change(
        lambda what: gr.update(visible=what == "adapter"), what, card_open, **hidden
    )  # an export writes its own
    card_open.expand(write_card, {*chosen, card, written}, [card, written], **PRIVATE)
    card.change(
        lambda text, written: render_overview.card_markdown(text or "", written[2]),
        [card, written],
        card_shown,
        **hidden,
    )
    # Gradio tells of a change late where the page has just been loaded: the card may be of this run already
    page.shown.change(
        lambda run, written: gr.skip() if written[0] == run else "",
        [page.run, written],
        card,
        **hidden,
    )
    page.shown.change(lambda: "", None, pushed, **PRIVATE)


def _build_ready(page: PageContext) -> None:
    """Place and wire the list of what makes the chosen run's adapter ready for production."""
    with gr.Accordion("Is it ready for production?", open=False):
        ready_list = gr.Markdown("Train an adapter first.", elem_id="ready")

    @show_errors
    def look(values: dict[Any, Any]) -> str:
        checks = read_checklist(page.chosen_run(values)) if values[page.run] else []
        return checklist_markdown(checks) or "Train an adapter first."

    changes = [page.state.change, page.shown.change]
    gr.on(changes, look, {page.visitor, page.run}, ready_list, show_progress="hidden", **PRIVATE)
