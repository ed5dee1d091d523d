"""The export on the Publish tab: where it will be deployed, the adapter or a merged model, its proof in words, and the download."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from peft_space.web.context import (
    PRIVATE,
    PageContext,
    cpu_notice,
    reset_on_failure,
    served_folder,
    show_errors,
)
from peft_space.web.render import export as render_export
from peft_space.web.render.overview import escape

_HIDDEN: dict[str, Any] = {"show_progress": "hidden", **PRIVATE}


Choice = tuple[set[gr.components.Component], Callable[[dict[Any, Any]], dict[str, Any]]]
"""Widgets, and what to export as their values say, in the words of the verb."""


def build(page: PageContext) -> Choice:
    """Place and wire it; what is chosen can be pushed too."""
    gr.Markdown(
        "The adapter is all that was trained: it names its base, and loads in PEFT anywhere. Merging it into the base is for deployment "
        "alone, where an engine takes no adapter; the adapter always stays in the run."
    )
    where = gr.Radio(
        render_export.PLACES,
        value="PEFT",
        label="Where will it be deployed?",
        elem_id="deploy-where",
    )
    advised = gr.Markdown(elem_id="deploy-advice")
    target = gr.Radio(
        render_export.TARGETS, value="adapter", label="Export", elem_id="export-target"
    )
    merging, dtype, into, writing, numbers, apart = _formats()
    cpu_notice(
        "A merged model and GGUF files are made and proven",
        "memory for the whole base at 4 bytes a parameter, and the time that a CPU needs to answer with it. An adapter is proven on a lent GPU",
    )
    insist = gr.Checkbox(
        False,
        label="Keep it although it does not answer as the adapter does",
        visible=False,
        elem_id="insist",
    )
    with gr.Row():
        make = gr.Button(
            "Export as a .zip, with its proof",
            variant="primary",
            interactive=False,
            elem_id="make-zip",
        )
        cancel = gr.Button("Cancel", visible=False, elem_id="cancel-export")
    told = gr.Markdown(elem_id="packing")
    file = gr.File(label="Download", visible=False, interactive=False, elem_id="zip")
    ready = {make: gr.update(interactive=True), cancel: gr.update(visible=False)}
    stopping: set[str] = set()
    """Runs whose export is to end. Gradio's own `cancels` swallows a click on Export that follows at once."""

    def export(values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        run = page.chosen_run(values)
        yield {
            told: "Starting…",
            make: gr.update(interactive=False),
            cancel: gr.update(visible=True),
            file: gr.update(visible=False),
        }
        yield from _made(page, str(run.directory), wanted(values))

    def wanted(values: dict[Any, Any]) -> dict[str, Any]:
        of = str(page.chosen_run(values).directory)
        quantized = (
            values[target] != "adapter"
            and page.workers.call("serving", run=of)["quantization"] != "none"
        )
        asked = {"target": values[target], "dtype": values[dtype], "force": bool(values[insist])}
        asked["merge_into"] = values[into] if quantized else None
        asked |= {"gguf_type": values[numbers], "separate_adapter": values[apart]}
        return asked

    def _made(page: PageContext, run: str, wanted: dict[str, Any]) -> Iterator[dict[Any, Any]]:
        folder, kept = served_folder(), False
        try:
            with contextlib.closing(
                page.workers.stream("export", run=run, out=folder, as_zip=True, options=wanted)
            ) as messages:
                for message in messages:  # every second at least
                    if run in stopping:
                        break
                    if report := message.get("report"):
                        yield {told: f"{escape(report['what'])}…"}
                    elif "result" in message:
                        kept, found = True, message["result"]
                        shown = {insist: gr.update(value=False, visible=False), **ready}
                        yield {
                            told: render_export.exported_markdown(found),
                            file: gr.update(value=found["path"], visible=True),
                            **shown,
                        }
                    else:
                        yield {told: gr.skip()}
        finally:
            stopping.discard(run)
            if not kept:  # cancelled or refused
                shutil.rmtree(folder, ignore_errors=True)
        if not kept:
            yield {told: "Cancelled. Nothing was kept.", **ready}

    @show_errors
    def stop(values: dict[Any, Any]) -> str:
        stopping.add(str(page.chosen_run(values).directory))
        return "Cancelling…"

    chosen = {page.visitor, page.run}
    outputs = [told, file, insist, make, cancel]
    choice = {target, dtype, into, numbers, apart, insist}
    making = make.click(show_errors(export, where=told), {*chosen, *choice}, outputs, **_HIDDEN)
    reset_on_failure(making, ready)
    making.failure(lambda how: gr.update(visible=how != "adapter"), target, insist, **_HIDDEN)
    cancel.click(stop, chosen, told, **_HIDDEN)
    _advise(page, where, advised, target, into)
    target.change(_shown_formats, target, [merging, writing], **_HIDDEN)
    page.state.change(
        lambda state: gr.update(interactive=bool(state and state[1])), page.state, make, **_HIDDEN
    )
    cleared = {
        file: gr.update(value=None, visible=False),
        told: "",
        advised: "",
        insist: gr.update(value=False, visible=False),
    }
    page.shown.change(
        lambda: cleared | {where: "PEFT", target: "adapter"},
        None,
        [*cleared, where, target],
        **PRIVATE,
    )
    return choice, wanted


def _advise(
    page: PageContext, where: gr.Radio, advised: gr.Markdown, target: gr.Radio, into: gr.Radio
) -> None:
    """Wire what is advised for where it will be deployed."""

    @show_errors
    def advise(values: dict[Any, Any]) -> dict[Any, Any]:
        place = values[where]
        if not values[page.run] or not (values[page.state] or [None, False])[1]:
            return {advised: "", target: gr.skip(), into: gr.skip()}
        found = page.workers.call("serving", run=str(page.chosen_run(values).directory))
        how, words = render_export.advice(place, found)
        return {
            advised: escape(words),
            target: how,
            into: gr.update(visible=found["quantization"] != "none"),
        }

    where.change(
        advise, {page.visitor, page.run, page.state, where}, [advised, target, into], **_HIDDEN
    )


def _formats() -> tuple[gr.Row, gr.Dropdown, gr.Radio, gr.Row, gr.Dropdown, gr.Checkbox]:
    """How weights are written: a row of choices for a merged model, and one for GGUF files."""
    with gr.Row(visible=False) as merging:
        dtype = gr.Dropdown(
            render_export.DTYPES,
            value="bfloat16",
            label="Format of the merged weights",
            elem_id="export-dtype",
        )
        into = gr.Radio(
            render_export.INTO,
            value="dequantized",
            label="Merge into",
            info=render_export.ABOUT_INTO,
            visible=False,
            elem_id="merge-into",
        )
    with gr.Row(visible=False) as writing:
        numbers = gr.Dropdown(
            render_export.NUMBERS,
            value="f16",
            label="Numbers in the file",
            elem_id="export-numbers",
        )
        apart = gr.Checkbox(
            False, label="Base and adapter as files of their own", elem_id="export-apart"
        )
    return merging, dtype, into, writing, numbers, apart


def _shown_formats(target: str) -> list[Any]:
    return [gr.update(visible=target == "merged"), gr.update(visible=target in ("gguf", "ollama"))]
