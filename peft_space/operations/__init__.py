"""Everything the product does, as functions whose arguments and results are plain JSON values.

The command line calls them in its own process, the page through a worker process (`execution/`), so both say and do the same.
"""

import inspect
from collections.abc import Callable

from peft_space.operations.data import check, show, warm
from peft_space.operations.evaluation import compare, evaluate, pairs, vote, votes
from peft_space.operations.export import card, compress, export, push, serving, spectrum
from peft_space.operations.planning import advise, dry_run, estimate, layers, study
from peft_space.operations.progress import Json
from peft_space.operations.runs import (
    adopt,
    cancel_job,
    fetch,
    hand_over,
    job_hardware,
    make,
    save,
    script,
    take_up,
    train,
)
from peft_space.operations.space import deploy, smoke

__all__ = ["deploy", "smoke", "train"]

_OF_A_WORKER = (
    *(warm, check, show, layers, advise, estimate, dry_run, study),
    *(make, adopt, fetch, script, save, take_up, job_hardware, hand_over, cancel_job),
    *(compare, evaluate, pairs, vote, votes),
    *(spectrum, compress, serving, export, card, push),
)
OPERATIONS: dict[str, Callable[..., Json]] = {verb.__name__: verb for verb in _OF_A_WORKER}
"""What a worker process can be asked for; training has a process of its own."""
REPORTING = {
    name for name, verb in OPERATIONS.items() if "report" in inspect.signature(verb).parameters
}
"""Verbs that tell what they are doing."""
TAKING_TURNS = {"study", "dry_run"}
"""Verbs that train, and so wait until no other training has the machine. They report."""
