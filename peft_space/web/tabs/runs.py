"""The Runs tab: list, select, rename, duplicate, compare and delete runs; import an adapter."""

import os
from collections.abc import Iterator
from typing import Any

import gradio as gr
import pandas as pd

from peft_space import settings
from peft_space.compat.gradio import upload_folder
from peft_space.data.dataset import source_of
from peft_space.errors import UserError
from peft_space.evaluation.results import Evaluation, read_scores, shown
from peft_space.export.export import zip_adapter
from peft_space.recipe import Recipe
from peft_space.runs import quotas
from peft_space.runs.run import Run
from peft_space.runs.store import list_runs, open_run, unique_name
from peft_space.web.auth import token_of
from peft_space.web.components import Operation, show_errors
from peft_space.web.context import HIDDEN, PRIVATE, Inputs, PageContext, Updates, Values
from peft_space.web.panels.merge_adapters import build_merge_adapters
from peft_space.web.render import overview as render_overview
from peft_space.web.render.overview import STATUS_WORDS, date, escape, plain, run_choices


class RunsTab:
    """The tab's components and handlers."""

    def __init__(self, page: PageContext, tab_item: gr.Tab):
        self.page = page
        gr.Markdown("Select a run to manage it.")
        self.table = gr.Dataframe(interactive=False, label="Your runs", elem_id="runs")
        self.ids = gr.State([])
        """The run ids in the order of the table."""
        self.to_delete = gr.State("")
        with gr.Row():
            self.name = gr.Textbox(label="New name", max_length=100, elem_id="new-name")
            self.rename = gr.Button("Rename", elem_id="rename")
            self.duplicate = gr.Button("Duplicate", elem_id="duplicate")
            self.delete = gr.Button("Delete", variant="stop", elem_id="delete")
        with gr.Row(visible=False) as self.confirmation:
            self.question = gr.Markdown(elem_id="delete-question")
            self.confirm = gr.Button("Delete permanently", variant="stop", elem_id="delete-confirm")
            self.keep = gr.Button("Cancel", elem_id="delete-cancel")
        _build_import(page)
        build_merge_adapters(page, tab_item)
        _build_backup(page)
        self.other = gr.Dropdown([], label="Compare with", elem_id="other-run")
        self.differences = gr.Dataframe(
            interactive=False, visible=False, label="Differences", elem_id="recipe-differences"
        )
        self.message = gr.Markdown(elem_id="runs-message")

    def refresh(self, values: Values) -> Updates:
        """Read the visitor's runs again."""
        runs = list_runs(*self.page.owners(values))
        others = [run for run in runs if run.directory.name != values[self.page.run]]
        return {
            self.table: runs_table(runs, {run.directory.name: read_scores(run) for run in runs}),
            self.ids: [run.directory.name for run in runs],
            self.other: gr.update(choices=run_choices(others), value=None),
        }

    def rename_run(self, values: Values) -> Updates:
        """Rename the selected run."""
        self.page.selected_run(values).rename(values[self.name] or "")
        return {self.page.run: self.page.run_list(values), self.name: ""}

    def copy_recipe(self, values: Values) -> Updates:
        """Show the selected run's recipe on the Recipe tab."""
        run = self.page.selected_run(values)
        sentence = f"Settings copied from {escape(run.name)}. Edit them on the Recipe tab."
        return {**self.page.form.show(run.recipe), self.message: sentence}

    def ask(self, values: Values) -> Updates:
        """Ask before the selected run is deleted."""
        run = self.page.selected_run(values)
        question = (
            f"Delete **{escape(run.name)}** with its data, checkpoints and adapter? "
            "This cannot be undone."
        )
        shown = {self.confirmation: gr.update(visible=True), self.question: question}
        return {**shown, self.to_delete: run.directory.name}

    def delete_run(self, values: Values) -> Updates:
        """Delete the run that the question named, even if another is selected by now."""
        run = open_run(self.page.owners(values), values[self.to_delete])
        run.delete()
        return {
            self.page.run: self.page.run_list(values),
            self.message: f"{escape(run.name)} was deleted.",
            self.confirmation: gr.update(visible=False),
        }

    def compare(self, values: Values) -> Any:
        """Compare the recipes of the selected run and another."""
        if not values[self.other]:
            return gr.update(visible=False)
        other = open_run(self.page.owners(values), values[self.other])
        table = recipe_differences(self.page.selected_run(values), other)
        return gr.update(value=table, visible=True)


