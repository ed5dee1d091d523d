"""The internals of PyTorch that the app uses behave as it expects."""

import os

import pytest
import torch

from peft_space.compat.torch import (
    each_result,
    fake_tensors,
    is_cpu_out_of_memory,
    is_dtype_error,
    is_gpu_out_of_memory,
    is_lost_peer,
    is_write_failure,
    materialize_fake,
    storage_address,
)
from peft_space.errors import as_user_error


def test_fake_tensors_have_shapes_and_no_contents():
    with fake_tensors():
        product = torch.empty(10**6, 10**5) @ torch.empty(10**5, 3)
    assert product.shape == (10**6, 3)


def test_views_share_the_address_of_their_storage():
    tensor = torch.zeros(4)
    address = storage_address(tensor.untyped_storage())
    assert storage_address(tensor[1:].untyped_storage()) == address
    assert storage_address(torch.zeros(4).untyped_storage()) != address


def test_materialized_parameters_keep_ties_and_leave_the_meta_device():
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        model.register_buffer("scale", torch.empty(1))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad = False
    with fake_tensors():
        materialize_fake(model, "cpu")
    assert model[1].weight is model[0].weight
    assert not model[0].bias.requires_grad
    assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {"cpu"}


@pytest.mark.parametrize(
    "compute",
    [
        lambda: torch.zeros(2, 2, dtype=torch.bfloat16) @ torch.zeros(2, 2),
        lambda: torch.nn.LayerNorm(2, dtype=torch.bfloat16)(torch.zeros(2, 2)),
        lambda: torch.zeros(2, dtype=torch.bfloat16).numpy(),
    ],
    ids=["matrix product", "norm", "numpy"],
)
def test_errors_of_bfloat16_are_recognized(compute):
    with pytest.raises((RuntimeError, TypeError)) as error:
        compute()
    assert is_dtype_error(error.value)


def test_other_errors_are_not_dtype_errors():
    with pytest.raises(RuntimeError) as error:
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    assert not is_dtype_error(error.value)


def test_a_failed_allocation_on_the_cpu_is_recognized():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**55, dtype=torch.uint8)
    assert is_cpu_out_of_memory(error.value)
    assert not is_gpu_out_of_memory(error.value)


def test_pytorch_still_writes_out_of_memory_in_its_gpu_error():
    assert issubclass(torch.OutOfMemoryError, RuntimeError)
    assert is_gpu_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    assert is_gpu_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED"))
    assert is_gpu_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
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


def test_the_end_of_another_process_is_recognized():
    message = "[pair.cc:537] Read error [127.0.0.1]:59090: Connection reset by peer. This is"
    assert is_lost_peer(RuntimeError(message))
    assert not is_lost_peer(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_lost_peer(ConnectionResetError("Connection reset by peer"))


def test_the_result_of_each_operation_is_seen_also_on_fake_tensors():
    seen = []
    with fake_tensors():
        rows = torch.ones(2, 3)
        with each_result(seen.append):
            product = rows @ rows.T + 1
    shapes = [tuple(value.shape) for value in seen if isinstance(value, torch.Tensor)]
    assert shapes == [(3, 2), (2, 2), (2, 2)]  # transposed, multiplied, added
    assert tuple(product.shape) == (2, 2)
