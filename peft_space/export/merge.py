"""Merges a run's adapter into its base model, layer by layer in float32, and writes the result.

The peak memory is one layer and one shard, for a model of any size. The app maps the base's files,
and if memory is short, stores merged layers in unnamed temporary files. PEFT merges each layer;
transformers writes the weights under the base's own names.
"""

import copy
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from peft_space import hardware
from peft_space.compat.peft import dequantized_weight
from peft_space.errors import UserError
from peft_space.export.model_card import ModelFormat, write_export_card
from peft_space.formatting import gigabytes
from peft_space.models.architecture import (
    CLASSIFYING,
    input_embeddings,
    linear_layers,
    whole_class,
)
from peft_space.models.loading import (
    base_of,
    fits_in_memory,
    inference_dtype,
    load_base_model,
    tokenizer_of,
)
from peft_space.models.quantization import quantization_of
from peft_space.models.resolve import BaseModelRef, copy_processor
from peft_space.models.special_tokens import answer_tokens, make_valid, set_special_tokens
from peft_space.recipe import Task, TaskSpec
from peft_space.runs.events import OnProgress, no_progress
from peft_space.runs.run import Run

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel

Dtype = Literal["bfloat16", "float16", "float32"]
MergeInto = Literal["full", "dequantized"]
"""The base as it was published, or the dequantized weights that the adapter was trained on."""

MAX_SHARD_SIZE = "2GB"
"""Of a file of weights; writing one takes about as much memory."""
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

_Store = Callable[["Tensor"], "Tensor"]
"""Takes a tensor and returns a copy where it can stay until it is written."""


def merge_into(run: Run, into: MergeInto | None) -> MergeInto:
    """Return the weights to merge the run's adapter into.

    Args:
        run: a run with an adapter.
        into: the user's choice; None for the weights that the adapter was trained on.

    Raises:
        UserError: the base does not have such weights.
    """
    base, _ = base_of(run)
    quantization = quantization_of(run.recipe, base.config)
    if quantization in ("gptq", "awq"):
        message = f"The base model is quantized with {quantization.upper()}, which cannot be merged"
        message += " into. Export the adapter and serve both separately."
        raise UserError("export.cannot_merge", message)
    if quantization == "bitsandbytes" and into == "full":
        message = "The base model was published in 4 or 8 bits, so it has no full-precision "
        message += "weights. Choose to merge into dequantized."
        raise UserError("export.no_such_weights", message)
    if quantization == "none" and into == "dequantized":
        message = "The adapter was trained on a base model that is not quantized, so there is "
        message += "nothing to dequantize. Choose to merge into full."
        raise UserError("export.no_such_weights", message)
    return into or ("full" if quantization == "none" else "dequantized")


def merge(
    run: Run,
    folder: Path,
    dtype: Dtype,
    into: MergeInto,
    on_progress: OnProgress = no_progress,
    on_disk: bool | None = None,
    whole: bool = False,
) -> None:
    """Write the merged model, its tokenizer and its model card.

    Args:
        run: a run with an adapter.
        folder: an existing, empty folder.
        dtype: of the merged weights.
        into: the weights to merge into.
        on_progress: called with the share that is done.
        on_disk: store merged layers in temporary files; None to do so if memory is short.
        whole: write a base that reads more than text whole, if only its text half was trained.

    Raises:
        UserError: the disk has too little space, or a merged weight is too large for the dtype.
    """
    import torch

    base, task_spec = base_of(run)
    on_progress(0.0, "Loading the base model")
    num_parameters = linear_layers(base.config, task_spec.task).model.num_parameters()
    if whole:
        num_parameters = num_parameters_of_whole(base, task_spec.task) or num_parameters
    stored_bytes = 4 if into == "dequantized" else _BYTES[dtype]
    if on_disk is None:
        on_disk = not fits_in_memory(stored_bytes * num_parameters)
    num_bytes = (_BYTES[dtype] + on_disk * stored_bytes) * num_parameters
    check_disk_space(folder, int(1.05 * num_bytes))
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}-") as scratch:
        store = _tensor_store(Path(scratch) if on_disk else None)
        if into == "dequantized":
            model = _load_dequantized_base(run, base, task_spec, store)
        else:
            model = load_published_base(run, base, task_spec)
        model = merged(model, run.adapter, getattr(torch, dtype), store, on_progress)
        if whole:
            model = _in_whole_base(base, task_spec, model, getattr(torch, dtype), store)
        on_progress(0.5, "Writing the merged model")
        _save(run, base, task_spec, model, folder)
    write_export_card(run, folder, ModelFormat(dtype, into))


def check_disk_space(folder: Path, num_bytes: int) -> None:
    """Check that the disk of `folder` has `num_bytes` free.

    Raises:
        UserError: it has less.
    """
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        message = f"This export needs {gigabytes(num_bytes)} on the disk of {folder.parent}, "
        message += f"and {gigabytes(free)} are free. Free some space, export to another disk, or "
        raise UserError("export.no_disk_space", message + "choose a 16-bit dtype.")


