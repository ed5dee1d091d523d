"""Writes models as GGUF files for llama.cpp and Ollama."""

from typing import Literal, get_args

Numbers = Literal["f32", "f16", "q8_0"]
"""How weights are stored: in 32 bits, 16 bits, or 8 bits with one factor per 32 weights."""
NUMBERS: tuple[Numbers, ...] = get_args(Numbers)
