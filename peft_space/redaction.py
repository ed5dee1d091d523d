"""Recognizes secrets, and removes them from logs, tracebacks and error messages."""

import logging
import re
import sys
import traceback
from typing import Any

# Each token in this list begins with a public prefix, which redaction keeps so that a log can
# still be understood. The tokens of a Hub sign-in have three parts with dots between them.
_PREFIXED = (
    r"(hf_(?:oauth|jwt)_)[A-Za-z0-9_.-]{20,}|(hf_)[A-Za-z0-9]{20,}"
    r"|(sk-|github_pat_)[A-Za-z0-9_-]{20,}|(gh[pousr]_)[A-Za-z0-9_-]{20,}"
    r"|(AKIA)[0-9A-Z]{16}|(AIza)[\w-]{35}|(xox[baprs]-)[\w-]{10,}"
    r"|(-----BEGIN [A-Z ]*PRIVATE KEY-----)(?:[\s\\n]*[A-Za-z0-9+/=]{20,})*"
    r"|(eyJ)[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"
)
_SECRET = re.compile(_PREFIXED)
_IN_LOG = re.compile(rf"{_PREFIXED}|(?<=Bearer )[^\s'\",]{{8,}}")
#: One of these is in every text that `_SECRET` matches. Checking them first is 20 times faster.
_HINTS = ("hf_", "sk-", "gh", "github_pat_", "AKIA", "AIza", "xox", "PRIVATE KEY", "eyJ")
_SECRET_FILE = re.compile(
    r"\.env(\..+)?|.*\.(pem|key|p12|pfx)|id_(rsa|dsa|ecdsa|ed25519)|\.netrc|\.pypirc"
    r"|credentials|token"
)


def redact(text: str) -> str:
    """Replace every secret in a text by its public prefix and an ellipsis."""
    return _IN_LOG.sub(lambda match: f"{next(filter(None, match.groups()), '')}…", text)


def has_secret(text: str) -> bool:
    """Return True if something in the text looks like a key or a token."""
    return any(hint in text for hint in _HINTS) and _SECRET.search(text) is not None


def is_secret_file(name: str) -> bool:
    """Return True if a file of this name usually holds a secret, whatever its content."""
    return _SECRET_FILE.fullmatch(name) is not None


def print_traceback() -> None:
    """Print the exception that is being handled to standard error, without secrets."""
    print(redact(traceback.format_exc()), file=sys.stderr)


def redact_logs() -> None:
    """Remove secrets from everything that this process logs from now on.

    Replaces the process's log record factory, which covers every logger, and `sys.excepthook`,
    which prints uncaught exceptions.
    """
    make = logging.getLogRecordFactory()
    if getattr(make, "redacts", False):
        return

    def make_redacted(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        try:
            record.msg, record.args = redact(record.getMessage()), ()
        except (TypeError, ValueError):  # a wrong format string: logging itself reports it
            return record
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = redact("".join(traceback.format_exception(*record.exc_info)).rstrip())
        return record

    make_redacted.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_redacted)
    sys.excepthook = lambda kind, error, trace: print(
        redact("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr
    )