def merged(
    model: "PreTrainedModel",
    adapter: Path,
    dtype: "torch.dtype",
    store: _Store,
    on_progress: OnProgress = no_progress,
) -> "PreTrainedModel":
    """Merge an adapter into a model.

    Args:
        model: the base model; it is changed.
        adapter: the folder of the adapter.
        dtype: of the result.
        store: where each merged tensor stays.
        on_progress: called after each layer.

    Returns:
        The model, with all of its floating-point parameters in `dtype`.
    """
    from peft import LoraConfig, PeftModel
    from peft.tuners.lora import LoraLayer

    _upcast_saved_modules(model, LoraConfig.from_pretrained(str(adapter)))
    adapted = PeftModel.from_pretrained(model, adapter)
    layers = [layer for layer in adapted.modules() if isinstance(layer, LoraLayer)]
    for index, layer in enumerate(layers):
        share = 0.1 + 0.4 * index / len(layers)
        on_progress(share, f"Merging layer {index + 1} of {len(layers)}")
        base_layer = layer.get_base_layer()
        # this also separates a weight that was shared with another layer
        _replace_parameters(base_layer, lambda weight: weight.float())
        layer.merge(safe_merge=True)
        _replace_parameters(base_layer, lambda weight: store(_cast(weight, dtype)))
        hardware.release_freed_memory()
    with warnings.catch_warnings():
        # PEFT warns that the layers are already merged and that tied weights no longer are
        warnings.simplefilter("ignore")
        is_tied = getattr(model.config, "tie_word_embeddings", None)
        model = adapted.merge_and_unload()
    if is_tied and _is_still_tied(model):
        # PEFT looks at the input embeddings only, and T5Gemma ties those of its decoder
        model.config.tie_word_embeddings = True
    _cast_all(model, dtype, store)
    return model


def _is_still_tied(model: "PreTrainedModel") -> bool:
    """Return True if every weight that the model shares is still one tensor."""
    shared: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    pairs = [(model.get_parameter(a), model.get_parameter(b)) for a, b in shared.items()]
    return bool(pairs) and all(one.data_ptr() == other.data_ptr() for one, other in pairs)


def _cast_all(model: "PreTrainedModel", dtype: "torch.dtype", store: _Store) -> None:
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.dtype != dtype:
            parameter.data = store(_cast(parameter.data, dtype))


def _in_whole_base(
    base: BaseModelRef,
    task_spec: TaskSpec,
    model: "PreTrainedModel",
    dtype: "torch.dtype",
    store: _Store,
) -> "PreTrainedModel":
    """A merged text half within the whole base; the model itself if it is not a half."""
    import torch

    whole = load_whole(base, task_spec.task)
    if whole is None:
        return model
    if getattr(whole.config, "quantization_config", None) is not None:
        with torch.device("meta"):
            unquantized = type(whole)(_without_quantization(base.config))
        whole = _dequantize(whole, unquantized, store)
    whole = put_back(model, whole) or model
    _cast_all(whole, dtype, store)
    return whole


def _replace_parameters(module: "nn.Module", change: _Store) -> None:
    from torch.nn import Parameter

    for name, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, name, Parameter(change(parameter.detach()), requires_grad=False))


def _cast(weight: "Tensor", dtype: "torch.dtype") -> "Tensor":
    import torch

    narrow = weight.to(dtype)
    if dtype == torch.float16 and not torch.equal(torch.isfinite(narrow), torch.isfinite(weight)):
        message = "A merged weight exceeds 65,504, the largest number in float16. Choose bfloat16 "
        raise UserError("export.weight_too_large", message + "or float32.")
    return narrow


def _tensor_store(scratch: Path | None) -> _Store:
    """Store tensors in memory, or in files of `scratch` that vanish with their tensor."""
    import torch

    def store(tensor: "Tensor") -> "Tensor":
        tensor = tensor.cpu()
        if scratch is None or not tensor.numel():
            return tensor
        path, size = scratch / secrets.token_hex(8), tensor.numel()
        mapped = torch.from_file(str(path), shared=True, size=size, dtype=tensor.dtype)
        path.unlink()
        return mapped.view(tensor.shape).copy_(tensor)

    return store


def load_published_base(run: Run, base: BaseModelRef, task_spec: TaskSpec) -> "PreTrainedModel":
    """Load the base model as published, in its own dtype, so that its files are only mapped."""
    dtype = str(base.config.dtype or "float32").removeprefix("torch.")
    recipe = run.recipe.model_copy(update={"quantization": "none"})
    return load_base_model(base, recipe, dtype, task_spec, device="cpu")


def _load_dequantized_base(
    run: Run, base: BaseModelRef, task_spec: TaskSpec, store: _Store
) -> "PreTrainedModel":
    """Load the base model as in training and replace its quantized layers by float32 ones."""
    model: Any = load_base_model(base, run.recipe, inference_dtype(base.config), task_spec)
    unquantized = linear_layers(_without_quantization(base.config), task_spec.task).model
    return _dequantize(model, unquantized, store)


