"""Trainings on ZeroGPU: `train(run, deadline)` in slices, each in a function that a GPU is lent to for so many seconds.

Such a function runs in a forked process, in another thread than the main one; it takes paths, leaves its results on the disk, and says what
went wrong as a value, because of an exception only its class would come back. What needs no GPU is done before, by the workers of `local.py`.
"""

import gc
import logging
import queue
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import psutil
import spaces

from peft_space import settings
from peft_space.errors import UserError, as_user_error, error_json, user_message
from peft_space.evaluation import resumable
from peft_space.runs import events
from peft_space.runs.run import Run
from peft_space.runs.status import steps_of
from peft_space.runs.store import list_sibling_runs
from peft_space.runtime import zerogpu_slices
from peft_space.runtime.supervisor import halve_max_length_of
from peft_space.runtime.worker_pool import WorkerFault, Workers, raise_from_json

logger = logging.getLogger(__name__)

_SPARE_SECONDS = 2.0
"""Before the end of its slice a verb leaves."""


def import_libraries() -> None:
    """Import what slices need in the process that they are forked from, so that none of their time goes on it."""
    import peft_space.evaluation.compare
    import peft_space.evaluation.evaluate
    import peft_space.export.describe
    import peft_space.planning.dry_run
    import peft_space.training.train  # noqa: F401

    gc.collect()
    gc.freeze()  # a forked process need not look through it again


# A training


def start(run: Run, shorter: bool = False) -> None:
    """Let a run be trained in slices from now on. Raises UserError where it or another one of the same owner is being trained.

    Args:
        shorter: as of `trainings.start_training`.
    """
    for other in list_sibling_runs(run):
        if other.status() in ("queued", "running"):
            raise UserError(
                "todo",
                f"The run {other.name!r} is being trained. A page trains one at a time: wait for it, or pause it first.",
            )
    with run.lock():
        if run.status() == "finished":
            raise UserError("todo", f"The run {run.name!r} is finished already. Start another one.")
        run.truncate_partial_event()
        if shorter:
            halve_max_length_of(run)
        run.clear_stop_request()
        run.append(events.Queued())


def run_slice(run: Run, workers: Workers, limit: int, anyway: bool = False) -> bool:
    """Train for one slice of at most `limit` seconds; whether another one is needed. To be called in the event of a visitor, whose quota it takes.

    What comes in between leaves the run paused, and says why in its Paused event.
    """
    if run.requested_stop() == "pause":
        _pause(run, "", asked=True)
        return False
    try:
        seconds = zerogpu_slices.next_slice_seconds(run.history(), limit)
        workers.call("prefetch", run=str(run.directory))
        with run.lock():
            run.append(events.Queued())
        answer = _train(str(run.directory), seconds, anyway)
    except Exception as error:  # noqa: BLE001 - the package raises its own, and what is not known is logged
        _pause(run, gpu_error_message(error, limit))
        return False
    if "error" in answer:
        if run.status() != "failed":
            _pause(run, answer["error"])
        return False
    return answer["event"] == "Paused" and not answer["asked"]


def _pause(run: Run, why: str, asked: bool = False) -> None:
    with run.lock():
        run.truncate_partial_event()
        steps = steps_of(run.history())
        run.append(events.Paused(step=steps[-1].step if steps else 0, asked=asked, why=why))
        run.clear_stop_request()


def _duration(what: str, seconds: int, *others: Any, **named: Any) -> int:
    return seconds


_served = False
"""In the process of slices: whether it has had one already."""
_warm: Any = None


@spaces.GPU(duration=_duration)
def _train(directory: str, seconds: int, anyway: bool = False) -> dict[str, Any]:
    """One slice: how `train` ended, or what went wrong."""
    global _warm
    from peft_space.export.describe import describe_adapter
    from peft_space.training.model_cache import ModelCache
    from peft_space.training.train import train

    began = _began()
    _warm = _warm or ModelCache()
    run = Run(directory)

    def slice_of_it() -> dict[str, Any]:
        with run.lock():
            run.truncate_partial_event()
            deadline = began + seconds - zerogpu_slices.margin_of(run.history(), seconds)
            run.append(events.SliceStarted(at=began, seconds=seconds))
            return train(
                run,
                deadline,
                anyway=anyway,
                report_to=settings.report_to(),
                warm=_warm,
                on_adapter_saved=describe_adapter,
            ).model_dump()

    return _or_error(slice_of_it)


def _began() -> float:
    """When this slice began: a fresh process is forked after the GPU was given."""
    global _served
    fresh, _served = not _served, True
    return (
        min(time.time(), psutil.Process().create_time())
        if fresh and settings.on_zerogpu()
        else time.time()
    )


