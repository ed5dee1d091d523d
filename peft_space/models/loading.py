"""Loads a base model's weights and puts an adapter on it: a new one to train, or a trained one."""

import copy
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_space import hardware
from peft_space.compat.transformers import initialize
from peft_space.data.dataset import load_run_data
from peft_space.data.tokenization.chat_template import text_template
from peft_space.data.tokenization.loss_mask import texts_begin_with_bos
from peft_space.errors import UserError, as_user_error
from peft_space.models.architecture import (
    CLASSIFYING,
    ModelLayers,
    auto_class,
    forward_options,
    fully_trained_modules,
    input_embeddings,
    linear_layers,
    modules_to_save,
    num_places,
    peft_targets,
)
from peft_space.models.config_safety import sanitize_generation_config
from peft_space.models.config_values import ConfigName, config_number
from peft_space.models.label_order import base_labels, keeps_head, output_layer
from peft_space.models.quantization import (
    force_float32_and_disable_repacking,
    quantization_config,
    quantization_of,
    replace_missing_quantized_layers,
)
from peft_space.models.repo_files import (
    Fault,
    check_claimed_size,
    check_weights,
    read_header,
    weight_file_fault,
)
from peft_space.models.resolve import (
    BaseModelRef,
    find_base,
    first_line,
    hub_fault,
    load_tokenizer,
    model_name,
    pin_revision,
)
from peft_space.models.special_tokens import AnswerTokens, answer_tokens, set_special_tokens
from peft_space.models.vocabulary import (
    SAVED_EMBEDDINGS,
    find_base_of_run,
    initialize_new_tokens,
    token_rows,
)
from peft_space.recipe import CAUSAL_LM, Recipe, Task, TaskSpec
from peft_space.runs.plan import read_plan
from peft_space.runs.run import Run

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import (
        PreTrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        PreTrainedTokenizerFast,
    )

    from peft_space.models.label_scorer import LabelScorer

logger = logging.getLogger(__name__)

_PEFT_TASKS: dict[Task, str] = {
    "seq2seq-lm": "SEQ_2_SEQ_LM",
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
}


def task_spec_for(run: Run) -> TaskSpec:
    """The task and labels that a run was made for."""
    values = json.loads(run.path("data", "task.json").read_text(encoding="utf-8"))
    return TaskSpec(values["task"], tuple(values["labels"]))


def continues_texts(run: Run) -> bool:
    """True if the rows of a run are plain texts, without questions and answers."""
    return load_run_data(run).column_mapping.schema == "text"


def tokenizer_of(run: Run, base: BaseModelRef, task: Task) -> "PreTrainedTokenizerFast":
    """The tokenizer that a run is trained, asked and exported with."""
    return load_tokenizer(base, run.recipe, task, continues_texts(run))


# Base models


def load_base_model(
    base: BaseModelRef,
    recipe: Recipe,
    dtype: str,
    task_spec: TaskSpec = CAUSAL_LM,
    device: hardware.Device | None = None,
) -> Any:
    """Load the base model for a task, quantized as the recipe says.

    Args:
        recipe: decides the quantization, and with its seed a new head.
        dtype: "float32", "bfloat16" or "float16": of the weights that are not quantized, and of
            the computations of quantized layers.
        task_spec: decides the model class and the size of a new head.
        device: another device than this machine's default.

    Returns:
        A `PreTrainedModel`. Its attribute `untrained_modules` names the modules outside the head
        whose weights the base does not have, and `new_token_ids` has the recipe's new tokens.

    Raises:
        UserError: the weights are missing, damaged, or not safetensors.
    """
    import torch
    from transformers import set_seed

    check_weights(base)
    layers = linear_layers(base.config, task_spec.task)
    check_claimed_size(base, layers.model.num_parameters())
    kwargs: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if task_spec.labels:
        kwargs["ignore_mismatched_sizes"] = True  # a head of another size is replaced by a new one
    # an explicit None would replace the model's own config
    if (quantization := quantization_config(recipe, base, dtype, layers)) is not None:
        kwargs["quantization_config"] = quantization
    if (device or hardware.device()) == "cuda":
        kwargs["device_map"] = {"": torch.cuda.current_device()}
    set_seed(recipe.seed)
    try:
        model, info = auto_class(task_spec.task).from_pretrained(
            base.location,
            revision=base.revision if base.on_hub else None,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            config=_config_for(base, task_spec),
            **kwargs,
        )
    except Exception as error:
        if as_user_error(error):
            raise
        raise _loading_error(base, error) from error
    if base.num_embeddings is not None:
        model.resize_token_embeddings(base.num_embeddings, mean_resizing=False)
    model.new_token_ids = []
    if recipe.new_tokens:
        model.new_token_ids = initialize_new_tokens(model, base, recipe.new_tokens)
    sanitize_generation_config(model)
    if task_spec.labels and base_labels(base.config, task_spec.task):
        _replace_foreign_head(model, base, recipe, task_spec, layers)
    replace_missing_quantized_layers(model, info["missing_keys"])
    force_float32_and_disable_repacking(model, getattr(torch, dtype))
    model.untrained_modules = _untrained_modules(base, task_spec, layers, info["missing_keys"])
    return model


