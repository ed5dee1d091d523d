"""Recognizes the errors of ZeroGPU's `spaces` package, which differ only by title and text."""

import re
from typing import Literal, NamedTuple

GpuErrorKind = Literal[
    "illegal_duration",
    "quota_exceeded",
    "no_gpu_available",
    "sign_in_expired",
    "gpu_taken_away",
    "visitor_left",
]


class GpuError(NamedTuple):
    """Why ZeroGPU gave no GPU, or took it away.

    `requested` and `left` are seconds of the visitor's quota, where `spaces` reports them.
    """

    kind: GpuErrorKind
    requested: int | None = None
    left: int | None = None


#: Exact titles of `spaces`' errors.
TITLES: dict[str, GpuErrorKind] = {
    "ZeroGPU illegal duration": "illegal_duration",
    "ZeroGPU quota exceeded": "quota_exceeded",
    "ZeroGPU pending credits exceeded": "quota_exceeded",
    "ZeroGPU queue timeout": "no_gpu_available",
    "ZeroGPU worker error": "gpu_taken_away",
}
#: Parts of the messages of errors that have another title, or none.
MESSAGES: dict[str, GpuErrorKind] = {
    "No GPU was available": "no_gpu_available",
    "Expired ZeroGPU proxy token": "sign_in_expired",
    "Connection closed by visitor": "visitor_left",
}
_QUOTA = re.compile(r"\((\d+)s requested vs\. (-?\d+)s left\)")


def parse_gpu_error(error: BaseException) -> GpuError | None:
    """Return what an error of `spaces` means; None for any other error."""
    title, message = getattr(error, "title", ""), str(getattr(error, "message", error))
    in_message = (kind for part, kind in MESSAGES.items() if part in message)
    if kind := TITLES.get(title) or next(in_message, None):
        quota = _QUOTA.search(message) if title == "ZeroGPU quota exceeded" else None
        return GpuError(kind, *map(int, quota.groups())) if quota else GpuError(kind)
    return None
