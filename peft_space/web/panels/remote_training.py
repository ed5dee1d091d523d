"""Training on other hardware, on the Train tab: Hugging Face Jobs, or a script.

The Train tab shows a job's progress like that of any other training.
"""

import html
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from peft_space.compat.gradio import served_folder
from peft_space.hub.jobs import start_watching
from peft_space.web.auth import token_of
from peft_space.web.components import Operation, show_errors
from peft_space.web.context import HIDDEN, Inputs, PageContext, Updates, Values
from peft_space.web.render import overview as render_overview
from peft_space.web.states import STATUS_WORDS

TITLE = "Train on other hardware"
_INTRODUCTION = (
    "Rent a GPU on Hugging Face by the minute. Your run goes to a private dataset of yours, and "
    "losses, checkpoints and the adapter come back here. You need credit, and the job gets your "
    "token as a secret. Signing in lasts a day: for a longer job, enter a token with write and "
    "jobs access."
)


class RemoteTraining:
    """The panel's components and handlers."""

    def __init__(self, page: PageContext):
        self.page = page
        gr.Markdown(_INTRODUCTION)
        with gr.Row():
            self.prepare = gr.Button("Prepare run", elem_id="prepare-run")
            self.token = gr.Textbox(
                label="Token",
                type="password",
                info="Optional if you or this machine are signed in.",
                elem_id="job-token",
            )
        self.offers_button = gr.Button("Show hardware and prices", elem_id="job-hardware")
        self.table = gr.HTML(elem_id="job-offers")
        with gr.Row():
            self.flavor = gr.Dropdown([], label="Hardware", elem_id="job-flavor")
            self.timeout = gr.Textbox(label="Time limit", placeholder="2h", elem_id="job-timeout")
        with gr.Row():
            self.submit = gr.Button(
                "Start on Hugging Face",
                variant="primary",
                interactive=False,
                elem_id="submit-job",
            )
            self.cancel = gr.Button("Cancel the job", variant="stop", elem_id="cancel-job")
            self.reconnect = gr.Button("Reconnect", elem_id="follow-job")
        self.progress = gr.Markdown(elem_id="job-progress")
        self.timeouts = gr.State({})
        """Hardware -> suggested time limit in seconds."""
        self.operation = Operation(page, self.progress, [self.offers_button, self.submit])

    def _run_and_token(self, values: Values, signed_in: gr.OAuthToken | None) -> dict[str, Any]:
        run = str(self.page.selected_run(values).directory)
        return {"run": run, "token": token_of(values[self.token], signed_in)}

    def list_hardware(self, values: Values, signed_in: gr.OAuthToken | None) -> Iterator[Updates]:
        """Show the needs and the cost of the selected run on each kind of hardware."""
        arguments = self._run_and_token(values, signed_in)
        yield self.operation.begin("Asking the Hub for hardware and prices…")
        offers = self.page.workers.call("job_hardware", **arguments)["hardware"]
        fitting = [offer for offer in offers if offer["fits"] is not False]
        names = [(f"{offer['title']} ({offer['name']})", offer["name"]) for offer in fitting]
        best = fitting[0]["name"] if fitting else None
        yield {
            self.progress: "",
            self.table: hardware_html(offers),
            self.timeouts: {offer["name"]: offer["timeout"] for offer in offers},
            self.flavor: gr.update(choices=names, value=best),
            **self.operation.ready,
        }

    def submit_job(self, values: Values, signed_in: gr.OAuthToken | None) -> Iterator[Updates]:
        """Start a job that trains the selected run."""
        arguments = self._run_and_token(values, signed_in)
        arguments |= {"flavor": values[self.flavor] or "", "timeout": values[self.timeout] or ""}

        def show(job: dict[str, Any]) -> Updates:
            start_watching(self.page.selected_run(values), arguments["token"])
            link = f"[the job's page]({job['address']})"
            return {self.progress: f"Started: {link}. You can close this page."}

        yield self.operation.begin()
        yield from self.operation.stream("submit_job", show, **arguments)

    def cancel_job(self, values: Values, signed_in: gr.OAuthToken | None) -> str:
        """End the selected run's job."""
        arguments = self._run_and_token(values, signed_in)
        self.page.workers.call("cancel_job", **arguments)
        start_watching(self.page.selected_run(values), arguments["token"])
        return "Canceled. Fetching the job's files."

    def reconnect_job(self, values: Values, signed_in: gr.OAuthToken | None) -> str:
        """Watch the selected run's job again, for instance after this machine restarted."""
        run = self.page.selected_run(values)
        if (status := run.status()) != "on_job":
            state = STATUS_WORDS[status]
            return f"There is no job to reconnect to: the run is {state}."
        start_watching(run, self._run_and_token(values, signed_in)["token"])
        return "Reconnected."