def _config_for(base: BaseModelRef, task_spec: TaskSpec) -> Any:
    """The config of the base, with the labels of a classifier."""
    config: Any = copy.deepcopy(base.config)
    if base.num_embeddings is not None:  # the file has the number before the change
        config = find_base(base.location, base.revision if base.on_hub else None).config
    if task_spec.labels:
        config.id2label = dict(enumerate(task_spec.labels))
        config.label2id = {name: number for number, name in config.id2label.items()}
        if config.problem_type:  # the base may have predicted numbers, or several labels a text
            config.problem_type = "single_label_classification"
    return config


def _replace_foreign_head(
    model: Any, base: BaseModelRef, recipe: Recipe, task_spec: TaskSpec, layers: ModelLayers
) -> None:
    """Draw the outputs of a classifier anew if those of the base are other labels."""
    layer = output_layer(layers.new_modules, layers.model)
    if layer and not keeps_head(task_spec.labels, recipe, base.config, task_spec.task):
        initialize(model, model.get_submodule(layer))


def _loading_error(base: BaseModelRef, error: Exception) -> UserError:
    logger.info("the weights of %s cannot be loaded", base.name, exc_info=error)
    remedy = "Download the model again, or choose one that is stored as safetensors"
    damaged = Fault("models.weights_damaged", f"{first_line(error)} {remedy}")
    fault = hub_fault(error, base.name, base.revision) or damaged
    return UserError(fault.code, f"The weights of {base.name} cannot be loaded: {fault.reason}.")


def _untrained_modules(
    base: BaseModelRef, task_spec: TaskSpec, layers: ModelLayers, missing_keys: Iterable[str]
) -> list[str]:
    """Modules outside the head whose weights the base lacks, such as the pooler of some BERTs.

    They are initialized randomly, so they have to be trained and saved with the adapter.
    """
    missing = sorted(missing_keys)
    if missing and task_spec.task not in CLASSIFYING:
        raise UserError(
            "models.weights_damaged",
            f"The weights of {base.name} are incomplete: {missing[0]} is missing. "
            "Choose another base model, or download it again.",
        )
    outside = [key for key in missing if key.partition(".")[0] not in layers.new_modules]
    return list(dict.fromkeys(key.rpartition(".")[0] for key in outside))


# New adapters


