"""Uses of the internals of PyTorch."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.nn import Module


def fake_tensors() -> AbstractContextManager[Any]:
    """A context in which operations compute shapes only: tensors have no contents."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def fake_tensor_errors() -> tuple[type[Exception], ...]:
    """Errors of operations on fake tensors whose result depends on contents."""
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
    )

    return DataDependentOutputException, DynamicOutputShapeException


def each_result(on_result: Callable[[Any], None]) -> AbstractContextManager[Any]:
    """A context in which `on_result` is called with each value that an operation returns."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Recording(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            results = func(*args, **(kwargs or {}))
            for result in tree_leaves(results):
                on_result(result)
            return results

    return Recording()


def storage_address(storage: Any) -> int:
    """A number that identifies a tensor's `untyped_storage()` while it lives. Views share it."""
    return storage._cdata


def materialize_fake(model: Any, device: str) -> None:
    """Replace all parameters and buffers of a model on the meta device by empty ones on `device`.

    Within `fake_tensors` this takes no memory. Tied weights stay tied.
    """
    import torch

    new_tensors: dict[int, Any] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in new_tensors:
                    new = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                    if tensors is module._parameters:
                        new = torch.nn.Parameter(new, tensor.requires_grad)
                    new_tensors[id(tensor)] = new
                tensors[name] = new_tensors[id(tensor)]


_DTYPE_ERRORS = re.compile("BFloat16|bfloat16|mixed dtype")


def is_dtype_error(error: BaseException) -> bool:
    """Return True if PyTorch cannot compute in bfloat16, or in bfloat16 and float32 together."""
    return bool(_DTYPE_ERRORS.search(str(error)))


def is_gpu_out_of_memory(error: BaseException) -> bool:
    """Return True for the errors of PyTorch and of CUDA's libraries about GPU memory.

    A library that finds no memory for its workspace at its first use says that it is not
    initialized.
    """
    signs = ("out of memory", "_STATUS_ALLOC_FAILED", "_STATUS_NOT_INITIALIZED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def ignore_in_ddp(model: "Module", names: list[str]) -> None:
    """Make DistributedDataParallel neither broadcast nor reduce these parameters."""
    from torch.nn.parallel import DistributedDataParallel

    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)


def is_lost_peer(error: BaseException) -> bool:
    """Return True if another process of a shared training has ended, as gloo and NCCL say it."""
    signs = ("Connection reset by peer", "Connection closed by peer", "remote process exited")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def is_cpu_out_of_memory(error: BaseException) -> bool:
    """Return True for the RuntimeError of PyTorch's CPU allocator.

    PyTorch writes "can't allocate memory", the operating system "Cannot allocate memory".
    """
    return isinstance(error, RuntimeError) and "t allocate memory" in str(error)


def is_write_failure(error: BaseException) -> bool:
    """Return True if `torch.save` or safetensors could not write a file because the disk is full.

    `torch.save` raises "unexpected pos" or "iostream error"; safetensors passes on the text of the
    operating system without its errno.
    """
    text = str(error)
    torch_failed = "unexpected pos" in text or "iostream error" in text
    return (isinstance(error, RuntimeError) and torch_failed) or "No space left on device" in text
