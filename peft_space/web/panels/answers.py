"""Answers of the base model and the fine-tuned one to the visitor's prompts, on the Compare tab."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from peft_space.errors import UserError
from peft_space.evaluation import extra_adapters
from peft_space.evaluation.prompts import (
    PROMPT_SEPARATOR,
    held_out_prompts,
    read_prompts,
    split_prompts,
)
from peft_space.runs.run import Run
from peft_space.runs.store import list_runs, open_run
from peft_space.web.components import Operation, show_errors
from peft_space.web.context import HIDDEN, Inputs, PageContext, Updates, Values, has_adapter
from peft_space.web.render import compare as render_compare
from peft_space.web.render import overview as render_overview

MAX_GROWING = 20
"""With more prompts, only their number is shown while the answers are generated."""
MAX_EXTRA_ADAPTERS = 4
"""More columns could not be read."""
SECONDS_BETWEEN_UPDATES = 0.2
"""Between two updates of growing answers."""


class Answers:
    """The panel's components and handlers."""

    def __init__(self, page: PageContext):
        self.page = page
        self._place_prompts()
        self._place_sampling()
        self.progress = gr.Markdown(elem_id="compare-progress")
        self.answers = gr.HTML(elem_id="answers")
        self.asked = gr.State([])
        """The test rows that are in the box: prompt, expected answer and pictures of each."""
        self.num_used = gr.State(0)
        """Test rows that were used as prompts so far."""
        self.comparison = Operation(page, self.progress)
        question = {self.prompts, self.system, self.asked, self.compare_with, self.pictures}
        self.inputs: Inputs = page.selection | question | set(self.sampling.values())

    def _place_prompts(self) -> None:
        self.prompts = gr.Textbox(
            label="Prompts",
            info="Separate several prompts with a line of ---. Ctrl+Enter generates.",
            lines=3,
            max_lines=20,
            elem_id="prompts",
        )
        self.pictures = picture_box("Pictures for these prompts", "prompt-pictures")
        with gr.Row():
            small: dict[str, Any] = {"size": "md", "scale": 0, "min_width": 190}
            self.generate = gr.Button(
                "Generate", variant="primary", interactive=False, elem_id="generate", **small
            )
            self.use_rows = gr.Button(
                "Use test examples", interactive=False, elem_id="use-rows", **small
            )
            self.how_many = gr.Number(
                3,
                precision=0,
                minimum=1,
                maximum=1000,
                label="Number",
                scale=0,
                min_width=110,
                elem_id="how-many",
            )
            self.file = gr.UploadButton("Upload prompts", elem_id="prompts-file", **small)
            self.stop = gr.Button(
                "Stop", variant="stop", visible=False, elem_id="stop-answers", **small
            )
        self.compare_with = gr.Dropdown(
            [],
            multiselect=True,
            max_choices=MAX_EXTRA_ADAPTERS,
            label="Also compare",
            visible=False,
            elem_id="compare-with",
            info="Checkpoints of this run, and adapters of your other runs on the same base. "
            "Generated after the first two.",
        )

    def _place_sampling(self) -> None:
        with gr.Accordion("Sampling", open=False), gr.Row():
            self.system = gr.Textbox(label="System prompt", info="Optional")
            self.sampling: dict[str, gr.components.Component] = {
                "max_new_tokens": gr.Number(
                    128, precision=0, minimum=1, maximum=4096, label="Max new tokens"
                ),
                "temperature": gr.Number(
                    0.0, minimum=0.0, maximum=5.0, label="Temperature", info="0 = deterministic"
                ),
                "top_p": gr.Number(1.0, minimum=0.01, maximum=1.0, label="Top p"),
                "seed": gr.Number(0, precision=0, minimum=0, label="Seed"),
            }

    # Each handler gets only the outputs that it fills: Gradio loses what a generator has shown
    # in an output that a later yield leaves out.
    @property
    def row_outputs(self) -> list[gr.components.Component]:
        """Outputs of `use_test_rows`."""
        return [self.prompts, self.system, self.asked, self.num_used, self.pictures]

    @property
    def outputs(self) -> list[gr.components.Component]:
        """Outputs of `answer`."""
        return [self.progress, self.answers, self.stop]

    def use_test_rows(self, values: Values) -> Updates:
        """Use the next test rows as prompts, and keep their answers to compare with."""
        run, offset = self.page.selected_run(values), values[self.num_used]
        rows = held_out_prompts(run, int(values[self.how_many]), offset)
        systems = {row["system"] for row in rows}
        return {
            self.prompts: PROMPT_SEPARATOR.join(row["prompt"] for row in rows),
            self.system: systems.pop() if len(systems) == 1 else "",
            self.asked: [row | {"prompt": row["prompt"].strip()} for row in rows],
            self.num_used: offset + len(rows),
            self.pictures: None,
        }

    def answer(self, values: Values) -> Iterator[Updates]:
        """Generate the answers of base and adapter, and show them as they grow."""
        prompts = split_prompts(values[self.prompts] or "")
        if not prompts:
            raise UserError("web.no_prompt", "Type a prompt first, or use test examples.")
        run = self.page.trained_run(values)
        uploaded = [str(path) for path in values[self.pictures] or []]
        rows, pictures = _rows_of(prompts, values[self.asked], uploaded)
        grows = len(rows) <= MAX_GROWING
        empty = render_compare.answers_html(rows) if grows else ""
        working = {self.answers: empty, self.stop: gr.update(visible=True)}
        yield self.comparison.begin() | working

        def show(result: dict[str, Any]) -> Updates:
            done = [row | answer for row, answer in zip(rows, result["answers"], strict=True)]
            html = render_compare.summary_html(result, done)
            html += render_compare.answers_html(done, marked=True)
            return {self.progress: "", self.answers: html, self.stop: gr.update(visible=False)}

        arguments = {
            "run": str(run.directory),
            "prompts": prompts,
            "system": values[self.system] or "",
            "sampling": {name: values[field] for name, field in self.sampling.items()},
            "compare_with": self.extra_adapters(values),
        }
        if any(pictures):
            arguments["pictures"] = pictures
        show_growing = self._growing(rows, grows)
        yield from self.comparison.stream("compare", show, show_growing, **arguments)

    def _growing(
        self, rows: list[dict[str, Any]], grows: bool
    ) -> Callable[[dict[str, Any]], Updates | None]:
        """Return the handler of reports that fills in `rows` and shows them now and then."""
        updated = 0.0

        def show_growing(report: dict[str, Any]) -> Updates | None:
            nonlocal updated
            if "column" not in report:
                return None
            side, number = report["column"], report["prompt"]
            rows[number][side] = report["text"]
            if time.monotonic() - updated <= SECONDS_BETWEEN_UPDATES:
                return {self.progress: gr.skip()}
            updated = time.monotonic()
            if grows:
                html = render_compare.answers_html(rows)
                return {self.progress: writing(side), self.answers: html}
            count = f"{writing(side)} ({number + 1} of {len(rows)})"
            return {self.progress: count, self.answers: gr.skip()}

        return show_growing

    def extra_adapters(self, values: Values) -> list[str]:
        """Return what else answers: names of checkpoints, and directories of other runs."""
        owners = self.page.owners(values)
        return [
            name if name.startswith("checkpoint-") else str(open_run(owners, name).directory)
            for name in values[self.compare_with] or []
        ]

    def offer_extra_adapters(self, values: Values) -> Any:
        """Offer the adapters that can be compared with the selected run's."""
        if not values[self.page.run] or not has_adapter(values[self.page.run_state]):
            return gr.update(choices=[], value=[], visible=False)
        run = self.page.selected_run(values)
        adapters = extra_adapters.comparable_adapters(run, list_runs(*self.page.owners(values)))
        checkpoints = [name for name in adapters if isinstance(name, str)]
        choices = [(name.replace("checkpoint-", "Step "), name) for name in checkpoints]
        choices += render_overview.run_choices([run for run in adapters if isinstance(run, Run)])
        offered = {value for _, value in choices}
        selected = [name for name in values[self.compare_with] or [] if name in offered]
        return gr.update(choices=choices, value=selected, visible=bool(choices))


