"""The blind vote on the Compare tab: choose the better answer without knowing its author."""

import json
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from peft_space.evaluation import blind_vote
from peft_space.evaluation.prompts import split_prompts
from peft_space.runs.run import Run
from peft_space.web.components import SlicedOperation, show_errors
from peft_space.web.context import HIDDEN, Inputs, PageContext, Updates, Values
from peft_space.web.panels.answers import Answers
from peft_space.web.render import compare as render_compare
from peft_space.web.render import overview as render_overview

_CHOICES = (("left", "Left is better"), ("same", "Tie"), ("right", "Right is better"))
_ROWS, _PROMPTS = "test rows", "your prompts"


class BlindVote:
    """The panel's components and handlers.

    Args:
        page: the shared state.
        answers: the panel whose prompts and sampling it uses.
    """

    def __init__(self, page: PageContext, answers: Answers):
        self.page, self.sampling = page, answers.sampling
        self.system, self.prompts = answers.system, answers.prompts
        gr.Markdown("Pick the better answer without knowing which model wrote it.")
        with gr.Row():
            self.source = gr.Radio(
                [_ROWS, _PROMPTS], value=_ROWS, label="Vote on", elem_id="vote-source"
            )
            self.count = gr.Number(
                10, precision=0, minimum=1, maximum=200, label="Number", elem_id="vote-count"
            )
        with gr.Row():
            small: dict[str, Any] = {"size": "md", "scale": 0, "min_width": 120}
            off: dict[str, Any] = {"interactive": False, **small}
            self.start = gr.Button("Start", variant="primary", elem_id="vote-start", **off)
            self.results = gr.Button("Results", elem_id="vote-results", **off)
            self.export = gr.Button("Download", elem_id="vote-export", **off)
            self.stop = gr.Button(
                "Stop", variant="stop", visible=False, elem_id="vote-stop", **small
            )
        self.progress = gr.Markdown(elem_id="vote-progress")
        with gr.Column(visible=False) as self.booth:
            self.pair = gr.HTML(elem_id="vote-pair")
            with gr.Row():
                self.choices = {
                    choice: gr.Button(title, elem_id=f"vote-{choice}") for choice, title in _CHOICES
                }
        self.files = gr.File(
            label="Votes",
            visible=False,
            interactive=False,
            file_count="multiple",
            elem_id="vote-files",
        )
        self.pair_id = gr.State("")
        self.operation = SlicedOperation(
            page, "vote_pairs", self.progress, lambda run, _: self.show_next(run)
        )

    def show_next(self, run: Run) -> Updates:
        """Show the next pair; after the last one, the result."""
        pairs = blind_vote.open_pairs(run)
        if not pairs:
            result = render_overview.escape(blind_vote.result(run)["words"])
            hidden = dict.fromkeys([self.booth, self.stop], gr.update(visible=False))
            return {self.progress: result, self.pair_id: "", **hidden}
        return {
            self.stop: gr.update(visible=False),
            self.progress: f"{len(pairs)} left.",
            self.pair: render_compare.pair_html(pairs[0]),
            self.booth: gr.update(visible=True),
            self.pair_id: pairs[0]["pair"],
        }

    def create_pairs(self, values: Values) -> Iterator[Updates]:
        """Generate the answers to vote on."""
        run = self.page.trained_run(values)
        typed = values[self.source] == _PROMPTS
        arguments = {
            "prompts": split_prompts(values[self.prompts] or "") if typed else None,
            "count": int(values[self.count]),
            "system": values[self.system] or "",
            "sampling": {name: values[field] for name, field in self.sampling.items()},
            "seed": secrets.randbelow(2**31),
        }
        yield self.operation.begin() | {
            self.booth: gr.update(visible=False),
            self.stop: gr.update(visible=True),
        }
        yield from self.operation.work(run, **arguments)

    def voter(self, choice: Any) -> Callable[[Values], Updates]:
        """Return the handler that votes for `choice`."""

        def vote(values: Values) -> Updates:
            run = self.page.selected_run(values)
            blind_vote.vote(run, values[self.pair_id], choice)
            return self.show_next(run)

        return vote

    def show_result(self, values: Values) -> str:
        """Return the result so far."""
        return render_overview.escape(blind_vote.result(self.page.selected_run(values))["words"])

    def write_files(self, values: Values) -> Any:
        """Write the votes as CSV and JSON."""
        result = blind_vote.result(self.page.selected_run(values))
        as_json = json.dumps(result, ensure_ascii=False, indent=1) + "\n"
        folder = Path(tempfile.mkdtemp(prefix="peft_space-"))
        contents = {"votes.csv": blind_vote.as_csv(result["votes"]), "votes.json": as_json}
        for name, text in contents.items():
            (folder / name).write_text(text, encoding="utf-8", newline="")
        return gr.update(value=[str(folder / name) for name in contents], visible=True)


def build(page: PageContext, answers: Answers) -> None:
    """Place and wire the panel. Sampling and prompts are those of `answers`."""
    panel = BlindVote(page, answers)
    pair = [panel.progress, panel.pair, panel.booth, panel.pair_id, panel.stop]
    slices = [*pair, panel.operation.next_slice]
    inputs: Inputs = {
        *page.selection,
        panel.source,
        panel.count,
        panel.prompts,
        panel.system,
        *panel.sampling.values(),
    }
    create_pairs = show_errors(panel.create_pairs, panel.progress)
    starting = panel.start.click(create_pairs, inputs, slices, **HIDDEN)
    continuing = panel.operation.wire_slices(slices)
    hidden = gr.update(visible=False)
    stopped = {
        panel.stop: hidden,
        panel.progress: "Stopped. Start again to continue.",
        panel.operation.next_slice: [],
    }
    events = [starting, continuing]
    for event in events:
        event.failure(lambda: hidden, None, panel.stop, **HIDDEN)
    panel.stop.click(lambda: stopped, None, list(stopped), cancels=events, **HIDDEN)
    for choice, button in panel.choices.items():
        vote = show_errors(panel.voter(choice))
        button.click(vote, {*page.selection, panel.pair_id}, pair, **HIDDEN)
    show_result, write_files = show_errors(panel.show_result), show_errors(panel.write_files)
    panel.results.click(show_result, page.selection, panel.progress, **HIDDEN)
    panel.export.click(write_files, page.selection, panel.files, **HIDDEN)
    page.enable_with_adapter(panel.start, panel.results, panel.export)
    page.reset_with_run(
        {
            panel.progress: "",
            panel.booth: gr.update(visible=False),
            panel.pair_id: "",
            panel.stop: hidden,
            panel.files: gr.update(value=None, visible=False),
            panel.operation.next_slice: [],
        }
    )
