"""What a base answers before anything is put on it, kept so that later it can be held to be the same base, to the bit."""

from dataclasses import dataclass
from typing import Any

_TEXT = "The quick brown fox was in the kitchen at 7:45, and said: I cannot find my order of 3 blue lamps. Where is it?"
_MOST_TOKENS = 32


@dataclass(frozen=True)
class ReferenceLogits:
    """Some tokens and the logits that a model gives for them."""

    inputs: dict[str, Any]
    logits: Any

    @classmethod
    def of(cls, model: Any, tokenizer: Any) -> "ReferenceLogits":
        """Ask `model`, which is to be in eval mode."""
        import torch

        ids = torch.tensor(
            [tokenizer(_TEXT, truncation=True, max_length=_MOST_TOKENS)["input_ids"]],
            device=model.device,
        )
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if model.config.is_encoder_decoder and model.get_output_embeddings() is not None:
            inputs["decoder_input_ids"] = ids
        return cls(inputs, _logits(model, inputs))

    @property
    def num_tokens(self) -> int:
        """How many tokens it was asked about."""
        return self.inputs["input_ids"].shape[1]

    def difference(self, model: Any, **given: Any) -> float:
        """The largest difference of a logit from the witness's, in nats; 0.0 only where all are equal to the bit."""
        import torch

        found = _logits(model, self.inputs | given)
        if torch.equal(found, self.logits):
            return 0.0
        return float((found.float() - self.logits.float()).abs().nan_to_num(float("inf")).max())


def _logits(model: Any, inputs: dict[str, Any]) -> Any:
    import torch

    with torch.inference_mode():
        return model(**inputs).logits
