"""The command line: check, train, compare, evaluate, export and push, the same functions as the page, without a browser.

Exit status: 0 done, 2 the user's mistake (one message on stderr), 1 ours (with its traceback).
"""

import contextlib
import gc
import json
import sys
from collections.abc import Iterator
from typing import Any

from peft_space import settings
from peft_space.cli.parser import parser
from peft_space.errors import as_user_error, user_message
from peft_space.redaction import print_traceback
from peft_space.runtime.worker_pool import WorkerFault


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    settings.prepare_libraries()
    given = parser().parse_args(arguments)
    try:
        with _stdout_for_result_only() as result:
            given.command(
                given,
                lambda value, text: print(json.dumps(value) if given.json else text, file=result),
            )
        return 0
    except WorkerFault as error:  # the process in which it happened has printed its traceback
        print(error, file=sys.stderr)
        return 1
    except Exception as error:  # noqa: BLE001 - the one place where errors of the command line are put into words
        users = as_user_error(error) is not None
        if not users:
            print_traceback()
        print(user_message(error), file=sys.stderr)
        return 2 if users else 1


@contextlib.contextmanager
def _stdout_for_result_only() -> Iterator[Any]:
    """Yields the real standard output; what libraries print meanwhile goes to standard error."""
    with contextlib.redirect_stdout(sys.stderr):
        yield sys.__stdout__


if __name__ == "__main__":
    status = main()
    gc.freeze()  # at the end Python looks through all that the libraries made, which takes a second
    sys.exit(status)
