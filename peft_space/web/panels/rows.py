"""The rows of the data on the Data tab: a searchable table, page by page, and one row in detail."""

from typing import Any

import gradio as gr

from peft_space.web.components import choices_html, picked, show_errors
from peft_space.web.context import HIDDEN, Inputs, PageContext, Updates, Values
from peft_space.web.render import data as render_data
from peft_space.web.render import rows as render_rows

PAGE_SIZE = 50
_COLUMN_WIDTH = 240


class Rows:
    """The components and handlers of the rows."""

    def __init__(self, page: PageContext):
        self.page = page
        self.examples = gr.State([])
        """The first rows, token by token, as the check returned them."""
        self.finding_rows = gr.State({})
        """Kind of finding -> the numbers of its rows."""
        self.used = gr.State([])
        """The columns that are read; they come first."""
        self.position = gr.State([0, ""])
        """[rows before the shown page, the finding that is shown]."""
        self.findings = choices_html("findings")
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                self._place_table()
            with gr.Column(scale=2, min_width=320, elem_id="inspector"), gr.Tabs():
                with gr.Tab("As tokens"):
                    self.tokens = gr.HTML(elem_id="preview", min_height=120)
                with gr.Tab("As read"):
                    self.chat = gr.HTML(elem_id="chat-view", min_height=120)
                with gr.Tab("Lengths"):
                    self.lengths = gr.HTML(elem_id="lengths")
                with gr.Tab("Labels", visible=False) as self.labels_tab:
                    self.labels = gr.HTML(elem_id="labels")

    def _place_table(self) -> None:
        with gr.Row():
            self.query = gr.Textbox(
                placeholder="Search rows",
                label="Search rows",
                show_label=False,
                container=False,
                elem_id="search-rows",
            )
            small: dict[str, Any] = {"size": "sm", "scale": 0, "min_width": 90}
            self.previous = gr.Button("Previous", elem_id="previous-rows", **small)
            self.following = gr.Button("Next", elem_id="next-rows", **small)
            self.everything = gr.Button("All rows", visible=False, elem_id="all-rows", **small)
        self.range = gr.Markdown(elem_id="rows-range")
        self.table = gr.Dataframe(
            interactive=False,
            label="Rows",
            show_label=False,
            max_height=360,
            wrap=True,
            pinned_columns=1,
            elem_id="rows",
        )

    @property
    def shown(self) -> list[Any]:
        """Outputs of `browse`."""
        buttons = [self.everything, self.previous, self.following]
        return [self.table, self.range, self.position, *buttons, self.tokens, self.chat]

    def browse(self, values: Values, offset: int, kind: str) -> Updates:
        """Show a page of rows: those that match the search, or those of a finding."""
        page = self.page
        if not values[page.data] or values[page.data_state]["kind"] != "ready":
            return {self.position: [0, ""]}
        arguments: dict[str, Any] = {"data": values[page.data], "offset": max(0, offset)}
        if mapping := values[page.column_mapping]:
            arguments["column_mapping"] = mapping
        numbers = values[self.finding_rows].get(kind) if kind else None
        if numbers is not None:
            arguments["numbers"] = numbers
        browsed = page.workers.call(
            "browse", query=values[self.query] or "", limit=PAGE_SIZE, **arguments
        )
        first = browsed["rows"][0] if browsed["rows"] else None
        return {
            self.table: gr.update(
                value=render_data.rows_table(browsed, values[self.used]),
                column_widths=[64, 72, *[_COLUMN_WIDTH] * len(browsed["columns"])],
            ),
            self.range: render_data.range_words(browsed, arguments["offset"]),
            self.position: [arguments["offset"], kind],
            self.everything: gr.update(visible=bool(kind)),
            self.previous: gr.update(interactive=arguments["offset"] > 0),
            self.following: gr.update(
                interactive=arguments["offset"] + PAGE_SIZE < browsed["matches"]
            ),
            **(self.inspect(values, first["row"], first) if first else {}),
        }

    def inspect(self, values: Values, number: int, row: dict[str, Any] | None = None) -> Updates:
        """Show one row as tokens, and as the app reads it."""
        page, data_state = self.page, values[self.page.data_state]
        if row is None:
            asked = {"data": values[page.data], "numbers": [number]}
            if values[page.column_mapping]:
                asked["column_mapping"] = values[page.column_mapping]
            [row] = page.workers.call("browse", **asked)["rows"]
        known = [one for one in values[self.examples] if one["row"] == number]
        if not known and values[page.recipe_state]["model"] and not data_state["message"]:
            known = page.workers.call("show_rows", numbers=[number], **page.data_arguments(values))[
                "examples"
            ]
        no_model = "<p>Choose a base model on the Recipe tab to see its tokens.</p>"
        if data_state["message"]:
            no_model = "<p>The base model cannot read these rows. See above.</p>"
        return {
            self.tokens: render_rows.example_html(known[0]) if known else no_model,
            self.chat: render_rows.chat_html(row),
        }


def build(page: PageContext) -> Rows:
    """Place and wire the rows."""
    rows = Rows(page)
    inputs: Inputs = {
        *page.data_inputs,
        page.data_state,
        rows.query,
        rows.position,
        rows.finding_rows,
        rows.examples,
        rows.used,
    }

    def pager(step: int) -> Any:
        def turn(values: Values) -> Updates:
            offset, kind = values[rows.position]
            return rows.browse(values, offset + step * PAGE_SIZE, kind)

        return show_errors(turn)

    def start(values: Values) -> Updates:
        return rows.browse(values, 0, "")

    def show_finding(values: Values, event: gr.EventData) -> Updates:
        return rows.browse(values, 0, picked(event))

    def select(values: Values, event: gr.SelectData) -> Updates:
        return rows.inspect(values, int(event.row_value[0]))

    begin = show_errors(start)
    gr.on([rows.query.submit, rows.query.blur], begin, inputs, rows.shown, **HIDDEN)
    rows.everything.click(begin, inputs, rows.shown, **HIDDEN)
    rows.previous.click(pager(-1), inputs, rows.shown, **HIDDEN)
    rows.following.click(pager(1), inputs, rows.shown, **HIDDEN)
    rows.findings.click(show_errors(show_finding), inputs, rows.shown, **HIDDEN)
    inspected = [rows.tokens, rows.chat]
    rows.table.select(show_errors(select), inputs, inspected, **HIDDEN)
    page.data_state.change(begin, inputs, rows.shown, **HIDDEN)
    return rows
