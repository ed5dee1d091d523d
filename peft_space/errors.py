"""The one exception whose text is written for the person using the product.

Knows nothing about where it will be shown: the page, the API and the command line show the same sentence.
"""

import errno

from peft_space.redaction import redact


class UserError(Exception):
    """Something the user can mend. Its text says what was found, where, and what to do, and is shown as it is.

    >>> raise UserError("people.csv: the file is empty. Upload a file with at least one row.")
    """


def as_user_error(error: BaseException) -> UserError | None:
    """The exception as one that the user can mend, whichever library raised it; None where it is our fault."""
    if isinstance(error, UserError):
        return error
    if _disk_full(error):
        return UserError(
            "The disk is full. Free some space on it, then try again, or Resume a training: what was saved so far is kept."
        )
    if where := oom_device(error):
        return UserError(
            f"{where} has not enough memory for this. Set a smaller batch_size or max_length in the recipe, "
            "hold the base in 4 bits (quantization nf4), or choose a smaller base model."
        )
    return None


def _disk_full(error: BaseException) -> bool:
    """Whether something could not be written for want of room. PyTorch and safetensors say it only by their words."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    words = str(error)
    unwritten = isinstance(error, RuntimeError) and (
        "unexpected pos" in words or "iostream error" in words
    )
    return unwritten or "No space left on device" in words


def oom_device(error: BaseException) -> str | None:
    """What ran out of memory, if anything did. PyTorch says it by classes that are not imported here, and on a CPU only by its words."""
    words = str(error)
    if isinstance(error, RuntimeError) and (
        "out of memory" in words or "CUBLAS_STATUS_ALLOC_FAILED" in words
    ):
        return "The GPU"
    if isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM
    ):
        return "This machine"
    # PyTorch's words are "can't allocate memory", the system's "Cannot allocate memory"
    return (
        "This machine" if isinstance(error, RuntimeError) and "t allocate memory" in words else None
    )


def user_message(error: BaseException) -> str:
    """What to tell the user of any exception: what they can mend, in its own words, or that it is our fault and where the details are."""
    if found := as_user_error(error):
        return redact(str(found))
    return redact(
        f"This is a fault of the app, not yours ({type(error).__name__}: {error}). The log has the details; please report it."
    )