def _or_error(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` returns, or {"error", "users"} as a worker says it."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - see the module's docstring
        if as_user_error(error) is None:
            traceback.print_exc()
        return error_json(error)


# All else that wants a GPU


class GpuOperation(Protocol):
    """What a slice needs to know about an operation."""

    @property
    def resumable(self) -> bool:
        """Whether it stores partial results in the run and continues from them in a later slice."""

    def needs_gpu(self, arguments: dict[str, Any]) -> bool:
        """Return True if a call with these arguments computes on a GPU."""

    def __call__(self, **arguments: Any) -> Any: ...


class SlicedWorkers(Workers):
    """Workers whose verbs that want a GPU take a slice each; all others run in worker processes as ever.

    Where a slice was too short for a verb that goes on, its result is `more`, and the `share` that is done: ask again, in an event of its own.
    """

    def __init__(self, operations: Mapping[str, GpuOperation]):
        """`operations`: by name, what a slice can be asked for."""
        super().__init__()
        _operations.update(operations)

    def stream(self, verb: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        if not _operations[verb].needs_gpu(arguments):
            yield from super().stream(verb, **arguments)
            return
        if (
            verb == "dry_run"
        ):  # the rows are rendered, and the estimate refused where it must be, before a GPU is asked for
            yield from (
                message
                for message in super().stream("estimate", **arguments)
                if "report" in message
            )
        limit = settings.slice_seconds()
        try:
            for message in _run_on_gpu(verb, limit, arguments):
                if "error" in message:
                    raise_from_json(message)
                yield message
        except (UserError, WorkerFault):
            raise
        except Exception as error:
            raise UserError("todo", gpu_error_message(error, limit, "ask again")) from error


class _SliceExpired(Exception):
    """The slice is over."""


class _ClientGone(Exception):
    """Nobody waits for the answer any more."""


_computing = threading.Lock()
_operations: dict[str, GpuOperation] = {}
"""Inherited by the forked process of a slice."""


@spaces.GPU(duration=_duration)
def _run_on_gpu(verb: str, seconds: int, arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The messages of a verb, as a worker process writes them."""
    messages: queue.Queue[dict[str, Any]] = queue.Queue()
    left, deadline, share = threading.Event(), _began() + seconds - _SPARE_SECONDS, 0.0

    def report(told: dict[str, Any]) -> None:
        nonlocal share
        if left.is_set():
            raise _ClientGone
        if time.time() > deadline:
            raise _SliceExpired
        share = told.get("share", share)
        messages.put({"report": told})

    def slice_of_it() -> dict[str, Any]:
        before = (
            resumable.num_saved_batches(Run(arguments["run"]))
            if _operations[verb].resumable
            else None
        )
        try:
            return {"result": _operations[verb](**arguments, report=report)}
        except _SliceExpired:
            if not _operations[verb].resumable:
                raise UserError(
                    "todo",
                    f"This took longer than the {seconds} s for which it had a GPU. Ask for less at once.",
                ) from None
            if resumable.num_saved_batches(Run(arguments["run"])) == before:
                raise UserError(
                    "todo",
                    f"Slices of {seconds} s are too short for this: nothing more of it was done in one. "
                    "Whoever runs this Space can set longer ones: PEFT_SPACE_SLICE_SECONDS.",
                ) from None
            return {"result": {"more": True, "share": share}}

    def work() -> None:
        with _computing:  # what nobody waits for any more ends at its next report, and switches the same adapter on and off until then
            messages.put(_or_error(slice_of_it))

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            try:
                message = messages.get(timeout=1.0)
            except queue.Empty:
                message = {"report": {}}
            yield message
            if "report" not in message:
                return
    finally:
        left.set()


# What the platform refuses, in words

_LEFT = re.compile(r"\((\d+)s requested vs\. (-?\d+)s left\)")


def gpu_error_message(error: Exception, limit: int, again: str = "Resume") -> str:
    """Why there was no GPU, or no longer one, in one sentence, and what to do.

    Args:
        again: how what was asked for is asked for again; what a training has kept goes on by Resume.
    """
    title, said = getattr(error, "title", ""), str(getattr(error, "message", error))
    if title == "ZeroGPU illegal duration":
        return f"ZeroGPU does not lend you a GPU for as long as {limit} s at once: choose shorter slices, then {again}."
    if title == "ZeroGPU quota exceeded" and (left := _LEFT.search(said)):
        return f"Your GPU quota is used up: {left[1]} s were asked for and {left[2]} s are left, so {again} when you have more."
    if title in ("ZeroGPU quota exceeded", "ZeroGPU pending credits exceeded"):
        return f"Your GPU quota is used up, or you are not signed in: sign in, or wait until you have more, then {again}."
    if title == "ZeroGPU queue timeout" or "No GPU was available" in said:
        return f"No GPU was free within a minute: {again} in a while."
    if "Expired ZeroGPU proxy token" in said:
        return f"Your sign-in with this page has expired: reload the page, then {again}."
    if title == "ZeroGPU worker error":
        kept = (
            ", and nothing before the last checkpoint is lost: Resume goes on from there"
            if again == "Resume"
            else f": {again}"
        )
        return f"The GPU was taken away before the slice was over{kept}."
    if "Connection closed by visitor" in said:
        return f"The page was closed while it waited for a GPU: {again}, and it goes on from here."
    if as_user_error(error) is None:
        logger.exception("a slice failed", exc_info=error)
    return user_message(error)
