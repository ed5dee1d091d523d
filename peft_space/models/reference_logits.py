"""Records the base model's logits before an adapter is added, to detect any later change."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TEXT = (
    "The quick brown fox was in the kitchen at 7:45, and said: "
    "I cannot find my order of 3 blue lamps. Where is it?"
)
_MAX_TOKENS = 32


@dataclass(frozen=True)
class ReferenceLogits:
    """Some tokens, (1, T), and the logits that a model gives for them."""

    inputs: "dict[str, torch.Tensor]"
    logits: "torch.Tensor"

    @classmethod
    def record(
        cls, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
    ) -> "ReferenceLogits":
        """Record the logits of `model`, which must be in eval mode."""
        import torch

        ids = tokenizer(_TEXT, truncation=True, max_length=_MAX_TOKENS)["input_ids"]
        input_ids = torch.tensor([ids], device=model.device)
        inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        if model.config.is_encoder_decoder and model.get_output_embeddings() is not None:
            inputs["decoder_input_ids"] = input_ids
        return cls(inputs, _logits(model, inputs))

    @property
    def num_tokens(self) -> int:
        """The number of tokens that the logits belong to."""
        return self.inputs["input_ids"].shape[1]

    def max_abs_diff(self, model: "PreTrainedModel | PeftModel", **options: Any) -> float:
        """The largest difference of a logit of `model` from the recorded one, in nats.

        Args:
            model: the model to compare.
            options: further arguments for it, such as `adapter_names`.

        Returns:
            0.0 only if all logits are bitwise equal; infinity if one is not a number.
        """
        import torch

        logits = _logits(model, {**self.inputs, **options})
        if torch.equal(logits, self.logits):
            return 0.0
        return float((logits.float() - self.logits.float()).abs().nan_to_num(float("inf")).max())


def _logits(model: Any, inputs: dict[str, Any]) -> "torch.Tensor":
    import torch

    with torch.inference_mode():
        return model(**inputs).logits
