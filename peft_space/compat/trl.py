"""Every use of the internals of TRL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Trainer


def preference_trainer(
    task: Literal["dpo", "kto"], model: PeftModel, arguments: dict[str, Any], **kwargs: Any
) -> Trainer:
    """Create TRL's DPO or KTO trainer for rows that are tokenized already.

    The trainer's own rendering is replaced (`_prepare_dataset`). The reference model is the base
    model with the adapter off: TRL's copy of the adapter, "ref", is removed.

    Args:
        task: selects the trainer.
        model: the base model with the adapter that is trained.
        arguments: arguments of `DPOConfig` or `KTOConfig`.
        kwargs: further arguments of the trainer.
    """
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

    classes = {"dpo": (DPOTrainer, DPOConfig), "kto": (KTOTrainer, KTOConfig)}
    trainer_class, config_class = classes[task]

    class TokenizedRowsTrainer(trainer_class):  # type: ignore[misc, valid-type]
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            pass  # the app writes its own

    trainer = TokenizedRowsTrainer(model=model, args=config_class(**arguments), **kwargs)
    if "ref" in model.peft_config:
        model.delete_adapter("ref")
    for parameter in model.parameters():
        if parameter.requires_grad:
            # TRL casts those of quantized models to bfloat16, in which small updates are lost
            parameter.data = parameter.data.float()
    return trainer
