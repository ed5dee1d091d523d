"""Uses of the internals of transformers."""

from pathlib import Path
from typing import Any


def has_auto_model(auto_class: Any, config_class: type) -> bool:
    """Return True if an `AutoModelFor…` class of transformers has a model for this config class."""
    return config_class in auto_class._model_mapping


def cached_repo_file(location: str, name: str, revision: str | None) -> Path | None:
    """The local path of a model's file, downloaded if necessary.

    Returns:
        None if the model has no such file, or if the file is not cached and the Hub is unreachable.
        `cached_file` raises an error in these cases unless two private arguments are set.
    """
    from transformers.utils.hub import cached_file

    path = cached_file(
        location,
        name,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(path) if path else None
