"""Trains a run as a Hugging Face Job: sends it, follows the job, and imports the results.

The run travels through a private dataset of the user. `runtime/hf_job_main.py` is the job's side.
Tokens are passed to the job as a secret and never written down.
"""

import collections
import logging
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, JobInfo, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from pydantic import ValidationError

from peft_space import settings
from peft_space.compat.huggingface_hub import TERMINAL_JOB_STAGES, FailureCode, JobHardwareInfo
from peft_space.errors import UserError
from peft_space.estimation.hub_hardware import TERAFLOPS, HardwareOffer, SpaceHardware
from peft_space.formatting import duration
from peft_space.hardware import Device
from peft_space.hub import jobs
from peft_space.hub.backup import RunRepository, Snapshot
from peft_space.hub.client import check_token, translate_errors
from peft_space.runs import archive, checkpoints, events
from peft_space.runs.archive import Manifest
from peft_space.runs.events import OnProgress, active_job, no_progress
from peft_space.runs.plan import read_plan
from peft_space.runs.run import Run
from peft_space.storage import atomic_io

logger = logging.getLogger(__name__)

_PACKAGE = "package.zip"
_MAX_LOG_LINES, _MAX_LINE_LENGTH = 10_000, 2_000
_LABEL = "peft-space-run"
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
#: The program of the job: it needs no file, and runs one commit of the dataset, which is exactly
#: what was sent.
_BOOTSTRAP = (
    "import sys,tempfile,zipfile;from huggingface_hub import snapshot_download as get;"
    "w=tempfile.mkdtemp();"
    "get(sys.argv[1],repo_type='dataset',revision=sys.argv[2],local_dir=w);"
    f"zipfile.ZipFile(w+'/{_PACKAGE}').extractall(w);sys.path.insert(0,w);"
    "from peft_space.runtime.hf_job_main import main;main(w,sys.argv[1],float(sys.argv[3]))"
)
_NOT_STARTED = "The job was not started"
_TIME_LIMIT = re.compile(r"time.?(d.?)?out|time limit|deadline")
_ADVICE = "Submit the run again, or resume it here"


