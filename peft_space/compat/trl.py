"""Uses of internals of TRL."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any, Literal

from peft_space.compat.transformers import EachRowOnce, use_one_gpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from peft import PeftModel
    from torch import Tensor
    from torch.utils.data import Sampler
    from transformers import Trainer


def preference_trainer(
    task: Literal["dpo", "kto"],
    model: PeftModel,
    arguments: dict[str, Any],
    first_rows: Callable[[dict[str, Any], int], dict[str, Any]],
    order: Sampler[int] | None = None,
    continues_adapter: bool = False,
    **kwargs: Any,
) -> Trainer:
    """Create TRL's DPO or KTO trainer for rows that are tokenized already.

    Args:
        task: selects the trainer.
        model: the base model with the adapter that is trained.
        arguments: arguments of `DPOConfig` or `KTOConfig`.
        first_rows: returns so many rows of a batch.
        order: a sampler of row indices, or None for TRL's own order.
        continues_adapter: whether training continues an adapter, which is then the reference: TRL
            copies it as "ref". Otherwise it is the base model with the adapter off, without a copy.
        kwargs: further arguments of the trainer.
    """
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

    classes = {"dpo": (DPOTrainer, DPOConfig), "kto": (KTOTrainer, KTOConfig)}
    trainer_class, config_class = classes[task]
    batch_size = arguments["per_device_train_batch_size"]
    if task == "kto":  # TRL refuses batches of one row, from which it could not estimate KL
        arguments = arguments | {"per_device_train_batch_size": max(2, batch_size)}
    config = use_one_gpu(config_class(**arguments))
    reference = _weights(model, ".ref.")  # of a model that was kept since an earlier slice
    if reference:
        model.delete_adapter("ref")
    trained = _weights(model, ".default.")
    tokenized_rows_trainer = _trainer_class(task, trainer_class)
    tokenized_rows_trainer.first_rows = first_rows
    trainer = tokenized_rows_trainer(model=model, args=config, **kwargs)
    trainer.order = order
    trainer.args.per_device_train_batch_size = trainer._train_batch_size = batch_size
    if not continues_adapter:
        model.delete_adapter("ref")
    # TRL rounds the weights of quantized models to bfloat16, in which small updates are lost
    for name, value in (trained | (reference if continues_adapter else {})).items():
        model.get_parameter(name).data = value
    # without a selection, PEFT would also save the reference with each checkpoint
    save: Any = functools.partial(type(model).save_pretrained, model)
    saved_alone: Any = functools.partial(save, selected_adapters=["default"])
    model.save_pretrained = saved_alone  # type: ignore[method-assign]
    return trainer


def _weights(model: PeftModel, part: str) -> dict[str, Tensor]:
    """Copies of the weights of an adapter, in float32."""
    return {
        name: value.detach().clone().float()
        for name, value in model.named_parameters()
        if part in name
    }


def _trainer_class(task: Literal["dpo", "kto"], trainer_class: Any) -> Any:
    """A trainer of TRL with steps that do not depend on how they are split into batches.

    TRL takes the mean of the means of batches, and estimates the KL term of KTO from one batch.
    Replaces TRL's own rendering (`_prepare_dataset`) too.
    """
    import torch
    from trl.trainer.utils import use_adapter

    class TokenizedRowsTrainer(EachRowOnce, trainer_class):
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return self.order or super()._get_train_sampler(dataset)

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            pass  # the app writes its own

        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            batches, num_items = super().get_batch_samples(*args, **kwargs)
            self._own_rows = self.own_rows(len(batches))
            self._counts = iter(self._own_rows)
            if task == "kto" and batches:
                self._kl_of_step = self._estimate_kl(batches)
            return batches, num_items

        def _estimate_kl(self, batches: list[Any]) -> Tensor:
            """The KL term of KTO from all mismatched pairs of a step, (1,)."""
            model, parts = self.model_wrapped, []
            unwrapped = self.accelerator.unwrap_model(model)
            reference = "ref" if "ref" in unwrapped.peft_config else None
            model.train()
            with torch.no_grad(), self.compute_loss_context_manager():
                for batch, count in zip(batches, self._own_rows, strict=True):
                    inputs = self._prepare_inputs(batch)
                    own = super()._compute_kl_logps(model, inputs)
                    with use_adapter(unwrapped, reference):
                        parts.append((own - super()._compute_kl_logps(model, inputs))[:count])
            total = self.accelerator.gather(torch.cat(parts).sum().reshape(1)).sum()
            return (total / self.rows_of_step()).reshape(1)

        def _compute_kl_logps(self, model: Any, batch: Any) -> Any:
            # TRL asks for those of the model, then for those of the reference, and subtracts
            if not self.model.training:
                return super()._compute_kl_logps(model, batch)
            return next(self._kl_parts)

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if not self.model.training:
                return super().compute_loss(model, inputs, *args, **kwargs)
            if task == "kto":
                self._kl_parts = iter((self._kl_of_step, torch.zeros_like(self._kl_of_step)))
            uneven = self.repeats_rows()
            with _without_gathering(self.accelerator) if uneven else contextlib.nullcontext():
                loss = super().compute_loss(model, inputs, *args, **kwargs)
            # the gradients of several processes are averaged
            share = next(self._counts) * self.args.world_size / self.rows_of_step()
            return loss * share * self.current_gradient_accumulation_steps

    return TokenizedRowsTrainer


@contextlib.contextmanager
def _without_gathering(accelerator: Any) -> Iterator[None]:
    """Let TRL measure each process alone: their batches may differ in size, and it would wait."""
    own = {"gather": lambda value: value, "gather_for_metrics": lambda value: value}
    vars(accelerator).update(own)
    try:
        yield
    finally:
        for name in own:
            del vars(accelerator)[name]


def adds_router_loss(trainer: Trainer) -> bool:
    """Return True if a trainer of TRL adds a loss that balances a model's experts.

    Only TRL's own output layer returns it. Reads `aux_loss_enabled`.
    """
    return trainer.aux_loss_enabled  # type: ignore[attr-defined]
