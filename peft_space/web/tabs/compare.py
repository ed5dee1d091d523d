"""The Compare tab: the verdict first, then the answers next to each other, and ways to try more."""

from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from peft_space.data.pictures import FOLDER, thumbnail
from peft_space.evaluation.results import Evaluation, evaluation_from_json, read_scores
from peft_space.runs.run import Run
from peft_space.web.components import SlicedOperation, show_errors
from peft_space.web.context import HIDDEN, PageContext, Updates, Values, has_adapter
from peft_space.web.panels import answers as answers_panel
from peft_space.web.panels import blind_vote as blind_vote_panel
from peft_space.web.panels import chat as chat_panel
from peft_space.web.render import compare as render_compare
from peft_space.web.render import verdict as render_verdict
from peft_space.web.render.overview import empty_html
from peft_space.web.states import run_state_of, tab_states

_NOT_SCORED = (
    "This run was not evaluated yet. An evaluation answers the test rows with the base model and "
    "the fine-tuned one."
)


class CompareTab:
    """The tab's components, and the handlers that the demo uses too."""

    def __init__(self, page: PageContext):
        self.page = page
        self.blocked = gr.HTML(empty_html("Train an adapter first."), elem_id="compare-blocked")
        with gr.Column(visible=False, elem_id="compare-run") as self.of_run:
            self.verdict = gr.HTML(elem_id="verdict", min_height=205)
            with gr.Row():
                self.evaluate_button = gr.Button(
                    "Run evaluation", variant="primary", size="md", scale=0, min_width=180,
                    interactive=False, elem_id="evaluate",
                )  # fmt: skip
                self.stop = gr.Button(
                    "Stop", variant="stop", size="md", scale=0, min_width=120, visible=False,
                    elem_id="stop-evaluation",
                )  # fmt: skip
                self.scoring = gr.Markdown(elem_id="score-progress")
            with gr.Tabs(elem_id="compare-tabs"):
                with gr.Tab("Test examples"):
                    self.filter = gr.Radio(
                        [], label="Show", visible=False, elem_id="outcome-filter"
                    )
                    self.examples = gr.HTML(elem_id="examples-scored")
                with gr.Tab("Your prompts"):
                    self.answers = answers_panel.build(page)
                with gr.Tab("Chat"):
                    chat_panel.build(page, self.answers)
                with gr.Tab("Blind test"):
                    blind_vote_panel.build(page, self.answers)
                with gr.Tab("All scores"):
                    self.scores = gr.Dataframe(
                        interactive=False,
                        label="Scores on the test rows",
                        wrap=True,
                        visible=False,
                        elem_id="scores",
                    )
                    self.more = gr.HTML(elem_id="more-scores")
        self.evaluation = SlicedOperation(
            page,
            "evaluate",
            self.scoring,
            self._show_evaluated,
        )

    @property
    def shown_outputs(self) -> list[Any]:
        """Outputs of `reset`."""
        shown = [self.verdict, self.filter, self.examples, self.scores, self.more]
        buttons = [self.evaluate_button, self.stop]
        return [self.scoring, *shown, *buttons, self.evaluation.next_slice]

    @property
    def score_outputs(self) -> list[Any]:
        """Outputs of `evaluate`."""
        return [*self.shown_outputs, self.page.run_state]

    def evaluate(self, values: Values) -> Iterator[Updates]:
        """Score base and adapter on the test rows."""
        run = self.page.trained_run(values)
        busy = {
            self.evaluate_button: gr.update(interactive=False),
            self.stop: gr.update(visible=True),
        }
        yield self.evaluation.begin("Evaluating: the base model and yours answer…") | busy
        yield from self.evaluation.work(run)

    def _show_evaluated(self, run: Run, result: dict[str, Any]) -> Updates:
        state = run_state_of(run, run.status())  # else a later check shows the scores again
        return {**self.show_scores(run, evaluation_from_json(result)), self.page.run_state: state}

    def show_scores(self, run: Run, scores: Evaluation) -> Updates:
        """Show the verdict, the answers and all scores of a run."""
        choices = render_verdict.counted_outcomes(scores.samples)
        has_samples = bool(scores.samples)
        return {
            self.scoring: "",
            self.verdict: render_verdict.verdict_html(scores),
            self.filter: gr.update(
                choices=choices,
                value="all",
                visible=has_samples,
                label=render_verdict.filter_title(scores),
            ),
            self.examples: render_compare.answers_html(_samples(run, scores.samples), marked=True)
            if has_samples
            else "<p>This task has no answers to show here. See All scores.</p>",
            self.scores: gr.update(value=render_compare.scores_table(scores), visible=True),
            self.more: render_compare.more_scores_html(scores),
            **self.idle("Evaluate again", "secondary"),
        }

    def idle(self, label: str, variant: Any) -> Updates:
        """The buttons while nothing is evaluated."""
        button = gr.update(value=label, variant=variant, interactive=True)
        return {self.evaluate_button: button, self.stop: gr.update(visible=False)}

    def reset(self, values: Values) -> Updates:
        """Clear what belongs to another run, and show the selected run's stored scores."""
        is_trained = bool(values[self.page.run]) and has_adapter(values[self.page.run_state])
        stored = read_scores(self.page.selected_run(values)) if is_trained else None
        if stored:
            run = self.page.selected_run(values)
            return self.show_scores(run, stored) | {self.evaluation.next_slice: []}
        cleared: Updates = dict.fromkeys((self.scoring, self.examples, self.more), "")
        button = gr.update(value="Run evaluation", variant="primary", interactive=is_trained)
        return cleared | {
            self.verdict: empty_html(_NOT_SCORED),
            self.filter: gr.update(visible=False),
            self.scores: gr.update(visible=False),
            self.evaluate_button: button,
            self.stop: gr.update(visible=False),
            self.evaluation.next_slice: [],
        }

    def filter_examples(self, values: Values) -> str:
        """Show the answers that got better, worse, or neither."""
        run = self.page.selected_run(values)
        stored = read_scores(run)
        rows = render_verdict.filtered(stored.samples if stored else [], values[self.filter])
        shown = render_compare.answers_html(_samples(run, rows), marked=True)
        return shown or "<p>No such answers.</p>"