def build(page: PageContext, tab_item: gr.Tab) -> None:
    """Place and wire the tab. It is read again whenever it is opened."""
    tab, selection = RunsTab(page, tab_item), page.selection
    refresh, runs = show_errors(tab.refresh), [tab.table, tab.ids, tab.other]
    changes = [tab_item.select, page.run_id.change, page.run_state.change]
    gr.on(changes, refresh, selection, runs, **HIDDEN)

    def select(ids: list[str], event: gr.SelectData) -> str:
        return ids[event.index[0]]

    tab.table.select(select, tab.ids, page.run, **HIDDEN)
    rename, delete = show_errors(tab.rename_run), show_errors(tab.delete_run)
    renaming = tab.rename.click(rename, {*selection, tab.name}, [page.run, tab.name], **PRIVATE)
    renaming.then(refresh, selection, runs, **HIDDEN)
    copied = [*page.form.widgets.values(), tab.message]
    tab.duplicate.click(show_errors(tab.copy_recipe), selection, copied, **PRIVATE)
    question = [tab.confirmation, tab.question, tab.to_delete]
    tab.delete.click(show_errors(tab.ask), selection, question, **PRIVATE)
    tab.keep.click(lambda: gr.update(visible=False), None, tab.confirmation, **HIDDEN)
    deleted = [page.run, tab.message, tab.confirmation]
    deleting = tab.confirm.click(delete, {*selection, tab.to_delete}, deleted, **PRIVATE)
    deleting.then(refresh, selection, runs, **HIDDEN)
    compare = show_errors(tab.compare)
    tab.other.change(compare, {*selection, tab.other}, tab.differences, **HIDDEN)


def runs_table(runs: list[Run], scores: dict[str, Evaluation | None]) -> pd.DataFrame:
    """Return one line per run.

    Args:
        runs: in the order of the table.
        scores: run id -> its scores, of which the adapter's main one is shown.
    """
    lines = []
    for run in runs:
        evaluation, score = scores[run.directory.name], ""
        if evaluation:
            title, value = next(iter(shown(evaluation.adapter).items()))
            score = f"{value} {title}"
        status, size = STATUS_WORDS[run.status()], f"{run.size() / 1e6:.1f} MB"
        base = run.recipe.base_model
        lines.append([run.name, base, source_of(run), status, score, date(run), size])
    columns = ["Name", "Base model", "Data", "Status", "Score", "Created", "Size"]
    return pd.DataFrame(lines, columns=columns)


def recipe_differences(run: Run, other: Run) -> pd.DataFrame:
    """Return the settings in which two recipes differ, one per line."""
    left, right = run.recipe.model_dump(), other.recipe.model_dump()
    lines = [
        [Recipe.model_fields[name].title, plain(left[name]), plain(right[name])]
        for name in left
        if left[name] != right[name]
    ]
    other_name = other.name if other.name != run.name else f"{other.name} (2)"
    return pd.DataFrame(
        lines or [["no difference", "", ""]], columns=["Setting", run.name, other_name]
    )


