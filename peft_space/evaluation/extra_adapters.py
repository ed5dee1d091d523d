"""Checkpoints of a run, and adapters of other runs on the same base, that answer beside the run's own adapter. Knows nothing of pages."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peft_space.data.records import Message
from peft_space.errors import UserError
from peft_space.runs import checkpoints
from peft_space.runs.run import Run

if TYPE_CHECKING:  # these bring torch, and the page, which asks what is offered, has none
    from peft_space.evaluation.compare import Sampling
    from peft_space.models.loading import AdaptedModel

_NAME = "beside"


def comparable_adapters(run: Run, others: Sequence[Run]) -> list[str | Run]:
    """What can answer beside the adapter of a run: names of its complete checkpoints, and those of `others` that have an adapter of the same base."""
    own = (
        []
        if _starts_from_other_weights(run)
        else [folder.name for folder in checkpoints.complete(run)]
    )
    return [
        *own,
        *(other for other in others if _same_base(run, other) and other.directory != run.directory),
    ]


def extra_answers(
    adapted: "AdaptedModel",
    run: Run,
    wanted: Sequence[str],
    conversations: Sequence[list[Message]],
    sampling: "Sampling",
) -> list[dict[str, str]]:
    """Of each conversation what each of `wanted` answers, by its title; the base in memory is the one of `run`.

    Args:
        wanted: names of checkpoints of the run (`checkpoint-40`), or directories of other runs.

    Raises UserError where one is not there, or is not of this base.
    """
    from peft_space.evaluation import compare

    found: list[dict[str, str]] = [{} for _ in conversations]
    for name in wanted:
        title, folder = _adapter(run, name)
        with _temporary_adapter(adapted, folder):
            if adapted.goal.task in compare.CLASSIFYING:
                texts = [
                    compare.classify(adapted, messages[-1]["content"]).adapter
                    for messages in conversations
                ]
            else:
                texts = compare.answer(adapted, "adapter", conversations, sampling)
        for answered, text in zip(found, texts, strict=True):
            answered[title] = text
    return found


def _adapter(run: Run, name: str) -> tuple[str, Path]:
    """The title and the folder of what answers beside."""
    from peft_space.models.adapter_check import check_adapter_fits_base, revision_of
    from peft_space.models.loading import base_of

    if name.startswith("checkpoint-"):
        folder = next((one for one in checkpoints.in_order(run) if one.name == name), None)
        if folder is None or (why := checkpoints.damage(folder)):
            complete = (
                ", ".join(one for one in comparable_adapters(run, []) if isinstance(one, str))
                or "none"
            )
            told = f"it is damaged ({why})" if folder else "it is not there"
            raise UserError(
                "todo",
                f"The run {run.name!r} has no {name} to compare: {told}. Complete checkpoints: {complete}.",
            )
        if _starts_from_other_weights(run):
            raise UserError(
                "todo",
                f"Checkpoints of {run.recipe.method} are of a base that it changed, not of {run.recipe.base_model}. Compare its adapter.",
            )
        return f"Step {checkpoints.step_of(folder)}", folder
    other = Run(name)
    folder, (base, goal) = other.adapter, base_of(run)
    revision_of(folder, run.recipe.base_model)
    check_adapter_fits_base(folder, base, goal.task, goal.labels)
    return other.name, folder


def _starts_from_other_weights(run: Run) -> bool:
    return run.recipe.method in ("pissa", "loftq")


def _same_base(run: Run, other: Run) -> bool:
    same = (other.recipe.base_model, other.recipe.revision) == (
        run.recipe.base_model,
        run.recipe.revision,
    )
    return same and other.path("adapter", "adapter_config.json").is_file()


@contextlib.contextmanager
def _temporary_adapter(adapted: "AdaptedModel", folder: Path) -> Iterator[None]:
    """Within this context another adapter is on the base."""
    if adapted.biases:
        raise UserError(
            "todo", "An adapter that trains biases writes over its base's. Compare it alone."
        )
    adapted.model.load_adapter(folder, adapter_name=_NAME)
    try:
        adapted.model.set_adapter(_NAME)
        adapted.model.eval()
        yield
    finally:
        adapted.model.set_adapter("default")
        adapted.model.delete_adapter(_NAME)
