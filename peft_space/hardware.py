"""What this machine has: device, memory, cores, speed. What is fastest on it is measured on a layer of the model, in `training/autotune.py`."""

import os
import resource
import statistics
import time
from pathlib import Path
from typing import Literal

import psutil

Device = Literal["cpu", "cuda"]


def device() -> Device:
    """Where models compute here."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def num_devices() -> int:
    """How many devices a training can be shared by: GPUs, or the machine itself."""
    import torch

    return torch.cuda.device_count() or 1


def device_name() -> str:
    """The device in words, for the plan and the model card."""
    import torch

    return (
        torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"CPU, {num_cores()} cores"
    )


def peak_memory() -> int:
    """Most bytes that this process held so far: of the GPU where there is one, else of the machine's memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_memory(at_most: bool = False) -> int:
    """Bytes of the machine's memory that this process holds, or held at most so far. A child does not inherit them, as it does `peak_memory`."""
    key = "VmHWM:" if at_most else "VmRSS:"
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)
    )
    return int(line.split()[1]) * 1024


_MEASURED_SECONDS = 0.05


def flops_a_second(num_rows: int, width: int, dtype: str) -> float:
    """Floating-point operations a second in products of (num_rows, width) and (width, width), the median of what runs in 50 ms."""
    import torch

    where = device()
    rows, weight = (
        torch.randn(size, width, dtype=getattr(torch, dtype), device=where)
        for size in (num_rows, width)
    )
    seconds: list[float] = []
    with torch.inference_mode():
        torch.nn.functional.linear(rows, weight)  # warms up
        while sum(seconds) < _MEASURED_SECONDS or len(seconds) < 3:
            began = time.perf_counter()
            torch.nn.functional.linear(rows, weight)
            if where == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
    return 2 * num_rows * width**2 / statistics.median(seconds)


def free_memory() -> int:
    """Bytes that can still be taken: of the GPU where there is one, else of the machine's memory."""
    import torch

    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else free_ram()


def free_ram() -> int:
    """Bytes of the machine's memory that this process can still take: what is available, and what a container's limits leave."""
    left = [
        limit
        - used
        + _counter(
            folder / "memory.stat",
            "total_inactive_file" if folder.is_relative_to(_CGROUPS_V1) else "inactive_file",
        )
        for folder in _cgroups()
        for limit, used in [
            (
                _number(folder, "memory.max", "memory.limit_in_bytes"),
                _number(folder, "memory.current", "memory.usage_in_bytes"),
            )
        ]
        if limit is not None and used is not None
    ]
    return max(0, min([psutil.virtual_memory().available, *left]))


def kills_for_memory() -> int:
    """How many processes the system ended so far for want of memory, on the machine or in this container; counted up, for differences."""
    machine = _counter(Path("/proc/vmstat"), "oom_kill")
    groups = [
        _counter(folder / name, "oom_kill")
        for folder in _cgroups()
        for name in ("memory.events", "memory.oom_control")
    ]
    return machine + sum(groups)


_CGROUPS = Path("/sys/fs/cgroup")
_CGROUPS_V1 = _CGROUPS / "memory"


def _cgroups() -> list[Path]:
    """Folders of the control groups that limit this process's memory, from its own outwards. (man 7 cgroups)"""
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
    """What stands in the first of these files that is there; None where it is no number, as `max`."""
    text = next((text for name in names if (text := _text(folder / name).strip())), "")
    return int(text) if text.isdigit() else None


def _counter(path: Path, name: str) -> int:
    """The number beside `name` in a file of such lines; 0 where there is none."""
    return next(
        (int(line.split()[1]) for line in _text(path).splitlines() if line.split()[:1] == [name]), 0
    )


def _text(path: Path) -> str:
    """What a file of the system says; nothing where this system has no such file."""
    try:
        return path.read_text()
    except OSError:
        return ""


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
