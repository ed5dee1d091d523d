"""Loads a base model's weights, quantizes them, and puts an adapter on it: a new one to train, or a trained one to use."""

import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft_space import hardware
from peft_space.errors import UserError, as_user_error
from peft_space.models.adapter_check import check_adapter_fits_base, revision_of
from peft_space.models.architecture import (
    CLASSIFYING,
    ModelLayers,
    auto_class,
    fully_trained_modules,
    linear_layers,
    modules_to_save,
    target_modules,
)
from peft_space.models.config_safety import sanitize_generation_config
from peft_space.models.quantization import (
    force_float32_and_disable_repacking,
    quantization_config,
    quantization_of,
)
from peft_space.models.reference_logits import ReferenceLogits
from peft_space.models.resolve import (
    BaseModelRef,
    find_base,
    first_line,
    hub_error_reason,
    load_tokenizer,
    pin_revision,
)
from peft_space.models.weight_files import check_claimed_size, check_weights
from peft_space.recipe import CAUSAL_LM, Recipe, Task, TaskSpec
from peft_space.runs.run import Run

logger = logging.getLogger(__name__)


def task_spec_for(run: Run) -> TaskSpec:
    """The goal that was kept in a run when it was made; the first versions knew answers alone."""
    path = run.path("data", "goal.json")
    if not path.is_file():
        return CAUSAL_LM
    values = json.loads(path.read_text(encoding="utf-8"))
    return TaskSpec(values["task"], tuple(values["labels"]))


def load_base_model(
    base: BaseModelRef,
    recipe: Recipe,
    dtype: str,
    goal: TaskSpec = CAUSAL_LM,
    device: hardware.Device | None = None,
) -> Any:
    """The base model for a goal, quantized as the recipe says. A new head is the same for the same seed.

    Args:
        dtype: "float32", "bfloat16" or "float16": of what is not quantized, and of what quantized layers compute in.
        device: other than this machine's own.

    Raises UserError where the weights are missing or are not safetensors.
    """
    import torch
    from transformers import set_seed

    check_weights(base)
    layers = linear_layers(base.config, goal.task)
    check_claimed_size(base, layers.model.num_parameters())
    kwargs: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if (
        quantized := quantization_config(recipe, base, dtype, layers)
    ) is not None:  # None given would take the place of the model's own
        kwargs["quantization_config"] = quantized
    if goal.labels:
        names = dict(enumerate(goal.labels))
        kwargs |= {
            "num_labels": len(names),
            "id2label": names,
            "label2id": {name: number for number, name in names.items()},
        }
        kwargs["ignore_mismatched_sizes"] = True  # a head for other labels gives way to a new one
    if (device or hardware.device()) == "cuda":
        kwargs["device_map"] = {"": torch.cuda.current_device()}
    set_seed(recipe.seed)
    try:
        model, found = auto_class(goal.task).from_pretrained(
            base.location,
            revision=base.revision if base.on_hub else None,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **kwargs,
        )
    except Exception as error:
        if as_user_error(error):
            raise
        logger.info("the weights of %s cannot be loaded", base.name, exc_info=error)
        reason = (
            hub_error_reason(error, base.name, base.revision)
            or f"{first_line(error)} Download the model again, or choose one that is stored as safetensors"
        )
        raise UserError(
            "todo", f"The weights of {base.name} cannot be loaded: {reason}."
        ) from error
    sanitize_generation_config(model)
    force_float32_and_disable_repacking(model, getattr(torch, dtype))
    model.untrained_modules = _untrained(base, goal, layers, found["missing_keys"])
    return model


def _untrained(
    base: BaseModelRef, goal: TaskSpec, layers: ModelLayers, missing: Iterable[str]
) -> list[str]:
    """Modules besides the head whose weights the base does not have, such as the pooler of a BERT that was published without.

    They are drawn at random, so they have to be kept with the adapter. Raises UserError where a model that writes text lacks any.
    """
    missing = sorted(missing)
    if missing and goal.task not in CLASSIFYING:
        raise UserError(
            "todo",
            f"The weights of {base.name} are not whole: {missing[0]} is missing. Choose another base model, or download it again.",
        )
    return list(
        dict.fromkeys(
            key.rpartition(".")[0]
            for key in missing
            if key.partition(".")[0] not in layers.new_modules
        )
    )


def new_adapter(
    model: Any,
    recipe: Recipe,
    base: BaseModelRef,
    goal: TaskSpec = CAUSAL_LM,
    put: Callable[[Any], Any] | None = None,
) -> Any:
    """Freeze and prepare `model`, and put a fresh adapter on it, whose config names the base and its revision.

    Args:
        put: puts the adapter on the prepared model, where it is not to start at nothing.

    Raises UserError where a target module is not in the model.
    """
    from peft import get_peft_model, prepare_model_for_kbit_training

    if quantization_of(recipe, base.config) != "none":
        # gradient checkpointing is the trainer's to switch on
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    layers = linear_layers(base.config, goal.task)
    config = adapter_config(recipe, layers, goal.task, model.untrained_modules)
    saved = list(config.modules_to_save or []) or None  # PEFT adds to its own
    adapted = put(model) if put else get_peft_model(model, config)
    _refuse_zero_rows(adapted)
    for parameter in adapted.parameters():
        if (
            parameter.requires_grad
        ):  # small steps are lost in 16 bits; PEFT sees to its own matrices, not to a head
            parameter.data = parameter.data.float()
    # get_peft_model writes the name of the folder that the weights came from, which means nothing elsewhere
    adapted.peft_config["default"].base_model_name_or_path = base.name
    adapted.peft_config["default"].revision = base.revision
    adapted.peft_config["default"].modules_to_save = saved
    return adapted


