"""Ranks, measured: the study before a training, on the Recipe tab, and how much of its rank an adapter uses, on the Publish tab."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from peft_space.errors import UserError
from peft_space.web.context import PRIVATE, PageContext, cpu_notice, reset_on_failure, show_errors
from peft_space.web.render import ranks as render_ranks

_HIDDEN: dict[str, Any] = {"show_progress": "hidden", **PRIVATE}


def build_study(page: PageContext) -> None:
    """Place and wire the rank study."""
    with gr.Accordion("Which rank is enough? Measure it", open=False):
        gr.Markdown(
            "Trains your recipe for at most 60 steps at each of the ranks 2 to 64, and compares the loss on held-out rows. Nothing of it is kept."
        )
        cpu_notice(
            "The study runs", "it trains as slowly as a CPU does, so it is for small base models"
        )
        with gr.Row():
            begin = gr.Button("Study the ranks", elem_id="study")
            cancel = gr.Button("Cancel", visible=False, elem_id="cancel-study")
        told = gr.Markdown(elem_id="study-told")
        plot = gr.LinePlot(
            x="rank",
            y="held-out loss",
            title="Loss on held-out rows",
            height=240,
            visible=False,
            elem_id="study-plot",
        )
    ready = {begin: gr.update(interactive=True), cancel: gr.update(visible=False)}

    def study(values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        if not values[page.data]:
            raise UserError(
                "todo",
                "There is no data yet. Bring a file, or use the sample data, on the Data tab.",
            )
        yield {
            told: "Starting…",
            begin: gr.update(interactive=False),
            cancel: gr.update(visible=True),
        }
        yield from page.working(
            told,
            show,
            "rank_sweep",
            recipe=page.form.recipe(values).model_dump(),
            **page.data_arguments(values),
        )

    def show(found: dict[str, Any]) -> dict[Any, Any]:
        table = gr.update(value=render_ranks.study_table(found), visible=True)
        return {told: render_ranks.study_markdown(found), plot: table, **ready}

    taken = {page.data, page.held_out, page.column_mapping, *page.form.inputs}
    working = begin.click(
        show_errors(study, where=told), taken, [told, plot, begin, cancel], **_HIDDEN
    )
    reset_on_failure(working, ready)
    cancel.click(
        lambda: {told: "Cancelled.", **ready},
        None,
        [told, begin, cancel],
        cancels=working,
        **_HIDDEN,
    )


def build_compress(page: PageContext) -> None:
    """Place and wire the look at an adapter's rank, and the smaller adapter."""
    with gr.Accordion("How much of its rank does the adapter use?", open=False):
        with gr.Row():
            look = gr.Button("Look", interactive=False, elem_id="spectrum")
            rank = gr.Textbox(
                label="Rank of a smaller adapter",
                placeholder="automatic",
                info="Empty: the rank that is used.",
                elem_id="smaller-rank",
            )
            make = gr.Button("Make a smaller adapter", interactive=False, elem_id="compress")
        told = gr.Markdown(elem_id="spectrum-told")
        plot = gr.LinePlot(
            x="number",
            y="size",
            title="Mean singular value, as a share of the largest",
            height=240,
            visible=False,
            elem_id="spectrum-plot",
        )
        file = gr.File(label="Download", visible=False, interactive=False, elem_id="smaller-zip")

    @show_errors
    def show(values: dict[Any, Any]) -> dict[Any, Any]:
        found = page.workers.call("spectrum", run=str(page.chosen_run(values).directory))
        words = f"Of rank {found['rank']}, **{found['used']}** is used: so much keeps 99.9 % of what the adapter adds to every layer."
        return {
            told: words,
            plot: gr.update(value=render_ranks.spectrum_table(found), visible=True),
        }

    def compress(values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        wanted = (values[rank] or "").strip()
        if wanted and not wanted.isdigit():
            raise UserError(
                "todo", f"{wanted!r} is no rank. Write a whole number, or leave it empty."
            )
        run, folder = page.chosen_run(values), Path(tempfile.mkdtemp(prefix="peft_space-"))

        def show(found: dict[str, Any]) -> dict[Any, Any]:
            packed = shutil.make_archive(
                str(folder / f"adapter-rank-{found['rank']}"), "zip", folder, "adapter"
            )
            return {
                told: render_ranks.compressed_markdown(found),
                file: gr.update(value=packed, visible=True),
            }

        out, new_rank = str(folder / "adapter"), int(wanted) if wanted else None
        yield from page.working(
            told, show, "reduce_rank", run=str(run.directory), out=out, rank=new_rank
        )

    chosen = {page.visitor, page.run}
    look.click(show, chosen, [told, plot], **PRIVATE)
    make.click(show_errors(compress, where=told), {*chosen, rank}, [told, file], **_HIDDEN)
    page.state.change(
        lambda state: [gr.update(interactive=bool(state and state[1]))] * 2,
        page.state,
        [look, make],
        **_HIDDEN,
    )
    page.shown.change(
        lambda: ["", gr.update(visible=False), gr.update(value=None, visible=False)],
        None,
        [told, plot, file],
        **_HIDDEN,
    )
