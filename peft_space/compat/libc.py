"""System calls that Python does not offer."""

import contextlib
import ctypes
import signal

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends, even if the parent is killed."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def release_freed_memory() -> None:
    """Return freed heap memory to the system; only glibc can do that.

    By default glibc keeps the space of most merged layers, in the end as much as the whole model.
    """
    with contextlib.suppress(AttributeError):  # other C libraries do not have this call
        ctypes.CDLL(None).malloc_trim(0)
