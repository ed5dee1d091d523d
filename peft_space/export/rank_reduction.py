"""How much of its rank an adapter uses, from the singular values of what it adds to each layer, and a smaller adapter with as much of that.

Works on the adapter's files alone; what a smaller one loses on held-out rows is measured by `evaluate.py`.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peft_space.errors import UserError
from peft_space.runs.run import Run

KEPT_ENERGY = 0.999
"""Share of the squared size of what an adapter adds; the rank that keeps so much in every layer is called used."""


@dataclass(frozen=True)
class Spectrum:
    """Singular values of the changes that an adapter makes, largest first."""

    layers: list[str]
    values: np.ndarray
    """(number of layers, rank)"""

    @property
    def rank(self) -> int:
        return self.values.shape[1]

    def rank_for(self, energy: float) -> np.ndarray:
        """Of each layer the smallest rank that keeps this share of the squared size, (number of layers,)."""
        squares = self.values**2
        shares = np.cumsum(squares, axis=1) / np.maximum(squares.sum(axis=1, keepdims=True), 1e-30)
        return 1 + (shares < energy - 1e-9).sum(axis=1)

    @property
    def used_rank(self) -> int:
        """The smallest rank that keeps 99.9 % in every layer."""
        return int(self.rank_for(KEPT_ENERGY).max())

    def mean_curve(self) -> np.ndarray:
        """Each singular value as a share of the layer's largest, averaged over layers, (rank,)."""
        return (self.values / np.maximum(self.values[:, :1], 1e-30)).mean(axis=0)


def read_spectrum(run: Run) -> Spectrum:
    """The spectrum of the run's adapter. Raises UserError where it is none of plain matrices."""
    layers = _layers(run.adapter)
    values = [_factors(down, up)[1] for down, up in layers.values()]
    rank = max(map(len, values))
    scale = _scale(_config(run.adapter))
    return Spectrum(
        list(layers), scale * np.array([np.pad(one, (0, rank - len(one))) for one in values])
    )


def reduce_rank(run: Run, out: str | Path, rank: int | None = None) -> int:
    """Write the adapter with `rank`, or the one it uses, into the new folder `out`, and return the rank.

    Each layer's change is cut to its largest singular values, which is the nearest of that rank (Eckart and Young, 1936).
    Raises UserError where the rank is not smaller, or `out` holds something.
    """
    import torch
    from safetensors.torch import load_file, save_file

    config, layers = _config(run.adapter), _layers(run.adapter)
    wanted = read_spectrum(run).used_rank if rank is None else rank
    if not 1 <= wanted < config["r"]:
        raise UserError(
            "todo",
            f"The adapter has rank {config['r']} and uses {wanted} of it. Choose a rank from 1 to {config['r'] - 1}.",
        )
    target = Path(out).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(
            "todo", f"{out} already exists and is not empty. Choose another folder to write to."
        )
    weights = load_file(run.adapter / "adapter_model.safetensors")
    scale = _scale(config)
    for name, (down, up) in layers.items():
        left, values, right = _factors(down, up)
        root = np.sqrt(scale * values[:wanted])
        weights[f"{name}.lora_A.weight"] = (
            torch.from_numpy(root[:, None] * right[:wanted]).float().contiguous()
        )
        weights[f"{name}.lora_B.weight"] = (
            torch.from_numpy(left[:, :wanted] * root).float().contiguous()
        )
    shutil.copytree(run.adapter, target, dirs_exist_ok=True)
    save_file(weights, target / "adapter_model.safetensors", metadata={"format": "pt"})
    smaller = {
        "r": wanted,
        "lora_alpha": wanted,
        "use_rslora": False,
    }  # the scale is in the matrices now
    (target / "adapter_config.json").write_text(json.dumps(config | smaller, indent=2) + "\n")
    return wanted


def _config(adapter: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text())
    if config.get("use_dora"):
        raise UserError(
            "todo",
            "A DoRA adapter changes the length of each layer's weights besides, so its rank says little. It cannot be compressed.",
        )
    return config


def _scale(config: dict[str, Any]) -> float:
    return config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])


def _layers(adapter: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Layer -> (A of (rank, inputs), B of (outputs, rank))."""
    from safetensors.torch import load_file

    _config(adapter)
    weights = {
        name: value.double().numpy()
        for name, value in load_file(adapter / "adapter_model.safetensors").items()
        if ".lora_" in name
    }
    names = [
        name.removesuffix(".lora_A.weight") for name in weights if name.endswith(".lora_A.weight")
    ]
    return {
        name: (weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"]) for name in names
    }


def _factors(down: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Singular vectors and values of up @ down, without ever making that large matrix."""
    left_basis, left = np.linalg.qr(up)
    right_basis, right = np.linalg.qr(down.T)
    u, values, v = np.linalg.svd(left @ right.T)
    return left_basis @ u, values, v @ right_basis.T
