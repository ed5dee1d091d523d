"""Readers: a module for each kind of file, which yields numbered rows with every value verbatim."""

import datetime
import math
from collections.abc import Callable, Sequence
from typing import Any

from peft_space import settings
from peft_space.errors import UserError

NumberedRow = tuple[int, str, dict[str, Any]]
"""Row number, JSON text of the row, and the row."""
Note = Callable[[str], None]
"""Receives a sentence about what the reader detected."""

MAX_COLUMNS = 1_000
MAX_ROW_CHARACTERS = 20_000_000
"""A longer row usually has a missing quotation mark."""


def max_unpacked_bytes() -> float:
    """Return the limit for uncompressed content, which is twice the limit for a file."""
    return 2.0 * settings.max_file_megabytes() * 1e6


def check_unpacked_size(name: str, num_bytes: float) -> None:
    """Raise UserError if the uncompressed content of the file `name` exceeds the limit."""
    if num_bytes > max_unpacked_bytes():
        raise UserError(
            "data.file_too_large",
            f"{name}: it unpacks to more than {max_unpacked_bytes() / 1e6:.0f} MB. "
            "Use fewer rows, or raise PEFT_SPACE_MAX_FILE_MB.",
        )


def check_row_length(name: str, place: str, num_characters: float) -> None:
    """Raise UserError, naming the place in the file `name`, if a row is too long."""
    if num_characters > MAX_ROW_CHARACTERS:
        limit = f"{MAX_ROW_CHARACTERS / 1e6:.0f} million characters"
        message = f"{name}: {place} has more than {limit}. Split it or remove it."
        raise UserError("data.row_too_long", message)


def check_columns(name: str, columns: Sequence[str]) -> None:
    """Raise UserError if the file `name` has too many columns, or two with the same name."""
    if len(columns) > MAX_COLUMNS:
        raise UserError(
            "data.too_many_columns",
            f"{name}: {len(columns):,} columns exceed the limit of {MAX_COLUMNS:,}. "
            "Keep the ones that the model should see.",
        )
    if len(set(columns)) < len(columns):
        twice = next(column for column in columns if columns.count(column) > 1)
        message = f"{name}: two columns are named {twice!r}. Rename one of them."
        raise UserError("data.duplicate_column", message)


class WrittenNumber(str):
    """A number as it is written in a JSON file: 1e5, 0.10 and thirty digits are text to a model.

    In the arguments of a tool call it is a number again.
    """


def as_written(value: Any) -> Any:
    """Convert a typed value to text, keeping booleans, None and the structure of nested values.

    Numbers in objects stay numbers, because they can be arguments of a tool call.
    """
    if isinstance(value, dict):
        return {
            str(key): inner if _is_number(inner) else as_written(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [as_written(inner) for inner in value]
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, float) and math.isnan(value):  # as pandas writes a missing value
        return None
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def first_line(error: Exception) -> str:
    """Return the first line of a library's error message, at most 200 characters."""
    return (str(error).strip().split("\n", 1)[0] or type(error).__name__)[:200]