def _refuse_zero_rows(adapted: Any) -> None:
    """DoRA divides by the length of each row, so that PEFT answers with no number at all where one is of zeros."""
    for name, magnitude in adapted.named_parameters():
        if "lora_magnitude_vector" in name and bool((magnitude == 0).any()):
            layer = name.partition(".lora_magnitude_vector")[0].removeprefix("base_model.model.")
            raise UserError(
                "todo",
                f"DoRA divides each row of a layer by its length, and {layer} has {int((magnitude == 0).sum())} rows of zeros. "
                "Choose lora as the method, or leave such layers out of the target modules.",
            )


_PEFT_TASKS: dict[Task, str] = {
    "seq2seq-lm": "SEQ_2_SEQ_LM",
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
}


def adapter_config(
    recipe: Recipe, layers: ModelLayers, task: Task = "causal-lm", untrained: Sequence[str] = ()
) -> Any:
    """The recipe in PEFT's words. Raises UserError where it names what is not in the model.

    Args:
        untrained: modules that are drawn at random, so that they are trained in full as a head is.
    """
    from peft import LoraConfig

    saved = [*modules_to_save(recipe, layers), *untrained]

    return LoraConfig(
        task_type=_PEFT_TASKS.get(task, "CAUSAL_LM"),
        r=recipe.lora_rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.lora_dropout,
        bias=recipe.lora_bias,
        use_rslora=recipe.method == "rslora",
        use_dora=recipe.method == "dora",
        target_modules=target_modules(recipe, layers),
        exclude_modules=fully_trained_modules(layers, saved) or None,
        layers_to_transform=recipe.layers_to_transform,
        modules_to_save=saved or None,
    )


@dataclass(frozen=True)
class AdaptedModel:
    """A base in memory once, with a trained adapter that can be switched off, and its tokenizer."""

    model: Any
    tokenizer: Any
    goal: TaskSpec = CAUSAL_LM
    witness: ReferenceLogits | None = None
    """What the base answered before the adapter was put on it."""
    biases: list[tuple[Any, Any, Any]] = field(default_factory=list)
    """(parameter, the base's values, the adapter's) where the adapter trained biases: PEFT writes them over the base's, and leaves them there."""


def base_of(run: Run, adapter: Path | None = None) -> tuple[BaseModelRef, TaskSpec]:
    """The base that a run was trained on, and what for. Raises UserError where its adapter, or another `adapter`, does not fit it."""
    trained_on = revision_of(run.adapter, run.recipe.base_model)
    base = pin_revision(find_base(run.recipe.base_model, trained_on), trained_on)
    goal = task_spec_for(run)
    check_adapter_fits_base(adapter or run.adapter, base, goal.task, goal.labels)
    return base, goal


def load_adapted(run: Run, adapter: Path | None = None) -> AdaptedModel:
    """The base of `run` as it was trained on, with the run's adapter on it, or another `adapter` of that base, ready to answer.

    Raises UserError where base and adapter do not fit.
    """
    from peft import PeftModel

    base, goal = base_of(run, adapter)
    folder = adapter or run.adapter
    tokenizer = load_tokenizer(base, run.recipe.chat_template, goal.task)
    model = load_base_model(base, run.recipe, inference_dtype(), goal).eval()
    if getattr(model, "is_loaded_in_4bit", False) and fits_in_memory(4 * model.num_parameters()):
        model = (
            model.dequantize()
        )  # the same numbers to the bit, without unpacking them again for every token
    witness = ReferenceLogits.of(model, tokenizer)
    with_biases = (
        json.loads((folder / "adapter_config.json").read_text()).get("bias", "none") != "none"
    )
    own = [
        (value, value.detach().clone())
        for name, value in model.named_parameters()
        if with_biases and name.endswith("bias")
    ]
    adapted = PeftModel.from_pretrained(model, folder).eval()
    return AdaptedModel(
        adapted,
        tokenizer,
        goal,
        witness,
        [(value, before, value.detach().clone()) for value, before in own],
    )


def fits_in_memory(num_bytes: int) -> bool:
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


def expected_parameter_counts(
    recipe: Recipe, layers: ModelLayers, task: Task = "causal-lm"
) -> tuple[int, int]:
    """(trainable, all) parameters of the recipe's adapter on this model, counted by PEFT on the meta device. Wraps `layers.model`."""
    from peft import get_peft_model

    return parameter_counts(get_peft_model(layers.model, adapter_config(recipe, layers, task)))


def parameter_counts(model: Any) -> tuple[int, int]:
    """(trainable, all) parameters as PEFT counts them, packed weights one by one; also those of GPTQ and AWQ, which are no parameters to PEFT."""
    trainable, total = model.get_nb_trainable_parameters()
    return trainable, total + sum(_weights_in_buffers(module) for module in model.modules())


def _weights_in_buffers(module: Any) -> int:
    """How many weights a linear layer holds in buffers instead of parameters. The adapter's layer around it holds none itself."""
    own = (
        any(True for _ in module.parameters(recurse=False)),
        any(True for _ in module.buffers(recurse=False)),
    )
    return (
        module.in_features * module.out_features
        if own == (False, True) and hasattr(module, "in_features")
        else 0
    )