def seconds_of(timeout: str) -> float:
    """Parse a duration such as `90m`, `2h` or a number of seconds.

    Raises:
        UserError: it is not a duration above 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", timeout.strip())
    if not match or float(match[1]) == 0:
        message = f"Invalid duration {timeout!r}. Write it like 90m or 2h."
        raise UserError("hub.invalid_duration", message)
    return float(match[1]) * _SECONDS[match[2] or "s"]


def offers(token: str | None) -> list[HardwareOffer]:
    """Return the hardware that jobs can use, as the Hub lists it now.

    Raises:
        UserError: the Hub cannot be reached, or rejects the token.
    """
    check_token(token)
    with _hub_errors("Jobs", "The hardware could not be listed"):
        return _offers(HfApi(token=token or None))


def _offers(api: HfApi) -> list[HardwareOffer]:
    return [offer for info in api.list_jobs_hardware() if (offer := _offer(info))]


def _offer(info: JobHardwareInfo) -> HardwareOffer | None:
    """One kind of hardware; None if its price unit is unknown, or it has another accelerator."""
    unit_seconds = {"second": 1, "minute": 60, "hour": 3_600}.get(info.unit_label)
    gpu = info.accelerator
    if unit_seconds is None or (gpu and gpu.type != "gpu"):
        return None
    count = int(gpu.quantity) if gpu else 1
    memory = _gigabytes(gpu.vram) / count if gpu else _gigabytes(info.ram)
    teraflops = TERAFLOPS.get(gpu.model) if gpu else None
    device: Device = "cuda" if gpu else "cpu"
    kind = SpaceHardware(info.name, info.pretty_name, device, round(memory), teraflops)
    return HardwareOffer(kind, count, info.unit_cost_usd * 3_600 / unit_seconds)


def _gigabytes(text: str) -> float:
    """Parse a size such as "16 GB"; 0 if it has another form, so that nothing fits there."""
    match = re.fullmatch(r"([\d.]+)\s*([GT])i?B", text.strip())
    return float(match[1]) * (1_000 if match[2] == "T" else 1) if match else 0.0


def submit(
    run: Run, flavor: str, seconds: float, token: str | None, on_progress: OnProgress = no_progress
) -> events.SubmittedToJob:
    """Send a run to the Hub and start a job that trains it.

    Until the job's outcome arrives, the run cannot be trained here.

    Args:
        run: it is not queued, running or finished.
        flavor: the Hub's name of the hardware.
        seconds: the time limit of the job.
        token: with write access and permission to run jobs; None uses this machine's.
        on_progress: called with the completed share and the current work.

    Raises:
        UserError: the run, the hardware or the token is not suitable, or the Hub rejects the
            request. Then no job was started.
    """
    api, token = _signed_in(token)
    with run.lock(), _hub_errors("Jobs", _NOT_STARTED):
        _check_run(run)
        on_progress(0.0, "Checking the token")
        owner = api.whoami()["name"]
        _check_hardware(run, flavor, _offers(api))
        run.truncate_partial_event()
        name = f"{_LABEL}-{int(run.about['created'] * 1e6):x}"
        repository, labels = RunRepository(api, f"{owner}/{name}"), {_LABEL: name}
        running = (
            job
            for job in api.list_jobs(labels=labels, namespace=owner)
            if job.status.stage not in TERMINAL_JOB_STAGES
        )
        job = next(running, None)
        if job is None:  # otherwise the Hub's answer to an earlier attempt was lost
            on_progress(0.2, f"Uploading the run to {repository.repo}")
            revision, libraries = _upload(repository, run)
            on_progress(0.9, "Starting the job")
            job = api.run_uv_job(
                "python",
                script_args=["-c", _BOOTSTRAP, repository.repo, revision, str(seconds)],
                dependencies=libraries,
                flavor=flavor,
                timeout=seconds,
                secrets={"HF_TOKEN": token},
                labels=labels,
                namespace=owner,
                name=name,
            )
        num_events = len(run.history())
        submitted = events.SubmittedToJob(
            job=job.id, owner=owner, repo=repository.repo, address=job.url, flavor=flavor,
            timeout=seconds, num_events=num_events,
        )  # fmt: skip
        run.append(submitted)
        return submitted


def _signed_in(token: str | None) -> tuple[HfApi, str]:
    """A client, and its token, which the job needs too."""
    check_token(token)
    token = token or get_token()
    if not token:
        raise UserError(
            "hub.no_token",
            "There is no Hub token. Paste one with write access, or sign in with `hf auth login`.",
        )
    return HfApi(token=token), token


def _check_run(run: Run) -> None:
    status = run.status()
    if status in ("queued", "running", "on_job", "finished"):
        raise UserError(
            "hub.run_not_available",
            f"{_NOT_STARTED}: the run {run.name!r} is {status}. Wait for it, or stop it first.",
        )
    if Path(run.recipe.base_model).expanduser().is_dir():
        raise UserError(
            "hub.local_base_model",
            f"{_NOT_STARTED}: the base model {run.recipe.base_model} is a folder on this machine, "
            "which a job cannot read. Push it to the Hub and use its id.",
        )


def _check_hardware(run: Run, flavor: str, available: list[HardwareOffer]) -> None:
    """Raise UserError if the hardware does not exist, or cannot use the run's checkpoints."""
    offer = next((offer for offer in available if offer.kind.name == flavor), None)
    if offer is None:
        names = ", ".join(offer.kind.name for offer in available)
        message = f"Jobs do not offer the hardware {flavor!r} now. Choose one of: {names}."
        raise UserError("hub.unknown_hardware", message)
    if not checkpoints.complete(run):
        return
    plan = read_plan(run)
    if plan is None:
        raise UserError(
            "hub.plan_missing",
            "This run has checkpoints but no plan.json, which has its settings. Restore that "
            "file, or train the recipe again.",
        )
    if plan.device != offer.kind.device:
        devices = {"cpu": "a CPU", "cuda": "a GPU"}
        raise UserError(
            "hub.other_device",
            f"This run started on {devices[plan.device]}, and {flavor} is "
            f"{devices[offer.kind.device]}, which cannot resume its checkpoints. Choose hardware "
            "of the same kind, or train the recipe again.",
        )


