"""The frame of the page: the sidebar with the runs, the header, the marks on the tabs."""

import os
import time
from dataclasses import dataclass
from typing import Any

import gradio as gr
import psutil

from peft_space import settings
from peft_space.formatting import gigabytes
from peft_space.runs.run import Run
from peft_space.runs.store import list_runs, open_run
from peft_space.web.components import choices_html, picked, show_errors
from peft_space.web.context import HIDDEN, PRIVATE, Inputs, PageContext, Updates, Values
from peft_space.web.render import shell as render_shell
from peft_space.web.states import TABS, run_state_of, tab_states

SHOW_ALL = "all"
"""The entry of the sidebar that opens the list of all runs."""
NEW = "new"


@dataclass
class Shell:
    """The frame's components."""

    sidebar: gr.Sidebar
    runs: gr.HTML
    search: gr.Textbox
    machine: gr.HTML
    header: gr.HTML
    manage: gr.Button
    menu: gr.Row
    name: gr.Textbox
    rename: gr.Button
    duplicate: gr.Button
    delete: gr.Button
    confirmation: gr.Row
    question: gr.Markdown
    confirm: gr.Button
    keep: gr.Button


def place_sidebar(page: PageContext) -> tuple[gr.Sidebar, gr.HTML, gr.Textbox, gr.HTML]:
    """Place the sidebar: a new fine-tune, the runs, and what the machine is."""
    with gr.Sidebar(width=270, open=False, elem_id="sidebar") as sidebar:
        gr.HTML('<p class="brand">PEFT Space</p>')
        search = gr.Textbox(
            placeholder="Search runs",
            label="Search runs",
            show_label=False,
            container=False,
            elem_id="search-runs",
        )
        runs = choices_html("run-list", value=render_shell.runs_html([], "", ""))
        machine = gr.HTML(machine_html(), elem_id="machine")
        if settings.signs_in():
            gr.LoginButton(elem_id="sign-in", size="md")
    return sidebar, runs, search, machine


def place_header() -> dict[str, Any]:
    """Place the one line about the shown run, and the menu of what can be done with it."""
    with gr.Row(elem_id="header-row"):
        header = gr.HTML(
            render_shell.draft_header_html("", ""),
            elem_id="header",
            js_on_load="watch('value', () => window.peftSpace?.header(element));",
            scale=1,
        )
        manage = gr.Button("Manage run", size="sm", scale=0, visible=False, elem_id="manage-run")
    with gr.Row(visible=False, elem_id="run-menu") as menu:
        name = gr.Textbox(
            placeholder="New name",
            label="New name",
            show_label=False,
            container=False,
            max_length=100,
            elem_id="new-name",
        )
        small: dict[str, Any] = {"size": "sm", "scale": 0, "min_width": 110}
        rename = gr.Button("Rename", elem_id="rename", **small)
        duplicate = gr.Button("Duplicate", elem_id="duplicate", **small)
        delete = gr.Button("Delete", variant="stop", elem_id="delete", **small)
    with gr.Row(visible=False, elem_id="confirmation") as confirmation:
        question = gr.Markdown(elem_id="delete-question")
        confirm = gr.Button("Delete permanently", variant="stop", elem_id="delete-confirm", **small)
        keep = gr.Button("Cancel", elem_id="delete-cancel", **small)
    return {
        "header": header,
        "manage": manage,
        "menu": menu,
        "name": name,
        "rename": rename,
        "duplicate": duplicate,
        "delete": delete,
        "confirmation": confirmation,
        "question": question,
        "confirm": confirm,
        "keep": keep,
    }


def machine_card(machine: dict[str, Any]) -> str:
    """Return what the machine is, from the result of the operation `machine`."""
    return render_shell.machine_html(f"{machine['name']} · {gigabytes(machine['free'])} free")


def machine_html() -> str:
    """Return what the page runs on, until a worker process has looked."""
    cores = len(os.sched_getaffinity(0))
    free = gigabytes(psutil.virtual_memory().available)
    kind = "ZeroGPU" if settings.on_zerogpu() else f"{cores} CPU cores"
    return render_shell.machine_html(f"{kind} · {free} free")


def wire(page: PageContext, shell: Shell, tabs: gr.Tabs, items: list[gr.Tab], views: Any) -> None:
    """Keep the sidebar, the header and the marks on the tabs up to date.

    Args:
        page: the shared state.
        shell: the frame.
        tabs: the five tabs.
        items: the five tabs, in order.
        views: (the column with the tabs, the column with the list of all runs).
    """
    _wire_choice(page, shell, tabs, views)
    _wire_state(page, shell, items)
    _wire_menu(page, shell)


