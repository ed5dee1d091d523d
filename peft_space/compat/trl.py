"""Uses of internals of TRL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from peft_space.compat.transformers import use_one_gpu

if TYPE_CHECKING:
    from peft import PeftModel
    from torch.utils.data import Sampler
    from transformers import Trainer


def preference_trainer(
    task: Literal["dpo", "kto"],
    model: PeftModel,
    arguments: dict[str, Any],
    order: Sampler[int] | None = None,
    **kwargs: Any,
) -> Trainer:
    """Create TRL's DPO or KTO trainer for rows that are tokenized already.

    The trainer's own rendering is replaced (`_prepare_dataset`). The reference model is the base
    model with the adapter off: TRL's copy of the adapter, "ref", is removed.

    Args:
        task: selects the trainer.
        model: the base model with the adapter that is trained.
        arguments: arguments of `DPOConfig` or `KTOConfig`.
        order: a sampler of row indices, or None for TRL's own order.
        kwargs: further arguments of the trainer.
    """
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

    classes = {"dpo": (DPOTrainer, DPOConfig), "kto": (KTOTrainer, KTOConfig)}
    trainer_class, config_class = classes[task]

    class TokenizedRowsTrainer(trainer_class):  # type: ignore[misc, valid-type]
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return order or super()._get_train_sampler(dataset)

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            pass  # the app writes its own

    config = use_one_gpu(config_class(**arguments))
    trainer = TokenizedRowsTrainer(model=model, args=config, **kwargs)
    if "ref" in model.peft_config:
        model.delete_adapter("ref")
    for parameter in model.parameters():
        if parameter.requires_grad:
            # TRL casts those of quantized models to bfloat16, in which small updates are lost
            parameter.data = parameter.data.float()
    return trainer


def adds_router_loss(trainer: Trainer) -> bool:
    """Return True if a trainer of TRL adds a loss that balances a model's experts.

    Only TRL's own output layer returns it. Reads `aux_loss_enabled`.
    """
    return trainer.aux_loss_enabled  # type: ignore[attr-defined]
