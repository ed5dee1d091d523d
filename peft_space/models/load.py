"""Loads a base model's weights, quantizes them, and puts an adapter on it: a new one to train, or a trained one to use."""

import json
import os
from dataclasses import dataclass
from typing import Any

from peft_space import hardware
from peft_space.errors import UserError
from peft_space.models.base import Base, find_base, load_tokenizer, pin
from peft_space.models.families import LinearLayers, linear_layers, target_modules
from peft_space.recipe import Recipe
from peft_space.run import Run


def load_base_model(base: Base, recipe: Recipe, dtype: str) -> Any:
    """The base model, quantized as the recipe says, on this machine's device.

    Args:
        dtype: "float32", "bfloat16" or "float16": of what is not quantized, and of what quantized layers compute in.

    Raises UserError where the weights are missing or are not safetensors.
    """
    import torch
    from transformers import AutoModelForCausalLM

    kwargs: dict[str, Any] = {"dtype": getattr(torch, dtype), "quantization_config": quantization_config(recipe, dtype)}
    if hardware.device() == "cuda":
        kwargs["device_map"] = {"": "cuda"}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base.location, revision=base.revision if base.on_hub else None, trust_remote_code=False, use_safetensors=True, **kwargs
        )
    except OSError as error:
        first = str(error).strip().split("\n", 1)[0]
        raise UserError(f"The weights of {base.name} cannot be loaded ({first}). Choose a model that is stored as safetensors.") from error
    _keep_exact(model)
    return model


def _keep_exact(model: Any) -> None:
    """Forbid 4-bit layers to repack themselves on CPUs with AVX512-BF16.

    bitsandbytes 0.50 does so, for good, the first time they are used in eval mode: the block scales are rounded to bfloat16 (logits of the
    built-in model move by 0.1), and as its kernel has no gradient, every training step after the first evaluation would be wrong.
    """
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def quantization_config(recipe: Recipe, dtype: str) -> Any:
    """What bitsandbytes is to do with the base, or None. NF4 with double quantization: 4.127 bits a parameter (arXiv 2305.14314)."""
    if recipe.quantization == "none":
        return None
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=recipe.quantization,
        bnb_4bit_use_double_quant=recipe.double_quantization,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


def new_adapter(model: Any, recipe: Recipe, base: Base) -> Any:
    """Freeze and prepare `model`, and put a fresh adapter on it, whose config names the base and its revision.

    Raises UserError where a target module is not in the model.
    """
    from peft import get_peft_model, prepare_model_for_kbit_training

    if recipe.quantization != "none":
        # gradient checkpointing is the trainer's to switch on
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    adapted = get_peft_model(model, adapter_config(recipe, target_modules(recipe, linear_layers(base.config))))
    # get_peft_model writes the name of the folder that the weights came from, which means nothing elsewhere
    adapted.peft_config["default"].base_model_name_or_path = base.name
    adapted.peft_config["default"].revision = base.revision
    return adapted


def adapter_config(recipe: Recipe, targets: list[str]) -> Any:
    """The recipe in PEFT's words."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.lora_rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=targets,
        modules_to_save=recipe.modules_to_save,
    )


@dataclass(frozen=True)
class Adapted:
    """A base in memory once, with a trained adapter that can be switched off, and its tokenizer."""

    model: Any
    tokenizer: Any


def load_adapted(run: Run) -> Adapted:
    """The base of `run` as it was trained on, with the run's adapter on it, ready to answer."""
    from peft import PeftModel

    trained_on = json.loads((run.adapter / "adapter_config.json").read_text())["revision"]
    base = pin(find_base(run.recipe.base_model, trained_on), trained_on)
    model = load_base_model(base, run.recipe, inference_dtype())
    if run.recipe.quantization != "none" and _has_room_for(4 * model.num_parameters()):
        model = model.dequantize()  # the same numbers to the bit, without unpacking them again for every token
    return Adapted(PeftModel.from_pretrained(model, run.adapter).eval(), load_tokenizer(base, run.recipe.chat_template))


def _has_room_for(num_bytes: int) -> bool:
    """Whether a CPU's memory takes this much more and keeps half of what is free."""
    if hardware.device() != "cpu":
        return False
    return num_bytes < os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2


def inference_dtype() -> str:
    """The dtype that models answer in: exact on a CPU, the GPU's native 16 bits elsewhere."""
    import torch

    if hardware.device() == "cpu":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def expected_parameter_counts(recipe: Recipe, layers: LinearLayers) -> tuple[int, int]:
    """(trainable, all) parameters of the recipe's adapter on this model, counted by PEFT on the meta device. Wraps `layers.model`."""
    from peft import get_peft_model

    return parameter_counts(get_peft_model(layers.model, adapter_config(recipe, target_modules(recipe, layers))))


def parameter_counts(model: Any) -> tuple[int, int]:
    """(trainable, all) parameters as PEFT counts them: packed 4-bit weights are counted one by one."""
    return model.get_nb_trainable_parameters()
