"""The errors of ZeroGPU's `spaces` package, which differ only by text, and its unit of time."""

import re
from datetime import timedelta
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


def requested_seconds(seconds: int) -> int:
    """The duration to request, so that ZeroGPU lends and charges at most `seconds`.

    `spaces` multiplies what is requested by a factor, 1.5 for some GPUs.
    """
    return max(1, int(seconds / _duration_factor()))


def granted_seconds(seconds: int) -> int:
    """The seconds that ZeroGPU lends and charges for `requested_seconds(seconds)`."""
    return int(requested_seconds(seconds) * _duration_factor())


def _duration_factor() -> float:
    from spaces.zero import client

    return client.get_duration_seconds(timedelta(seconds=100), None) / 100
