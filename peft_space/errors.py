"""The exception for mistakes that a user can fix; every surface shows its message unchanged."""

import errno

from peft_space.compat import torch as torch_errors
from peft_space.redaction import redact


class UserError(Exception):
    """A mistake that the user can fix.

    The message names the problem, its place and the fix. Every surface shows it unchanged.

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
    """Return the exception as a `UserError` if the user can fix its cause, else None.

    A full disk and a lack of memory count as such, whichever library reports them.
    """
    if isinstance(error, UserError):
        return error
    if _is_disk_full(error):
        return UserError(
            "machine.disk_full",
            "The disk is full. Free some space. Then try again, or resume the training: "
            "the app keeps all saved work.",
        )
    if device := oom_device(error):
        return UserError(
            "machine.out_of_memory",
            f"{device} does not have enough memory for this. Set a smaller batch_size or "
            "max_length in the recipe, load the base model in 4 bits (quantization nf4), or "
            "choose a smaller base model.",
        )
    return None


def _is_disk_full(error: BaseException) -> bool:
    is_os_error = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return is_os_error or torch_errors.is_write_failure(error)


def oom_device(error: BaseException) -> str | None:
    """Return what ran out of memory, as the subject of a sentence; None if nothing did."""
    if torch_errors.is_gpu_out_of_memory(error):
        return "The GPU"
    is_os_error = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or is_os_error or torch_errors.is_cpu_out_of_memory(error):
        return "This machine"
    return None


def user_message(error: BaseException) -> str:
    """The text that every surface shows for an exception, with secrets removed.

    Args:
        error: any exception. A `UserError`, or what counts as one, is shown in its own words and
            with its code; anything else is reported as a bug.
    """
    if user_error := as_user_error(error):
        return redact(f"{user_error} [{user_error.code}]")
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
    if user_error := as_user_error(error):
        return {"error": redact(str(user_error)), "code": user_error.code, "users": True}
    return {"error": user_message(error), "code": "bug", "users": False}
