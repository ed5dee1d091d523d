"""The product for programs and agents: endpoints of stable names and plain types beside the page, told to users in docs/api.md.

A run opens only for who has its owner's secret, and no file is read but one that Gradio itself received.
"""

import gradio as gr

from peft_space.compat.gradio import current_blocks, explain_rejected_files, uploaded_files
from peft_space.web.api.arguments import NOT_UPLOADED, Files, checked
from peft_space.web.api.remote import Elsewhere
from peft_space.web.api.results import Results
from peft_space.web.api.training import Training
from peft_space.web.components import show_errors
from peft_space.web.context import PageContext


def build(page: PageContext) -> None:
    """Offer the endpoints. To be called inside `gr.Blocks`."""
    blocks = current_blocks()
    explain_rejected_files(blocks, NOT_UPLOADED)
    training = Training(page.workers, Files(uploaded_files(blocks)))
    results, elsewhere = Results(page.workers), Elsewhere(page.workers)
    endpoints = (
        *(
            training.bring_text,
            training.check_data,
            training.advise,
            training.estimate,
            training.dry_run,
        ),
        *(training.start, training.status, training.stop, training.resume),
        *(results.compare, results.evaluate, results.pairs, results.vote, results.votes),
        *(results.export, results.card, results.push),
        *(elsewhere.save, elsewhere.take_up, elsewhere.script),
        *(elsewhere.job_hardware, elsewhere.hand_over, elsewhere.follow_job, elsewhere.cancel_job),
        training.runs,
    )
    for endpoint in endpoints:
        # two, so that one caller's evaluation does not hold up the next one's; there are no more worker processes
        gr.api(show_errors(checked(endpoint)), api_name=endpoint.__name__, concurrency_limit=2)