def new_adapter(
    model: Any,
    recipe: Recipe,
    base: BaseModelRef,
    task_spec: TaskSpec = CAUSAL_LM,
    put: "Callable[[PreTrainedModel], PeftModel] | None" = None,
    end_tokens: Sequence[int] = (),
) -> "PeftModel":
    """Freeze and prepare a base model, and put a new adapter on it.

    Args:
        model: what `load_base_model` returned.
        base: its name and revision are written into the adapter's config.
        task_spec: what the model was loaded for.
        put: puts an adapter on the prepared model that does not start at zero.
        end_tokens: tokens whose rows of the output layer are trained too.

    Raises:
        UserError: a target module is not in the model, or DoRA cannot be used on it.
    """
    from peft import get_peft_model, prepare_model_for_kbit_training

    if quantization_of(recipe, base.config) != "none":
        embeddings: Any = input_embeddings(model)
        held = model.dtype if embeddings is None else embeddings.weight.dtype
        # the trainer turns gradient checkpointing on
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        if hardware.device() == "cuda":
            hold_16_bits_again(model, held)
    layers = linear_layers(base.config, task_spec.task)
    config = adapter_config(recipe, layers, task_spec.task, model.untrained_modules)
    if end_tokens or model.new_token_ids:
        full = fully_trained_modules(layers, modules_to_save(recipe, layers))
        config.trainable_token_indices = token_rows(
            model, layers, model.new_token_ids, end_tokens, full
        )
    saved_modules = list(config.modules_to_save or []) or None  # PEFT adds to its own list
    adapted: Any = put(model) if put else get_peft_model(model, config)
    if model.new_token_ids:  # PEFT would save all embeddings, because their number has changed
        save = functools.partial(adapted.save_pretrained, save_embedding_layers=False)
        adapted.save_pretrained = save
    _check_dora_rows(adapted)
    # 16 bits lose small steps; PEFT converts its own matrices to float32, but not a head
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    # PEFT writes the folder of the weights, which means nothing on another machine
    written = adapted.peft_config["default"]
    written.base_model_name_or_path, written.revision = base.name, base.revision
    written.modules_to_save = saved_modules
    return adapted


def hold_16_bits_again(model: Any, dtype: "torch.dtype") -> None:
    """Undo most of PEFT's cast to float32 of what is not quantized.

    Embeddings and output layer go back to `dtype`: of Llama 3.1 8B they take 2.1 GB more in
    float32. Norms stay in float32, but give what they got, so that activations have 16 bits. On a
    CPU float32 is also the dtype of the computations.
    """
    for layer in (input_embeddings(model), model.get_output_embeddings()):
        if layer is not None:
            layer.weight.data = layer.weight.data.to(dtype)
    for module in model.modules():
        if "norm" in type(module).__name__.lower():
            module.register_forward_hook(_output_like_input)


def _output_like_input(module: Any, inputs: Any, output: Any) -> Any:
    is_tensor = inputs and hasattr(output, "dtype") and hasattr(inputs[0], "dtype")
    return output.to(inputs[0].dtype) if is_tensor else output


def _check_dora_rows(adapted: "PeftModel") -> None:
    """DoRA divides by the length of each row, so a row of zeros gives NaN."""
    for name, magnitude in adapted.named_parameters():
        if "lora_magnitude_vector" in name and bool((magnitude == 0).any()):
            layer = name.partition(".lora_magnitude_vector")[0].removeprefix("base_model.model.")
            raise UserError(
                "models.dora_impossible",
                f"DoRA divides each row of a layer by its length, but {layer} has "
                f"{int((magnitude == 0).sum())} rows of zeros. Choose lora as the method, "
                "or leave such layers out of the target modules.",
            )


def adapter_config(
    recipe: Recipe, layers: ModelLayers, task: Task = "causal-lm", untrained: Sequence[str] = ()
) -> "LoraConfig":
    """PEFT's config for the adapter of a recipe.

    Args:
        layers: of the base model.
        untrained: randomly initialized modules, which are trained in full like a head.

    Raises:
        UserError: the recipe names a module that is not in the model, or wants gradient
            checkpointing of a model that cannot do it.
    """
    from peft import LoraConfig

    check_checkpointing(recipe, layers)
    saved_modules = [*modules_to_save(recipe, layers), *untrained]
    targets, excluded = peft_targets(recipe, layers, untrained)
    experts = expert_adapter(recipe, layers)
    return LoraConfig(
        task_type=_PEFT_TASKS.get(task, "CAUSAL_LM"),
        r=recipe.lora_rank,
        lora_alpha=recipe.alpha,  # type: ignore[arg-type]  # PEFT takes any number
        lora_dropout=recipe.lora_dropout,
        bias=recipe.lora_bias,
        use_rslora=recipe.method == "rslora",
        use_dora=recipe.method == "dora",
        target_modules=targets,
        exclude_modules=excluded or None,
        layers_to_transform=recipe.layers_to_transform,
        modules_to_save=saved_modules or None,
        target_parameters=list(experts) or None,
        rank_pattern={name: rank for name, (rank, _) in experts.items()},
        alpha_pattern={name: alpha for name, (_, alpha) in experts.items()},
    )


