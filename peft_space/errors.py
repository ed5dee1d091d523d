"""The one exception whose text is written for the person using the product.

Knows nothing about where it will be shown: the page, the API and the command line show the same sentence.
"""

import errno

from peft_space.redaction import redact


class UserError(Exception):
    """A mistake that the user can fix.

    The message says what was found, where, and what to do. Every surface shows it unchanged.

    Args:
        code: a stable name such as "data.empty_file". Programs and tests rely on it; the message
            may change. `CODES` in `error_codes.py` lists every code with its cause and fix.
        message: complete sentences for the person who made the mistake.
    """

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str]]:
        return type(self), (self.code, str(self))


def as_user_error(error: BaseException) -> UserError | None:
    """The exception as one that the user can mend, whichever library raised it; None where it is our fault."""
    if isinstance(error, UserError):
        return error
    if _disk_full(error):
        return UserError(
            "machine.disk_full",
            "The disk is full. Free some space on it, then try again, or Resume a training: what was saved so far is kept.",
        )
    if where := oom_device(error):
        return UserError(
            "machine.out_of_memory",
            f"{where} has not enough memory for this. Set a smaller batch_size or max_length in the recipe, "
            "hold the base in 4 bits (quantization nf4), or choose a smaller base model.",
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
    """The text that every surface shows for an exception, with secrets removed.

    Args:
        error: any exception. A `UserError`, or what counts as one, is shown in its own words and
            with its code; anything else is reported as a bug.
    """
    if found := as_user_error(error):
        return redact(f"{found} [{found.code}]")
    return redact(
        f"This is a bug in the app ({type(error).__name__}: {error}). "
        "The log has the details. Please report it."
    )


def error_json(error: BaseException) -> dict[str, str | bool]:
    """An exception as the processes of the app pass it on.

    Returns:
        `error`: the message. `code`: the code of a `UserError`, or "bug". `users`: whether the
        user can fix it.
    """
    if found := as_user_error(error):
        return {"error": redact(str(found)), "code": found.code, "users": True}
    return {"error": user_message(error), "code": "bug", "users": False}
