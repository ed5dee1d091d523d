"""The Compare tab: base and adapter answer the same prompts side by side, and the held-out rows give both a score."""

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from peft_space.errors import UserError
from peft_space.evaluation import extra_adapters
from peft_space.evaluation.prompts import BETWEEN, held_out_prompts, read_prompts, split_prompts
from peft_space.evaluation.results import Evaluation, evaluation_from_json, read_scores
from peft_space.runs.run import Run
from peft_space.runs.store import list_runs, open_run
from peft_space.web.context import PRIVATE, PageContext, show_errors
from peft_space.web.panels import blind_vote as blind_vote_panel
from peft_space.web.panels import chat as chat_panel
from peft_space.web.render import compare as render_compare
from peft_space.web.render import overview as render_overview
from peft_space.web.zerogpu_continuation import SliceContinuation

_MOST_GROWING = 20
"""Prompts whose answers are shown while they grow; of more only how many there are."""
_MOST_BESIDE = 4
"""Columns beside the two; more would not be read."""
_SECONDS_BETWEEN = 0.2
"""Between two looks at growing answers."""


class CompareTab:
    """The tab's components, and the handlers that other tabs use too."""

    def __init__(self, page: PageContext):
        self.page = page
        gr.Markdown(
            "Both columns come from one base in memory, with the adapter off and on: same prompt, same sampling, same seed."
        )
        self.prompts = gr.Textbox(
            label="Prompts",
            info="Several at once: put a line of three hyphens between them.",
            lines=3,
            max_lines=20,
            elem_id="prompts",
        )
        with gr.Row():
            self.ask = gr.Button(
                "Let both answer", variant="primary", interactive=False, elem_id="ask"
            )
            self.take = gr.Button("Take held-out rows", interactive=False, elem_id="take-rows")
            self.how_many = gr.Number(
                3, precision=0, minimum=1, maximum=1000, label="How many rows", elem_id="how-many"
            )
            self.file = gr.UploadButton("Prompts from a file", elem_id="prompts-file")
            self.stop = gr.Button("Stop", elem_id="stop-answers")
        self.also = gr.Dropdown(
            [], multiselect=True, max_choices=_MOST_BESIDE, label="Who else answers", visible=False, elem_id="also",
            info="Checkpoints of this run, and adapters of your other runs on the same base. They answer when both have.",
        )  # fmt: skip
        with gr.Accordion("Sampling", open=False), gr.Row():
            self.system = gr.Textbox(
                label="System prompt", info="Said before each prompt. Empty: none."
            )
            self.max_new_tokens = gr.Number(
                128, precision=0, minimum=1, maximum=4096, label="Tokens at most"
            )
            self.temperature = gr.Number(
                0.0,
                minimum=0.0,
                maximum=5.0,
                label="Temperature",
                info="0 takes the likeliest token always.",
            )
            self.top_p = gr.Number(1.0, minimum=0.01, maximum=1.0, label="Top p")
            self.seed = gr.Number(0, precision=0, minimum=0, label="Seed")
        self.progress = gr.Markdown(elem_id="compare-progress")
        self.answers = gr.HTML(elem_id="answers")
        self.sampling = {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
        }
        chat_panel.build(page, self.sampling, self.system)
        blind_vote_panel.build(page, self.sampling, self.system, self.prompts)
        self.score = gr.Button(
            "Score both on the held-out rows", interactive=False, elem_id="score"
        )
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
        self.scoring_on = SliceContinuation(
            page,
            "evaluate",
            self.scoring,
            lambda _, found: self.show_scores(evaluation_from_json(found)),
        )
        self.expected = gr.State({})
        self.taken = gr.State(0)
        self.asked = {
            page.visitor, page.run, self.prompts, self.system, self.max_new_tokens, self.temperature, self.top_p, self.seed, self.expected,
            self.also,
        }  # fmt: skip

    # each handler is given no more outputs than it fills: Gradio loses what a generator has shown where a later yield leaves it out
    @property
    def taken_outputs(self) -> list[Any]:
        """What `take_rows` fills."""
        return [self.prompts, self.system, self.expected, self.taken]

    @property
    def answered_outputs(self) -> list[Any]:
        """What `answer` fills."""
        return [self.progress, self.answers]

    @property
    def scored_outputs(self) -> list[Any]:
        """What `evaluate` fills."""
        return [self.scoring, self.scored, self.scores, self.bars, self.more, self.scoring_on.next]

    def take_rows(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """The next held-out rows as prompts, and their own answers to compare with."""
        rows = held_out_prompts(
            self.page.chosen_run(values), int(values[self.how_many]), values[self.taken]
        )
        systems = {row["system"] for row in rows}
        return {
            self.prompts: BETWEEN.join(row["prompt"] for row in rows),
            self.system: systems.pop() if len(systems) == 1 else "",
            self.expected: {row["prompt"].strip(): row["expected"] for row in rows},
            self.taken: values[self.taken] + len(rows),
        }

    def answer(self, values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        """Both columns' answers, as they grow."""
        prompts = split_prompts(values[self.prompts] or "")
        if not prompts:
            raise UserError("todo", "There is no prompt. Type one, or take held-out rows.")
        run = self.page.chosen_run(values)
        _ = run.adapter  # tells at once where there is none
        rows = [
            {
                "prompt": prompt,
                "base": "",
                "adapter": "",
                "expected": values[self.expected].get(prompt, ""),
            }
            for prompt in prompts
        ]
        sampling = {name: values[field] for name, field in self.sampling.items()}
        growing, looked = len(rows) <= _MOST_GROWING, 0.0
        yield {
            self.progress: "Starting…",
            self.answers: render_compare.answers_html(rows) if growing else "",
        }
        for message in self.page.workers.stream(
            "compare",
            run=str(run.directory),
            prompts=prompts,
            system=values[self.system] or "",
            sampling=sampling,
            compare_with=self.beside(values),
        ):
            report = message.get("report")
            if report == {}:
                yield {self.progress: gr.skip()}
            elif report and "what" in report:
                yield {self.progress: f"{report['what']}…"}
            elif report:
                rows[report["prompt"]][report["column"]] = report["text"]
                if time.monotonic() - looked > _SECONDS_BETWEEN:
                    looked = time.monotonic()
                    told = f"The {report['column']} answers" + (
                        "…" if growing else f" prompt {report['prompt'] + 1} of {len(rows)}…"
                    )
                    yield {
                        self.progress: told,
                        self.answers: render_compare.answers_html(rows) if growing else gr.skip(),
                    }
            else:
                found = message["result"]
                rows = [row | given for row, given in zip(rows, found["answers"], strict=True)]
                shown = render_compare.answers_html(
                    rows, marked=True
                ) + render_compare.summary_html(found, rows)
                yield {self.progress: "", self.answers: shown}

    def beside(self, values: dict[Any, Any]) -> list[str]:
        """What is to answer beside the two: checkpoints by name, the visitor's other runs by directory."""
        owners = self.page.owners(values)
        return [
            name if name.startswith("checkpoint-") else str(open_run(owners, name).directory)
            for name in values[self.also] or []
        ]

    def offer(self, values: dict[Any, Any]) -> Any:
        """What can answer beside the chosen run's adapter."""
        if not values[self.page.run] or not (values[self.page.state] or [None, False])[1]:
            return gr.update(choices=[], value=[], visible=False)
        run = self.page.chosen_run(values)
        found = extra_adapters.comparable_adapters(run, list_runs(*self.page.owners(values)))
        choices = [
            (name.replace("checkpoint-", "Step "), name) for name in found if isinstance(name, str)
        ]
        choices += render_overview.run_choices([other for other in found if isinstance(other, Run)])
        kept = [name for name in values[self.also] or [] if name in [value for _, value in choices]]
        return gr.update(choices=choices, value=kept, visible=bool(choices))

    def evaluate(self, values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        """Both columns' scores, with progress."""
        run = self.page.chosen_run(values)
        _ = run.adapter
        yield {self.scoring: "Starting…"}
        yield from self.scoring_on.work(run)

    def show_scores(self, scores: Evaluation) -> dict[Any, Any]:
        """The table, the bars and what stands beside them."""
        title, bars = render_compare.score_bars(scores)
        sure = (
            ", each with the interval that 95 % of samples of them give" if scores.intervals else ""
        )
        return {
            self.scoring: f"On {scores.num_rows} held-out rows{sure}:",
            self.scores: render_compare.scores_table(scores),
            self.bars: gr.update(
                value=bars, title=title, y_lim=[0, 100] if title.endswith("%") else None
            ),
            self.scored: gr.update(visible=True),
            self.more: render_compare.more_scores_html(scores),
        }

    def forget(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """What belongs to another run is cleared; scores that this run has already are shown."""
        cleared: dict[Any, Any] = {
            self.progress: "",
            self.answers: "",
            self.scoring: "",
            self.scored: gr.update(visible=False),
            self.more: "",
            self.scoring_on.next: [],
            self.expected: {},
        }
        known = read_scores(self.page.chosen_run(values)) if values[self.page.run] else None
        return cleared | (self.show_scores(known) if known else {})


def build(page: PageContext) -> CompareTab:
    """Place and wire the tab."""
    tab = CompareTab(page)
    chosen = {page.visitor, page.run}
    hidden: dict[str, Any] = {"show_progress": "hidden", **PRIVATE}
    tab.take.click(
        show_errors(tab.take_rows), {*chosen, tab.taken, tab.how_many}, tab.taken_outputs, **hidden
    )
    tab.file.upload(
        show_errors(lambda path: [BETWEEN.join(read_prompts(path)), {}]),
        tab.file,
        [tab.prompts, tab.expected],
        **hidden,
    )
    answering = tab.ask.click(
        show_errors(tab.answer, where=tab.progress), tab.asked, tab.answered_outputs, **hidden
    )
    scoring = tab.score.click(
        show_errors(tab.evaluate, where=tab.scoring), chosen, tab.scored_outputs, **hidden
    )
    going_on = tab.scoring_on.build(tab.scored_outputs)
    stopped = {
        tab.progress: "Stopped. A scoring goes on where it was when it is asked for again.",
        tab.scoring: "",
        tab.scoring_on.next: [],
    }
    tab.stop.click(
        lambda: stopped, None, list(stopped), cancels=[answering, scoring, going_on], **hidden
    )
    page.shown.change(
        show_errors(tab.forget),
        chosen,
        [*tab.answered_outputs, tab.expected, *tab.scored_outputs],
        **hidden,
    )
    offering = {*chosen, page.state, tab.also}
    gr.on(
        [page.shown.change, page.state.change], show_errors(tab.offer), offering, tab.also, **hidden
    )
    buttons = [tab.ask, tab.score, tab.take, tab.stop]
    page.state.change(
        lambda state: [gr.update(interactive=bool(state and state[1]))] * 4,
        page.state,
        buttons,
        **hidden,
    )
    return tab
