"""The Compare tab: base and adapter answer the same prompts, and are scored on held-out rows."""

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
from peft_space.evaluation.results import Evaluation, evaluation_from_json, read_scores
from peft_space.runs.run import Run
from peft_space.runs.store import list_runs, open_run
from peft_space.web.components import Operation, SlicedOperation, show_errors
from peft_space.web.context import HIDDEN, Inputs, PageContext, Updates, Values, has_adapter
from peft_space.web.panels import blind_vote as blind_vote_panel
from peft_space.web.render import compare as render_compare
from peft_space.web.render import overview as render_overview

MAX_GROWING = 20
"""With more prompts, only their number is shown while the answers are generated."""
MAX_EXTRA_ADAPTERS = 4
"""More columns could not be read."""
SECONDS_BETWEEN_UPDATES = 0.2
"""Between two updates of growing answers."""


class CompareTab:
    """The tab's components, and the handlers that the demo uses too."""

    def __init__(self, page: PageContext):
        self.page = page
        gr.Markdown("Same prompt and settings, before and after fine-tuning.")
        self._place_prompts()
        self._place_sampling()
        self.progress = gr.Markdown(elem_id="compare-progress")
        self.answers = gr.HTML(elem_id="answers")
        _build_chat(page, self.sampling, self.system)
        blind_vote_panel.build(page, self.sampling, self.system, self.prompts)
        self._place_scores()
        self.expected = gr.State({})
        """Prompt -> the answer that its held-out row expects."""
        self.num_used = gr.State(0)
        """Held-out rows that were used as prompts so far."""
        self.comparison = Operation(page, self.progress)
        self.evaluation = SlicedOperation(
            page,
            "evaluate",
            self.scoring,
            lambda _, result: self.show_scores(evaluation_from_json(result)),
        )
        question = {self.prompts, self.system, self.expected, self.compare_with}
        self.answer_inputs = page.selection | question | set(self.sampling.values())

    def _place_prompts(self) -> None:
        self.prompts = gr.Textbox(
            label="Prompts",
            info="Separate several prompts with a line of ---.",
            lines=3,
            max_lines=20,
            elem_id="prompts",
        )
        with gr.Row():
            self.generate = gr.Button(
                "Generate", variant="primary", interactive=False, elem_id="generate"
            )
            self.use_rows = gr.Button("Use test examples", interactive=False, elem_id="use-rows")
            self.how_many = gr.Number(
                3, precision=0, minimum=1, maximum=1000, label="Number", elem_id="how-many"
            )
            self.file = gr.UploadButton("Upload prompts", elem_id="prompts-file")
            self.stop = gr.Button("Stop", elem_id="stop-answers")
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

    def _place_scores(self) -> None:
        self.evaluate_button = gr.Button("Run evaluation", interactive=False, elem_id="evaluate")
        self.scoring = gr.Markdown(elem_id="score-progress")
        with gr.Row(visible=False) as self.scored:
            self.scores = gr.Dataframe(
                interactive=False,
                label="Scores on the held-out rows",
                scale=3,
                wrap=True,
                elem_id="scores",
            )
            self.bars = gr.BarPlot(
                x="column",
                y="score",
                x_title=" ",
                y_title=" ",
                sort="-x",
                height=220,
                scale=1,
                elem_id="score-bars",
            )
        self.more = gr.HTML(elem_id="more-scores")

    # Each handler gets only the outputs that it fills: Gradio loses what a generator has shown
    # in an output that a later yield leaves out.
    @property
    def row_outputs(self) -> list[gr.components.Component]:
        """Outputs of `use_test_rows`."""
        return [self.prompts, self.system, self.expected, self.num_used]

    @property
    def answer_outputs(self) -> list[gr.components.Component]:
        """Outputs of `answer`."""
        return [self.progress, self.answers]

    @property
    def score_outputs(self) -> list[Any]:
        """Outputs of `evaluate`."""
        table = [self.scored, self.scores, self.bars, self.more]
        return [self.scoring, *table, self.evaluation.next_slice]

    def use_test_rows(self, values: Values) -> Updates:
        """Use the next held-out rows as prompts, and keep their answers to compare with."""
        run, offset = self.page.selected_run(values), values[self.num_used]
        rows = held_out_prompts(run, int(values[self.how_many]), offset)
        systems = {row["system"] for row in rows}
        return {
            self.prompts: PROMPT_SEPARATOR.join(row["prompt"] for row in rows),
            self.system: systems.pop() if len(systems) == 1 else "",
            self.expected: {row["prompt"].strip(): row["expected"] for row in rows},
            self.num_used: offset + len(rows),
        }

    def answer(self, values: Values) -> Iterator[Updates]:
        """Generate the answers of base and adapter, and show them as they grow."""
        prompts = split_prompts(values[self.prompts] or "")
        if not prompts:
            raise UserError("web.no_prompt", "Type a prompt first, or use test examples.")
        run, expected = self.page.trained_run(values), values[self.expected]
        rows = [
            {"prompt": prompt, "base": "", "adapter": "", "expected": expected.get(prompt, "")}
            for prompt in prompts
        ]
        grows = len(rows) <= MAX_GROWING
        empty = render_compare.answers_html(rows) if grows else ""
        yield self.comparison.begin() | {self.answers: empty}

        def show(result: dict[str, Any]) -> Updates:
            done = [row | answer for row, answer in zip(rows, result["answers"], strict=True)]
            html = render_compare.answers_html(done, marked=True)
            html += render_compare.summary_html(result, done)
            return {self.progress: "", self.answers: html}

        arguments = {
            "run": str(run.directory),
            "prompts": prompts,
            "system": values[self.system] or "",
            "sampling": {name: values[field] for name, field in self.sampling.items()},
            "compare_with": self.extra_adapters(values),
        }
        show_growing = self._growing(rows, grows)
        yield from self.comparison.stream("compare", show, show_growing, **arguments)

    def _growing(
        self, rows: list[dict[str, str]], grows: bool
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

    def evaluate(self, values: Values) -> Iterator[Updates]:
        """Score base and adapter on the held-out rows."""
        run = self.page.trained_run(values)
        yield self.evaluation.begin()
        yield from self.evaluation.work(run)

    def show_scores(self, scores: Evaluation) -> Updates:
        """Show scores as a table, bars and details."""
        title, bars = render_compare.score_bars(scores)
        limits = [0, 100] if title.endswith("%") else None
        intervals = ", with 95 % confidence intervals" if scores.intervals else ""
        return {
            self.scoring: f"{scores.num_rows} test rows{intervals}:",
            self.scores: render_compare.scores_table(scores),
            self.bars: gr.update(value=bars, title=title, y_lim=limits),
            self.scored: gr.update(visible=True),
            self.more: render_compare.more_scores_html(scores),
        }

    def reset(self, values: Values) -> Updates:
        """Clear what belongs to another run, and show the selected run's stored scores."""
        cleared: Updates = dict.fromkeys((self.progress, self.answers, self.scoring, self.more), "")
        cleared |= {
            self.scored: gr.update(visible=False),
            self.evaluation.next_slice: [],
            self.expected: {},
        }
        stored = read_scores(self.page.selected_run(values)) if values[self.page.run] else None
        return cleared | (self.show_scores(stored) if stored else {})


def build(page: PageContext) -> CompareTab:
    """Place and wire the tab."""
    tab = CompareTab(page)
    row_inputs: Inputs = {*page.selection, tab.num_used, tab.how_many}
    tab.use_rows.click(show_errors(tab.use_test_rows), row_inputs, tab.row_outputs, **HIDDEN)

    @show_errors
    def read_file(path: str) -> list[Any]:
        return [PROMPT_SEPARATOR.join(read_prompts(path)), {}]

    tab.file.upload(read_file, tab.file, [tab.prompts, tab.expected], **HIDDEN)
    answer, evaluate = show_errors(tab.answer, tab.progress), show_errors(tab.evaluate, tab.scoring)
    events = [
        tab.generate.click(answer, tab.answer_inputs, tab.answer_outputs, **HIDDEN),
        tab.evaluate_button.click(evaluate, page.selection, tab.score_outputs, **HIDDEN),
        tab.evaluation.wire_slices(tab.score_outputs),
    ]
    stopped = {
        tab.progress: "Stopped. Run again to continue.",
        tab.scoring: "",
        tab.evaluation.next_slice: [],
    }
    tab.stop.click(lambda: stopped, None, list(stopped), cancels=events, **HIDDEN)
    shown = [*tab.answer_outputs, tab.expected, *tab.score_outputs]
    page.run_id.change(show_errors(tab.reset), page.selection, shown, **HIDDEN)
    offer, changes = (
        show_errors(tab.offer_extra_adapters),
        [page.run_id.change, page.run_state.change],
    )
    offer_inputs: Inputs = {*page.selection, page.run_state, tab.compare_with}
    gr.on(changes, offer, offer_inputs, tab.compare_with, **HIDDEN)
    page.enable_with_adapter(tab.generate, tab.evaluate_button, tab.use_rows, tab.stop)
    return tab


def _build_chat(
    page: PageContext, sampling: dict[str, gr.components.Component], system: gr.Textbox
) -> None:
    """Place and wire the panel. Sampling and system prompt are those of the tab."""
    with gr.Accordion("Chat", open=False, elem_id="chat"):
        answers = gr.HTML(elem_id="chat-answers")
        message = gr.Textbox(
            label="Message both models", lines=1, max_lines=8, elem_id="chat-message"
        )
        with gr.Row():
            send = gr.Button("Send", interactive=False, elem_id="chat-send")
            stop = gr.Button("Stop", elem_id="chat-stop")
            new = gr.Button("New chat", elem_id="chat-new")
        progress = gr.Markdown(elem_id="chat-progress")
    turns = gr.State([])
    operation = Operation(page, progress)

    def answer(values: Values) -> Iterator[Updates]:
        text = (values[message] or "").strip()
        if not text:
            raise UserError("web.no_message", "Type a message first.")
        run, history = page.trained_run(values), values[turns]
        turn = {"prompt": text, "base": "", "adapter": ""}
        arguments = {
            "prompts": [text],
            "system": values[system] or "",
            "sampling": {name: values[field] for name, field in sampling.items()},
            "history": history,
        }

        def show_growing(report: dict[str, Any]) -> Updates | None:
            if "column" not in report:
                return None
            turn[report["column"]] = report["text"]
            html = render_compare.answers_html([*history, turn])
            return {progress: writing(report["column"]), answers: html}

        def show(result: dict[str, Any]) -> Updates:
            answered = result["answers"][0]
            new_turn = {key: answered[key] for key in ("prompt", "rendered", "base", "adapter")}
            html = render_compare.answers_html([*history, new_turn])
            html += render_compare.fairness_html(result["fairness"]["words"])
            return {progress: "", answers: html, turns: [*history, new_turn], message: ""}

        yield operation.begin()
        directory = str(run.directory)
        yield from operation.stream("compare", show, show_growing, run=directory, **arguments)

    inputs: Inputs = {*page.selection, message, turns, system, *sampling.values()}
    outputs = [progress, answers, turns, message]
    events = [send.click, message.submit]
    answering = gr.on(events, show_errors(answer, progress), inputs, outputs, **HIDDEN)
    stop.click(lambda: "Stopped.", None, progress, cancels=answering, **HIDDEN)
    restarts = [new.click, page.run_id.change]
    gr.on(restarts, lambda: ["", "", [], ""], None, outputs, cancels=answering, **HIDDEN)
    page.enable_with_adapter(send)


def writing(side: str) -> str:
    """Say which model is writing."""
    names = {"base": "Base model", "adapter": "Adapter"}
    return f"{names.get(side, side)} is writing…"