def _upload(repository: RunRepository, run: Run) -> tuple[str, list[str]]:
    """Upload the run and this package. Returns the commit, and the libraries that it needs."""
    from peft_space.export import standalone_script  # imports transformers

    packed = archive.pack(run)
    plan = read_plan(run)
    if not checkpoints.complete(run):
        packed.pop("plan.json", None)  # it was measured on this machine
        plan = None
    package = standalone_script.package(run.recipe.base_model)
    repository.api.create_repo(repository.repo, repo_type="dataset", private=True, exist_ok=True)
    manifest, commit = repository.upload(
        packed,
        repository.run_files(),
        "Submit the run",
        {_PACKAGE: standalone_script.zipped(package)},
    )
    _write_known(run, manifest)
    return commit, standalone_script.dependencies(plan)


def poll(run: Run, token: str | None) -> bool:
    """Import the files that the job has sent since the last call. Needs the run's lock.

    Returns:
        True if the job has ended.

    Raises:
        UserError: the run has no job, the Hub cannot be reached, or what the job sent is invalid.
    """
    submitted = _submitted(run)
    api, _ = _signed_in(token)
    with _hub_errors(submitted.repo, "The job could not be checked"):
        job = _job(api, submitted)
        is_over = job is None or job.status.stage in TERMINAL_JOB_STAGES
        try:
            lines = _download(RunRepository(api, submitted.repo), run)
            received = _parse_events(lines[submitted.num_events :])
            problem = None
        except (RepositoryNotFoundError, UserError) as error:
            if not is_over:
                raise
            received, problem = [], error
        _save_log(api, run, submitted)
    if is_over and not (received and isinstance(received[-1], events.OUTCOMES)):
        if isinstance(problem, UserError):
            received += [events.Failed(message=str(problem), code=problem.code)]
        else:
            received += _events_of_lost_job(run, submitted, job)
    _write_events(run, received, job, is_over)
    return is_over


def cancel(run: Run, token: str | None) -> None:
    """End the job. The next `poll` imports its files.

    Raises:
        UserError: the run has no job, or the Hub rejects the request.
    """
    submitted = _submitted(run)
    api, _ = _signed_in(token)
    with _hub_errors(submitted.repo, "The job was not canceled"):
        job = _job(api, submitted)
        if job and job.status.stage not in TERMINAL_JOB_STAGES:
            api.cancel_job(job_id=submitted.job, namespace=submitted.owner)


def _submitted(run: Run) -> events.SubmittedToJob:
    if submitted := active_job(run.history()):
        return submitted
    message = f"The run {run.name!r} has no job: it is {run.status()}. Submit it first."
    raise UserError("hub.no_job", message)


def _job(api: HfApi, submitted: events.SubmittedToJob) -> JobInfo | None:
    """The job; None if the Hub has deleted it."""
    try:
        return api.inspect_job(job_id=submitted.job, namespace=submitted.owner)
    except HfHubHTTPError as error:
        if error.response.status_code == 404:
            return None
        raise


