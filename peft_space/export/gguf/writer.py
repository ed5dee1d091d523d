"""A model, or an adapter alone, as one GGUF file, which llama.cpp and Ollama read. Weights are read and written one at a time."""

import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import gguf
import numpy as np

from peft_space.errors import UserError
from peft_space.export.folder import check_room
from peft_space.export.gguf.architectures import (
    add_parameters,
    architecture_of,
    rope_tensors,
    tensor_change,
)
from peft_space.export.gguf.tokenizer import add_vocabulary, gguf_model_name
from peft_space.runs.events import OnProgress, no_progress

Numbers = Literal["f32", "f16", "q8_0"]
"""How weights are written: 32 bits, 16 bits, or 8 bits with a factor for each 32 of them. What is small stays in 32 bits."""
NUMBERS: tuple[Numbers, ...] = get_args(Numbers)
_TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}
_FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
_BLOCK = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q8_0][0]


@dataclass(frozen=True)
class _Tensor:
    """A weight by llama.cpp's name, not yet read."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    read: Callable[[], np.ndarray]
    """Gives it in float32."""

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
) -> Path:
    """Write the merged model in `folder` (config, safetensors, tokenizer) as the new file `out`, whole or not at all.

    Args:
        name: what the model is called; without it, as the folder.

    Raises UserError where llama.cpp would not compute what transformers does, where there is no room, or where `out` exists.
    """
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    architecture = architecture_of(config)
    writer = _writer(
        architecture.arch, numbers, gguf_model_name(name or Path(folder).name, tokenizer)
    )
    writer.add_type(gguf.GGUFType.MODEL)
    add_parameters(writer, config)
    add_vocabulary(writer, tokenizer, config.vocab_size)
    with ExitStack() as opened:
        tensors = _model_tensors(Path(folder), config, architecture.arch, numbers, opened)
        return _write(writer, tensors, Path(out), on_progress)


def write_gguf_adapter(
    adapter: str | Path,
    config: Any,
    out: str | Path,
    numbers: Numbers = "f16",
    name: str | None = None,
) -> Path:
    """Write the adapter in the folder `adapter`, of a base with this config, as the new file `out`, to be used with a GGUF of that base.

    Raises UserError where llama.cpp cannot use such an adapter, or `out` exists.
    """
    from safetensors.numpy import load_file

    adapter = Path(adapter)
    made = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    architecture = architecture_of(config)
    weights = load_file(adapter / "adapter_model.safetensors")
    _check_adapter(made, weights)
    writer = _writer(architecture.arch, numbers, name or adapter.name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(made["lora_alpha"]))
    names = gguf.get_tensor_name_map(architecture.arch, config.num_hidden_layers)
    tensors = []
    for down in sorted(weight for weight in weights if weight.endswith(".lora_A.weight")):
        layer = down.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        up = weights[down.replace(".lora_A.", ".lora_B.")].astype(np.float32) * _strength(
            made, layer, weights[down].shape[0]
        )
        change = tensor_change(layer, config)
        known = names.get_name(layer)
        if known is None:
            raise UserError(
                "todo",
                f"llama.cpp knows no layer {layer} in this model, so the adapter cannot be written alone. Export it merged.",
            )
        for side, values in (
            ("lora_a", weights[down].astype(np.float32)),
            ("lora_b", change(up) if change else up),
        ):
            kind = _kind(values.shape, numbers)
            tensors.append(
                _Tensor(f"{known}.weight.{side}", values.shape, kind, lambda values=values: values)
            )
    return _write(writer, tensors, Path(out), no_progress)


def _check_adapter(made: dict[str, Any], weights: dict[str, np.ndarray]) -> None:
    others = [name for name in weights if not name.endswith((".lora_A.weight", ".lora_B.weight"))]
    reason = (
        "it is a DoRA"
        if made.get("use_dora")
        else f"it is no LoRA but {made.get('peft_type')}"
        if made.get("peft_type") != "LORA"
        else f"it has trained {others[0].removeprefix('base_model.model.')} besides"
        if others
        else None
    )
    if reason:
        raise UserError(
            "todo",
            f"llama.cpp cannot use this adapter alone: {reason}. Export it merged into its base.",
        )


def _strength(made: dict[str, Any], layer: str, rank: int) -> np.float32:
    """By how much this layer's factor differs from alpha / rank, which is all that llama.cpp knows."""
    from peft.utils.other import get_pattern_key

    patterns = made.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(patterns.keys(), layer), made["lora_alpha"])
    return np.float32(
        alpha / made["lora_alpha"] * (math.sqrt(rank) if made.get("use_rslora") else 1.0)
    )


