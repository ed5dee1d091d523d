"""Every use of the internals of transformers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.data import Sampler
    from transformers import PreTrainedModel, Trainer


def trainer_with_row_order(order: Sampler[int] | None, **kwargs: Any) -> Trainer:
    """Create a Trainer that draws the training rows from `order`.

    Overrides the private hook `Trainer._get_train_sampler`.

    Args:
        order: a sampler of row indices, or None for the Trainer's own order.
        kwargs: arguments of `Trainer`.
    """
    from transformers import Trainer

    class OrderedTrainer(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return order or super()._get_train_sampler(train_dataset)

        def floating_point_ops(self, inputs: Any) -> int:
            return 0  # not reported anywhere, and counting visits all parameters in every step

    return OrderedTrainer(**kwargs)


def float32_modules(model: PreTrainedModel) -> Iterable[str]:
    """Return the names that transformers keeps in float32 when it loads a model in 16 bits.

    Reads `_keep_in_fp32_modules_strict`.
    """
    return model._keep_in_fp32_modules_strict or []
