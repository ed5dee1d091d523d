"""A process that runs operations for the page: JSON requests in, JSON reports and results out.

It reads one request a line. A model stays loaded between requests, until a training needs the GPU.
"""

import contextlib
import json
import os
import sys
import threading
import time
from typing import IO, Any

from peft_space.errors import as_user_error, error_json
from peft_space.operations import OPERATIONS
from peft_space.operations.evaluation import release_model_for_training
from peft_space.operations.registry import Report
from peft_space.redaction import print_traceback
from peft_space.runtime import machine_queue
from peft_space.settings import prepare_libraries

_CHECK_SECONDS = 1.0
"""A training takes longer than this from its turn to its first tensor."""


def main() -> None:
    """Serve requests until the page closes the pipe."""
    prepare_libraries()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not get between the JSON lines
    working = threading.Lock()
    threading.Thread(target=_make_room_for_trainings, args=(working,), daemon=True).start()
    for line in sys.stdin:
        with working:
            _serve(json.loads(line), answers)


def _make_room_for_trainings(working: threading.Lock) -> None:
    """Between requests, give back a kept model's GPU memory when a training starts or waits."""
    while True:
        time.sleep(_CHECK_SECONDS)
        with working:
            release_model_for_training()


def _serve(request: dict[str, Any], answers: IO[str]) -> None:
    lock, ended = threading.Lock(), threading.Event()

    def write(message: dict[str, Any]) -> None:
        with lock:
            answers.write(json.dumps(message) + "\n")
            answers.flush()

    def beat() -> None:  # lets the page end this process while a model is being loaded
        while not ended.wait(1.0):
            write({"report": {}})

    heart = threading.Thread(target=beat, daemon=True)
    heart.start()
    last = _last_message(request, lambda report: write({"report": report}))
    ended.set()
    heart.join()
    write(last)


def _last_message(request: dict[str, Any], report: Report) -> dict[str, Any]:
    """Run the operation and return {"result": …} or {"error": …}."""
    try:
        operation, arguments = OPERATIONS[request["verb"]], request["arguments"]
        if operation.reports:
            arguments["report"] = report
        with _turn(report) if operation.takes_turn else contextlib.nullcontext():
            return {"result": operation(**arguments)}
    except Exception as error:  # noqa: BLE001 - turns every error into a message
        if as_user_error(error) is None:
            print_traceback()
        return error_json(error)


def _turn(report: Report) -> contextlib.AbstractContextManager[Any]:
    def on_wait(before: int) -> None:
        trainings = f"{before} training{'s' * (before > 1)}"
        report({"share": 0.0, "what": f"Waiting for {trainings} on this machine"})

    return machine_queue.machine_slot(None, on_wait)


if __name__ == "__main__":
    main()