def _writer(arch: gguf.MODEL_ARCH, numbers: Numbers, name: str) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[numbers])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    return writer


def _model_tensors(
    folder: Path, config: Any, arch: gguf.MODEL_ARCH, numbers: Numbers, opened: ExitStack
) -> list[_Tensor]:
    from safetensors import safe_open

    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tensors = [
        _Tensor(name, values.shape, gguf.GGMLQuantizationType.F32, lambda values=values: values)
        for name, values in rope_tensors(config).items()
    ]
    unknown = []
    for path in sorted(folder.glob("*.safetensors")):
        file = opened.enter_context(safe_open(path, "pt"))
        for name in file.keys():  # noqa: SIM118 - it is no dictionary
            if name.endswith("rotary_emb.inv_freq") or (
                name == "lm_head.weight" and config.tie_word_embeddings
            ):
                continue  # worked out anew, or the embeddings once more
            known = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if known is None:
                unknown.append(name)
                continue
            shape = tuple(file.get_slice(name).get_shape())
            tensors.append(
                _Tensor(known, shape, _kind(shape, numbers, known), _reader(file, name, config))
            )
    if unknown:
        raise UserError(
            "todo",
            f"llama.cpp knows no weight {unknown[0]} in this model, so it cannot be written as GGUF. Export the merged model, and serve it with vLLM.",
        )
    return tensors


def _reader(file: Any, name: str, config: Any) -> Callable[[], np.ndarray]:
    change = tensor_change(name, config)

    def read() -> np.ndarray:
        values = file.get_tensor(name).float().numpy()
        return change(values) if change else values

    return read


def _kind(shape: tuple[int, ...], numbers: Numbers, name: str = "") -> gguf.GGMLQuantizationType:
    """Norms and biases stay in 32 bits, and rows that are no blocks of 32 in 16, as llama.cpp's own conversion does it."""
    if len(shape) == 1 or name.endswith("_norm.weight"):
        return gguf.GGMLQuantizationType.F32
    return _TYPES["f16" if numbers == "q8_0" and shape[-1] % _BLOCK else numbers]


def _write(
    writer: gguf.GGUFWriter, tensors: list[_Tensor], out: Path, on_progress: OnProgress
) -> Path:
    if out.exists():
        raise UserError("todo", f"{out} already exists. Choose another file to export to.")
    total = sum(tensor.num_bytes for tensor in tensors)
    check_room(out.parent, int(1.05 * total))
    for tensor in tensors:
        quantized = tensor.kind == gguf.GGMLQuantizationType.Q8_0
        shape = (
            gguf.quant_shape_to_byte_shape(tensor.shape, tensor.kind) if quantized else tensor.shape
        )
        dtype = np.dtype(
            np.uint8
            if quantized
            else np.float16
            if tensor.kind == gguf.GGMLQuantizationType.F16
            else np.float32
        )
        writer.add_tensor_info(tensor.name, shape, dtype, tensor.num_bytes, tensor.kind)
    try:
        writer.write_header_to_file(out)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        done = 0
        for tensor in tensors:
            writer.write_tensor_data(_packed(tensor))
            done += tensor.num_bytes
            on_progress(done / total, f"Writing {out.name}")
        writer.close()
    except BaseException:
        out.unlink(missing_ok=True)
        raise
    return out


def _packed(tensor: _Tensor) -> np.ndarray:
    values = tensor.read()
    with np.errstate(over="ignore"):
        packed = gguf.quants.quantize(values, tensor.kind)
    if tensor.kind == gguf.GGMLQuantizationType.F16 and not np.isfinite(packed).all():
        raise UserError(
            "todo", f"The weight {tensor.name} has numbers too large for 16 bits. Export it as f32."
        )
    return packed
