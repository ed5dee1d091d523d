"""What the numbers in GGUF files stand for, as the model that they were written from: so that the files are compared, not what they came from."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from peft_space.export.gguf.architectures import architecture_of, tensor_undo
from peft_space.storage import atomic_io


def read_back(folder: Path, model: Path, adapter: Path | None = None) -> None:
    """Put into the model in `folder`, which `model` was written from, the numbers of that file, and add those of the file `adapter`."""
    from safetensors import safe_open
    from safetensors.numpy import save_file
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    names = gguf.get_tensor_name_map(architecture_of(config).arch, config.num_hidden_layers)
    tensors, low_rank, scale = (
        _tensors(model),
        _tensors(adapter) if adapter else {},
        _alpha(adapter) if adapter else 0.0,
    )
    for path in sorted(folder.glob("*.safetensors")):
        weights = {}
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                known = names.get_name(name, try_suffixes=(".weight", ".bias"))
                if known not in tensors:  # the embeddings once more
                    weights[name] = file.get_tensor(name).float().numpy()
                    continue
                values = _numbers(tensors[known])
                if f"{known}.lora_a" in low_rank:
                    down, up = (_numbers(low_rank[f"{known}.lora_{side}"]) for side in "ab")
                    values = values + np.float32(scale / len(down)) * (up @ down)
                undo = tensor_undo(name, config)
                weights[name] = np.ascontiguousarray(undo(values) if undo else values)
        save_file(weights, path, metadata={"format": "pt"})
    told = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"dtype": "float32"}
    atomic_io.write_text(folder / "config.json", json.dumps(told, indent=2) + "\n")


def _tensors(file: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}


def _alpha(adapter: Path) -> float:
    return float(gguf.GGUFReader(adapter).fields[gguf.Keys.Adapter.LORA_ALPHA].contents())


def _numbers(tensor: Any) -> np.ndarray:
    """In float32, in the order of dimensions that transformers has."""
    return (
        gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        .astype(np.float32)
        .reshape(tuple(int(size) for size in tensor.shape[::-1]))
    )