def _download(repository: RunRepository, run: Run) -> list[bytes]:
    """Install the new files of the newest commit. Returns the lines of the job's events."""
    known = _read_known(run)
    with tempfile.TemporaryDirectory(dir=run.directory, prefix=".job-") as scratch:
        snapshot = repository.snapshot(scratch)
        names = [name for name in snapshot.manifest.files if _comes_back(name)]
        has_events = "events.jsonl" in snapshot.manifest.files
        snapshot.check([*names, *["events.jsonl"] * has_events])
        changed = [name for name in names if known.get(name) != snapshot.manifest.files[name]]
        snapshot.install(run.directory, changed)
        _remove_old_checkpoints(run, snapshot)
        _write_known(run, snapshot.manifest)
        if not has_events:
            return []
        return snapshot.verified("events.jsonl").read_bytes().splitlines()


def _remove_old_checkpoints(run: Run, snapshot: Snapshot) -> None:
    """Remove the checkpoints that the job has removed."""
    for folder in checkpoints.complete(run):
        prefix = f"checkpoints/{folder.name}/"
        if not any(name.startswith(prefix) for name in snapshot.manifest.files):
            shutil.rmtree(folder)


def _read_known(run: Run) -> dict[str, str]:
    """The files that the run and the dataset have in common, with their SHA-256."""
    path = run.path("job.json")
    return Manifest.model_validate_json(path.read_bytes()).files if path.is_file() else {}


def _write_known(run: Run, manifest: Manifest) -> None:
    atomic_io.write_text(run.path("job.json"), manifest.to_bytes().decode())


def _comes_back(name: str) -> bool:
    """Return False for files that a job cannot change, and for events, which are merged."""
    return not name.startswith("data/") and name not in ("recipe.json", "run.json", "events.jsonl")


def _save_log(api: HfApi, run: Run, submitted: events.SubmittedToJob) -> None:
    """Write the end of the job's output to job.log."""
    try:
        log = api.fetch_job_logs(job_id=submitted.job, namespace=submitted.owner)
        lines = collections.deque(
            (line.rstrip()[:_MAX_LINE_LENGTH] for line in log), maxlen=_MAX_LOG_LINES
        )
    except httpx2.HTTPError as error:  # the run's events do not depend on the log
        logger.warning("the log of the job %s cannot be read: %s", submitted.job, error)
        return
    atomic_io.write_text(run.path("job.log"), "".join(f"{line}\n" for line in lines))


def _parse_events(lines: list[bytes]) -> list[events.Event]:
    """Parse the events of a job. The dataset belongs to the user, so others can write to it.

    Raises:
        UserError: an event is invalid, or cannot come from a training.
    """
    try:
        received = [events.parse_event(line) for line in lines]
    except ValidationError:
        received = None
    if received is None or any(
        isinstance(event, events.SubmittedToJob | events.Queued) for event in received
    ):
        raise UserError(
            "hub.invalid_job_events",
            f"The job sent events that no training writes. {_ADVICE}.",
        )
    return received


def _write_events(
    run: Run, received: list[events.Event], job: JobInfo | None, is_over: bool
) -> None:
    """Append the job's events to those that were sent.

    The outcome makes the run available again, so it is written only after the job has ended.
    """
    own = run.history()
    submissions = [i for i, event in enumerate(own) if isinstance(event, events.SubmittedToJob)]
    sent, known = own[: submissions[-1] + 1], own[submissions[-1] + 1 :]
    if not is_over and received and isinstance(received[-1], events.OUTCOMES):
        received = received[:-1]
    if not is_over and not received and job is not None:
        received = _waiting_events(job, known)
    if received != known:
        lines = "".join(f"{event.model_dump_json()}\n" for event in [*sent, *received])
        atomic_io.write_text(run.path("events.jsonl"), lines)
    if is_over:
        run.path("job.json").unlink(missing_ok=True)


