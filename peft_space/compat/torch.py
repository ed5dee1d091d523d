"""Recognizes PyTorch's and safetensors' errors, which have no class of their own, by their text."""


def is_gpu_out_of_memory(error: BaseException) -> bool:
    """Return True for PyTorch's and cuBLAS's errors about GPU memory."""
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "CUBLAS_STATUS_ALLOC_FAILED" in text
    )


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
