"""The Compare tab: base and adapter answer the same prompts side by side, and the held-out rows give both a score."""

import re
from collections.abc import Iterator
from typing import Any

import gradio as gr

from peft_space.data.check import data_of
from peft_space.data.rows import Conversation
from peft_space.errors import UserError
from peft_space.scores import read_scores
from peft_space.ui import view_compare
from peft_space.ui.page import PRIVATE, Page, tells_errors

_MOST_TAKEN = 500
_BETWEEN_PROMPTS = "\n---\n"


class CompareTab:
    """The tab's components, and the handlers that other tabs use too."""

    def __init__(self, page: Page):
        self.page = page
        gr.Markdown("Both columns come from one base in memory, with the adapter off and on: same prompt, same sampling, same seed.")
        self.prompts = gr.Textbox(
            label="Prompts", info="Several at once: put a line of three hyphens between them.", lines=3, max_lines=20, elem_id="prompts"
        )
        with gr.Row():
            self.ask = gr.Button("Let both answer", variant="primary", interactive=False, elem_id="ask")
            self.take = gr.Button("Take held-out rows", interactive=False, elem_id="take-rows")
            self.how_many = gr.Number(3, precision=0, minimum=1, maximum=50, label="How many rows", elem_id="how-many")
            self.stop = gr.Button("Stop", elem_id="stop-answers")
        with gr.Accordion("Sampling", open=False), gr.Row():
            self.system = gr.Textbox(label="System prompt", info="Said before each prompt. Empty: none.")
            self.max_new_tokens = gr.Number(128, precision=0, minimum=1, maximum=4096, label="Tokens at most")
            self.temperature = gr.Number(0.0, minimum=0.0, maximum=5.0, label="Temperature", info="0 takes the likeliest token always.")
            self.top_p = gr.Number(1.0, minimum=0.01, maximum=1.0, label="Top p")
            self.seed = gr.Number(0, precision=0, minimum=0, label="Seed")
        self.progress = gr.Markdown(elem_id="compare-progress")
        self.answers = gr.HTML(elem_id="answers")
        self.score = gr.Button("Score both on the held-out rows", interactive=False, elem_id="score")
        self.scoring = gr.Markdown(elem_id="score-progress")
        with gr.Row(visible=False) as self.scored:
            self.scores = gr.Dataframe(interactive=False, label="Scores on the held-out rows", elem_id="scores")
            self.bars = gr.BarPlot(x="column", y="score", x_title=" ", y_title=" ", sort="-x", height=220, elem_id="score-bars")
        self.expected = gr.State({})
        self.taken = gr.State(0)
        self.asked = {
            page.visitor, page.run, self.prompts, self.system, self.max_new_tokens, self.temperature, self.top_p, self.seed, self.expected,
        }  # fmt: skip

    def take_rows(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """The next held-out rows as prompts, and their own answers to compare with."""
        held_out = data_of(self.page.chosen_run(values)).held_out[:_MOST_TAKEN]
        rows = [
            row for row in held_out if isinstance(row, Conversation) and sum(message["role"] == "user" for message in row.messages) == 1
        ]
        if not rows:
            raise UserError("This run has no held-out rows of one question and one answer. Type a prompt.")
        count = min(int(values[self.how_many]), len(rows))
        chosen = [rows[(values[self.taken] + offset) % len(rows)] for offset in range(count)]
        systems = {row.messages[0]["content"] for row in chosen if row.messages[0]["role"] == "system"}
        return {
            self.prompts: _BETWEEN_PROMPTS.join(row.messages[-2]["content"] for row in chosen),
            self.system: systems.pop() if len(systems) == 1 else "",
            self.expected: {row.messages[-2]["content"].strip(): row.messages[-1]["content"] for row in chosen},
            self.taken: values[self.taken] + count,
        }

    def answer(self, values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        """Both columns' answers, as they grow."""
        prompts = [prompt.strip() for prompt in re.split(r"(?m)^\s*---\s*$", values[self.prompts] or "") if prompt.strip()]
        if not prompts:
            raise UserError("There is no prompt. Type one, or take held-out rows.")
        run = self.page.chosen_run(values)
        _ = run.adapter  # tells at once where there is none
        rows = [{"prompt": prompt, "base": "", "adapter": "", "expected": values[self.expected].get(prompt, "")} for prompt in prompts]
        fields = {"max_new_tokens": self.max_new_tokens, "temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        sampling = {name: values[field] for name, field in fields.items()}
        yield {self.progress: "Starting…", self.answers: view_compare.answers_html(rows)}
        for message in self.page.workers.stream(
            "compare", run=str(run.directory), prompts=prompts, system=values[self.system] or "", sampling=sampling
        ):
            report = message.get("report")
            if report == {}:
                yield {self.progress: gr.skip()}
            elif report and "what" in report:
                yield {self.progress: f"{report['what']}…"}
            elif report:
                rows[report["prompt"]][report["column"]] = report["text"]
                yield {self.progress: f"The {report['column']} answers…", self.answers: view_compare.answers_html(rows)}
            else:
                rows = [row | given for row, given in zip(rows, message["result"]["answers"], strict=True)]
                yield {self.progress: "", self.answers: view_compare.answers_html(rows)}

    def evaluate(self, values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        """Both columns' scores, with progress."""
        run = self.page.chosen_run(values)
        _ = run.adapter
        yield {self.scoring: "Starting…"}
        for message in self.page.workers.stream("evaluate", run=str(run.directory)):
            if "result" in message:
                yield self.show_scores(message["result"])
            elif report := message["report"]:
                yield {self.scoring: f"{report['what']}… ({report['share']:.0%})"}
            else:
                yield {self.scoring: gr.skip()}

    def show_scores(self, result: dict[str, Any]) -> dict[Any, Any]:
        """The table and the bars."""
        title, bars = view_compare.score_bars(result)
        return {
            self.scoring: f"On {result['num_rows']} held-out rows:",
            self.scores: view_compare.scores_table(result),
            self.bars: gr.update(value=bars, title=title, y_lim=[0, 100] if title.endswith("%") else None),
            self.scored: gr.update(visible=True),
        }

    def forget(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """What belongs to another run is cleared; scores that this run has already are shown."""
        cleared: dict[Any, Any] = {
            self.progress: "",
            self.answers: "",
            self.scoring: "",
            self.scored: gr.update(visible=False),
            self.expected: {},
        }
        known = read_scores(self.page.chosen_run(values)) if values[self.page.run] else None
        return cleared | (
            self.show_scores({"num_rows": known.num_rows, "base": vars(known.base), "adapter": vars(known.adapter)}) if known else {}
        )


def build(page: Page) -> CompareTab:
    """Place and wire the tab."""
    tab = CompareTab(page)
    chosen = {page.visitor, page.run}
    hidden: dict[str, Any] = {"show_progress": "hidden", **PRIVATE}
    tab.take.click(
        tells_errors(tab.take_rows), {*chosen, tab.taken, tab.how_many}, [tab.prompts, tab.system, tab.expected, tab.taken], **hidden
    )
    # each handler is given no more outputs than it fills: Gradio loses what a generator has shown where a later yield leaves it out
    scored = [tab.scoring, tab.scored, tab.scores, tab.bars]
    answering = tab.ask.click(tells_errors(tab.answer, where=tab.progress), tab.asked, [tab.progress, tab.answers], **hidden)
    scoring = tab.score.click(tells_errors(tab.evaluate, where=tab.scoring), chosen, scored, **hidden)
    stopped = {tab.progress: "Stopped.", tab.scoring: ""}
    tab.stop.click(lambda: stopped, None, [tab.progress, tab.scoring], cancels=[answering, scoring], **hidden)
    page.run.change(tells_errors(tab.forget), chosen, [tab.progress, tab.answers, tab.expected, *scored], **hidden)
    buttons = [tab.ask, tab.score, tab.take, tab.stop]
    page.state.change(lambda state: [gr.update(interactive=bool(state and state[1]))] * 4, page.state, buttons, **hidden)
    return tab