def _build_import(page: PageContext) -> None:
    """Place and wire the import of an adapter, which becomes the selected run."""
    with gr.Accordion("Import an adapter", open=False, elem_id="import-panel"):
        gr.Markdown(
            "It's tested on, and can continue training with, the current data. "
            "Rank and layers are the adapter's, and so is the base model unless you chose one on "
            "*Recipe*. A tokenizer and chat template in its folder are used."
        )
        with gr.Row():
            name = gr.Textbox(
                label="Adapter", placeholder="OWNER/NAME on the Hub", elem_id="import-name"
            )
            upload = gr.File(
                label="or upload a .zip", file_types=[".zip"], height=100, elem_id="import-zip"
            )
            button = gr.Button("Import", elem_id="import-adapter")
        progress = gr.Markdown(elem_id="import-progress")
    operation = Operation(page, progress)

    def import_adapter(values: Values) -> Iterator[Updates]:
        adapter = adapter_source(values[upload], values[name])
        arguments = page.data_arguments(values, exclude_defaults=True)
        folder = quotas.new_run(page.owner(values))

        def show(result: dict[str, Any]) -> Updates:
            runs = page.run_list(values, folder.name)
            return {progress: "✓ Imported and selected.", page.run: runs}

        yield operation.begin("Reading the adapter…")
        arguments |= {"directory": str(folder), "adapter": adapter}
        yield from operation.stream("import_adapter", show, **arguments)

    inputs: Inputs = {*page.training_inputs, name, upload}
    operation.on_click(button, import_adapter, inputs, [page.run])


def adapter_source(uploaded: str | None, typed: str | None) -> str:
    """Return the adapter to import: the uploaded file, or the name that was typed.

    Raises:
        UserError: there is neither; or, on a Space, the name is a path on its disk, which may be
            another visitor's file.
    """
    name = (typed or "").strip()
    if not uploaded and not name:
        raise UserError(
            "web.no_adapter_named", "Enter the adapter's name on the Hub, or upload a .zip of it."
        )
    if not uploaded and settings.on_space() and name.endswith(".zip"):
        raise UserError(
            "web.zip_not_uploaded",
            f"{name} was not uploaded. Upload the .zip, or enter the adapter's name on the Hub.",
        )
    return uploaded or name


_TEMPORARY = (
    "⚠ Storage here is temporary. Runs are lost when this Space sleeps or restarts. "
    "Download the adapter, or back up the run to the Hub on *Runs*."
)


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
            self.backup = gr.Button("Back up", elem_id="backup")
            self.restore = gr.Button("Restore", elem_id="restore")
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
                page.run: page.run_list(values, folder.name),
            }

        hub = self._hub_arguments(values, signed_in)
        yield self.operation.begin("Restoring…")
        yield from self.operation.stream("restore", show, directory=str(folder), **hub)


def _build_backup(page: PageContext) -> None:
    """Place and wire the panel."""
    with gr.Accordion("Back up to the Hub", open=False, elem_id="backup-panel"):
        panel = BackupPanel(page)
    inputs: Inputs = {*page.selection, panel.repo, panel.token}
    panel.operation.on_click(panel.backup, panel.back_up_run, inputs, [panel.token])
    panel.operation.on_click(panel.restore, panel.restore_run, inputs, [panel.token, page.run])


def build_notice(page: PageContext) -> None:
    """Warn that storage is temporary, and offer the selected run's adapter for download."""
    with gr.Row(equal_height=True):
        gr.Markdown(_TEMPORARY, elem_id="storage-notice")
        download = gr.DownloadButton(
            "Download the adapter", visible=False, elem_id="download-adapter"
        )

    @show_errors
    def offer(values: Values) -> Any:
        run = page.selected_run(values) if values[page.run] else None
        if run is None or not run.path("adapter", "adapter_config.json").is_file():
            return gr.update(visible=False)
        return gr.update(value=_zip_once(run), visible=True)

    changes = [page.run_state.change, page.run_id.change]
    gr.on(changes, offer, page.selection, download, **HIDDEN)


def _zip_once(run: Run) -> str:
    """Return the adapter as a .zip in a folder that Gradio serves."""
    written = (run.adapter / "adapter_config.json").stat().st_mtime_ns
    folder = upload_folder() / f"peft_space-{run.directory.name}-{written}"
    os.makedirs(folder, exist_ok=True)
    return str(next(folder.glob("*.zip"), None) or zip_adapter(run, folder))
