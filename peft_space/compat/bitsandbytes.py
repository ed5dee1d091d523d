"""Uses of the internals of bitsandbytes."""

from typing import Any


def keep_4bit_layer_exact(layer: Any, dtype: Any) -> None:
    """Make a `Linear4bit` unpack to `dtype`, compute in it, and never repack its weight.

    A model saved in 4 bits brings its own dtypes, mostly bfloat16. On CPUs with AVX512-BF16,
    bitsandbytes 0.50 repacks a layer permanently at its first use in eval mode. That rounds the
    block scales to bfloat16, which moves the logits of the built-in model by 0.1. The kernel has no
    gradient, so every training step after the first evaluation would be wrong.
    """
    layer.support_avx512bf16_for_cpu = False
    layer.compute_dtype = layer.weight.quant_state.dtype = dtype
