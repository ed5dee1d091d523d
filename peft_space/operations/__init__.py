"""Every feature of the product, as a function with plain JSON arguments and results."""

from peft_space.operations.data import browse, check, show_rows
from peft_space.operations.evaluation import compare, evaluate, vote, vote_pairs, vote_results
from peft_space.operations.export import export, model_card, reduce_rank, script, serving, spectrum
from peft_space.operations.hub import (
    backup,
    cancel_job,
    deploy_space,
    job_hardware,
    push,
    restore,
    smoke_test,
    submit_job,
)
from peft_space.operations.planning import dry_run, estimate, layers, machine, rank_sweep, recommend
from peft_space.operations.registry import REGISTRY, Json, Operation
from peft_space.operations.runs import import_adapter, make_run, merge_adapters, train

__all__ = [
    "OPERATIONS", "REGISTRY", "Json", "Operation", "backup", "browse", "cancel_job", "check",
    "compare", "deploy_space", "dry_run", "estimate", "evaluate", "export", "import_adapter",
    "job_hardware", "layers", "machine", "make_run", "merge_adapters", "model_card", "push",
    "rank_sweep", "recommend", "reduce_rank", "restore", "script", "serving", "show_rows",
    "smoke_test", "spectrum", "submit_job", "train", "vote", "vote_pairs", "vote_results",
]  # fmt: skip

OPERATIONS: dict[str, Operation] = {one.function.__name__: one for one in REGISTRY.values()}
"""The requests that a worker process accepts, by the name of the function."""
