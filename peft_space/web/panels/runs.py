"""All runs: a table, several runs next to each other, the import of an adapter, and backups."""

import os
from collections.abc import Iterator
from typing import Any

import gradio as gr

from peft_space import settings
from peft_space.compat.gradio import upload_folder
from peft_space.errors import UserError
from peft_space.export.export import zip_adapter
from peft_space.runs import quotas
from peft_space.runs.run import Run
from peft_space.runs.store import list_runs, open_run
from peft_space.web.components import Operation, show_errors
from peft_space.web.context import HIDDEN, PRIVATE, Inputs, PageContext, Updates, Values
from peft_space.web.panels import backup as backup_panel
from peft_space.web.panels.merge_adapters import build_merge_adapters
from peft_space.web.render import runs as render_runs
from peft_space.web.render.overview import run_choices

_TEMPORARY = (
    "⚠ Storage here is temporary. Runs are lost when this Space sleeps or restarts. "
    "Download the adapter, or back up the run to the Hub under *All runs*."
)
_LABEL_SEARCH = """() => void setTimeout(() => document.querySelector('#runs .search-input')
    ?.setAttribute('aria-label', 'Search all runs'), 100)"""
"""Gradio gives the table's search field a title and no label."""


class AllRuns:
    """The view's components and handlers."""

    def __init__(self, page: PageContext):
        self.page = page
        gr.Markdown("## All runs\nSelect a run to open it.")
        self.table = gr.Dataframe(
            interactive=False,
            label="Your runs",
            show_label=False,
            headers=["Name", "Status", "Base model", "Data", "Score"],
            show_search="search",
            max_height=420,
            pinned_columns=1,
            elem_id="runs",
        )
        self.ids = gr.State([])
        """The run ids in the order of the table."""
        gr.Markdown("### Compare runs")
        self.compared = gr.Dropdown(
            [], label="Runs", multiselect=True, info="Choose two or more.", elem_id="compared-runs"
        )
        self.curves = gr.LinePlot(
            x="step",
            y="loss",
            color="run",
            title="Test loss",
            x_axis_format="d",
            height=260,
            visible=False,
            elem_id="runs-curves",
        )
        self.differences = gr.Dataframe(
            interactive=False, visible=False, label="Differences", elem_id="recipe-differences"
        )
        _build_import(page)
        build_merge_adapters(page)
        backup_panel.build(page)

    def refresh(self, values: Values) -> Updates:
        """Read the visitor's runs again."""
        runs = list_runs(*self.page.owners(values))
        choices, ids = run_choices(runs), [run.directory.name for run in runs]
        chosen = [one for one in values[self.page.to_compare] if one in ids]
        return {
            self.table: render_runs.runs_table(runs),
            self.ids: ids,
            self.compared: gr.update(choices=choices, value=chosen),
            **self._compare([run for run in runs if run.directory.name in chosen]),
        }

    def compare(self, values: Values) -> Updates:
        """Show how the chosen runs differ: curves, scores and recipes."""
        owners = self.page.owners(values)
        return self._compare([open_run(owners, one) for one in values[self.compared] or []])

    def _compare(self, runs: list[Run]) -> Updates:
        if len(runs) < 2:
            hidden = gr.update(visible=False)
            return {self.curves: hidden, self.differences: hidden}
        title, curves = render_runs.curves_table(runs)
        return {
            self.curves: gr.update(value=curves, title=title, visible=True),
            self.differences: gr.update(value=render_runs.differences(runs), visible=True),
        }


def build(page: PageContext) -> None:
    """Place and wire the view."""
    view, selection = AllRuns(page), page.selection
    refresh = show_errors(view.refresh)
    shown = [view.curves, view.differences]
    listed = [view.table, view.ids, view.compared, *shown]
    page.runs_opened.change(refresh, {*selection, page.to_compare}, listed, **HIDDEN)

    def select(ids: list[str], event: gr.SelectData) -> str:
        return ids[event.index[0]]

    view.table.select(select, view.ids, page.run, **HIDDEN)
    view.table.change(None, js=_LABEL_SEARCH, **PRIVATE)
    inputs: Inputs = {*selection, view.compared}
    view.compared.input(show_errors(view.compare), inputs, shown, **HIDDEN)


def _build_import(page: PageContext) -> None:
    """Place and wire the import of an adapter, which becomes the shown run."""
    with gr.Accordion("Import an adapter", open=False, elem_id="import-panel"):
        gr.Markdown(
            "It's tested on, and can continue training with, the data of the new fine-tune. "
            "Rank and layers are the adapter's, and so is the base model unless you chose one on "
            "*Recipe*. A tokenizer and chat template in its folder are used."
        )
        with gr.Row():
            name = gr.Textbox(
                label="Adapter", placeholder="owner/name on the Hub", elem_id="import-name"
            )
            upload = gr.File(
                label="or upload a .zip", file_types=[".zip"], height=140, elem_id="import-zip"
            )
            button = gr.Button(
                "Import", size="md", scale=0, min_width=120, elem_id="import-adapter"
            )
        progress = gr.Markdown(elem_id="import-progress")
    operation = Operation(page, progress)

    def import_adapter(values: Values) -> Iterator[Updates]:
        adapter = adapter_source(values[upload], values[name])
        # an adapter's own base model takes the place of "demo"
        arguments = page.data_arguments(values, no_model="demo", exclude_defaults=True)
        folder = quotas.new_run(page.owner(values))

        def show(result: dict[str, Any]) -> Updates:
            gr.Info("✓ Imported. The run is shown now.", duration=5)
            return {progress: "✓ Imported and selected.", page.run: folder.name}

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


def build_notice(page: PageContext) -> None:
    """Warn that storage is temporary, and offer the selected run's adapter for download."""
    with gr.Row(equal_height=True, elem_id="storage-row"):
        gr.Markdown(_TEMPORARY, elem_id="storage-notice")
        download = gr.DownloadButton(
            "Download the adapter",
            size="sm",
            scale=0,
            min_width=180,
            visible=False,
            elem_id="download-adapter",
        )

    def offer(values: Values) -> Updates:
        run = page.selected_run(values) if values[page.run] else None
        if run is None or not run.path("adapter", "adapter_config.json").is_file():
            return {download: gr.update(visible=False)}
        return {download: gr.update(value=_zip_once(run), visible=True)}

    page.listen("run", offer, set(), [download])


def _zip_once(run: Run) -> str:
    """Return the adapter as a .zip in a folder that Gradio serves."""
    written = (run.adapter / "adapter_config.json").stat().st_mtime_ns
    folder = upload_folder() / f"peft_space-{run.directory.name}-{written}"
    os.makedirs(folder, exist_ok=True)
    return str(next(folder.glob("*.zip"), None) or zip_adapter(run, folder))
