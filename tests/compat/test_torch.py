"""PyTorch and safetensors still report full memory and disks in the texts that the app parses."""

import os

import pytest
import torch

from peft_space.compat.torch import is_cpu_out_of_memory, is_gpu_out_of_memory, is_write_failure
from peft_space.errors import as_user_error


def test_a_failed_allocation_on_the_cpu_is_recognized():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**55, dtype=torch.uint8)
    assert is_cpu_out_of_memory(error.value)
    assert not is_gpu_out_of_memory(error.value)


def test_pytorch_still_writes_out_of_memory_in_its_gpu_error():
    assert issubclass(torch.OutOfMemoryError, RuntimeError)
    assert is_gpu_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    assert not is_gpu_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_in_torch_save_is_recognized():
    # an open file: a path could be replaced by a new file
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(Exception) as error:  # noqa: PT011
        torch.save(torch.zeros(10**6), full)
    assert is_write_failure(error.value) or as_user_error(error.value).code == "machine.disk_full"


@pytest.mark.parametrize(
    "message",
    [
        "[enforce fail at inline_container.cc:659] . unexpected pos 64 vs 0",
        "basic_ios::clear: iostream error",
        "Error while serializing: I/O error: No space left on device (os error 28)",
    ],
)
def test_the_texts_of_a_full_disk_are_recognized(message):
    assert is_write_failure(RuntimeError(message))
    assert not is_write_failure(RuntimeError("shape mismatch"))