def check_checkpointing(recipe: Recipe, layers: ModelLayers) -> None:
    """Check that the model can do gradient checkpointing if the recipe wants it.

    Raises:
        UserError: transformers has none for this architecture.
    """
    if recipe.gradient_checkpointing == "on" and not layers.can_checkpoint:
        raise UserError(
            "models.no_checkpointing",
            f"{type(layers.model).__name__} keeps all activations: transformers has no gradient "
            "checkpointing for it. Set gradient_checkpointing to off or automatic in the recipe.",
        )


def expert_adapter(recipe: Recipe, layers: ModelLayers) -> dict[str, tuple[int, float]]:
    """The rank and the alpha of the adapter of each tensor of experts; nothing without a wish.

    A token uses a few experts, which share the recipe's rank ("LoRA Without Regret", Thinking
    Machines, 2025). The scale stays that of the other layers.

    Raises:
        UserError: the model has no such tensors, or PEFT cannot adapt them with this recipe.
    """
    if not recipe.adapt_experts:
        return {}
    problem = ""
    if not layers.expert_tensors:
        problem = f"{type(layers.model).__name__} has no experts that are stored as one tensor"
    elif recipe.lora_dropout:
        problem = f"PEFT adapts experts only with lora_dropout 0, not {recipe.lora_dropout:g}"
    elif recipe.method not in ("lora", "rslora"):
        problem = f"PEFT adapts experts only by lora or rslora, not by {recipe.method}"
    elif recipe.layers_to_transform is not None:
        problem = "PEFT adapts the experts of all blocks, but layers_to_transform names some"
    if problem:
        raise UserError(
            "models.experts_impossible",
            f"{problem}. Change that in the recipe, or set adapt_experts to false.",
        )
    rank = max(1, recipe.lora_rank // max(1, config_number(layers.model.config, _PER_TOKEN)))
    power = 0.5 if recipe.method == "rslora" else 1
    alpha = recipe.alpha * (rank / recipe.lora_rank) ** power
    return dict.fromkeys(layers.expert_tensors, (rank, alpha))


_PER_TOKEN: ConfigName = "num_experts_per_tok"


def expected_parameter_counts(
    recipe: Recipe, layers: ModelLayers, task: Task = "causal-lm"
) -> tuple[int, int]:
    """(trainable, all) parameters with the recipe's adapter. Puts it on `layers.model`."""
    from peft import get_peft_model

    return parameter_counts(get_peft_model(layers.model, adapter_config(recipe, layers, task)))


def parameter_counts(model: "PeftModel") -> tuple[int, int]:
    """(trainable, all) parameters of a model. Each packed weight counts, in GPTQ and AWQ too."""
    trainable, total = model.get_nb_trainable_parameters()
    return trainable, total + sum(map(_weights_in_buffers, model.modules()))


def _weights_in_buffers(module: "torch.nn.Module") -> int:
    """The weights that a linear layer of GPTQ or AWQ holds in buffers, not in parameters."""
    has_parameters = any(True for _ in module.parameters(recurse=False))
    has_buffers = any(True for _ in module.buffers(recurse=False))
    if has_parameters or not has_buffers or not hasattr(module, "in_features"):
        return 0
    return module.in_features * module.out_features  # type: ignore[operator, return-value]


# Trained adapters


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
        """Record the logits of `model`, which must be in eval mode.

        A model that reads pictures gets one too.
        """
        import torch

        ids = tokenizer(_TEXT, truncation=True, max_length=_MAX_TOKENS)["input_ids"]
        of_picture: dict[str, torch.Tensor] = {}
        if (processor := getattr(tokenizer, "pictures", None)) is not None:
            ids, of_picture = processor.witness(_TEXT)
        input_ids = torch.tensor([ids], device=model.device)
        inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        inputs |= {name: tensor.to(model.device) for name, tensor in of_picture.items()}
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
        return model(**inputs, **forward_options(model)).logits


MAX_SCORING_BATCH = 8


@dataclass(frozen=True)
class AdaptedModel:
    """A base model in memory once, with a trained adapter that can be switched off."""

    model: Any
    """A `PeftModel`."""
    tokenizer: "PreTrainedTokenizerFast"
    task_spec: TaskSpec = CAUSAL_LM
    reference: ReferenceLogits | None = None
    """The base's logits before the adapter was added."""
    biases: "list[tuple[torch.nn.Parameter, torch.Tensor, torch.Tensor]]" = field(
        default_factory=list
    )
    """(parameter, the base's values, the adapter's values) if the adapter trained biases. PEFT
    overwrites the base's biases and does not restore them when the adapter is off."""
    scoring_batch: int = MAX_SCORING_BATCH
    """Rows to score at once: no more than training could hold."""

    @functools.cached_property
    def answer_tokens(self) -> AnswerTokens:
        """The tokens that begin, end and pad answers: the base's own, and those of training."""
        model = self.model.get_base_model()
        return answer_tokens(self.tokenizer, self.task_spec.task, model.generation_config, model)

    @functools.cached_property
    def num_places(self) -> int | None:
        """The number of tokens that the model has positions for; None if it has no limit."""
        return num_places(self.model.get_base_model())

    @functools.cached_property
    def can_cache(self) -> bool:
        """False if the model fails with its own cache, as some of transformers do."""
        import torch
        from transformers import GenerationConfig

        tokens = self.answer_tokens
        ids = torch.full((1, 3), tokens.stops[0], device=self.model.device)
        settings = GenerationConfig(
            max_new_tokens=2,
            pad_token_id=tokens.pad,
            decoder_start_token_id=tokens.decoder_start,
            use_cache=True,
        )
        try:
            with torch.no_grad():
                self.model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    generation_config=settings,
                )
        except torch.OutOfMemoryError:
            raise
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            name = type(self.model.get_base_model()).__name__
            logger.warning("%s answers without its cache, which fails", name, exc_info=True)
            return False
        return True

    @functools.cached_property
    def scorer(self) -> "LabelScorer":
        """Scores labels of a model that writes text, for the side that is switched on."""
        from peft_space.models.label_scorer import LabelScorer

        return LabelScorer(self.model.get_base_model())


