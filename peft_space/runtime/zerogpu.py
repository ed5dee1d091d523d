"""Runs trainings and other GPU work on ZeroGPU, slice by slice.

A slice is a function that runs in a forked process, in another thread than the main one. It takes
paths, leaves its results on the disk, and returns errors as values, because of an exception only
the class would arrive. Work that needs no GPU is done before, by `worker_pool.py`.
"""

import logging
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import psutil
import spaces

from peft_space import settings
from peft_space.compat.spaces import granted_seconds, parse_gpu_error, requested_seconds
from peft_space.errors import UserError, as_user_error, error_json, user_message
from peft_space.evaluation import results
from peft_space.runs import events
from peft_space.runs.events import steps_of
from peft_space.runs.run import Run
from peft_space.runs.store import list_sibling_runs
from peft_space.runtime import slice_lengths
from peft_space.runtime.supervisor import halve_max_length_of
from peft_space.runtime.worker_pool import WorkerFault, Workers, raise_from_json

logger = logging.getLogger(__name__)

_SPARE_SECONDS = 2.0  # before the end of a slice, in which an operation stops


def import_libraries() -> None:
    """Import what slices need into the process that they are forked from, to save their time."""
    import peft_space.evaluation.compare
    import peft_space.evaluation.evaluate
    import peft_space.export.model_card
    import peft_space.planning.dry_run
    import peft_space.planning.recommendation_facts
    import peft_space.training.train  # noqa: F401


# Training


def start(run: Run, halve_max_length: bool = False) -> None:
    """Queue a run for training in slices.

    Args:
        run: it is not finished.
        halve_max_length: as for `supervisor.start_training`.

    Raises:
        UserError: the run is finished, or another run of the same owner is being trained.
    """
    for other in list_sibling_runs(run):
        if other.status() in ("queued", "running"):
            raise UserError(
                "runtime.one_at_a_time",
                f"The run {other.name!r} is being trained, and a page trains one run at a time. "
                "Wait for it, or pause it first.",
            )
    with run.lock():
        if run.status() == "finished":
            raise UserError(
                "runtime.already_started",
                f"The run {run.name!r} is already finished. Start another run.",
            )
        run.truncate_partial_event()
        if halve_max_length:
            halve_max_length_of(run)
        run.clear_stop_request()
        run.append(events.Queued())


def run_slice(run: Run, workers: Workers, limit: int, ignore_mismatch: bool = False) -> bool:
    """Train for one slice. Call it in an event of the visitor whose quota it uses.

    After any problem the run is paused, and its Paused event says why.

    Args:
        run: it was started.
        workers: do the work before the slice that needs no GPU.
        limit: seconds of the slice, at most.
        ignore_mismatch: as for `supervisor.start_training`.

    Returns:
        True if another slice is needed.
    """
    if run.requested_stop() == "pause":
        _pause(run, "", asked=True)
        return False
    try:
        seconds = slice_lengths.next_slice_seconds(run.history(), limit)
        workers.call("prefetch", run=str(run.directory))
        with run.lock():
            run.append(events.Queued())
        answer = _train(str(run.directory), seconds, ignore_mismatch)
    except Exception as error:  # noqa: BLE001 - becomes a Paused event; unknown ones are logged
        _pause(run, gpu_error(error, limit)[1])
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


def _duration(name: str, seconds: int, *others: Any, **options: Any) -> int:
    return requested_seconds(seconds)


_had_slice = False  # in a forked process: it has had a slice before
_model_cache: Any = None


@spaces.GPU(duration=_duration)
def _train(directory: str, seconds: int, ignore_mismatch: bool = False) -> dict[str, Any]:
    """One slice of a training. Returns its outcome, or an error."""
    global _model_cache
    from peft_space.export.readiness import describe_adapter
    from peft_space.training.train import ModelCache, TrainOptions, train

    start_time, seconds = _slice_start(), granted_seconds(seconds)
    _model_cache = _model_cache or ModelCache()
    run = Run(directory)

    def train_slice() -> dict[str, Any]:
        with run.lock():
            run.truncate_partial_event()
            margin = slice_lengths.margin_of(run.history(), seconds)
            run.append(events.SliceStarted(at=start_time, seconds=seconds))
            options = TrainOptions(
                deadline=start_time + seconds - margin,
                ignore_mismatch=ignore_mismatch,
                report_to=settings.report_to(),
                model_cache=_model_cache,
                on_adapter_saved=describe_adapter,
            )
            return train(run, options).model_dump()

    return _or_error(train_slice)


def _slice_start() -> float:
    """When this slice began. A new process is forked after the GPU was granted."""
    global _had_slice
    is_new, _had_slice = not _had_slice, True
    if is_new and settings.on_zerogpu():
        return min(time.time(), psutil.Process().create_time())
    return time.time()


