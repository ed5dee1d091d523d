"""What several commands take: data, and how they are to be read."""

import argparse
import json
from typing import Any

from peft_space.errors import UserError


def data_of(given: argparse.Namespace) -> Any:
    """The one file, or the list of those that are joined."""
    return given.data[0] if len(given.data) == 1 else given.data


def reading_of(given: argparse.Namespace) -> dict[str, Any]:
    """What `--reading` says. Raises UserError where it is no JSON object."""
    try:
        reading = json.loads(given.reading)
    except ValueError as error:
        raise UserError(f'--reading is not JSON ({error}). Write it like {{"shape": "text", "columns": {{"text": "body"}}}}.') from None
    if not isinstance(reading, dict):
        raise UserError('--reading is no object. Write it like {"shape": "text", "columns": {"text": "body"}}.')
    return reading
