"""Merges a run's adapter into its base and writes a model that needs no PEFT, one layer after the other, in float32.

Loading maps the base's file instead of copying it, and where memory would not do, merged layers lie in files that have no name, so that
however large the model is, only a layer and a shard of it are held. PEFT merges each layer; transformers writes, under the base's own keys.
"""

import contextlib
import ctypes
import secrets
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from peft_space.data.dataset import load_run_data
from peft_space.data.tokenization.render import stop_token_ids
from peft_space.errors import UserError
from peft_space.export.folder import check_room
from peft_space.export.model_card import Merged, write_card
from peft_space.models.architecture import CLASSIFYING, linear_layers
from peft_space.models.loading import base_of, fits_in_memory, inference_dtype, load_base_model
from peft_space.models.quantization import quantization_of
from peft_space.models.resolve import BaseModelRef, load_tokenizer
from peft_space.recipe import TaskSpec
from peft_space.runs.events import OnProgress, no_progress
from peft_space.runs.plan import read_plan
from peft_space.runs.run import Run

Dtype = Literal["bfloat16", "float16", "float32"]
MergeInto = Literal["full", "dequantized"]
"""The base in the precision that it was published in, or the numbers that its quantized weights stand for, which the adapter was trained on."""

SHARD = "2GB"
"""Of the largest file of weights; about so much memory is taken while one is written."""
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

_Place = Callable[[Any], Any]
"""Takes a tensor, and gives it back where and how it is to be kept."""


def merge_into(run: Run, wanted: MergeInto | None) -> MergeInto:
    """What the adapter is merged into. Raises UserError where that is not to be had.

    Left open: the numbers that the adapter was trained on.
    """
    base, _ = base_of(run)
    held = quantization_of(run.recipe, base.config)
    if held in ("gptq", "awq"):
        raise UserError(
            "todo",
            f"The base comes quantized as {held.upper()}, and an adapter cannot be merged into that. Export the adapter and serve both apart.",
        )
    if held == "bitsandbytes" and wanted == "full":
        raise UserError(
            "todo",
            "The base comes in 4 or 8 bits, so there is no full precision to merge into. Choose to merge into dequantized.",
        )
    if held == "none" and wanted == "dequantized":
        raise UserError(
            "todo",
            "The adapter was not trained on a quantized base, so there is nothing to dequantize. Choose to merge into full.",
        )
    return wanted or ("full" if held == "none" else "dequantized")


def merge(
    run: Run,
    folder: Path,
    dtype: Dtype,
    into: MergeInto,
    on_progress: OnProgress = no_progress,
    on_disk: bool | None = None,
) -> None:
    """Write the merged model into the empty `folder`: weights, config, tokenizer with chat template, generation config, README.

    Args:
        on_disk: keep merged layers in files meanwhile; left open, where memory would not do.

    Raises UserError where the disk has no room, or a merged weight is too large for the dtype.
    """
    import torch

    base, goal = base_of(run)
    on_progress(0.0, "Loading the base")
    num_parameters = linear_layers(base.config, goal.task).model.num_parameters()
    widest = 4 if into == "dequantized" else _BYTES[dtype]
    if on_disk is None:
        on_disk = not fits_in_memory(widest * num_parameters)
    check_room(folder, int((_BYTES[dtype] + on_disk * widest) * num_parameters * 1.05))
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}-") as scratch:
        place = _tensor_store(Path(scratch) if on_disk else None)
        model = (
            _dequantized(run, base, goal, place)
            if into == "dequantized"
            else load_published_base(run, base, goal)
        )
        model = merged(model, run.adapter, getattr(torch, dtype), place, on_progress)
        on_progress(0.5, "Writing the merged model")
        _finish(run, base, goal, model, folder)
    plan = read_plan(run)
    assert plan is not None, "an adapter is only saved by a training, which writes its plan first"
    write_card(run, folder, load_run_data(run), plan, Merged(dtype, into))


def merged(
    model: Any, adapter: Path, dtype: Any, place: _Place, on_progress: OnProgress = no_progress
) -> Any:
    """`model` with the adapter of the folder `adapter` merged into it, all of it in `dtype`."""
    from peft import PeftConfig, PeftModel
    from peft.tuners.lora import LoraLayer

    _upcast_saved_modules(model, PeftConfig.from_pretrained(str(adapter)))
    adapted = PeftModel.from_pretrained(model, adapter)
    layers = [layer for layer in adapted.modules() if isinstance(layer, LoraLayer)]
    for number, layer in enumerate(layers):
        on_progress(
            0.1 + 0.4 * number / len(layers), f"Merging layer {number + 1} of {len(layers)}"
        )
        base_layer = layer.get_base_layer()
        _replace(
            base_layer, lambda weight: weight.float()
        )  # a weight of its own, where it was shared with another layer
        layer.merge(safe_merge=True)
        _replace(base_layer, lambda weight: place(_cast(weight, dtype)))
        _malloc_trim()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # that the layers are merged already, and that what was tied no longer is
        whole = adapted.merge_and_unload()
    for parameter in whole.parameters():
        if parameter.is_floating_point() and parameter.dtype != dtype:
            parameter.data = place(_cast(parameter.data, dtype))
    return whole


