"""The Data tab: add data, correct how the app reads it, and look at the model's input."""

import functools
from collections.abc import Iterator
from typing import Any

import gradio as gr

from peft_space.data.column_mapping import FIXES
from peft_space.errors import as_user_error, user_message
from peft_space.web.components import Operation, cancel_button, reset_on_failure, show_errors
from peft_space.web.context import HIDDEN, PRIVATE, Inputs, PageContext, Updates, Values
from peft_space.web.panels import columns as columns_panel
from peft_space.web.panels import rows as rows_panel
from peft_space.web.panels import sources as sources_panel
from peft_space.web.render import data as render_data
from peft_space.web.render import overview as render_overview
from peft_space.web.states import NO_DATA, DataState, data_tab_state, recipe_tab_state

_SEVERAL_WAYS = "We found more than one way to read these columns. Choose one."
_LEFT_OUT = "A column looks like a part of the task, and we don't use it. Leave it out?"


class DataTab:
    """The tab's components, and the changes that a check of the data makes to them."""

    def __init__(self, page: PageContext):
        self.page = page
        with gr.Column(elem_id="data-draft") as self.draft:
            self.sources = sources_panel.build(page)
            self.demo = self.sources.demo
            self.summary = gr.Markdown(elem_id="data-summary")
            cancel = cancel_button("cancel-check")
            self.checking = Operation(page, self.summary, cancel=cancel)
            self.question = gr.Radio(
                [], label="Which columns should we use?", visible=False, elem_id="mapping-question"
            )
            with gr.Column(visible=False, elem_id="data-found") as self.found:
                self.tiles = gr.HTML(elem_id="data-tiles", min_height=86)
                self.columns = gr.HTML(elem_id="columns")
                self.mapping = columns_panel.ColumnsPanel(page)
                self.fixes = gr.CheckboxGroup(
                    [],
                    label="Fix automatically",
                    info="Fixes are saved with the run.",
                    elem_id="fixes",
                )
                self.rows = rows_panel.build(page)
            with gr.Row(elem_classes=["footer"], visible=False) as self.footer:
                self.hint = gr.Markdown(elem_id="data-missing")
                self.next = gr.Button(
                    "Continue to Recipe", variant="primary", size="md", scale=0, min_width=200,
                    elem_id="next-recipe",
                )  # fmt: skip
        with gr.Column(visible=False, elem_id="data-run") as self.of_run:
            self.run_data = gr.HTML(elem_id="run-data")
            self.duplicate = gr.Button(
                "Use this run's settings in a new fine-tune", size="md", elem_id="duplicate-data"
            )
        self.checked_parts = [page.data, page.held_out, page.column_mapping, page.data_recipe]
        self.checked = gr.State(None)
        """What was checked last, so that two changes at once are checked once."""
        self.candidates = gr.State([])
        """The column mappings that the question offers."""
        rows = self.rows
        self.outputs = [
            *(*self.checking.components, self.question, self.found, self.tiles, self.columns),
            *(self.mapping.schema, *self.mapping.roles.values(), self.fixes),
            *(
                rows.findings,
                rows.examples,
                rows.finding_rows,
                rows.lengths,
                rows.labels,
                rows.used,
            ),
            *(rows.labels_tab, self.candidates, self.checked, page.data_state, page.task),
        ]

    def empty(self, state: DataState) -> Updates:
        """The tab before the data was read. While it is read again, the task stays."""
        hidden = gr.update(visible=False)
        parts = (self.question, self.found)
        reset = {self.page.data_state: state, **self.checking.ready}
        if state["kind"] != "reading":
            reset[self.page.task] = "automatic"
        return dict.fromkeys(parts, hidden) | reset

    def show(self, check: render_data.Check, source: str, problem: str = "") -> Updates:
        """Show the result of a check.

        Args:
            check: the result.
            source: the name of the data.
            problem: what is wrong with the recipe, without which the data were read.
        """
        if "question" in check:
            return self._ask(check)
        rows, mapping = self.rows, check["column_mapping"]
        state: DataState = {
            "kind": "ready",
            "source": source,
            "rows": check["to_train"],
            "message": problem,
        }
        has_lengths = bool(check.get("histogram"))
        if problem:
            check = check | {"base_notes": [problem]}
        return {
            self.question: gr.update(visible=False),
            self.summary: render_data.check_markdown(check),
            self.found: gr.update(visible=True),
            self.tiles: render_data.tiles_html(check),
            self.columns: render_data.columns_html(check),
            self.fixes: self._show_fixes(check),
            rows.findings: render_data.findings_html(check),
            rows.examples: check.get("examples", []),
            rows.used: list(mapping["columns"].values()),
            rows.finding_rows: render_data.findings_rows(check),
            rows.lengths: render_data.lengths_html(check) if has_lengths else _NO_LENGTHS,
            rows.labels: render_data.labels_html(check),
            rows.labels_tab: gr.update(visible=bool(check["labels"])),
            self.page.data_state: state,
            self.page.task: check["task"] or "automatic",
            **self.mapping.show(mapping["schema"], mapping["columns"], check["columns"]),
        }

    def _ask(self, check: render_data.Check) -> Updates:
        candidates = check["question"]
        labels = [render_data.mapping_label(mapping) for mapping in candidates]
        choices = [(label, number) for number, label in enumerate(labels)]
        source = render_overview.escape(check["source"])
        state: DataState = {**NO_DATA, "kind": "question", "source": check["source"]}
        return self.empty(state) | {
            self.summary: f"**{source}**: {check['rows']:,} rows. "
            + (_LEFT_OUT if len(candidates) == 1 else _SEVERAL_WAYS),
            self.question: gr.update(choices=choices, value=None, visible=True),
            self.candidates: [
                {key: value for key, value in mapping.items() if key != "first_row"}
                for mapping in candidates
            ],
        }

    def _show_fixes(self, check: render_data.Check) -> Any:
        selected = check["column_mapping"]["fixes"]
        offered = {finding["fix"] for finding in check["findings"] if finding["fix"]}
        choices = [(title, fix) for fix, title in FIXES.items() if fix in offered | {*selected}]
        return gr.update(choices=choices, value=selected, visible=bool(choices))

    def check(self, values: Values) -> Iterator[Updates]:
        """Read the data and show the findings, with progress.

        Without a base model, or with one that does not work, only the rows are read.
        """
        page = self.page
        key = [values[part] for part in self.checked_parts]
        if key == values[self.checked]:
            yield {self.checked: key}
            return
        if not values[page.data]:
            yield {**self.empty(NO_DATA), self.summary: "", self.checked: key}
            return
        source = render_data.names_of(values[page.data])
        reading: DataState = {**NO_DATA, "kind": "reading", "source": source}
        yield {**self.empty(reading), **self.checking.begin("Reading…"), self.checked: key}
        arguments: dict[str, Any] = {
            "data": values[page.data],
            "held_out": values[page.held_out] or None,
            "column_mapping": values[page.column_mapping] or None,
        }
        problem = ""
        for recipe in self._recipes(values):
            show = functools.partial(self.show, source=source, problem=problem)
            try:
                yield from self.checking.stream("check", show, **arguments, **recipe)
                return
            except Exception as error:
                if as_user_error(error) is None:
                    raise
                problem = user_message(error)
        failed: DataState = {**NO_DATA, "kind": "failed", "source": source, "message": problem}
        yield {**self.empty(failed), self.summary: f"⚠ {render_overview.escape(problem)}"}

    def _recipes(self, values: Values) -> list[dict[str, Any]]:
        """The recipe, and none: if data can be read only without it, the fault is the recipe's."""
        state = values[self.page.recipe_state]
        if not state["model"] or state["problems"]:
            return [{}]
        return [{"recipe": self.page.recipe(values).model_dump()}, {}]

    def apply_fixes(self, values: Values) -> dict[str, Any]:
        """Return the column mapping with the chosen fixes."""
        return (values[self.page.column_mapping] or {}) | {"fixes": values[self.fixes]}


