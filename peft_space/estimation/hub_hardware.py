"""The hardware that a Space on the Hugging Face Hub can be given: how much memory it has, and what its GPU multiplies at most.

Only what has one GPU at most, for a training computes on one. Knows nothing of prices, which change.
"""

import multiprocessing
from dataclasses import dataclass

from peft_space import settings
from peft_space.hardware import Device

USABLE_SHARE = 0.9
"""Share of the memory that is counted on: CUDA's own state, or the system and the libraries, take some, and a GPU shows less than its name says."""


@dataclass(frozen=True)
class SpaceHardware:
    """One kind, by the name that `huggingface_hub.SpaceHardware` gives it."""

    name: str
    title: str
    device: Device
    gigabytes: int
    """Of the GPU where there is one, else of the machine, in units of 10^9 bytes (Hub documentation, spaces-gpus and spaces-zerogpu, 2026)."""
    teraflops: float | None = None
    """10^12 operations a second in 16 bits without sparsity, by NVIDIA's data sheet; None where none was found."""

    @property
    def usable(self) -> int:
        """Bytes that a training may take."""
        return round(USABLE_SHARE * self.gigabytes * 1e9)


TERAFLOPS = {"T4": 65, "L4": 121, "L40S": 362, "A100": 312, "H200": 989}
"""10^12 operations a second in 16 bits without sparsity of one GPU, by its name in the list of jobs' hardware, by NVIDIA's data sheets."""

HARDWARE = (
    SpaceHardware("cpu-basic", "CPU basic, 2 cores", "cpu", 16),
    SpaceHardware("cpu-upgrade", "CPU upgrade, 8 cores", "cpu", 32),
    SpaceHardware("zero-a10g", "ZeroGPU, half an RTX PRO 6000", "cuda", 48),
    SpaceHardware("t4-small", "T4 small", "cuda", 16, 65),
    SpaceHardware("t4-medium", "T4 medium", "cuda", 16, 65),
    SpaceHardware("l4x1", "L4", "cuda", 24, 121),
    SpaceHardware("a10g-small", "A10G small", "cuda", 24),
    SpaceHardware("a10g-large", "A10G large", "cuda", 24),
    SpaceHardware("l40sx1", "L40S", "cuda", 48, 362),
    SpaceHardware("a100-large", "A100", "cuda", 80, 312),
    SpaceHardware("rtx-pro-6000", "RTX PRO 6000", "cuda", 96),
)


def zerogpu_hardware() -> SpaceHardware | None:
    """What a training will compute on where that is not what this process sees: on ZeroGPU outside of a slice, which is a daemon's."""
    if not settings.on_zerogpu() or multiprocessing.current_process().daemon:
        return None
    return next(kind for kind in HARDWARE if kind.name == "zero-a10g")


@dataclass(frozen=True)
class HardwareOffer:
    """A kind of hardware that jobs can have now."""

    kind: SpaceHardware
    num_gpus: int
    dollars_an_hour: float
