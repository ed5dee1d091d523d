"""Figures in words, the same on the page, through the API and on the command line."""

RESUME_ANYWAY = "*Resume anyway* on the page, or `train --resume RUN_DIR --anyway`"
"""How to go on from a checkpoint of other rows, another recipe or other libraries."""


def gigabytes(size: float) -> str:
    """Bytes in words."""
    return f"{size / 2**30:.{1 if size >= 2**30 else 2}f} GiB"


def duration(seconds: float) -> str:
    """Seconds in words, as exact as they are worth."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
