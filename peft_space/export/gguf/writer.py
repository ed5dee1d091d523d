"""Writes a model or a separate adapter as one GGUF file, and reads the numbers back.

It reads and writes one tensor at a time.
"""

import functools
import json
import math
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from peft_space.compat.peft import matching_pattern
from peft_space.errors import UserError
from peft_space.export.gguf import Numbers
from peft_space.export.gguf.architectures import (
    add_parameters,
    architecture_of,
    rope_tensors,
    tensor_change,
    tensor_undo,
)
from peft_space.export.gguf.tokenizer import (
    add_special_tokens,
    add_vocabulary,
    gguf_model_name,
)
from peft_space.export.merge import check_disk_space
from peft_space.models.config_values import text_config
from peft_space.models.special_tokens import answer_tokens
from peft_space.runs.events import OnProgress, no_progress
from peft_space.storage import atomic_io

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_F32, _F16, _Q8_0 = (gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "Q8_0"))
_TYPES = {"f32": _F32, "f16": _F16, "q8_0": _Q8_0}
_STORED = {_F32: "float32", _F16: "float16", _Q8_0: "uint8"}
_FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
_BLOCK = gguf.GGML_QUANT_SIZES[_Q8_0][0]


@dataclass(frozen=True)
class _Tensor:
    """A tensor under llama.cpp's name, not read yet."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    read: Callable[[], np.ndarray]
    """Returns it in float32."""

    @property
    def num_bytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return math.prod(self.shape) // block * size


def write_gguf(
    folder: str | Path,
    out: str | Path,
    numbers: Numbers = "f16",
    name: str | None = None,
    on_progress: OnProgress = no_progress,
    begins_texts: bool = False,
) -> Path:
    """Write a merged model as one file, completely or not at all.

    Args:
        folder: the model: config, safetensors and tokenizer.
        out: the file to create.
        numbers: how to store the weights: in 32, 16 or 8 bits.
        name: of the model; None for the name of the folder.
        on_progress: called with the share that is done.
        begins_texts: whether the model was trained on plain texts, as its tokenizer begins them.

    Raises:
        UserError: llama.cpp computes such a model differently, the disk has too little space, or
            `out` exists.
    """
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    config = text_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    arch = architecture_of(config).arch
    writer = _writer(arch, numbers, gguf_model_name(name or Path(folder).name, tokenizer))
    writer.add_type(gguf.GGUFType.MODEL)
    add_parameters(writer, config)
    add_vocabulary(writer, tokenizer, config.vocab_size)
    has_settings = Path(folder, "generation_config.json").is_file()
    generation = GenerationConfig.from_pretrained(folder) if has_settings else None
    stops = answer_tokens(tokenizer, "causal-lm", generation).stops
    add_special_tokens(writer, tokenizer, stops, begins_texts)
    with ExitStack() as stack:
        tensors = _model_tensors(Path(folder), config, numbers, stack)
        return _write(writer, tensors, Path(out), on_progress)


def write_gguf_adapter(
    adapter: str | Path,
    config: "PretrainedConfig",
    out: str | Path,
    numbers: Numbers = "f16",
    name: str | None = None,
) -> Path:
    """Write an adapter as one file, for use with a GGUF file of its base model.

    Args:
        adapter: the folder of the adapter.
        config: of its base model.
        out: the file to create.
        numbers: how to store the weights: in 32, 16 or 8 bits.
        name: of the adapter; None for the name of the folder.

    Raises:
        UserError: llama.cpp cannot use such an adapter, or `out` exists.
    """
    from safetensors.numpy import load_file

    adapter, config = Path(adapter), text_config(config)
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    arch = architecture_of(config).arch
    weights = load_file(adapter / "adapter_model.safetensors")
    _check_adapter(settings, weights)
    writer = _writer(arch, numbers, name or adapter.name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(settings["lora_alpha"]))
    names, tensors = gguf.get_tensor_name_map(arch, config.num_hidden_layers), []
    for key in sorted(name for name in weights if name.endswith(".lora_A.weight")):
        layer = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        text_name = name_in_text_part(layer)
        gguf_name, down = text_name and names.get_name(text_name), weights[key].astype(np.float32)
        if gguf_name is None:
            message = (
                f"llama.cpp does not know the layer {layer} of this model, so it cannot use a "
            )
            raise UserError("export.gguf_adapter", message + "separate adapter. Export it merged.")
        up = weights[key.replace(".lora_A.", ".lora_B.")].astype(np.float32)
        up = up * _relative_scale(settings, layer, len(down))
        change = tensor_change(layer, config)
        for side, values in (("lora_a", down), ("lora_b", change(up) if change else up)):
            tensors.append(_in_memory(f"{gguf_name}.weight.{side}", values, numbers))
    return _write(writer, tensors, Path(out), no_progress)


def _check_adapter(settings: dict[str, Any], weights: dict[str, np.ndarray]) -> None:
    others = [name for name in weights if not name.endswith((".lora_A.weight", ".lora_B.weight"))]
    if settings.get("use_dora"):
        reason = "it is a DoRA adapter"
    elif settings.get("peft_type") != "LORA":
        reason = f"its type is {settings.get('peft_type')}, not LORA"
    elif others:
        reason = f"it also trains {others[0].removeprefix('base_model.model.')}"
    else:
        return
    message = f"llama.cpp cannot use this adapter separately: {reason}. Export it merged into its "
    raise UserError("export.gguf_adapter", message + "base model.")


def _relative_scale(settings: dict[str, Any], layer: str, rank: int) -> np.float32:
    """This layer's scale relative to alpha / rank, the only one that llama.cpp knows."""
    alphas, alpha = settings.get("alpha_pattern") or {}, settings["lora_alpha"]
    own_alpha = alphas.get(matching_pattern(alphas, layer), alpha)
    return np.float32(own_alpha / alpha * (math.sqrt(rank) if settings.get("use_rslora") else 1.0))


