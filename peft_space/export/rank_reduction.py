"""Measures how much of its rank an adapter uses, and writes a smaller adapter.

It reads only the adapter's files. `evaluation` measures the held-out loss of the smaller adapter.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peft_space.errors import UserError
from peft_space.runs.run import Run
from peft_space.storage.atomic_io import atomic_directory

KEPT_ENERGY = 0.999
"""Share of the squared norm of each layer's update that the used rank keeps."""

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class Spectrum:
    """Singular values of an adapter's update to each layer, largest first."""

    layers: list[str]
    values: np.ndarray
    """(layers, rank)"""

    @property
    def rank(self) -> int:
        return self.values.shape[1]

    def rank_for(self, energy: float) -> np.ndarray:
        """Return each layer's smallest rank that keeps a share of its squared norm, (layers,)."""
        squares = self.values**2
        shares = np.cumsum(squares, axis=1) / np.maximum(squares.sum(axis=1, keepdims=True), 1e-30)
        return 1 + (shares < energy - 1e-9).sum(axis=1)

    @property
    def used_rank(self) -> int:
        """The smallest rank that keeps `KEPT_ENERGY` in every layer."""
        return int(self.rank_for(KEPT_ENERGY).max())

    def mean_curve(self) -> np.ndarray:
        """Return singular values relative to the layer's largest, averaged over layers, (rank,)."""
        return (self.values / np.maximum(self.values[:, :1], 1e-30)).mean(axis=0)


def read_spectrum(run: Run) -> Spectrum:
    """Return the spectrum of the run's adapter.

    Raises:
        UserError: it is a DoRA adapter.
    """
    config = _read_config(run.adapter)
    layers = _factors_by_layer(run.adapter)
    values = [_svd(down, up)[1] for down, up in layers.values()]
    rank = max(map(len, values))
    padded = np.array([np.pad(row, (0, rank - len(row))) for row in values])
    return Spectrum(list(layers), _scale(config) * padded)


def reduce_rank(run: Run, out: str | Path, rank: int | None = None) -> int:
    """Write an adapter of smaller rank.

    Each layer's update is cut to its largest singular values, which gives the closest update of
    that rank (Eckart and Young, 1936).

    Args:
        run: a run with an adapter.
        out: the folder to create.
        rank: the new rank; None for the rank that the adapter uses.

    Returns:
        The new rank.

    Raises:
        UserError: the rank is not smaller, or `out` already contains something.
    """
    import torch
    from safetensors.torch import load_file, save_file

    config = _read_config(run.adapter)
    new_rank = read_spectrum(run).used_rank if rank is None else rank
    if not 1 <= new_rank < config["r"]:
        message = f"The adapter has rank {config['r']} and cannot be reduced to {new_rank}. "
        message += f"Choose a rank from 1 to {config['r'] - 1}."
        raise UserError("export.rank_not_smaller", message)
    weights, scale = load_file(run.adapter / _WEIGHTS), _scale(config)
    for name, (down, up) in _factors_by_layer(run.adapter).items():
        left, values, right = _svd(down, up)
        root = np.sqrt(scale * values[:new_rank])
        reduced_down, reduced_up = root[:, None] * right[:new_rank], left[:, :new_rank] * root
        weights[f"{name}.lora_A.weight"] = torch.from_numpy(reduced_down).float().contiguous()
        weights[f"{name}.lora_B.weight"] = torch.from_numpy(reduced_up).float().contiguous()
    # alpha equals the rank because the matrices now include the scale
    config |= {"r": new_rank, "lora_alpha": new_rank, "use_rslora": False}
    with atomic_directory(out) as folder:
        shutil.copytree(run.adapter, folder, dirs_exist_ok=True)
        save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})
        (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return new_rank


def _read_config(adapter: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((adapter / _CONFIG).read_text())
    if config.get("use_dora"):
        message = "A DoRA adapter also rescales each layer's weights, so its rank says little. "
        message += "Its rank cannot be reduced; train with a lower lora_rank instead."
        raise UserError("export.rank_of_dora", message)
    if config.get("target_parameters"):
        message = "The adapter adapts experts, each with a rank that its config divides. "
        message += "Its rank cannot be measured or reduced; train with a lower lora_rank instead."
        raise UserError("export.rank_of_experts", message)
    return config


def _scale(config: dict[str, Any]) -> float:
    return config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])


def _factors_by_layer(adapter: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Layer -> (A of (rank, inputs), B of (outputs, rank))."""
    from safetensors.torch import load_file

    weights = load_file(adapter / _WEIGHTS)
    down, up = ".lora_A.weight", ".lora_B.weight"
    layers = [name.removesuffix(down) for name in weights if name.endswith(down)]
    return {
        layer: (weights[layer + down].double().numpy(), weights[layer + up].double().numpy())
        for layer in layers
    }


def _svd(down: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Singular vectors and values of up @ down, without computing that large product."""
    left_basis, left = np.linalg.qr(up)
    right_basis, right = np.linalg.qr(down.T)
    u, values, v = np.linalg.svd(left @ right.T)
    return left_basis @ u, values, v @ right_basis.T