def _malloc_trim() -> None:
    """Return to the system what was freed. Left to itself glibc keeps the place of most layers, in the end as much as the whole model takes."""
    with contextlib.suppress(AttributeError):  # other C libraries have no such call
        ctypes.CDLL(None).malloc_trim(0)


def _replace(module: Any, change: _Place) -> None:
    from torch.nn import Parameter

    for name, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, name, Parameter(change(parameter.detach()), requires_grad=False))


def _cast(weight: Any, dtype: Any) -> Any:
    import torch

    narrow = weight.to(dtype)
    if dtype == torch.float16 and not torch.equal(torch.isfinite(narrow), torch.isfinite(weight)):
        raise UserError(
            "todo",
            "A merged weight is larger than 65,504, the most that float16 holds. Choose bfloat16 or float32.",
        )
    return narrow


def _tensor_store(scratch: Path | None) -> _Place:
    """Keeps tensors in memory, or in files of the folder `scratch`, which have lost their names at once and end with the tensor."""
    import torch

    def keep(tensor: Any) -> Any:
        tensor = tensor.cpu()
        if scratch is None or not tensor.numel():
            return tensor
        path = scratch / secrets.token_hex(8)
        kept = torch.from_file(
            str(path), shared=True, size=tensor.numel(), dtype=tensor.dtype
        ).view(tensor.shape)
        path.unlink()
        return kept.copy_(tensor)

    return keep


def load_published_base(run: Run, base: BaseModelRef, goal: TaskSpec) -> Any:
    """The base as it was published, in its own dtype: then its file is mapped and takes no memory."""
    import torch

    stored = str(base.config.dtype or torch.float32).removeprefix("torch.")
    return load_base_model(
        base, run.recipe.model_copy(update={"quantization": "none"}), stored, goal, device="cpu"
    )


def _dequantized(run: Run, base: BaseModelRef, goal: TaskSpec, place: _Place) -> Any:
    """The base that the adapter was trained on, its quantized layers as the float32 numbers that they stand for."""
    import bitsandbytes
    from peft.utils.integrations import dequantize_module_weight
    from torch.nn import Linear, Parameter
    from transformers.pytorch_utils import Conv1D

    model = load_base_model(base, run.recipe, inference_dtype(), goal)
    plain = linear_layers(_not_quantized(base.config), goal.task).model
    for name, module in list(model.named_modules()):
        if not isinstance(module, bitsandbytes.nn.Linear4bit | bitsandbytes.nn.Linear8bitLt):
            continue
        weight = dequantize_module_weight(module).detach().float()
        own = plain.get_submodule(name)
        assert isinstance(own, Linear | Conv1D), "bitsandbytes quantizes no other layers"
        own.weight = Parameter(
            place(weight.T.contiguous() if isinstance(own, Conv1D) else weight), requires_grad=False
        )
        own.bias = module.bias
        model.set_submodule(name, own)
    del model.hf_quantizer, model.config.quantization_config
    model.is_quantized = model.is_loaded_in_4bit = model.is_loaded_in_8bit = False
    return model.to("cpu")


def _not_quantized(config: Any) -> Any:
    values = config.to_dict()
    values.pop("quantization_config", None)
    return type(config).from_dict(values)


def _upcast_saved_modules(model: Any, config: Any) -> None:
    """Hold what the adapter brings whole (biases, saved modules) in float32 before it is loaded into the base's place."""
    saved = tuple(config.modules_to_save or ())
    for name, module in model.named_modules():
        if saved and name.endswith(saved):
            module.float()
    if config.bias != "none":
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.data = parameter.data.float()


def _finish(run: Run, base: BaseModelRef, goal: TaskSpec, model: Any, folder: Path) -> None:
    """Write the model, and what is needed to ask it: the tokenizer as the adapter was trained with, and which tokens end an answer."""
    tokenizer = load_tokenizer(base, run.recipe.chat_template, goal.task)
    if goal.task not in CLASSIFYING:
        generation = model.generation_config
        if goal.task != "seq2seq-lm":
            generation.eos_token_id, generation.pad_token_id = (
                stop_token_ids(tokenizer),
                tokenizer.pad_token_id,
            )
        try:
            generation.validate(strict=True)
        except ValueError:  # some models come with a temperature and without sampling, and can then be loaded but not saved
            generation.do_sample = True
    model.save_pretrained(folder, max_shard_size=SHARD)
    tokenizer.save_pretrained(folder)