def _writer(arch: gguf.MODEL_ARCH, numbers: Numbers, name: str) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[numbers])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    return writer


def _model_tensors(
    folder: Path, config: "PretrainedConfig", numbers: Numbers, stack: ExitStack
) -> list[_Tensor]:
    from safetensors import safe_open

    names = gguf.get_tensor_name_map(architecture_of(config).arch, config.num_hidden_layers)
    tensors = [_in_memory(name, values, "f32") for name, values in rope_tensors(config).items()]
    stacks: dict[str, list[tuple[int, _Tensor]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        file = stack.enter_context(safe_open(path, "pt"))
        for name in file.keys():  # noqa: SIM118 - not a dict
            tied = name == "lm_head.weight" and config.tie_word_embeddings
            text_name = name_in_text_part(name)
            # llama.cpp computes the frequencies
            if tied or text_name is None or name.endswith("rotary_emb.inv_freq"):
                continue
            stacked, expert = without_expert(text_name)
            gguf_name = names.get_name(stacked, try_suffixes=(".weight", ".bias"))
            if gguf_name is None:
                message = f"llama.cpp does not know the weight {name} of this model. Export the "
                message += "merged model and serve it with vLLM."
                raise UserError("export.gguf_unknown_weight", message)
            shape = tuple(file.get_slice(name).get_shape())
            read = partial(_read_changed, file, name, config)
            tensor = _Tensor(gguf_name, shape, _kind(shape, numbers, gguf_name), read)
            if expert is None:
                tensors.append(tensor)
            else:
                stacks.setdefault(gguf_name, []).append((expert, tensor))
    return tensors + [_stack(parts) for parts in stacks.values()]


def _stack(parts: list[tuple[int, _Tensor]]) -> _Tensor:
    """The weights of all experts as one tensor, which llama.cpp has."""
    tensors = [tensor for _, tensor in sorted(parts, key=lambda part: part[0])]
    first = tensors[0]

    def read() -> np.ndarray:
        return np.stack([tensor.read() for tensor in tensors])

    return _Tensor(first.name, (len(tensors), *first.shape), first.kind, read)


_EXPERT = re.compile(r"(.*\.experts)\.(\d+)(\..*)")


def without_expert(name: str) -> tuple[str, int | None]:
    """Return the name of the weights of all experts, and the number of the expert, if it is one."""
    match = _EXPERT.fullmatch(name)
    return (match[1] + match[3], int(match[2])) if match else (name, None)


def name_in_text_part(name: str) -> str | None:
    """Return a weight's name as in a model that only writes text; None for other modalities."""
    if re.match(r"(model\.)?(vision_tower|vision_model|visual|multi_modal_projector)\.", name):
        return None
    name = re.sub(r"^model\.language_model\.", "model.", name)
    return name.removeprefix("language_model.")


def _in_memory(name: str, values: np.ndarray, numbers: Numbers) -> _Tensor:
    return _Tensor(name, values.shape, _kind(values.shape, numbers), lambda: values)


def _read_changed(file: Any, name: str, config: "PretrainedConfig") -> np.ndarray:
    values, change = file.get_tensor(name).float().numpy(), tensor_change(name, config)
    return change(values) if change else values


def _kind(shape: tuple[int, ...], numbers: Numbers, name: str = "") -> gguf.GGMLQuantizationType:
    """As llama.cpp converts: norms, biases and routers in 32 bits, partial blocks in 16."""
    if len(shape) == 1 or name.endswith(("_norm.weight", "ffn_gate_inp.weight")):
        return _F32
    return _F16 if numbers == "q8_0" and shape[-1] % _BLOCK else _TYPES[numbers]


def _write(
    writer: gguf.GGUFWriter, tensors: list[_Tensor], out: Path, on_progress: OnProgress
) -> Path:
    if out.exists():
        message = f"{out} already exists. Choose another name, or delete it."
        raise UserError("export.file_exists", message)
    total, written = sum(tensor.num_bytes for tensor in tensors), 0
    check_disk_space(out.parent, int(1.05 * total))
    for tensor in tensors:
        shape, dtype = tensor.shape, np.dtype(_STORED[tensor.kind])
        if tensor.kind == _Q8_0:
            shape = gguf.quant_shape_to_byte_shape(shape, _Q8_0)
        writer.add_tensor_info(tensor.name, shape, dtype, tensor.num_bytes, tensor.kind)
    try:
        writer.write_header_to_file(out)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(_quantized(tensor))
            written += tensor.num_bytes
            on_progress(written / total, f"Writing {out.name}")
        writer.close()
    except BaseException:
        out.unlink(missing_ok=True)
        raise
    return out


def _quantized(tensor: _Tensor) -> np.ndarray:
    with np.errstate(over="ignore"):
        values = gguf.quants.quantize(tensor.read(), tensor.kind)
    if tensor.kind == _F16 and not np.isfinite(values).all():
        message = f"The weight {tensor.name} has numbers too large for 16 bits. Export it as f32."
        raise UserError("export.weight_too_large", message)
    return values


# Reading back


def read_back(folder: Path, model: Path, adapter: Path | None = None) -> None:
    """Replace the weights of a model by those in its GGUF files, so that the files are verified.

    Args:
        folder: the model that the files were written from; it is changed.
        model: the GGUF file of the model.
        adapter: the GGUF file of an adapter, which is added to the weights.
    """
    from safetensors import safe_open
    from safetensors.numpy import save_file
    from transformers import AutoConfig

    config = text_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    names = gguf.get_tensor_name_map(architecture_of(config).arch, config.num_hidden_layers)
    tensors, deltas = _tensors(model), _Deltas(adapter)

    @functools.lru_cache(maxsize=4)  # the experts of a layer are parts of three tensors
    def numbers_of(gguf_name: str) -> np.ndarray:
        return _numbers(tensors[gguf_name])

    for path in sorted(folder.glob("*.safetensors")):
        weights = {}
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                stacked, expert = without_expert(name_in_text_part(name) or "")
                gguf_name = names.get_name(stacked, try_suffixes=(".weight", ".bias"))
                if gguf_name not in tensors:  # tied to the embeddings, or of another modality
                    weights[name] = file.get_tensor(name).float().numpy()
                    continue
                values = numbers_of(gguf_name)
                values = values[expert] if expert is not None else values + deltas.of(gguf_name)
                undo = tensor_undo(name, config)
                weights[name] = np.ascontiguousarray(undo(values) if undo else values)
        save_file(weights, path, metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = json.dumps(values | {"dtype": "float32"}, indent=2)
    atomic_io.write_text(folder / "config.json", text + "\n")


class _Deltas:
    """The updates in the GGUF file of an adapter; none without a file."""

    def __init__(self, file: Path | None):
        self._tensors = _tensors(file) if file else {}
        key = gguf.Keys.Adapter.LORA_ALPHA
        self._alpha = float(gguf.GGUFReader(file).fields[key].contents()) if file else 0.0

    def of(self, name: str) -> np.ndarray | np.float32:
        if f"{name}.lora_a" not in self._tensors:
            return np.float32(0)
        down, up = (_numbers(self._tensors[f"{name}.lora_{side}"]) for side in "ab")
        return np.float32(self._alpha / len(down)) * (up @ down)


def _tensors(file: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}


def _numbers(tensor: gguf.ReaderTensor) -> np.ndarray:
    """In float32, with the dimensions in the order of transformers."""
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    return values.reshape([int(size) for size in tensor.shape[::-1]])