_NO_LENGTHS = "<p>Choose a base model on the Recipe tab to see the lengths in tokens.</p>"


def build(page: PageContext) -> DataTab:
    """Place and wire the tab."""
    tab = DataTab(page)
    _wire_check(page, tab)
    _wire_mapping(page, tab)
    _wire_views(page, tab)
    return tab


def _wire_check(page: PageContext, tab: DataTab) -> None:
    """Check the data whenever it, its mapping or a recipe field that shapes it changes."""
    changes = [page.data.change, page.held_out.change, page.column_mapping.change]
    check = show_errors(tab.check, tab.summary)
    inputs: Inputs = {page.data_recipe, tab.checked, *page.data_inputs}
    checking = gr.on(
        [*changes, page.data_recipe.change],
        check,
        inputs,
        tab.outputs,
        trigger_mode="always_last",
        **HIDDEN,
    )
    reset_on_failure(checking, tab.empty({**NO_DATA, "kind": "failed"}))
    canceled = {tab.summary: "", page.data: "", **tab.empty(NO_DATA)}
    assert tab.checking.cancel is not None
    tab.checking.cancel.click(
        lambda: canceled, None, [*tab.outputs, page.data], cancels=checking, **PRIVATE
    )


def _wire_mapping(page: PageContext, tab: DataTab) -> None:
    mapping = page.column_mapping
    columns_panel.wire(tab.mapping, {tab.fixes}, lambda values: values[tab.fixes] or [])
    answer = [tab.question, tab.candidates]
    tab.question.input(lambda number, candidates: candidates[number], answer, mapping, **HIDDEN)
    tab.fixes.input(show_errors(tab.apply_fixes), {mapping, tab.fixes}, mapping, **HIDDEN)


def _wire_views(page: PageContext, tab: DataTab) -> None:
    """Show the new fine-tune or the data of the shown run, and what is missing."""

    def show_run(values: Values) -> Updates:
        is_run = bool(values[page.run])
        shown: Updates = {tab.draft: gr.update(visible=not is_run)}
        shown[tab.of_run] = gr.update(visible=is_run)
        if is_run:
            shown[tab.run_data] = render_data.run_data_html(page.selected_run(values))
        return shown

    page.listen("run", show_run, set(), [tab.draft, tab.of_run, tab.run_data])

    def tell(values: Values) -> Updates:
        data = values[page.data_state]
        reason = data_tab_state(data).reason
        following = recipe_tab_state(values[page.recipe_state], data).reason
        return {
            tab.footer: gr.update(visible=data["kind"] != "none"),
            tab.hint: reason or (f"Next: {following}" if following else ""),
            tab.next: gr.update(interactive=not reason),
        }

    page.listen("draft", tell, set(), [tab.footer, tab.hint, tab.next])
