"""The Data tab: upload data, correct how the app reads it, and preview the model's input."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from peft_space.data.column_mapping import FIXES, SCHEMAS, roles
from peft_space.data.dataset import DEMO_DATA
from peft_space.data.readers.hub import HubDataset, parse_address
from peft_space.web import theme
from peft_space.web.components import Operation, cancel_button, reset_on_failure, show_errors
from peft_space.web.context import HIDDEN, PRIVATE, Inputs, PageContext, Updates, Values
from peft_space.web.render import data as render_data
from peft_space.web.render import overview as render_overview

NO_DATA = "No data yet. Upload a file or use the sample data."
FIRST_ROWS = "First rows"
MAX_PREVIEW_ROWS = 50
_INTRODUCTION = (
    "Upload examples of what the model should say: a table with a question and an answer column, "
    "or chat messages. CSV, TSV, JSON, JSONL, Excel, Parquet, Arrow or text."
)
_SEVERAL_WAYS = "We found more than one way to read these columns. Choose one."
_LEFT_OUT = "A column looks like a part of the task, and we don't use it. Leave it out?"
_HUB_FIELDS: dict[str, dict[str, Any]] = {
    "dataset": {"label": "Dataset", "placeholder": "OWNER/NAME"},
    "config": {"label": "Configuration", "info": "Leave empty for the default."},
    "split": {"label": "Training split", "info": "Default: train."},
    "held_out": {"label": "Test split", "info": "Default: 10 % of the training rows."},
    "revision": {"label": "Revision", "info": "Branch, tag or commit. Default: latest."},
}
_ANSWER_ROLES = ("answer", "target", "rejected", "tags", "label")
"""Roles whose column comes after the column that they answer."""
_DATA_FIELDS = ("base_model", "revision", "max_length", "eval_split", "seed")
"""Recipe fields that change how data is read; their text is complete when they lose focus."""
_LABEL_ADD_BUTTON = """() => void setTimeout(() => {
    const name = {role: 'group', tabindex: -1, title: 'Add files', 'aria-label': 'Add files'};
    document.querySelectorAll('#data-file .icon-button:has(button)').forEach(outer =>
        Object.entries(name).forEach(each => outer.setAttribute(...each)));
}, 100)"""
"""Gradio nests the button for more files in a second button without a name that does nothing."""
_COLORS = {"within the limit": theme.TEAL, "truncated": theme.RED}


def _roles_in_order() -> list[str]:
    required = [role for schema in SCHEMAS for role in roles(schema)[0]]
    optional = [role for schema in SCHEMAS for role in roles(schema)[1]]
    questions = [role for role in required if role not in _ANSWER_ROLES]
    return list(dict.fromkeys([*questions, *_ANSWER_ROLES, *optional]))


class DataTab:
    """The tab's components, and the changes that a check of the data makes to them."""

    def __init__(self, page: PageContext):
        self.page = page
        gr.Markdown(_INTRODUCTION)
        with gr.Row():
            self.file = gr.File(
                label="Your data",
                file_count="multiple",
                elem_id="data-file",
                height=150,
            )
            with gr.Column():
                self._place_sources()
        self.question = gr.Radio(
            [], label="Which columns should we use?", visible=False, elem_id="mapping-question"
        )
        self.summary = gr.Markdown(NO_DATA, elem_id="data-summary")
        cancel = cancel_button("cancel-check")
        self.checking = Operation(page, self.summary, cancel=cancel)
        with gr.Column(visible=False) as self.mapping:
            self._place_mapping()
        with gr.Column(visible=False) as self.preview:
            self._place_preview()
        self.problems = gr.Dataframe(
            label="Skipped rows", visible=False, interactive=False, elem_id="problems"
        )
        self.candidates = gr.State([])
        """The column mappings that the question offers."""
        self.outputs = [
            *self.checking.components,
            *(self.question, self.mapping, self.schema, *self.roles.values()),
            *(self.findings, self.fixes, self.preview, self.examples, self.shown_rows),
            *(self.number, self.tokens, self.histogram, self.labels, self.problems),
            *(self.candidates, self.row_numbers, page.num_rows, page.task),
        ]

    def _place_sources(self) -> None:
        self.sample = gr.Button("Use the sample data", elem_id="use-sample")
        gr.Markdown("300 support messages with the ticket for each.")
        with gr.Accordion("Load from the Hugging Face Hub", open=False, elem_id="hub-data"):
            self.hub = {
                name: gr.Textbox(elem_id=f"hub-{name}", **options)
                for name, options in _HUB_FIELDS.items()
            }
            self.use_hub = gr.Button("Use this dataset", elem_id="use-hub")
        with gr.Accordion("Add a separate test file", open=False, elem_id="test-file"):
            self.held_out = gr.File(label="Test rows", elem_id="held-out-file", height=120)
            gr.Markdown("Otherwise 10 % of your rows are set aside for testing.")

    def _place_mapping(self) -> None:
        with gr.Accordion("Change columns", open=False, elem_id="change-columns"):
            self.schema = gr.Dropdown(list(SCHEMAS), label="Format", elem_id="schema")
            with gr.Row():
                hidden: dict[str, Any] = {"visible": False, "min_width": 160}
                self.roles = {
                    role: gr.Dropdown(
                        [], label=f"{role.capitalize()} column", elem_id=f"role-{role}", **hidden
                    )
                    for role in _roles_in_order()
                }
            self.apply_mapping = gr.Button("Apply", elem_id="apply-mapping")
        self.findings = gr.Markdown(elem_id="findings")
        self.fixes = gr.CheckboxGroup(
            [], label="Fix automatically", info="Fixes are saved with the run.", elem_id="fixes"
        )

    def _place_preview(self) -> None:
        self.examples, self.row_numbers = gr.State([]), gr.State({})
        with gr.Row():
            self.shown_rows = gr.Dropdown(
                [FIRST_ROWS], value=FIRST_ROWS, label="Show", elem_id="which-rows"
            )
            self.number = gr.Slider(
                1,
                2,
                value=1,
                step=1,
                label="Row",
                info="The exact rows that the model sees.",
                elem_id="preview-row",
            )
        self.tokens = gr.HTML(elem_id="preview")
        shared: dict[str, Any] = {"y": "rows", "height": 220}
        self.histogram = gr.BarPlot(
            x="tokens",
            color="length",
            color_title=" ",
            color_map=_COLORS,
            title="Row length in tokens",
            elem_id="histogram",
            **shared,
        )
        self.labels = gr.BarPlot(
            x="label", title="Rows of each label", visible=False, elem_id="labels", **shared
        )

    @property
    def empty(self) -> Updates:
        """The tab before any data was read."""
        hidden = gr.update(visible=False)
        parts = (self.question, self.mapping, self.preview, self.problems)
        reset = {self.page.num_rows: 0, self.page.task: "automatic", **self.checking.ready}
        return dict.fromkeys(parts, hidden) | reset

    def show(self, check: render_data.Check) -> Updates:
        """Show the result of a check."""
        if "question" in check:
            return self._ask(check)
        findings_rows = render_data.findings_rows(check)
        first_rows = [example["row"] for example in check["examples"]]
        lengths, labels = render_data.lengths_table(check), render_data.labels_table(check)
        problems, mapping = render_data.problems_table(check), check["column_mapping"]
        shown = gr.update(choices=[FIRST_ROWS, *findings_rows], value=FIRST_ROWS)
        return {
            self.question: gr.update(visible=False),
            self.summary: render_data.check_markdown(check),
            self.mapping: gr.update(visible=True),
            self.findings: render_data.findings_markdown(check),
            self.fixes: self._show_fixes(check),
            self.shown_rows: shown,
            self.row_numbers: {FIRST_ROWS: first_rows} | findings_rows,
            self.histogram: gr.update(value=lengths, x_bin=check["bin_width"]),
            self.labels: gr.update(value=labels, visible=bool(check["labels"])),
            self.problems: gr.update(value=problems, visible=bool(check["problems"])),
            self.page.num_rows: check["to_train"],
            self.page.task: check["task"],
            **self.show_examples(check["examples"]),
            **self.show_mapping(mapping["schema"], mapping["columns"], check["columns"]),
        }

    def _ask(self, check: render_data.Check) -> Updates:
        candidates = check["question"]
        labels = [render_data.mapping_label(mapping) for mapping in candidates]
        choices = [(label, number) for number, label in enumerate(labels)]
        source = render_overview.escape(check["source"])
        return self.empty | {
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

    def show_examples(self, examples: list[dict[str, Any]]) -> Updates:
        """Show rows to step through, starting with the first."""
        slider = gr.update(maximum=max(2, len(examples)), value=1, visible=len(examples) > 1)
        return {
            self.preview: gr.update(visible=True),
            self.examples: examples,
            self.number: slider,
            self.tokens: render_data.example_html(examples[0]) if examples else "No rows to show.",
        }

    def show_mapping(
        self, schema: str | None, selected: dict[str, str], columns: list[str] | None = None
    ) -> Updates:
        """Show which column plays each role of a schema.

        Args:
            schema: hides the roles that it does not have.
            selected: role -> column.
            columns: what to choose from; None leaves the choices as they are.
        """
        required, optional = roles(schema) if schema else ([], [])  # type: ignore[arg-type]
        choices: dict[str, Any] = {}
        if columns is not None:
            choices = {"choices": [("", ""), *((column, column) for column in columns)]}
        updates: Updates = {self.schema: schema}
        for role, dropdown in self.roles.items():
            is_used = role in (*required, *optional)
            updates[dropdown] = gr.update(visible=is_used, value=selected.get(role, ""), **choices)
        return updates

    def check(self, values: Values) -> Iterator[Updates]:
        """Read the data and show the findings, with progress."""
        has_data = bool(values[self.page.data])
        start = self.checking.begin("Reading…") if has_data else {self.summary: NO_DATA}
        yield {**self.empty, **start}
        if has_data:
            arguments = self.page.data_arguments(values)
            yield from self.checking.stream("check", self.show, self._show_early, **arguments)

    def _show_early(self, report: dict[str, Any]) -> Updates | None:
        return self.show_examples(report["preview"]) if "preview" in report else None

    def use_hub_dataset(self, values: Values) -> Updates:
        """Make a dataset on the Hub the page's data. Raises UserError for a wrong address."""
        fields = {name: values[widget].strip() or None for name, widget in self.hub.items()}
        dataset = HubDataset(
            fields["dataset"] or "", fields["revision"], fields["config"], fields["split"]
        )
        address = parse_address(dataset.address).address
        test_split = fields["held_out"]
        held_out = replace(dataset, split=test_split).address if test_split else ""
        return {self.page.data: address, self.page.held_out: held_out, self.page.column_mapping: {}}

    def preview_rows(self, values: Values) -> Updates:
        """Show the rows that were chosen: the first, or those of a finding."""
        numbers = values[self.row_numbers][values[self.shown_rows]][:MAX_PREVIEW_ROWS]
        arguments = self.page.data_arguments(values)
        rows = self.page.workers.call("show_rows", numbers=numbers, **arguments)
        return self.show_examples(rows["examples"])

    def read_mapping(self, values: Values) -> dict[str, Any]:
        """Return the column mapping that the widgets show."""
        schema = values[self.schema]
        required, optional = roles(schema) if schema else ([], [])
        columns = {
            role: values[dropdown]
            for role, dropdown in self.roles.items()
            if values[dropdown] and role in (*required, *optional)
        }
        mapping = {"schema": schema, "columns": columns, "fixes": values[self.fixes] or []}
        before = values[self.page.column_mapping] or {}
        if before.get("schema") == schema:  # the answers to the question stay
            mapping |= {key: before[key] for key in ("good_from", "left_out") if before.get(key)}
        return mapping

    def apply_fixes(self, values: Values) -> dict[str, Any]:
        """Return the column mapping with the chosen fixes."""
        return (values[self.page.column_mapping] or {}) | {"fixes": values[self.fixes]}


def build(page: PageContext) -> None:
    """Place and wire the tab."""
    tab = DataTab(page)
    _wire_sources(page, tab)
    _wire_check(page, tab)
    _wire_mapping(page, tab)
    _wire_preview(page, tab)


def _wire_sources(page: PageContext, tab: DataTab) -> None:
    source = [page.data, page.column_mapping]
    tab.file.change(lambda paths: [paths or "", {}], tab.file, source, **PRIVATE)
    tab.file.change(None, js=_LABEL_ADD_BUTTON, **PRIVATE)
    tab.held_out.change(lambda path: path or "", tab.held_out, page.held_out, **PRIVATE)
    tab.sample.click(lambda: [DEMO_DATA, {}], None, source, **PRIVATE)
    use_hub = show_errors(tab.use_hub_dataset)
    hub_fields: Inputs = set(tab.hub.values())
    tab.use_hub.click(use_hub, hub_fields, [*source, page.held_out], **PRIVATE)


def _wire_check(page: PageContext, tab: DataTab) -> None:
    """Check the data whenever it, its mapping or a recipe field that shapes it changes."""
    widgets: dict[str, Any] = page.form.widgets
    typed = [widgets[name] for name in _DATA_FIELDS]
    recipe_events = [event for widget in typed for event in (widget.blur, widget.submit)]
    recipe_events += [widgets[name].input for name in ("train_on", "chat_template")]
    data_events = [page.data.change, page.held_out.change, page.column_mapping.change]
    check = show_errors(tab.check, tab.summary)
    latest: dict[str, Any] = {"trigger_mode": "always_last", **HIDDEN}
    checks = [
        gr.on(events, check, page.data_inputs, tab.outputs, **latest)
        for events in (data_events, recipe_events)
    ]
    for event in checks:
        reset_on_failure(event, tab.empty)
    cancelled = {tab.summary: NO_DATA, page.data: "", **tab.empty}
    assert tab.checking.cancel is not None
    tab.checking.cancel.click(
        lambda: cancelled, None, [*tab.outputs, page.data], cancels=checks, **PRIVATE
    )


def _wire_mapping(page: PageContext, tab: DataTab) -> None:
    mapping, widgets = page.column_mapping, [tab.schema, *tab.roles.values()]
    tab.schema.input(lambda schema: tab.show_mapping(schema, {}), tab.schema, widgets, **HIDDEN)
    read_mapping = show_errors(tab.read_mapping)
    inputs: Inputs = {*widgets, tab.fixes, mapping}
    tab.apply_mapping.click(read_mapping, inputs, mapping, **HIDDEN)
    answer = [tab.question, tab.candidates]
    tab.question.input(lambda number, candidates: candidates[number], answer, mapping, **HIDDEN)
    tab.fixes.input(tab.apply_fixes, {mapping, tab.fixes}, mapping, **HIDDEN)


def _wire_preview(page: PageContext, tab: DataTab) -> None:
    rows = [tab.preview, tab.examples, tab.number, tab.tokens]
    inputs: Inputs = {*page.data_inputs, tab.shown_rows, tab.row_numbers}
    tab.shown_rows.input(show_errors(tab.preview_rows), inputs, rows, **HIDDEN)

    def show_row(examples: list[dict[str, Any]], number: float) -> str:
        place = min(int(number), len(examples)) - 1
        return render_data.example_html(examples[place]) if examples else ""

    tab.number.change(show_row, [tab.examples, tab.number], tab.tokens, **HIDDEN)
