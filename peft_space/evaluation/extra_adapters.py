"""Adds checkpoints of a run, and adapters of other runs on the same base, to a comparison."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peft_space.data.messages import Message
from peft_space.errors import UserError
from peft_space.runs import checkpoints
from peft_space.runs.run import Run

if TYPE_CHECKING:  # these import torch, which the page does not load
    from peft_space.evaluation.generate import Sampling
    from peft_space.models.loading import AdaptedModel

_ADAPTER_NAME = "extra"


def comparable_adapters(run: Run, others: Sequence[Run]) -> list[str | Run]:
    """The adapters that can be compared with the adapter of a run.

    Args:
        others: further runs, of which those with an adapter on the same base count.

    Returns:
        The names of the run's complete checkpoints, and the runs.
    """
    own = [] if _changes_base(run) else [folder.name for folder in checkpoints.complete(run)]
    same_base = [other for other in others if _has_same_base(run, other)]
    return [*own, *(other for other in same_base if other.directory != run.directory)]


def extra_answers(
    adapted: "AdaptedModel",
    run: Run,
    adapters: Sequence[str],
    conversations: Sequence[list[Message]],
    sampling: "Sampling",
) -> list[dict[str, str]]:
    """Generate the answers of further adapters on the base that is in memory.

    Args:
        adapted: the model of `run`.
        run: the run that the adapters are compared with.
        adapters: names of checkpoints of the run (`checkpoint-40`), or directories of other runs.
        conversations: each ends with the user's message.

    Returns:
        For each conversation the answers, by the title of the adapter.

    Raises:
        UserError: an adapter is missing, damaged, or of another base.
    """
    from peft_space.evaluation.compare import CLASSIFYING, classify
    from peft_space.evaluation.generate import answer

    answers: list[dict[str, str]] = [{} for _ in conversations]
    for name in adapters:
        title, folder = find_adapter(run, name)
        with _temporary_adapter(adapted, folder):
            if adapted.task_spec.task in CLASSIFYING:
                questions = [messages[-1]["content"] for messages in conversations]
                texts = [classify(adapted, question).adapter for question in questions]
            else:
                texts = answer(adapted, "adapter", conversations, sampling)
        for by_title, text in zip(answers, texts, strict=True):
            by_title[title] = text
    return answers


def find_adapter(run: Run, name: str) -> tuple[str, Path]:
    """The title and the folder of an adapter that fits the base of a run.

    Args:
        run: the run.
        name: of a checkpoint of the run (`checkpoint-40`), or the directory of another run.

    Raises:
        UserError: the adapter is missing, damaged, or of another base.
    """
    from peft_space.models.loading import base_of, check_adapter_fits_base, revision_of

    if name.startswith("checkpoint-"):
        folder = _find_checkpoint(run, name)
        return f"Step {checkpoints.step_of(folder)}", folder
    other = Run(name)
    base, task_spec = base_of(run)
    revision_of(other.adapter, run.recipe.base_model)
    check_adapter_fits_base(other.adapter, base, task_spec.task, task_spec.labels)
    return other.name, other.adapter


def _find_checkpoint(run: Run, name: str) -> Path:
    folder = next((folder for folder in checkpoints.in_order(run) if folder.name == name), None)
    problem = checkpoints.damage(folder) if folder else "it does not exist"
    if folder is None or problem:
        complete = [other for other in comparable_adapters(run, []) if isinstance(other, str)]
        raise UserError(
            "evaluation.no_such_checkpoint",
            f"The run {run.name!r} has no usable {name} to compare: {problem}. "
            f"Complete checkpoints: {', '.join(complete) or 'none'}.",
        )
    if _changes_base(run):
        raise UserError(
            "evaluation.checkpoint_of_changed_base",
            f"Checkpoints of {run.recipe.method} belong to a base that it changed, "
            f"not to {run.recipe.base_model}. Compare the run's final adapter.",
        )
    return folder


def _changes_base(run: Run) -> bool:
    return run.recipe.method in ("pissa", "loftq")


def _has_same_base(run: Run, other: Run) -> bool:
    def base(run: Run) -> tuple[str, str | None]:
        return run.recipe.base_model, run.recipe.revision

    return base(run) == base(other) and other.path("adapter", "adapter_config.json").is_file()


@contextlib.contextmanager
def _temporary_adapter(adapted: "AdaptedModel", folder: Path) -> Iterator[None]:
    """Within this context another adapter is on the base."""
    if adapted.biases:
        raise UserError(
            "evaluation.adapter_with_biases",
            "An adapter that trains biases overwrites its base's biases. "
            "Compare it without other adapters.",
        )
    from peft_space.models.loading import check_adapter_is_loaded

    adapted.model.load_adapter(folder, adapter_name=_ADAPTER_NAME)
    try:
        check_adapter_is_loaded(adapted.model, folder, _ADAPTER_NAME)
        adapted.model.set_adapter(_ADAPTER_NAME)
        adapted.model.eval()
        yield
    finally:
        adapted.model.set_adapter("default")
        adapted.model.delete_adapter(_ADAPTER_NAME)
