"""The source of the data on the Data tab: three ways in, then one chip with what can be done."""

import functools
from collections.abc import Iterator
from typing import Any

import gradio as gr

from peft_space.data.readers.hub import HubDataset, is_address, parse_address
from peft_space.data.sheets_and_splits import may_have_parts
from peft_space.demo import MODELS
from peft_space.errors import UserError
from peft_space.web.components import choices_html, picked, show_errors
from peft_space.web.context import (
    EDIT,
    HIDDEN,
    NO_MODEL,
    PRIVATE,
    Inputs,
    PageContext,
    Updates,
    Values,
)
from peft_space.web.panels.examples import (
    EXAMPLES,
    example_data,
    is_example,
    model_of_example,
)
from peft_space.web.render import data as render_data

_MENU: dict[str, Any] = {"visible": False, "min_width": 160}
_MAX_MENUS = 2
"""A dataset on the Hub has configurations and splits."""
NO_TEST_SPLIT = "10 % of the training rows"
_HUB_PAGE = "huggingface.co/datasets/"
_LABEL_ADD_BUTTON = """() => void setTimeout(() => {
    const name = {role: 'group', tabindex: -1, title: 'Add files', 'aria-label': 'Add files'};
    document.querySelectorAll('#data-file .icon-button:has(button)').forEach(outer =>
        Object.entries(name).forEach(each => outer.setAttribute(...each)));
}, 100)"""
"""Gradio nests the button for more files in a second button without a name that does nothing."""


class Sources:
    """The components and handlers of the source.

    A new source replaces the old one, and another button adds to it. A visitor's own data ask for
    a base model; the examples come with the demo model.
    """

    def __init__(self, page: PageContext):
        self.page = page
        with gr.Column(elem_id="ways-in") as self.ways:
            gr.Markdown(
                "## Fine-tune a language model on your own examples\n"
                "See before and after, and take it to vLLM, Ollama or the Hub."
            )
            with gr.Row():
                self._place_upload()
                self._place_hub()
                self._place_examples()
        with gr.Row(visible=False, elem_id="source-row") as self.chosen:
            self.chip = gr.HTML(elem_id="source", scale=1)
            upload: dict[str, Any] = {
                "size": "sm", "scale": 0, "min_width": 110,
            }  # fmt: skip
            self.replace = gr.UploadButton(
                "Replace", file_count="multiple", elem_id="replace-data", **upload
            )
            self.add = gr.UploadButton(
                "Add files", file_count="multiple", elem_id="add-data", **upload
            )
            self.held_out = gr.UploadButton("Set test file", elem_id="held-out-file", **upload)
            self.remove = gr.Button(
                "Remove", size="sm", scale=0, min_width=110, elem_id="remove-data"
            )
        with gr.Row(visible=False, elem_id="parts") as self.parts:
            self.menus = [
                gr.Dropdown([], label="Part", elem_id=f"part-{number}", **_MENU)
                for number in range(_MAX_MENUS)
            ]
            self.test_split = gr.Dropdown([], label="Test split", elem_id="test-split", **_MENU)

    def _place_upload(self) -> None:
        with gr.Column(min_width=260, elem_classes=["card"]):
            gr.Markdown("### Upload")
            self.file = gr.File(
                label="Your data",
                file_count="multiple",
                elem_id="data-file",
                height=150,
            )
            gr.Markdown(
                "A table with a question and an answer column, or chat messages. "
                "CSV, TSV, JSON, JSONL, Excel, Parquet, Arrow or text. "
                "Pictures come in a .zip file with a table."
            )

    def _place_hub(self) -> None:
        with gr.Column(min_width=260, elem_classes=["card"], elem_id="hub-data"):
            gr.Markdown("### Load from the Hub")
            self.dataset = gr.Textbox(
                label="Dataset", placeholder="owner/name", elem_id="hub-dataset"
            )
            self.revision = gr.Textbox(
                label="Revision",
                placeholder="branch, tag or commit; default: the latest",
                elem_id="hub-revision",
            )
            self.use_hub = gr.Button("Load this dataset", size="md", elem_id="use-hub")

    def _place_examples(self) -> None:
        with gr.Column(min_width=260, elem_classes=["card"]):
            gr.Markdown("### Try an example")
            self.demo = gr.Button("Run the demo", variant="primary", size="md", elem_id="try-demo")
            gr.Markdown("Trains a tiny model to turn support messages into tickets.")
            self.examples = choices_html("examples", value=render_data.examples_html(EXAMPLES))

    @property
    def outputs(self) -> list[Any]:
        """Outputs of every handler that changes the source."""
        page = self.page
        mapped = [page.data, page.held_out, page.column_mapping]
        return [*mapped, *page.recipe_outputs, self.file]

    def use(self, values: Values, data: str | list[str], held_out: str = "") -> Updates:
        """Make `data` the page's only data, and choose the base model that suits them."""
        recipe = values[self.page.recipe_state]
        model = recipe["model"]
        if is_example(data):
            suited = model_of_example(data)
            model = suited if model in ("", *MODELS) else model
        elif is_example(values[self.page.data]) and model in MODELS:
            # it was chosen for the example, and cannot learn anybody's own data
            model = NO_MODEL
        return {
            self.page.data: data,
            self.page.held_out: held_out,
            self.page.column_mapping: {},
            self.file: None,
            **self.page.edit_recipe(values, recipe["changed"] | {"base_model": model}),
        }

    def use_hub_dataset(self, values: Values) -> Updates:
        """Make a dataset on the Hub the page's data. Raises UserError for a wrong address."""
        name = values[self.dataset].strip().rpartition(_HUB_PAGE)[2].strip("/")
        dataset = HubDataset(name, values[self.revision].strip() or None)
        return self.use(values, parse_address(dataset.address).address)

    def find_parts(self, values: Values) -> Iterator[Updates]:
        """Show the parts of the data from which one is read, if there are several."""
        data = values[self.page.data]
        items = data if isinstance(data, list) else [data]
        hidden = dict.fromkeys([*self.menus, self.test_split, self.parts], gr.update(visible=False))
        yield hidden
        if len(items) != 1 or not may_have_parts(items[0]):
            return
        try:
            for message in self.page.workers.stream("parts", data=items[0]):
                if "result" in message:
                    menus = message["result"]["menus"]
                    yield hidden | self._show_parts(menus, values[self.page.held_out])
                else:
                    yield {self.parts: gr.skip()}
        except UserError:  # the check of the data shows it
            return

    def _show_parts(self, menus: list[dict[str, Any]], held_out: str) -> Updates:
        updates: Updates = {self.parts: gr.update(visible=bool(menus))}
        for widget, menu in zip(self.menus, menus, strict=False):
            # each choice is a name and what names it as data
            updates[widget] = gr.update(
                label=menu["kind"].capitalize(),
                choices=list(menu["data"].items()),
                value=menu["data"].get(menu["chosen"]),
                visible=True,
            )
            if menu["kind"] == "split":
                others = {name: one for name, one in menu["data"].items() if name != menu["chosen"]}
                updates[self.test_split] = gr.update(
                    choices=[(NO_TEST_SPLIT, ""), *others.items()], value=held_out, visible=True
                )
        return updates

    def use_part(self, values: Values, chosen: str) -> Updates:
        """Read another part. A test split of another configuration is no longer used."""
        held_out = values[self.page.held_out]
        if is_address(chosen):
            is_same = is_address(held_out) and (
                parse_address(held_out).config == parse_address(chosen).config
            )
            return self.use(values, chosen, held_out if is_same and held_out != chosen else "")
        return self.use(values, [chosen], held_out)

    def show(self, data: str | list[str]) -> Updates:
        """Show the ways in, or the chip of the chosen data."""
        can_add = isinstance(data, list)
        return {
            self.ways: gr.update(visible=not data),
            self.chosen: gr.update(visible=bool(data)),
            self.chip: render_data.source_html(data) if data else "",
            self.add: gr.update(visible=can_add),
        }


