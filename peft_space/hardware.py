"""The device, memory, cores and speed of this machine."""

import contextlib
import ctypes
import gc
import os
import resource
import sys
from pathlib import Path
from typing import Literal

import psutil

Device = Literal["cpu", "cuda"]


def device() -> Device:
    """The device that models run on."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def num_devices() -> int:
    """How many devices a training can use: the GPUs, or 1 for the CPU."""
    import torch

    return torch.cuda.device_count() or 1


def device_name() -> str:
    """The name of the device, for the plan and the model card."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return f"CPU, {num_cores()} cores"


def peak_memory() -> int:
    """Peak memory of this process in bytes: of the GPU if there is one, else of the machine."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_memory(at_most: bool = False) -> int:
    """Bytes of the machine's memory that this process uses.

    Args:
        at_most: return the peak instead. A child does not inherit it, unlike `peak_memory`.
    """
    return _counter(Path("/proc/self/status"), "VmHWM:" if at_most else "VmRSS:") * 1024


def release_memory() -> None:
    """Give back the memory of models that nothing refers to any more.

    Layers of a quantized or adapted model refer to each other in circles, and PyTorch keeps freed
    GPU memory for this process. Without this, no other process could use it.
    """
    gc.collect()
    if torch := sys.modules.get("torch"):
        torch.cuda.empty_cache()  # does nothing without a GPU in use
    release_freed_memory()


def release_freed_memory() -> None:
    """Return freed heap memory to the system; only glibc can do that.

    By default glibc keeps the space of most merged layers, in the end as much as the whole model.
    """
    with contextlib.suppress(AttributeError):  # other C libraries do not have this call
        ctypes.CDLL(None).malloc_trim(0)


USABLE_GPU_SHARE = 0.9
"""Share of a GPU's free memory for tensors. The rest is for the libraries' workspaces, and for
holes between tensors of different sizes."""


def free_memory() -> int:
    """Usable memory in bytes: of the GPU if there is one, else of the machine."""
    import torch

    if torch.cuda.is_available():
        return int(USABLE_GPU_SHARE * torch.cuda.mem_get_info()[0])
    return free_ram()


def has_gpu_driver() -> bool:
    """Return True if NVIDIA's driver runs here. Unlike `device`, it needs no torch."""
    return Path("/proc/driver/nvidia/version").exists()


def free_ram() -> int:
    """Bytes of the machine's memory that this process can still use, within container limits."""
    free = [psutil.virtual_memory().available]
    for group in _cgroups():
        limit = _number(group, "memory.max", "memory.limit_in_bytes")
        used = _number(group, "memory.current", "memory.usage_in_bytes")
        if limit is not None and used is not None:
            is_v1 = group.is_relative_to(_CGROUPS_V1)
            cached = "total_inactive_file" if is_v1 else "inactive_file"
            free.append(limit - used + _counter(group / "memory.stat", cached))
    return max(0, min(free))


def kills_for_memory() -> int:
    """How many processes the system has killed for memory, on the machine or in this container.

    The counter only grows; compare two values.
    """
    files = [Path("/proc/vmstat")]
    for group in _cgroups():
        files += [group / "memory.events", group / "memory.oom_control"]
    return sum(_counter(file, "oom_kill") for file in files)


_CGROUPS = Path("/sys/fs/cgroup")
_CGROUPS_V1 = _CGROUPS / "memory"


def _cgroups() -> list[Path]:
    """The control groups that limit this process's memory, the innermost first (man 7 cgroups)."""
    groups = []
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            root = _CGROUPS_V1
        elif not controllers:
            root = _CGROUPS
        else:
            continue
        own = root / path.lstrip("/")
        groups += [folder for folder in (own, *own.parents) if folder.is_relative_to(root)]
    return groups


def _number(folder: Path, *names: str) -> int | None:
    """The number in the first of these files that exists; None for "max" or no file."""
    text = next((text for name in names if (text := _text(folder / name).strip())), "")
    return int(text) if text.isdigit() else None


def _counter(path: Path, name: str) -> int:
    """The number after `name` in a file of "name number" lines; 0 if there is none."""
    lines = (line.split() for line in _text(path).splitlines())
    return next((int(fields[1]) for fields in lines if fields[:1] == [name]), 0)


def _text(path: Path) -> str:
    """The content of a system file; empty if this system does not have it."""
    try:
        return path.read_text()
    except OSError:
        return ""


def num_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
