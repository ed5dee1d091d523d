"""The Data tab: bring files, or take the sample; see what was understood, correct it, and see each token's fate in training."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from peft_space.data.dataset import DEMO_DATA
from peft_space.data.readers.detect import SUFFIXES
from peft_space.data.readers.hub import HubDataset, parse_address
from peft_space.data.schemas import FIXES, SCHEMAS, roles
from peft_space.web import theme
from peft_space.web.context import PRIVATE, PageContext, reset_on_failure, show_errors
from peft_space.web.render import data as render_data
from peft_space.web.render import overview as render_overview

NOTHING = "No data yet: bring a file, or use the sample data."
FIRST_ROWS = "The first rows"
_HUB_FIELDS = {
    "dataset": {"label": "Dataset", "placeholder": "OWNER/NAME"},
    "config": {"label": "Configuration", "info": "Empty: the only one, or the default."},
    "split": {"label": "Split to train on", "info": "Empty: train."},
    "held_out": {"label": "Split to score on", "info": "Empty: a tenth of the rows to train on."},
    "revision": {"label": "Revision", "info": "Branch, tag or commit. Empty: the newest."},
}
_ANSWERING = ("answer", "target", "rejected", "tags", "label")
"""Roles whose column is asked for after that of what they answer."""
_MORE_FILES = """() => void setTimeout(() => document.querySelectorAll('#data-file .icon-button:has(button)').forEach(around => {
    Object.entries({role: 'group', tabindex: -1, title: 'Add files', 'aria-label': 'Add files'}).forEach(each => around.setAttribute(...each))
}), 100)"""
"""Once there are files, Gradio has the button for more of them inside another button, which does nothing and has the name of no text."""
_COLOURS = {"within the limit": theme.TEAL, "cut off": theme.RED}


class DataTab:
    """The tab's components, and what a check of the data shows on them."""

    def __init__(self, page: PageContext):
        self.page = page
        gr.Markdown(
            "Bring rows that show what the model should answer: a table with columns such as *instruction* and *output*, *prompt* and "
            "*completion*, *question* and *answer*, or a list of *messages*. Any of .json, .jsonl, .csv, .tsv, .xlsx, .parquet and .txt will do."
        )
        with gr.Row():
            self.file = gr.File(
                label="Your data",
                file_types=list(SUFFIXES),
                file_count="multiple",
                elem_id="data-file",
                height=150,
            )
            with gr.Column():
                self.sample = gr.Button("Use the sample data", elem_id="use-sample")
                gr.Markdown(
                    "300 messages to a shop's support desk, and the tickets that belong to them."
                )
                with gr.Accordion("My data are on the Hugging Face Hub", open=False):
                    self.hub = {
                        name: gr.Textbox(elem_id=f"hub-{name}", **about)
                        for name, about in _HUB_FIELDS.items()
                    }
                    self.use_hub = gr.Button("Use this dataset", elem_id="use-hub")
                with gr.Accordion("I have a second file, of rows to score on", open=False):
                    self.held_out = gr.File(
                        label="Held-out rows",
                        file_types=list(SUFFIXES),
                        elem_id="held-out-file",
                        height=120,
                    )
                    gr.Markdown("Without one, a tenth of your rows is kept from training.")
        self.question = gr.Radio(
            [], label="How is it to be read?", visible=False, elem_id="reading-question"
        )
        self.summary = gr.Markdown(NOTHING, elem_id="data-summary")
        self.cancel = gr.Button("Cancel reading", visible=False, elem_id="cancel-check")
        with gr.Column(visible=False) as self.understood:
            self._place_reading()
            self.findings = gr.Markdown(elem_id="findings")
            self.fixes = gr.CheckboxGroup(
                [],
                label="Mend it",
                info="Each is kept in the run, so that it can be repeated.",
                elem_id="fixes",
            )
        with gr.Column(visible=False) as self.preview:
            self._place_preview()
        self.problems = gr.Dataframe(
            label="Rows that cannot be used", visible=False, interactive=False, elem_id="problems"
        )
        self.offered = gr.State([])
        self.outputs = [
            self.question, self.summary, self.cancel, self.understood, self.schema, *self.roles.values(), self.findings, self.fixes,
            self.preview, self.found_rows, self.which, self.number, self.tokens, self.histogram, self.labels, self.problems,
            self.offered, self.row_numbers, page.num_rows, page.task,
        ]  # fmt: skip

    def _place_reading(self) -> None:
        with gr.Accordion("Read the columns differently", open=False):
            self.schema = gr.Dropdown(list(SCHEMAS), label="What the rows are", elem_id="schema")
            with gr.Row():
                needed, possible = (
                    [role for schema in SCHEMAS for role in roles(schema)[part]] for part in (0, 1)
                )
                every = dict.fromkeys(
                    [*(role for role in needed if role not in _ANSWERING), *_ANSWERING, *possible]
                )
                self.roles = {
                    role: gr.Dropdown(
                        [],
                        label=f"Column for {role}",
                        visible=False,
                        min_width=160,
                        elem_id=f"role-{role}",
                    )
                    for role in every
                }
            self.read_so = gr.Button("Read it this way", elem_id="read-so")

    def _place_preview(self) -> None:
        self.found_rows, self.row_numbers = gr.State([]), gr.State({})
        with gr.Row():
            self.which = gr.Dropdown(
                [FIRST_ROWS], value=FIRST_ROWS, label="Show", elem_id="which-rows"
            )
            self.number = gr.Slider(
                1,
                2,
                value=1,
                step=1,
                label="Which of these rows",
                info="Each exactly as it will be trained.",
                elem_id="preview-row",
            )
        self.tokens = gr.HTML(elem_id="preview")
        self.histogram = gr.BarPlot(
            x="tokens",
            y="rows",
            color="fate",
            color_title=" ",
            color_map=_COLOURS,
            title="Tokens in a row",
            height=220,
            elem_id="histogram",
        )
        self.labels = gr.BarPlot(
            x="label",
            y="rows",
            title="Rows of each label",
            height=220,
            visible=False,
            elem_id="labels",
        )

    @property
    def empty(self) -> dict[Any, Any]:
        """Nothing understood."""
        hidden = gr.update(visible=False)
        shown = (self.question, self.cancel, self.understood, self.preview, self.problems)
        return dict.fromkeys(shown, hidden) | {self.page.num_rows: 0, self.page.task: "automatic"}

    def show(self, found: dict[str, Any]) -> dict[Any, Any]:
        """Everything that was found."""
        if "question" in found:
            return self._ask(found)
        return {
            self.question: gr.update(visible=False),
            self.summary: render_data.check_markdown(found),
            self.cancel: gr.update(visible=False),
            self.understood: gr.update(visible=True),
            self.findings: render_data.findings_markdown(found),
            self.fixes: self._fixes(found),
            self.which: gr.update(
                choices=[FIRST_ROWS, *render_data.findings_rows(found)], value=FIRST_ROWS
            ),
            self.row_numbers: {FIRST_ROWS: [example["row"] for example in found["examples"]]}
            | render_data.findings_rows(found),
            self.histogram: gr.update(
                value=render_data.lengths_table(found), x_bin=found["bin_width"]
            ),
            self.labels: gr.update(
                value=render_data.labels_table(found), visible=bool(found["labels"])
            ),
            self.problems: gr.update(
                value=render_data.problems_table(found), visible=bool(found["problems"])
            ),
            self.page.num_rows: found["to_train"],
            self.page.task: found["task"],
            **self.rows(found["examples"]),
            **self.column_mapping(
                found["column_mapping"]["schema"],
                found["column_mapping"]["columns"],
                found["columns"],
            ),
        }

    def _ask(self, found: dict[str, Any]) -> dict[Any, Any]:
        ways = [render_data.reading_in_words(way) for way in found["question"]]
        return self.empty | {
            self.summary: f"**{render_overview.escape(found['source'])}**: {found['rows']:,} rows. Its columns can be read in several ways: choose one above.",
            self.question: gr.update(
                choices=[(words, number) for number, words in enumerate(ways)],
                value=None,
                visible=True,
            ),
            self.offered: [
                {"schema": way["schema"], "columns": way["columns"]} for way in found["question"]
            ],
        }

    def _fixes(self, found: dict[str, Any]) -> Any:
        chosen = found["column_mapping"]["fixes"]
        offered = {finding["fix"] for finding in found["findings"] if finding["fix"]} | set(chosen)
        choices = [(words, fix) for fix, words in FIXES.items() if fix in offered]
        return gr.update(choices=choices, value=chosen, visible=bool(choices))

    def rows(self, examples: list[dict[str, Any]]) -> dict[Any, Any]:
        """Rows to step through, from the first."""
        return {
            self.preview: gr.update(visible=True),
            self.found_rows: examples,
            self.number: gr.update(
                maximum=max(2, len(examples)), value=1, visible=len(examples) > 1
            ),
            self.tokens: render_data.example_html(examples[0])
            if examples
            else "There is no such row.",
        }

    def column_mapping(
        self, schema: str | None, chosen: dict[str, str], columns: list[str] | None = None
    ) -> dict[Any, Any]:
        """The widgets of a reading: of each role that the schema has, which column plays it."""
        needs, may_have = roles(schema) if schema else ([], [])  # type: ignore[arg-type]
        shown: dict[Any, Any] = {self.schema: schema}
        for role, widget in self.roles.items():
            choices = (
                {}
                if columns is None
                else {"choices": [("", ""), *((column, column) for column in columns)]}
            )
            shown[widget] = gr.update(
                visible=role in (*needs, *may_have), value=chosen.get(role, ""), **choices
            )
        return shown

    def check(self, values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        """Read the data and show what was found, telling what is being done."""
        page = self.page
        yield {self.summary: "Reading…" if values[page.data] else NOTHING, **self.empty}
        if not values[page.data]:
            return
        yield {self.cancel: gr.update(visible=True)}
        for message in page.workers.stream(
            "check", **page.data_arguments(values), recipe=page.form.recipe(values).model_dump()
        ):
            report = message.get("report") or {}
            if "result" in message:
                yield self.show(message["result"])
            elif "preview" in report:
                yield self.rows(report["preview"])
            else:
                yield {self.summary: f"{report['what']}…" if report else gr.skip()}

    def take_from_hub(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """Let the visitor's data be a dataset on the Hub."""
        given = {name: values[widget].strip() or None for name, widget in self.hub.items()}
        wanted = HubDataset(
            given["dataset"] or "", given["revision"], given["config"], given["split"]
        )
        address = parse_address(wanted.address).address  # says what is wrong with it
        held_out = replace(wanted, split=given["held_out"]).address if given["held_out"] else ""
        return {self.page.data: address, self.page.held_out: held_out, self.page.column_mapping: {}}

    def look(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """The rows that the visitor wants to see: the first, or those of a finding."""
        page = self.page
        numbers = values[self.row_numbers][values[self.which]]
        recipe = page.form.recipe(values).model_dump()
        return self.rows(
            page.workers.call(
                "show_rows", **page.data_arguments(values), recipe=recipe, numbers=numbers[:50]
            )["examples"]
        )


def build(page: PageContext) -> None:
    """Place and wire the tab."""
    tab = DataTab(page)
    hidden: dict[str, Any] = {"show_progress": "hidden", **PRIVATE}
    taken = {page.data, page.held_out, page.column_mapping, *page.form.inputs}
    checked: dict[str, Any] = {
        "inputs": taken,
        "outputs": tab.outputs,
        "trigger_mode": "always_last",
        **hidden,
    }
    check = show_errors(tab.check, where=tab.summary)
    tab.file.change(
        lambda paths: [paths or "", {}], tab.file, [page.data, page.column_mapping], **PRIVATE
    )
    tab.file.change(None, js=_MORE_FILES, **PRIVATE)
    tab.held_out.change(lambda path: path or "", tab.held_out, page.held_out, **PRIVATE)
    tab.sample.click(lambda: [DEMO_DATA, {}], None, [page.data, page.column_mapping], **PRIVATE)
    tab.use_hub.click(
        show_errors(tab.take_from_hub),
        set(tab.hub.values()),
        [page.data, page.held_out, page.column_mapping],
        **PRIVATE,
    )
    shaping = [
        page.form.widgets[name]
        for name in ("base_model", "revision", "max_length", "eval_split", "seed")
    ]
    again = [event for widget in shaping for event in (widget.blur, widget.submit)]
    again += [page.form.widgets[name].input for name in ("train_on", "chat_template")]
    brought = [page.data.change, page.held_out.change, page.column_mapping.change]
    checks = [gr.on(brought, check, **checked), gr.on(again, check, **checked)]
    for one in checks:
        reset_on_failure(one, tab.empty)
    cancelled = {tab.summary: NOTHING, page.data: "", **tab.empty}
    tab.cancel.click(lambda: cancelled, None, [*tab.outputs, page.data], cancels=checks, **PRIVATE)
    _wire_reading(page, tab, hidden)
    rows = [tab.preview, tab.found_rows, tab.number, tab.tokens]
    tab.which.input(show_errors(tab.look), {*taken, tab.which, tab.row_numbers}, rows, **hidden)
    tab.number.change(
        lambda examples, n: (
            render_data.example_html(examples[min(int(n), len(examples)) - 1]) if examples else ""
        ),
        [tab.found_rows, tab.number],
        tab.tokens,
        **hidden,
    )


def _wire_reading(page: PageContext, tab: DataTab, hidden: dict[str, Any]) -> None:
    """What the visitor says about how the data are to be read."""

    def read_so(values: dict[Any, Any]) -> dict[str, Any]:
        columns = {role: values[widget] for role, widget in tab.roles.items() if values[widget]}
        needs, may_have = roles(values[tab.schema]) if values[tab.schema] else ([], [])
        kept = {role: column for role, column in columns.items() if role in (*needs, *may_have)}
        return {"schema": values[tab.schema], "columns": kept, "fixes": values[tab.fixes] or []}

    def mend(values: dict[Any, Any]) -> dict[str, Any]:
        return (values[page.column_mapping] or {}) | {"fixes": values[tab.fixes]}

    widgets = [tab.schema, *tab.roles.values()]
    tab.schema.input(lambda schema: tab.column_mapping(schema, {}), tab.schema, widgets, **hidden)
    tab.read_so.click(show_errors(read_so), {*widgets, tab.fixes}, page.column_mapping, **hidden)
    tab.question.input(
        lambda way, offered: offered[way],
        [tab.question, tab.offered],
        page.column_mapping,
        **hidden,
    )
    tab.fixes.input(mend, {page.column_mapping, tab.fixes}, page.column_mapping, **hidden)
