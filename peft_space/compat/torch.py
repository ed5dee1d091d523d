"""Every use of the internals of PyTorch, and of the English in its error messages."""

import re

_DTYPE_ERRORS = re.compile("BFloat16|bfloat16|mixed dtype")


def is_dtype_error(error: BaseException) -> bool:
    """Return True if PyTorch cannot compute in bfloat16, or in bfloat16 and float32 together."""
    return bool(_DTYPE_ERRORS.search(str(error)))
