"""Runs that outlive the machine: saved to the Hub and taken up again; and what is said where the disk is not kept."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from peft_space.export.export import zip_adapter
from peft_space.runs import quotas
from peft_space.runs.run import Run
from peft_space.runs.store import unique_name
from peft_space.web.context import PRIVATE, PageContext, reset_on_failure, show_errors, token_of
from peft_space.web.render import overview as render_overview

_NOT_KEPT = (
    "⚠ The disk of this Space is not kept: when it sleeps or restarts, your runs are gone. "
    "Download the adapter as soon as it is there, or save the run to the Hub: *Runs*, *Save a run, and go on elsewhere*."
)


def build(page: PageContext) -> None:
    """Place and wire saving and taking up."""
    with gr.Accordion("Save a run, and go on elsewhere", open=False):
        gr.Markdown(
            "The chosen run is saved to a **private** dataset repository of yours on the Hub, with its data and its newest checkpoint. "
            "Here or on any other machine it is taken up and goes on from there."
        )
        with gr.Row():
            repo = gr.Textbox(
                label="Dataset repository", placeholder="owner/name", elem_id="save-repo"
            )
            token = gr.Textbox(
                label="Token with write access", type="password", elem_id="save-token",
                info="Used for this and forgotten. It may stay empty where you are signed in, here or on your own machine.",
            )  # fmt: skip
        with gr.Row():
            save = gr.Button("Save the chosen run", elem_id="save")
            take_up = gr.Button("Take up the run saved there", elem_id="take-up")
        said = gr.Markdown(elem_id="saving")
    buttons = {save: gr.update(interactive=True), take_up: gr.update(interactive=True)}

    def work(verb: str, told: str, **arguments: Any) -> Iterator[dict[Any, Any]]:
        """Run a verb, telling how far it is; the buttons rest meanwhile."""
        yield {
            said: told,
            save: gr.update(interactive=False),
            take_up: gr.update(interactive=False),
        }
        yield from page.working(said, show, verb, **arguments)

    def show(found: dict[str, Any]) -> dict[Any, Any]:
        url = found.get("url")
        return (
            {said: f"Saved to [{render_overview.escape(url)}]({url}).", token: "", **buttons}
            if url
            else {said: gr.skip()}
        )

    def save_run(
        values: dict[Any, Any], signed_in: gr.OAuthToken | None
    ) -> Iterator[dict[Any, Any]]:
        run = page.chosen_run(values)
        wanted = {"repo": (values[repo] or "").strip(), "token": token_of(values[token], signed_in)}
        yield from work("backup", "Saving…", run=str(run.directory), **wanted)

    def take_up_run(
        values: dict[Any, Any], signed_in: gr.OAuthToken | None
    ) -> Iterator[dict[Any, Any]]:
        folder = quotas.new_run(page.owner(values))
        wanted = {"repo": (values[repo] or "").strip(), "token": token_of(values[token], signed_in)}
        yield from work("restore", "Taking it up…", directory=str(folder), **wanted)
        run = Run(folder)
        run.rename(unique_name(page.owner(values), run.name, but=run))
        yield {
            said: "✓ It is chosen as the run now. *Resume* on Train goes on with it.",
            token: "",
            page.run: page.runs(values, folder.name),
            **buttons,
        }

    wanted = {page.visitor, page.run, repo, token}
    shown: dict[str, Any] = {"show_progress": "hidden", **PRIVATE}
    reset_on_failure(
        save.click(
            show_errors(save_run, where=said), wanted, [said, token, save, take_up], **shown
        ),
        buttons,
    )
    reset_on_failure(
        take_up.click(
            show_errors(take_up_run, where=said),
            wanted,
            [said, token, save, take_up, page.run],
            **shown,
        ),
        buttons,
    )


def build_notice(page: PageContext) -> None:
    """Say that the disk is not kept, and offer the adapter of the chosen run as soon as there is one."""
    with gr.Row(equal_height=True):
        gr.Markdown(_NOT_KEPT, elem_id="not-kept")
        download = gr.DownloadButton(
            "Download the adapter", visible=False, elem_id="download-adapter"
        )

    @show_errors
    def offer(values: dict[Any, Any]) -> Any:
        run = page.chosen_run(values) if values[page.run] else None
        if run is None or not run.path("adapter", "adapter_config.json").is_file():
            return gr.update(visible=False)
        return gr.update(value=_packed(run), visible=True)

    gr.on(
        [page.state.change, page.shown.change],
        offer,
        {page.visitor, page.run},
        download,
        show_progress="hidden",
        **PRIVATE,
    )


def _packed(run: Run) -> str:
    """The adapter as a .zip where Gradio may send it from; it is packed once."""
    written = (run.adapter / "adapter_config.json").stat().st_mtime_ns
    folder = Path(get_upload_folder()) / f"peft_space-{run.directory.name}-{written}"
    os.makedirs(folder, exist_ok=True)
    return str(next(folder.glob("*.zip"), None) or zip_adapter(run, folder))
