"""What the Hub takes in the front matter of a Space's README, from its configuration reference and from huggingface_hub's own lists."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from huggingface_hub import SpaceHardware

COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
SCOPES = {
    "email", "read-billing", "read-repos", "gated-repos", "contribute-repos", "write-repos", "manage-repos", "inference-api", "jobs", "webhooks",
    "write-discussions",
}  # fmt: skip
_REPO = r"([\w.-]+/)?[\w.-]+"


def _text(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _list(one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and bool(value) and all(one(item) for item in value)


_RULES: dict[str, Callable[[Any], bool]] = {
    "title": _text(r".{1,100}"),
    "emoji": _text(r"[^\w\s!-~]{1,4}"),
    "colorFrom": COLOURS.__contains__,
    "colorTo": COLOURS.__contains__,
    "sdk": {"gradio", "docker", "static"}.__contains__,
    "sdk_version": _text(r"\d+\.\d+\.\d+"),
    "python_version": _text(r"3\.\d+(\.\d+)?"),
    "app_file": _text(r"[\w./-]+"),
    "short_description": _text(r".{1,60}"),
    "license": _text(r"[a-z0-9.-]+"),
    "suggested_hardware": {flavor.value for flavor in SpaceHardware}.__contains__,
    "startup_duration_timeout": _text(r"\d+(\.\d+)?[smh]"),
    "hf_oauth": lambda value: isinstance(value, bool),
    "hf_oauth_scopes": _list(SCOPES.__contains__),
    "models": _list(_text(_REPO)),
    "datasets": _list(_text(_REPO)),
    "tags": _list(_text(r"[\w.-]+")),
    "pinned": lambda value: isinstance(value, bool),
}
_NEEDED = ("title", "emoji", "colorFrom", "colorTo", "sdk")


def faults(fields: dict[str, Any]) -> Iterator[str]:
    """What the Hub would refuse, or would pass over as unknown."""
    for name, value in fields.items():
        if name not in _RULES:
            yield f'"{name}" is not known'
        elif not _RULES[name](value):
            yield f'"{name}" with value {value!r} is not valid'
    yield from (f'"{name}" is required' for name in _NEEDED if name not in fields)
