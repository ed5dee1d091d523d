"""Writes models as GGUF files for llama.cpp and Ollama."""

from typing import Literal, get_args

Numbers = Literal["f32", "f16", "q8_0", "q5_k_m", "q4_k_m"]
"""How weights are stored: in 32 bits, 16 bits, 8 bits with one factor per 32 weights, or mostly
in 5 or 4 bits, which only llama.cpp writes."""
NUMBERS: tuple[Numbers, ...] = get_args(Numbers)
