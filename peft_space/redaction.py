"""Keeps secrets out of what is written down: logs, tracebacks, and the sentences that users see."""

import logging
import re
import sys
import traceback
from typing import Any

# a token of signing in has three parts with dots between, of which the first is everybody's
_SECRET = re.compile(
    r"(hf_(?:oauth|jwt)_)[A-Za-z0-9_.-]{20,}|(hf_)[A-Za-z0-9]{20,}|(sk-|ghp_|github_pat_)[A-Za-z0-9_-]{20,}|(?<=Bearer )[^\s'\",]{8,}"
)


def redact(text: str) -> str:
    """The text with no more than the beginning of each token in it."""
    return _SECRET.sub(lambda found: f"{found[1] or found[2] or found[3] or ''}…", text)


def has_secret(text: str) -> bool:
    """Whether something in it looks like a token."""
    return _SECRET.search(text) is not None


def print_traceback() -> None:
    """Print the exception that is being handled, masked, to standard error."""
    print(redact(traceback.format_exc()), file=sys.stderr)


def redact_logs() -> None:
    """Mask every record of every logger of this process, its traceback too, and exceptions that nobody handles."""
    make = logging.getLogRecordFactory()
    if getattr(make, "masks", False):
        return

    def make_masked(*args: Any, **named: Any) -> logging.LogRecord:
        record = make(*args, **named)
        try:
            record.msg, record.args = redact(record.getMessage()), ()
        except (TypeError, ValueError):  # the logger's own mistake, which logging tells of
            return record
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = redact("".join(traceback.format_exception(*record.exc_info)).rstrip())
        return record

    make_masked.masks = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_masked)
    sys.excepthook = lambda kind, error, trace: print(
        redact("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr
    )