def _choose_part(sources: Sources, menu: gr.Dropdown, values: Values) -> Updates:
    return sources.use_part(values, values[menu])


def build(page: PageContext) -> Sources:
    """Place and wire the source."""
    sources = Sources(page)
    recipe = page.recipe_state

    @show_errors
    def upload(values: Values) -> Updates:
        return sources.use(values, values[sources.file] or "")

    @show_errors
    def replace_files(values: Values) -> Updates:
        return sources.use(values, values[sources.replace])

    @show_errors
    def add(values: Values) -> Any:
        return [*values[page.data], *values[sources.add]]

    @show_errors
    def use_example(values: Values, event: gr.EventData) -> Updates:
        kind = picked(event)
        return sources.use(values, example_data(kind if kind in EXAMPLES else "tickets"))

    @show_errors
    def remove(values: Values) -> Updates:
        return sources.use(values, "")

    outputs = sources.outputs
    before: Inputs = {recipe, page.data}
    sources.file.upload(upload, {sources.file, *before}, outputs, **EDIT)
    sources.replace.upload(replace_files, {sources.replace, *before}, outputs, **EDIT)
    sources.examples.click(use_example, before, outputs, **EDIT)
    hub_inputs: Inputs = {sources.dataset, sources.revision, *before}
    use_hub = show_errors(sources.use_hub_dataset)
    sources.use_hub.click(use_hub, hub_inputs, outputs, **EDIT)
    sources.remove.click(remove, before, outputs, **EDIT)
    sources.add.upload(add, {page.data, sources.add}, page.data, **PRIVATE)
    sources.held_out.upload(lambda path: path or "", sources.held_out, page.held_out, **PRIVATE)
    sources.file.change(None, js=_LABEL_ADD_BUTTON, **PRIVATE)
    for menu in sources.menus:
        choose = functools.partial(_choose_part, sources, menu)
        choice_inputs: Inputs = {menu, page.held_out, *before}
        menu.input(show_errors(choose), choice_inputs, outputs, **EDIT)
    sources.test_split.input(lambda split: split, sources.test_split, page.held_out, **PRIVATE)
    parts = [*sources.menus, sources.test_split, sources.parts]
    part_inputs: Inputs = {page.data, page.held_out}
    page.data.change(show_errors(sources.find_parts), part_inputs, parts, **HIDDEN)
    shown = [sources.ways, sources.chosen, sources.chip, sources.add]
    page.data.change(sources.show, page.data, shown, **HIDDEN)
    return sources
