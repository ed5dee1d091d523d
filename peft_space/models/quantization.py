"""Decides how a base model is quantized: as the recipe says, or as its authors published it."""

import importlib.util
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from peft_space.compat.bitsandbytes import keep_4bit_layer_exact
from peft_space.errors import UserError
from peft_space.models.architecture import ModelLayers
from peft_space.models.resolve import BaseModelRef
from peft_space.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

_GPTQ_PACKAGES = ("gptqmodel", "optimum")
"""For GPTQ and AWQ. With gptqmodel but without optimum, PEFT cannot add an adapter to any base."""
GPTQ_EXTRA = "pip install --no-deps -r requirements-gptq.txt"
"""Installs them. Not by name: gptqmodel 7 requires other versions of torch and pillow than this app
has, but needs neither."""


def force_float32_and_disable_repacking(model: "PreTrainedModel", dtype: "torch.dtype") -> None:
    """Make 4-bit layers compute in `dtype`, and all other weights float32 if that is the dtype.

    See `keep_4bit_layer_exact` for the reason.
    """
    import bitsandbytes
    import torch

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            keep_4bit_layer_exact(module, dtype)
    if dtype == torch.float32:
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.float()


def replace_missing_quantized_layers(model: "PreTrainedModel", missing: Iterable[str]) -> None:
    """Make a quantized layer whose weight the base's files lack a plain linear layer.

    transformers initializes such a weight, of a pooler for instance, and leaves it unquantized
    inside the quantized layer, which can neither compute nor be trained.

    Args:
        model: a model that was just loaded.
        missing: names of the parameters that the files lack.
    """
    import bitsandbytes
    import torch

    quantized = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    for path in dict.fromkeys(name.rpartition(".")[0] for name in missing):
        layer = model.get_submodule(path)
        if isinstance(layer, quantized) and type(layer.weight) is torch.nn.Parameter:
            plain = torch.nn.Linear(layer.in_features, layer.out_features, device="meta")
            plain.weight, plain.bias = layer.weight, layer.bias
            model.set_submodule(path, plain)


def _published_quantization(config: "PreTrainedConfig") -> dict[str, Any] | None:
    """The `quantization_config` that the authors of a model published with it."""
    published = getattr(config, "quantization_config", None)
    return published if published is None or isinstance(published, dict) else published.to_dict()


def quantization_of(recipe: Recipe, config: "PreTrainedConfig") -> str:
    """The quantization of the base while it trains.

    Returns:
        The recipe's choice, or `gptq`, `awq` or `bitsandbytes` if the model is published so.

    Raises:
        UserError: the published quantization cannot be trained, or not with this recipe.
    """
    published = _published_quantization(config)
    if published is None:
        return recipe.quantization
    method = str(published.get("quant_method")).lower().rpartition(".")[2]  # of an enumeration
    if method in ("gptq", "awq"):
        _check_gptq(recipe, method.upper())
        return method
    if method == "bitsandbytes":
        return "bitsandbytes"
    raise UserError(
        "models.quantization_unsupported",
        f"The base model is published quantized as {method}, which cannot be trained here. "
        "Choose the model in full precision.",
    )


def missing_gptq_packages() -> list[str]:
    """Return the packages for GPTQ and AWQ that are not installed."""
    return [name for name in _GPTQ_PACKAGES if importlib.util.find_spec(name) is None]


def _check_gptq(recipe: Recipe, method: str) -> None:
    if missing := missing_gptq_packages():
        raise UserError(
            "models.missing_packages",
            f"The base model is published quantized as {method}, which requires packages that are "
            f"not installed: {', '.join(missing)}. Install them with `{GPTQ_EXTRA}`, "
            "or choose the model in full precision and quantization nf4.",
        )
    if recipe.method == "dora":  # PEFT's layers for both reject it
        raise UserError(
            "models.dora_impossible",
            f"DoRA needs the base's weights, and this base is published quantized as {method}. "
            "Choose lora as the method.",
        )


def quantization_config(recipe: Recipe, base: BaseModelRef, dtype: str, layers: ModelLayers) -> Any:
    """The `quantization_config` to load the base with; None to load it as it is published."""
    quantization = quantization_of(recipe, base.config)
    if quantization in ("gptq", "awq"):
        from transformers.quantizers.auto import AutoQuantizationConfig

        # by default gptqmodel takes the fastest kernel, which on some CPUs has no gradient
        return AutoQuantizationConfig.from_dict(
            {**(_published_quantization(base.config) or {}), "backend": "auto_trainable"}
        )
    if quantization not in ("nf4", "fp4", "int8"):
        return None
    return bitsandbytes_config(recipe, dtype, layers)


def bitsandbytes_config(recipe: Recipe, dtype: str, layers: ModelLayers) -> "BitsAndBytesConfig":
    """The bitsandbytes config for a base in full precision. It leaves heads unquantized.

    NF4 with double quantization takes 4.127 bits a parameter (QLoRA, arXiv 2305.14314).
    """
    import torch
    from transformers import BitsAndBytesConfig

    unquantized = [*layers.new_modules, *([layers.head] if layers.head else [])]
    if layers.task == "image-text-to-text":
        unquantized += layers.left_out  # pictures pass through them, and they are small
    if recipe.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=unquantized)
    return BitsAndBytesConfig(
        llm_int8_skip_modules=unquantized,  # also used for 4 bits, despite its name
        load_in_4bit=True,
        bnb_4bit_quant_type=recipe.quantization,
        bnb_4bit_use_double_quant=recipe.double_quantization,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
