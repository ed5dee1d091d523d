"""Every use of the internals of accelerate."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.nn import Module


def forget_preparation(model: Module) -> None:
    """Let the next Accelerator prepare a model that another one has prepared.

    Without this, `Accelerator.prepare` would skip the model and its autocast. Removes the mark
    `_is_accelerate_prepared`.
    """
    model.__dict__.pop("_is_accelerate_prepared", None)