def _dequantize(model: Any, unquantized: "PreTrainedModel", store: _Store) -> "PreTrainedModel":
    """Replace quantized layers by float32 ones. `unquantized` has the kinds of these layers."""
    import bitsandbytes
    from torch.nn import Linear, Parameter
    from transformers.pytorch_utils import Conv1D

    for name, module in list(model.named_modules()):
        if not isinstance(module, bitsandbytes.nn.Linear4bit | bitsandbytes.nn.Linear8bitLt):
            continue
        weight = dequantized_weight(module).float()
        layer = unquantized.get_submodule(name)
        assert isinstance(layer, Linear | Conv1D), "bitsandbytes quantizes no other layers"
        if isinstance(layer, Conv1D):
            weight = weight.T.contiguous()
        layer.weight = Parameter(store(weight), requires_grad=False)
        layer.bias = module.bias
        model.set_submodule(name, layer)
    del model.hf_quantizer, model.config.quantization_config
    model.is_quantized = model.is_loaded_in_4bit = model.is_loaded_in_8bit = False
    return model.to("cpu")


def _without_quantization(config: "PretrainedConfig") -> "PretrainedConfig":
    values = config.to_dict()
    values.pop("quantization_config", None)
    return type(config).from_dict(values)


def _upcast_saved_modules(model: "PreTrainedModel", config: "LoraConfig") -> None:
    """Convert to float32 what the adapter replaces: biases, modules, and rows of embeddings."""
    saved = tuple(config.modules_to_save or ())
    rows = config.trainable_token_indices
    saved += tuple(rows) if isinstance(rows, dict) else ()
    embeddings = (input_embeddings(model), model.get_output_embeddings())
    for name, module in model.named_modules():
        is_embedding = rows is not None and any(module is one for one in embeddings)
        if is_embedding or (saved and name.endswith(saved)):
            module.float()
    if config.bias != "none":
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.data = parameter.data.float()


def _save(
    run: Run, base: BaseModelRef, task_spec: TaskSpec, model: "PreTrainedModel", folder: Path
) -> None:
    """Write the model, the tokenizer used in training, and the tokens that end an answer."""
    tokenizer = tokenizer_of(run, base, task_spec.task)
    set_special_tokens(model, tokenizer)
    if task_spec.task not in CLASSIFYING:
        generation = model.generation_config
        tokens = answer_tokens(tokenizer, task_spec.task, generation, model)
        generation.eos_token_id, generation.pad_token_id = tokens.stops, tokens.pad
        if task_spec.task == "seq2seq-lm":
            generation.decoder_start_token_id = tokens.decoder_start
            generation.forced_bos_token_id = tokens.forced_first or generation.forced_bos_token_id
        make_valid(generation)
    model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
    copy_processor(base, folder)
    tokenizer.save_pretrained(folder)


# The other half of a base that reads more than text


def num_parameters_of_whole(base: BaseModelRef, task: Task) -> int | None:
    """The parameters of the whole base; None if the trained class is not a half of it."""
    import torch

    if (model_class := whole_class(base.config, task)) is None:
        return None
    with torch.device("meta"):
        return model_class(copy.deepcopy(base.config)).num_parameters()


def load_whole(base: BaseModelRef, task: Task) -> "PreTrainedModel | None":
    """Load the whole base in its own dtype, so that its files are only mapped.

    Returns:
        None if the trained class is not a half of it, or the files of the base lack the other half.
    """
    if (model_class := whole_class(base.config, task)) is None:
        return None
    whole, info = model_class.from_pretrained(
        base.location,
        revision=base.revision if base.on_hub else None,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        dtype="auto",
    )
    return None if info["missing_keys"] else whole


def put_back(half: "PreTrainedModel", whole: "PreTrainedModel") -> "PreTrainedModel | None":
    """Replace the text half of a whole model by another one.

    Args:
        half: the text half, with its output layer.
        whole: it is changed.

    Returns:
        The whole model; None if it is not clear where the half belongs.
    """
    output = half.get_output_embeddings()
    bodies = [child for child in half.children() if child is not output]
    # a whole model holds its text half with the output layer, or without it
    for part in (half, *bodies) if len(bodies) == 1 else (half,):
        places = [name for name, module in whole.named_modules() if type(module) is type(part)]
        if len(places) == 1:
            whole.set_submodule(places[0], part)
            if part is not half:
                whole.set_output_embeddings(output)
            _take_config(whole.config, half.config)
            return whole
    return None


def _take_config(config: Any, part: Any) -> None:
    """Use the config of the half, whose vocabulary and tied weights may have changed."""
    for name, value in list(vars(config).items()):
        if type(value) is type(part):
            setattr(config, name, part)
    config.tie_word_embeddings = part.tie_word_embeddings