def _samples(run: Run, samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers with small copies of their pictures in place of the names."""
    return [
        sample | {"pictures": [thumbnail(run.path("data", FOLDER, name)) for name in names]}
        if (names := sample.get("pictures"))
        else sample
        for sample in samples
    ]


def build(page: PageContext) -> CompareTab:
    """Place and wire the tab."""
    tab = CompareTab(page)
    evaluate = show_errors(tab.evaluate, tab.scoring)
    events = [
        tab.evaluate_button.click(evaluate, page.selection, tab.score_outputs, **HIDDEN),
        tab.evaluation.wire_slices(tab.score_outputs),
    ]
    ready = tab.idle("Run evaluation", "primary")
    for event in events:
        event.failure(lambda: ready, None, list(ready), **HIDDEN)
    stopped: Updates = {
        tab.scoring: "Stopped. Run again to continue.",
        tab.evaluation.next_slice: [],
        **ready,
    }
    tab.stop.click(lambda: stopped, None, list(stopped), cancels=events, **HIDDEN)
    page.listen("run", tab.reset, set(), tab.shown_outputs)
    filter_examples = show_errors(tab.filter_examples)
    tab.filter.input(filter_examples, {*page.selection, tab.filter}, tab.examples, **HIDDEN)
    show_blocked(page, "Compare", tab.blocked, tab.of_run)
    return tab


def show_blocked(page: PageContext, title: str, blocked: gr.HTML, content: gr.Column) -> None:
    """Show why a tab has nothing yet, or its content."""

    def show(values: Values) -> Updates:
        states = [page.data_state, page.recipe_state, page.run, page.run_state, page.run_progress]
        state = tab_states(*(values[one] for one in states))[title]
        is_blocked = state.kind == "blocked"
        return {
            blocked: gr.update(value=empty_html(state.reason), visible=is_blocked),
            content: gr.update(visible=not is_blocked),
        }

    inputs = {page.data_state, page.recipe_state, page.run_progress}
    page.listen("run", show, inputs, [blocked, content])
