"""What this machine has: device, memory, cores. What is fastest on it is measured on the model itself, in `training/plan.py`."""

import os
from typing import Literal

Device = Literal["cpu", "cuda"]


def device() -> Device:
    """Where models compute here."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name() -> str:
    """The device in words, for the plan and the model card."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"CPU, {num_cores()} cores"


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