def _waiting_events(job: JobInfo, known: list[events.Event]) -> list[events.Event]:
    """The state of a job that has not sent an event yet; `known` if the run says so already."""
    states = {
        "SCHEDULING": "Waiting for a machine of Hugging Face Jobs",
        "RUNNING": "Installing the libraries on the job's machine",
    }
    state = states.get(job.status.stage, "Starting the job")
    if known and isinstance(known[-1], events.Preparing) and known[-1].what == state:
        return known
    return [events.Preparing(what=state)]


def _events_of_lost_job(
    run: Run, submitted: events.SubmittedToJob, job: JobInfo | None
) -> list[events.Event]:
    """The outcome of a job that ended without writing one."""
    steps = [checkpoints.step_of(folder) for folder in checkpoints.complete(run)]
    if steps:
        position = f"from step {max(steps)}, its last checkpoint"
    else:
        position = "from the first step, because no checkpoint has arrived"
    stage, message = (job.status.stage, job.status.message or "") if job else ("DELETED", "")
    if stage == "CANCELED":
        why = f"Training resumes {position}, here or in another job."
        return [
            events.Notice(what="The job was canceled.", why=why),
            events.Paused(step=max(steps, default=0)),
        ]
    seconds = job.durations.running_secs if job and job.durations else None
    timed_out = _TIME_LIMIT.search(message.lower()) or (seconds or 0) >= submitted.timeout
    if timed_out:
        limit = duration(submitted.timeout)
        code, why = "hub.job_timeout", f"The job reached its time limit of {limit}"
        advice = "Submit the run again with more time, or resume it here"
    elif stage == "DELETED":
        code, why = "hub.job_deleted", "The Hub has deleted the job"
        advice = _ADVICE
    else:
        detail = f" ({message})" if message else ""
        code, why = "hub.job_failed", f"The job ended with an error{detail}"
        advice = f"job.log in the run's folder has the end of its output. {_ADVICE}"
    return [events.Failed(code=code, message=f"{why}. {advice}: it resumes {position}.")]


def _hub_errors(repo: str, failed: str) -> AbstractContextManager[None]:
    reasons: dict[FailureCode, str] = {
        "hub.payment_required": "your account has no credit for jobs. Add some on the Hub's "
        "billing page",
        "hub.forbidden": "the token has no permission for this. It needs write access and the "
        "right to run jobs",
    }
    return translate_errors(repo, failed, reasons=reasons)


SECONDS_BETWEEN = 5.0
#: Failures in a row, about one hour of them, after which it gives up. The page then offers to
#: follow the job again.
_MAX_FAILURES = 720


def start_watching(run: Run, token: str | None) -> None:
    """Follow the run's job from a new process, unless a process does already."""
    if run.is_locked():
        return
    with open(run.path("worker.log"), "a") as log:
        command = [sys.executable, "-m", "peft_space.hub.jobs", str(run.directory)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
            text=True,
        )  # fmt: skip
    assert process.stdin is not None
    with process.stdin as pipe:
        pipe.write(f"{token or ''}\n")


def watch_job(
    run: Run,
    token: str | None,
    between: float = SECONDS_BETWEEN,
    on_failure: Callable[[str], None] = print,
) -> None:
    """Import the job's files until it ends. Needs the run's lock.

    Args:
        run: it has a job.
        token: of the job's owner; None uses the one this machine is signed in with.
        between: seconds between two requests.
        on_failure: called with the message of each failure.

    Raises:
        UserError: the job could not be checked for about an hour.
    """
    failures = 0
    while True:
        try:
            if jobs.poll(run, token):
                return
            failures = 0
        except UserError as error:
            failures += 1
            if failures > _MAX_FAILURES:
                raise
            on_failure(str(error))
        time.sleep(between)


def main(directory: str) -> None:
    """Follow the job of the run in a directory."""
    settings.prepare_libraries()
    token = sys.stdin.readline().strip() or None
    run = Run(directory)
    with run.lock():
        watch_job(run, token, on_failure=lambda text: print(text, file=sys.stderr, flush=True))


if __name__ == "__main__":
    main(sys.argv[1])