def base_of(run: Run, adapter: Path | None = None) -> tuple[BaseModelRef, TaskSpec]:
    """The base model and the task of a run.

    Raises:
        UserError: the base has changed, or the run's adapter or another `adapter` does not fit it.
    """
    revision = revision_of(run.adapter, run.recipe.base_model)
    base = pin_revision(find_base_of_run(run, revision), revision)
    task_spec = task_spec_for(run)
    check_adapter_fits_base(adapter or run.adapter, base, task_spec.task, task_spec.labels)
    return base, task_spec


def load_adapted(run: Run, adapter: Path | None = None) -> AdaptedModel:
    """Load the base of a run with the run's adapter, or with another `adapter`, in eval mode.

    Raises:
        UserError: the adapter does not fit the base.
    """
    from peft import PeftModel

    base, task_spec = base_of(run, adapter)
    folder = adapter or run.adapter
    tokenizer = tokenizer_of(run, base, task_spec.task)
    if continues_texts(run):
        # a base with a chat template is asked to continue texts too, as it was trained
        tokenizer.chat_template = text_template(texts_begin_with_bos(tokenizer))
    model = load_base_model(base, run.recipe, inference_dtype(base.config), task_spec).eval()
    set_special_tokens(model, tokenizer)
    if getattr(model, "is_loaded_in_4bit", False) and fits_in_memory(4 * model.num_parameters()):
        # the results stay bitwise equal, and no token has to wait for the weights to be unpacked
        model = model.dequantize()
    reference = ReferenceLogits.record(model, tokenizer)
    config = json.loads((folder / "adapter_config.json").read_text())
    trains_biases = config.get("bias", "none") != "none"
    own_biases = [
        (parameter, parameter.detach().clone())
        for name, parameter in model.named_parameters()
        if trains_biases and name.endswith("bias")
    ]
    adapted = PeftModel.from_pretrained(model, folder).eval()
    check_adapter_is_loaded(adapted, folder)
    biases = [(parameter, own, parameter.detach().clone()) for parameter, own in own_biases]
    plan = read_plan(run)
    batch_size = min(MAX_SCORING_BATCH, plan.batch_size if plan else MAX_SCORING_BATCH)
    return AdaptedModel(adapted, tokenizer, task_spec, reference, biases, batch_size)


