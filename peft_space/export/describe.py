"""Adds a model card and the readiness list to an adapter that training has just written."""

from pathlib import Path

from peft_space.export.checklist import write_checklist
from peft_space.export.model_card import write_card
from peft_space.export.readiness import check_ready
from peft_space.models.resolve import BaseModelRef
from peft_space.runs.plan import Plan
from peft_space.runs.run import Run
from peft_space.training.prepare import Prepared


def describe_adapter(
    run: Run, folder: Path, prepared: Prepared, base: BaseModelRef, plan: Plan
) -> None:
    """Write the model card into `folder`, and the readiness list into the run.

    Args:
        run: the run that trained the adapter.
        folder: the adapter, before it takes its place in the run.
        prepared: the rows it was trained on.
        base: the base model it belongs to.
        plan: what it was trained with.
    """
    write_checklist(run, check_ready(run, base, prepared, plan, folder))
    write_card(run, folder, prepared.data, plan)