def build(
    page: PageContext,
    prepare: Callable[..., Any],
    prepare_inputs: Inputs,
    outputs: list[gr.components.Component],
) -> Any:
    """Place and wire the panel.

    Args:
        page: the shared state.
        prepare: the handler that makes a run of the page's data and recipe without training it.
        prepare_inputs: of `prepare`.
        outputs: of `prepare`.

    Returns:
        The event of `prepare`.
    """
    with gr.Accordion(TITLE, open=False, elem_id="jobs"):
        panel = RemoteTraining(page)
        _build_script(page)
    preparing = panel.prepare.click(prepare, prepare_inputs, outputs, **HIDDEN)
    inputs: Inputs = {*page.selection, panel.token}
    offers = [panel.table, panel.timeouts, panel.flavor]
    panel.operation.on_click(panel.offers_button, panel.list_hardware, inputs, offers)
    job_inputs: Inputs = {*inputs, panel.flavor, panel.timeout}
    panel.operation.on_click(panel.submit, panel.submit_job, job_inputs)

    def suggest_timeout(flavor: str, timeouts: dict[str, float]) -> str:
        return f"{math.ceil(timeouts[flavor] / 60)}m" if flavor in timeouts else ""

    choice = [panel.flavor, panel.timeouts]
    panel.flavor.change(suggest_timeout, choice, panel.timeout, **HIDDEN)
    cancel, reconnect = show_errors(panel.cancel_job), show_errors(panel.reconnect_job)
    panel.cancel.click(cancel, inputs, panel.progress, **HIDDEN)
    panel.reconnect.click(reconnect, inputs, panel.progress, **HIDDEN)
    page.reset_with_run({panel.progress: "", panel.table: ""})
    return preparing


def _build_script(page: PageContext) -> None:
    gr.Markdown(
        "For any other machine or cluster with one or more GPUs: a single script with your "
        "settings and data. Run it with `uv run train.py`."
    )
    write = gr.Button("Download training script", elem_id="make-script")
    script = gr.File(label="Script", visible=False, interactive=False, elem_id="script")

    @show_errors
    def write_script(values: Values) -> Any:
        path = os.path.join(served_folder(), "train.py")
        run = str(page.selected_run(values).directory)
        written = page.workers.call("script", run=run, out=path)
        return gr.update(value=written["path"], visible=True)

    write.click(write_script, page.selection, script, **HIDDEN)
    page.reset_with_run({script: gr.update(value=None, visible=False)})


def hardware_html(offers: list[dict[str, Any]]) -> str:
    """Return one line per hardware: if the run fits, how long it takes, what that costs."""
    fits = {True: "✓ fits", False: "✗ does not fit", None: "not estimated"}
    rows = []
    for offer in offers:
        cost = f"${offer['dollars_an_hour']:.2f} an hour"
        if offer["dollars"]:
            cost = f"about ${offer['dollars']:.2f}, at {cost}"
        name = f"{html.escape(offer['title'])} <small>{html.escape(offer['name'])}</small>"
        rows.append([name, fits[offer["fits"]], render_overview.about(offer["seconds"]), cost])
    titles = ["Hardware", "Memory", "Time", "Cost incl. setup"]
    return render_overview.table_html(titles, rows, "answers advice")