def check_adapter_is_loaded(model: "PeftModel", folder: Path, name: str = "default") -> None:
    """Check that the model has every matrix of an adapter's file.

    PEFT translates names of layers, and skips a layer without a word if the result names none.

    Args:
        model: the base with the adapter.
        folder: of the adapter.
        name: of the adapter in the model.

    Raises:
        UserError: the model lacks some of them.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    loaded = set(map(_digest, own.values()))
    lost = [
        key
        for key, value in load_file(folder / "adapter_model.safetensors").items()
        if ".lora_" in key and _digest(value) not in loaded
    ]
    if lost:
        layers = sorted({key.partition(".lora_")[0] for key in lost})
        raise UserError(
            "models.adapter_layers_lost",
            f"PEFT does not load {len(layers)} of the adapter's layers, such as {layers[0]}, so "
            "answers would come from a part of the adapter. Train a new adapter, and choose "
            "target_modules without these layers.",
        )


def _digest(value: "torch.Tensor") -> tuple[tuple[int, ...], bytes]:
    """The shape of a tensor, and a digest of its numbers; float32 holds 16 bits exactly."""
    numbers = value.detach().float().cpu().contiguous().numpy()
    return tuple(value.shape), hashlib.blake2b(numbers.tobytes(), digest_size=16).digest()


def fits_in_memory(num_bytes: int) -> bool:
    """Return True if the CPU's free memory is at least twice this. Always False on a GPU."""
    if hardware.device() != "cpu":
        return False
    return num_bytes < os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2


_TOO_LARGE_FOR_FLOAT16 = (
    "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "t5", "mt5", "umt5", "longt5",
)  # fmt: skip
"""Model types whose activations overflow in float16 (transformers issues 36822 and 5651)."""


def inference_dtype(config: "PreTrainedConfig | None" = None) -> str:
    """The dtype that models answer in: exact on a CPU, the GPU's native 16 bits otherwise.

    Args:
        config: of the base model, some of which need float32 on a GPU without bfloat16.
    """
    import torch

    if hardware.device() == "cpu":
        return "float32"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bfloat16"
    return "float32" if config and config.model_type in _TOO_LARGE_FOR_FLOAT16 else "float16"


_RESTORE_ADAPTER = "Restore the adapter of this run, or train again."
_Shapes = Mapping[str, tuple[int, ...]]


def revision_of(adapter: Path, base_model: str) -> str | None:
    """The revision of the base model that an adapter was trained on.

    Raises:
        UserError: the adapter's config is damaged, or names another base than `base_model`.
    """
    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        trained_on, revision = str(config["base_model_name_or_path"]), config.get("revision")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            "models.adapter_damaged",
            f"The adapter in {adapter} cannot be loaded: its adapter_config.json is damaged. "
            f"{_RESTORE_ADAPTER}",
        ) from None
    name = model_name(base_model)
    # a folder may have been moved: then the digest of its files decides
    both_are_folders = Path(trained_on).is_absolute() and Path(name).is_absolute()
    if trained_on != name and not both_are_folders:
        raise UserError(
            "models.adapter_mismatch",
            f"The adapter in {adapter} was trained on {trained_on}, "
            f"but the base model of this run is {name}. {_RESTORE_ADAPTER}",
        )
    return revision


