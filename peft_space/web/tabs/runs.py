"""The Runs tab: one's runs as a table; open, rename, use as a new recipe, compare two recipes, delete."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from peft_space import settings
from peft_space.errors import UserError
from peft_space.evaluation.results import read_scores
from peft_space.runs import quotas
from peft_space.runs.store import list_runs, open_run
from peft_space.web.context import PRIVATE, PageContext, show_errors
from peft_space.web.panels import backup as backup_panel
from peft_space.web.render import overview as render_overview
from peft_space.web.render import runs as render_runs


def build(page: PageContext, tab: gr.Tab) -> None:
    """Place and wire the tab; it is read anew whenever it is opened."""
    gr.Markdown(
        "The run that is chosen at the top of the page is the one that the buttons here are about. Click a line to choose its run."
    )
    table = gr.Dataframe(interactive=False, label="Your runs", elem_id="runs")
    ids = gr.State([])
    in_question = gr.State("")
    with gr.Row():
        name = gr.Textbox(label="New name", max_length=100, elem_id="new-name")
        rename = gr.Button("Rename the chosen run", elem_id="rename")
        reuse = gr.Button("Use its recipe for a new run", elem_id="reuse")
        delete = gr.Button("Delete the chosen run…", variant="stop", elem_id="delete")
    with gr.Row(visible=False) as question:
        asked = gr.Markdown(elem_id="delete-question")
        yes = gr.Button("Yes, delete it for good", variant="stop", elem_id="delete-yes")
        no = gr.Button("No, keep it", elem_id="delete-no")
    _build_adopt(page)
    backup_panel.build(page)
    other = gr.Dropdown(
        [], label="Compare the chosen run's recipe with that of", elem_id="other-run"
    )
    differences = gr.Dataframe(
        interactive=False,
        visible=False,
        label="Where the two recipes differ",
        elem_id="recipe-differences",
    )
    said = gr.Markdown(elem_id="runs-said")

    @show_errors
    def refresh(values: dict[Any, Any]) -> dict[Any, Any]:
        runs = list_runs(*page.owners(values))
        return {
            table: render_runs.runs_table(
                runs, {run.directory.name: read_scores(run) for run in runs}
            ),
            ids: [run.directory.name for run in runs],
            other: gr.update(
                choices=render_overview.run_choices(
                    [run for run in runs if run.directory.name != values[page.run]]
                ),
                value=None,
            ),
        }

    @show_errors
    def give_name(values: dict[Any, Any]) -> dict[Any, Any]:
        page.chosen_run(values).rename(values[name] or "")
        return {page.run: page.runs(values), name: ""}

    @show_errors
    def take_recipe(values: dict[Any, Any]) -> dict[Any, Any]:
        run = page.chosen_run(values)
        return {
            **page.form.values(run.recipe),
            said: f"The Recipe tab shows the recipe of {render_overview.escape(run.name)} now. Change it, bring data, and train.",
        }

    @show_errors
    def ask(values: dict[Any, Any]) -> dict[Any, Any]:
        run = page.chosen_run(values)
        text = f"Delete **{render_overview.escape(run.name)}** with its data, checkpoints and adapter? This cannot be undone."
        return {question: gr.update(visible=True), asked: text, in_question: run.directory.name}

    @show_errors
    def remove(values: dict[Any, Any]) -> dict[Any, Any]:
        run = open_run(
            page.owners(values), values[in_question]
        )  # the one that the question named, whichever is chosen by now
        run.delete()
        return {
            page.run: page.runs(values),
            said: f"{render_overview.escape(run.name)} is deleted.",
            question: gr.update(visible=False),
        }

    @show_errors
    def differ(values: dict[Any, Any]) -> Any:
        if not values[other]:
            return gr.update(visible=False)
        two = open_run(page.owners(values), values[other])
        return gr.update(
            value=render_runs.recipe_differences(page.chosen_run(values), two), visible=True
        )

    def choose(known: list[str], event: gr.SelectData) -> str:
        return known[event.index[0]]

    chosen = {page.visitor, page.run}
    refreshed = [table, ids, other]
    hidden: dict[str, Any] = {"show_progress": "hidden", **PRIVATE}
    gr.on([tab.select, page.shown.change, page.state.change], refresh, chosen, refreshed, **hidden)
    table.select(choose, ids, page.run, **hidden)
    rename.click(give_name, {*chosen, name}, [page.run, name], **PRIVATE).then(
        refresh, chosen, refreshed, **hidden
    )
    reuse.click(take_recipe, chosen, [*page.form.widgets.values(), said], **PRIVATE)
    delete.click(ask, chosen, [question, asked, in_question], **PRIVATE)
    no.click(lambda: gr.update(visible=False), None, question, **hidden)
    yes.click(remove, {*chosen, in_question}, [page.run, said, question], **PRIVATE).then(
        refresh, chosen, refreshed, **hidden
    )
    other.change(differ, {*chosen, other}, differences, **hidden)


def named_adapter(uploaded: str | None, typed: str | None) -> str:
    """The adapter that is meant. Raises UserError for none, and on a Space for the path of a file that was not uploaded: it may be another's."""
    name = (typed or "").strip()
    if not uploaded and not name:
        raise UserError("todo", "Which adapter? Give its name on the Hub, or a .zip of it.")
    if not uploaded and settings.on_space() and name.endswith(".zip"):
        raise UserError(
            "todo",
            "A .zip has to be uploaded here. Bring it, or give the adapter's name on the Hub.",
        )
    return uploaded or name


def _build_adopt(page: PageContext) -> None:
    """Place and wire the opening of an adapter that was made elsewhere. It becomes the chosen run, which refreshes the rest of the tab."""
    with gr.Accordion("Open an adapter that was made elsewhere", open=False):
        gr.Markdown(
            "It becomes a run with the data of the Data tab, to score on and to go on with. Its base, rank and layers are its own."
        )
        with gr.Row():
            elsewhere = gr.Textbox(
                label="Adapter", placeholder="OWNER/NAME on the Hub", elem_id="adopt-name"
            )
            packed = gr.File(
                label="or a .zip of it", file_types=[".zip"], height=100, elem_id="adopt-zip"
            )
            adopt = gr.Button("Open it", elem_id="adopt")
        adopting = gr.Markdown(elem_id="adopting")

    def open_adapter(values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        wanted = named_adapter(values[packed], values[elsewhere])
        if not values[page.data]:
            raise UserError(
                "todo",
                "There is no data yet. Bring a file, or use the sample data, on the Data tab.",
            )
        folder = quotas.new_run(page.owner(values))
        recipe = page.form.recipe(values).model_dump(exclude_defaults=True)
        yield {adopting: "Looking at the adapter…"}
        stream = page.workers.stream(
            "import_adapter",
            directory=str(folder),
            adapter=wanted,
            recipe=recipe,
            **page.data_arguments(values),
        )
        for message in stream:
            if report := message.get("report"):
                yield {adopting: f"{report['what']}…"}
            elif "result" in message:
                yield {
                    adopting: "✓ It is chosen as the run now.",
                    page.run: page.runs(values, folder.name),
                }
            else:
                yield {adopting: gr.skip()}

    wanted = {
        page.visitor,
        page.run,
        elsewhere,
        packed,
        page.data,
        page.held_out,
        page.column_mapping,
        *page.form.inputs,
    }
    adopt.click(
        show_errors(open_adapter, where=adopting),
        wanted,
        [adopting, page.run],
        show_progress="hidden",
        **PRIVATE,
    )
