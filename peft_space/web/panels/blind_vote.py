"""The blind vote on the Compare tab: which of two answers is better, without knowing whose they are."""

import json
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from peft_space.evaluation import blind_vote
from peft_space.evaluation.prompts import split_prompts
from peft_space.web.context import PRIVATE, PageContext, show_errors
from peft_space.web.render import compare as render_compare
from peft_space.web.render import overview as render_overview
from peft_space.web.zerogpu_continuation import SliceContinuation

_BUTTONS = (("left", "Left is better"), ("same", "They are as good"), ("right", "Right is better"))


def build(
    page: PageContext,
    settings: dict[str, gr.components.Component],
    system: gr.Textbox,
    prompts: gr.Textbox,
) -> None:
    """Place and wire it; sampling and prompts are those of the tab."""
    with gr.Accordion("Blind vote", open=False):
        gr.Markdown(
            "You see two answers and choose the better one, without knowing which is the adapter's. Order and sides are random."
        )
        with gr.Row():
            source = gr.Radio(
                ["held-out rows", "the prompts above"],
                value="held-out rows",
                label="Vote on",
                elem_id="vote-source",
            )
            count = gr.Number(
                10, precision=0, minimum=1, maximum=200, label="How many rows", elem_id="vote-count"
            )
        with gr.Row():
            begin = gr.Button("Begin a vote", interactive=False, elem_id="vote-begin")
            tell = gr.Button("How does it stand?", interactive=False, elem_id="vote-result")
            export = gr.Button("Download the votes", interactive=False, elem_id="vote-export")
            stop = gr.Button("Stop", elem_id="vote-stop")
        progress = gr.Markdown(elem_id="vote-progress")
        with gr.Column(visible=False) as booth:
            pair = gr.HTML(elem_id="vote-pair")
            with gr.Row():
                buttons = {
                    choice: gr.Button(title, elem_id=f"vote-{choice}") for choice, title in _BUTTONS
                }
        files = gr.File(
            label="Votes",
            visible=False,
            interactive=False,
            file_count="multiple",
            elem_id="vote-files",
        )
    number = gr.State("")

    def shown(run: Any) -> dict[Any, Any]:
        """The next pair, or where all are voted on how it came out."""
        left = blind_vote.open_pairs(run)
        if not left:
            return {
                progress: render_overview.escape(blind_vote.result(run)["words"]),
                booth: gr.update(visible=False),
                number: "",
            }
        return {
            progress: f"{len(left)} to go.",
            pair: render_compare.pair_html(left[0]),
            booth: gr.update(visible=True),
            number: left[0]["pair"],
        }

    answering = SliceContinuation(page, "vote_pairs", progress, lambda run, _: shown(run))

    def put_up(values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        run = page.chosen_run(values)
        _ = run.adapter
        own = (
            split_prompts(values[prompts] or "") if values[source] == "the prompts above" else None
        )
        sampling = {name: values[field] for name, field in settings.items()}
        asked = {
            "prompts": own,
            "count": int(values[count]),
            "system": values[system] or "",
            "sampling": sampling,
        }
        yield {progress: "Starting…", booth: gr.update(visible=False)}
        yield from answering.work(run, seed=secrets.randbelow(2**31), **asked)

    def cast(choice: Any) -> Any:
        def vote(values: dict[Any, Any]) -> dict[Any, Any]:
            run = page.chosen_run(values)
            blind_vote.vote(run, values[number], choice)
            return shown(run)

        return vote

    def write(values: dict[Any, Any]) -> Any:
        found = blind_vote.result(page.chosen_run(values))
        folder = Path(tempfile.mkdtemp(prefix="peft_space-"))
        (folder / "votes.csv").write_text(
            blind_vote.as_csv(found["votes"]), encoding="utf-8", newline=""
        )
        (folder / "votes.json").write_text(
            json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )
        return gr.update(
            value=[str(folder / "votes.csv"), str(folder / "votes.json")], visible=True
        )

    chosen = {page.visitor, page.run}
    hidden: dict[str, Any] = {"show_progress": "hidden", **PRIVATE}
    given = [progress, pair, booth, number]
    begun = [*given, answering.next]
    asked = {*chosen, source, count, prompts, system, *settings.values()}
    beginning = begin.click(show_errors(put_up, where=progress), asked, begun, **hidden)
    stopped = {
        progress: "Stopped. Begun again with the same choices, it goes on where it was.",
        answering.next: [],
    }
    stop.click(
        lambda: stopped, None, list(stopped), cancels=[beginning, answering.build(begun)], **hidden
    )
    for choice, button in buttons.items():
        button.click(show_errors(cast(choice)), {*chosen, number}, given, **hidden)
    tell.click(
        show_errors(
            lambda values: render_overview.escape(
                blind_vote.result(page.chosen_run(values))["words"]
            )
        ),
        chosen,
        progress,
        **hidden,
    )
    export.click(show_errors(write), chosen, files, **hidden)
    page.shown.change(
        lambda: ["", gr.update(visible=False), "", gr.update(value=None, visible=False), []],
        None,
        [progress, booth, number, files, answering.next],
        **hidden,
    )
    page.state.change(
        lambda state: [gr.update(interactive=bool(state and state[1]))] * 3,
        page.state,
        [begin, tell, export],
        **hidden,
    )
