"""How a base is held: quantized by bitsandbytes as the recipe says, or as it comes (GPTQ, AWQ, bitsandbytes), which cannot be changed.

Knows what is asked of the libraries; loads nothing itself.
"""

import importlib.util
from typing import Any

from peft_space.errors import UserError
from peft_space.models.architecture import ModelLayers
from peft_space.models.resolve import BaseModelRef
from peft_space.recipe import Recipe


def force_float32_and_disable_repacking(model: Any, dtype: Any) -> None:
    """Let all that is not quantized be float32 where that is the dtype, and 4-bit layers unpack to the dtype, compute in it, and not repack themselves.

    A model that was saved in 4 bits brings dtypes of its own, mostly bfloat16, whatever is asked for. Repacking is what bitsandbytes 0.50 does
    on CPUs with AVX512-BF16, for good, the first time a layer is used in eval mode: the block scales are rounded to bfloat16 (logits of the
    built-in model move by 0.1), and as its kernel has no gradient, every training step after the first evaluation would be wrong.
    """
    import bitsandbytes
    import torch

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
            module.compute_dtype = module.weight.quant_state.dtype = dtype
    if dtype == torch.float32:
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.float()


_GPTQ_PACKAGES = ("gptqmodel", "optimum")
"""For GPTQ and AWQ. Where gptqmodel is installed without optimum, PEFT makes no adapter at all, on no base."""
GPTQ_EXTRA = "pip install --no-deps -r requirements-gptq.txt"
"""How they are installed. Not by their names: gptqmodel 7 asks for another torch and pillow than this app has, and needs neither."""


def _comes_quantized(config: Any) -> dict[str, Any] | None:
    """What a model's config says of how its weights were quantized by whoever published it."""
    comes = getattr(config, "quantization_config", None)
    return comes if comes is None or isinstance(comes, dict) else comes.to_dict()


def quantization_of(recipe: Recipe, config: Any) -> str:
    """How the base is held: as the recipe says, or as the model comes (`gptq`, `awq`), which cannot be changed. Raises UserError for other kinds."""
    comes = _comes_quantized(config)
    if comes is None:
        return recipe.quantization
    method = str(comes.get("quant_method")).lower().rpartition(".")[2]  # of an enumeration
    if method in ("gptq", "awq"):
        if missing := [
            package for package in _GPTQ_PACKAGES if importlib.util.find_spec(package) is None
        ]:
            raise UserError(
                "todo",
                f"The base model comes quantized as {method.upper()}, which needs what is not installed here: {', '.join(missing)}. "
                f"Install it with `{GPTQ_EXTRA}`, or choose the model in full precision and quantization nf4.",
            )
        if recipe.method == "dora":  # PEFT's layers for both refuse it
            raise UserError(
                "todo",
                f"DoRA needs the base's weights, and this base comes quantized as {method.upper()}. Choose lora as the method.",
            )
        return method
    if method == "bitsandbytes":
        return "bitsandbytes"
    raise UserError(
        "todo",
        f"The base model comes quantized as {method}, which cannot be trained here. Choose the model in full precision.",
    )


def quantization_config(recipe: Recipe, base: BaseModelRef, dtype: str, layers: ModelLayers) -> Any:
    """What bitsandbytes is to do with the base, how a GPTQ or AWQ base computes, or None.

    NF4 with double quantization: 4.127 bits a parameter (arXiv 2305.14314).
    """
    wanted = quantization_of(recipe, base.config)
    if wanted in ("gptq", "awq"):
        from transformers.quantizers.auto import AutoQuantizationConfig

        # left to itself gptqmodel takes the kernel that answers fastest, which on some CPUs has no gradient
        return AutoQuantizationConfig.from_dict(
            {**_comes_quantized(base.config), "backend": "auto_trainable"}
        )
    if wanted not in ("nf4", "fp4", "int8"):
        return None
    return bitsandbytes_config(recipe, dtype, layers)


def bitsandbytes_config(recipe: Recipe, dtype: str, layers: ModelLayers) -> Any:
    """What bitsandbytes is to do with a base that comes in full precision."""
    import torch
    from transformers import BitsAndBytesConfig

    untouched = [*layers.new_modules, *([layers.head] if layers.head else [])]
    if recipe.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=untouched)
    return BitsAndBytesConfig(
        llm_int8_skip_modules=untouched,  # of 4 bits too, in spite of its name
        load_in_4bit=True,
        bnb_4bit_quant_type=recipe.quantization,
        bnb_4bit_use_double_quant=recipe.double_quantization,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
