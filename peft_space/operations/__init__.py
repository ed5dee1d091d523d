"""Everything the product does, as functions whose arguments and results are plain JSON values.

The command line calls them in its own process, the page through a worker process (`execution/`), so both say and do the same.
"""

import inspect
from collections.abc import Callable

from peft_space.operations.data import check, show_rows, warm
from peft_space.operations.evaluation import compare, evaluate, vote, vote_pairs, vote_results
from peft_space.operations.export import export, model_card, push, reduce_rank, serving, spectrum
from peft_space.operations.planning import dry_run, estimate, layers, rank_sweep, recommend
from peft_space.operations.progress import Json
from peft_space.operations.runs import (
    backup,
    cancel_job,
    import_adapter,
    job_hardware,
    make_run,
    prefetch,
    restore,
    script,
    submit_job,
    train,
)
from peft_space.operations.space import deploy_space, smoke_test

__all__ = ["deploy_space", "smoke_test", "train"]

_OF_A_WORKER = (
    *(warm, check, show_rows, layers, recommend, estimate, dry_run, rank_sweep),
    *(
        make_run,
        import_adapter,
        prefetch,
        script,
        backup,
        restore,
        job_hardware,
        submit_job,
        cancel_job,
    ),
    *(compare, evaluate, vote_pairs, vote, vote_results),
    *(spectrum, reduce_rank, serving, export, model_card, push),
)
OPERATIONS: dict[str, Callable[..., Json]] = {verb.__name__: verb for verb in _OF_A_WORKER}
"""What a worker process can be asked for; training has a process of its own."""
REPORTING = {
    name for name, verb in OPERATIONS.items() if "report" in inspect.signature(verb).parameters
}
"""Verbs that tell what they are doing."""
TAKING_TURNS = {"rank_sweep", "dry_run"}
"""Verbs that train, and so wait until no other training has the machine. They report."""
