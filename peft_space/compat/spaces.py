"""Recognizes the errors of ZeroGPU's `spaces` package, which differ only by title and text."""

import re
from typing import Literal, NamedTuple

GpuErrorCode = Literal[
    "runtime.gpu_illegal_duration",
    "runtime.gpu_quota_exceeded",
    "runtime.no_gpu_available",
    "runtime.sign_in_expired",
    "runtime.gpu_taken_away",
    "runtime.visitor_left",
]


class GpuError(NamedTuple):
    """Why ZeroGPU gave no GPU, or took it away.

    `requested` and `left` are seconds of the visitor's quota, where `spaces` reports them.
    """

    code: GpuErrorCode
    requested: int | None = None
    left: int | None = None


#: Exact titles of `spaces`' errors.
TITLES: dict[str, GpuErrorCode] = {
    "ZeroGPU illegal duration": "runtime.gpu_illegal_duration",
    "ZeroGPU quota exceeded": "runtime.gpu_quota_exceeded",
    "ZeroGPU pending credits exceeded": "runtime.gpu_quota_exceeded",
    "ZeroGPU queue timeout": "runtime.no_gpu_available",
    "ZeroGPU worker error": "runtime.gpu_taken_away",
}
#: Parts of the messages of errors that have another title, or none.
MESSAGES: dict[str, GpuErrorCode] = {
    "No GPU was available": "runtime.no_gpu_available",
    "Expired ZeroGPU proxy token": "runtime.sign_in_expired",
    "Connection closed by visitor": "runtime.visitor_left",
}
_QUOTA = re.compile(r"\((\d+)s requested vs\. (-?\d+)s left\)")


def parse_gpu_error(error: BaseException) -> GpuError | None:
    """Return what an error of `spaces` means; None for any other error."""
    title, message = getattr(error, "title", ""), str(getattr(error, "message", error))
    in_message = (code for part, code in MESSAGES.items() if part in message)
    if code := TITLES.get(title) or next(in_message, None):
        quota = _QUOTA.search(message) if title == "ZeroGPU quota exceeded" else None
        return GpuError(code, *map(int, quota.groups())) if quota else GpuError(code)
    return None
