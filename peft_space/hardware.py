"""What this machine has: device, memory, cores. What is fastest on it is measured on the model itself, in `training/plan.py`."""

import os
import resource
from typing import Literal

import psutil

Device = Literal["cpu", "cuda"]


def device() -> Device:
    """Where models compute here."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name() -> str:
    """The device in words, for the plan and the model card."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"CPU, {num_cores()} cores"


def peak_memory() -> int:
    """Most bytes that this process held so far: of the GPU where there is one, else of the machine's memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def free_memory() -> int:
    """Bytes that can still be taken: of the GPU where there is one, else of the machine's memory."""
    import torch

    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
