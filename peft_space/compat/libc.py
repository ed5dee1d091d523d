"""Calls to the C library that Python does not offer."""

import contextlib
import ctypes


def release_freed_memory() -> None:
    """Return freed heap memory to the system; only glibc can do that.

    By default glibc keeps the space of most merged layers, in the end as much as the whole model.
    """
    with contextlib.suppress(AttributeError):  # other C libraries do not have this call
        ctypes.CDLL(None).malloc_trim(0)
