"""LoRA ranks: the rank sweep on the Recipe tab, and smaller adapters on the Publish tab."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from peft_space.errors import UserError
from peft_space.web.components import Operation, cancel_button, cpu_notice, show_errors
from peft_space.web.context import PRIVATE, PageContext, Updates, Values


def build_rank_sweep(page: PageContext) -> None:
    """Place and wire the rank sweep."""
    with gr.Accordion("Find the right rank", open=False, elem_id="rank-panel"):
        gr.Markdown(
            "Trains briefly (up to 60 steps) at ranks 2 to 64 and compares the loss on held-out "
            "rows. Nothing is saved."
        )
        cpu_notice("The rank sweep runs", "It is practical only for small base models.")
        with gr.Row():
            start = gr.Button("Compare ranks", elem_id="rank-sweep")
            cancel = cancel_button("cancel-rank-sweep")
        progress = gr.Markdown(elem_id="rank-sweep-progress")
        plot = gr.LinePlot(
            x="rank",
            y="held-out loss",
            title="Loss on held-out rows",
            height=240,
            visible=False,
            elem_id="rank-sweep-plot",
        )
    operation = Operation(page, progress, [start], cancel)

    def run(values: Values) -> Iterator[Updates]:
        arguments = page.data_arguments(values)
        yield operation.begin()
        yield from operation.stream("rank_sweep", show, **arguments)

    def show(sweep: dict[str, Any]) -> Updates:
        losses = [[result["rank"], result["loss"]] for result in sweep["results"]]
        table = pd.DataFrame(losses, columns=["rank", "held-out loss"])
        return {progress: sweep_markdown(sweep), plot: gr.update(value=table, visible=True)}

    event = operation.on_click(start, run, page.data_inputs, [plot])
    operation.cancel_events([event])


def sweep_markdown(sweep: dict[str, Any]) -> str:
    """Return the result of a rank sweep: which rank is enough, and a table.

    If the largest rank was the best by far, nothing shows that it is enough.
    """
    largest = max(result["rank"] for result in sweep["results"])
    first = (
        f"After {sweep['steps']} steps, **rank {sweep['enough']}** is enough: "
        "its loss is within 2 %, or 0.01, of the best."
    )
    if sweep["enough"] == largest:
        first = (
            f"**Inconclusive.** After {sweep['steps']} steps, the largest rank tried "
            f"({largest}) was best, so a larger one may be better still. "
            "Few steps favor large ranks."
        )
    lines = [
        first,
        "",
        "| rank | trainable parameters | held-out loss | time |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {result['rank']} | {result['trainable_parameters']:,} | {result['loss']:.4f} "
        f"| {result['seconds']:.1f} s |"
        for result in sweep["results"]
    ]
    return "\n".join(lines)


def build_reduce_rank(page: PageContext) -> None:
    """Place and wire the adapter's spectrum, and the smaller adapter."""
    with gr.Accordion("Shrink the adapter", open=False, elem_id="shrink-panel"):
        with gr.Row():
            analyze = gr.Button("Show used rank", interactive=False, elem_id="spectrum")
            rank = gr.Textbox(
                label="Rank of the smaller adapter",
                placeholder="automatic",
                info="Default: the rank that the adapter uses.",
                elem_id="smaller-rank",
            )
            reduce = gr.Button("Make a smaller adapter", interactive=False, elem_id="reduce-rank")
        progress = gr.Markdown(elem_id="spectrum-progress")
        plot = gr.LinePlot(
            x="number",
            y="size",
            title="Mean singular value, as a share of the largest",
            height=240,
            visible=False,
            elem_id="spectrum-plot",
        )
        file = gr.File(label="Download", visible=False, interactive=False, elem_id="smaller-zip")
    operation = Operation(page, progress)

    @show_errors
    def show_spectrum(values: Values) -> Updates:
        run = page.selected_run(values)
        spectrum = page.workers.call("spectrum", run=str(run.directory))
        curve = pd.DataFrame(enumerate(spectrum["curve"], 1), columns=["number", "size"])
        sentence = (
            f"The adapter uses **{spectrum['used']}** of {spectrum['rank']} ranks: they keep "
            "99.9 % of what it adds to every layer."
        )
        return {progress: sentence, plot: gr.update(value=curve, visible=True)}

    def reduce_rank(values: Values) -> Iterator[Updates]:
        new_rank = parse_rank(values[rank])
        run, folder = page.selected_run(values), Path(tempfile.mkdtemp(prefix="peft_space-"))

        def show(result: dict[str, Any]) -> Updates:
            name = str(folder / f"adapter-rank-{result['rank']}")
            packed = shutil.make_archive(name, "zip", folder, "adapter")
            return {
                progress: smaller_markdown(result),
                file: gr.update(value=packed, visible=True),
            }

        out, directory = str(folder / "adapter"), str(run.directory)
        yield from operation.stream("reduce_rank", show, run=directory, out=out, rank=new_rank)

    analyze.click(show_spectrum, page.selection, [progress, plot], **PRIVATE)
    operation.on_click(reduce, reduce_rank, {*page.selection, rank}, [file])
    page.enable_with_adapter(analyze, reduce)
    hidden = gr.update(visible=False)
    page.reset_with_run({progress: "", plot: hidden, file: gr.update(value=None, visible=False)})


def parse_rank(text: str | None) -> int | None:
    """Return the rank that was typed; None if nothing was. Raises UserError if not a number."""
    typed = (text or "").strip()
    if typed and not typed.isdigit():
        raise UserError(
            "web.not_a_rank", f"{typed!r} is not a rank. Enter a whole number, or leave it empty."
        )
    return int(typed) if typed else None


def smaller_markdown(result: dict[str, Any]) -> str:
    """Return how the loss on held-out rows changed with a smaller rank."""
    before, after = result["loss_before"], result["loss_after"]
    return (
        f"Rank {result['rank']}: held-out loss {after:.4f}, "
        f"before {before:.4f} ({after / before - 1:+.1%})."
    )
