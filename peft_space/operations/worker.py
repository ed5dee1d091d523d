"""A process that does the page's verbs: reads one JSON request a line, writes JSON lines of reports and one of the result or error.

A model stays loaded between requests, so the second comparison does not wait for it.
"""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

from peft_space.errors import as_user_error, error_json
from peft_space.operations import OPERATIONS, REPORTING, TAKING_TURNS
from peft_space.redaction import print_traceback
from peft_space.runtime import machine_queue
from peft_space.settings import prepare_libraries


def main() -> None:
    """Serve requests until the page closes the pipe."""
    prepare_libraries()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not get between the JSON lines
    for line in sys.stdin:
        _serve(json.loads(line), answers)


def _serve(request: dict[str, Any], answers: IO[str]) -> None:
    lock, ended = threading.Lock(), threading.Event()

    def write(message: dict[str, Any]) -> None:
        with lock:
            answers.write(json.dumps(message) + "\n")
            answers.flush()

    def beat() -> (
        None
    ):  # so that a page whose visitor pressed Stop can end this process while a model is being loaded
        while not ended.wait(1.0):
            write({"report": {}})

    heart = threading.Thread(target=beat, daemon=True)
    heart.start()
    last = _last_message(request, write)
    ended.set()
    heart.join()
    write(last)


def _last_message(
    request: dict[str, Any], write: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Do what is asked: {"result": …} or {"error": …}."""
    verb, arguments = request["verb"], request["arguments"]
    if verb in REPORTING:
        arguments["report"] = lambda report: write({"report": report})
    try:
        with _turn(arguments["report"]) if verb in TAKING_TURNS else contextlib.nullcontext():
            return {"result": OPERATIONS[verb](**arguments)}
    except Exception as error:  # noqa: BLE001 - the one place where errors of a worker are put into words for the page
        if as_user_error(error) is None:
            print_traceback()
        return error_json(error)


def _turn(report: Callable[[dict[str, Any]], None]) -> contextlib.AbstractContextManager[Any]:
    return machine_queue.machine_slot(
        None,
        lambda before: report(
            {
                "share": 0.0,
                "what": f"Waiting for {before} training{'s' * (before > 1)} on this machine",
            }
        ),
    )


if __name__ == "__main__":
    main()
