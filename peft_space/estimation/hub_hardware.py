"""Lists the hardware of Spaces on the Hugging Face Hub: its memory and its GPU's peak speed.

Only hardware with at most one GPU, because a training runs on one. Prices change, so they are not
listed here.
"""

import multiprocessing
from dataclasses import dataclass

from peft_space import settings
from peft_space.hardware import Device

USABLE_SHARE = 0.9
"""The share of the memory that a training may take. CUDA's own state, or the system and the
libraries, take the rest, and a GPU has less memory than its name says."""


@dataclass(frozen=True)
class SpaceHardware:
    """One kind of hardware, by the name that `huggingface_hub.SpaceHardware` gives it."""

    name: str
    title: str
    device: Device
    gigabytes: int
    """10^9 bytes, of the GPU if there is one, otherwise of the machine.

    Source: Hub documentation, spaces-gpus and spaces-zerogpu, 2026."""
    teraflops: float | None = None
    """10^12 operations a second in 16 bits without sparsity, by NVIDIA's data sheet; None if it
    states none."""

    @property
    def usable(self) -> int:
        """Bytes that a training may take."""
        return round(USABLE_SHARE * self.gigabytes * 1e9)


TERAFLOPS = {"T4": 65, "L4": 121, "L40S": 362, "A100": 312, "H200": 989}
"""10^12 operations a second of one GPU, in 16 bits without sparsity, by NVIDIA's data sheets. The
names are those in the list of hardware for Jobs."""

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
    """The GPU that a training will get if this process does not see it yet.

    Returns:
        None unless this is ZeroGPU, outside of a GPU slice. (A slice runs in a daemon process.)
    """
    if not settings.on_zerogpu() or multiprocessing.current_process().daemon:
        return None
    return next(kind for kind in HARDWARE if kind.name == "zero-a10g")


@dataclass(frozen=True)
class HardwareOffer:
    """Hardware that Jobs offer now, with its price."""

    kind: SpaceHardware
    num_gpus: int
    dollars_an_hour: float
