"""The one exception whose text is written for the person using the product.

Knows nothing about where it will be shown: the page, the API and the command line show the same sentence.
"""

import errno


class UserError(Exception):
    """Something the user can mend. Its text says what was found, where, and what to do, and is shown as it is.

    >>> raise UserError("people.csv: the file is empty. Upload a file with at least one row.")
    """


def explain(error: BaseException) -> str:
    """What to tell the user of any exception: a UserError's own words, or that it is our fault and where the details are."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "The disk is full. Make room on it, then try again; what was saved so far is kept."
    return f"This is a fault of the app, not yours ({type(error).__name__}: {error}). The log has the details; please report it."