def _rows_of(
    prompts: list[str], asked: list[dict[str, Any]], uploaded: list[str]
) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """Prompts with the answers that they expect, and the pictures of each.

    Args:
        prompts: from the box.
        asked: test rows; those that were changed in the box no longer count.
        uploaded: pictures for all prompts, or one for each, in place of those of test rows.
    """
    rows, pictures = [], []
    left = list(asked)
    for number, prompt in enumerate(prompts):
        row = next((one for one in left if one["prompt"] == prompt), {})
        left = [one for one in left if one is not row]
        own = uploaded[number : number + 1] if len(uploaded) == len(prompts) else uploaded
        expected = "" if uploaded else row.get("expected", "")
        rows.append({"prompt": prompt, "base": "", "adapter": "", "expected": expected})
        pictures.append(own or row.get("pictures", []))
    return rows, pictures


def picture_box(label: str, elem_id: str) -> gr.File:
    """Place a hidden box for pictures. It is shown for runs that read pictures."""
    return gr.File(
        label=label,
        file_count="multiple",
        file_types=["image"],
        height=110,
        visible=False,
        elem_id=elem_id,
    )


def reads_pictures(run: Run) -> bool:
    """Return True if a run answers questions about pictures."""
    path = run.path("data", "task.json")
    return path.is_file() and json.loads(path.read_text())["task"] == "image-text-to-text"


def writing(side: str) -> str:
    """Say which model is writing."""
    names = {"base": "Base model", "adapter": "Fine-tuned model"}
    return f"{names.get(side, side)} is writing…"


def build(page: PageContext) -> Answers:
    """Place and wire the panel."""
    panel = Answers(page)
    row_inputs: Inputs = {*page.selection, panel.num_used, panel.how_many}
    panel.use_rows.click(show_errors(panel.use_test_rows), row_inputs, panel.row_outputs, **HIDDEN)

    @show_errors
    def read_file(path: str) -> list[Any]:
        return [PROMPT_SEPARATOR.join(read_prompts(path)), []]

    panel.file.upload(read_file, panel.file, [panel.prompts, panel.asked], **HIDDEN)
    answer = show_errors(panel.answer, panel.progress)
    answering = panel.generate.click(answer, panel.inputs, panel.outputs, **HIDDEN)
    hidden = gr.update(visible=False)
    answering.failure(lambda: hidden, None, panel.stop, **HIDDEN)
    stopped = {panel.progress: "Stopped. Run again to continue.", panel.stop: hidden}
    panel.stop.click(lambda: stopped, None, list(stopped), cancels=answering, **HIDDEN)
    page.reset_with_run(
        {
            panel.progress: "",
            panel.answers: "",
            panel.asked: [],
            panel.prompts: "",
            panel.num_used: 0,
            panel.stop: hidden,
        }
    )

    def offer(values: Values) -> Updates:
        has_box = bool(values[page.run]) and reads_pictures(page.selected_run(values))
        return {
            panel.compare_with: panel.offer_extra_adapters(values),
            panel.pictures: gr.update(visible=has_box, value=None),
        }

    page.listen("run", offer, {panel.compare_with}, [panel.compare_with, panel.pictures])
    page.enable_with_adapter(panel.generate, panel.use_rows)
    return panel
