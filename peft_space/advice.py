"""Recommends what a recipe leaves open, each value with its reason and source. Arithmetic only: loads nothing."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Advice:
    """One recommended value and the sentence that argues for it."""

    value: float
    why: str


def learning_rate(hidden_size: int) -> Advice:
    """For LoRA on a model of this width: 5e-4 x (2000 / hidden size) ^ 0.781, two digits.

    Source: the fit for Llama models published with "LoRA Without Regret" (Thinking Machines, 2025): ten times the rate of full
    fine-tuning, independent of the rank.
    """
    exact = 5e-4 * (2000 / hidden_size) ** 0.781
    digits = 1 - math.floor(math.log10(exact))
    return Advice(
        round(exact, digits), f"which suits LoRA on a model of width {hidden_size}, by the fit published with LoRA Without Regret"
    )