def _or_error(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the result of `work`, or its error as `errors.error_json` writes it."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - see the module's docstring
        if as_user_error(error) is None:
            traceback.print_exc()
        return error_json(error)


# Other operations


class GpuOperation(Protocol):
    """The facts about an operation that a slice needs."""

    @property
    def resumable(self) -> bool:
        """True if it stores partial results in the run and continues from them in a later slice."""

    def needs_gpu(self, arguments: dict[str, Any]) -> bool:
        """Return True if a call with these arguments computes on a GPU."""

    def __call__(self, **arguments: Any) -> Any: ...


class SlicedWorkers(Workers):
    """Workers that run the operations that need a GPU in slices, and all others in processes.

    If a slice was too short for a resumable operation, the result is `more`, with the completed
    `share`. Call it again, in a new event of the visitor.
    """

    def __init__(self, operations: Mapping[str, GpuOperation]):
        """Args: `operations` is name -> operation, everything that a slice may run."""
        super().__init__()
        _operations.update(operations)

    def stream(self, verb: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        """Run an operation; see `Workers.stream`."""
        if not _operations[verb].needs_gpu(arguments):
            yield from super().stream(verb, **arguments)
            return
        if verb == "dry_run":  # renders the rows, and fails if necessary, without a GPU
            estimate = super().stream("estimate", **arguments)
            yield from (message for message in estimate if "report" in message)
        limit = settings.slice_seconds()
        try:
            for message in _run_on_gpu(verb, limit, arguments):
                if "error" in message:
                    raise_from_json(message)
                yield message
        except (UserError, WorkerFault):
            raise
        except Exception as error:
            raise UserError(*gpu_error(error, limit, "try again")) from error


class _SliceExpired(Exception):
    """The slice is over."""


class _ClientGone(Exception):
    """Nobody waits for the result."""


_computing = threading.Lock()
#: Inherited by the forked process of a slice.
_operations: dict[str, GpuOperation] = {}


@spaces.GPU(duration=_duration)
def _run_on_gpu(verb: str, seconds: int, arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One slice of an operation. Yields messages as a worker process writes them."""
    messages: queue.Queue[dict[str, Any]] = queue.Queue()
    client_gone = threading.Event()
    seconds = granted_seconds(seconds)
    deadline, share = _slice_start() + seconds - _SPARE_SECONDS, 0.0

    def report(progress: dict[str, Any]) -> None:
        nonlocal share
        if client_gone.is_set():
            raise _ClientGone
        if time.time() > deadline:
            raise _SliceExpired
        share = progress.get("share", share)
        messages.put({"report": progress})

    def run_slice() -> dict[str, Any]:
        saved_before = _num_saved(verb, arguments)
        try:
            return {"result": _operations[verb](**arguments, report=report)}
        except _SliceExpired:
            _check_progress(verb, arguments, seconds, saved_before)
            return {"result": {"more": True, "share": share}}

    def work() -> None:
        # abandoned work ends only at its next report, and switches the same adapter until then
        with _computing:
            messages.put(_or_error(run_slice))

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
        client_gone.set()


def _num_saved(verb: str, arguments: dict[str, Any]) -> list[int] | None:
    """Batches that a resumable operation has stored in the run."""
    return results.num_saved_batches(Run(arguments["run"])) if _operations[verb].resumable else None


def _check_progress(
    verb: str, arguments: dict[str, Any], seconds: int, saved_before: list[int] | None
) -> None:
    """Raise UserError if another slice would not help."""
    if not _operations[verb].resumable:
        raise UserError(
            "runtime.slice_too_short",
            f"This takes longer than the {seconds} s for which it had a GPU. Request less at once.",
        )
    if _num_saved(verb, arguments) == saved_before:
        raise UserError(
            "runtime.slice_too_short",
            f"GPU slices of {seconds} s are too short for this: nothing was completed in one. "
            "The owner of this Space can set longer ones with PEFT_SPACE_SLICE_SECONDS.",
        )


# Errors of the platform


def gpu_error(error: Exception, limit: int, again: str = "resume") -> tuple[str, str]:
    """Return the code and the message for an error that ended a slice, or prevented it.

    Args:
        error: of `spaces`, or any other.
        limit: seconds of a slice, at most.
        again: how to repeat the work; "resume" for a training, which keeps its checkpoints.
    """
    gpu = parse_gpu_error(error)
    if gpu is None:
        if (user_error := as_user_error(error)) is not None:
            return user_error.code, str(user_error)
        logger.exception("a slice failed", exc_info=error)
        return "runtime.slice_failed", user_message(error)
    if gpu.code == "runtime.gpu_quota_exceeded" and gpu.left is not None:
        message = (
            f"Your GPU quota is used up: {gpu.requested} s were requested and {gpu.left} s are "
            f"left. When you have more, {again}."
        )
    elif gpu.code == "runtime.gpu_taken_away" and again == "resume":
        message = (
            "The GPU was taken away before the end of the slice. Everything up to the last "
            "checkpoint is saved: resume the training."
        )
    else:
        message = {
            "runtime.gpu_illegal_duration": f"ZeroGPU does not grant a GPU for {limit} s at once. "
            f"Choose shorter slices, then {again}.",
            "runtime.gpu_quota_exceeded": "Your GPU quota is used up, or you are not signed in. "
            f"Sign in, or wait until you have more, then {again}.",
            "runtime.no_gpu_available": "No GPU was available within a minute. Wait a little, "
            f"then {again}.",
            "runtime.sign_in_expired": "Your sign-in on this page has expired. Reload the page, "
            f"then {again}.",
            "runtime.gpu_taken_away": "The GPU was taken away before the end of the slice. Please "
            f"{again}.",
            "runtime.visitor_left": "The page was closed while it waited for a GPU. Please "
            f"{again}; it continues from here.",
        }[gpu.code]
    return gpu.code, message
