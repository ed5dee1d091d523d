"""Training elsewhere, on the Train tab: what hardware Hugging Face Jobs have and what it costs, handing the run over, cancelling; or a script.

What the job does, the tab shows as it shows any training.
"""

import html
import math
import os
from collections.abc import Iterator
from typing import Any

import gradio as gr

from peft_space.runtime.job_watcher import start_watching
from peft_space.web.context import (
    PRIVATE,
    PageContext,
    reset_on_failure,
    served_folder,
    show_errors,
)
from peft_space.web.render import overview as render_overview

_HIDDEN: dict[str, Any] = {"show_progress": "hidden", **PRIVATE}


def build(page: PageContext, make_only: Any) -> Any:
    """Place and wire it. `make_only` makes a run of the page's data and recipe without training it here; that event is returned."""
    with gr.Accordion(
        "Train it elsewhere: on Hugging Face Jobs, or by a script", open=False, elem_id="jobs"
    ):
        gr.Markdown(
            "For what does not fit here. The chosen run goes into a private dataset of yours, is trained on a machine that you rent by the minute, "
            "and comes back here with its losses, checkpoints and adapter. Your Hub account needs credit, your token the right to write and to run jobs; "
            "the job gets it as a secret."
        )
        with gr.Row():
            make = gr.Button("Make a run, without training it here", elem_id="make-only")
            token = gr.Textbox(
                label="Token",
                type="password",
                info="On your own machine it may stay empty, if that is signed in.",
                elem_id="job-token",
            )
        look = gr.Button("What would it take there?", elem_id="job-hardware")
        table = gr.HTML(elem_id="job-choices")
        with gr.Row():
            flavor = gr.Dropdown([], label="Hardware", elem_id="job-flavor")
            timeout = gr.Textbox(
                label="Ended at the latest after", placeholder="2h", elem_id="job-timeout"
            )
        with gr.Row():
            hand_over = gr.Button(
                "Hand the chosen run over",
                variant="primary",
                interactive=False,
                elem_id="hand-over",
            )
            cancel = gr.Button("Cancel the job", variant="stop", elem_id="cancel-job")
            follow = gr.Button("Follow it again", elem_id="follow-job")
        told = gr.Markdown(elem_id="job-told")
        _build_script(page)
    choices = gr.State({})
    ready = {look: gr.update(interactive=True), hand_over: gr.update(interactive=True)}
    busy = {look: gr.update(interactive=False), hand_over: gr.update(interactive=False)}

    def given(values: dict[Any, Any]) -> dict[str, Any]:
        return {
            "run": str(page.chosen_run(values).directory),
            "token": (values[token] or "").strip() or None,
        }

    def list_hardware(values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        asked = given(values)
        yield {told: "Asking the Hub, and working out what it takes…", **busy}
        found = page.workers.call("job_hardware", **asked)["hardware"]
        best = next((one for one in found if one["fits"] is not False), None)
        names = [
            (f"{one['title']} ({one['name']})", one["name"])
            for one in found
            if one["fits"] is not False
        ]
        yield {
            told: "",
            table: hardware_html(found),
            choices: {one["name"]: one["timeout"] for one in found},
            flavor: gr.update(choices=names, value=best and best["name"]),
            **ready,
        }

    def start(values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        asked = given(values)
        yield {told: "Starting…", **busy}
        wanted = {"flavor": values[flavor] or "", "timeout": values[timeout] or ""}

        def show(handed: dict[str, Any]) -> dict[Any, Any]:
            start_watching(page.chosen_run(values), asked["token"])
            return {
                told: f"Handed over: [the job's page]({handed['address']}). You can close this page.",
                **ready,
            }

        yield from page.working(told, show, "submit_job", **asked, **wanted)

    @show_errors
    def end(values: dict[Any, Any]) -> str:
        page.workers.call("cancel_job", **(asked := given(values)))
        start_watching(page.chosen_run(values), asked["token"])
        return "Cancelled. What it has sent is being brought back."

    @show_errors
    def again(values: dict[Any, Any]) -> str:
        if (run := page.chosen_run(values)).status() != "on_job":
            return f"There is nothing to follow: the run is {render_overview.STATUS_WORDS[run.status()]}."
        start_watching(run, given(values)["token"])
        return "Following."

    chosen = {page.visitor, page.run, token}
    making = make.click(*make_only, **_HIDDEN)
    listing = look.click(
        show_errors(list_hardware, where=told),
        chosen,
        [told, table, choices, flavor, look, hand_over],
        **_HIDDEN,
    )
    starting = hand_over.click(
        show_errors(start, where=told),
        {*chosen, flavor, timeout},
        [told, look, hand_over],
        **_HIDDEN,
    )
    reset_on_failure(listing, ready)
    reset_on_failure(starting, ready)
    flavor.change(
        lambda name, known: f"{math.ceil(known[name] / 60)}m" if name in known else "",
        [flavor, choices],
        timeout,
        **_HIDDEN,
    )
    cancel.click(end, chosen, told, **_HIDDEN)
    follow.click(again, chosen, told, **_HIDDEN)
    page.shown.change(lambda: ["", ""], None, [told, table], **_HIDDEN)
    return making


def _build_script(page: PageContext) -> None:
    gr.Markdown(
        "On any other machine or cluster, with one or several GPUs: one file that holds recipe and rows. `uv run train.py` trains it."
    )
    write = gr.Button("Write the chosen run as one script", elem_id="make-script")
    script = gr.File(label="Script", visible=False, interactive=False, elem_id="script")

    @show_errors
    def write_script(values: dict[Any, Any]) -> Any:
        folder = served_folder()
        run = str(page.chosen_run(values).directory)
        made = page.workers.call("script", run=run, out=os.path.join(folder, "train.py"))
        return gr.update(value=made["path"], visible=True)

    write.click(write_script, {page.visitor, page.run}, script, **_HIDDEN)
    page.shown.change(lambda: gr.update(value=None, visible=False), None, script, **_HIDDEN)


def hardware_html(found: list[dict[str, Any]]) -> str:
    """One line a kind of hardware: whether the run fits, how long it takes there, and what that costs."""
    rows = []
    for one in found:
        fits = {True: "✓ fits", False: "✗ does not fit", None: "not estimated"}[one["fits"]]
        time = render_overview.about(one["seconds"])
        cost = (
            f"about ${one['dollars']:.2f}, at ${one['dollars_an_hour']:.2f} an hour"
            if one["dollars"]
            else f"${one['dollars_an_hour']:.2f} an hour"
        )
        name = f"{html.escape(one['title'])} <small>{html.escape(one['name'])}</small>"
        cells = {"Hardware": name, "Memory": fits, "Time": time, "Cost, with making ready": cost}
        rows.append(
            "<tr>"
            + "".join(f'<td data-title="{title}">{cell}</td>' for title, cell in cells.items())
            + "</tr>"
        )
    head = "".join(
        f'<th scope="col">{title}</th>'
        for title in ("Hardware", "Memory", "Time", "Cost, with making ready")
    )
    return f'<table class="answers advice"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
