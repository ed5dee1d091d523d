"""What several commands take: data, and how they are to be read."""

import argparse
import json
from typing import Any

from peft_space.errors import UserError


def data_of(given: argparse.Namespace) -> Any:
    """The one file, or the list of those that are joined."""
    return given.data[0] if len(given.data) == 1 else given.data


def column_mapping_of(given: argparse.Namespace) -> dict[str, Any]:
    """What `--column-mapping` says. Raises UserError where it is no JSON object."""
    try:
        column_mapping = json.loads(given.column_mapping)
    except ValueError as error:
        raise UserError(
            "todo",
            f'--column-mapping is not JSON ({error}). Write it like {{"schema": "text", "columns": {{"text": "body"}}}}.',
        ) from None
    if not isinstance(column_mapping, dict):
        raise UserError(
            "todo",
            '--column-mapping is no object. Write it like {"schema": "text", "columns": {"text": "body"}}.',
        )
    return column_mapping