def _wire_choice(page: PageContext, shell: Shell, tabs: gr.Tabs, views: Any) -> None:
    main, all_runs = views

    @show_errors
    def choose(values: Values, event: gr.EventData) -> Updates:
        chosen = picked(event)
        if chosen == SHOW_ALL:
            return {page.to_compare: [], page.runs_opened: time.time()}
        shown = {main: gr.update(visible=True), all_runs: gr.update(visible=False)}
        if chosen == NEW:
            if not values[page.run] and values[page.data]:
                gr.Info("This is your new fine-tune. Press Remove to begin with other data.")
            new = {page.run: "", page.run_state: None, page.run_progress: None}
            return {**shown, **new, tabs: gr.update(selected="Data")}
        run = open_run(page.owners(values), chosen)
        opened = {page.run: run.directory.name, page.run_state: run_state_of(run, run.status())}
        return {**shown, **opened, tabs: gr.update(selected=first_tab(run))}

    states = [page.run, page.run_state, page.run_progress, page.to_compare, page.runs_opened]
    outputs = [*states, tabs, main, all_runs]
    shell.runs.click(choose, {*page.selection, page.data}, outputs, **HIDDEN)
    opened = {main: gr.update(visible=False), all_runs: gr.update(visible=True)}
    page.runs_opened.change(lambda: opened, None, [main, all_runs], **HIDDEN)
    page.reset_with_run({main: gr.update(visible=True), all_runs: gr.update(visible=False)})
    tabs.change(None, js="() => window.peftSpace.tab()", **PRIVATE)


def first_tab(run: Run) -> str:
    """Return the tab on which a run opens."""
    return "Compare" if run.path("scores.json").is_file() else "Train"


def _wire_state(page: PageContext, shell: Shell, items: list[gr.Tab]) -> None:
    states: list[Any] = [
        page.data_state,
        page.recipe_state,
        page.run,
        page.run_state,
        page.run_progress,
    ]

    @show_errors
    def show_state(values: Values) -> Updates:
        run_id, run_state = values[page.run], values[page.run_state]
        data, recipe = values[page.data_state], values[page.recipe_state]
        progress = values[page.run_progress]
        found = tab_states(data, recipe, run_id, run_state, progress)
        updates: Updates = {
            item: gr.update(label=f"{title} {found[title].mark}".strip())
            for title, item in zip(TABS, items, strict=True)
        }
        updates[shell.manage] = gr.update(visible=bool(run_id))
        if run_id:
            run = open_run(page.owners(values), run_id)
            updates[shell.header] = render_shell.run_header_html(run, progress)
        else:
            updates[shell.header] = render_shell.draft_header_html(data["source"], recipe["model"])
            updates |= dict.fromkeys((shell.menu, shell.confirmation), gr.update(visible=False))
        return updates

    outputs = [*items, shell.header, shell.manage, shell.menu, shell.confirmation]
    changes = [*(state.change for state in states), page.runs_changed.change]
    inputs: Inputs = {*page.selection, *states}
    gr.on(changes, show_state, inputs, outputs, **HIDDEN)

    @show_errors
    def show_runs(values: Values) -> str:
        runs = list_runs(*page.owners(values))
        query = (values[shell.search] or "").lower()
        shown = [run for run in runs if query in run.name.lower()]
        return render_shell.runs_html(shown, values[page.run], query)

    changes = [page.run.change, page.run_state.change, page.run_progress.change]
    changes += [page.runs_changed.change, shell.search.change, page.fallback_timer.tick]
    gr.on(changes, show_runs, {*page.selection, shell.search}, shell.runs, **HIDDEN)


def _wire_menu(page: PageContext, shell: Shell) -> None:
    to_delete = gr.State("")

    @show_errors
    def rename(values: Values) -> Updates:
        page.selected_run(values).rename(values[shell.name] or "")
        return {
            page.runs_changed: time.time(),
            shell.name: "",
            shell.menu: gr.update(visible=False),
        }

    @show_errors
    def ask(values: Values) -> Updates:
        run = page.selected_run(values)
        return {
            shell.confirmation: gr.update(visible=True),
            shell.question: render_shell.delete_question(run),
            to_delete: run.directory.name,
        }

    @show_errors
    def delete(values: Values) -> Updates:
        """Delete the run that the question named, even if another is shown by now."""
        run = open_run(page.owners(values), values[to_delete])
        run.delete()
        gr.Info(f"{run.name} was deleted.", duration=5)
        return {page.run: "", page.runs_changed: time.time()}

    shell.manage.click(lambda: gr.update(visible=True), None, shell.menu, **HIDDEN)
    outputs = [page.runs_changed, shell.name, shell.menu]
    shell.rename.click(rename, {*page.selection, shell.name}, outputs, **PRIVATE)
    question = [shell.confirmation, shell.question, to_delete]
    shell.delete.click(ask, page.selection, question, **PRIVATE)
    shell.keep.click(lambda: gr.update(visible=False), None, shell.confirmation, **HIDDEN)
    deleted = [page.run, page.runs_changed]
    shell.confirm.click(delete, {*page.selection, to_delete}, deleted, **PRIVATE)