def check_adapter_fits_base(
    adapter: Path,
    base: BaseModelRef,
    task: Task,
    labels: Sequence[str],
    remedy: str = _RESTORE_ADAPTER,
) -> None:
    """Check an adapter's file, and that its tensors are those of an adapter on this base.

    Compares names and shapes on the meta device, before any weights are loaded.

    Args:
        adapter: the folder of the adapter.
        base: the base model.
        task: what the base is loaded for.
        labels: of a classifier.
        remedy: a sentence that says what to do.

    Raises:
        UserError: the file is damaged, or a tensor does not fit.
    """
    weights = adapter / "adapter_model.safetensors"
    fault = weight_file_fault(weights) if weights.is_file() else f"there is no {weights.name}"
    header = None if fault else read_header(weights)
    if header is None:
        raise UserError(
            "models.adapter_damaged",
            f"The adapter in {adapter} cannot be loaded: {fault}. {remedy}",
        )
    mismatch = _mismatch_with_base(adapter, header.shapes, base, task, labels)
    if mismatch:
        raise UserError(
            "models.adapter_mismatch",
            f"The adapter in {adapter} does not fit the base model {base.name}: {mismatch}. "
            f"{remedy}",
        )


def _mismatch_with_base(
    adapter: Path, shapes: _Shapes, base: BaseModelRef, task: Task, labels: Sequence[str]
) -> str | None:
    """Why an adapter with these tensors does not fit the base; None if it does."""
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict

    config = copy.deepcopy(base.config)
    if labels:
        config.num_labels = len(labels)
    layers = linear_layers(config, task)
    model: Any = layers.model
    embeddings = _embedding_names(model)
    try:
        lora_config = PeftConfig.from_pretrained(str(adapter))
        if absent := _absent_layer(lora_config.target_modules, layers):
            return absent
        lora_config.base_model_name_or_path = None  # PEFT warns if it is not the model's own name
        wrapped = get_peft_model(model, lora_config, low_cpu_mem_usage=True)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return str(error).strip().split("\n", 1)[0].rstrip(".") or type(error).__name__
    tensors = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    expected = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    allowed = {
        f"base_model.model.{name}{part}": size
        for name, size in embeddings.items()
        for part in SAVED_EMBEDDINGS
    }
    of_tokens = [name for name in shapes if name.endswith(".token_adapter.trainable_tokens_delta")]
    allowed |= {name: shapes[name] for name in of_tokens if "lm_head" in name}  # shared, if tied
    return _mismatch(shapes, expected, {name: allowed[name] for name in allowed if name in shapes})


def _embedding_names(model: Any) -> dict[str, tuple[int, ...]]:
    """The names of the input and the output embeddings, with the shapes of their weights."""
    layers = (input_embeddings(model), model.get_output_embeddings())
    return {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if any(module is layer for layer in layers if layer is not None)
    }


def _absent_layer(targets: Any, layers: ModelLayers) -> str | None:
    """Why a layer that an adapter names is not in its base; None if all are there.

    Raises:
        UserError: the layer belongs to experts that are one tensor today.
    """
    leaves = {name.rpartition(".")[2] for name, _ in layers.model.named_modules()}
    names = targets if isinstance(targets, list | set) else []
    missing = sorted({name.rpartition(".")[2] for name in names} - leaves)
    if not missing:
        return None
    if layers.fused_experts and set(missing) <= _EXPERT_LAYERS:
        raise UserError(
            "models.adapter_mismatch",
            f"The adapter has {missing[0]!r}, a layer of each expert. transformers "
            f"{_major_version('transformers')} stores the experts of this model as one tensor. "
            "Merge it into its base model in PEFT, and use the merged model as base_model.",
        )
    return f"the base has no layer {missing[0]!r}"


_EXPERT_LAYERS = {"w1", "w2", "w3", "gate_proj", "up_proj", "down_proj", "gate"}


def _major_version(package: str) -> str:
    return importlib.metadata.version(package).partition(".")[0]


def _mismatch(shapes: _Shapes, expected: _Shapes, allowed: _Shapes) -> str | None:
    """The first difference between an adapter's tensors and the expected ones."""
    for name in sorted({*shapes, *expected}):
        if name not in expected and name not in allowed:
            return f"the base has no layer for its {name}"
        if name not in shapes:
            return f"it has no {name}"
        size = expected[name] if name in expected else allowed[name]
        if shapes[name] != size:
            return f"its {name} is {_size(shapes[name])} instead of {_size(size)}"
    return None


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"
